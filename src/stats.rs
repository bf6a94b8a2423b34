//! What the buffers of this process have done so far.
//!
//! Counted once a flush, so that a call costs nothing more.

use std::sync::LazyLock;
use std::time::Instant;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::shared::Shared;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What all buffers of one class have done; Python's class of this name has the same counts.
#[derive(Clone, Default)]
pub struct BufferStats {
    /// Flushes that had something to send.
    pub flushes: u64,
    pub entries_sent: u64,
    pub entries_put_back: u64,
    pub samples_dropped: u64,
    pub backend_errors: u64,
    /// The text of the last error, and when it was raised.
    pub last_error: Option<(String, Instant)>,
}

impl BufferStats {
    /// Counts a flush that sent and put back so many entries, if there were any, and the samples
    /// that were dropped before it.
    pub fn count_flush(&mut self, sent: usize, put_back: usize, dropped: u64) {
        self.flushes += u64::from(sent + put_back > 0);
        self.entries_sent += sent as u64;
        self.entries_put_back += put_back as u64;
        self.count_dropped(dropped);
    }

    /// Counts latency samples that were dropped.
    pub fn count_dropped(&mut self, samples: u64) {
        self.samples_dropped += samples;
    }

    /// Counts an error that the backend raised just now.
    pub fn count_error(&mut self, text: String) {
        self.backend_errors += 1;
        self.last_error = Some((text, Instant::now()));
    }
}

impl AtFork for BufferStats {
    /// The child is another process, which has done nothing yet.
    fn after_fork_in_child(&mut self) {
        *self = Self::default();
    }
}

/// The stats of all [`MetricsBuffer`](crate::metrics_buffer::MetricsBuffer)s.
pub static CONSUMER: LazyLock<Shared<BufferStats>> =
    LazyLock::new(|| Shared::new(BufferStats::default()).expect("memory"));
/// The stats of all [`DeliveryBuffer`](crate::delivery_buffer::DeliveryBuffer)s.
pub static PRODUCER: LazyLock<Shared<BufferStats>> =
    LazyLock::new(|| Shared::new(BufferStats::default()).expect("memory"));

/// Makes both. If they were made later, a child that is forked meanwhile would wait for ever.
pub fn init_at_import() {
    LazyLock::force(&CONSUMER);
    LazyLock::force(&PRODUCER);
}

/// Tell what the buffers of this process have done so far. Safe to call from any thread.
///
/// Returns:
///     For the consumer's and for the producer's buffers, the fields of `BufferStats` by name.
#[pyfunction]
pub fn stats(py: Python<'_>) -> PyResult<(Bound<'_, PyDict>, Bound<'_, PyDict>)> {
    Ok((fields(py, &CONSUMER)?, fields(py, &PRODUCER)?))
}

fn fields<'py>(py: Python<'py>, stats: &Shared<BufferStats>) -> PyResult<Bound<'py, PyDict>> {
    let stats = stats.lock().clone();
    let (text, raised) = stats.last_error.unzip();
    let fields = PyDict::new(py);
    fields.set_item("flushes", stats.flushes)?;
    fields.set_item("entries_sent", stats.entries_sent)?;
    fields.set_item("entries_put_back", stats.entries_put_back)?;
    fields.set_item("samples_dropped", stats.samples_dropped)?;
    fields.set_item("backend_errors", stats.backend_errors)?;
    fields.set_item("last_backend_error", text)?;
    let seconds = raised.map(|raised| raised.elapsed().as_secs_f64());
    fields.set_item("seconds_since_last_backend_error", seconds)?;
    Ok(fields)
}
