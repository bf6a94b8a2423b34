//! A value that several threads share: behind a lock, which every fork takes.

use std::mem;

use crate::fork::{self, AtFork, Registration};
use crate::lock::{Mutex, MutexGuard, mutex};
use crate::memory::{Fixed, OutOfMemory};

/// A value that threads share, in a mutex that every fork takes.
///
/// A thread holds the lock for nanoseconds and calls no Python meanwhile. So it never waits for the
/// interpreter, and a thread that holds the interpreter may wait for the lock.
pub struct Shared<T: AtFork> {
    // Dropped before `mutex`, as `register` asks.
    _registration: Registration,
    mutex: Fixed<Mutex<T>>,
}

impl<T: AtFork> Shared<T> {
    /// Shares `value`, whose lock every fork takes from now until this is dropped.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let mutex = Fixed::new(mutex(value))?;
        // SAFETY: the mutex stays where it is, and outlives the registration.
        let registration = unsafe { fork::register(&mutex) }?;
        Ok(Self { _registration: registration, mutex })
    }

    /// Waits for the lock. Nothing that could run Python code may be called or dropped under the
    /// guard.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.mutex.lock()
    }
}

/// Shares the value of a static mutex, whose lock every fork takes from now on.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn share<T: AtFork>(mutex: &'static Mutex<T>) -> Result<(), OutOfMemory> {
    // SAFETY: a static stays where it is, for ever.
    mem::forget(unsafe { fork::register(mutex) }?);
    Ok(())
}
