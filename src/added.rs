//! Whether an error that a backend raised came after the entry was added to a buffer behind it.
//!
//! A buffer of this package may be the backend of another one: in sentry-streams, the
//! `BufferedMetricsBackend` gets the totals of arroyo's `MetricsBuffer`. A call adds first, and may
//! then flush and raise what its own backend raised. The entry is pending there by then, so the
//! buffer in front has to count it as accepted, or it would be counted twice.

use std::cell::Cell;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;

thread_local! {
    /// The exception that a call of this thread has raised last, after it had added. It is only
    /// compared, as it may be gone.
    static RAISED: Cell<*mut ffi::PyObject> = const { Cell::new(ptr::null_mut()) };
}

/// The error, which a call that has added something is about to raise.
pub fn raises(py: Python<'_>, error: PyErr) -> PyErr {
    RAISED.set(error.value(py).as_ptr());
    error
}

/// Calls a backend with one entry, and returns the result and whether the entry is accepted.
pub fn watch(py: Python<'_>, send: impl FnOnce() -> PyResult<()>) -> (PyResult<()>, bool) {
    RAISED.set(ptr::null_mut());
    let result = send();
    let is_accepted = match &result {
        Ok(()) => true,
        Err(error) => RAISED.get() == error.value(py).as_ptr(),
    };
    (result, is_accepted)
}
