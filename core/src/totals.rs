//! What a `MetricsBuffer` accumulates.

use std::mem;

use crate::fork::AtFork;
use crate::memory::OutOfMemory;
use crate::pending::Contents;
use crate::sums::Sums;

/// Totals of timers and counters; `N` is what they have for a name.
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
    /// The same totals, with names that `name` makes of these.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn copy(&self, name: impl Fn(&N) -> N) -> Result<Self, OutOfMemory> {
        Ok(Self { timers: self.timers.copy(&name)?, counters: self.counters.copy(&name)? })
    }
}

impl<N: Send + 'static> Contents for Totals<N> {
    fn entries(&self) -> usize {
        self.timers.len() + self.counters.len()
    }

    /// Timers are sent first, then counters.
    fn forget_first(&mut self, count: usize) {
        let timers = self.timers.len();
        self.timers.forget_first(count);
        self.counters.forget_first(count.saturating_sub(timers));
    }

    fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory> {
        self.timers.reserve_for(&newer.timers)?;
        self.counters.reserve_for(&newer.counters)
    }

    fn merge(&mut self, newer: &mut Self) {
        self.timers.merge(&mut newer.timers);
        self.counters.merge(&mut newer.counters);
    }
}

impl<N: Send + 'static> AtFork for Totals<N> {
    /// The parent reports what was pending. Leaked rather than dropped: names are Python objects,
    /// and a child has at most a few dozen of them, whose memory it shares with its parent.
    fn after_fork_in_child(&mut self) {
        mem::forget(mem::take(self));
    }
}
