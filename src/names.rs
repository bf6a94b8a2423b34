//! Strings for calls of Python, made at import.
//!
//! PyO3's `intern!` makes one when it is first asked for. It lets other threads run in the middle of
//! that, with a `Once` taken: a child that one of them forks would wait for that `Once` for ever.

use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
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
    NAME_VALUE_TAGS.install(py)
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

/// As arroyo's producer names the arguments of its calls of a backend.
pub static NAME_VALUE_TAGS: Keywords<3> = Keywords::new(["name", "value", "tags"]);

/// The names of a call's keyword arguments, made once for all calls.
///
/// PyO3 takes keyword arguments from a dict, and makes these names from it anew at every call, which
/// costs more than a backend's method does.
pub struct Keywords<const N: usize> {
    names: [&'static str; N],
    tuple: OnceLock<Py<PyTuple>>,
}
impl<const N: usize> Keywords<N> {
    const fn new(names: [&'static str; N]) -> Self {
        Self { names, tuple: OnceLock::new() }
    }

    fn install(&self, py: Python<'_>) -> PyResult<()> {
        let tuple = self.tuple(py)?.unbind();
        self.tuple.get_or_init(|| tuple);
        Ok(())
    }

    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self.tuple.get() {
            Some(tuple) => Ok(tuple.bind(py).clone()),
            None => PyTuple::new(py, self.names.map(|name| PyString::intern(py, name))),
        }
    }

    /// Calls `callable` with these keyword arguments, and none that are positional.
    pub fn call(
        &self,
        callable: &Bound<'_, PyAny>,
        values: [&Bound<'_, PyAny>; N],
    ) -> PyResult<()> {
        let py = callable.py();
        let names = self.tuple(py)?;
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
