//! What two calls of sentry-streams' `BufferedMetricsBackend` have in common if they are of one metric.

use arroyo_metrics_buffer_core::memory::OutOfMemory;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::objects::{self, OrMemoryError};
use crate::{arguments, text};

/// Stands in front of each tag. No text in UTF-8 has this byte.
const SEPARATOR: u8 = 0xFF;

/// The key of a metric: its name, and the set of its tags, each of which sentry-streams normalises to
/// `key:value` with "_" for each "|" in the value.
pub fn key(name: &Bound<'_, PyString>, tags: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<u8>> {
    let py = name.py();
    let mut key = Vec::new();
    text::with(name, |name| push(&mut key, name))?.or_memory_error(py)?;
    if let Some(tags) = tags {
        let tags = normalized(tags)?;
        let each = || tags.split(|byte| *byte == SEPARATOR).skip(1);
        let mut sorted = Vec::new();
        sorted.try_reserve_exact(each().count()).map_err(|_| objects::no_memory(py))?;
        sorted.extend(each());
        sorted.sort_unstable();
        sorted.dedup();
        for tag in sorted {
            push(&mut key, &[SEPARATOR]).and_then(|()| push(&mut key, tag)).or_memory_error(py)?;
        }
    }
    Ok(key)
}

/// The tags, in their own order.
fn normalized(tags: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let py = tags.py();
    let tags = match tags.cast_exact::<PyDict>() {
        Ok(tags) => tags.clone(),
        Err(_) => py.get_type::<PyDict>().call1((tags,))?.cast_into()?,
    };
    let mut normalized = Vec::new();
    for (key, value) in objects::pairs(&tags)? {
        let key = match key.cast_into::<PyString>() {
            Ok(key) => key,
            Err(other) => other.into_inner().str()?,
        };
        let value = arguments::string("the value of a tag", &value)?;
        push(&mut normalized, &[SEPARATOR]).or_memory_error(py)?;
        text::with(&key, |key| push(&mut normalized, key))?.or_memory_error(py)?;
        push(&mut normalized, b":").or_memory_error(py)?;
        let start = normalized.len();
        text::with(value, |value| push(&mut normalized, value))?.or_memory_error(py)?;
        for byte in normalized.iter_mut().skip(start) {
            if *byte == b'|' {
                *byte = b'_';
            }
        }
    }
    Ok(normalized)
}

fn push(to: &mut Vec<u8>, more: &[u8]) -> Result<(), OutOfMemory> {
    to.try_reserve(more.len())?;
    to.extend_from_slice(more);
    Ok(())
}
