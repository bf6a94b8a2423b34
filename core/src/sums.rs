//! Running totals by name, in order of first touch.

use std::ops::Add;

use foldhash::fast::FixedState;
use indexmap::IndexMap;
use indexmap::map::Entry;

/// How many names are looked for by identity before the hash is asked. arroyo passes interned
/// literals, at most 7 timers and 6 counters in every release to 2.48.0.
const COMPARED_BY_ADDRESS: usize = 8;

/// A kind of total: `f64` for timers, `i128` for counters.
pub trait Total: Copy + Default + Add<Output = Self> {
    /// Whether an increment may leave the total at this value.
    fn in_range(self) -> bool;
}

impl Total for f64 {
    fn in_range(self) -> bool {
        true
    }
}

/// Counters are 64 bits wide for who increments them. The wider type is for totals that are put
/// back: merging two of them can't fail.
impl Total for i128 {
    #[inline]
    fn in_range(self) -> bool {
        i64::try_from(self).is_ok()
    }
}

/// An increment would leave a counter outside 64 bits. It was not made.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// Totals of one kind by name.
///
/// A name is an object with a text. Its address alone is compared first; equal addresses mean equal
/// texts, because the table owns a reference to each object that it knows by address.
#[derive(Debug)]
pub struct Sums<N, V> {
    // A fixed hash state: a random one is made on first use, which a fork could interrupt. Metric
    // names come from the program's own source, not from strangers.
    by_text: IndexMap<Box<[u8]>, Sum<N, V>, FixedState>,
}

#[derive(Debug)]
struct Sum<N, V> {
    address: usize,
    name: N,
    total: V,
}

impl<N, V> Default for Sums<N, V> {
    /// Allocates nothing.
    fn default() -> Self {
        Self { by_text: IndexMap::default() }
    }
}

impl<N, V: Total> Sums<N, V> {
    /// Adds to the total of the object at `address` and tells whether that object is among the first
    /// ones. If not, [`add_by_text`](Self::add_by_text) finds it by its text.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and then the total is as before.
    #[inline]
    pub fn add_by_address(&mut self, address: usize, delta: V) -> Result<bool, OutOfRange> {
        self.by_text
            .values_mut()
            .take(COMPARED_BY_ADDRESS)
            .find(|sum| sum.address == address)
            .map_or(Ok(false), |sum| sum.add(delta).map(|()| true))
    }

    /// Adds to the total of the name that reads `text` and tells whether there is one. If not,
    /// [`add`](Self::add) makes it.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and then the total is as before.
    pub fn add_by_text(&mut self, text: &[u8], delta: V) -> Result<bool, OutOfRange> {
        match self.by_text.get_mut(text) {
            Some(sum) => sum.add(delta).map(|()| true),
            None => Ok(false),
        }
    }

    /// Adds to the total of the name that reads `text`. If there is none yet, `name` is called for
    /// the object at `address`, and this delta becomes its total.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and then the total is as before.
    pub fn add(
        &mut self,
        text: &[u8],
        address: usize,
        name: impl FnOnce() -> N,
        delta: V,
    ) -> Result<(), OutOfRange> {
        if self.add_by_text(text, delta)? {
            return Ok(());
        }
        let total = sum(V::default(), delta)?;
        self.by_text.insert(text.into(), Sum { address, name: name(), total });
        Ok(())
    }

    /// Adds the totals of `newer` to these, which were touched first, and returns the names that
    /// both had: they are the caller's to drop, outside the lock.
    pub fn merge(&mut self, newer: Self) -> Vec<N> {
        let mut duplicates = Vec::new();
        for (text, sum) in newer.by_text {
            match self.by_text.entry(text) {
                Entry::Occupied(mut older) => {
                    let total = &mut older.get_mut().total;
                    *total = *total + sum.total;
                    duplicates.push(sum.name);
                }
                Entry::Vacant(place) => {
                    place.insert(sum);
                }
            }
        }
        duplicates
    }

    /// The same totals, with names that `name` makes of these.
    #[must_use]
    pub fn copy(&self, name: impl Fn(&N) -> N) -> Self {
        let copy = |sum: &Sum<N, V>| Sum { name: name(&sum.name), ..*sum };
        Self { by_text: self.by_text.iter().map(|(text, sum)| (text.clone(), copy(sum))).collect() }
    }

    /// Names and totals in order of first touch.
    pub fn iter(&self) -> impl Iterator<Item = (&N, V)> {
        self.by_text.values().map(|sum| (&sum.name, sum.total))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.by_text.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.by_text.is_empty()
    }

    /// Forgets the `count` names that were touched first, or all if there are fewer.
    pub fn forget_first(&mut self, count: usize) {
        self.by_text.drain(..count.min(self.len()));
    }
}

impl<N, V: Total> Sum<N, V> {
    #[inline]
    fn add(&mut self, delta: V) -> Result<(), OutOfRange> {
        self.total = sum(self.total, delta)?;
        Ok(())
    }
}

#[inline]
fn sum<V: Total>(total: V, delta: V) -> Result<V, OutOfRange> {
    Some(total + delta).filter(|sum| sum.in_range()).ok_or(OutOfRange)
}
