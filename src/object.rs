//! What the two classes have in common that take the place of others': a backend, and a buffer since
//! `__init__`.

use std::mem;
use std::sync::OnceLock;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::pending::Contents;
use arroyo_metrics_buffer_core::shared::Shared;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::buffer::Buffer;
use crate::objects::OrMemoryError;
use crate::{added, ending, interned, objects};

/// The one field of such a class.
pub struct Object<C: Contents> {
    /// Whether pyo3 has written the fields. Until then the memory is all zero, so this reads as
    /// false. CPython 3.11 allocates an instance's `__dict__` before that, which may start the
    /// garbage collector, and that visits the object.
    is_constructed: bool,
    // A field and not an entry of the instance's `__dict__`: Python looks methods up faster while
    // the `__dict__` is empty.
    backend: Shared<Backend>,
    /// Set by `__init__`; not by `__new__`, whose arguments may be those of a subclass.
    buffer: OnceLock<Buffer<C>>,
}

/// `None` before `__init__`, and where it was deleted.
struct Backend(Option<Py<PyAny>>);

impl AtFork for Backend {}

impl<C: Contents> Object<C> {
    /// What `__new__` makes.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let backend = Shared::new(Backend(None)).or_memory_error(py)?;
        Ok(Self { is_constructed: true, backend, buffer: OnceLock::new() })
    }

    /// What `__init__` of `object` adds to it.
    pub fn init(
        &self,
        object: &Bound<'_, PyAny>,
        backend: Py<PyAny>,
        buffer: Buffer<C>,
    ) -> PyResult<()> {
        self.buffer.set(buffer).map_err(|_| {
            let message = format_args!("__init__() was called before, make a new buffer");
            objects::error::<PyRuntimeError>(object.py(), message)
        })?;
        self.set_backend(Some(backend));
        ending::remember(object)
    }

    /// The buffer, unless `__init__` was not called.
    #[inline]
    pub fn get(&self) -> Option<&Buffer<C>> {
        self.buffer.get()
    }

    /// The same, or an error.
    #[inline]
    pub fn buffer(&self, py: Python<'_>) -> PyResult<&Buffer<C>> {
        self.get().ok_or_else(|| {
            let message = format_args!("__init__() was not called, as a subclass has to");
            objects::error::<PyRuntimeError>(py, message)
        })
    }

    /// The backend that flushes send to.
    pub fn backend<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.backend.lock().0.as_ref().map(|backend| backend.bind(py).clone())
    }

    pub fn set_backend(&self, backend: Option<Py<PyAny>>) {
        let old = mem::replace(&mut *self.backend.lock(), Backend(backend));
        drop(old); // can run Python code, so after the guard is gone
    }

    /// Ends a call that has added something: calls `flush()` of `object` if that is due. Through
    /// Python, so that an override or a mock of it is honoured.
    pub fn flush_if_due(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        match self.buffer(py)?.is_due(py) {
            Ok(true) => self.flush_when_due(object),
            Ok(false) => Ok(()),
            Err(error) => Err(added::raises(py, error)),
        }
    }

    /// The same where it is known to be due.
    #[cold]
    pub fn flush_when_due(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        let flush = || object.call_method0(interned::FLUSH.get(py)?).map(drop);
        let flushed = self.buffer(py)?.flush_when_due(py, flush);
        flushed.map_err(|error| added::raises(py, error))
    }

    /// For `__traverse__`.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.is_constructed {
            return Ok(());
        }
        self.get().map_or(Ok(()), |buffer| buffer.traverse(visit))?;
        // Waits for the lock, so that every pass of the collector visits the same object. No holder
        // of the lock waits for this thread.
        visit.call(&self.backend.lock().0)
    }
}
