//! Several threads in one buffer at the same time.

use std::collections::BTreeMap;
use std::iter;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, Weak};
use std::thread;
use std::time::Duration;

use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::sums::{Sums, Total};
use arroyo_metrics_buffer_core::totals;

type Totals = totals::Totals<&'static str>;

/// More than are copied for by identity, so that some go by their text.
const TIMERS: [&str; 10] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];
const COUNTERS: [&str; 10] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"];

/// What was made of each metric, or what was sent of it.
type Account = BTreeMap<&'static str, i128>;

fn enter(account: &mut Account, entries: impl IntoIterator<Item = (&'static str, i128)>) {
    for (name, total) in entries {
        *account.entry(name).or_default() += total;
    }
}

fn sum(accounts: impl IntoIterator<Item = Account>) -> Account {
    accounts.into_iter().fold(Account::new(), |mut sum, account| {
        enter(&mut sum, account);
        sum
    })
}

/// In the order of sending.
fn entries(totals: &Totals) -> Vec<(&'static str, i128)> {
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds, and few")]
    let timers = totals.timers.iter().map(|(name, total)| (*name, total as i128));
    timers.chain(totals.counters.iter().map(|(name, total)| (*name, total))).collect()
}

/// Adds to every metric in turn and returns what it made.
fn add(pending: &Pending<Totals>, turns: i32) -> Account {
    let mut made = Account::new();
    for turn in 0..turns {
        for (timer, counter) in TIMERS.into_iter().zip(COUNTERS) {
            let (seconds, count) = (f64::from(turn), i128::from(7 - turn));
            add_to(pending, timer, seconds, |totals| &mut totals.timers);
            add_to(pending, counter, count, |totals| &mut totals.counters);
            enter(&mut made, [(timer, turn.into()), (counter, count)]);
        }
    }
    made
}

/// As the Python class does it: the lock is taken anew to go by the text.
fn add_to<V: Total>(
    pending: &Pending<Totals>,
    name: &'static str,
    delta: V,
    sums: impl Fn(&mut Totals) -> &mut Sums<&'static str, V>,
) {
    let address = name.as_ptr().addr();
    let known = sums(&mut pending.lock()).add_by_address(address, delta).expect("in range");
    if !known {
        let text = name.as_bytes();
        sums(&mut pending.lock()).add(text, address, || name, delta).expect("in range");
    }
}

/// Flushes until told to stop and returns what the backend got. That accepts everything, or fails
/// at one entry after the other.
fn flush(pending: &Pending<Totals>, backend_fails: bool, stop: &AtomicBool) -> Account {
    let mut sent = Account::new();
    let mut flushes = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut taken = pending.take().unwrap();
        let entries = entries(&taken.contents);
        if backend_fails {
            flushes += 1;
            let accepted = flushes % (entries.len() + 1);
            enter(&mut sent, entries.into_iter().take(accepted));
            taken.contents.forget_first(accepted);
            pending.put_back(&mut taken);
        } else {
            enter(&mut sent, entries);
        }
    }
    sent
}

/// A lock that is never released fails the test instead of hanging it.
fn in_time(body: impl FnOnce() + Send + 'static) {
    let (done, outcome) = mpsc::channel();
    let thread = thread::spawn(move || {
        body();
        done.send(()).expect("it is waited for");
    });
    if let Err(RecvTimeoutError::Timeout) = outcome.recv_timeout(Duration::from_secs(120)) {
        panic!("it hangs");
    }
    thread.join().unwrap_or_else(|error| panic::resume_unwind(error));
}

#[test]
fn whatever_threads_add_send_and_put_back_is_sent_once() {
    in_time(|| {
        for shards in [1, 1, 1, 2, 4, 8] {
            let pending = Pending::<Totals>::sharded(shards, 1.0, 0.0).unwrap();
            let stop = AtomicBool::new(false);
            let (made, sent) = thread::scope(|scope| {
                let adders = [(); 3].map(|()| scope.spawn(|| add(&pending, 500)));
                let flushers = [true, true, false].map(|backend_fails| {
                    let (pending, stop) = (&pending, &stop);
                    scope.spawn(move || flush(pending, backend_fails, stop))
                });
                // Before anyone's panic is passed on: it would leave the flushers running.
                let made = adders.map(thread::ScopedJoinHandle::join);
                stop.store(true, Ordering::Relaxed);
                let sent = flushers.map(thread::ScopedJoinHandle::join);
                (made.map(Result::unwrap), sent.map(Result::unwrap))
            });
            let mut sent = sum(sent);
            enter(&mut sent, entries(&pending.take().unwrap().contents));
            assert_eq!(sent, sum(made));
        }
    });
}

#[test]
fn whatever_the_shards_a_thread_finds_its_names_in_the_order_it_touched_them() {
    in_time(|| {
        for shards in [1, 2, 4] {
            let pending = Pending::<Totals>::sharded(shards, 1.0, 0.0).unwrap();
            let barrier = Barrier::new(5);
            thread::scope(|scope| {
                for names in COUNTERS.chunks(2) {
                    let (pending, barrier) = (&pending, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        for name in names {
                            add_to(pending, name, 1, |totals| &mut totals.counters);
                        }
                    });
                }
            });
            let mut taken = pending.take().unwrap();
            let names = names(&taken.contents);
            assert_eq!(names.len(), COUNTERS.len());
            let place = |name| names.iter().position(|other| other == name);
            assert!(COUNTERS.chunks(2).all(|pair| place(&pair[0]) < place(&pair[1])));
            // What is put back comes first, whichever threads' that and what is newer are.
            taken.contents.forget_first(COUNTERS.len() - 1);
            for _ in 0..2 * shards {
                thread::scope(|scope| {
                    scope.spawn(|| add_to(&pending, "new", 1, |totals| &mut totals.counters));
                });
            }
            pending.put_back(&mut taken);
            assert_eq!(
                self::names(&pending.take().unwrap().contents),
                [names[COUNTERS.len() - 1], "new"]
            );
        }
    });
}

/// Those of counters, in the order of sending.
fn names(totals: &Totals) -> Vec<&'static str> {
    totals.counters.iter().map(|(name, _)| *name).collect()
}

#[test]
fn threads_that_add_to_shards_of_their_own_do_not_wait_for_each_other() {
    in_time(|| {
        // As many as no other test has threads: the number of the next thread is that of this one
        // and a few more.
        let pending = Pending::<Totals>::sharded(1 << 12, 1.0, 0.0).unwrap();
        let held = pending.lock();
        thread::scope(|scope| {
            scope.spawn(|| add_to(&pending, "name", 1, |totals| &mut totals.counters));
        });
        drop(held);
        assert_eq!(entries(&pending.take().unwrap().contents), [("name", 1)]);
    });
}

#[test]
fn a_name_that_several_shards_have_is_one_to_who_takes_or_copies() {
    in_time(|| {
        let pending = Pending::<Totals>::sharded(4, 1.0, 0.0).unwrap();
        for _ in 0..4 {
            thread::scope(|scope| {
                scope.spawn(|| add_to(&pending, "name", 1, |totals| &mut totals.counters));
            });
        }
        let copied = pending.snapshot(|totals| totals.copy(|name| name)).unwrap();
        assert_eq!(entries(&copied.contents), [("name", 4)]);
        assert_eq!(entries(&pending.take().unwrap().contents), [("name", 4)]);
        assert_eq!(entries(&pending.take().unwrap().contents), []);
    });
}

#[test]
fn of_many_threads_that_ask_at_the_same_time_one_is_told_to_flush() {
    const THREADS: usize = 8;
    in_time(|| {
        let pending = Pending::<Totals>::new(1.0, 0.0).unwrap();
        let barrier = Barrier::new(THREADS);
        for now in [2.0, 4.0, 6.0, 8.0] {
            let ask = || {
                barrier.wait();
                pending.throttle().is_due(now)
            };
            let told = thread::scope(|scope| {
                let threads = [(); THREADS].map(|()| scope.spawn(ask));
                threads.map(|thread| thread.join().unwrap())
            });
            let told = told.into_iter().filter(|told| *told).count();
            assert_eq!(told, 1, "threads told to flush at {now}");
        }
    });
}

/// The same at full speed, where threads meet between looking at the time and telling the others.
#[test]
fn threads_that_race_are_told_to_flush_more_than_an_interval_apart() {
    const ASKS: u32 = 3_000_000;
    in_time(|| {
        let pending = Pending::<Totals>::new(1.0, 0.0).unwrap();
        let clock = AtomicU32::new(0);
        let ask = || {
            let tick = || Some(clock.fetch_add(1, Ordering::Relaxed)).filter(|now| *now < ASKS);
            let told = |now: &u32| pending.throttle().is_due(f64::from(*now));
            iter::from_fn(tick).filter(told).collect::<Vec<_>>()
        };
        let mut told = thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(ask));
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        told.sort_unstable();
        assert!(told.len() > 1);
        for flushes in told.windows(2) {
            assert!(flushes[1] - flushes[0] > 1, "told to flush at {flushes:?}");
        }
    });
}

/// A name that calls the buffer it was in when it is freed, as the `__del__` of a `str` may.
struct CallsBack(Weak<Pending<totals::Totals<CallsBack>>>);

impl Drop for CallsBack {
    fn drop(&mut self) {
        if let Some(pending) = self.0.upgrade() {
            add_calling_back(&pending, "freed");
            // Makes a buffer too, and so comes to the registry of all of them.
            drop(Pending::<Totals>::new(1.0, 0.0).unwrap());
        }
    }
}

fn add_calling_back(pending: &Arc<Pending<totals::Totals<CallsBack>>>, name: &str) {
    let new_name = || CallsBack(Arc::downgrade(pending));
    pending
        .lock()
        .counters
        .add(name.as_bytes(), name.as_ptr().addr(), new_name, 1)
        .expect("in range");
}

#[test]
fn a_name_that_is_freed_may_call_the_buffer_it_was_in() {
    in_time(|| {
        let pending = Arc::new(Pending::new(1.0, 0.0).unwrap());
        add_calling_back(&pending, "sent");
        add_calling_back(&pending, "twice");
        let mut taken = pending.take().unwrap();
        add_calling_back(&pending, "twice");
        taken.contents.forget_first(1);
        pending.put_back(&mut taken);
        drop(taken); // in which "twice" is left over
        let counts = |pending: &Pending<totals::Totals<CallsBack>>| {
            pending.lock().counters.iter().map(|(_, total)| total).collect::<Vec<_>>()
        };
        assert_eq!(counts(&pending), [2, 2], "twice, and freed");
        drop(pending.take().unwrap());
        assert_eq!(counts(&pending), [2], "freed");
    });
}

#[test]
fn a_name_that_is_freed_with_its_buffer_may_use_others() {
    in_time(|| {
        let other = Arc::new(Pending::new(1.0, 0.0).unwrap());
        let buffer = Pending::<totals::Totals<CallsBack>>::new(1.0, 0.0).unwrap();
        let name = CallsBack(Arc::downgrade(&other));
        buffer.lock().counters.add(b"name", 0, || name, 1).expect("in range");
        drop(buffer);
        assert_eq!(other.lock().entries(), 1);
    });
}
