//! The corners of `Sums` that have one right answer each.

use arroyo_metrics_buffer_core::pending::Contents;
use arroyo_metrics_buffer_core::sums::{NotAdded, OutOfRange, Sums};
use arroyo_metrics_buffer_core::totals::Totals;

type Counters = Sums<&'static str, i128>;

const MAX: i128 = i64::MAX as i128;

fn add(counters: &mut Counters, name: &'static str, delta: i128) -> Result<(), NotAdded> {
    counters.add(name.as_bytes(), name.as_ptr().addr(), || name, delta)
}

fn counters(totals: &[(&'static str, i128)]) -> Counters {
    let mut counters = Counters::default();
    for &(name, total) in totals {
        add(&mut counters, name, total).expect("in range");
    }
    counters
}

/// What is left over of `newer`.
fn merge(older: &mut Counters, mut newer: Counters) -> Counters {
    older.reserve_for(&newer).unwrap();
    older.merge(&mut newer);
    newer
}

fn totals(counters: &Counters) -> Vec<(&'static str, i128)> {
    counters.iter().map(|(name, total)| (*name, total)).collect()
}

#[test]
fn an_object_that_was_added_is_known_by_its_address() {
    let mut counters = counters(&[("first", 1), ("second", 2)]);
    assert_eq!(counters.add_by_address("second".as_ptr().addr(), 3), Ok(true));
    assert_eq!(counters.add_by_address("third".as_ptr().addr(), 4), Ok(false));
    assert_eq!(totals(&counters), [("first", 1), ("second", 5)]);
}

#[test]
fn a_name_object_is_asked_for_only_if_its_name_is_new() {
    let mut counters = counters(&[("name", 1)]);
    let again = || panic!("a clone of it would be dropped under the lock");
    assert_eq!(counters.add(b"name", 0, again, 2), Ok(()));
    assert_eq!(totals(&counters), [("name", 3)]);
}

#[test]
fn a_first_delta_out_of_range_makes_no_name() {
    let mut counters = Counters::default();
    let name = || panic!("it would have to be dropped under the lock");
    assert_eq!(counters.add(b"name", 0, name, MAX + 1), Err(NotAdded::OutOfRange));
    assert!(counters.is_empty());
}

#[test]
fn sums_are_empty_until_a_name_is_added_and_after_all_were_forgotten() {
    let mut counters = Counters::default();
    assert!(counters.is_empty());
    add(&mut counters, "name", 0).unwrap();
    assert!(!counters.is_empty());
    counters.forget_first(1);
    assert!(counters.is_empty());
}

#[test]
fn an_increment_out_of_range_is_refused_however_the_name_is_found() {
    let mut counters = counters(&[("name", MAX)]);
    assert_eq!(counters.add_by_address("name".as_ptr().addr(), 1), Err(OutOfRange));
    assert_eq!(add(&mut counters, "name", 1), Err(NotAdded::OutOfRange));
    assert_eq!(totals(&counters), [("name", MAX)]);
}

#[test]
fn merging_beyond_64_bits_loses_nothing() {
    let mut older = counters(&[("name", MAX)]);
    merge(&mut older, counters(&[("name", MAX)]));
    assert_eq!(totals(&older), [("name", 2 * MAX)]);
    assert_eq!(add(&mut older, "name", 1), Err(NotAdded::OutOfRange));
    assert_eq!(add(&mut older, "name", -MAX), Ok(()));
    assert_eq!(totals(&older), [("name", MAX)]);
}

#[test]
fn merging_keeps_the_order_of_the_older_and_leaves_the_names_that_both_had() {
    let mut older = counters(&[("b", 1), ("a", 2)]);
    let twice = merge(&mut older, counters(&[("c", 4), ("a", 8)]));
    assert_eq!(totals(&older), [("b", 1), ("a", 10), ("c", 4)]);
    assert_eq!(totals(&twice), [("a", 8)]);
}

#[test]
fn forgetting_begins_with_the_timers_and_ends_with_the_last_counter() {
    let left = |sent| {
        let mut totals = Totals::default();
        totals.timers.add(b"timer", 0, || "timer", 0.5).expect("timers have no range");
        totals.counters = counters(&[("first", 1), ("second", 2)]);
        totals.forget_first(sent);
        let names = totals.timers.iter().map(|(name, _)| *name);
        names.chain(totals.counters.iter().map(|(name, _)| *name)).collect::<Vec<_>>()
    };
    assert_eq!(left(0), ["timer", "first", "second"]);
    assert_eq!(left(1), ["first", "second"]);
    assert_eq!(left(2), ["second"]);
    assert!(left(3).is_empty());
    assert!(left(4).is_empty());
}

#[test]
fn totals_have_no_samples_to_drop() {
    let mut totals = Totals::<&'static str>::default();
    assert_eq!((totals.dropped(), totals.take_newly_dropped()), (0, 0));
}
