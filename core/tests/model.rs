//! Every order in which threads can run through the core, within bounds, as loom finds them.
//!
//! `make model`. A model is run once for every order of its threads' atomic operations, and for every
//! value that a load may return then, with at most so many preemptions as `LOOM_MAX_PREEMPTIONS`
//! says. It fails if an assertion does, if threads wait for each other for ever, or if two come to
//! the contents of a buffer without one having seen all that the other did.
#![cfg(loom)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arroyo_metrics_buffer_core::fork::{self, AtFork};
use arroyo_metrics_buffer_core::memory::OutOfMemory;
use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::shared::Shared;
use arroyo_metrics_buffer_core::totals;
use loom::cell::UnsafeCell;
use loom::thread::{self, JoinHandle};

type Totals = totals::Totals<&'static str>;
type Buffer = Arc<Pending<Watched>>;
/// Counts by name.
type Account = BTreeMap<&'static str, i128>;

/// The contents that ship, in a cell that loom watches.
#[derive(Default)]
struct Watched(UnsafeCell<Totals>);

impl Watched {
    fn with<R>(&self, body: impl FnOnce(&Totals) -> R) -> R {
        // SAFETY: loom fails the model if anyone may be writing.
        self.0.with(|totals| body(unsafe { &*totals }))
    }

    fn with_mut<R>(&mut self, body: impl FnOnce(&mut Totals) -> R) -> R {
        // SAFETY: loom fails the model if anyone else may be here.
        self.0.with_mut(|totals| body(unsafe { &mut *totals }))
    }

    /// Names and counts in the order of sending.
    fn counts(&self) -> Vec<(&'static str, i128)> {
        self.with(|totals| totals.counters.iter().map(|(name, count)| (*name, count)).collect())
    }
}

impl Contents for Watched {
    fn entries(&self) -> usize {
        self.with(Totals::entries)
    }

    fn forget_first(&mut self, count: usize) {
        self.with_mut(|totals| totals.forget_first(count));
    }

    fn reserve_for(&mut self, newer: &Self) -> Result<(), OutOfMemory> {
        self.with_mut(|totals| newer.with(|newer| totals.reserve_for(newer)))
    }

    fn merge(&mut self, newer: &mut Self) {
        newer.with_mut(|newer| self.with_mut(|totals| totals.merge(newer)));
    }
}

impl AtFork for Watched {
    fn after_fork_in_child(&mut self) {
        leave_to_parent(self);
        self.with_mut(Totals::after_fork_in_child);
    }
}

loom::lazy_static! {
    /// What a child found of its parent's.
    static ref LEFT_TO_PARENT: Mutex<Vec<Account>> = Mutex::new(Vec::new());
}

fn leave_to_parent(contents: &Watched) {
    LEFT_TO_PARENT.lock().unwrap().push(contents.counts().into_iter().collect());
}

/// Explores a model and says how many executions that took.
fn explore(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0)); // of this model: tests run at the same time
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 1_000;
    let counted = executions.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{name}: {} executions", executions.load(Ordering::Relaxed));
}

fn buffer(shards: usize) -> Buffer {
    Arc::new(Pending::sharded(shards, 1.0, 0.0).unwrap())
}

/// Counts 1 in the shard of the calling thread.
fn add(buffer: &Pending<Watched>, name: &'static str) {
    let added = buffer
        .lock()
        .with_mut(|totals| totals.counters.add(name.as_bytes(), name.as_ptr().addr(), || name, 1));
    added.expect("in range");
}

/// Flushes to a backend that accepts so many entries and then fails. What is the parent's of a fork
/// meanwhile is left to it.
fn flush(buffer: &Pending<Watched>, accepts: usize) -> Account {
    let mut taken = buffer.take().unwrap();
    let entries = taken.contents.entries();
    let accepted = taken.contents.counts().into_iter().take(accepts).collect();
    if entries > accepts {
        taken.contents.forget_first(accepts);
        buffer.put_back(&mut taken);
        if taken.belongs_to_parent() {
            leave_to_parent(&taken.contents);
        }
    }
    accepted
}

const ALL: usize = usize::MAX;

fn sum(accounts: impl IntoIterator<Item = Account>) -> Account {
    let mut sum = Account::new();
    for (name, count) in accounts.into_iter().flatten() {
        *sum.entry(name).or_default() += count;
    }
    sum
}

/// A thread of the model that has the buffer.
fn spawn<R: 'static>(
    buffer: &Buffer,
    body: impl FnOnce(&Pending<Watched>) -> R + 'static,
) -> JoinHandle<R> {
    let buffer = buffer.clone();
    thread::spawn(move || body(&buffer))
}

fn join<R>(threads: impl IntoIterator<Item = JoinHandle<R>>) -> Vec<R> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn what_threads_add_is_sent_once_though_a_flush_fails() {
    for shards in [1, 2] {
        explore(&format!("2 threads add, 1 fails and puts back, {shards} shard(s)"), move || {
            let buffer = buffer(shards);
            let adders = [["a", "b"], ["b", "a"]]
                .map(|names| spawn(&buffer, move |buffer| names.map(|name| add(buffer, name))));
            let failing = spawn(&buffer, |buffer| flush(buffer, 1));
            join(adders);
            let sent = [failing.join().unwrap(), flush(&buffer, ALL)];
            assert_eq!(sum(sent), Account::from([("a", 2), ("b", 2)]));
        });
    }
}

#[test]
fn what_several_flushes_put_back_is_neither_lost_nor_doubled() {
    for shards in [1, 2] {
        explore(&format!("1 thread adds, 2 fail and put back, {shards} shard(s)"), move || {
            let buffer = buffer(shards);
            add(&buffer, "a");
            let failing =
                [0, 1].map(|accepts| spawn(&buffer, move |buffer| flush(buffer, accepts)));
            add(&buffer, "b");
            let mut sent = join(failing);
            sent.push(flush(&buffer, ALL));
            assert_eq!(sum(sent), Account::from([("a", 1), ("b", 1)]));
        });
    }
}

#[test]
fn of_threads_that_find_a_flush_due_one_flushes() {
    explore("3 threads add and flush when due, at one time", || {
        let buffer = buffer(1);
        let add_and_flush = |buffer: &Pending<Watched>| {
            add(buffer, "a");
            buffer.throttle().is_due(2.0).then(|| flush(buffer, ALL))
        };
        let threads = [(); 2].map(|()| spawn(&buffer, add_and_flush));
        let mine = add_and_flush(&buffer);
        let mut sent: Vec<_> = join(threads).into_iter().chain([mine]).flatten().collect();
        assert_eq!(sent.len(), 1);
        sent.push(flush(&buffer, ALL));
        assert_eq!(sum(sent), Account::from([("a", 3)]));
    });
}

#[test]
fn flushes_that_threads_are_told_to_make_are_more_than_an_interval_apart() {
    explore("4 threads ask whether a flush is due, at different times", || {
        let buffer = buffer(1);
        let ask = |now| {
            move |buffer: &Pending<Watched>| Some(now).filter(|now| buffer.throttle().is_due(*now))
        };
        let threads = [1.25, 2.0, 3.5].map(|now| spawn(&buffer, ask(now)));
        let mine = ask(2.75)(&buffer);
        let mut told: Vec<f64> = join(threads).into_iter().chain([mine]).flatten().collect();
        told.sort_by(f64::total_cmp);
        assert!(!told.is_empty());
        assert!(told.windows(2).all(|two| two[1] - two[0] > 1.0), "told to flush at {told:?}");
    });
}

#[test]
fn a_thread_leaves_its_shard_behind_when_it_dies() {
    explore("2 threads die with their shards, 1 takes them meanwhile", || {
        let buffer = buffer(4);
        let dying = ["a", "b"].map(|name| spawn(&buffer, move |buffer| add(buffer, name)));
        let early = flush(&buffer, ALL);
        join(dying);
        // A new thread, which has another shard or shares one.
        let late = spawn(&buffer, |buffer| {
            add(buffer, "b");
            flush(buffer, ALL)
        });
        assert_eq!(sum([early, late.join().unwrap()]), Account::from([("a", 1), ("b", 2)]));
    });
}

#[test]
fn a_fork_waits_for_every_thread_and_holds_up_none_for_ever() {
    explore("2 threads fork, 1 adds, 1 makes and drops a buffer; as parents", || {
        let buffer = buffer(2);
        let forking = spawn(&buffer, |_| {
            fork::before();
            fork::in_parent();
        });
        let making = spawn(&buffer, |_| drop(Shared::new(Watched::default()).unwrap()));
        let adding = spawn(&buffer, |buffer| add(buffer, "a"));
        fork::before();
        fork::in_parent();
        join([forking, making, adding]);
        assert_eq!(flush(&buffer, ALL), Account::from([("a", 1)]));
    });
}

/// A child has no threads but one. Those that it lacks go on in the model, as if they were started
/// in the child: they come to locks that are free and to contents that are whole and empty.
#[test]
fn a_child_finds_every_lock_free_and_every_buffer_whole() {
    for shards in [1, 2] {
        explore(
            &format!("1 thread forks, 2 add, 1 fails and puts back; as child, {shards} shard(s)"),
            move || {
                let buffer = buffer(shards);
                add(&buffer, "parent's");
                let adders = ["a", "b"].map(|name| {
                    spawn(&buffer, move |buffer| {
                        add(buffer, name);
                        add(buffer, name);
                    })
                });
                let failing = spawn(&buffer, |buffer| flush(buffer, 0));
                let generation = fork::generation();
                fork::before();
                fork::in_child();
                assert_eq!(fork::generation(), generation + 1);
                join(adders);
                failing.join().unwrap();
                let childs = flush(&buffer, ALL);
                assert_eq!(childs.get("parent's"), None);
                let all =
                    LEFT_TO_PARENT.lock().unwrap().drain(..).chain([childs]).collect::<Vec<_>>();
                assert_eq!(sum(all), Account::from([("parent's", 1), ("a", 2), ("b", 2)]));
            },
        );
    }
}
