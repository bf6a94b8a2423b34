//! The Python class `BufferedMetricsBackend`.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use arroyo_metrics_buffer_core::numbers::{Last, Number};
use arroyo_metrics_buffer_core::sums::{Sums, Total};
use arroyo_metrics_buffer_core::totals;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyList, PyString, PyTuple};

use crate::buffer::{Buffer, call_backend};
use crate::clock::{Clock, native_now};
use crate::new::{self, TakesAnyArguments};
use crate::object::Object;
use crate::{arguments, interned, interpreter, objects, stats, tags};

type Totals = totals::Totals<Labels, Number, Number>;

/// What a total is sent with: what the last call that added to it was given.
struct Labels {
    name: Py<PyString>,
    /// `None` for no tags.
    tags: Option<Py<PyAny>>,
}

/// A thread-safe metrics buffer with the interface of sentry-streams'.
///
/// It sums timings and counts by name and tags, keeps the last value of each gauge, and sends them
/// to a metrics backend, at most once per interval, from whichever thread makes the next call.
/// Every method may be called from any thread at any time, from inside the backend and after a fork
/// too. Nothing is lost and nothing is counted twice.
///
/// Tags are a dict of strings. Two calls are of the same metric if their names are equal, and their
/// tags after "|" in a value is replaced by "_". The backend gets the name and the dict of the last
/// call, so do not change a dict after the call.
///
/// Args:
///     backend: An object with `timing(name, value, tags)`, `increment(name, value, tags)` and
///         `gauge(name, value, tags)`.
///     throttle_interval_sec: Seconds that have to pass before a call sends what is pending. With 0
///         or less every call sends it. The first call does.
///     clock: A callable that returns seconds, for tests. None stands for the one given to
///         `install()`, by default the system's monotonic coarse clock, or for `time.time` where
///         that is not Python's own when the buffer is made, but a test's.
///
/// Raises:
///     TypeError: `throttle_interval_sec` is not a number, or `clock` not callable.
///     ValueError: `throttle_interval_sec` is NaN.
///     RuntimeError: The buffer is initialised already.
#[pyclass(frozen, subclass, dict, weakref, module = "arroyo_metrics_buffer")]
pub struct BufferedMetricsBackend(Object<Totals>);

impl TakesAnyArguments for BufferedMetricsBackend {
    fn pyo3_new() -> &'static OnceLock<ffi::newfunc> {
        static NEW: OnceLock<ffi::newfunc> = OnceLock::new();
        &NEW
    }
}

#[pymethods]
impl BufferedMetricsBackend {
    /// Called without arguments, whatever the class is called with: see [`new`].
    #[new]
    #[pyo3(signature = (), text_signature = "(backend, throttle_interval_sec, *, clock=None)")]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Object::new(py).map(Self)
    }

    #[pyo3(signature = (backend, throttle_interval_sec, *, clock=None))]
    fn __init__(
        slf: &Bound<'_, Self>,
        backend: Py<PyAny>,
        throttle_interval_sec: &Bound<'_, PyAny>,
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let interval = arguments::interval("throttle_interval_sec", throttle_interval_sec)?;
        // A flush is due after more than the buffer's interval, and here after no less than this.
        let interval =
            if interval > 0.0 { f64::from_bits(interval.to_bits() - 1) } else { interval };
        let clock = match Clock::chosen(py, clock)? {
            Some(clock) => clock,
            None => replaced_time(py)?.map_or(Clock::Native, Clock::Callable),
        };
        // sentry-streams has 0 on the wall clock.
        let last_flush = match clock {
            Clock::Native => native_now() - wall_clock(),
            Clock::Callable(_) => 0.0,
        };
        let buffer = Buffer::new(py, &stats::STREAMS, 1, interval, clock, last_flush)?;
        slf.get().0.init(slf, backend, buffer)
    }

    /// Add to the sum of a counter, then flush if the interval has passed.
    ///
    /// Args:
    ///     name: The counter's name.
    ///     value: What to add, an int or a float.
    ///     tags: Its tags by key, or None.
    ///
    /// Raises:
    ///     TypeError: `name` or the value of a tag is not a str, or `value` not a number. Nothing
    ///         was added.
    ///     OverflowError: `value` or the sum is an int that does not fit in 64 bits. Nothing was
    ///         added.
    ///     BaseException: What the backend raised, if this call flushed; see `flush()`.
    #[pyo3(
        signature = (name, value=Value::One, tags=None),
        text_signature = "($self, name, value=1, tags=None)"
    )]
    fn increment(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyAny>,
        value: Value<'_, '_>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        add(slf, name, value.number()?, tags, |totals| &mut totals.counters)
    }

    /// Set a gauge, then flush if the interval has passed.
    ///
    /// Args:
    ///     name: The gauge's name.
    ///     value: Its value, an int or a float.
    ///     tags: Its tags by key, or None.
    ///
    /// Raises:
    ///     TypeError: As in `increment()`. The gauge is as it was.
    ///     OverflowError: `value` is an int that does not fit in 64 bits. The gauge is as it was.
    ///     BaseException: What the backend raised, if this call flushed; see `flush()`.
    #[pyo3(signature = (name, value, tags=None))]
    fn gauge(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let value = Last(arguments::number("value", value)?);
        add(slf, name, value, tags, |totals| &mut totals.gauges)
    }

    /// Add to the sum of a timer, then flush if the interval has passed.
    ///
    /// Args:
    ///     name: The timer's name.
    ///     value: What to add, an int or a float.
    ///     tags: Its tags by key, or None.
    ///
    /// Raises:
    ///     TypeError: As in `increment()`. Nothing was added.
    ///     OverflowError: As in `increment()`. Nothing was added.
    ///     BaseException: What the backend raised, if this call flushed; see `flush()`.
    #[pyo3(signature = (name, value, tags=None))]
    fn timing(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        tags: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let value = arguments::number("value", value)?;
        add(slf, name, value, tags, |totals| &mut totals.timers)
    }

    /// Send what is pending to the backend: timers, then counters, then gauges.
    ///
    /// Each kind is sent in the order of first touch. Other threads go on adding meanwhile; what
    /// they add is pending for the next flush.
    ///
    /// Raises:
    ///     BaseException: What the backend raised. What it had not accepted by then, the entry it
    ///         was called with included, is pending again. A gauge that was set meanwhile keeps the
    ///         newer value. With `install(on_backend_error="log")` it is logged, unless it is no
    ///         Exception, as KeyboardInterrupt is none.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, object) = (slf.py(), &slf.get().0);
        object.buffer(py)?.flush(py, |totals, sending| {
            let backend = object.backend(py).ok_or_else(|| {
                let message = format_args!("the garbage collector has taken the backend away");
                objects::error::<PyRuntimeError>(py, message)
            })?;
            let names = interned::tags(py)?;
            let mut send = |method: &Bound<'_, PyAny>, (labels, value): (&Labels, Number)| {
                let (name, value) = (labels.name.bind(py), number(py, value)?);
                call_backend(method, [name, &value, &labels.tags(py)?], 2, names)
            };
            sending.each(totals.timers.iter(), &backend, &interned::TIMING, &mut send)?;
            sending.each(totals.counters.iter(), &backend, &interned::INCREMENT, &mut send)?;
            let gauges = totals.gauges.iter().map(|(labels, Last(value))| (labels, value));
            sending.each(gauges, &backend, &interned::GAUGE, &mut send)
        })
    }

    /// Tell what is pending, without flushing it.
    ///
    /// Returns:
    ///     The timers, the counters and the gauges, each a list of `(name, value, tags)` in the
    ///     order of first touch.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let [timers, counters, gauges] = self.pending(py)?;
        objects::tuple(py, [&timers, &counters, &gauges])
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let class = slf.get_type().name()?;
        let [timers, counters, gauges] = slf.get().pending(py)?;
        let fields = objects::tuple(py, [&class, &timers, &counters, &gauges])?;
        interned::BUFFERED_BACKEND_REPR.get(py)?.rem(fields)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.traverse(&visit)
    }

    fn __clear__(&self) {
        self.0.set_backend(None);
    }
}

impl BufferedMetricsBackend {
    /// The timers, the counters and the gauges that are pending.
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<[Bound<'py, PyList>; 3]> {
        let copy = |totals: &Totals| totals.copy(|labels| labels.clone_ref(py));
        let taken = self.0.buffer(py)?.snapshot(py, copy)?;
        let totals = &taken.contents;
        let gauges = totals.gauges.iter().map(|(labels, Last(value))| (labels, value));
        Ok([
            entries(py, totals.timers.iter())?,
            entries(py, totals.counters.iter())?,
            entries(py, gauges)?,
        ])
    }
}

impl Labels {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        let tags = self.tags.as_ref().map(|tags| tags.clone_ref(py));
        Self { name: self.name.clone_ref(py), tags }
    }

    /// What the backend gets for them.
    fn tags<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.tags {
            Some(tags) => Ok(tags.bind(py).clone()),
            None => objects::dict(py).map(Bound::into_any),
        }
    }
}

/// The argument `value` of a counter, which is 1 where it is not given.
#[derive(Clone, Copy)]
enum Value<'a, 'py> {
    Given(Borrowed<'a, 'py, PyAny>),
    One,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Value<'a, 'py> {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self::Given(value))
    }
}

impl Value<'_, '_> {
    fn number(self) -> PyResult<Number> {
        match self {
            Self::Given(value) => arguments::number("value", &value),
            Self::One => Ok(Number::Int(1)),
        }
    }
}

fn add<V: Total>(
    slf: &Bound<'_, BufferedMetricsBackend>,
    name: &Bound<'_, PyAny>,
    value: V,
    tags: Option<&Bound<'_, PyAny>>,
    sums: impl Fn(&mut Totals) -> &mut Sums<Labels, V>,
) -> PyResult<()> {
    let (py, object) = (slf.py(), &slf.get().0);
    let name = arguments::string("name", name)?;
    let tags = match tags {
        Some(tags) if tags.is_truthy()? => Some(tags),
        _ => None,
    };
    let key = tags::key(name, tags)?;
    let tags = tags.map(|tags| tags.clone().unbind());
    let mut labels = Some(Labels { name: name.clone().unbind(), tags });
    let added = sums(&mut object.buffer(py)?.lock()).add_renamed(&key, &mut labels, value);
    drop(labels); // those before, which can run Python code
    added.map_err(|why| arguments::not_added(&why, "total of", name))?;
    object.flush_if_due(slf)
}

fn entries<'a, 'py>(
    py: Python<'py>,
    totals: impl Iterator<Item = (&'a Labels, Number)>,
) -> PyResult<Bound<'py, PyList>> {
    let entries = objects::list(py)?;
    for (labels, value) in totals {
        let (name, value) = (labels.name.bind(py), number(py, value)?);
        entries.append(objects::tuple(py, [name, &value, &labels.tags(py)?])?)?;
    }
    Ok(entries)
}

fn number(py: Python<'_>, number: Number) -> PyResult<Bound<'_, PyAny>> {
    match number {
        Number::Int(int) => objects::integer(py, int).map(Bound::into_any),
        Number::Float(float) => objects::float(py, float).map(Bound::into_any),
    }
}

/// `time.time`, which sentry-streams asks, if it is not Python's own but a test's.
fn replaced_time(py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
    let time = interpreter::loaded(py, &interned::TIME, &interned::TIME)?;
    Ok(time.filter(|time| time.cast_exact::<PyCFunction>().is_err()).map(Bound::unbind))
}

/// Seconds since 1970.
fn wall_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Has the class take any arguments.
pub fn init_at_import(py: Python<'_>) {
    new::init_at_import::<BufferedMetricsBackend>(py);
}
