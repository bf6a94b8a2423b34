//! A class's `__new__` which takes the arguments of any subclass's constructor and looks at none.
//!
//! PyO3 would make a dict of them first, and end the process where there is no memory for one.

use std::ptr;
use std::sync::OnceLock;

use pyo3::PyTypeInfo;
use pyo3::ffi;
use pyo3::prelude::*;

/// A class with such a `__new__`.
pub trait TakesAnyArguments: PyTypeInfo {
    /// PyO3's, which takes no arguments.
    fn pyo3_new() -> &'static OnceLock<ffi::newfunc>;
}

/// Puts a constructor that takes any arguments in front of the class's own.
pub fn init_at_import<C: TakesAnyArguments>(py: Python<'_>) {
    // SAFETY: the class is a heap type of PyO3's that nobody else uses yet, as this module is being
    // imported. Its subclasses will inherit the slot.
    unsafe {
        let class = C::type_object_raw(py);
        if let Some(pyo3_new) = (*class).tp_new
            && C::pyo3_new().set(pyo3_new).is_ok()
        {
            (*class).tp_new = Some(new::<C>);
        }
    }
}

unsafe extern "C" fn new<C: TakesAnyArguments>(
    class: *mut ffi::PyTypeObject,
    _arguments: *mut ffi::PyObject,
    _keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let Some(pyo3_new) = C::pyo3_new().get() else {
        return ptr::null_mut(); // unreachable: it was set before this function became the slot
    };
    // SAFETY: the interpreter calls this, so it is attached. The empty tuple exists for as long as
    // the interpreter, and a reference to it is released again.
    unsafe {
        let nothing = ffi::PyTuple_New(0);
        let object = pyo3_new(class, nothing, ptr::null_mut());
        ffi::Py_XDECREF(nothing);
        object
    }
}
