//! Interned Python strings for attributes, methods and keyword arguments, made at import.
//!
//! PyO3's `intern!` makes a string at its first use. Meanwhile it holds a `Once` and lets other
//! threads run: if one of them forks, the child waits for that `Once` for ever.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

macro_rules! interned_strings {
    ($($name:ident: $text:literal;)*) => {
        $(pub static $name: InternedString = InternedString { text: $text, string: OnceLock::new() };)*
        static ALL: &[&InternedString] = &[$(&$name),*];
    };
}

interned_strings! {
    METRICS: "metrics";
    FLUSH: "flush";
    TABLES: "_arroyo_metrics_buffer_tables";
    ABSORB: "absorb";
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

/// Makes all the strings.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    for interned in ALL {
        interned.string.get_or_init(|| PyString::intern(py, interned.text).unbind());
    }
    name_value_tags(py).map(drop)
}

/// An interned Python string.
pub struct InternedString {
    text: &'static str,
    string: OnceLock<Py<PyString>>,
}

impl InternedString {
    /// The string that was made at import.
    #[inline]
    pub fn get<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        match self.string.get() {
            Some(string) => string.bind(py).clone(),
            // Unreachable after `init_at_import`. A panic here would abort the process.
            None => PyString::intern(py, self.text),
        }
    }
}

/// The names of the keyword arguments that arroyo's producer gives to a backend.
pub fn name_value_tags(py: Python<'_>) -> PyResult<&Bound<'_, PyTuple>> {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let names = NAMES.get_or_try_init(py, || {
        let names = ["name", "value", "tags"].map(|name| PyString::intern(py, name));
        PyTuple::new(py, names).map(Bound::unbind)
    });
    names.map(|names| names.bind(py))
}
