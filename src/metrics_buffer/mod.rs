//! The Python class `MetricsBuffer`.

mod fast_path;

use std::mem;
use std::num::NonZero;
use std::sync::OnceLock;
use std::thread;

use arroyo_metrics_buffer_core::sums::{Sums, Total};
use arroyo_metrics_buffer_core::totals;
use pyo3::exceptions::{PyAttributeError, PyException, PyMemoryError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::new::{self, TakesAnyArguments};
use crate::object::Object;
use crate::{arguments, interned, interpreter, objects, stats, text};

pub type Name = Py<PyString>;
pub type Totals = totals::Totals<Name>;

/// arroyo's `METRICS_FREQUENCY_SEC`, the same in each of the Makefile's `RELEASES`.
const FLUSH_INTERVAL: f64 = 1.0;

/// A thread-safe metrics buffer with the interface of arroyo's.
///
/// It sums timings and counts by name and sends the sums to a metrics backend, at most once per
/// flush interval, from whichever thread makes the next call. Every method may be called from any
/// thread at any time, from inside the backend and after a fork too. Nothing is lost and nothing is
/// counted twice.
///
/// Args:
///     metrics: The backend, an object with `timing(name, value)` and `increment(name, value)`.
///         None stands for `arroyo.utils.metrics.get_metrics()`, as in arroyo's own class, which
///         looks that function up in `arroyo.processing.processor`.
///     flush_interval: Seconds that have to pass before a call sends what is pending. With 0 or
///         less every call sends it. None stands for
///         `arroyo.processing.processor.METRICS_FREQUENCY_SEC` as it is now, and for the 1.0 that
///         it is in every release where that module is not loaded.
///     clock: A callable that returns seconds, for tests. None stands for the one given to
///         `install()`, by default the system's monotonic coarse clock, which no step of the wall
///         clock moves.
///
/// Raises:
///     ImportError: There is no `metrics` and arroyo can't be imported.
///     TypeError: `flush_interval` is not a number, or `clock` not callable.
///     ValueError: `flush_interval` is NaN.
///     RuntimeError: The buffer is initialised already.
// Frozen: a class with `&mut self` methods raises "Already borrowed" when threads meet in it.
#[pyclass(frozen, subclass, dict, weakref, module = "arroyo_metrics_buffer")]
pub struct MetricsBuffer(Object<Totals>);

impl TakesAnyArguments for MetricsBuffer {
    fn pyo3_new() -> &'static OnceLock<ffi::newfunc> {
        static NEW: OnceLock<ffi::newfunc> = OnceLock::new();
        &NEW
    }
}

#[pymethods]
impl MetricsBuffer {
    /// Called without arguments, whatever the class is called with: see [`new`].
    #[new]
    #[pyo3(
        signature = (),
        text_signature = "(metrics=None, *, flush_interval=None, clock=None)"
    )]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Object::new(py).map(Self)
    }

    #[pyo3(signature = (metrics=None, *, flush_interval=None, clock=None))]
    fn __init__(
        slf: &Bound<'_, Self>,
        metrics: Option<Bound<'_, PyAny>>,
        flush_interval: Option<Bound<'_, PyAny>>,
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let flush_interval = match flush_interval {
            Some(seconds) => arguments::interval("flush_interval", &seconds)?,
            None => arroyo_flush_interval(py)?,
        };
        let metrics = match metrics {
            Some(metrics) => metrics,
            None => arroyo_metrics(py)?,
        };
        let clock = Clock::chosen(py, clock)?.unwrap_or(Clock::Native);
        let now = clock.now(py)?;
        let buffer = Buffer::new(py, &stats::CONSUMER, shards(py)?, flush_interval, clock, now)?;
        slf.get().0.init(slf, metrics.unbind(), buffer)
    }

    /// Add to the sum of a timer, then flush if the flush interval has passed.
    ///
    /// Args:
    ///     metric: The timer's name.
    ///     duration: What to add, usually seconds. NaN and infinities are summed like any float.
    ///
    /// Raises:
    ///     TypeError: `metric` is not a str or `duration` not a number. Nothing was added.
    ///     BaseException: What the backend raised, if this call flushed; see `flush()`.
    fn incr_timing(
        slf: &Bound<'_, Self>,
        metric: &Bound<'_, PyAny>,
        duration: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let name = arguments::string("metric", metric)?;
        let duration = arguments::float("duration", duration)?;
        add(slf.get().0.buffer(py)?, name, duration, |totals| &mut totals.timers)?;
        slf.get().0.flush_if_due(slf)
    }

    /// Add to the sum of a counter, then flush if the flush interval has passed.
    ///
    /// Args:
    ///     metric: The counter's name.
    ///     delta: What to add, a count.
    ///
    /// Raises:
    ///     TypeError: `metric` is not a str or `delta` not an integer. Nothing was added.
    ///     OverflowError: `delta` or the sum does not fit in 64 bits. Nothing was added.
    ///     BaseException: What the backend raised, if this call flushed; see `flush()`.
    fn incr_counter(
        slf: &Bound<'_, Self>,
        metric: &Bound<'_, PyAny>,
        delta: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let name = arguments::string("metric", metric)?;
        let delta = arguments::integer("delta", delta)?;
        add(slf.get().0.buffer(py)?, name, i128::from(delta), |totals| &mut totals.counters)?;
        slf.get().0.flush_if_due(slf)
    }

    /// Send every sum to the backend: timers, then counters, each in the order of first touch.
    ///
    /// Other threads go on adding meanwhile; what they add is pending for the next flush.
    ///
    /// Raises:
    ///     BaseException: What the backend raised. What it had not accepted by then, the sum it was
    ///         called with included, is pending again. With `install(on_backend_error="log")` it is
    ///         logged, unless it is no Exception, as KeyboardInterrupt is none.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let buffer = slf.get().0.buffer(py)?;
        // What others' code has put into the tables that `_patching/private_names.py` lends it.
        let tables = slf.getattr_opt(interned::TABLES.get(py)?)?;
        if let Some(tables) = tables.filter(|tables| !tables.is_none()) {
            tables.call_method1(interned::ABSORB.get(py)?, (slf,))?;
        }
        buffer.flush(py, |totals, sending| {
            let metrics = slf.getattr(interned::METRICS.get(py)?)?;
            sending.each(
                totals.timers.iter(),
                &metrics,
                &interned::TIMING,
                |timing, (name, seconds)| {
                    timing.call1((name, objects::float(py, seconds)?)).map(drop)
                },
            )?;
            sending.each(
                totals.counters.iter(),
                &metrics,
                &interned::INCREMENT,
                |increment, (name, count)| {
                    increment.call1((name, objects::integer(py, count)?)).map(drop)
                },
            )
        })
    }

    /// Tell what is pending, without flushing it.
    ///
    /// Returns:
    ///     The timers and the counters, each a dict by name in the order of first touch.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let [timers, counters] = self.pending(py)?;
        objects::tuple(py, [&timers, &counters])
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let class = slf.get_type().name()?;
        let [timers, counters] = slf.get().pending(py)?;
        let fields = objects::tuple(py, [&class, &timers, &counters])?;
        interned::METRICS_BUFFER_REPR.get(py)?.rem(fields)
    }

    /// The backend that flushes send to. It may be replaced at any time, from any thread.
    #[getter]
    fn metrics<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if let Some(metrics) = slf.get().0.backend(py) {
            return Ok(metrics);
        }
        let class = slf.get_type().name()?;
        let message = format_args!("'{}' object has no attribute 'metrics'", class.to_str()?);
        Err(objects::error::<PyAttributeError>(py, message))
    }

    #[setter]
    fn set_metrics(&self, metrics: Py<PyAny>) {
        self.0.set_backend(Some(metrics));
    }

    // `mock.patch.object(buffer, "metrics")` deletes the attribute before it restores it.
    #[deleter]
    fn delete_metrics(&self) {
        self.0.set_backend(None);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.traverse(&visit)
    }

    fn __clear__(&self) {
        self.0.set_backend(None);
    }
}

impl MetricsBuffer {
    /// The timers and the counters that are pending.
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<[Bound<'py, PyDict>; 2]> {
        let copy = |totals: &Totals| totals.copy(|name| name.clone_ref(py));
        let taken = self.0.buffer(py)?.snapshot(py, copy)?;
        let totals = &taken.contents;
        Ok([timers_by_name(py, totals)?, counters_by_name(py, totals)?])
    }
}

/// Adds to a total that may be a new one. Names that are pending have the [fast path](fast_path).
fn add<V: Total>(
    buffer: &Buffer<Totals>,
    name: &Bound<'_, PyString>,
    delta: V,
    sums: impl Fn(&mut Totals) -> &mut Sums<Name, V>,
) -> PyResult<()> {
    let new_name = || name.clone().unbind();
    let added = text::with(name, |text| {
        sums(&mut buffer.lock()).add(text, name.as_ptr().addr(), new_name, delta)
    })?;
    added.map_err(|why| arguments::not_added(&why, "counter", name))
}

fn timers_by_name<'py>(py: Python<'py>, totals: &Totals) -> PyResult<Bound<'py, PyDict>> {
    let timers = objects::dict(py)?;
    for (name, seconds) in totals.timers.iter() {
        timers.set_item(name, objects::float(py, seconds)?)?;
    }
    Ok(timers)
}

fn counters_by_name<'py>(py: Python<'py>, totals: &Totals) -> PyResult<Bound<'py, PyDict>> {
    let counters = objects::dict(py)?;
    for (name, count) in totals.counters.iter() {
        counters.set_item(name, objects::integer(py, count)?)?;
    }
    Ok(counters)
}

/// Take the timers or the counters that are pending in a buffer, to count them elsewhere.
///
/// Safe to call from any thread.
///
/// Args:
///     buffer: The buffer.
///     counters: Whether to take the counters, or the timers.
///
/// Returns:
///     Totals by name, in the order of first touch.
#[pyfunction]
#[pyo3(signature = (buffer, *, counters))]
pub fn drain_totals<'py>(
    buffer: &Bound<'py, MetricsBuffer>,
    counters: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let py = buffer.py();
    let buffer = buffer.get().0.buffer(py)?;
    if counters {
        let part = |totals: &mut Totals| Totals {
            counters: mem::take(&mut totals.counters),
            ..Totals::default()
        };
        buffer.drain(py, part, |totals| counters_by_name(py, totals))
    } else {
        let part = |totals: &mut Totals| Totals {
            timers: mem::take(&mut totals.timers),
            ..Totals::default()
        };
        buffer.drain(py, part, |totals| timers_by_name(py, totals))
    }
}

/// Move totals that were counted elsewhere to a buffer, which does not flush for it.
///
/// Safe to call from any thread. Each total is in one of the two, whatever is raised. What the
/// buffer does not take stays where it is: a name that is no str, a total that is no number, a
/// count that does not fit in 64 bits, or would not with what is pending.
///
/// Args:
///     totals: Totals by name.
///     buffer: The buffer.
///     counters: Whether they are counters, or timers.
#[pyfunction]
#[pyo3(signature = (totals, buffer, *, counters))]
pub fn move_totals(
    totals: &Bound<'_, PyDict>,
    buffer: &Bound<'_, MetricsBuffer>,
    counters: bool,
) -> PyResult<()> {
    let buffer = buffer.get().0.buffer(buffer.py())?;
    if counters {
        move_each(
            totals,
            |total| arguments::integer("a total", total),
            |name, count| add(buffer, name, i128::from(count), |totals| &mut totals.counters),
        )
    } else {
        move_each(
            totals,
            |total| arguments::float("a total", total),
            |name, seconds| add(buffer, name, seconds, |totals| &mut totals.timers),
        )
    }
}

fn move_each<T>(
    totals: &Bound<'_, PyDict>,
    number: impl Fn(&Bound<'_, PyAny>) -> PyResult<T>,
    add: impl Fn(&Bound<'_, PyString>, T) -> PyResult<()>,
) -> PyResult<()> {
    let py = totals.py();
    for item in objects::items(totals)? {
        let (name, total): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let moved = arguments::string("a name", &name).and_then(|text| {
            let number = number(&total)?; // can run code that changes the totals
            if totals.get_item(&name)?.is_some_and(|now| now.is(&total)) {
                add(text, number)?;
                totals.del_item(&name)?;
            }
            Ok(())
        });
        match moved {
            Err(error)
                if error.is_instance_of::<PyMemoryError>(py)
                    || !error.is_instance_of::<PyException>(py) =>
            {
                return Err(error);
            }
            // Moved, or put there by others, and it keeps no other total from being sent.
            _ => {}
        }
    }
    Ok(())
}

static CORES: OnceLock<usize> = OnceLock::new();

/// Counts the cores, and puts the fast paths in front of the class's methods.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    // Counting them reads files on Linux, which takes as long as thousands of calls.
    CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
    let class = py.get_type::<MetricsBuffer>();
    new::init_at_import::<MetricsBuffer>(py);
    fast_path::init_at_import(&class)
}

/// How many threads can add at the same time without waiting for each other.
fn shards(py: Python<'_>) -> PyResult<usize> {
    if interpreter::is_gil_enabled(py)? {
        return Ok(1);
    }
    // More than there are cores, so that few running threads share a shard.
    Ok(4 * CORES.get().copied().unwrap_or(1))
}

/// The interval in arroyo's module, if the module is loaded and has it already.
fn arroyo_flush_interval(py: Python<'_>) -> PyResult<f64> {
    let seconds =
        interpreter::loaded(py, &interned::MODULE_PROCESSOR, &interned::METRICS_FREQUENCY_SEC)?;
    Ok(seconds.and_then(|seconds| seconds.extract().ok()).unwrap_or(FLUSH_INTERVAL))
}

/// The backend that arroyo's class would use. The function is looked up where that class does so.
fn arroyo_metrics(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    match interpreter::loaded(py, &interned::MODULE_PROCESSOR, &interned::GET_METRICS)? {
        Some(get_metrics) => get_metrics.call0(),
        None => py
            .import(interned::MODULE_METRICS.get(py)?)?
            .call_method0(interned::GET_METRICS.get(py)?),
    }
}
