//! What time it is, in seconds.

use coarsetime::{Duration, Instant};
use pyo3::prelude::*;

use crate::{arguments, settings};

/// Where a buffer gets the time from.
pub enum Clock {
    /// The system's monotonic coarse clock. A reading takes a few nanoseconds; on Linux the clock
    /// moves on every 1 to 4 ms.
    Native,
    /// A callable that returns seconds, for tests.
    Callable(Py<PyAny>),
}

impl Clock {
    /// The callable that a constructor was given, or else `install()`; `None` if neither was.
    pub fn chosen(py: Python<'_>, clock: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Self>> {
        let clock = match clock {
            Some(clock) => Some(arguments::callable("clock", clock)?),
            None => settings::clock(py),
        };
        Ok(clock.map(Self::Callable))
    }

    #[inline]
    pub fn now(&self, py: Python<'_>) -> PyResult<f64> {
        match self {
            Self::Native => Ok(native_now()),
            Self::Callable(clock) => call(clock.bind(py)),
        }
    }
}

#[inline]
pub fn native_now() -> f64 {
    let ticks = Instant::now_without_cache_update().as_ticks();
    Duration::from_ticks(ticks).as_f64()
}

#[cold]
fn call(clock: &Bound<'_, PyAny>) -> PyResult<f64> {
    const WHAT: &str = "the return value of clock";
    arguments::time(WHAT, &clock.call0()?)
}
