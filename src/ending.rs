//! What `_patching/ending.py` needs of the extension, to send what is pending at the end of a
//! process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use arroyo_metrics_buffer_core::fork;
use pyo3::exceptions::{PyBaseException, PyException};
use pyo3::prelude::*;
use pyo3::types::PyInt;

use crate::objects;

/// Relaxed everywhere: a call that does not see it yet is one that came before.
static HAS_BEGUN: AtomicBool = AtomicBool::new(false);

/// Every `MetricsBuffer` by id, in a `weakref.WeakValueDictionary`.
static BUFFERS: OnceLock<Py<PyAny>> = OnceLock::new();

/// Makes the dictionary of buffers, the module's attribute `buffers`.
pub fn init_at_import(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let buffers =
        py.import(objects::interned(py, "weakref")?)?.getattr("WeakValueDictionary")?.call0()?;
    module.add("buffers", BUFFERS.get_or_init(|| buffers.unbind()))
}

/// Enters a buffer that was made, so that it is found at the end, if it is alive then.
pub fn remember(buffer: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = buffer.py();
    match BUFFERS.get() {
        Some(buffers) => buffers.bind(py).set_item(id(buffer)?, buffer),
        None => Ok(()), // unreachable: it is made at import
    }
}

/// What Python's `id()` is.
fn id<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyInt>> {
    objects::integer(object.py(), object.as_ptr().addr() as i128)
}

/// Whether what is pending has been sent for the last time, so that a call that adds has to flush.
pub fn has_begun() -> bool {
    HAS_BEGUN.load(Ordering::Relaxed)
}

/// Have each call that adds flush at once from now on, or have that no more.
///
/// It begins with the next flush of the call's buffer, and ends with a flush that fails. What such
/// a flush raises is reported by `sys.unraisablehook`, if it is an Exception.
#[pyfunction]
pub fn set_ending(ending: bool) {
    HAS_BEGUN.store(ending, Ordering::Relaxed);
}

/// Report by `sys.unraisablehook` what a flush raised, if the process is at its end.
///
/// There any call may flush, and none is to fail for it. What is no Exception is not reported.
///
/// Returns:
///     Whether it was reported; else it is for the caller to raise.
#[pyfunction]
pub fn report_if_ending(error: Bound<'_, PyBaseException>) -> bool {
    let py = error.py();
    let is_reported = has_begun() && error.is_instance_of::<PyException>();
    if is_reported {
        PyErr::from_value(error.into_any()).write_unraisable(py, None);
    }
    is_reported
}

/// The result of a flush that was due, see [`report_if_ending`].
pub fn unless_ending(py: Python<'_>, flushed: PyResult<()>) -> PyResult<()> {
    match flushed {
        Err(error) if report_if_ending(error.value(py).clone()) => Ok(()),
        flushed => flushed,
    }
}

/// Tell how many forks lie between this process and the one that imported the package.
#[pyfunction]
pub fn fork_generation(py: Python<'_>) -> PyResult<Bound<'_, PyInt>> {
    objects::integer(py, fork::generation().into())
}
