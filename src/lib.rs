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
mod logging;
#[cfg(feature = "python")]
mod metrics_buffer;
#[cfg(feature = "python")]
mod names;
#[cfg(feature = "python")]
mod settings;
#[cfg(feature = "python")]
mod stats;

#[cfg(feature = "python")]
#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::exceptions::PyImportError;
    use pyo3::ffi::{PyInterpreterState_Get, PyInterpreterState_Main};
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::delivery_buffer::DeliveryBuffer;
    #[pymodule_export]
    use crate::metrics_buffer::MetricsBuffer;
    #[pymodule_export]
    use crate::settings::{configure, on_backend_error};
    #[pymodule_export]
    use crate::stats::stats;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // SAFETY: an interpreter is attached, as `module` shows; both only return a pointer.
        if unsafe { PyInterpreterState_Get() != PyInterpreterState_Main() } {
            // Its settings would be the main interpreter's. PyO3 says so itself from CPython 3.12 on.
            let message = "arroyo_metrics_buffer._core does not support loading in subinterpreters";
            return Err(PyImportError::new_err(message));
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::fork::install_handlers()?;
        crate::metrics_buffer::count_cores();
        crate::names::install(module.py())?;
        crate::settings::install();
        crate::stats::install();
        crate::fast_path::install(&module.py().get_type::<MetricsBuffer>())?;
        crate::logging::install(module.py())
    }
}
