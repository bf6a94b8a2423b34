//! Thread-safe metrics buffers for sentry-arroyo.
//!
//! The public modules are the core and know nothing of Python; the rest is the doors to it.

pub mod deliveries;
pub mod fork;
pub mod lock;
pub mod pending;
pub mod sums;
mod sync;
pub mod totals;

#[cfg(feature = "python")]
mod arguments;
#[cfg(feature = "python")]
mod buffer;
#[cfg(feature = "python")]
mod clock;
#[cfg(feature = "python")]
mod delivery_buffer;
#[cfg(feature = "python")]
mod fast_path;
#[cfg(feature = "python")]
mod keywords;
#[cfg(feature = "python")]
mod logging;
#[cfg(feature = "python")]
mod metrics_buffer;
#[cfg(feature = "python")]
mod settings;
#[cfg(feature = "python")]
mod stats;

#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::delivery_buffer::DeliveryBuffer;
    #[pymodule_export]
    use crate::metrics_buffer::MetricsBuffer;
    #[pymodule_export]
    use crate::settings::configure;
    #[pymodule_export]
    use crate::stats::stats;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::fork::install_handlers()?;
        crate::metrics_buffer::count_cores();
        crate::stats::install();
        crate::fast_path::install(&module.py().get_type::<MetricsBuffer>())?;
        crate::logging::install(module.py())
    }
}
