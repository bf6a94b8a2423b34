//! Thread-safe metrics buffers for sentry-arroyo.
//!
//! [`sums`], [`pending`], [`lock`] and [`fork`] are the core and know nothing of Python; the rest
//! is the door to it.

pub mod fork;
pub mod lock;
pub mod pending;
pub mod sums;

#[cfg(feature = "python")]
mod arguments;
#[cfg(feature = "python")]
mod clock;
#[cfg(feature = "python")]
mod logging;
#[cfg(feature = "python")]
mod metrics_buffer;
#[cfg(feature = "python")]
mod settings;

#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::metrics_buffer::MetricsBuffer;
    #[pymodule_export]
    use crate::settings::configure;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::fork::install_handlers()?;
        crate::logging::install(module.py())
    }
}
