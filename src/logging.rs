//! Records for the Python logger `arroyo_metrics_buffer`.
//!
//! Logging runs Python code: handlers, filters, perhaps other threads. So nothing is logged with a
//! lock held, or while an entry is neither pending nor sent.

use std::fmt;

use pyo3::PyErr;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use crate::{interned, interpreter, objects};

/// What Python's `logging` calls the levels of records.
#[derive(Clone, Copy)]
pub enum Level {
    Debug = 10,
    Warning = 30,
    Error = 40,
}

static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Gets the logger. A flush while the interpreter shuts down could not import `logging`.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    logger(py).map(drop)
}

/// Whether the logger is enabled for DEBUG, the level of the record of each flush.
///
/// `isEnabledFor()` would cost several times as much on CPython 3.13.
///
/// # Errors
///
/// What a subclass of Python's logger raised.
pub fn is_debug_enabled(py: Python<'_>) -> PyResult<bool> {
    let level = logger(py)?.call_method0(interned::GET_EFFECTIVE_LEVEL.get(py)?)?;
    Ok(level.extract::<i64>()? <= Level::Debug as i64)
}

/// Has the logger log `message`, with the traceback of `error` if there is one. The record has the
/// file, line and function of the Python code that called the buffer: the logger sees no other.
///
/// # Errors
///
/// What a logging filter or handler raised, or a MemoryError.
pub fn log(
    py: Python<'_>,
    level: Level,
    message: fmt::Arguments<'_>,
    error: Option<&PyErr>,
) -> PyResult<()> {
    let level = objects::integer(py, level as i128)?;
    let message = objects::string(py, message)?;
    let arguments = objects::tuple(py, [level.as_any(), message.as_any()])?;
    let keywords = objects::dict(py)?;
    if let Some(error) = error {
        // Not `value()`: up to CPython 3.11 that has no traceback.
        let exception = error.clone_ref(py).into_value(py);
        keywords.set_item(interned::EXC_INFO.get(py)?, exception)?;
    }
    keywords.set_item(interned::STACKLEVEL.get(py)?, objects::integer(py, stack_level(py)?)?)?;
    logger(py)?.getattr(interned::LOG.get(py)?)?.call(&arguments, Some(&keywords))?;
    Ok(())
}

/// The number of Python frames up to the one that called this package, whose own are passed over.
fn stack_level(py: Python<'_>) -> PyResult<i128> {
    let mut level = 1;
    let get_frame = interpreter::loaded(py, &interned::MODULE_SYS, &interned::GET_FRAME)?;
    let mut frame = match get_frame {
        Some(get_frame) => get_frame.call0()?,
        None => return Ok(level),
    };
    while is_ours(&frame)? {
        frame = frame.getattr(interned::F_BACK.get(py)?)?;
        level += 1;
    }
    Ok(level)
}

fn is_ours(frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = frame.py();
    if frame.is_none() {
        return Ok(false);
    }
    let globals = frame.getattr(interned::F_GLOBALS.get(py)?)?;
    let module = globals.cast::<PyDict>()?.get_item(interned::MODULE_NAME.get(py)?)?;
    let Some(Ok(module)) = module.as_ref().map(|module| module.cast::<PyString>()) else {
        return Ok(false);
    };
    Ok(module.to_str().is_ok_and(|name| name.starts_with("arroyo_metrics_buffer._patching.")))
}

fn logger(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    let logger = LOGGER.get_or_try_init(py, || {
        // Not by `logging.getLogger`, in whose place a test may have put something else.
        let logging = py.import(objects::interned(py, "logging")?)?;
        let manager = logging
            .getattr(objects::interned(py, "Logger")?)?
            .getattr(objects::interned(py, "manager")?)?;
        let name = objects::interned(py, "arroyo_metrics_buffer")?;
        manager.call_method1(objects::interned(py, "getLogger")?, (name,)).map(Bound::unbind)
    });
    logger.map(|logger| logger.bind(py))
}
