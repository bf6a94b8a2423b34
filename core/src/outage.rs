//! What there is to tell of an outage of the metrics backend.

use crate::fork::AtFork;

/// Seconds between two records of an outage that goes on.
pub const RECORD_INTERVAL: f64 = 60.0;

/// The outage that a buffer's backend is in, if it is in one.
///
/// An outage begins with a flush that an error of the backend ends. It ends with the first flush
/// after that which sent something and was accepted whole. The time is what the buffer's clock said
/// when the flush began.
#[derive(Debug, Default)]
pub struct Outage(Option<Running>);

#[derive(Debug)]
struct Running {
    /// When the first flush began, or any flush since, if the clock was set back: so no outage
    /// takes less than no time.
    began: f64,
    /// Flushes that failed.
    failures: u64,
    /// When the flush began that was last told, if any was, and how many had failed by then.
    told: Option<f64>,
    failures_told: u64,
}

/// What a flush that failed is to an outage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    /// The first that is told.
    Begins,
    /// One to tell: it comes [`RECORD_INTERVAL`] after the last one that was told.
    GoesOn {
        /// How long the outage has lasted, in seconds.
        seconds: f64,
        /// Flushes that have failed.
        failures: u64,
        /// The part of them that was not told yet.
        untold: u64,
    },
    /// One that is not told by itself.
    IsKnown,
}

/// An outage that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// Flushes that failed.
    pub failures: u64,
}

impl Outage {
    /// Whether there is an outage.
    pub fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// An error of the backend has ended a flush that began at `now`. `is_told` is false where the
    /// error is raised instead.
    pub fn failed(&mut self, now: f64, is_told: bool) -> Failure {
        let running =
            self.0.get_or_insert(Running { began: now, failures: 0, told: None, failures_told: 0 });
        running.failures += 1;
        running.began = running.began.min(now);
        // In either direction: a clock that was set back by an hour silences nothing for an hour.
        let is_past = |told: f64| (now - told).abs() >= RECORD_INTERVAL;
        if !is_told || !running.told.is_none_or(is_past) {
            return Failure::IsKnown;
        }
        let untold = running.failures - running.failures_told;
        running.failures_told = running.failures;
        match running.told.replace(now) {
            None => Failure::Begins,
            Some(_) => Failure::GoesOn {
                seconds: seconds(running.began, now),
                failures: running.failures,
                untold,
            },
        }
    }

    /// The backend has accepted all of a flush that began at `now` and had something to send.
    /// Returns the outage that this ends, if there was one that was told.
    pub fn succeeded(&mut self, now: f64) -> Option<Ended> {
        let running = self.0.take().filter(|running| running.told.is_some())?;
        Some(Ended { seconds: seconds(running.began, now), failures: running.failures })
    }
}

fn seconds(began: f64, now: f64) -> f64 {
    (now - began).max(0.0)
}

impl AtFork for Outage {
    /// The child has not seen the backend fail.
    fn after_fork_in_child(&mut self) {
        *self = Self::default();
    }
}
