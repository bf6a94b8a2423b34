//! The text of a `str`, as bytes to compare.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::interned;

/// Has `body` use the text of a string. Two strings have the same text exactly if they are equal. A
/// subclass's methods are not called.
pub fn with<R>(string: &Bound<'_, PyString>, body: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    if let Ok(text) = string.to_str() {
        return Ok(body(text.as_bytes()));
    }
    // Lone surrogates, which a str may contain and UTF-8 may not.
    let py = string.py();
    let encode = py.get_type::<PyString>().getattr(interned::ENCODE.get(py)?)?;
    let how = (interned::UTF_8.get(py)?, interned::SURROGATEPASS.get(py)?);
    let text: Bound<'_, PyBytes> = encode.call1((string, how.0, how.1))?.cast_into()?;
    Ok(body(text.as_bytes()))
}
