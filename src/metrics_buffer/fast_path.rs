//! The usual call of `incr_timing` and `incr_counter`, done before PyO3 is asked.
//!
//! A method that PyO3 makes takes its arguments by position or by name and keeps count of
//! attachments to the interpreter, which is a fifth of the cost of a call. The usual call needs
//! neither: it has two positional arguments, a name that is pending already and a plain number, and
//! the clock is the native one. Such a call is done here. Any other goes on, as it came and before
//! anything has changed, to PyO3's method, which knows all cases and raises all errors.

use std::ptr;
use std::sync::OnceLock;

use arroyo_metrics_buffer_core::sums::{Sums, Total};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyString, PyType};

use super::{MetricsBuffer, Name, Totals};
use crate::buffer::Buffer;

/// A method as the interpreter calls it: the object, its arguments, how many of them are
/// positional, and the names of the others, if any.
type Function = ffi::PyCFunctionFastWithKeywords;

/// Puts the fast paths in front of the class's methods. Without them they do the same, slower.
pub fn init_at_import(class: &Bound<'_, PyType>) -> PyResult<()> {
    put_in_front::<IncrTiming>(class)?;
    put_in_front::<IncrCounter>(class)
}

/// A method of `MetricsBuffer` that adds a number to the total of a name.
trait Method {
    const NAME: &str;
    type Value: Total;

    /// PyO3's, which the fast path stands in front of.
    fn pyo3_method() -> &'static OnceLock<Function>;

    /// A plain number.
    fn value(number: &Bound<'_, PyAny>) -> Option<Self::Value>;

    fn sums(totals: &mut Totals) -> &mut Sums<Name, Self::Value>;
}

struct IncrTiming;

impl Method for IncrTiming {
    const NAME: &str = "incr_timing";
    type Value = f64;

    fn pyo3_method() -> &'static OnceLock<Function> {
        static METHOD: OnceLock<Function> = OnceLock::new();
        &METHOD
    }

    #[inline]
    fn value(number: &Bound<'_, PyAny>) -> Option<f64> {
        Some(number.cast_exact::<PyFloat>().ok()?.value())
    }

    #[inline]
    fn sums(totals: &mut Totals) -> &mut Sums<Name, f64> {
        &mut totals.timers
    }
}

struct IncrCounter;

impl Method for IncrCounter {
    const NAME: &str = "incr_counter";
    type Value = i128;

    fn pyo3_method() -> &'static OnceLock<Function> {
        static METHOD: OnceLock<Function> = OnceLock::new();
        &METHOD
    }

    #[inline]
    fn value(number: &Bound<'_, PyAny>) -> Option<i128> {
        let delta: i64 = or_clear(number.py(), number.cast_exact::<PyInt>().ok()?.extract())?;
        Some(delta.into())
    }

    #[inline]
    fn sums(totals: &mut Totals) -> &mut Sums<Name, i128> {
        &mut totals.counters
    }
}

/// Does the call if it is a usual one, and tells whether a flush is due. `None` if it is not a
/// usual one: then nothing has changed.
#[inline]
fn usual_call<M: Method>(
    buffer: &Bound<'_, MetricsBuffer>,
    metric: &Bound<'_, PyAny>,
    number: &Bound<'_, PyAny>,
) -> Option<bool> {
    let name = metric.cast::<PyString>().ok()?;
    let buffer = buffer.get().0.get()?;
    let now = buffer.native_now()?;
    let value = M::value(number)?;
    let known = M::sums(&mut buffer.lock()).add_by_address(name.as_ptr().addr(), value).ok()?;
    let added = known || add_by_text::<M>(buffer, name, value)?;
    added.then(|| buffer.is_due_at(now))
}

/// Adds to a name that was not found by its address: it is not among the first names, or it is
/// another object with the same text. False if the name is not pending.
#[inline(never)]
fn add_by_text<M: Method>(
    buffer: &Buffer<Totals>,
    name: &Bound<'_, PyString>,
    value: M::Value,
) -> Option<bool> {
    let text = or_clear(name.py(), name.to_str())?.as_bytes();
    M::sums(&mut buffer.lock()).add_by_text(text, name.as_ptr().addr(), value).ok()
}

/// The value, or `None` after an error, which PyO3's method will raise again.
#[inline]
fn or_clear<T>(py: Python<'_>, result: PyResult<T>) -> Option<T> {
    result.map_err(|error| clear(py, error)).ok()
}

/// Has the interpreter drop an error. As no attachment is counted here, PyO3 would put it into a list
/// to drop it later, and end the process where there is no memory for the list.
#[cold]
fn clear(py: Python<'_>, error: PyErr) {
    error.restore(py);
    // SAFETY: the interpreter is attached.
    unsafe { ffi::PyErr_Clear() };
}

unsafe extern "C" fn call<M: Method>(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargs: ffi::Py_ssize_t,
    kwnames: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    if nargs == 2 && kwnames.is_null() {
        // SAFETY: the interpreter calls this, so it is attached. It has checked that `slf` is of
        // the method's class, and keeps `slf` and the `nargs` objects at `args` alive meanwhile.
        let (py, buffer, metric, number) = unsafe {
            let py = Python::assume_attached();
            let buffer = Borrowed::from_ptr(py, slf).cast_unchecked::<MetricsBuffer>();
            (py, buffer, Borrowed::from_ptr(py, *args), Borrowed::from_ptr(py, *args.add(1)))
        };
        match usual_call::<M>(&buffer, &metric, &number) {
            Some(false) => return py.None().into_ptr(),
            Some(true) => return flush(&buffer),
            None => {}
        }
    }
    match M::pyo3_method().get() {
        // SAFETY: it gets what this function got.
        Some(method) => unsafe { method(slf, args, nargs, kwnames) },
        None => ptr::null_mut(), // unreachable: it was set before this function became the method
    }
}

/// None, or null and an exception set.
#[cold]
fn flush(buffer: &Bound<'_, MetricsBuffer>) -> *mut ffi::PyObject {
    let py = buffer.py();
    match buffer.get().0.flush_when_due(buffer) {
        Ok(()) => py.None().into_ptr(),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
    }
}

fn put_in_front<M: Method>(class: &Bound<'_, PyType>) -> PyResult<()> {
    let method = class.getattr(M::NAME)?;
    // SAFETY: the attribute of a class that stands for a method of C's is a `PyMethodDescrObject`,
    // as is checked first. Its definition lives as long as the class, and its flags tell which kind
    // of function it has. The new definition lives for ever, and is the old one with another
    // function of that kind.
    unsafe {
        if ffi::Py_TYPE(method.as_ptr()) != &raw mut ffi::PyMethodDescr_Type {
            return Ok(());
        }
        let mut definition = *(*method.as_ptr().cast::<ffi::PyMethodDescrObject>()).d_method;
        if definition.ml_flags != ffi::METH_FASTCALL | ffi::METH_KEYWORDS {
            return Ok(());
        }
        let pyo3_method = definition.ml_meth.PyCFunctionFastWithKeywords;
        if M::pyo3_method().set(pyo3_method).is_ok() {
            definition.ml_meth.PyCFunctionFastWithKeywords = call::<M>;
            let definition = Box::leak(Box::new(definition));
            let method = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
            let method = Bound::from_owned_ptr_or_err(class.py(), method)?;
            class.setattr(M::NAME, method)?;
        }
    }
    Ok(())
}
