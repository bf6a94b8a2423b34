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
    /// When the flush began that was last told, and how many had failed by then.
    told: f64,
    failures_told: u64,
}

/// What a flush that failed is to an outage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    /// Its first.
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
    /// An error of the backend has ended a flush that began at `now`.
    pub fn failed(&mut self, now: f64) -> Failure {
        let Some(running) = &mut self.0 else {
            self.0 = Some(Running { began: now, failures: 1, told: now, failures_told: 1 });
            return Failure::Begins;
        };
        running.failures += 1;
        running.began = running.began.min(now);
        // In either direction: a clock that was set back by an hour silences nothing for an hour.
        if (now - running.told).abs() >= RECORD_INTERVAL {
            let untold = running.failures - running.failures_told;
            running.told = now;
            running.failures_told = running.failures;
            let seconds = seconds(running.began, now);
            Failure::GoesOn { seconds, failures: running.failures, untold }
        } else {
            Failure::IsKnown
        }
    }

    /// The backend has accepted all of a flush that began at `now` and had something to send.
    /// Returns the outage that this ends, if there was one.
    pub fn succeeded(&mut self, now: f64) -> Option<Ended> {
        let running = self.0.take()?;
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
