//! Python objects, made so that a lack of memory is a MemoryError.
//!
//! PyO3's own constructors panic then, and a panic ends the process. The same holds for Rust's
//! `String` and `format!`, and for `PyErr::new`, which boxes its arguments. So this extension makes
//! every object here, and the text of every error.

use std::fmt::{self, Write};
use std::ptr;

use arroyo_metrics_buffer_core::memory::OutOfMemory;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::type_object::PyTypeInfo;
use pyo3::types::{PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// A MemoryError. Python has made it in advance.
#[cold]
pub fn no_memory(py: Python<'_>) -> PyErr {
    // SAFETY: the interpreter is attached. It sets the exception that `fetch` then takes.
    unsafe { ffi::PyErr_NoMemory() };
    PyErr::fetch(py)
}

/// What a lack of memory is to Python.
pub trait OrMemoryError<T> {
    /// # Errors
    ///
    /// MemoryError.
    fn or_memory_error(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrMemoryError<T> for Result<T, OutOfMemory> {
    #[inline]
    fn or_memory_error(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|OutOfMemory| no_memory(py))
    }
}

/// An exception of the class `E` with a message, or the one that came up while that was made.
#[cold]
pub fn error<E: PyTypeInfo>(py: Python<'_>, message: fmt::Arguments<'_>) -> PyErr {
    let exception = string(py, message).and_then(|message| py.get_type::<E>().call1((message,)));
    exception.map_or_else(|error| error, PyErr::from_value)
}

/// A `str`.
pub fn string<'py>(py: Python<'py>, text: fmt::Arguments<'_>) -> PyResult<Bound<'py, PyString>> {
    if let Some(text) = text.as_str() {
        return PyString::from_bytes(py, text.as_bytes());
    }
    let mut written = Text(String::new());
    written.write_fmt(text).map_err(|fmt::Error| no_memory(py))?;
    PyString::from_bytes(py, written.0.as_bytes())
}

/// A text whose growth can fail.
struct Text(String);

impl Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.0.try_reserve(more.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(more);
        Ok(())
    }
}

/// An interned `str`.
pub fn interned<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyString>> {
    let mut string = PyString::from_bytes(py, text.as_bytes())?.into_ptr();
    // SAFETY: the interpreter is attached, and `string` is a new reference to a `str`, which is
    // exchanged for one to the interned `str`. Without memory, it stays as it is.
    unsafe {
        ffi::PyUnicode_InternInPlace(&raw mut string);
        Ok(Bound::from_owned_ptr(py, string).cast_into_unchecked())
    }
}

/// A `float`.
pub fn float(py: Python<'_>, value: f64) -> PyResult<Bound<'_, PyFloat>> {
    // SAFETY: the interpreter is attached. The result is a new reference to a float, or null with
    // an exception set.
    unsafe {
        Ok(Bound::from_owned_ptr_or_err(py, ffi::PyFloat_FromDouble(value))?.cast_into_unchecked())
    }
}

/// An `int`.
pub fn integer(py: Python<'_>, value: i128) -> PyResult<Bound<'_, PyInt>> {
    let Ok(small) = i64::try_from(value) else {
        return wide_integer(py, value);
    };
    // SAFETY: the interpreter is attached. The result is a new reference to an int, or null with
    // an exception set.
    unsafe {
        Ok(Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromLongLong(small))?.cast_into_unchecked())
    }
}

/// From halves, as PyO3 has no fallible way to make a wide one: it takes several times as long.
#[cold]
fn wide_integer(py: Python<'_>, value: i128) -> PyResult<Bound<'_, PyInt>> {
    const HALF: i128 = 64; // bits
    let (high, low) = (integer(py, value >> HALF)?, value & i128::from(u64::MAX));
    let high = high.lshift(integer(py, HALF)?)?;
    // In two parts, each of which fits in an i64.
    let (upper, lower) = (integer(py, low >> 32)?, integer(py, low & i128::from(u32::MAX))?);
    let low = upper.lshift(integer(py, 32)?)?.bitor(lower)?;
    Ok(high.bitor(low)?.cast_into()?)
}

/// An empty `dict`.
pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: the interpreter is attached. The result is a new reference to a dict, or null with
    // an exception set.
    unsafe { Ok(Bound::from_owned_ptr_or_err(py, ffi::PyDict_New())?.cast_into_unchecked()) }
}

/// The items of a `dict`, also of one whose class has an `items()` of its own.
pub fn items<'py>(dict: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: the interpreter is attached, and `dict` is one. The result is a new reference to a
    // list, or null with an exception set.
    unsafe {
        let items = Bound::from_owned_ptr_or_err(dict.py(), ffi::PyDict_Items(dict.as_ptr()))?;
        Ok(items.cast_into_unchecked())
    }
}

/// The keys and values of a `dict` at this moment. No code of theirs is run.
pub fn pairs<'py>(
    dict: &Bound<'py, PyDict>,
) -> PyResult<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    let py = dict.py();
    let mut pairs = Vec::new();
    with_critical_section(dict, || {
        pairs.try_reserve_exact(dict.len()).map_err(|_| no_memory(py))?;
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: the interpreter is attached, and nothing changes the dict meanwhile: no Python
        // code runs, and without the GIL the critical section keeps other threads from it. Key and
        // value are borrowed references, which the dict keeps alive.
        unsafe {
            while ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut value)
                != 0
            {
                pairs
                    .push((Bound::from_borrowed_ptr(py, key), Bound::from_borrowed_ptr(py, value)));
            }
        }
        Ok(pairs)
    })
}

/// An empty `list`.
pub fn list(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    // SAFETY: the interpreter is attached. The result is a new reference to a list, or null with
    // an exception set.
    unsafe { Ok(Bound::from_owned_ptr_or_err(py, ffi::PyList_New(0))?.cast_into_unchecked()) }
}

/// A `list` of floats.
pub fn floats<'py>(py: Python<'py>, values: &[f64]) -> PyResult<Bound<'py, PyList>> {
    let list = list(py)?;
    for value in values {
        list.append(float(py, *value)?)?;
    }
    Ok(list)
}

/// A `tuple`.
pub fn tuple<'py, const N: usize>(
    py: Python<'py>,
    items: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyTuple>> {
    #[allow(clippy::cast_possible_wrap)] // there are few
    let length = N as ffi::Py_ssize_t;
    // SAFETY: the interpreter is attached. The result is a new reference to a tuple, or null with
    // an exception set. Nobody else has the tuple yet, whose `N` places are filled with new
    // references.
    unsafe {
        let tuple = Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(length))?;
        for (place, item) in (0..).zip(items) {
            ffi::PyTuple_SET_ITEM(tuple.as_ptr(), place, item.clone().into_ptr());
        }
        Ok(tuple.cast_into_unchecked())
    }
}
