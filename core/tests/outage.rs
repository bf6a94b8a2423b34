//! Outages: when each is told, how long it took, and how many flushes failed.

use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::outage::{Ended, Failure, Outage, RECORD_INTERVAL};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn an_outage_is_told_when_it_begins_once_a_minute_and_when_it_ends() {
    let mut outage = Outage::default();
    assert_eq!(outage.failed(1000.0, true), Failure::Begins);
    assert_eq!(outage.failed(1001.0, true), Failure::IsKnown);
    assert_eq!(outage.failed(1059.5, true), Failure::IsKnown);
    let first_minute = Failure::GoesOn { seconds: 60.0, failures: 4, untold: 3 };
    assert_eq!(outage.failed(1060.0, true), first_minute);
    assert_eq!(outage.failed(1119.0, true), Failure::IsKnown);
    let second_minute = Failure::GoesOn { seconds: 121.0, failures: 6, untold: 2 };
    assert_eq!(outage.failed(1121.0, true), second_minute);
    assert_eq!(outage.succeeded(1122.5), Some(Ended { seconds: 122.5, failures: 6 }));
}

#[test]
fn a_flush_that_is_accepted_outside_an_outage_ends_none() {
    let mut outage = Outage::default();
    assert_eq!(outage.succeeded(0.0), None);
    outage.failed(1.0, true);
    assert!(outage.succeeded(2.0).is_some());
    assert_eq!(outage.succeeded(3.0), None);
}

#[test]
fn the_next_outage_begins_anew() {
    let mut outage = Outage::default();
    outage.failed(0.0, true);
    outage.failed(100.0, true);
    outage.succeeded(110.0);
    assert_eq!(outage.failed(120.0, true), Failure::Begins);
    assert_eq!(outage.failed(130.0, true), Failure::IsKnown);
    assert_eq!(outage.succeeded(131.0), Some(Ended { seconds: 11.0, failures: 2 }));
}

#[test]
fn a_clock_that_is_set_back_silences_no_outage_and_makes_no_time_negative() {
    let mut outage = Outage::default();
    outage.failed(5000.0, true);
    let after_the_step = Failure::GoesOn { seconds: 0.0, failures: 2, untold: 1 };
    assert_eq!(outage.failed(1000.0, true), after_the_step);
    assert_eq!(outage.failed(1059.0, true), Failure::IsKnown);
    let a_minute_later = Failure::GoesOn { seconds: 60.0, failures: 4, untold: 2 };
    assert_eq!(outage.failed(1060.0, true), a_minute_later);
    assert_eq!(outage.succeeded(500.0), Some(Ended { seconds: 0.0, failures: 4 }));
}

#[test]
fn a_clock_that_stands_still_has_an_outage_told_once() {
    for now in [0.0, f64::INFINITY, f64::NEG_INFINITY] {
        let mut outage = Outage::default();
        outage.failed(now, true);
        assert_eq!(outage.failed(now, true), Failure::IsKnown);
        assert_eq!(outage.succeeded(now), Some(Ended { seconds: 0.0, failures: 2 }));
    }
}

#[test]
fn a_forked_child_is_in_no_outage() {
    let mut outage = Outage::default();
    outage.failed(0.0, true);
    outage.after_fork_in_child();
    assert_eq!(outage.succeeded(1.0), None);
    assert_eq!(outage.failed(2.0, true), Failure::Begins);
}

#[test]
fn an_outage_that_began_while_errors_were_raised_is_told_from_the_first_that_is_not() {
    let mut outage = Outage::default();
    assert!(!outage.is_running());
    assert_eq!(outage.failed(0.0, false), Failure::IsKnown);
    assert!(outage.is_running());
    assert_eq!(outage.failed(1.0, true), Failure::Begins);
    let a_minute_later = Failure::GoesOn { seconds: 61.0, failures: 3, untold: 1 };
    assert_eq!(outage.failed(61.0, true), a_minute_later);
    assert_eq!(outage.succeeded(62.0), Some(Ended { seconds: 62.0, failures: 3 }));
    outage.failed(63.0, false);
    assert_eq!(outage.succeeded(64.0), None, "nobody was told of it");
    assert!(!outage.is_running());
}

proptest! {
    #[test]
    fn every_failure_is_told_once_and_at_most_one_record_is_made_a_minute(
        steps in vec(0.0..40.0_f64, 1..200),
    ) {
        let mut outage = Outage::default();
        let (mut now, mut told, mut records) = (0.0, 0, vec![]);
        for step in &steps {
            now += step;
            match outage.failed(now, true) {
                Failure::Begins => {
                    prop_assert!(records.is_empty());
                    told = 1;
                    records.push(now);
                }
                Failure::GoesOn { seconds, failures, untold } => {
                    prop_assert!((seconds - (now - records[0])).abs() < 1e-9);
                    told += untold;
                    prop_assert_eq!(failures, told);
                    records.push(now);
                }
                Failure::IsKnown => {
                    prop_assert!(now - records[records.len() - 1] < RECORD_INTERVAL);
                }
            }
        }
        prop_assert!(records.windows(2).all(|two| two[1] - two[0] >= RECORD_INTERVAL));
        let failures = steps.len() as u64;
        prop_assert_eq!(outage.succeeded(now).map(|ended| ended.failures), Some(failures));
    }
}
