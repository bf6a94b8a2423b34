//! What `install()` chooses for every buffer of the process.

use std::sync::LazyLock;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::shared::Shared;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arguments;

/// Read when a buffer is made (the clock) and when a backend raises; never on the hot path.
pub struct Settings {
    clock: Option<Py<PyAny>>,
    log_backend_errors: bool,
}

static SETTINGS: LazyLock<Shared<Settings>> = LazyLock::new(|| {
    Shared::new(Settings { clock: None, log_backend_errors: false }).expect("memory")
});

impl AtFork for Settings {}

/// Makes the defaults. If they were made later, a child that is forked meanwhile would wait for ever.
pub fn init_at_import() {
    LazyLock::force(&SETTINGS);
}

/// The clock of buffers that are made without one; `None` is the native clock.
pub fn clock(py: Python<'_>) -> Option<Py<PyAny>> {
    let settings = SETTINGS.lock();
    settings.clock.as_ref().map(|clock| clock.clone_ref(py))
}

/// Whether an error of a backend is logged instead of raised.
pub fn logs_backend_errors() -> bool {
    SETTINGS.lock().log_backend_errors
}

/// Tell what becomes of an error of a backend, as `configure()` takes it.
///
/// Returns:
///     "raise" or "log".
#[pyfunction]
pub fn on_backend_error() -> &'static str {
    if logs_backend_errors() { "log" } else { "raise" }
}

/// Choose the clock and the fate of backend errors for all buffers of the process.
///
/// Safe to call from any thread.
///
/// Args:
///     clock: What buffers made from now on without a clock of their own use: a callable that
///         returns seconds, or None for the native monotonic clock.
///     on_backend_error: "raise" or "log", for all buffers from now on.
///
/// Raises:
///     TypeError: `clock` is not callable.
///     ValueError: `on_backend_error` is neither "raise" nor "log".
#[pyfunction]
#[pyo3(signature = (*, clock, on_backend_error))]
pub fn configure(clock: Option<Bound<'_, PyAny>>, on_backend_error: &str) -> PyResult<()> {
    let log_backend_errors = match on_backend_error {
        "raise" => false,
        "log" => true,
        other => {
            let message = format!("on_backend_error must be 'raise' or 'log', not '{other}'");
            return Err(PyValueError::new_err(message));
        }
    };
    let settings = Settings {
        clock: clock.map(|clock| arguments::callable("clock", &clock)).transpose()?,
        log_backend_errors,
    };
    // The old clock may be dropped here, so not under the lock.
    let _old = std::mem::replace(&mut *SETTINGS.lock(), settings);
    Ok(())
}
