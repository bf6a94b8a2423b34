//! Arguments of Python calls, with errors that name the parameter and what was passed for it.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

/// A `str` or an instance of a subclass.
#[inline]
pub fn string<'a, 'py>(
    parameter: &str,
    value: &'a Bound<'py, PyAny>,
) -> PyResult<&'a Bound<'py, PyString>> {
    value.cast().map_err(|_| wrong_type(parameter, "a str", value))
}

/// An integer of 64 bits: an `int`, or anything with `__index__`.
#[inline]
pub fn integer(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    value.extract().map_err(|error| not_an_integer(parameter, value, error))
}

/// A number: a `float`, or anything with `__float__` or `__index__`.
#[inline]
pub fn float(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    value.extract().map_err(|error| not_a_number(parameter, value, error))
}

/// Seconds, 0 or more.
pub fn interval(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let seconds = float(parameter, value)?;
    if seconds >= 0.0 {
        Ok(seconds)
    } else {
        let message = format!("{parameter} must be 0 seconds or more, not {seconds}");
        Err(PyValueError::new_err(message))
    }
}

/// Anything that can be called.
pub fn callable(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    if value.is_callable() {
        Ok(value.clone().unbind())
    } else {
        Err(wrong_type(parameter, "callable", value))
    }
}

#[cold]
fn not_an_integer(parameter: &str, value: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    if value.is_instance_of::<PyInt>() {
        PyOverflowError::new_err(format!("{parameter} does not fit in 64 bits"))
    } else if has_traceback(value, &error) || has_method(value, "__index__") {
        error // the object's own
    } else {
        wrong_type(parameter, "an integer", value)
    }
}

#[cold]
fn not_a_number(parameter: &str, value: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    if has_traceback(value, &error)
        || has_method(value, "__float__")
        || has_method(value, "__index__")
    {
        error // the object's own
    } else {
        wrong_type(parameter, "a number", value)
    }
}

#[cold]
fn wrong_type(parameter: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    match value.get_type().name() {
        Ok(actual) => PyTypeError::new_err(format!("{parameter} must be {expected}, not {actual}")),
        Err(error) => error,
    }
}

/// Whether it comes from Python code: a method that the object's class may not have any more.
fn has_traceback(value: &Bound<'_, PyAny>, error: &PyErr) -> bool {
    error.traceback(value.py()).is_some()
}

fn has_method(value: &Bound<'_, PyAny>, name: &str) -> bool {
    value.get_type().hasattr(name).unwrap_or(false)
}
