//! The Python class `DeliveryBuffer`.

use std::mem;

use arroyo_metrics_buffer_core::deliveries::{Deliveries, Outcome};
use arroyo_metrics_buffer_core::pending::Contents;
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::arguments;
use crate::buffer::{Buffer, call_backend};
use crate::clock::Clock;
use crate::interned;
use crate::objects::{self, OrMemoryError};
use crate::stats;

/// What the delivery callbacks of arroyo's `ConfluentProducer` feed.
///
/// It counts deliveries by status, keeps how long each took, and sends both to a metrics backend.
/// Every method may be called from any thread at any time, from inside the backend and after a fork
/// too. Nothing is lost and nothing is counted twice. While the backend fails, at most 1,000,000
/// latencies are kept.
///
/// Args:
///     flush_interval: Seconds that have to pass before `record()` asks for a flush. With 0 or less
///         every call does.
///     clock: A callable that returns seconds, for tests. None stands for the one given to
///         `install()`, by default the system's monotonic coarse clock.
///
/// Raises:
///     TypeError: `flush_interval` is not a number, or `clock` not callable.
///     ValueError: `flush_interval` is NaN.
#[pyclass(frozen, module = "arroyo_metrics_buffer._core")]
pub struct DeliveryBuffer {
    buffer: Buffer<Deliveries>,
}

#[pymethods]
impl DeliveryBuffer {
    #[new]
    #[pyo3(signature = (*, flush_interval, clock=None))]
    fn new(
        py: Python<'_>,
        flush_interval: &Bound<'_, PyAny>,
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let flush_interval = arguments::interval("flush_interval", flush_interval)?;
        let clock = Clock::chosen(py, clock)?.unwrap_or(Clock::Native);
        let now = clock.now(py)?;
        Ok(Self { buffer: Buffer::new(py, &stats::PRODUCER, 1, flush_interval, clock, now)? })
    }

    /// Count one delivery.
    ///
    /// Args:
    ///     error: None for a success; anything else is an error.
    ///     latency: Seconds that it took, or None where that is not measured.
    ///
    /// Returns:
    ///     Whether the flush interval has passed, so that the caller has to flush. Of several
    ///     threads that call at once, one has to.
    ///
    /// Raises:
    ///     TypeError: `latency` is not a number. Nothing was counted.
    #[pyo3(signature = (error, latency=None))]
    fn record(
        &self,
        py: Python<'_>,
        error: &Bound<'_, PyAny>,
        latency: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let outcome = if error.is_none() { Outcome::Success } else { Outcome::Error };
        let latency = latency.map(|latency| arguments::float("latency", latency)).transpose()?;
        self.buffer.lock().record(outcome, latency).or_memory_error(py)?;
        self.buffer.is_due(py)
    }

    /// Add deliveries that were counted elsewhere.
    ///
    /// Args:
    ///     counts: Deliveries by status, "success" or "error".
    ///     latencies: Seconds that they took.
    ///
    /// Raises:
    ///     ValueError: There is another status. Nothing was added.
    ///     TypeError: A count is not an integer, or a latency not a number. Nothing was added.
    ///     OverflowError: A count is negative or does not fit in 64 bits. Nothing was added.
    // A list and no other sequence: `range(2**50)` is one, and space would be made for all of it.
    fn add(&self, counts: &Bound<'_, PyDict>, latencies: &Bound<'_, PyList>) -> PyResult<()> {
        let py = counts.py();
        let mut samples = Vec::new();
        samples.try_reserve_exact(latencies.len()).map_err(|_| objects::no_memory(py))?;
        for latency in latencies.iter().take(samples.capacity()) {
            samples.push(latency.extract()?);
        }
        let mut by_outcome = Deliveries::default();
        for item in objects::items(counts)? {
            let (status, count): (Bound<'_, PyAny>, u64) = item.extract()?;
            by_outcome.add(outcome_of(&status)?, count.into());
        }
        let mut deliveries = self.buffer.lock();
        deliveries.add_latencies(&samples).or_memory_error(py)?;
        for (outcome, count) in by_outcome.counts() {
            deliveries.add(outcome, count);
        }
        Ok(())
    }

    /// Send what is pending to a backend: counts, then latencies, in the order they came in.
    ///
    /// Other threads go on recording meanwhile; what they record is pending for the next flush.
    ///
    /// Args:
    ///     metrics: The backend, an object with `increment(*, name, value, tags)` and
    ///         `timing(*, name, value, tags)`, where `tags` is a dict.
    ///     producer_name: For the tags of both metrics, or None.
    ///
    /// Raises:
    ///     BaseException: What the backend raised. What it had not accepted by then, the entry it
    ///         was called with included, is pending again. With
    ///         `install(on_backend_error="log")` it is logged, unless it is no Exception, as
    ///         KeyboardInterrupt is none.
    fn flush(&self, metrics: &Bound<'_, PyAny>, producer_name: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = metrics.py();
        self.buffer.flush(py, |deliveries, sending| {
            let producer_name = Some(producer_name).filter(|name| !name.is_none());
            let names = interned::name_value_tags(py)?;
            let name_key = interned::PRODUCER_NAME.get(py)?;
            let status_metric = interned::PRODUCE_STATUS.get(py)?;
            sending.each(
                deliveries.counts(),
                metrics,
                &interned::INCREMENT,
                |increment, (outcome, count)| {
                    let tags = objects::dict(py)?;
                    tags.set_item(interned::STATUS.get(py)?, status_of(py, outcome)?)?;
                    if let Some(name) = producer_name {
                        tags.set_item(&name_key, name)?;
                    }
                    let count = objects::integer(py, count)?;
                    call_backend(increment, [&status_metric, &count, &tags], 0, names)
                },
            )?;
            let no_name = interned::NO_PRODUCER_NAME.get(py)?;
            let name = producer_name.unwrap_or(&no_name);
            let latency_metric = interned::CALLBACK_LATENCY.get(py)?;
            sending.each(deliveries.latencies(), metrics, &interned::TIMING, |timing, seconds| {
                let tags = objects::dict(py)?;
                tags.set_item(&name_key, name)?;
                let seconds = objects::float(py, *seconds)?;
                call_backend(timing, [&latency_metric, &seconds, &tags], 0, names)
            })
        })
    }

    /// Take what is pending, for the caller to count it elsewhere.
    ///
    /// Latencies that were dropped are counted in `stats()`.
    ///
    /// Returns:
    ///     Deliveries by status, and the seconds that they took.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.buffer.drain(py, mem::take, |deliveries| counts_and_latencies(py, deliveries))
    }

    /// Tell what is pending, without flushing it.
    ///
    /// Returns:
    ///     Deliveries by status, and the seconds that they took.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        counts_and_latencies(py, &self.buffer.snapshot(py, Deliveries::copy)?.contents)
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let deliveries = self.buffer.snapshot(py, Deliveries::copy)?.contents;
        let counts = counts_by_status(py, &deliveries)?;
        let latencies = objects::integer(py, deliveries.latencies().len() as i128)?;
        let dropped = objects::integer(py, deliveries.dropped().into())?;
        let fields = objects::tuple(py, [&counts, &latencies, &dropped])?;
        interned::DELIVERY_BUFFER_REPR.get(py)?.rem(fields)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.buffer.traverse(&visit)
    }
}

fn counts_and_latencies<'py>(
    py: Python<'py>,
    deliveries: &Deliveries,
) -> PyResult<Bound<'py, PyTuple>> {
    let counts = counts_by_status(py, deliveries)?;
    let latencies = objects::floats(py, deliveries.latencies())?;
    objects::tuple(py, [&counts, &latencies])
}

fn counts_by_status<'py>(py: Python<'py>, deliveries: &Deliveries) -> PyResult<Bound<'py, PyDict>> {
    let counts = objects::dict(py)?;
    for (outcome, count) in deliveries.counts() {
        counts.set_item(status_of(py, outcome)?, objects::integer(py, count)?)?;
    }
    Ok(counts)
}

/// What arroyo calls an outcome.
fn status_of(py: Python<'_>, outcome: Outcome) -> PyResult<Bound<'_, PyString>> {
    match outcome {
        Outcome::Success => interned::SUCCESS.get(py),
        Outcome::Error => interned::ERROR.get(py),
    }
}

/// The outcome that arroyo calls `status`.
fn outcome_of(status: &Bound<'_, PyAny>) -> PyResult<Outcome> {
    match arguments::string("a status", status)?.to_str()? {
        "success" => Ok(Outcome::Success),
        "error" => Ok(Outcome::Error),
        other => {
            let message = format_args!("status must be 'success' or 'error', not {other:?}");
            Err(objects::error::<PyValueError>(status.py(), message))
        }
    }
}
