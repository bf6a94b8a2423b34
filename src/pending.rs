//! What waits to be sent, and when it is due: conservation and throttling, without Python.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fork::{self, AtFork};
use crate::lock::{MutexGuard, Shared};
use crate::sums::Sums;

/// What a buffer accumulates between two flushes.
pub trait Contents: AtFork + Default {
    /// What is left over when two are merged, for the caller to drop outside the lock.
    type Leftover;

    /// Puts `newer` behind these.
    fn merge(&mut self, newer: Self) -> Self::Leftover;
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

/// Contents of a `MetricsBuffer`; `N` is what it has for a name.
#[derive(Debug)]
pub struct Totals<N> {
    /// Seconds by name.
    pub timers: Sums<N, f64>,
    /// Counts by name.
    pub counters: Sums<N, i128>,
}

impl<N> Default for Totals<N> {
    fn default() -> Self {
        Self { timers: Sums::default(), counters: Sums::default() }
    }
}

impl<N> Totals<N> {
    /// How many totals there are.
    pub fn len(&self) -> usize {
        self.timers.len() + self.counters.len()
    }

    /// Whether there is no total.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the first `count` in the order of sending: timers, then counters.
    pub fn forget_first(&mut self, count: usize) {
        let timers = self.timers.len();
        self.timers.forget_first(count);
        self.counters.forget_first(count.saturating_sub(timers));
    }
}

impl<N: Send + 'static> Contents for Totals<N> {
    type Leftover = Vec<N>;

    fn merge(&mut self, newer: Self) -> Vec<N> {
        let mut leftover = self.timers.merge(newer.timers);
        leftover.extend(self.counters.merge(newer.counters));
        leftover
    }
}

impl<N: Send + 'static> AtFork for Totals<N> {
    /// The parent reports what was pending. Leaked rather than dropped: names are Python objects,
    /// and a child has at most a few dozen of them, whose memory it shares with its parent.
    fn after_fork_in_child(&mut self) {
        mem::forget(mem::take(self));
    }
}
