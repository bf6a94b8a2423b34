//! Running totals by name, in order of first touch.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::mem;
use std::ops::Add;

use foldhash::fast::FixedState;
use indexmap::{Equivalent, IndexMap};

use crate::memory::{OutOfMemory, boxed_slice};

/// How many names are looked for by identity before the hash is asked. arroyo passes interned
/// literals: at most 7 timers and 6 counters in each of the Makefile's `RELEASES`.
const COMPARED_BY_ADDRESS: usize = 8;

/// The address of names that are known by their text alone. No object is there.
const NO_ADDRESS: usize = 0;
/// The address by which such a name is looked for: another, so that their texts are compared.
const ANY_ADDRESS: usize = 1;

/// A kind of total: `f64` for arroyo's timers, `i128` for its counters.
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

/// Why an increment was not made.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// [`OutOfRange`].
    OutOfRange,
    /// [`OutOfMemory`]: there is no room for a new name.
    OutOfMemory,
}

impl From<OutOfRange> for NotAdded {
    fn from(OutOfRange: OutOfRange) -> Self {
        Self::OutOfRange
    }
}

impl From<OutOfMemory> for NotAdded {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

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
#[derive(Debug)]
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
    /// [`NotAdded`], and then all totals are as before.
    pub fn add(
        &mut self,
        text: &[u8],
        address: usize,
        name: impl FnOnce() -> N,
        delta: V,
    ) -> Result<(), NotAdded> {
        if self.add_by_text(text, address, delta)? {
            return Ok(());
        }
        let total = sum(V::default(), delta)?;
        let key = Key { address, text: boxed_slice(text.iter().copied())? };
        self.by_name.try_reserve(1).map_err(OutOfMemory::from)?;
        self.by_name.insert(key, Sum { name: name(), total });
        Ok(())
    }

    /// Adds to the total of the text `key`, or makes that total. `name` is from now on what the total
    /// is known by to whoever sends it. In its place is left what that was before, or the name itself
    /// if nothing was added: the caller's to drop, outside the lock.
    ///
    /// # Errors
    ///
    /// [`NotAdded`], and then all is as before.
    pub fn add_renamed(
        &mut self,
        key: &[u8],
        name: &mut Option<N>,
        delta: V,
    ) -> Result<(), NotAdded> {
        let key = Key { address: ANY_ADDRESS, text: key };
        if let Some(sum) = self.by_name.get_mut(&key) {
            sum.add(delta)?;
            if let Some(name) = name {
                mem::swap(&mut sum.name, name);
            }
            return Ok(());
        }
        let key = Key { address: NO_ADDRESS, text: boxed_slice(key.text.iter().copied())? };
        self.by_name.try_reserve(1).map_err(OutOfMemory::from)?;
        let total = in_range(delta)?;
        if let Some(name) = name.take() {
            self.by_name.insert(key, Sum { name, total });
        }
        Ok(())
    }

    /// Makes room for what `newer` has and these have not.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory> {
        let at_most = self.by_name.try_reserve(newer.len());
        Ok(at_most.or_else(|_| {
            let is_missing = |name: &&Key<_>| !self.by_name.contains_key(*name);
            let missing = newer.by_name.keys().filter(is_missing).count();
            self.by_name.try_reserve(missing)
        })?)
    }

    /// Adds the totals of `newer` to these, which were touched first and for which
    /// [`reserve_for`](Self::reserve_for) has made room. Of the names that both have, one stays in
    /// `newer`, the caller's to drop outside the lock: the newer one, unless the older was
    /// [renamed](Self::add_renamed) by it.
    pub fn merge(&mut self, newer: &mut Self) {
        let these = RefCell::new(&mut self.by_name);
        let is_new = |key: &Key<_>, newer: &mut Sum<N, V>| match these.borrow_mut().get_mut(key) {
            Some(older) => {
                older.total = older.total + newer.total;
                if key.address == NO_ADDRESS {
                    mem::swap(&mut older.name, &mut newer.name);
                }
                false
            }
            None => true,
        };
        for (key, sum) in newer.by_name.extract_if(.., is_new) {
            these.borrow_mut().insert(key, sum);
        }
    }

    /// The same totals, with names that `name` makes of these.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn copy(&self, name: impl Fn(&N) -> N) -> Result<Self, OutOfMemory> {
        let mut copy = Self::default();
        copy.by_name.try_reserve(self.len())?;
        for (key, sum) in &self.by_name {
            let key = Key { address: key.address, text: boxed_slice(key.text.iter().copied())? };
            copy.by_name.insert(key, Sum { name: name(&sum.name), total: sum.total });
        }
        Ok(copy)
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
    in_range(total + delta)
}

#[inline]
fn in_range<V: Total>(total: V) -> Result<V, OutOfRange> {
    Some(total).filter(|total| total.in_range()).ok_or(OutOfRange)
}
