//! What both Python classes do: accumulate, throttle, send, and put back.

use std::time::Instant;

use arroyo_metrics_buffer_core::fork;
use arroyo_metrics_buffer_core::lock::MutexGuard;
use arroyo_metrics_buffer_core::memory::OutOfMemory;
use arroyo_metrics_buffer_core::pending::{Contents, Pending, Taken};
use arroyo_metrics_buffer_core::shared::Shared;
use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::arguments;
use crate::clock::{self, Clock};
use crate::interned::InternedString;
use crate::logging;
use crate::objects::OrMemoryError;
use crate::settings;
use crate::stats::BufferStats;

/// How many characters of an error's text are kept: it may hold a whole response.
const MAX_TEXT: usize = 1000;

/// Pending contents, and the clock that their flushes are throttled by.
pub struct Buffer<C: Contents> {
    pending: Pending<C>,
    clock: Clock,
    stats: &'static Shared<BufferStats>,
}

impl<C: Contents> Buffer<C> {
    /// An empty buffer, last flushed now. Without a clock it has the one of `install()`. Its
    /// flushes are counted in `stats`.
    pub fn new(
        py: Python<'_>,
        stats: &'static Shared<BufferStats>,
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
        Ok(Self { pending: pending.or_memory_error(py)?, clock, stats })
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
            self.stats.lock().count_dropped(taken.contents.take_newly_dropped());
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
        self.pending.throttle().restart(self.clock.now(py)?);
        let start = logging::is_debug_enabled(py)?.then(Instant::now);
        // Detached: whoever has the lock then never has to wait for the interpreter that we hold.
        let mut taken = py.detach(|| self.pending.take()).or_memory_error(py)?;
        let mut sending = Sending { taken: &taken, accepted: 0 };
        let result = send(&taken.contents, &mut sending);
        let accepted = sending.accepted;
        if taken.belongs_to_parent() {
            return result; // the child of a fork in the backend: the parent goes on
        }
        match result {
            Ok(()) => {
                let time = start.map(|start| start.elapsed());
                let newly_dropped = taken.contents.take_newly_dropped();
                self.stats.lock().count_flush(accepted, 0, newly_dropped);
                logging::log_flush(py, accepted, taken.contents.dropped(), time)
            }
            Err(error) => self.put_back_unsent(py, taken, accepted, error),
        }
    }

    fn put_back_unsent(
        &self,
        py: Python<'_>,
        mut taken: Taken<C>,
        accepted: usize,
        error: PyErr,
    ) -> PyResult<()> {
        let unsent = taken.contents.entries() - accepted;
        let (dropped, newly_dropped) =
            (taken.contents.dropped(), taken.contents.take_newly_dropped());
        taken.contents.forget_first(accepted); // can run Python code, which may fork
        self.pending.put_back(&mut taken);
        if taken.belongs_to_parent() {
            return Err(error);
        }
        drop(taken); // as above
        self.stats.lock().count_flush(accepted, unsent, newly_dropped);
        self.report(py, error, accepted, unsent, dropped)
    }

    /// Counts and logs the error that ended a flush, and raises it. A backend's error is not raised
    /// if `install(on_backend_error="log")` was called.
    fn report(
        &self,
        py: Python<'_>,
        error: PyErr,
        sent: usize,
        unsent: usize,
        dropped: u64,
    ) -> PyResult<()> {
        let generation = fork::generation();
        let (text, exit) = describe(py, &error);
        if fork::generation() != generation {
            return Err(error); // the child of a fork in `__str__`: the parent reports it
        }
        let message = logging::put_back_message(&text, sent, unsent, dropped);
        let is_backend_error = !is_exit(py, &error);
        if is_backend_error {
            self.stats.lock().count_error(text);
        }
        if let Some(exit) = exit {
            return Err(exit);
        }
        let is_logged = is_backend_error && settings::logs_backend_errors();
        let logged = if is_logged {
            logging::log_put_back_with_traceback(py, &message, error.clone_ref(py))
        } else {
            logging::log_put_back(py, &message)
        };
        match logged {
            Err(exit) if is_exit(py, &exit) => Err(exit),
            // If logging raised an error as well, the backend's is the one to raise.
            _ if !is_logged => Err(error),
            Err(logging_error) => {
                // An error of logging must not end a consumer.
                logging_error.write_unraisable(py, None);
                Ok(())
            }
            Ok(()) => Ok(()),
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
        let method = metrics.getattr(method.get(metrics.py())?)?;
        for entry in entries {
            if self.taken.belongs_to_parent() {
                break; // the child of a fork in the backend: the parent goes on
            }
            send(&method, entry)?;
            self.accepted += 1;
        }
        Ok(())
    }
}

/// Whether an error is no `Exception`, like KeyboardInterrupt. Such an error is to end a thread or
/// a program, so it is raised and never only logged.
fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    !error.is_instance_of::<PyException>(py)
}

/// The class and the text of an error, for a log record and for `stats()`. If the error's `__str__`
/// raises, the text says so. If it raised an exit, see [`is_exit`], that is returned too.
fn describe(py: Python<'_>, error: &PyErr) -> (String, Option<PyErr>) {
    match class_and_text(py, error) {
        Ok(text) => (text.chars().take(MAX_TEXT).collect(), None),
        Err(raised) => {
            let text = "an error that can't be told in words".to_owned();
            (text, Some(raised).filter(|raised| is_exit(py, raised)))
        }
    }
}

// Not by PyO3's fully_qualified_name(), which has an `intern!` in it: see `interned`.
fn class_and_text(py: Python<'_>, error: &PyErr) -> PyResult<String> {
    let class = error.get_type(py);
    let (module, name) = (class.getattr("__module__")?.str()?, class.qualname()?);
    let message = error.value(py).str()?;
    let (module, message) = (module.to_string_lossy(), message.to_string_lossy());
    let mut text = name.to_string_lossy().into_owned();
    if !matches!(&*module, "builtins" | "__main__") {
        text = format!("{module}.{text}");
    }
    Ok(if message.is_empty() { text } else { format!("{text}: {message}") })
}
