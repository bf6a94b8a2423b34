//! What waits to be sent: swap, merge, put back.

use std::cell::Cell;
use std::iter;
use std::mem;

use crate::fork::{self, AtFork};
use crate::lock::MutexGuard;
use crate::shared::Shared;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{global, per_thread};
use crate::throttle::Throttle;

/// What a buffer accumulates between two flushes: entries, each of which is sent by one call of the
/// backend.
pub trait Contents: AtFork + Default {
    /// What a merge leaves over, for the caller to drop outside the lock.
    type Leftover: Send;

    /// How many entries there are.
    fn entries(&self) -> usize;

    /// Forgets the first `count` entries in the order of sending, or all if there are fewer.
    fn forget_first(&mut self, count: usize);

    /// Puts `newer` behind these.
    fn merge(&mut self, newer: Self) -> Self::Leftover;

    /// How many samples had to be dropped since the last flush that succeeded.
    fn dropped(&self) -> u64 {
        0
    }

    /// How many samples were dropped since this was last called; resets the count.
    fn take_newly_dropped(&mut self) -> u64 {
        0
    }
}

/// Contents that several threads add to, that any of them may take, and that it may put back.
///
/// They may be divided into shards. Each thread adds to one of them, so threads that add at the
/// same time write to different memory. A flush takes all shards, one after the other.
pub struct Pending<C: Contents> {
    first: Shared<C>,
    others: Box<[Shared<C>]>,
    throttle: Throttle,
}

impl<C: Contents> Pending<C> {
    /// Empty contents, last flushed at `now`. Both in seconds.
    pub fn new(flush_interval: f64, now: f64) -> Self {
        Self::sharded(1, flush_interval, now)
    }

    /// As [`new`](Self::new), with `shards` shards, rounded up to a power of two. That many threads
    /// can add at the same time; more threads share shards.
    pub fn sharded(shards: usize, flush_interval: f64, now: f64) -> Self {
        let shard = || Shared::new(C::default());
        Self {
            first: shard(),
            others: iter::repeat_with(shard).take(shards.next_power_of_two() - 1).collect(),
            throttle: Throttle::new(flush_interval, now),
        }
    }

    /// What the calling thread adds to. See [`Shared::lock`] for what may be done meanwhile.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, C> {
        // Where there is one shard, as with a GIL, asking which thread this is would cost a tenth
        // of a call.
        if self.others.is_empty() { self.first.lock() } else { self.shard_of_this_thread().lock() }
    }

    fn shard_of_this_thread(&self) -> &Shared<C> {
        let number = this_thread() & self.others.len(); // modulo a power of two
        self.others.get(number.wrapping_sub(1)).unwrap_or(&self.first)
    }

    /// When a flush is due; see [`Throttle`].
    #[inline]
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Takes all there is, which from now on is the caller's to send or to put back.
    pub fn take(&self) -> Taken<C> {
        self.collect(mem::take)
    }

    /// What [`take`](Self::take) would take, with a copy of each shard made by `copy`.
    pub fn snapshot(&self, copy: impl Fn(&C) -> C) -> Taken<C> {
        self.collect(|contents| copy(contents))
    }

    fn collect(&self, from: impl Fn(&mut C) -> C) -> Taken<C> {
        let generation = fork::generation();
        let mut contents = from(&mut self.first.lock());
        let mut leftovers = Vec::new();
        for shard in &self.others {
            let more = from(&mut shard.lock());
            leftovers.push(contents.merge(more));
        }
        Taken { contents, _leftovers: leftovers, generation }
    }

    /// Puts back what could not be sent, before what has come since.
    pub fn put_back(&self, unsent: C) -> C::Leftover {
        let mut contents = self.first.lock();
        let newer = mem::replace(&mut *contents, unsent);
        contents.merge(newer)
    }
}

/// A number for the calling thread; the threads of a process are numbered from 0 on, in the order
/// in which they come here.
fn this_thread() -> usize {
    global! {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
    }
    const NONE: usize = usize::MAX;
    per_thread! {
        static NUMBER: Cell<usize> = Cell::new(NONE);
    }
    NUMBER.with(|number| {
        if number.get() == NONE {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// What one flush took.
pub struct Taken<C: Contents> {
    /// What to send.
    pub contents: C,
    /// For the caller to drop with the rest, outside the locks.
    _leftovers: Vec<C::Leftover>,
    generation: u64,
}

impl<C: Contents> Taken<C> {
    /// Whether the process forked meanwhile and this is the child: then the contents are the
    /// parent's to send.
    #[inline]
    pub fn belongs_to_parent(&self) -> bool {
        self.generation != fork::generation()
    }
}
