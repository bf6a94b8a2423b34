//! Running totals by name, in order of first touch.

use std::hash::{Hash, Hasher};
use std::ops::Add;

use foldhash::fast::FixedState;
use indexmap::map::Entry;
use indexmap::{Equivalent, IndexMap};

/// How many names are looked for by identity before the hash is asked. arroyo passes interned
/// literals: at most 7 timers and 6 counters in each of the Makefile's `RELEASES`.
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

/// An increment can't take a counter out of 64 bits. The wider type is for totals that are put
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
    by_name: IndexMap<Key<Box<[u8]>>, Sum<N, V>, FixedState>,
}

/// What a name is found by. Its text is owned in the table, and borrowed in what is looked for.
#[derive(Clone, Debug)]
struct Key<T> {
    address: usize,
    text: T,
}

#[derive(Debug)]
struct Sum<N, V> {
    name: N,
    total: V,
}

impl<T: AsRef<[u8]>> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.as_ref().hash(state);
    }
}

impl PartialEq for Key<Box<[u8]>> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key<Box<[u8]>> {}

impl Equivalent<Key<Box<[u8]>>> for Key<&[u8]> {
    /// Where the address fits, the text is not fetched to be compared.
    fn equivalent(&self, key: &Key<Box<[u8]>>) -> bool {
        self.address == key.address || *self.text == *key.text
    }
}

impl<N, V> Default for Sums<N, V> {
    /// Allocates nothing.
    fn default() -> Self {
        Self { by_name: IndexMap::default() }
    }
}

impl<N, V: Total> Sums<N, V> {
    /// Adds to the total of the object at `address` and tells whether that object is among the
    /// first ones. If not, [`add_by_text`](Self::add_by_text) finds it by its text.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and then the total is as before.
    #[inline]
    pub fn add_by_address(&mut self, address: usize, delta: V) -> Result<bool, OutOfRange> {
        self.by_name
            .iter_mut()
            .take(COMPARED_BY_ADDRESS)
            .find(|(key, _)| key.address == address)
            .map_or(Ok(false), |(_, sum)| sum.add(delta).map(|()| true))
    }

    /// Adds to the total of the name that reads `text` and tells whether there is one. If not,
    /// [`add`](Self::add) makes it.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and then the total is as before.
    pub fn add_by_text(
        &mut self,
        text: &[u8],
        address: usize,
        delta: V,
    ) -> Result<bool, OutOfRange> {
        match self.by_name.get_mut(&Key { address, text }) {
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
        if self.add_by_text(text, address, delta)? {
            return Ok(());
        }
        let total = sum(V::default(), delta)?;
        let key = Key { address, text: text.into() };
        self.by_name.insert(key, Sum { name: name(), total });
        Ok(())
    }

    /// Adds the totals of `newer` to these, which were touched first, and returns the names that
    /// both had: they are the caller's to drop, outside the lock.
    pub fn merge(&mut self, newer: Self) -> Vec<N> {
        let mut duplicates = Vec::new();
        for (key, sum) in newer.by_name {
            match self.by_name.entry(key) {
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
        let copy = |sum: &Sum<N, V>| Sum { name: name(&sum.name), total: sum.total };
        let sums = self.by_name.iter().map(|(key, sum)| (key.clone(), copy(sum)));
        Self { by_name: sums.collect() }
    }

    /// Names and totals in order of first touch.
    pub fn iter(&self) -> impl Iterator<Item = (&N, V)> {
        self.by_name.values().map(|sum| (&sum.name, sum.total))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Forgets the `count` names that were touched first, or all if there are fewer.
    pub fn forget_first(&mut self, count: usize) {
        self.by_name.drain(..count.min(self.len()));
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
