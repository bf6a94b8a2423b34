//! The lock around everything that several threads share: it never parks.

use parking_lot::lock_api;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{set, yield_now};

/// parking_lot's mutex, on a lock that never parks.
pub type Mutex<T> = lock_api::Mutex<NeverParks, T>;
/// What gives access to the value of a [`Mutex`].
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, NeverParks, T>;

/// A mutex of `value`, unlocked.
#[cfg(not(loom))]
pub const fn mutex<T>(value: T) -> Mutex<T> {
    Mutex::new(value)
}

/// A mutex of `value`, unlocked. It is no constant, since loom's atomics belong to an execution.
#[cfg(loom)]
pub fn mutex<T>(value: T) -> Mutex<T> {
    Mutex::from_raw(NeverParks(AtomicBool::new(false)), value)
}

/// A lock whose waiters yield the processor until they get it.
///
/// parking_lot's own lock parks them in a table of the whole process, whose locks no at-fork handler
/// can reach: a child that is forked while another thread holds one of those hangs in its first
/// contended unlock. Waits are as short as what is done under the lock, so parking would gain
/// nothing; and without waiters to look for, unlocking is a plain store.
// Aligned, so that no two locks and what they guard share a cache line, or one of the pairs in which
// processors fetch them: threads that use different locks shall not slow each other down.
#[repr(align(128))]
pub struct NeverParks(AtomicBool);

// SAFETY: `try_lock` returns true to one caller only until `unlock` is called, since `set` returns
// false once and then true; Acquire and Release make what was done under the lock visible to the
// next holder.
unsafe impl lock_api::RawMutex for NeverParks {
    // The initial value of every mutex, not a shared one.
    #[allow(clippy::declare_interior_mutable_const)]
    #[cfg(not(loom))]
    const INIT: Self = Self(AtomicBool::new(false));
    #[cfg(loom)]
    const INIT: Self = panic!("see mutex()");

    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock(&self) {
        while !self.try_lock() {
            yield_now();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        !set(&self.0, Ordering::Acquire)
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}
