//! What a producer's delivery callbacks accumulate.

use std::mem;

use crate::fork::AtFork;
use crate::memory::OutOfMemory;
use crate::pending::Contents;

/// How many latency samples are kept at most: 8 MB of them. Without a bound, an outage of the
/// metrics backend would fill the memory.
pub const MAX_LATENCIES: usize = 1_000_000;

/// What became of a message. arroyo's metrics call it the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker has it.
    Success,
    /// It was given up.
    Error,
}

/// Deliveries counted by outcome, and how long each took.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// In the order of first touch, with a place for each outcome; the free places come last.
    /// Counts are wider than what is added at a time, so no sum overflows.
    counts: [Option<(Outcome, i128)>; 2],
    /// Seconds, in the order of the deliveries.
    latencies: Vec<f64>,
    /// Samples that had no room since the last flush that succeeded. Put back with the rest, for
    /// the log.
    dropped: u64,
    /// The part of `dropped` that the statistics do not count yet.
    newly_dropped: u64,
}

impl Deliveries {
    /// Counts one delivery, which took `latency` seconds if that is measured.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], and then nothing was counted.
    #[inline]
    pub fn record(&mut self, outcome: Outcome, latency: Option<f64>) -> Result<(), OutOfMemory> {
        if let Some(latency) = latency {
            if self.latencies.len() < MAX_LATENCIES {
                self.latencies.try_reserve(1)?;
                self.latencies.push(latency);
            } else {
                self.count_dropped(1);
            }
        }
        self.add(outcome, 1);
        Ok(())
    }

    /// Counts many deliveries of one outcome.
    #[inline]
    pub fn add(&mut self, outcome: Outcome, count: i128) {
        let same_or_free =
            |place: &&mut Option<(Outcome, i128)>| place.is_none_or(|(other, _)| other == outcome);
        if let Some(place) = self.counts.iter_mut().find(same_or_free) {
            place.get_or_insert((outcome, 0)).1 += count;
        }
    }

    /// The same deliveries.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn copy(&self) -> Result<Self, OutOfMemory> {
        let mut latencies = Vec::new();
        latencies.try_reserve_exact(self.latencies.len())?;
        latencies.extend_from_slice(&self.latencies);
        Ok(Self { latencies, ..*self })
    }

    /// Adds samples, as many as the bound lets.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], and then no sample was added.
    pub fn add_latencies(&mut self, latencies: &[f64]) -> Result<(), OutOfMemory> {
        self.latencies.try_reserve(latencies.len().min(self.room()))?;
        self.append(latencies);
        Ok(())
    }

    /// Adds samples for which there is memory.
    fn append(&mut self, latencies: &[f64]) {
        let (kept, dropped) = latencies.split_at(latencies.len().min(self.room()));
        self.latencies.extend_from_slice(kept);
        self.count_dropped(dropped.len() as u64);
    }

    /// How many samples may still come.
    fn room(&self) -> usize {
        MAX_LATENCIES - self.latencies.len()
    }

    fn count_dropped(&mut self, samples: u64) {
        self.dropped += samples;
        self.newly_dropped += samples;
    }

    /// Deliveries by outcome.
    pub fn counts(&self) -> impl Iterator<Item = (Outcome, i128)> {
        self.counts.iter().flatten().copied()
    }

    /// Seconds that deliveries took.
    pub fn latencies(&self) -> &[f64] {
        &self.latencies
    }
}

impl Contents for Deliveries {
    fn entries(&self) -> usize {
        self.counts().count() + self.latencies.len()
    }

    /// Counts are sent first, then latencies.
    fn forget_first(&mut self, count: usize) {
        let counts = count.min(self.counts().count());
        self.counts.iter_mut().take(counts).for_each(|place| *place = None);
        self.counts.rotate_left(counts);
        let latencies = (count - counts).min(self.latencies.len());
        self.latencies.drain(..latencies);
    }

    fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory> {
        Ok(self.latencies.try_reserve(newer.latencies.len().min(self.room()))?)
    }

    fn merge(&mut self, newer: &mut Self) {
        for (outcome, count) in newer.counts() {
            self.add(outcome, count);
        }
        self.append(&newer.latencies);
        self.dropped += newer.dropped;
        self.newly_dropped += newer.newly_dropped;
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }

    fn take_newly_dropped(&mut self) -> u64 {
        mem::take(&mut self.newly_dropped)
    }
}

impl AtFork for Deliveries {
    /// The parent reports what was pending.
    fn after_fork_in_child(&mut self) {
        mem::take(self);
    }
}
