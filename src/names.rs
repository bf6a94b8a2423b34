//! Strings for calls of Python, made at import.
//!
//! PyO3's `intern!` makes one when it is first asked for. It lets other threads run in the middle of
//! that, with a `Once` taken: a child that one of them forks would wait for that `Once` for ever.

use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

macro_rules! names {
    ($($name:ident: $text:literal;)*) => {
        $(pub static $name: Interned = Interned { text: $text, string: OnceLock::new() };)*
        static ALL: &[&Interned] = &[$(&$name),*];
    };
}

names! {
    METRICS: "metrics";
    FLUSH: "flush";
    TIMING: "timing";
    INCREMENT: "increment";
    PRODUCE_STATUS: "arroyo.producer.produce_status";
    CALLBACK_LATENCY: "arroyo.producer.callback_latency";
    STATUS: "status";
    SUCCESS: "success";
    ERROR: "error";
    PRODUCER_NAME: "producer_name";
    NO_PRODUCER_NAME: "N/A";
    GET_EFFECTIVE_LEVEL: "getEffectiveLevel";
}

/// Makes all of them.
pub fn install(py: Python<'_>) -> PyResult<()> {
    for name in ALL {
        name.string.get_or_init(|| PyString::intern(py, name.text).unbind());
    }
    name_value_tags(py).map(drop)
}

/// An interned string.
pub struct Interned {
    text: &'static str,
    string: OnceLock<Py<PyString>>,
}

impl Interned {
    /// The string, without waiting for anything.
    #[inline]
    pub fn get<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        match self.string.get() {
            Some(string) => string.bind(py).clone(),
            None => PyString::intern(py, self.text),
        }
    }
}

/// Calls a backend's method as arroyo's producer does: with the keyword arguments `name`, `value` and
/// `tags`.
///
/// PyO3 takes keyword arguments from a dict, and makes their names from it anew at every call, which
/// costs more than a backend's method does. Here they are made once.
pub fn call_with_name_value_tags(
    method: &Bound<'_, PyAny>,
    values: [&Bound<'_, PyAny>; 3],
) -> PyResult<()> {
    let py = method.py();
    let names = name_value_tags(py)?;
    let values = values.map(Bound::as_ptr);
    // SAFETY: the interpreter is attached, as `method` shows; `values` are three borrowed references
    // that outlive the call, none of them positional, and `names` is a tuple of three strings. The
    // result is a new reference, or null with an exception set.
    let result = unsafe {
        let result = ffi::PyObject_Vectorcall(method.as_ptr(), values.as_ptr(), 0, names.as_ptr());
        Bound::from_owned_ptr_or_err(py, result)
    };
    result.map(drop)
}

fn name_value_tags(py: Python<'_>) -> PyResult<&Bound<'_, PyTuple>> {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let names = NAMES.get_or_try_init(py, || {
        let names = ["name", "value", "tags"].map(|name| PyString::intern(py, name));
        PyTuple::new(py, names).map(Bound::unbind)
    });
    names.map(|names| names.bind(py))
}
