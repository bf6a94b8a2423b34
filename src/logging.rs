//! Records for the Python logger `arroyo_metrics_buffer`.
//!
//! Emitting one runs Python code: handlers, filters, perhaps other threads. So never with a lock
//! held, and never where a count is neither pending nor sent.

use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::IntoPyDict;
use pyo3::{PyErr, intern};
use pyo3_log::{Caching, Logger};

const LOGGER: &str = "arroyo_metrics_buffer";

/// Sends `log`'s records to Python, once however often the module is initialised.
pub fn install(py: Python<'_>) -> PyResult<()> {
    // Levels aren't cached, so that a later `setLevel` is seen.
    let logger = Logger::new(py, Caching::Loggers)?;
    // An error says that a logger is installed already: ours, each extension module has its own.
    let _ = logger.install();
    Ok(())
}

/// A flush that began at `start` sent all it took.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn flushed(py: Python<'_>, entries: usize, start: Instant) -> PyResult<()> {
    let microseconds = start.elapsed().as_micros();
    log::debug!(target: LOGGER, "flushed {entries} entries in {microseconds} µs");
    raised(py)
}

/// The backend raised when `sent` of `entries` were sent, and the rest was put back.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn put_back(py: Python<'_>, sent: usize, entries: usize) -> PyResult<()> {
    log::warn!(target: LOGGER, "{}", put_back_message(sent, entries));
    raised(py)
}

/// As [`put_back`], with the traceback of the error that nobody else will see.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn put_back_with_traceback(
    py: Python<'_>,
    sent: usize,
    entries: usize,
    error: PyErr,
) -> PyResult<()> {
    // `log` has no place for an exception; Python's own logger has.
    let logger = py.import("logging")?.call_method1("getLogger", (LOGGER,))?;
    let message = put_back_message(sent, entries);
    let exc_info = [("exc_info", error)].into_py_dict(py)?;
    logger.call_method(intern!(py, "warning"), (message,), Some(&exc_info))?;
    Ok(())
}

fn put_back_message(sent: usize, entries: usize) -> String {
    let unsent = entries - sent;
    format!(
        "metrics backend raised: {sent} of {entries} entries sent, {unsent} put back for the next flush"
    )
}

/// The exception that logging left set, if any: `log` can't return it, and a function that returns
/// with one set is an error to Python.
fn raised(py: Python<'_>) -> PyResult<()> {
    PyErr::take(py).map_or(Ok(()), Err)
}
