//! Allocations that may fail: Rust's own `Box` ends the process then.

use std::collections;
use std::ops::Deref;
use std::ptr::NonNull;

/// There is no memory. What was to be done was not done.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl From<collections::TryReserveError> for OutOfMemory {
    fn from(_: collections::TryReserveError) -> Self {
        Self
    }
}

impl From<indexmap::TryReserveError> for OutOfMemory {
    fn from(_: indexmap::TryReserveError) -> Self {
        Self
    }
}

/// A `Box`.
pub fn boxed<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let place = Box::into_raw(boxed_slice([value])?);
    // SAFETY: a slice of one value has the layout of the value, so a `Box` of the value frees what
    // the `Box` of the slice allocated. Nothing else has the pointer.
    Ok(unsafe { Box::from_raw(place.cast::<T>()) })
}

/// A `Box` of a slice.
pub fn boxed_slice<T>(
    values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
) -> Result<Box<[T]>, OutOfMemory> {
    let values = values.into_iter();
    let mut slice = Vec::new();
    slice.try_reserve_exact(values.len())?;
    slice.extend(values.take(slice.capacity()));
    Ok(slice.into_boxed_slice())
}

/// A value on the heap that others may have pointers to, which a `Box` does not allow.
pub struct Fixed<T>(NonNull<T>);

impl<T> Fixed<T> {
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        Ok(Self(NonNull::from(Box::leak(boxed(value)?))))
    }
}

impl<T> Deref for Fixed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the value is there until this is dropped, and nobody has it mutably.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: it was a box when this was made, and is freed once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: this owns the value, and gives shared references to it.
unsafe impl<T: Send> Send for Fixed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Fixed<T> {}
