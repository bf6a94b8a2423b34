//! Deliveries: counted by outcome, sampled one by one, bounded.

use std::thread;

use arroyo_metrics_buffer_core::deliveries::{Deliveries, MAX_LATENCIES, Outcome};
use arroyo_metrics_buffer_core::fork::AtFork;
use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// What a backend is sent, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Count(Outcome, i128),
    Latency(f64),
}

fn entries(deliveries: &Deliveries) -> Vec<Entry> {
    let counts = deliveries.counts().map(|(outcome, count)| Entry::Count(outcome, count));
    counts.chain(deliveries.latencies().iter().copied().map(Entry::Latency)).collect()
}

fn count(entries: &[Entry], of: Outcome) -> i128 {
    let of_outcome = |entry: &Entry| match *entry {
        Entry::Count(outcome, count) if outcome == of => count,
        _ => 0,
    };
    entries.iter().map(of_outcome).sum()
}

fn latencies(entries: &[Entry]) -> Vec<f64> {
    let latency = |entry: &Entry| match *entry {
        Entry::Latency(seconds) => Some(seconds),
        Entry::Count(..) => None,
    };
    entries.iter().filter_map(latency).collect()
}

fn full() -> Deliveries {
    let mut deliveries = Deliveries::default();
    deliveries.add_latencies(&vec![0.0; MAX_LATENCIES]).unwrap();
    deliveries
}

#[test]
fn counts_come_first_in_the_order_of_first_touch_then_latencies() {
    let recorded = || {
        let mut deliveries = Deliveries::default();
        deliveries.record(Outcome::Error, Some(0.25)).unwrap();
        deliveries.record(Outcome::Success, None).unwrap();
        deliveries.record(Outcome::Error, Some(0.5)).unwrap();
        deliveries
    };
    let (error, success) = (Entry::Count(Outcome::Error, 2), Entry::Count(Outcome::Success, 1));
    let expected = [error, success, Entry::Latency(0.25), Entry::Latency(0.5)];
    for accepted in 0..=6 {
        let mut rest = recorded();
        rest.forget_first(accepted);
        assert_eq!(entries(&rest), expected[accepted.min(4)..]);
        assert_eq!(rest.entries(), 4_usize.saturating_sub(accepted));
    }
}

#[test]
fn a_sample_past_the_bound_is_dropped_and_counted_but_not_its_outcome() {
    let mut deliveries = full();
    deliveries.record(Outcome::Success, Some(1.0)).unwrap();
    deliveries.record(Outcome::Success, Some(1.0)).unwrap();
    assert_eq!(deliveries.latencies().len(), MAX_LATENCIES);
    assert_eq!((count(&entries(&deliveries), Outcome::Success), deliveries.dropped()), (2, 2));
}

#[test]
fn what_is_put_back_comes_first_and_what_has_no_room_behind_it_is_dropped_and_counted() {
    let mut older = full();
    older.forget_first(1);
    older.record(Outcome::Success, None).unwrap();
    let mut newer = Deliveries::default();
    newer.add_latencies(&vec![1.0; MAX_LATENCIES]).unwrap();
    newer.record(Outcome::Error, Some(1.0)).unwrap();
    older.reserve_for(&newer).unwrap();
    older.merge(&mut newer);
    assert_eq!(older.latencies()[MAX_LATENCIES - 2..], [0.0, 1.0]);
    // One of the newer was dropped before, one found room.
    assert_eq!(older.dropped(), MAX_LATENCIES as u64);
    let (success, error) = (Entry::Count(Outcome::Success, 1), Entry::Count(Outcome::Error, 1));
    assert_eq!(entries(&older)[..2], [success, error]);
}

/// Deliveries with room for all samples, so many of which were dropped before.
fn having_dropped(samples: usize) -> Deliveries {
    let mut deliveries = full();
    deliveries.add_latencies(&vec![1.0; samples]).unwrap();
    deliveries.forget_first(MAX_LATENCIES);
    deliveries
}

#[test]
fn drops_are_told_until_a_flush_succeeds_and_enter_the_statistics_once() {
    let (mut older, mut newer) = (having_dropped(2), having_dropped(3));
    assert_eq!(older.take_newly_dropped(), 2);
    assert_eq!(older.take_newly_dropped(), 0);
    older.merge(&mut newer);
    assert_eq!((older.dropped(), older.take_newly_dropped()), (5, 3));
    let mut oldest = having_dropped(1);
    oldest.merge(&mut older);
    assert_eq!((oldest.dropped(), oldest.take_newly_dropped()), (6, 1));
}

#[test]
fn a_copy_has_the_same_deliveries_and_leaves_them_pending() {
    let pending = Pending::<Deliveries>::new(1.0, 0.0).unwrap();
    pending.lock().merge(&mut having_dropped(2));
    pending.lock().record(Outcome::Error, Some(0.25)).unwrap();
    pending.lock().record(Outcome::Success, None).unwrap();
    let copy = pending.snapshot(Deliveries::copy).unwrap().contents;
    let taken = pending.take().unwrap().contents;
    assert_eq!((copy.entries(), copy.dropped()), (3, 2));
    assert_eq!((entries(&copy), copy.dropped()), (entries(&taken), taken.dropped()));
}

#[test]
fn a_forked_child_has_no_deliveries_of_its_parent() {
    let mut deliveries = having_dropped(1);
    deliveries.record(Outcome::Error, Some(0.25)).unwrap();
    deliveries.after_fork_in_child();
    assert_eq!(entries(&deliveries), []);
    assert_eq!((deliveries.dropped(), deliveries.take_newly_dropped()), (0, 0));
}

proptest! {
    /// Flushes that overlap and fail midway, in any order, among deliveries.
    #[test]
    fn any_outage_delays_and_never_changes_what_is_sent(
        rounds in vec((vec((any::<bool>(), 0..1000_u16), 0..5), any::<bool>(), any::<Index>()), 0..50)
    ) {
        let pending = Pending::<Deliveries>::new(1.0, 0.0).unwrap();
        let (mut in_flight, mut sent) = (Vec::new(), Vec::new());
        let (mut made, mut samples) = ([0, 0], Vec::new());
        for (records, begins, accepted) in rounds {
            for (succeeds, millis) in records {
                let (outcome, latency) = (outcome_of(succeeds), f64::from(millis));
                pending.lock().record(outcome, Some(latency)).unwrap();
                made[usize::from(succeeds)] += 1;
                samples.push(latency);
            }
            if begins {
                in_flight.push(pending.take().unwrap());
            } else if let Some(mut taken) = in_flight.pop() {
                let mut entries = entries(&taken.contents);
                entries.truncate(accepted.index(entries.len() + 1));
                taken.contents.forget_first(entries.len());
                sent.extend(entries);
                pending.put_back(&mut taken);
            }
        }
        for taken in in_flight {
            sent.extend(entries(&taken.contents));
        }
        sent.extend(entries(&pending.take().unwrap().contents));
        prop_assert_eq!([count(&sent, Outcome::Error), count(&sent, Outcome::Success)], made);
        let mut arrived = latencies(&sent);
        arrived.sort_by(f64::total_cmp);
        samples.sort_by(f64::total_cmp);
        prop_assert_eq!(arrived, samples);
    }
}

fn outcome_of(succeeds: bool) -> Outcome {
    if succeeds { Outcome::Success } else { Outcome::Error }
}

#[test]
fn whatever_threads_record_send_and_put_back_is_sent_once() {
    const RECORDS: u32 = 50_000;
    let pending = Pending::<Deliveries>::new(1.0, 0.0).unwrap();
    let record = |succeeds| {
        (0..RECORDS)
            .for_each(|i| pending.lock().record(outcome_of(succeeds), Some(f64::from(i))).unwrap());
    };
    let flush = || {
        let mut sent = Vec::new();
        for flushes in 0..500 {
            let mut taken = pending.take().unwrap();
            let mut entries = entries(&taken.contents);
            entries.truncate(if flushes % 2 == 0 { 1 } else { entries.len() });
            taken.contents.forget_first(entries.len());
            sent.extend(entries);
            pending.put_back(&mut taken);
            thread::yield_now();
        }
        sent
    };
    let mut sent = thread::scope(|scope| {
        for succeeds in [true, false] {
            scope.spawn(move || record(succeeds));
        }
        let flushers = [(); 2].map(|()| scope.spawn(flush));
        flushers.map(|flusher| flusher.join().unwrap()).concat()
    });
    sent.extend(entries(&pending.take().unwrap().contents));
    assert_eq!(count(&sent, Outcome::Success), i128::from(RECORDS));
    assert_eq!(count(&sent, Outcome::Error), i128::from(RECORDS));
    let mut arrived = latencies(&sent);
    arrived.sort_by(f64::total_cmp);
    let twice = (0..RECORDS).flat_map(|i| [f64::from(i); 2]);
    assert!(arrived.into_iter().eq(twice));
}
