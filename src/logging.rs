//! Records for the Python logger `arroyo_metrics_buffer`.
//!
//! Logging runs Python code: handlers, filters, perhaps other threads. So nothing is logged with a
//! lock held, or while an entry is neither pending nor sent.

use std::time::Duration;

use arroyo_metrics_buffer_core::deliveries::MAX_LATENCIES;
use pyo3::PyErr;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::IntoPyDict;
use pyo3_log::{Caching, Logger};

use crate::interned;

const LOGGER: &str = "arroyo_metrics_buffer";

static PYTHON_LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Sends `log`'s records to Python. Only the first call does anything.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    // Levels aren't cached, so that a later `setLevel` is seen.
    let logger = Logger::new(py, Caching::Loggers)?;
    // Imported now: a flush while the interpreter shuts down could not.
    let python_logger = python_logger(py)?;
    // An error says that a logger is installed already: ours, each extension module has its own.
    if logger.install().is_ok() {
        python_logger.call_method1("addFilter", (wrap_pyfunction!(name_caller, py)?,))?;
    }
    Ok(())
}

/// A filter that gives a record of pyo3-log's the file, line and function of the Python code that
/// called the buffer, as Python's own records have them. pyo3-log gives the place in this file, and
/// no function.
#[pyfunction]
fn name_caller(record: &Bound<'_, PyAny>) -> PyResult<bool> {
    if record.getattr("funcName")?.is_none() {
        let py = record.py();
        let logger = python_logger(py)?;
        let caller = logger.call_method0("findCaller")?;
        let (name, level, message) =
            (record.getattr("name")?, record.getattr("levelno")?, record.getattr("msg")?);
        let (path, line, function) =
            (caller.get_item(0)?, caller.get_item(1)?, caller.get_item(2)?);
        let arguments = (name, level, path, line, message, (), py.None(), function);
        let named = logger.call_method1("makeRecord", arguments)?;
        record.getattr("__dict__")?.call_method1("update", (named.getattr("__dict__")?,))?;
    }
    Ok(true)
}

/// Whether the logger is enabled for DEBUG, the level of the record of each flush.
///
/// pyo3-log formats a record before it finds out that nobody wants it, at several times the cost of
/// all else in a small flush. So this is asked first. `isEnabledFor()` would cost as much on
/// CPython 3.13.
///
/// # Errors
///
/// What a subclass of Python's logger raised.
pub fn is_debug_enabled(py: Python<'_>) -> PyResult<bool> {
    const DEBUG: i64 = 10; // Python's logging.DEBUG
    let level = python_logger(py)?.call_method0(interned::GET_EFFECTIVE_LEVEL.get(py)?)?;
    Ok(level.extract::<i64>()? <= DEBUG)
}

/// Logs a flush that sent `entries` within `time`, if that was measured, and for which `dropped`
/// samples had no room.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn log_flush(
    py: Python<'_>,
    entries: usize,
    dropped: u64,
    time: Option<Duration>,
) -> PyResult<()> {
    if let Some(time) = time.filter(|_| entries > 0) {
        let microseconds = time.as_micros();
        log::debug!(target: LOGGER, "flushed {entries} entries in {microseconds} µs");
    }
    if dropped > 0 {
        log::warn!(target: LOGGER, "flushed {entries} entries; {}", dropped_message(dropped));
    }
    take_logging_error(py)
}

/// Logs `message` about a flush that put back what it could not send.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn log_put_back(py: Python<'_>, message: &str) -> PyResult<()> {
    log::warn!(target: LOGGER, "{message}");
    take_logging_error(py)
}

/// As [`log_put_back`], with the traceback of `error`, which is not raised.
///
/// # Errors
///
/// What a logging filter or handler raised.
pub fn log_put_back_with_traceback(py: Python<'_>, message: &str, error: PyErr) -> PyResult<()> {
    // `log` has no place for an exception; Python's own logger has.
    let logger = python_logger(py)?;
    let exc_info = [("exc_info", error)].into_py_dict(py)?;
    logger.call_method("warning", (message,), Some(&exc_info))?;
    Ok(())
}

fn python_logger(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    let logger = PYTHON_LOGGER.get_or_try_init(py, || {
        // Not by `logging.getLogger`, in whose place a test may have put something else.
        let loggers = py.import("logging")?.getattr("Logger")?.getattr("manager")?;
        loggers.call_method1("getLogger", (LOGGER,)).map(Bound::unbind)
    });
    logger.map(|logger| logger.bind(py))
}

/// The text of the record of a flush that `error` ended when `sent` entries were sent.
pub fn put_back_message(error: &str, sent: usize, unsent: usize, dropped: u64) -> String {
    let entries = sent + unsent;
    let message = format!(
        "flush ended by {error}; {sent} of {entries} entries sent, {unsent} kept for the next flush"
    );
    if dropped == 0 { message } else { format!("{message}; {}", dropped_message(dropped)) }
}

fn dropped_message(dropped: u64) -> String {
    format!(
        "{dropped} latency samples dropped, as {MAX_LATENCIES} were waiting; every delivery is counted"
    )
}

/// Returns the exception that a logging filter or handler left set, if any. `log` can't return it,
/// and Python does not let a function return a value with an exception set.
fn take_logging_error(py: Python<'_>) -> PyResult<()> {
    PyErr::take(py).map_or(Ok(()), Err)
}
