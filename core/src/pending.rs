//! What waits to be sent: swap, merge, put back.

use std::cell::Cell;
use std::mem;

use crate::fork::{self, AtFork};
use crate::lock::MutexGuard;
use crate::memory::OutOfMemory;
use crate::put_back::{Place, Queue};
use crate::shared::Shared;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{global, per_thread};
use crate::throttle::Throttle;

/// What a buffer accumulates between two flushes: entries, each of which is sent by one call of the
/// backend.
pub trait Contents: AtFork + Default {
    /// How many entries there are.
    fn entries(&self) -> usize;

    /// Forgets the first `count` entries in the order of sending, or all if there are fewer.
    fn forget_first(&mut self, count: usize);

    /// Makes room for what `newer` has.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory>;

    /// Puts `newer`, for which there is room, behind these. What is left in it is the caller's to
    /// drop, outside the lock.
    fn merge(&mut self, newer: &mut Self);

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
    /// What was put back, until there is memory to merge it into the first shard. Who needs both
    /// locks takes this one first.
    put_back: Shared<Queue<C>>,
    first: Shared<C>,
    others: Box<[Shared<C>]>,
    throttle: Throttle,
}

impl<C: Contents> Pending<C> {
    /// Empty contents, last flushed at `now`. Both in seconds.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(flush_interval: f64, now: f64) -> Result<Self, OutOfMemory> {
        Self::sharded(1, flush_interval, now)
    }

    /// As [`new`](Self::new), with `shards` shards, rounded up to a power of two. That many threads
    /// can add at the same time; more threads share shards.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn sharded(shards: usize, flush_interval: f64, now: f64) -> Result<Self, OutOfMemory> {
        let put_back = Shared::new(Queue::default())?; // before the first shard, as a fork locks it
        let mut others = Vec::new();
        others.try_reserve_exact(shards.next_power_of_two() - 1)?;
        while others.len() < others.capacity() {
            others.push(Shared::new(C::default())?);
        }
        Ok(Self {
            put_back,
            first: Shared::new(C::default())?,
            others: others.into_boxed_slice(),
            throttle: Throttle::new(flush_interval, now),
        })
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

    /// Takes all there is, which from now on is the caller's to send or to put back. What can't be
    /// taken without memory stays pending.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], and then nothing was taken.
    pub fn take(&self) -> Result<Taken<C>, OutOfMemory> {
        self.take_part(mem::take)
    }

    /// As [`take`](Self::take), but of each shard what `part` takes of it.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], and then nothing was taken.
    pub fn take_part(&self, part: impl Fn(&mut C) -> C) -> Result<Taken<C>, OutOfMemory> {
        let mut taken = Taken::new(self.others.len())?;
        self.merge_put_back(&mut self.put_back.lock(), &mut taken.leftovers);
        taken.contents = part(&mut self.first.lock());
        for shard in &self.others {
            let mut shard = shard.lock();
            if taken.contents.reserve_for(&shard).is_ok() {
                let mut more = part(&mut shard);
                drop(shard);
                taken.contents.merge(&mut more);
                taken.leftovers.push(more);
            }
        }
        Ok(taken)
    }

    /// What [`take`](Self::take) would take, with a copy of each shard made by `copy`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn snapshot(
        &self,
        copy: impl Fn(&C) -> Result<C, OutOfMemory>,
    ) -> Result<Taken<C>, OutOfMemory> {
        let mut taken = Taken::new(self.others.len())?;
        if !self.merge_put_back(&mut self.put_back.lock(), &mut taken.leftovers) {
            return Err(OutOfMemory);
        }
        taken.contents = copy(&self.first.lock())?;
        for shard in &self.others {
            let mut more = copy(&shard.lock())?;
            taken.contents.reserve_for(&more)?;
            taken.contents.merge(&mut more);
            taken.leftovers.push(more);
        }
        Ok(taken)
    }

    /// Puts back what could not be sent, before what has come since. It needs no memory.
    ///
    /// If the process has forked since it was taken and this is the child, it is the parent's, and
    /// stays in `taken`. What is in there afterwards is the caller's to drop.
    pub fn put_back(&self, taken: &mut Taken<C>) {
        let Some(mut place) = taken.place.take() else { return };
        mem::swap(&mut place.contents, &mut taken.contents);
        let mut put_back = self.put_back.lock();
        if taken.belongs_to_parent() {
            mem::swap(&mut place.contents, &mut taken.contents);
            return;
        }
        put_back.push(place);
        self.merge_put_back(&mut put_back, &mut taken.leftovers);
    }

    /// Merges what was put back into the first shard, as far as there is memory for that, and tells
    /// whether that was all. What is left over of it is added to `leftovers`.
    fn merge_put_back(&self, put_back: &mut Queue<C>, leftovers: &mut Vec<C>) -> bool {
        while let Some(older) = put_back.first() {
            let mut first = self.first.lock();
            // Who flushes needs the room for leftovers of the other shards.
            if older.reserve_for(&first).is_err()
                || leftovers.try_reserve(1 + self.others.len()).is_err()
            {
                return false;
            }
            mem::swap(&mut *first, older);
            first.merge(older);
            leftovers.push(mem::take(older));
            put_back.pop();
        }
        true
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
    leftovers: Vec<C>,
    /// For what has to be put back.
    place: Option<Box<Place<C>>>,
    generation: u64,
}

impl<C: Contents> Taken<C> {
    /// Nothing yet, and room for so many leftovers.
    fn new(leftovers: usize) -> Result<Self, OutOfMemory> {
        let mut taken = Self {
            contents: C::default(),
            leftovers: Vec::new(),
            place: Some(Place::new()?),
            generation: fork::generation(),
        };
        taken.leftovers.try_reserve_exact(leftovers)?;
        Ok(taken)
    }

    /// Whether the process forked meanwhile and this is the child: then the contents are the
    /// parent's to send.
    #[inline]
    pub fn belongs_to_parent(&self) -> bool {
        self.generation != fork::generation()
    }
}
