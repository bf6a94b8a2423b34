//! What a `MetricsBuffer` and a `BufferedMetricsBackend` accumulate.

use std::mem;

use crate::fork::AtFork;
use crate::memory::OutOfMemory;
use crate::numbers::Last;
use crate::pending::Contents;
use crate::sums::{Sums, Total};

/// Totals of timers, counters and gauges, of which a `MetricsBuffer` has none; `N` is what they have
/// for a name, `T` and `C` are the kinds of totals.
#[derive(Debug)]
pub struct Totals<N, T = f64, C = i128> {
    /// Usually seconds, by name.
    pub timers: Sums<N, T>,
    /// Counts by name.
    pub counters: Sums<N, C>,
    /// Values by name.
    pub gauges: Sums<N, Last>,
}

impl<N, T, C> Default for Totals<N, T, C> {
    fn default() -> Self {
        Self { timers: Sums::default(), counters: Sums::default(), gauges: Sums::default() }
    }
}

impl<N, T: Total, C: Total> Totals<N, T, C> {
    /// The same totals, with names that `name` makes of these.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn copy(&self, name: impl Fn(&N) -> N) -> Result<Self, OutOfMemory> {
        let (timers, counters) = (self.timers.copy(&name)?, self.counters.copy(&name)?);
        Ok(Self { timers, counters, gauges: self.gauges.copy(&name)? })
    }
}

impl<N, T, C> Contents for Totals<N, T, C>
where
    N: Send + 'static,
    T: Total + Send + 'static,
    C: Total + Send + 'static,
{
    fn entries(&self) -> usize {
        self.timers.len() + self.counters.len() + self.gauges.len()
    }

    /// Timers are sent first, then counters, then gauges.
    fn forget_first(&mut self, count: usize) {
        let timers = self.timers.len();
        let counters = self.counters.len();
        self.timers.forget_first(count);
        self.counters.forget_first(count.saturating_sub(timers));
        self.gauges.forget_first(count.saturating_sub(timers + counters));
    }

    fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory> {
        self.timers.reserve_for(&newer.timers)?;
        self.counters.reserve_for(&newer.counters)?;
        self.gauges.reserve_for(&newer.gauges)
    }

    fn merge(&mut self, newer: &mut Self) {
        self.timers.merge(&mut newer.timers);
        self.counters.merge(&mut newer.counters);
        self.gauges.merge(&mut newer.gauges);
    }
}

impl<N, T, C> AtFork for Totals<N, T, C>
where
    N: Send + 'static,
    T: Send + 'static,
    C: Send + 'static,
{
    /// The parent reports what was pending. Leaked rather than dropped: names are Python objects,
    /// and a child has at most a few dozen of them, whose memory it shares with its parent.
    fn after_fork_in_child(&mut self) {
        mem::forget(mem::take(self));
    }
}
