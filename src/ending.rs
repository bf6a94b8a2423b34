//! What `_patching/ending.py` needs of the extension, to send what is pending at the end of a
//! process.

use std::sync::atomic::{AtomicBool, Ordering};

use arroyo_metrics_buffer_core::fork::{self, AtFork};
use arroyo_metrics_buffer_core::lock::{Mutex, mutex};
use arroyo_metrics_buffer_core::shared::share;
use pyo3::exceptions::{PyBaseException, PyException};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PyWeakrefReference};

use crate::objects::{self, OrMemoryError};

/// Relaxed everywhere: a call that does not see it yet is one that came before.
static HAS_BEGUN: AtomicBool = AtomicBool::new(false);

/// Every buffer of a class that has `Object`, in the order in which they were made. No dict of
/// Python's: without the GIL a dict has a lock that no fork takes, and a child would wait for it.
struct Buffers {
    references: Vec<Py<PyWeakrefReference>>,
    /// The place of the reference that is looked at next, whether its buffer is gone.
    next: usize,
}

impl AtFork for Buffers {}

static BUFFERS: Mutex<Buffers> = mutex(Buffers { references: Vec::new(), next: 0 });

/// Has every fork take the lock.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    // Once, though an import that failed may be tried again.
    DONE.get_or_try_init(py, || share(&BUFFERS).or_memory_error(py)).copied()
}

/// Enters a buffer that was made, so that it is found at the end, if it is alive then.
pub fn remember(buffer: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = buffer.py();
    // Two for each that comes, so that there are never many more than are alive.
    forget_one_if_gone(py);
    forget_one_if_gone(py);
    let reference = PyWeakrefReference::new(buffer)?.unbind();
    let mut buffers = BUFFERS.lock();
    let reserved = buffers.references.try_reserve(1);
    if reserved.is_ok() {
        buffers.references.push(reference);
        return Ok(());
    }
    drop(buffers);
    Err(objects::no_memory(py))
}

/// Looks at the next reference, and drops it if its buffer is gone.
fn forget_one_if_gone(py: Python<'_>) {
    let mut buffers = BUFFERS.lock();
    let place = if buffers.next < buffers.references.len() { buffers.next } else { 0 };
    buffers.next = place + 1;
    let Some(reference) = buffers.references.get(place).map(|each| each.clone_ref(py)) else {
        return;
    };
    drop(buffers);
    if reference.bind(py).upgrade().is_some() {
        return;
    }
    let mut buffers = BUFFERS.lock();
    if buffers.references.get(place).is_some_and(|each| each.is(&reference)) {
        let gone = buffers.references.remove(place);
        buffers.next = place;
        drop(buffers);
        drop(gone);
    }
}

/// Return every `MetricsBuffer` and `BufferedMetricsBackend` that is alive.
///
/// Returns:
///     The buffers, in the order in which they were made.
#[pyfunction]
pub fn buffers(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let mut references = Vec::new();
    let known = BUFFERS.lock();
    let reserved = references.try_reserve_exact(known.references.len());
    if reserved.is_ok() {
        references.extend(known.references.iter().map(|each| each.clone_ref(py)));
    }
    drop(known);
    reserved.map_err(|_| objects::no_memory(py))?;
    let alive = objects::list(py)?;
    for reference in references {
        if let Some(buffer) = reference.bind(py).upgrade() {
            alive.append(buffer)?;
        }
    }
    Ok(alive)
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
