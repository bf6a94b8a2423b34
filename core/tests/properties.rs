//! Any order of operations on one buffer, beside a model too simple to be wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use arroyo_metrics_buffer_core::pending::{Contents, Pending, Taken};
use arroyo_metrics_buffer_core::sums::{NotAdded, Sums, Total};
use arroyo_metrics_buffer_core::totals;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Several times as many as are looked for by identity.
const NAMES: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Timer,
    Counter,
}

/// A name as Python has them: an object with a text, an address and owners. Two objects may have
/// the same text, and a new one may be where one that was freed had been.
#[derive(Debug)]
struct Object {
    text: String,
    serial: usize,
}

type Name = Arc<Object>;
type Totals = totals::Totals<Name>;

#[derive(Clone, Debug)]
enum Operation {
    Add {
        kind: Kind,
        name: usize,
        /// Whether it is the one object that the program's literals are, or a new one.
        interned: bool,
        delta: i128,
    },
    /// A flush begins.
    Take,
    /// One of the flushes ends: some was accepted, the rest goes back.
    PutBack { flush: Index, accepted: Index },
}

/// Of programs that use few names and of programs that use many.
fn operations() -> impl Strategy<Value = Vec<Operation>> {
    (1..=NAMES).prop_flat_map(|names| vec(operation(names), 0..200))
}

fn operation(names: usize) -> impl Strategy<Value = Operation> {
    let kinds_and_deltas =
        prop_oneof![(Just(Kind::Timer), -1000..=1000_i128), (Just(Kind::Counter), deltas()),];
    prop_oneof![
        12 => (kinds_and_deltas, 0..names, any::<bool>())
            .prop_map(|((kind, delta), name, interned)| Operation::Add { kind, name, interned, delta }),
        1 => Just(Operation::Take),
        1 => (any::<Index>(), any::<Index>())
            .prop_map(|(flush, accepted)| Operation::PutBack { flush, accepted }),
    ]
}

/// Small ones, and such that one more or one less makes the difference to 64 bits.
fn deltas() -> impl Strategy<Value = i128> {
    let (min, max) = (i128::from(i64::MIN), i128::from(i64::MAX));
    prop_oneof![2 => -3..=3_i128, 1 => min - 3..=min + 3, 1 => max - 3..=max + 3]
}

/// A total, and which of the objects with its name it goes by.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    kind: Kind,
    name: String,
    object: usize,
    total: i128,
}

/// Where all that was ever added is. Each list is in the order of sending.
#[derive(Debug, Default, PartialEq)]
struct Account {
    sent: Vec<Entry>,
    in_flight: Vec<Vec<Entry>>,
    pending: Vec<Entry>,
}

impl Account {
    fn totals(self) -> BTreeMap<(Kind, String), i128> {
        let mut totals = BTreeMap::new();
        for entry in self.sent.into_iter().chain(self.in_flight.concat()).chain(self.pending) {
            *totals.entry((entry.kind, entry.name)).or_default() += entry.total;
        }
        totals
    }
}

/// What is under test.
struct Buffer {
    pending: Pending<Totals>,
    in_flight: Vec<Taken<Totals>>,
    sent: Vec<Entry>,
    literals: Vec<Name>,
    objects: usize,
}

impl Buffer {
    fn new() -> Self {
        let literals = (0..NAMES).map(|name| object(name, name)).collect();
        Self {
            pending: Pending::new(1.0, 0.0).unwrap(),
            in_flight: Vec::new(),
            sent: Vec::new(),
            literals,
            objects: NAMES,
        }
    }

    /// The object that a caller passes for a name. Its last reference may be the caller's.
    fn name(&mut self, name: usize, interned: bool) -> Name {
        if interned {
            return self.literals[name].clone();
        }
        self.objects += 1;
        object(name, self.objects)
    }

    fn add(&self, kind: Kind, name: &Name, delta: i128) -> Result<(), NotAdded> {
        match kind {
            Kind::Timer => {
                let seconds = i32::try_from(delta).expect("whole seconds, and few");
                self.add_to(name, f64::from(seconds), |totals| &mut totals.timers)
            }
            Kind::Counter => self.add_to(name, delta, |totals| &mut totals.counters),
        }
    }

    /// As the Python class does it: by address if that is known, else by text.
    fn add_to<V: Total>(
        &self,
        name: &Name,
        delta: V,
        sums: impl Fn(&mut Totals) -> &mut Sums<Name, V>,
    ) -> Result<(), NotAdded> {
        let address = Arc::as_ptr(name).addr();
        let known = sums(&mut self.pending.lock()).add_by_address(address, delta)?;
        if known {
            return Ok(());
        }
        let text = name.text.as_bytes();
        sums(&mut self.pending.lock()).add(text, address, || name.clone(), delta)
    }

    fn take(&mut self) {
        self.in_flight.push(self.pending.take().unwrap());
    }

    fn put_back(&mut self, flush: Index, accepted: Index) {
        if self.in_flight.is_empty() {
            return;
        }
        let mut taken = self.in_flight.remove(flush.index(self.in_flight.len()));
        let accepted = accepted.index(taken.contents.entries() + 1);
        self.sent.extend(entries(&taken.contents).into_iter().take(accepted));
        taken.contents.forget_first(accepted);
        self.pending.put_back(&mut taken);
    }

    fn account(&self) -> Account {
        Account {
            sent: self.sent.clone(),
            in_flight: self.in_flight.iter().map(|taken| entries(&taken.contents)).collect(),
            pending: entries(&self.pending.lock()),
        }
    }
}

fn object(name: usize, serial: usize) -> Name {
    let text = format!("arroyo.consumer.{name}");
    Arc::new(Object { text, serial })
}

fn entries(totals: &Totals) -> Vec<Entry> {
    let entry = |kind, name: &Name, total| Entry {
        kind,
        name: name.text.clone(),
        object: name.serial,
        total,
    };
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds, and few")]
    let timers = totals.timers.iter().map(|(name, total)| entry(Kind::Timer, name, total as i128));
    let counters = totals.counters.iter().map(|(name, total)| entry(Kind::Counter, name, total));
    timers.chain(counters).collect()
}

/// The model is an account that is kept by hand.
impl Account {
    fn add(&mut self, kind: Kind, name: &Name, delta: i128) -> Result<(), NotAdded> {
        let Object { text, serial } = &**name;
        let entry = Entry { kind, name: text.clone(), object: *serial, total: delta };
        let merged = merge(self.pending.clone(), vec![entry]);
        let sum = merged.iter().find(|entry| (entry.kind, &entry.name) == (kind, text));
        if kind == Kind::Counter && i64::try_from(sum.expect("just added").total).is_err() {
            return Err(NotAdded::OutOfRange);
        }
        self.pending = merged;
        Ok(())
    }

    fn take(&mut self) {
        self.in_flight.push(std::mem::take(&mut self.pending));
    }

    fn put_back(&mut self, flush: Index, accepted: Index) {
        if self.in_flight.is_empty() {
            return;
        }
        let mut sent = self.in_flight.remove(flush.index(self.in_flight.len()));
        let unsent = sent.split_off(accepted.index(sent.len() + 1));
        self.sent.extend(sent);
        self.pending = merge(unsent, std::mem::take(&mut self.pending));
    }
}

fn merge(mut older: Vec<Entry>, newer: Vec<Entry>) -> Vec<Entry> {
    for entry in newer {
        let same = |older: &&mut Entry| (older.kind, &older.name) == (entry.kind, &entry.name);
        match older.iter_mut().find(same) {
            Some(older) => older.total += entry.total,
            None => older.push(entry),
        }
    }
    older.sort_by_key(|entry| entry.kind); // stable
    older
}

proptest! {
    // No files beside the sources: a failure prints the operations that lead to it.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_add_take_put_back_conserves_every_total(operations in operations()) {
        let mut buffer = Buffer::new();
        let mut made = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Add { kind, name, interned, delta } => {
                    let name = buffer.name(name, interned);
                    if buffer.add(kind, &name, delta).is_ok() {
                        *made.entry((kind, name.text.clone())).or_default() += delta;
                    }
                }
                Operation::Take => buffer.take(),
                Operation::PutBack { flush, accepted } => buffer.put_back(flush, accepted),
            }
        }
        prop_assert_eq!(buffer.account().totals(), made);
    }

    /// Order, names, ranges and what an error leaves behind.
    #[test]
    fn any_sequence_of_add_take_put_back_does_what_it_does_to_plain_lists(
        operations in operations(),
    ) {
        let mut buffer = Buffer::new();
        let mut model = Account::default();
        for operation in operations {
            match operation {
                Operation::Add { kind, name, interned, delta } => {
                    let name = buffer.name(name, interned);
                    let added = buffer.add(kind, &name, delta);
                    prop_assert_eq!(added, model.add(kind, &name, delta));
                }
                Operation::Take => {
                    buffer.take();
                    model.take();
                }
                Operation::PutBack { flush, accepted } => {
                    buffer.put_back(flush, accepted);
                    model.put_back(flush, accepted);
                }
            }
            prop_assert_eq!(&buffer.account(), &model);
        }
    }

    #[test]
    fn with_an_infinite_interval_no_flush_is_ever_due(now in proptest::num::f64::ANY) {
        let pending = Pending::<Totals>::new(f64::INFINITY, 0.0).unwrap();
        prop_assert!(!pending.throttle().is_due(now));
    }

    /// In quarters, so that every difference is exact and many are equal to the interval. With an
    /// interval of 0 a flush is always due.
    #[test]
    fn a_flush_is_due_when_more_than_the_interval_has_passed_since_the_last_began(
        interval in 0..8_i32,
        steps in vec((-2..8_i32, any::<bool>()), 0..50),
    ) {
        let seconds = |quarters: i32| f64::from(quarters) / 4.0;
        let pending = Pending::<Totals>::new(seconds(interval), 0.0).unwrap();
        let (mut now, mut last) = (0, 0);
        for (passed, flush_anyway) in steps {
            now += passed;
            let due = pending.throttle().is_due(seconds(now));
            prop_assert_eq!(due, interval == 0 || now - last > interval);
            if flush_anyway {
                pending.throttle().restart(seconds(now));
            }
            if due || flush_anyway {
                last = now;
            }
        }
    }
}

#[test]
fn a_flush_is_not_due_at_exactly_the_interval_but_just_past_it() {
    let pending = Pending::<Totals>::new(1.0, 5.0).unwrap();
    let just_past = f64::from_bits(6.0_f64.to_bits() + 1);
    assert!(!pending.throttle().is_due(6.0));
    assert!(pending.throttle().is_due(just_past));
}

#[test]
fn who_was_told_to_flush_is_not_told_again() {
    let pending = Pending::<Totals>::new(1.0, 0.0).unwrap();
    assert!(pending.throttle().is_due(2.0));
    assert!(!pending.throttle().is_due(2.0));
}
