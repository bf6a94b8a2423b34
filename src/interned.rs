//! Interned Python strings for attributes, methods and keyword arguments, made at import.
//!
//! PyO3's `intern!` makes a string at its first use. Meanwhile it holds a `Once` and lets other
//! threads run: if one of them forks, the child waits for that `Once` for ever.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use crate::objects;

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
    GAUGE: "gauge";
    PRODUCE_STATUS: "arroyo.producer.produce_status";
    CALLBACK_LATENCY: "arroyo.producer.callback_latency";
    STATUS: "status";
    SUCCESS: "success";
    ERROR: "error";
    PRODUCER_NAME: "producer_name";
    NO_PRODUCER_NAME: "N/A";
    GET_EFFECTIVE_LEVEL: "getEffectiveLevel";
    INDEX: "__index__";
    FLOAT: "__float__";
    NAME: "name";
    VALUE: "value";
    TAGS: "tags";
    ENCODE: "encode";
    UTF_8: "utf-8";
    SURROGATEPASS: "surrogatepass";
    MODULE_SYS: "sys";
    IS_GIL_ENABLED: "_is_gil_enabled";
    IS_FINALIZING: "is_finalizing";
    TIME: "time";
    MODULE_PROCESSOR: "arroyo.processing.processor";
    MODULE_METRICS: "arroyo.utils.metrics";
    METRICS_FREQUENCY_SEC: "METRICS_FREQUENCY_SEC";
    GET_METRICS: "get_metrics";
    METRICS_BUFFER_REPR: "<%s timers=%r counters=%r>";
    DELIVERY_BUFFER_REPR: "<DeliveryBuffer counts=%r latencies=%d dropped=%d>";
    BUFFERED_BACKEND_REPR: "<%s timers=%r counters=%r gauges=%r>";
    EXC_INFO: "exc_info";
    STACKLEVEL: "stacklevel";
    GET_FRAME: "_getframe";
    F_BACK: "f_back";
    F_GLOBALS: "f_globals";
    MODULE_NAME: "__name__";
    LOG: "log";
    RAISE: "raise";
    MODULE: "__module__";
    ERROR_WITHOUT_WORDS: "an error that can't be told in words";
    FLUSHES: "flushes";
    ENTRIES_SENT: "entries_sent";
    ENTRIES_PUT_BACK: "entries_put_back";
    SAMPLES_DROPPED: "samples_dropped";
    BACKEND_ERRORS: "backend_errors";
    OUTAGES: "outages";
    LAST_BACKEND_ERROR: "last_backend_error";
    SECONDS_SINCE_LAST_BACKEND_ERROR: "seconds_since_last_backend_error";
}

/// Makes all the strings.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    for interned in ALL {
        let string = interned.get(py)?;
        interned.string.get_or_init(|| string.unbind());
    }
    name_value_tags(py)?;
    tags(py).map(drop)
}

/// An interned Python string.
pub struct InternedString {
    text: &'static str,
    string: OnceLock<Py<PyString>>,
}

impl InternedString {
    /// The string that was made at import.
    #[inline]
    pub fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        match self.string.get() {
            Some(string) => Ok(string.bind(py).clone()),
            None => objects::interned(py, self.text), // until `init_at_import` is done
        }
    }
}

/// The name of the keyword argument that sentry-streams gives to a backend.
pub fn tags(py: Python<'_>) -> PyResult<&Bound<'_, PyTuple>> {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let names = NAMES.get_or_try_init(py, || {
        let tags = TAGS.get(py)?;
        objects::tuple(py, [&tags]).map(Bound::unbind)
    });
    names.map(|names| names.bind(py))
}

/// The names of the keyword arguments that arroyo's producer gives to a backend.
pub fn name_value_tags(py: Python<'_>) -> PyResult<&Bound<'_, PyTuple>> {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let names = NAMES.get_or_try_init(py, || {
        let (name, value, tags) = (NAME.get(py)?, VALUE.get(py)?, TAGS.get(py)?);
        objects::tuple(py, [&name, &value, &tags]).map(Bound::unbind)
    });
    names.map(|names| names.bind(py))
}
