//! `MetricsBuffer` with empty methods: what a call into pyo3 costs by itself.

#[pyo3::pymodule(gil_used = false)]
mod empty_method {
    use pyo3::prelude::*;
    use pyo3::types::PyString;

    #[pyclass(frozen, subclass, dict, weakref)]
    struct Empty;

    #[pymethods]
    impl Empty {
        #[new]
        fn new() -> Self {
            Self
        }

        fn incr_timing(&self, metric: &Bound<'_, PyString>, duration: f64) {
            let _ = (metric, duration);
        }

        fn incr_counter(&self, metric: &Bound<'_, PyString>, delta: i64) {
            let _ = (metric, delta);
        }
    }
}
