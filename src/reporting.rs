//! Tells what has become of a flush: by counts, by log records, and by the callable of `install()`.
//!
//! Telling runs Python code: an error's `__str__`, logging filters and handlers, the callable. It may
//! call the same buffer, raise, or fork. So it comes last, with no lock held, when each entry is
//! either sent or pending again. What fails in it ends no consumer.

use std::fmt;
use std::time::Duration;

use arroyo_metrics_buffer_core::deliveries::MAX_LATENCIES;
use arroyo_metrics_buffer_core::fork;
use arroyo_metrics_buffer_core::lock::Mutex;
use arroyo_metrics_buffer_core::outage::{Ended, Failure, Outage};
use arroyo_metrics_buffer_core::shared::Shared;
use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::logging::{self, Level};
use crate::objects::OrMemoryError;
use crate::settings::{self, OnBackendError};
use crate::stats::BufferStats;
use crate::{interned, objects};

/// How many characters of an error's text are kept: it may hold a whole response.
const MAX_TEXT: usize = 1000;

/// What a flush came to.
pub struct Flush {
    /// What the buffer's clock said when it began, in seconds.
    pub began: f64,
    /// The [fork generation](fork::generation) that it began in.
    pub generation: u64,
    /// Entries that the backend accepted.
    pub sent: usize,
    /// Entries that were put back.
    pub unsent: usize,
    /// Samples that had no room since the last flush that succeeded.
    pub dropped: u64,
    /// The part of them that the statistics do not count yet.
    pub newly_dropped: u64,
}

impl Flush {
    /// Whether this is the child of a fork in the flush, or while it was told: the parent tells.
    fn belongs_to_parent(&self) -> bool {
        self.generation != fork::generation()
    }
}

/// Whether the flush that begins is to be timed, for its DEBUG record.
///
/// # Errors
///
/// An exit that something raised meanwhile.
pub fn is_timed(py: Python<'_>) -> PyResult<bool> {
    let mut is_timed = false;
    exits_only(py, logging::is_debug_enabled(py).map(|is_enabled| is_timed = is_enabled))?;
    Ok(is_timed)
}

/// Tells of the flushes of one buffer.
pub struct Reporting {
    stats: &'static Mutex<BufferStats>,
    outage: Shared<Outage>,
}

impl Reporting {
    /// Flushes are counted in `stats`.
    pub fn new(py: Python<'_>, stats: &'static Mutex<BufferStats>) -> PyResult<Self> {
        Ok(Self { stats, outage: Shared::new(Outage::default()).or_memory_error(py)? })
    }

    /// Counts samples that were dropped, where no flush tells of them.
    pub fn count_dropped(&self, samples: u64) {
        self.stats.lock().count_dropped(samples);
    }

    /// Tells of a flush that the backend accepted whole, within `time` if that was measured.
    ///
    /// # Errors
    ///
    /// An exit that something raised while it was told.
    pub fn succeeded(&self, py: Python<'_>, flush: &Flush, time: Option<Duration>) -> PyResult<()> {
        self.stats.lock().count_flush(flush.sent, 0, flush.newly_dropped);
        let mut ended = None;
        if flush.sent > 0 {
            ended = self.outage.lock().succeeded(flush.began);
            if let Some(time) = time {
                exits_only(py, log_time(py, flush, time))?;
            }
        }
        if flush.belongs_to_parent() {
            return Ok(());
        }
        match ended {
            Some(ended) if !matches!(settings::backend_errors(py), OnBackendError::Raise) => {
                exits_only(py, log_end(py, flush, ended))
            }
            _ if flush.dropped > 0 => exits_only(py, log_dropped(py, flush)),
            _ => Ok(()),
        }
    }

    /// Tells of a flush that `error` ended, and raises the error, unless `install()` was told to do
    /// something else with a backend's.
    ///
    /// # Errors
    ///
    /// The error, or an exit that something raised while it was told.
    pub fn failed(&self, py: Python<'_>, flush: &Flush, error: PyErr) -> PyResult<()> {
        let reaction =
            if is_exit(py, &error) { OnBackendError::Raise } else { settings::backend_errors(py) };
        if !flush.belongs_to_parent() {
            self.stats.lock().count_flush(flush.sent, flush.unsent, flush.newly_dropped);
            exits_only(py, self.tell_failure(py, flush, &error, &reaction))?;
        }
        match reaction {
            OnBackendError::Raise => Err(error),
            OnBackendError::Log | OnBackendError::Call(_) => Ok(()),
        }
    }

    fn tell_failure(
        &self,
        py: Python<'_>,
        flush: &Flush,
        error: &PyErr,
        reaction: &OnBackendError,
    ) -> PyResult<()> {
        let text = class_and_text(py, error);
        if flush.belongs_to_parent() {
            return text.map(drop);
        }
        let (text, untold) = match text {
            Ok(text) => (text, Ok(())),
            Err(raised) => (interned::ERROR_WITHOUT_WORDS.get(py)?, Err(raised)),
        };
        let is_told = !matches!(reaction, OnBackendError::Raise);
        let failure = (!is_exit(py, error)).then(|| self.count_error(flush, text.clone(), is_told));
        exits_only(py, untold)?;
        let logged = match (reaction, failure) {
            (OnBackendError::Raise, _) | (_, None) => log_put_back(py, flush, &text),
            (_, Some(failure)) => log_outage(py, flush, failure, error, &text),
        };
        exits_only(py, logged)?;
        match reaction {
            OnBackendError::Call(callable) if !flush.belongs_to_parent() => {
                let exception = error.clone_ref(py).into_value(py).into_bound(py);
                callable.bind(py).call1((exception,)).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn count_error(&self, flush: &Flush, text: Bound<'_, PyString>, is_told: bool) -> Failure {
        let mut outage = self.outage.lock();
        let begins_outage = !outage.is_running();
        let failure = outage.failed(flush.began, is_told);
        drop(outage);
        let before = self.stats.lock().count_error(text.unbind(), begins_outage);
        drop(before); // after the guard is gone
        failure
    }
}

/// Has Python report an error that came up in telling, and returns only an [exit](is_exit).
fn exits_only(py: Python<'_>, told: PyResult<()>) -> PyResult<()> {
    match told {
        Err(error) if !is_exit(py, &error) => {
            error.write_unraisable(py, None);
            Ok(())
        }
        told => told,
    }
}

/// Whether an error is no `Exception`, like KeyboardInterrupt. Such an error is to end a thread or
/// a program, so it is raised and never only told.
fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    !error.is_instance_of::<PyException>(py)
}

fn log_time(py: Python<'_>, flush: &Flush, time: Duration) -> PyResult<()> {
    let (entries, microseconds) = (flush.sent, time.as_micros());
    let message = format_args!("flushed {entries} entries in {microseconds} µs");
    logging::log(py, Level::Debug, message, None)
}

fn log_dropped(py: Python<'_>, flush: &Flush) -> PyResult<()> {
    let (entries, dropped) = (flush.sent, Dropped(flush));
    logging::log(py, Level::Warning, format_args!("flushed {entries} entries{dropped}"), None)
}

fn log_put_back(py: Python<'_>, flush: &Flush, error: &Bound<'_, PyString>) -> PyResult<()> {
    let (error, put_back) = (error.to_str()?, PutBack(flush));
    let message = format_args!("flush ended by {error}; {put_back}");
    logging::log(py, Level::Warning, message, None)
}

fn log_outage(
    py: Python<'_>,
    flush: &Flush,
    failure: Failure,
    error: &PyErr,
    text: &Bound<'_, PyString>,
) -> PyResult<()> {
    let (text, put_back) = (text.to_str()?, PutBack(flush));
    match failure {
        Failure::Begins => {
            let message = format_args!(
                "an outage of the metrics backend begins: flush ended by {text}; {put_back}"
            );
            logging::log(py, Level::Error, message, Some(error))
        }
        Failure::GoesOn { seconds, failures, untold } => {
            let message = format_args!(
                "the outage of the metrics backend goes on: {failures} flushes failed in \
                 {seconds:.0} s, {untold} of them since the last record; the last was ended by \
                 {text}; {put_back}"
            );
            logging::log(py, Level::Warning, message, None)
        }
        Failure::IsKnown => Ok(()),
    }
}

fn log_end(py: Python<'_>, flush: &Flush, ended: Ended) -> PyResult<()> {
    let Ended { seconds, failures } = ended;
    let (entries, dropped) = (flush.sent, Dropped(flush));
    let message = format_args!(
        "the outage of the metrics backend is over: {failures} flushes failed in {seconds:.0} s; \
         this one sent {entries} entries{dropped}"
    );
    logging::log(py, Level::Warning, message, None)
}

/// What a flush that failed did with its entries, in words.
struct PutBack<'a>(&'a Flush);

impl fmt::Display for PutBack<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flush { sent, unsent, .. } = self.0;
        let (entries, dropped) = (sent + unsent, Dropped(self.0));
        write!(to, "{sent} of {entries} entries sent, {unsent} kept for the next flush{dropped}")
    }
}

/// The samples that had no room before a flush, in words, if there were any.
struct Dropped<'a>(&'a Flush);

impl fmt::Display for Dropped<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.dropped {
            0 => Ok(()),
            dropped => write!(
                to,
                "; {dropped} latency samples dropped, as {MAX_LATENCIES} were waiting; every \
                 delivery is counted"
            ),
        }
    }
}

/// The class and the text of an error, as the last line of a traceback has them.
// Not by PyO3's fully_qualified_name(), which has an `intern!` in it: see `interned`.
fn class_and_text<'py>(py: Python<'py>, error: &PyErr) -> PyResult<Bound<'py, PyString>> {
    let class = error.get_type(py);
    let module = printable(&class.getattr(interned::MODULE.get(py)?)?.str()?)?;
    let name = printable(&class.qualname()?)?;
    let message = printable(&error.value(py).str()?)?;
    let (module, name, message) = (module.to_str()?, name.to_str()?, message.to_str()?);
    let (module, dot) =
        if matches!(module, "builtins" | "__main__") { ("", "") } else { (module, ".") };
    let colon = if message.is_empty() { "" } else { ": " };
    let text = format_args!("{module}{dot}{name}{colon}{message:.MAX_TEXT$}");
    let text = objects::string(py, text)?;
    objects::string(py, format_args!("{:.MAX_TEXT$}", text.to_str()?))
}

/// The text without lone surrogates, which a Rust string can't have: as stderr prints them.
fn printable<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyString>> {
    if text.to_str().is_ok() {
        return Ok(text.clone());
    }
    let py = text.py();
    // SAFETY: the interpreter is attached, `text` is a `str`, and the other arguments are C strings.
    // The result is a new reference to a `bytes`, or null with an exception set.
    let bytes = unsafe {
        let (encoding, errors) = (c"utf-8".as_ptr(), c"backslashreplace".as_ptr());
        let bytes = ffi::PyUnicode_AsEncodedString(text.as_ptr(), encoding, errors);
        Bound::from_owned_ptr_or_err(py, bytes)?.cast_into_unchecked::<PyBytes>()
    };
    PyString::from_bytes(py, bytes.as_bytes())
}
