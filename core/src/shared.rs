//! A value that several threads share: behind a lock, which every fork takes.

use std::sync::Arc;

use crate::fork::{self, AtFork, Registration};
use crate::lock::{Mutex, MutexGuard, mutex};

/// A value that threads share, in a mutex that every fork takes.
///
/// A thread holds the lock for nanoseconds and calls no Python meanwhile. So it never waits for the
/// interpreter, and a thread that holds the interpreter may wait for the lock.
pub struct Shared<T: AtFork> {
    // Dropped before `mutex`, as `Registration` asks.
    _registration: Registration,
    mutex: Arc<Mutex<T>>,
}

impl<T: AtFork> Shared<T> {
    /// Shares `value`, whose lock every fork takes from now until this is dropped.
    pub fn new(value: T) -> Self {
        let mutex = Arc::new(mutex(value));
        Self { _registration: fork::register(mutex.clone()), mutex }
    }

    /// Waits for the lock. Nothing that could run Python code may be called or dropped under the
    /// guard.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.mutex.lock()
    }
}
