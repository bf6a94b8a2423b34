//! What waits to be sent, and when it is due: conservation and throttling, without Python.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fork::{self, AtFork};
use crate::lock::{MutexGuard, Shared};

/// What a buffer accumulates between two flushes: entries, each of which is sent by one call of the
/// backend.
pub trait Contents: AtFork + Default {
    /// What is left over when two are merged, for the caller to drop outside the lock.
    type Leftover;

    /// How many entries there are.
    fn entries(&self) -> usize;

    /// Forgets the first `count` in the order of sending, or all if there are fewer.
    fn forget_first(&mut self, count: usize);

    /// Puts `newer` behind these.
    fn merge(&mut self, newer: Self) -> Self::Leftover;

    /// How many samples had to be dropped since the last flush that succeeded.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Contents that several threads add to, that any of them may take, and that it may put back.
pub struct Pending<C: Contents> {
    contents: Shared<C>,
    throttle: Throttle,
}

impl<C: Contents> Pending<C> {
    /// Empty contents, last flushed at `now`. Both in seconds.
    pub fn new(flush_interval: f64, now: f64) -> Self {
        Self {
            contents: Shared::new(C::default()),
            throttle: Throttle { flush_interval, last_flush: AtomicU64::new(now.to_bits()) },
        }
    }

    /// The contents, to add to or to look at. See [`Shared::lock`] for what may be done meanwhile.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, C> {
        self.contents.lock()
    }

    /// When a flush is due; see [`Throttle`].
    #[inline]
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Takes all there is, which from now on is the caller's to send or to put back.
    pub fn take(&self) -> Taken<C> {
        Taken { contents: mem::take(&mut *self.lock()), generation: fork::generation() }
    }

    /// Puts back what could not be sent, before what has come since.
    pub fn put_back(&self, unsent: C) -> C::Leftover {
        let mut contents = self.lock();
        let newer = mem::replace(&mut *contents, unsent);
        contents.merge(newer)
    }
}

/// What one flush took.
pub struct Taken<C> {
    /// What to send.
    pub contents: C,
    generation: u64,
}

impl<C> Taken<C> {
    /// Whether the process forked meanwhile and this is the child: then the contents are the
    /// parent's to send.
    #[inline]
    pub fn is_the_parents(&self) -> bool {
        self.generation != fork::generation()
    }
}

/// Lets one caller through once more than an interval has passed since the last flush began.
pub struct Throttle {
    /// Seconds.
    flush_interval: f64,
    /// The bits of an `f64`, in the seconds of the buffer's clock. Relaxed everywhere: it orders
    /// nothing but itself, the contents have their lock.
    last_flush: AtomicU64,
}

impl Throttle {
    /// Whether the caller has to flush at `now`. Of several that ask at once, one has to.
    #[inline]
    pub fn is_due(&self, now: f64) -> bool {
        let last = self.last_flush.load(Ordering::Relaxed);
        now - f64::from_bits(last) > self.flush_interval
            && self
                .last_flush
                .compare_exchange(last, now.to_bits(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// A flush begins at `now`, due or not.
    pub fn restart(&self, now: f64) {
        self.last_flush.store(now.to_bits(), Ordering::Relaxed);
    }
}
