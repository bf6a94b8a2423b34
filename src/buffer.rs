//! What all three Python classes do: accumulate, throttle, send, and put back.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use arroyo_metrics_buffer_core::fork;
use arroyo_metrics_buffer_core::lock::{Mutex, MutexGuard};
use arroyo_metrics_buffer_core::memory::OutOfMemory;
use arroyo_metrics_buffer_core::pending::{Contents, Pending, Taken};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::clock::{self, Clock};
use crate::interned::InternedString;
use crate::objects::OrMemoryError;
use crate::reporting::{self, Flush, Reporting};
use crate::stats::BufferStats;
use crate::{added, ending, interpreter};

/// A time of the last flush after which the next is due.
const ALWAYS_DUE: f64 = f64::NEG_INFINITY;

/// Pending contents, and the clock that their flushes are throttled by.
pub struct Buffer<C: Contents> {
    pending: Pending<C>,
    clock: Clock,
    reporting: Reporting,
    due_flush: AtomicU8,
}

/// What a flush that was due at the end of the process has come to, in [`Buffer::due_flush`]. Relaxed
/// everywhere, as it is a matter of when the next flush is.
mod due_flush {
    /// There is none.
    pub const NONE: u8 = 0;
    /// It sent nothing yet, or failed.
    pub const GOES_ON: u8 = 1;
    /// The backend has accepted all.
    pub const HAS_SENT: u8 = 2;
}

impl<C: Contents> Buffer<C> {
    /// An empty buffer, last flushed at `last_flush`. Its flushes are counted in `stats`.
    pub fn new(
        py: Python<'_>,
        stats: &'static Mutex<BufferStats>,
        shards: usize,
        flush_interval: f64,
        clock: Clock,
        last_flush: f64,
    ) -> PyResult<Self> {
        let last_flush = if ending::has_begun() { ALWAYS_DUE } else { last_flush };
        let pending = Pending::sharded(shards, flush_interval, last_flush);
        let pending = pending.or_memory_error(py)?;
        let reporting = Reporting::new(py, stats)?;
        Ok(Self { pending, clock, reporting, due_flush: AtomicU8::new(due_flush::NONE) })
    }

    /// What the calling thread adds to. See [`Pending::lock`] for what may be done meanwhile.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, C> {
        self.pending.lock()
    }

    /// A copy of what is pending; see [`Pending::snapshot`].
    pub fn snapshot(
        &self,
        py: Python<'_>,
        copy: impl Fn(&C) -> Result<C, OutOfMemory>,
    ) -> PyResult<Taken<C>> {
        self.pending.snapshot(copy).or_memory_error(py)
    }

    /// Takes what `part` takes out of all there is, for `read` to make something else of it. If that
    /// fails, all is put back. The samples that were dropped are counted here, as nothing tells the
    /// caller of them.
    pub fn drain<R>(
        &self,
        py: Python<'_>,
        part: impl Fn(&mut C) -> C,
        read: impl Fn(&C) -> PyResult<R>,
    ) -> PyResult<R> {
        let mut taken = self.pending.take_part(part).or_memory_error(py)?;
        let result = read(&taken.contents);
        if taken.belongs_to_parent() {
            return read(&C::default()); // the child of a fork in `read`
        }
        if result.is_ok() {
            self.reporting.count_dropped(taken.contents.take_newly_dropped());
        } else {
            self.pending.put_back(&mut taken);
        }
        result
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
        let began = self.clock.now(py)?;
        self.pending.throttle().restart(began);
        let start = reporting::is_timed(py)?.then(Instant::now);
        // Detached: whoever has the lock then never has to wait for the interpreter that we hold.
        let mut taken = py.detach(|| self.pending.take()).or_memory_error(py)?;
        let mut sending = Sending { taken: &taken, accepted: 0 };
        let result = send(&taken.contents, &mut sending);
        let accepted = sending.accepted;
        if taken.belongs_to_parent() {
            return result; // the child of a fork in the backend: the parent goes on
        }
        let mut flush = Flush {
            began,
            generation: fork::generation(),
            sent: accepted,
            unsent: 0,
            dropped: taken.contents.dropped(),
            newly_dropped: taken.contents.take_newly_dropped(),
        };
        let Err(error) = result else {
            let time = start.map(|start| start.elapsed());
            let told = self.reporting.succeeded(py, &flush, time);
            if ending::has_begun() {
                // Not before the backend and logging have returned: they may call in.
                let due_flush = self.set_due_flush(due_flush::GOES_ON, due_flush::HAS_SENT);
                if due_flush == Err(due_flush::NONE) {
                    self.pending.throttle().restart(ALWAYS_DUE);
                }
            }
            return told;
        };
        flush.unsent = taken.contents.entries() - accepted;
        taken.contents.forget_first(accepted); // can run Python code, which may fork
        self.pending.put_back(&mut taken);
        drop(taken); // as above
        self.reporting.failed(py, &flush, error)
    }

    /// Has `flush` call [`flush`](Self::flush) for a call that found it due. At the end of the process
    /// the next call is due too, if all was sent.
    ///
    /// `flush` may be an override that adds to the buffer once all is sent: that is not due, or it
    /// would never end.
    pub fn flush_when_due(
        &self,
        py: Python<'_>,
        flush: impl FnOnce() -> PyResult<()>,
    ) -> PyResult<()> {
        if !ending::has_begun() {
            return flush();
        }
        if interpreter::is_finalizing(py) {
            return Ok(()); // a lock of the backend's might never be released, and its modules be gone
        }
        let _ = self.set_due_flush(due_flush::NONE, due_flush::GOES_ON);
        let flushed = flush();
        let has_sent =
            self.due_flush.swap(due_flush::NONE, Ordering::Relaxed) == due_flush::HAS_SENT;
        if has_sent && flushed.is_ok() {
            self.pending.throttle().restart(ALWAYS_DUE);
        }
        ending::unless_ending(py, flushed)
    }

    fn set_due_flush(&self, from: u8, to: u8) -> Result<u8, u8> {
        self.due_flush.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
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

/// A flush in progress, and how much of it the backend has accepted.
pub struct Sending<'a, C: Contents> {
    taken: &'a Taken<C>,
    accepted: usize,
}

impl<C: Contents> Sending<'_, C> {
    /// Sends each entry, in order, by a call of the backend's `method`, which is looked up once,
    /// and only if there are entries.
    pub fn each<T>(
        &mut self,
        entries: impl IntoIterator<Item = T>,
        metrics: &Bound<'_, PyAny>,
        method: &InternedString,
        mut send: impl FnMut(&Bound<'_, PyAny>, T) -> PyResult<()>,
    ) -> PyResult<()> {
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let py = metrics.py();
        let method = metrics.getattr(method.get(py)?)?;
        for entry in entries {
            if self.taken.belongs_to_parent() {
                break; // the child of a fork in the backend: the parent goes on
            }
            let (result, is_accepted) = added::watch(py, || send(&method, entry));
            self.accepted += usize::from(is_accepted);
            result?;
        }
        Ok(())
    }
}

/// Calls a backend's method with a name, a value and tags, of which the first `positional` are
/// passed by position, and the others by the names in `names`.
///
/// PyO3 takes keyword arguments from a dict. At every call it makes a tuple of their names, which
/// costs more than a backend's method does. Here the tuple is made once.
pub fn call_backend(
    method: &Bound<'_, PyAny>,
    arguments: [&Bound<'_, PyAny>; 3],
    positional: usize,
    names: &Bound<'_, PyTuple>,
) -> PyResult<()> {
    let (py, arguments) = (method.py(), arguments.map(Bound::as_ptr));
    // SAFETY: the interpreter is attached, as `method` shows; `arguments` are three borrowed
    // references that outlive the call, and `names` is a tuple of as many strings as are not
    // positional. The result is a new reference, or null with an exception set.
    let result = unsafe {
        let (method, names) = (method.as_ptr(), names.as_ptr());
        let result = ffi::PyObject_Vectorcall(method, arguments.as_ptr(), positional, names);
        Bound::from_owned_ptr_or_err(py, result)
    };
    result.map(drop)
}
