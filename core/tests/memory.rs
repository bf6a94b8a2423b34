//! Every allocation of each operation is made to fail, one after the other, and the account of all
//! that was ever added is checked after each.
//!
//! The way in which SQLite tests that it survives a lack of memory: <https://sqlite.org/testing.html>.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ptr;

use arroyo_metrics_buffer_core::deliveries::{Deliveries, Outcome};
use arroyo_metrics_buffer_core::fork;
use arroyo_metrics_buffer_core::memory::OutOfMemory;
use arroyo_metrics_buffer_core::numbers::{Last, Number};
use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::shared::Shared;
use arroyo_metrics_buffer_core::sums::NotAdded;
use arroyo_metrics_buffer_core::totals;

type Totals = totals::Totals<&'static str>;
type Account = BTreeMap<&'static str, i128>;

/// The system's allocator, which can be told to fail.
struct Failing;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

thread_local! {
    /// How many allocations of this thread succeed from now on.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// How many have failed. Only the first one that finds none left does, or all after it.
    static FAILED: Cell<usize> = const { Cell::new(0) };
    static FAILS_ON: Cell<bool> = const { Cell::new(false) };
    /// How many more allocations this thread has made than freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn fails() -> bool {
    if LEFT.get() > 0 {
        LEFT.set(LEFT.get().saturating_sub(usize::from(LEFT.get() != usize::MAX)));
        return false;
    }
    FAILED.set(FAILED.get() + 1);
    if !FAILS_ON.get() {
        LEFT.set(usize::MAX);
    }
    true
}

// SAFETY: what it returns is the system allocator's, or null, which stands for a failure.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return ptr::null_mut();
        }
        LIVE.set(LIVE.get() + 1);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - 1);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if fails() { ptr::null_mut() } else { unsafe { System.realloc(pointer, layout, size) } }
    }
}

/// Runs `operation` with its first allocation failing, then with its second, and so on, until none
/// fails; and the same with each allocation after that one failing too. `check` gets what `prepare`
/// made, what `operation` returned, and whether an allocation had failed. Returns how many
/// allocations there were.
fn with_every_allocation_failing<C, R>(
    prepare: impl Fn() -> C,
    operation: impl Fn(&mut C) -> R,
    check: impl Fn(C, R, bool),
) -> usize {
    let mut most = 0;
    for fails_on in [false, true] {
        for allocation in 0.. {
            let mut context = prepare();
            FAILED.set(0);
            FAILS_ON.set(fails_on);
            LEFT.set(allocation);
            let result = operation(&mut context);
            LEFT.set(usize::MAX);
            let failed = FAILED.get() > 0;
            check(context, result, failed);
            if !failed {
                most = most.max(allocation);
                break;
            }
        }
    }
    most
}

/// Runs `operation` with so many allocations that succeed.
fn with_memory_for<R>(allocations: usize, operation: impl FnOnce() -> R) -> R {
    FAILS_ON.set(true);
    LEFT.set(allocations);
    let result = operation();
    LEFT.set(usize::MAX);
    result
}

fn without_memory<R>(operation: impl FnOnce() -> R) -> R {
    with_memory_for(0, operation)
}

fn add(totals: &mut Totals, name: &'static str) -> Result<(), NotAdded> {
    totals.timers.add(name.as_bytes(), name.as_ptr().addr(), || name, 1.0)?;
    totals.counters.add(name.as_bytes(), name.as_ptr().addr(), || name, 1)
}

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// A buffer in which each of the names was counted once.
fn buffer(shards: usize, names: &[&'static str]) -> Pending<Totals> {
    let pending = Pending::sharded(shards, 1.0, 0.0).unwrap();
    add_all(&pending, names);
    pending
}

fn add_all(pending: &Pending<Totals>, names: &[&'static str]) {
    for name in names {
        add(&mut pending.lock(), name).unwrap();
    }
}

/// Both kinds of totals, by name.
fn account(totals: &Totals) -> (Account, Account) {
    #[allow(clippy::cast_possible_truncation)]
    let timers = totals.timers.iter().map(|(name, seconds)| (*name, seconds as i128));
    (timers.collect(), totals.counters.iter().map(|(name, count)| (*name, count)).collect())
}

/// Each name with a count for each time that it is in `names`.
fn expected(names: &[&'static str]) -> (Account, Account) {
    let mut counts = Account::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    (counts.clone(), counts)
}

#[test]
fn a_new_name_is_added_or_nothing_is() {
    for known in 0..NAMES.len() {
        let most = with_every_allocation_failing(
            || buffer(1, &NAMES[..known]),
            |pending| {
                let name = NAMES[known];
                let counters = &mut pending.lock().counters;
                counters.add(name.as_bytes(), name.as_ptr().addr(), || name, 1)
            },
            |pending, added, failed| {
                // The table asks for more than it needs, and for less if there is not so much.
                assert!(added == Ok(()) || failed && added == Err(NotAdded::OutOfMemory));
                let known = &NAMES[..known + usize::from(added.is_ok())];
                assert_eq!(account(&pending.take().unwrap().contents).1, expected(known).1);
            },
        );
        assert!(most > 0, "a name has a text, which is copied");
    }
}

#[test]
fn a_total_with_tags_is_added_or_nothing_is_and_no_name_is_dropped() {
    for known in 0..NAMES.len() {
        let key = NAMES[known].as_bytes();
        let most = with_every_allocation_failing(
            || {
                let mut totals = Totals::default();
                for name in &NAMES[..known] {
                    totals.gauges.add_renamed(name.as_bytes(), &mut Some(*name), GAUGE).unwrap();
                }
                (totals, Some("new"))
            },
            |(totals, name)| totals.gauges.add_renamed(key, name, GAUGE),
            |(totals, name), added, failed| {
                assert!(added == Ok(()) || failed && added == Err(NotAdded::OutOfMemory));
                assert_eq!(totals.gauges.len(), known + usize::from(added.is_ok()));
                assert_eq!(name.is_none(), added.is_ok(), "the caller drops it");
            },
        );
        assert!(most > 0, "a key has a text, which is copied");
        with_every_allocation_failing(
            Totals::default,
            |newer| {
                newer.gauges.add_renamed(key, &mut Some("new"), GAUGE)?;
                let mut totals = Totals::default();
                totals.reserve_for(newer)?;
                totals.merge(newer);
                Ok::<_, NotAdded>((totals.entries(), totals.copy(|name| *name)?.entries()))
            },
            |_, merged, failed| assert!(merged == Ok((1, 1)) || failed && merged.is_err()),
        );
    }
}

const GAUGE: Last = Last(Number::Int(1));

#[test]
fn a_name_that_is_known_needs_no_memory() {
    let pending = buffer(1, &NAMES);
    let most = with_every_allocation_failing(
        || (),
        |()| add(&mut pending.lock(), "a"),
        |(), added, _| assert_eq!(added, Ok(())),
    );
    assert_eq!(most, 0);
}

#[test]
fn what_is_taken_is_gone_and_what_is_not_is_still_pending() {
    for shards in [1, 4] {
        let most = with_every_allocation_failing(
            || in_all_shards(shards),
            |pending| pending.take(),
            |pending, taken, failed| {
                assert!(failed || taken.is_ok());
                let taken = taken.map(|taken| account(&taken.contents)).unwrap_or_default();
                let rest = account(&pending.take().unwrap().contents);
                assert_eq!(sum([taken, rest]), expected(&NAMES.repeat(shards)));
            },
        );
        assert!(most > 0, "there is a place to make for what may have to be put back");
    }
}

#[test]
fn a_shard_for_which_there_is_no_room_stays_pending_and_the_others_are_taken() {
    let left_some = Cell::new(false);
    with_every_allocation_failing(
        || {
            let pending = buffer(2, &[]);
            for names in NAMES.chunks(2) {
                in_a_thread(|| add_all(&pending, names)); // each thread has another shard than the last
            }
            pending
        },
        |pending| pending.take(),
        |pending, taken, _| {
            let taken = taken.map(|taken| account(&taken.contents)).unwrap_or_default();
            let rest = account(&pending.take().unwrap().contents);
            left_some.set(left_some.get() || !taken.1.is_empty() && !rest.1.is_empty());
            assert_eq!(sum([taken, rest]), expected(&NAMES));
        },
    );
    assert!(left_some.get());
}

#[test]
fn what_was_put_back_is_not_put_back_again() {
    let pending = buffer(1, &NAMES);
    let mut taken = pending.take().unwrap();
    pending.put_back(&mut taken);
    pending.put_back(&mut taken);
    assert_eq!(account(&pending.take().unwrap().contents), expected(&NAMES));
}

/// A buffer with all names in each shard.
fn in_all_shards(shards: usize) -> Pending<Totals> {
    let pending = buffer(shards, &[]);
    // Threads that come one after the other have shards that do.
    (0..shards).for_each(|_| in_a_thread(|| add_all(&pending, &NAMES)));
    pending
}

fn in_a_thread(body: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

fn sum(accounts: impl IntoIterator<Item = (Account, Account)>) -> (Account, Account) {
    let mut sum = (Account::new(), Account::new());
    for (timers, counters) in accounts {
        for (name, total) in timers {
            *sum.0.entry(name).or_default() += total;
        }
        for (name, total) in counters {
            *sum.1.entry(name).or_default() += total;
        }
    }
    sum
}

#[test]
fn what_two_failed_flushes_put_back_is_pending_though_there_is_no_memory() {
    let new = ["new", "b", "newer", "newest", "last"];
    let most = with_every_allocation_failing(
        || {
            let pending = buffer(1, &NAMES);
            let older = pending.take().unwrap();
            add_all(&pending, &NAMES);
            let newer = pending.take().unwrap();
            add_all(&pending, &new);
            (pending, older, newer)
        },
        |(pending, older, newer)| {
            older.contents.forget_first(1);
            pending.put_back(newer);
            pending.put_back(older);
        },
        |(pending, ..), (), _| {
            let (mut timers, counters) = expected(&[&NAMES[..], &NAMES, &new].concat());
            timers.insert("a", 1);
            let taken = pending.take().unwrap();
            assert_eq!(account(&taken.contents), (timers, counters));
            // What was put back comes first, as ever.
            assert_eq!(taken.contents.timers.iter().next().map(|(name, _)| *name), Some("b"));
            assert_eq!(taken.contents.timers.iter().last().map(|(name, _)| *name), Some("last"));
        },
    );
    assert!(most > 0, "there are new names, for which there is no room");
}

#[test]
fn what_can_not_be_merged_is_sent_by_a_later_flush() {
    let pending = buffer(1, &NAMES[..5]);
    let mut failed = pending.take().unwrap();
    add_all(&pending, &NAMES[5..]);
    without_memory(|| pending.put_back(&mut failed));
    let taken = with_memory_for(1, || pending.take()); // for the place alone
    assert_eq!(account(&taken.unwrap().contents), expected(&NAMES[5..]));
    assert_eq!(account(&pending.take().unwrap().contents), expected(&NAMES[..5]));
}

#[test]
fn a_snapshot_is_whole_or_there_is_none() {
    for shards in [1, 4] {
        with_every_allocation_failing(
            || in_all_shards(shards),
            |pending| pending.snapshot(|totals| totals.copy(|name| name)).ok(),
            |pending, snapshot, failed| {
                assert!(failed || snapshot.is_some());
                let all = expected(&NAMES.repeat(shards));
                assert!(snapshot.is_none_or(|copy| account(&copy.contents) == all));
                assert_eq!(account(&pending.take().unwrap().contents), all);
            },
        );
    }
}

#[test]
fn a_snapshot_misses_nothing_that_is_put_back() {
    let pending = buffer(1, &NAMES[..5]);
    let mut failed = pending.take().unwrap();
    add_all(&pending, &NAMES[5..]);
    without_memory(|| pending.put_back(&mut failed));
    let snapshot = with_memory_for(1, || pending.snapshot(|totals| totals.copy(|name| name)));
    assert!(matches!(snapshot, Err(OutOfMemory)));
    let snapshot = pending.snapshot(|totals| totals.copy(|name| name)).unwrap();
    assert_eq!(account(&snapshot.contents), expected(&NAMES));
}

#[test]
fn a_buffer_is_made_or_leaves_nothing_behind() {
    for shards in [1, 8] {
        let most = with_every_allocation_failing(
            || (),
            |()| Pending::<Totals>::sharded(shards, 1.0, 0.0).is_ok(),
            |(), made, failed| assert_eq!(made, !failed),
        );
        assert!(most >= shards, "each shard is allocated");
        // A fork takes every lock that is registered: one that is left behind would be freed memory.
        fork::before();
        fork::in_parent();
    }
}

#[test]
fn a_fork_needs_no_memory() {
    let pending = buffer(8, &NAMES);
    let most = with_every_allocation_failing(
        || (),
        |()| {
            fork::before();
            fork::in_parent();
        },
        |(), (), _| (),
    );
    assert_eq!(most, 0);
    assert_eq!(account(&pending.take().unwrap().contents), expected(&NAMES));
}

#[cfg(unix)]
#[test]
fn a_child_needs_no_memory_and_starts_empty() {
    fork::install_handlers().unwrap();
    let pending = buffer(1, &NAMES[..3]);
    let mut sending = pending.take().unwrap();
    add_all(&pending, &NAMES[3..6]);
    let mut unsent = pending.take().unwrap();
    add_all(&pending, &NAMES);
    without_memory(|| pending.put_back(&mut unsent));
    FAILED.set(0);
    // SAFETY: the child does nothing but this: it looks at what it has, and ends.
    let child = without_memory(|| unsafe { libc::fork() });
    if child == 0 {
        without_memory(|| pending.put_back(&mut sending));
        let failed = FAILED.get();
        let has_nothing = account(&pending.take().unwrap().contents) == expected(&[]);
        let is_the_parents = account(&sending.contents) == expected(&NAMES[..3]);
        // SAFETY: it ends the process.
        unsafe { libc::_exit((failed > 0 || !has_nothing || !is_the_parents).into()) };
    }
    let mut status = -1;
    // SAFETY: `status` is there to be written to.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(FAILED.get(), 0);
    let all = [&NAMES[3..6], &NAMES].concat();
    assert_eq!(account(&pending.take().unwrap().contents), expected(&all));
}

#[test]
fn a_delivery_is_counted_with_its_latency_or_not_at_all() {
    for before in 0..20 {
        with_every_allocation_failing(
            || deliveries(before),
            |pending| pending.lock().record(Outcome::Error, Some(0.5)),
            |pending, recorded, failed| {
                assert_eq!(recorded, if failed { Err(OutOfMemory) } else { Ok(()) });
                let all = pending.take().unwrap().contents;
                assert_eq!(all.latencies().len(), before + usize::from(!failed));
                assert_eq!(all.counts().any(|(outcome, _)| outcome == Outcome::Error), !failed);
            },
        );
    }
}

#[test]
fn deliveries_that_are_put_back_are_pending_though_there_is_no_memory() {
    let most = with_every_allocation_failing(
        || {
            let pending = deliveries(100);
            let taken = pending.take().unwrap();
            for _ in 0..100 {
                pending.lock().record(Outcome::Error, Some(0.5)).unwrap();
            }
            (pending, taken)
        },
        |(pending, taken)| {
            taken.contents.forget_first(11);
            pending.put_back(taken);
        },
        |(pending, _), (), _| {
            let all = pending.take().unwrap().contents;
            assert_eq!(all.latencies(), [vec![0.25; 90], vec![0.5; 100]].concat());
            assert_eq!(all.counts().collect::<Vec<_>>(), [(Outcome::Error, 100)]);
        },
    );
    assert!(most > 0);
}

/// A buffer with so many deliveries.
fn deliveries(count: usize) -> Pending<Deliveries> {
    let pending = Pending::<Deliveries>::new(1.0, 0.0).unwrap();
    for _ in 0..count {
        pending.lock().record(Outcome::Success, Some(0.25)).unwrap();
    }
    pending
}

#[test]
fn latencies_are_added_all_or_none() {
    with_every_allocation_failing(
        || deliveries(3),
        |pending| pending.lock().add_latencies(&[0.5; 100]),
        |pending, added, failed| {
            assert_eq!(added, if failed { Err(OutOfMemory) } else { Ok(()) });
            let all = pending.take().unwrap().contents;
            assert_eq!(all.latencies().len(), if failed { 3 } else { 103 });
        },
    );
}

#[test]
fn deliveries_are_copied_whole_or_not_at_all() {
    let most = with_every_allocation_failing(
        || deliveries(3),
        |pending| pending.snapshot(Deliveries::copy).ok(),
        |pending, copy, failed| {
            assert!(failed || copy.is_some());
            assert!(copy.is_none_or(|copy| copy.contents.entries() == 4));
            assert_eq!(pending.take().unwrap().contents.entries(), 4);
        },
    );
    assert!(most > 0);
}

#[test]
fn a_shared_value_is_registered_or_dropped() {
    struct Value;
    impl fork::AtFork for Value {}
    let most = with_every_allocation_failing(
        || (),
        |()| Shared::new(Value).is_ok(),
        |(), made, failed| assert_eq!(made, !failed),
    );
    assert!(most > 0);
}

#[test]
fn what_a_buffer_allocates_is_freed_with_it() {
    let use_and_drop = || {
        let pending = buffer(8, &NAMES);
        let mut failed = pending.take().unwrap();
        add_all(&pending, &NAMES[..5]);
        without_memory(|| pending.put_back(&mut failed));
        drop(failed);
        drop(pending.snapshot(|totals| totals.copy(|name| name)).unwrap());
    };
    use_and_drop(); // the registry of all locks has its room from now on
    let live = LIVE.get();
    use_and_drop();
    assert_eq!(LIVE.get(), live);
}

/// A thread has less stack than it takes to drop each of them within the one before it.
#[test]
fn places_of_any_number_are_dropped_one_after_the_other() {
    let pending = buffer(1, &[]);
    let flushes: Vec<_> = (0..5000).map(|_| pending.take().unwrap()).collect();
    for mut taken in flushes {
        without_memory(|| pending.put_back(&mut taken));
    }
    let dropping = std::thread::Builder::new().stack_size(1 << 16).spawn(|| drop(pending));
    dropping.unwrap().join().unwrap();
}
