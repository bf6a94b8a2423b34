//! Faults for the sanitizers to find, so that it is seen that they would. `make sanitize`

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::thread;

/// What goes round the lock.
struct Unguarded(UnsafeCell<u64>);

// SAFETY: none; threads meet in it.
unsafe impl Sync for Unguarded {}

#[test]
#[ignore = "a data race"]
fn a_race() {
    let total = Unguarded(UnsafeCell::new(0));
    let total = &total;
    thread::scope(|scope| {
        let add = || {
            for _ in 0..1000 {
                // SAFETY: none; another thread adds at the same time.
                unsafe { *black_box(total).0.get() += 1 };
            }
        };
        let threads = [(); 2].map(|()| scope.spawn(add));
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
#[ignore = "a use of freed memory"]
fn a_use_after_free() {
    let freed = {
        let total = Box::new(black_box(1_u64));
        &raw const *total
    };
    // SAFETY: none; the box is gone.
    black_box(unsafe { *black_box(freed) });
}
