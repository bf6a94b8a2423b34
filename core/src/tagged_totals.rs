//! What a `BufferedMetricsBackend` accumulates.

use std::mem;
use std::ops::Add;

use crate::fork::AtFork;
use crate::memory::OutOfMemory;
use crate::pending::Contents;
use crate::sums::{Sums, Total};

/// A number as Python has it: an `int` stays one until a `float` is added to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// As wide as a counter of [`Totals`](crate::totals::Totals).
    Int(i128),
    /// A `float`.
    Float(f64),
}

impl Default for Number {
    fn default() -> Self {
        Self::Int(0)
    }
}

impl Number {
    #[allow(clippy::cast_precision_loss)] // Python rounds in the same way
    fn to_float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

impl Add for Number {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Int(one), Self::Int(other)) => Self::Int(one + other),
            _ => Self::Float(self.to_float() + other.to_float()),
        }
    }
}

impl Total for Number {
    fn in_range(self) -> bool {
        match self {
            Self::Int(int) => int.in_range(),
            Self::Float(_) => true,
        }
    }
}

/// The value of a gauge, whose total is what was added last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Last(pub Number);

impl Add for Last {
    type Output = Self;

    fn add(self, later: Self) -> Self {
        later
    }
}

impl Total for Last {
    fn in_range(self) -> bool {
        self.0.in_range()
    }
}

/// Totals of timers, counters and gauges, whose key is a name with tags; `N` has both.
#[derive(Debug)]
pub struct TaggedTotals<N> {
    /// Sums, usually of seconds.
    pub timers: Sums<N, Number>,
    /// Sums of counts.
    pub counters: Sums<N, Number>,
    /// Values.
    pub gauges: Sums<N, Last>,
}

impl<N> Default for TaggedTotals<N> {
    fn default() -> Self {
        Self { timers: Sums::default(), counters: Sums::default(), gauges: Sums::default() }
    }
}

impl<N> TaggedTotals<N> {
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

impl<N: Send + 'static> Contents for TaggedTotals<N> {
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

impl<N: Send + 'static> AtFork for TaggedTotals<N> {
    /// The parent reports what was pending. Leaked as [`Totals`](crate::totals::Totals) are.
    fn after_fork_in_child(&mut self) {
        mem::forget(mem::take(self));
    }
}
