//! The Python class `MetricsBuffer`.

mod fast_path;
mod new;

use std::mem;
use std::num::NonZero;
use std::sync::OnceLock;
use std::thread;

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::shared::Shared;
use arroyo_metrics_buffer_core::sums::{NotAdded, Sums, Total};
use arroyo_metrics_buffer_core::totals;
use pyo3::exceptions::{
    PyAttributeError, PyException, PyMemoryError, PyOverflowError, PyRuntimeError,
};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use crate::arguments;
use crate::buffer::Buffer;
use crate::ending;
use crate::interned;
use crate::interpreter;
use crate::objects::{self, OrMemoryError};
use crate::stats;

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
pub struct MetricsBuffer {
    /// Whether pyo3 has written the fields. Until then the memory is all zero, so this reads as
    /// false. CPython 3.11 allocates an instance's `__dict__` before that, which may start the
    /// garbage collector, and that visits the object.
    is_constructed: bool,
    // A field and not an entry of the instance's `__dict__`: Python looks methods up faster while
    // the `__dict__` is empty.
    metrics: Shared<Backend>,
    /// Set by `__init__`; not by `__new__`, whose arguments may be those of a subclass.
    buffer: OnceLock<Buffer<Totals>>,
}

/// The attribute `metrics`, or `None` where it was deleted.
struct Backend(Option<Py<PyAny>>);

impl AtFork for Backend {}

#[pymethods]
impl MetricsBuffer {
    /// Called without arguments, whatever the class is called with: see [`new`].
    #[new]
    #[pyo3(
        signature = (),
        text_signature = "(metrics=None, *, flush_interval=None, clock=None)"
    )]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let metrics = Shared::new(Backend(None)).or_memory_error(py)?;
        Ok(Self { is_constructed: true, metrics, buffer: OnceLock::new() })
    }

    #[pyo3(signature = (metrics=None, *, flush_interval=None, clock=None))]
    fn __init__(
        slf: &Bound<'_, Self>,
        metrics: Option<Bound<'_, PyAny>>,
        flush_interval: Option<Bound<'_, PyAny>>,
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let flush_interval = match flush_interval {
            Some(seconds) => arguments::interval("flush_interval", &seconds)?,
            None => arroyo_flush_interval(py)?,
        };
        let metrics = match metrics {
            Some(metrics) => metrics,
            None => arroyo_metrics(py)?,
        };
        let buffer = Buffer::new(py, &stats::CONSUMER, shards(py)?, flush_interval, clock)?;
        this.buffer.set(buffer).map_err(|_| {
            let message =
                format_args!("MetricsBuffer.__init__() was called before, make a new buffer");
            objects::error::<PyRuntimeError>(py, message)
        })?;
        this.set_metrics(metrics.unbind());
        ending::remember(slf)
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
        let buffer = slf.get().buffer(py)?;
        add(buffer, name, duration, |totals| &mut totals.timers)?;
        if buffer.is_due(py)? { flush_through_python(slf) } else { Ok(()) }
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
        let buffer = slf.get().buffer(py)?;
        add(buffer, name, i128::from(delta), |totals| &mut totals.counters)?;
        if buffer.is_due(py)? { flush_through_python(slf) } else { Ok(()) }
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
        let buffer = slf.get().buffer(py)?;
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
    fn metrics(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let metrics = slf.get().metrics.lock().0.as_ref().map(|metrics| metrics.clone_ref(py));
        if let Some(metrics) = metrics {
            return Ok(metrics);
        }
        let class = slf.get_type().name()?;
        let message = format_args!("'{}' object has no attribute 'metrics'", class.to_str()?);
        Err(objects::error::<PyAttributeError>(py, message))
    }

    #[setter]
    fn set_metrics(&self, metrics: Py<PyAny>) {
        self.replace_metrics(Some(metrics));
    }

    // `mock.patch.object(buffer, "metrics")` deletes the attribute before it restores it.
    #[deleter]
    fn delete_metrics(&self) {
        self.replace_metrics(None);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if !self.is_constructed {
            return Ok(());
        }
        self.buffer.get().map_or(Ok(()), |buffer| buffer.traverse(&visit))?;
        // Waits for the lock, so that every pass of the collector visits the same object. No holder
        // of the lock waits for this thread.
        visit.call(&self.metrics.lock().0)
    }

    fn __clear__(&self) {
        self.replace_metrics(None);
    }
}

impl MetricsBuffer {
    #[inline]
    pub fn buffer(&self, py: Python<'_>) -> PyResult<&Buffer<Totals>> {
        self.buffer.get().ok_or_else(|| {
            let message =
                format_args!("MetricsBuffer.__init__() was not called, as a subclass has to");
            objects::error::<PyRuntimeError>(py, message)
        })
    }

    /// The timers and the counters that are pending.
    fn pending<'py>(&self, py: Python<'py>) -> PyResult<[Bound<'py, PyDict>; 2]> {
        let copy = |totals: &Totals| totals.copy(|name| name.clone_ref(py));
        let taken = self.buffer(py)?.snapshot(py, copy)?;
        let totals = &taken.contents;
        Ok([timers_by_name(py, totals)?, counters_by_name(py, totals)?])
    }

    fn replace_metrics(&self, metrics: Option<Py<PyAny>>) {
        let old = mem::replace(&mut *self.metrics.lock(), Backend(metrics));
        drop(old); // can run Python code, so after the guard is gone
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
    let added = with_text(name, |text| {
        sums(&mut buffer.lock()).add(text, name.as_ptr().addr(), new_name, delta)
    })?;
    added.map_err(|why| match why {
        NotAdded::OutOfRange => out_of_range(name),
        NotAdded::OutOfMemory => objects::no_memory(name.py()),
    })
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
    let buffer = buffer.get().buffer(py)?;
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
    let buffer = buffer.get().buffer(buffer.py())?;
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

/// Calls `flush()` so that an override or a mock of it is honoured.
#[cold]
pub fn flush_through_python(buffer: &Bound<'_, MetricsBuffer>) -> PyResult<()> {
    let py = buffer.py();
    let flush = || buffer.call_method0(interned::FLUSH.get(py)?).map(drop);
    buffer.get().buffer(py)?.flush_when_due(py, flush)
}

#[cold]
fn out_of_range(name: &Bound<'_, PyString>) -> PyErr {
    // Not `str()` of it, which a subclass's `__str__` might make fail.
    let text = name.to_str().unwrap_or("(not UTF-8)");
    let message = format_args!("counter {text} would leave 64 bits, nothing was added");
    objects::error::<PyOverflowError>(name.py(), message)
}

/// Has `body` use the text of a name. Two names have the same text exactly if they are equal
/// strings. A subclass's methods are not called.
fn with_text<R>(name: &Bound<'_, PyString>, body: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    if let Ok(text) = name.to_str() {
        return Ok(body(text.as_bytes()));
    }
    // Lone surrogates, which a str may contain and UTF-8 may not.
    let py = name.py();
    let encode = py.get_type::<PyString>().getattr(interned::ENCODE.get(py)?)?;
    let how = (interned::UTF_8.get(py)?, interned::SURROGATEPASS.get(py)?);
    let text: Bound<'_, PyBytes> = encode.call1((name, how.0, how.1))?.cast_into()?;
    Ok(body(text.as_bytes()))
}

static CORES: OnceLock<usize> = OnceLock::new();

/// Counts the cores, and puts the fast paths in front of the class's methods.
pub fn init_at_import(py: Python<'_>) -> PyResult<()> {
    // Counting them reads files on Linux, which takes as long as thousands of calls.
    CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
    let class = py.get_type::<MetricsBuffer>();
    new::init_at_import(&class);
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
