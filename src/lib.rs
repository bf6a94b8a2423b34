//! Thread-safe metrics buffers for sentry-arroyo: the Python extension.
//!
//! What the buffers do without Python is in the crate `arroyo-metrics-buffer-core`.

mod added;
mod arguments;
mod buffer;
mod buffered_backend;
mod clock;
mod delivery_buffer;
mod ending;
mod interned;
mod interpreter;
mod logging;
mod metrics_buffer;
mod new;
mod object;
mod objects;
mod reporting;
mod settings;
mod stats;
mod tags;
mod text;

#[pyo3::pymodule(gil_used = false)]
mod _core {
    use arroyo_metrics_buffer_core::fork;
    use pyo3::exceptions::PyImportError;
    use pyo3::ffi::{PyInterpreterState_Get, PyInterpreterState_Main};
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::buffered_backend::BufferedMetricsBackend;
    #[pymodule_export]
    use crate::delivery_buffer::DeliveryBuffer;
    #[pymodule_export]
    use crate::ending::{buffers, fork_generation, report_if_ending, set_ending};
    #[pymodule_export]
    use crate::metrics_buffer::{MetricsBuffer, drain_totals, move_totals};
    #[pymodule_export]
    use crate::settings::{configure, on_backend_error};
    #[pymodule_export]
    use crate::stats::stats;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // SAFETY: an interpreter is attached, as `module` shows; both only return a pointer.
        if unsafe { PyInterpreterState_Get() != PyInterpreterState_Main() } {
            // Its settings would be the main interpreter's. From CPython 3.12 on PyO3 refuses too.
            let message = "arroyo_metrics_buffer._core does not support loading in subinterpreters";
            return Err(PyImportError::new_err(message));
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        fork::install_handlers()?;
        crate::interned::init_at_import(module.py())?;
        crate::settings::init_at_import(module.py())?;
        crate::stats::init_at_import(module.py())?;
        crate::ending::init_at_import(module.py())?;
        crate::metrics_buffer::init_at_import(module.py())?;
        crate::buffered_backend::init_at_import(module.py());
        crate::logging::init_at_import(module.py())
    }
}
