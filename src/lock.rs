//! The lock around everything that several threads share.

use std::sync::Arc;
use std::thread;

use parking_lot::{Mutex, MutexGuard};

use crate::fork::{self, AtFork};

/// A mutex that never parks a waiter and that a fork leaves whole.
///
/// What is done with it held takes nanoseconds and calls no Python: the holder never waits for the
/// interpreter, so a thread that holds the interpreter may wait for the lock.
pub struct Lock<T: AtFork>(Arc<Mutex<T>>);

impl<T: AtFork> Lock<T> {
    /// A lock around `value`, taken before every fork from now until it is dropped.
    pub fn new(value: T) -> Self {
        let mutex = Arc::new(Mutex::new(value));
        fork::register(&mutex);
        Self(mutex)
    }

    /// Waits for the lock. Nothing that could run Python code may be called or dropped under the
    /// guard.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        acquire(|| self.0.try_lock())
    }
}

impl<T: AtFork> Drop for Lock<T> {
    fn drop(&mut self) {
        fork::unregister(&self.0);
    }
}

/// Tries until it gets the lock, yielding the processor between tries.
///
/// Not `Mutex::lock`: that parks waiters in a table of the whole process, whose own locks no
/// at-fork handler can reach. A child forked while another thread held one of those hangs in its
/// first contended unlock. Waits are as short as the sections, so parking would gain nothing.
#[inline]
pub(crate) fn acquire<G>(try_lock: impl Fn() -> Option<G>) -> G {
    loop {
        if let Some(guard) = try_lock() {
            return guard;
        }
        thread::yield_now();
    }
}
