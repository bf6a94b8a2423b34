//! What `install()` chooses for every buffer of the process.

use std::mem;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::lock::{Mutex, mutex};
use arroyo_metrics_buffer_core::shared::share;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::objects::OrMemoryError;
use crate::{arguments, interned, objects};

/// Read when a buffer is made (the clock) and when a backend raises; never on the hot path.
struct Settings {
    clock: Option<Py<PyAny>>,
    on_backend_error: OnBackendError,
}

/// What becomes of an error of a backend.
pub enum OnBackendError {
    Raise,
    Log,
    /// It is logged, and this is called with it.
    Call(Py<PyAny>),
}

impl OnBackendError {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Raise => Self::Raise,
            Self::Log => Self::Log,
            Self::Call(callable) => Self::Call(callable.clone_ref(py)),
        }
    }
}

impl AtFork for Settings {}

static SETTINGS: Mutex<Settings> =
    mutex(Settings { clock: None, on_backend_error: OnBackendError::Raise });

/// Has every fork take the lock.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    // Once, though an import that failed may be tried again.
    DONE.get_or_try_init(py, || share(&SETTINGS).or_memory_error(py)).copied()
}

/// The clock of buffers that are made without one; `None` is the native clock.
pub fn clock(py: Python<'_>) -> Option<Py<PyAny>> {
    let settings = SETTINGS.lock();
    settings.clock.as_ref().map(|clock| clock.clone_ref(py))
}

/// What becomes of an error that a backend raises now.
pub fn backend_errors(py: Python<'_>) -> OnBackendError {
    SETTINGS.lock().on_backend_error.clone_ref(py)
}

/// Tell what becomes of an error of a backend, as `configure()` takes it.
///
/// Returns:
///     "raise", "log", or the callable that gets it.
#[pyfunction]
pub fn on_backend_error(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(match backend_errors(py) {
        OnBackendError::Raise => interned::RAISE.get(py)?.into_any().unbind(),
        OnBackendError::Log => interned::LOG.get(py)?.into_any().unbind(),
        OnBackendError::Call(callable) => callable,
    })
}

/// Choose the clock and the fate of backend errors for all buffers of the process.
///
/// Safe to call from any thread.
///
/// Args:
///     clock: What buffers made from now on without a clock of their own use: a callable that
///         returns seconds, or None for the native monotonic clock.
///     on_backend_error: "raise", "log", or a callable that gets the exception; for all buffers
///         from now on.
///
/// Raises:
///     TypeError: `clock` is not callable, or `on_backend_error` neither a str nor callable.
///     ValueError: `on_backend_error` is a str, and neither "raise" nor "log".
#[pyfunction]
#[pyo3(signature = (*, clock, on_backend_error))]
pub fn configure(
    clock: Option<Bound<'_, PyAny>>,
    on_backend_error: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let settings = Settings {
        clock: clock.map(|clock| arguments::callable("clock", &clock)).transpose()?,
        on_backend_error: on_backend_error_of(on_backend_error)?,
    };
    // The old clock and callable may be dropped here, so not under the lock.
    let _old = mem::replace(&mut *SETTINGS.lock(), settings);
    Ok(())
}

fn on_backend_error_of(value: &Bound<'_, PyAny>) -> PyResult<OnBackendError> {
    const WANTED: &str = "on_backend_error must be 'raise', 'log' or callable, not";
    let py = value.py();
    if let Ok(string) = value.cast::<PyString>() {
        return match string.to_str() {
            Ok("raise") => Ok(OnBackendError::Raise),
            Ok("log") => Ok(OnBackendError::Log),
            // Other texts, and those that are no UTF-8.
            _ => {
                let shown = value.repr()?;
                Err(objects::error::<PyValueError>(
                    py,
                    format_args!("{WANTED} {}", shown.to_str()?),
                ))
            }
        };
    }
    if value.is_callable() {
        return Ok(OnBackendError::Call(value.clone().unbind()));
    }
    let class = value.get_type().name()?;
    Err(objects::error::<PyTypeError>(py, format_args!("{WANTED} {}", class.to_str()?)))
}
