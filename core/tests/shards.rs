//! Which shard a thread adds to. Threads are numbered by the process, so this test has a process to
//! itself.

use std::cell::RefCell;
use std::thread;

use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::totals::Totals;

type Buffer = Pending<Totals<usize>>;

fn add(buffer: &Buffer, name: usize) {
    let text = name.to_string();
    buffer.lock().counters.add(text.as_bytes(), name, || name, 1).expect("in range");
}

/// How many names each shard has.
fn names_by_shard(buffer: &Buffer) -> Vec<usize> {
    let names = RefCell::new(Vec::new());
    let copy = buffer.snapshot(|totals| {
        names.borrow_mut().push(totals.entries());
        totals.copy(|name| *name)
    });
    copy.expect("there is memory");
    names.into_inner()
}

#[test]
fn threads_share_the_shards_evenly_and_each_stays_with_its_own() {
    const ADDS: usize = 3;
    for (asked_for, shards) in [(1, 1), (2, 2), (3, 4), (8, 8)] {
        let buffer = Buffer::sharded(asked_for, 1.0, 0.0).unwrap();
        for thread in 0..2 * shards {
            thread::scope(|scope| {
                scope.spawn(|| (0..ADDS).for_each(|name| add(&buffer, thread * ADDS + name)));
            });
        }
        assert_eq!(names_by_shard(&buffer), vec![2 * ADDS; shards]);
    }
}
