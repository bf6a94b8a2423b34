//! What is known of the interpreter and its modules without an import: `builtins.__import__`, which
//! every import asks, may be anyone's.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An attribute of a module that is loaded, be it in part. `None` if there is no such module or
/// attribute.
///
/// # Errors
///
/// What somebody's stand-in for the module raised.
pub fn loaded<'py>(
    py: Python<'py>,
    module: &str,
    attribute: &str,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: the interpreter is attached, and has this dict for as long as it lives.
    let modules = unsafe { Bound::from_borrowed_ptr(py, ffi::PyImport_GetModuleDict()) };
    match modules.cast_into::<PyDict>()?.get_item(module)? {
        Some(module) => module.getattr_opt(attribute),
        None => Ok(None),
    }
}

/// Whether threads take turns.
///
/// # Errors
///
/// What somebody's stand-in for `sys` raised.
pub fn is_gil_enabled(py: Python<'_>) -> PyResult<bool> {
    // New in Python 3.13.
    match loaded(py, "sys", "_is_gil_enabled")? {
        Some(is_gil_enabled) => is_gil_enabled.call0()?.is_truthy(),
        None => Ok(true),
    }
}
