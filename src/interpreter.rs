//! Facts about the interpreter and its modules, without an import: every import calls
//! `builtins.__import__`, and a program may have replaced that.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::interned::{self, InternedString};

/// An attribute of a module that is loaded, also if only in part. `None` if there is no such module
/// or attribute.
///
/// # Errors
///
/// What somebody's stand-in for the module raised.
pub fn loaded<'py>(
    py: Python<'py>,
    module: &InternedString,
    attribute: &InternedString,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: the interpreter is attached, and has this dict for as long as it lives.
    let modules = unsafe { Bound::from_borrowed_ptr(py, ffi::PyImport_GetModuleDict()) };
    match modules.cast_into::<PyDict>()?.get_item(module.get(py)?)? {
        Some(module) => module.getattr_opt(attribute.get(py)?),
        None => Ok(None),
    }
}

/// Whether the interpreter runs one thread at a time.
///
/// # Errors
///
/// What somebody's stand-in for `sys` raised.
pub fn is_gil_enabled(py: Python<'_>) -> PyResult<bool> {
    // New in Python 3.13.
    match loaded(py, &interned::MODULE_SYS, &interned::IS_GIL_ENABLED)? {
        Some(is_gil_enabled) => is_gil_enabled.call0()?.is_truthy(),
        None => Ok(true),
    }
}

/// Whether the interpreter is past its exit handlers, so that other threads are frozen, maybe with a
/// lock of the backend's, and modules are torn down.
pub fn is_finalizing(py: Python<'_>) -> bool {
    let is_finalizing = loaded(py, &interned::MODULE_SYS, &interned::IS_FINALIZING);
    match is_finalizing.and_then(|function| function.map(|function| function.call0()).transpose()) {
        Ok(Some(answer)) => answer.is_truthy().unwrap_or(true),
        Ok(None) | Err(_) => true, // sys itself is torn down
    }
}
