//! Calls with keyword arguments.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

/// The names of a call's keyword arguments, made once for all calls.
///
/// PyO3 takes keyword arguments from a dict, and makes these names from it anew at every call, which
/// costs more than a backend's method does.
pub struct Keywords<const N: usize> {
    names: [&'static str; N],
    tuple: PyOnceLock<Py<PyTuple>>,
}

impl<const N: usize> Keywords<N> {
    pub const fn new(names: [&'static str; N]) -> Self {
        Self { names, tuple: PyOnceLock::new() }
    }

    /// Calls `callable` with these keyword arguments, and none that are positional.
    pub fn call(
        &self,
        callable: &Bound<'_, PyAny>,
        values: [&Bound<'_, PyAny>; N],
    ) -> PyResult<()> {
        let py = callable.py();
        let names = self.tuple.get_or_try_init(py, || {
            let names = self.names.map(|name| PyString::intern(py, name));
            PyTuple::new(py, names).map(Bound::unbind)
        })?;
        let values = values.map(Bound::as_ptr);
        // SAFETY: the interpreter is attached, as `callable` shows; `values` are N borrowed references that
        // outlive the call, none of them positional, and `names` is a tuple of N strings. The result
        // is a new reference, or null with an exception set.
        let result = unsafe {
            let result =
                ffi::PyObject_Vectorcall(callable.as_ptr(), values.as_ptr(), 0, names.as_ptr());
            Bound::from_owned_ptr_or_err(py, result)
        };
        result.map(drop)
    }
}
