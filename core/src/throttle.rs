//! When a flush is due.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Lets one caller through once more than an interval has passed since the last flush began.
pub struct Throttle {
    /// Seconds.
    flush_interval: f64,
    /// The bits of an `f64`, in the seconds of the buffer's clock. Relaxed everywhere: it orders
    /// nothing but itself, the contents have their lock.
    last_flush: AtomicU64,
}

impl Throttle {
    /// The last flush began at `now`. Both in seconds. With an interval of 0 or less a flush is always
    /// due, also where a coarse clock has not moved.
    pub fn new(flush_interval: f64, now: f64) -> Self {
        let flush_interval = if flush_interval > 0.0 { flush_interval } else { f64::NEG_INFINITY };
        Self { flush_interval, last_flush: AtomicU64::new(now.to_bits()) }
    }

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
