//! Arguments of Python calls, with errors that name the parameter and what was passed for it.

use arroyo_metrics_buffer_core::numbers::Number;
use arroyo_metrics_buffer_core::sums::NotAdded;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyString};

use crate::interned::{self, InternedString};
use crate::objects;

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

/// A number that stays an integer if it is one: an `int`, a `float`, or anything with `__index__` or
/// `__float__`.
#[inline]
pub fn number(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<Number> {
    let is_integer = !value.is_instance_of::<PyFloat>()
        && (value.is_instance_of::<PyInt>()
            || value.get_type().hasattr(interned::INDEX.get(value.py())?)?);
    if is_integer {
        integer(parameter, value).map(|integer| Number::Int(integer.into()))
    } else {
        float(parameter, value).map(Number::Float)
    }
}

/// Seconds. 0 or less means "always", as it does for arroyo.
pub fn interval(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let seconds = float(parameter, value)?;
    not_nan(value.py(), parameter, seconds)
}

/// A number of seconds that is not NaN: with NaN no flush would ever be due.
fn not_nan(py: Python<'_>, parameter: &str, seconds: f64) -> PyResult<f64> {
    if seconds.is_nan() { Err(no_seconds(py, parameter, "not NaN")) } else { Ok(seconds) }
}

/// A time in seconds, which is finite: after an infinite one no flush would ever be due.
pub fn time(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let (py, seconds) = (value.py(), not_nan(value.py(), parameter, float(parameter, value)?)?);
    if seconds.is_infinite() {
        return Err(no_seconds(py, parameter, "not infinity"));
    }
    Ok(seconds)
}

#[cold]
fn no_seconds(py: Python<'_>, parameter: &str, but: &str) -> PyErr {
    let message = format_args!("{parameter} must be a number of seconds, {but}");
    objects::error::<PyValueError>(py, message)
}

/// Anything that can be called.
pub fn callable(parameter: &str, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    if value.is_callable() {
        Ok(value.clone().unbind())
    } else {
        Err(wrong_type(parameter, "callable", value))
    }
}

/// Why an increment was not made, as an error. `kind` and `name` are the total's.
#[cold]
pub fn not_added(why: &NotAdded, kind: &str, name: &Bound<'_, PyString>) -> PyErr {
    match why {
        NotAdded::OutOfRange => {
            // Not `str()` of it, which a subclass's `__str__` might make fail.
            let text = name.to_str().unwrap_or("(not UTF-8)");
            let message = format_args!("{kind} {text} would leave 64 bits, nothing was added");
            objects::error::<PyOverflowError>(name.py(), message)
        }
        NotAdded::OutOfMemory => objects::no_memory(name.py()),
    }
}

#[cold]
fn not_an_integer(parameter: &str, value: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    if value.is_instance_of::<PyInt>() {
        let message = format_args!("{parameter} does not fit in 64 bits, nothing was added");
        objects::error::<PyOverflowError>(value.py(), message)
    } else if has_none_of(&[&interned::INDEX], value, &error) {
        wrong_type(parameter, "an integer", value)
    } else {
        error // the object's method raised it
    }
}

#[cold]
fn not_a_number(parameter: &str, value: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    if has_none_of(&[&interned::FLOAT, &interned::INDEX], value, &error) {
        wrong_type(parameter, "a number", value)
    } else {
        error // the object's method raised it
    }
}

#[cold]
fn wrong_type(parameter: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    match value.get_type().name() {
        Ok(actual) => {
            let actual = actual.to_str().unwrap_or("an object of another class");
            let message = format_args!("{parameter} must be {expected}, not {actual}");
            objects::error::<PyTypeError>(value.py(), message)
        }
        Err(error) => error,
    }
}

/// Whether a conversion failed because the object has none of the methods for it. The object's
/// class is not enough to tell: a method that was called may have replaced the class. An error that
/// such a method raised is no TypeError, or it has a traceback.
fn has_none_of(methods: &[&InternedString], value: &Bound<'_, PyAny>, error: &PyErr) -> bool {
    let (py, class) = (value.py(), value.get_type());
    let has = |method: &&InternedString| method.get(py).and_then(|method| class.hasattr(method));
    error.is_instance_of::<PyTypeError>(py)
        && error.traceback(py).is_none()
        && !methods.iter().any(|method| has(method).unwrap_or(false))
}
