//! What the Python classes have in common: they accumulate, throttle, send, and put back.

use std::time::Instant;

use pyo3::exceptions::{PyGeneratorExit, PyKeyboardInterrupt, PySystemExit};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::arguments;
use crate::clock::{self, Clock};
use crate::lock::MutexGuard;
use crate::logging;
use crate::pending::{Contents, Pending, Taken};
use crate::settings;

/// Pending contents, and the clock that their flushes are throttled by.
pub struct Buffer<C: Contents> {
    pending: Pending<C>,
    clock: Clock,
}

impl<C: Contents> Buffer<C> {
    /// An empty buffer, last flushed now. Without a clock it has the one of `install()`.
    pub fn new(
        py: Python<'_>,
        shards: usize,
        flush_interval: f64,
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let clock = match clock {
            Some(clock) => Some(arguments::callable("clock", clock)?),
            None => settings::clock(py),
        };
        let clock = clock.map_or(Clock::Native, Clock::Callable);
        let pending = Pending::sharded(shards, flush_interval, clock.now(py)?);
        Ok(Self { pending, clock })
    }

    /// What the calling thread adds to. See [`Pending::lock`] for what may be done meanwhile.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, C> {
        self.pending.lock()
    }

    /// A copy of what is pending; see [`Pending::look`].
    pub fn look(&self, copy: impl Fn(&C) -> C) -> Taken<C> {
        self.pending.look(copy)
    }

    /// Whether the caller has to flush, since the flush interval has passed.
    #[inline]
    pub fn is_due(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.is_due_at(self.clock.now(py)?))
    }

    /// The same at a time that the caller got from the clock.
    #[inline]
    pub fn is_due_at(&self, now: f64) -> bool {
        self.pending.throttle().is_due(now)
    }

    /// The time, unless the clock is a callable.
    #[inline]
    pub fn native_now(&self) -> Option<f64> {
        match self.clock {
            Clock::Native => Some(clock::native_now()),
            Clock::Callable(_) => None,
        }
    }

    /// Takes all there is and has `send` send it. If that raises, what it had not sent is put back,
    /// and the error is raised or logged, as `install()` was told.
    pub fn flush(
        &self,
        py: Python<'_>,
        send: impl FnOnce(&C, &mut Sending<'_, C>) -> PyResult<()>,
    ) -> PyResult<()> {
        self.pending.throttle().restart(self.clock.now(py)?);
        let start = logging::is_debugging(py)?.then(Instant::now);
        // Detached: whoever has the lock then never has to wait for the interpreter that we hold.
        let taken = py.detach(|| self.pending.take());
        let mut sending = Sending { taken: &taken, accepted: 0 };
        let result = send(&taken.contents, &mut sending);
        let accepted = sending.accepted;
        match result {
            Ok(()) => {
                let time = start.map(|start| start.elapsed());
                logging::flushed(py, accepted, taken.contents.dropped(), time)
            }
            Err(error) if taken.is_the_parents() => Err(error),
            Err(error) => self.put_back(py, taken, accepted, error),
        }
    }

    fn put_back(
        &self,
        py: Python<'_>,
        mut taken: Taken<C>,
        accepted: usize,
        error: PyErr,
    ) -> PyResult<()> {
        let unsent = taken.contents.entries() - accepted;
        let dropped = taken.contents.dropped();
        taken.contents.forget_first(accepted);
        let leftover = self.pending.put_back(taken.contents);
        drop(leftover); // can run Python code, so after the guard is gone
        if settings::log_backend_errors() && !is_exit(py, &error) {
            return logging::put_back_with_traceback(py, accepted, unsent, dropped, error);
        }
        match logging::put_back(py, accepted, unsent, dropped) {
            Err(exit) if is_exit(py, &exit) => Err(exit),
            // The backend's error is the one to see, should logging raise one as well.
            _ => Err(error),
        }
    }

    /// For a class's `__traverse__`. What is pending is left out: a detached thread may take it
    /// between the collector's passes, and an object that only one pass sees is freed while in use.
    /// Pending names end with a flush.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.clock {
            Clock::Callable(clock) => visit.call(clock),
            Clock::Native => Ok(()),
        }
    }
}

/// A flush at work, and how much of it the backend has accepted.
pub struct Sending<'a, C: Contents> {
    taken: &'a Taken<C>,
    accepted: usize,
}

impl<C: Contents> Sending<'_, C> {
    /// Sends each entry, in order, by a call of the backend's `method`. It is looked up if there are
    /// any entries, once.
    pub fn each<T>(
        &mut self,
        entries: impl IntoIterator<Item = T>,
        metrics: &Bound<'_, PyAny>,
        method: &Bound<'_, PyString>,
        mut send: impl FnMut(&Bound<'_, PyAny>, T) -> PyResult<()>,
    ) -> PyResult<()> {
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let method = metrics.getattr(method)?;
        for entry in entries {
            if self.taken.is_the_parents() {
                break; // the backend forked
            }
            send(&method, entry)?;
            self.accepted += 1;
        }
        Ok(())
    }
}

/// The errors that end a thread or a program: logging one instead would keep it alive.
fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyKeyboardInterrupt>(py)
        || error.is_instance_of::<PySystemExit>(py)
        || error.is_instance_of::<PyGeneratorExit>(py)
}
