//! What the buffers of this process have done so far.
//!
//! Counted once a flush, so that a call costs nothing more.

use std::mem;
use std::time::Instant;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::lock::{Mutex, mutex};
use arroyo_metrics_buffer_core::shared::share;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::objects::OrMemoryError;
use crate::{interned, objects};

/// What all buffers of one class have done; Python's class of this name has the same counts.
pub struct BufferStats {
    /// Flushes that had something to send.
    flushes: u64,
    entries_sent: u64,
    entries_put_back: u64,
    samples_dropped: u64,
    backend_errors: u64,
    /// Outages that began.
    outages: u64,
    last_error: Option<LastError>,
}

/// The text of the last error, and when it was raised.
pub struct LastError {
    text: Py<PyString>,
    raised: Instant,
}

impl BufferStats {
    const NOTHING_DONE: Self = Self {
        flushes: 0,
        entries_sent: 0,
        entries_put_back: 0,
        samples_dropped: 0,
        backend_errors: 0,
        outages: 0,
        last_error: None,
    };

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

    /// Counts an error that the backend raised just now, and the outage that it begins, if it does.
    /// Returns the error before it, to be dropped outside the lock.
    pub fn count_error(&mut self, text: Py<PyString>, begins_outage: bool) -> Option<LastError> {
        self.backend_errors += 1;
        self.outages += u64::from(begins_outage);
        self.last_error.replace(LastError { text, raised: Instant::now() })
    }
}

impl AtFork for BufferStats {
    /// The child is another process, which has done nothing yet.
    fn after_fork_in_child(&mut self) {
        let parents = mem::replace(self, Self::NOTHING_DONE);
        mem::forget(parents); // there may be a Python object in it
    }
}

/// The stats of all [`MetricsBuffer`](crate::metrics_buffer::MetricsBuffer)s.
pub static CONSUMER: Mutex<BufferStats> = mutex(BufferStats::NOTHING_DONE);
/// The stats of all [`DeliveryBuffer`](crate::delivery_buffer::DeliveryBuffer)s.
pub static PRODUCER: Mutex<BufferStats> = mutex(BufferStats::NOTHING_DONE);
/// The stats of all [`BufferedMetricsBackend`](crate::buffered_backend::BufferedMetricsBackend)s.
pub static STREAMS: Mutex<BufferStats> = mutex(BufferStats::NOTHING_DONE);

/// Has every fork take the locks.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    static DONE: [PyOnceLock<()>; 3] = [const { PyOnceLock::new() }; 3];
    for (done, stats) in DONE.iter().zip([&CONSUMER, &PRODUCER, &STREAMS]) {
        // Once, though an import that failed may be tried again.
        done.get_or_try_init(py, || share(stats).or_memory_error(py))?;
    }
    Ok(())
}

/// Tell what the buffers of this process have done so far. Safe to call from any thread.
///
/// Returns:
///     For the buffers of consumers, of producers and of sentry-streams, the fields of
///     `BufferStats` by name.
#[pyfunction]
pub fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    let (consumer, producer) = (fields(py, &CONSUMER)?, fields(py, &PRODUCER)?);
    let streams = fields(py, &STREAMS)?;
    objects::tuple(py, [&consumer, &producer, &streams])
}

fn fields<'py>(py: Python<'py>, stats: &Mutex<BufferStats>) -> PyResult<Bound<'py, PyDict>> {
    let stats = stats.lock();
    let counts = [
        (&interned::FLUSHES, stats.flushes),
        (&interned::ENTRIES_SENT, stats.entries_sent),
        (&interned::ENTRIES_PUT_BACK, stats.entries_put_back),
        (&interned::SAMPLES_DROPPED, stats.samples_dropped),
        (&interned::BACKEND_ERRORS, stats.backend_errors),
        (&interned::OUTAGES, stats.outages),
    ];
    let last_error = stats.last_error.as_ref().map(|last| (last.text.clone_ref(py), last.raised));
    drop(stats); // making a dict can run Python code
    let fields = objects::dict(py)?;
    for (name, count) in counts {
        fields.set_item(name.get(py)?, objects::integer(py, count.into())?)?;
    }
    let (text, raised) = last_error.unzip();
    fields.set_item(interned::LAST_BACKEND_ERROR.get(py)?, text)?;
    let seconds = raised.map(|raised| objects::float(py, raised.elapsed().as_secs_f64()));
    fields.set_item(interned::SECONDS_SINCE_LAST_BACKEND_ERROR.get(py)?, seconds.transpose()?)?;
    Ok(fields)
}
