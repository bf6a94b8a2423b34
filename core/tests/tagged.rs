//! What is particular to timers, counters and gauges with tags.

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::numbers::Last;
use arroyo_metrics_buffer_core::numbers::Number::{self, Float, Int};
use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::sums::{NotAdded, Sums, Total};
use arroyo_metrics_buffer_core::totals;

type Totals = totals::Totals<&'static str, Number, Number>;

const MAX: Number = Int(i64::MAX as i128);

/// Adds, and returns the name that is left over.
fn add<V: Total>(
    sums: &mut Sums<&'static str, V>,
    key: &str,
    name: &'static str,
    delta: V,
) -> Option<&'static str> {
    let mut name = Some(name);
    sums.add_renamed(key.as_bytes(), &mut name, delta).unwrap();
    name
}

fn list<V: Total>(sums: &Sums<&'static str, V>) -> Vec<(&'static str, V)> {
    sums.iter().map(|(name, total)| (*name, total)).collect()
}

#[test]
fn a_total_goes_by_the_name_of_the_last_call_and_the_one_before_is_left_over() {
    let mut counters = Sums::default();
    assert_eq!(add(&mut counters, "key", "first", Int(1)), None);
    assert_eq!(add(&mut counters, "other", "other", Int(2)), None);
    assert_eq!(add(&mut counters, "key", "last", Int(4)), Some("first"));
    assert_eq!(list(&counters), [("last", Int(5)), ("other", Int(2))]);
}

#[test]
fn what_is_refused_leaves_total_and_name() {
    let mut counters = Sums::default();
    add(&mut counters, "key", "first", MAX);
    for key in ["key", "new"] {
        let mut name = Some("last");
        let delta = if key == "key" { Int(1) } else { MAX + Int(1) };
        let refused = counters.add_renamed(key.as_bytes(), &mut name, delta);
        assert_eq!((refused, name), (Err(NotAdded::OutOfRange), Some("last")));
    }
    assert_eq!(list(&counters), [("first", MAX)]);
}

#[test]
fn keys_are_told_from_each_other_by_their_texts_alone() {
    let texts: Vec<_> = (0..500).map(|number| number.to_string()).collect();
    let mut counters = Sums::default();
    for text in texts.iter().chain(&texts) {
        add(&mut counters, text, "the same name", Int(1));
    }
    assert_eq!(list(&counters), vec![("the same name", Int(2)); 500]);
}

#[test]
fn ints_stay_ints_until_a_float_comes() {
    assert_eq!(Int(1) + Int(2), Int(3));
    assert_eq!(Int(1) + Float(0.5), Float(1.5));
    assert_eq!(Float(0.5) + Int(1), Float(1.5));
    assert_eq!(Float(0.5) + Float(0.25), Float(0.75));
    assert_eq!(MAX + MAX, Int(2 * i128::from(i64::MAX)));
    assert!(!(MAX + MAX).in_range());
    assert!(MAX.in_range() && Last(MAX).in_range());
    assert!(!Last(MAX + Int(1)).in_range());
    assert!(Float(1e300).in_range());
}

#[test]
fn the_first_value_is_kept_as_it_is() {
    let mut timers = Sums::default();
    add(&mut timers, "key", "key", Float(-0.0));
    let [(_, Float(total))] = list(&timers)[..] else { panic!("one float") };
    assert!(total.is_sign_negative(), "not added to a zero");
}

#[test]
fn what_is_put_back_replaces_neither_the_gauge_nor_the_name_that_came_meanwhile() {
    let pending = Pending::<Totals>::new(1.0, 0.0).unwrap();
    let fill = |name, value| {
        let mut totals = pending.lock();
        add(&mut totals.gauges, "key", name, Last(Int(value)));
        add(&mut totals.timers, "key", name, Int(value));
    };
    fill("older", 1);
    let mut taken = pending.take().unwrap();
    fill("newer", 2);
    add(&mut pending.lock().gauges, "another", "another", Last(Int(3)));
    pending.put_back(&mut taken);
    let now = pending.take().unwrap().contents;
    assert_eq!(list(&now.gauges), [("newer", Last(Int(2))), ("another", Last(Int(3)))]);
    assert_eq!(list(&now.timers), [("newer", Int(3))]);
}

#[test]
fn a_gauge_that_is_put_back_is_still_there_if_no_newer_one_came() {
    let pending = Pending::<Totals>::new(1.0, 0.0).unwrap();
    add(&mut pending.lock().gauges, "key", "name", Last(Float(0.5)));
    let mut taken = pending.take().unwrap();
    pending.put_back(&mut taken);
    assert_eq!(list(&pending.take().unwrap().contents.gauges), [("name", Last(Float(0.5)))]);
}

fn one_of_each() -> Totals {
    let mut totals = Totals::default();
    add(&mut totals.timers, "t", "timer", Float(0.5));
    add(&mut totals.counters, "c", "counter", Int(1));
    add(&mut totals.gauges, "g", "gauge", Last(Int(2)));
    totals
}

#[test]
fn forgetting_begins_with_the_timers_and_ends_with_the_gauges() {
    let left = |sent| {
        let mut totals = one_of_each();
        totals.forget_first(sent);
        (totals.timers.len(), totals.counters.len(), totals.gauges.len(), totals.entries())
    };
    assert_eq!(left(0), (1, 1, 1, 3));
    assert_eq!(left(1), (0, 1, 1, 2));
    assert_eq!(left(2), (0, 0, 1, 1));
    assert_eq!(left(3), (0, 0, 0, 0));
    assert_eq!(left(4), (0, 0, 0, 0));
}

#[test]
fn a_copy_has_all_and_changes_nothing() {
    let totals = one_of_each();
    let copy = totals.copy(|name| *name).unwrap();
    assert_eq!(list(&copy.timers), list(&totals.timers));
    assert_eq!(list(&copy.counters), list(&totals.counters));
    assert_eq!(list(&copy.gauges), list(&totals.gauges));
    assert_eq!(totals.entries(), 3);
}

#[test]
fn the_child_of_a_fork_starts_empty() {
    let mut totals = one_of_each();
    totals.after_fork_in_child();
    assert_eq!(totals.entries(), 0);
}
