//! Forks at any moment, from any thread.
#![cfg(all(unix, not(loom)))] // loom has no statics outside a model

use std::any::Any;
use std::env;
use std::ffi::c_void;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use arroyo_metrics_buffer_core::fork::{self, AtFork};
use arroyo_metrics_buffer_core::lock::{Mutex, mutex};
use arroyo_metrics_buffer_core::pending::{Contents, Pending};
use arroyo_metrics_buffer_core::shared::{Shared, share};
use arroyo_metrics_buffer_core::totals;

type Totals = totals::Totals<&'static str>;

/// How long a child may take, its own children included.
const CHILD_TIMEOUT: Duration = Duration::from_secs(10);

/// Forks, and fails if `body` panics, crashes or hangs in the child.
///
/// `body` may use what is on the heap or on the stack of this thread. The stacks of the others, which
/// the child lacks, glibc frees there to make room for those of new threads.
fn in_a_child(timeout: Duration, body: impl FnOnce()) {
    succeeds(start_child(body), timeout);
}

/// The number of the child, which ends with `body`.
fn start_child(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child is a copy of this thread alone. It runs `body` and ends there, so that
    // neither the rest of the test nor the harness goes on twice.
    let child = unsafe { libc::fork() };
    match child {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            // SAFETY: it ends the process in a minute, should it hang and nobody be left to kill it.
            unsafe { libc::alarm(60) };
            let outcome = panic::catch_unwind(AssertUnwindSafe(body));
            // The harness captures what a panic prints, and here that is the child's copy.
            let complaint = outcome.as_ref().err().map(|error| message(error.as_ref()));
            let _ = complaint.map(|complaint| writeln!(io::stderr(), "in a child: {complaint}"));
            // SAFETY: it ends the process.
            unsafe { libc::_exit(outcome.is_err().into()) }
        }
        child => child,
    }
}

fn succeeds(child: libc::pid_t, timeout: Duration) {
    assert_eq!(wait(child, timeout), Some(0), "status of the child, if it ended");
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// The child's status, or `None` if it had to be killed.
fn wait(child: libc::pid_t, timeout: Duration) -> Option<i32> {
    let deadline = Instant::now() + timeout;
    let mut status = 0;
    let mut hangs = false;
    // SAFETY: `status` is there to be written to, and nobody else waits for this child.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > deadline {
            hangs = true;
            // SAFETY: nobody has waited for the child yet, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        thread::sleep(Duration::from_micros(50));
    }
    (!hangs).then_some(status)
}

/// A fork that never returns fails the test instead of hanging it.
fn in_time(timeout: Duration, body: impl FnOnce() + Send + 'static) {
    fork::install_handlers().expect("there is memory for the handlers");
    let (done, outcome) = mpsc::channel();
    let thread = thread::spawn(move || {
        body();
        done.send(()).expect("it is waited for");
    });
    if let Err(RecvTimeoutError::Timeout) = outcome.recv_timeout(timeout) {
        panic!("it hangs");
    }
    thread.join().unwrap_or_else(|error| panic::resume_unwind(error));
}

/// Adds one and returns it.
fn add(pending: &Pending<Totals>, name: &'static str) -> i128 {
    let mut totals = pending.lock();
    totals.counters.add(name.as_bytes(), name.as_ptr().addr(), || name, 1).expect("in range");
    1
}

fn count(totals: &Totals) -> i128 {
    totals.counters.iter().map(|(_, total)| total).sum()
}

/// Runs `body` in two new threads, which are started as Python starts its own: `std::thread` takes
/// a lock in every thread that begins or ends, and a fork may leave that taken.
fn in_two_threads(body: &(dyn Fn() + Sync)) {
    extern "C" fn run(body: *mut c_void) -> *mut c_void {
        // SAFETY: it points to the parameter below, which outlives this thread.
        let body = unsafe { *body.cast::<&(dyn Fn() + Sync)>() };
        body();
        ptr::null_mut()
    }
    let threads = [(); 2].map(|()| {
        let argument = (&raw const body).cast_mut().cast();
        let mut thread = MaybeUninit::uninit();
        // SAFETY: `run` gets what it expects, and can't unwind: a panic in it aborts.
        let errno =
            unsafe { libc::pthread_create(thread.as_mut_ptr(), ptr::null(), run, argument) };
        assert_eq!(errno, 0, "pthread_create");
        // SAFETY: the thread was started.
        unsafe { thread.assume_init() }
    });
    for thread in threads {
        // SAFETY: nobody else joins it.
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    }
}

/// What a child may expect of every buffer that its parent had.
fn starts_empty_and_works(buffers: &[Pending<Totals>]) {
    for buffer in buffers {
        let pending =
            || count(&buffer.snapshot(|totals| totals.copy(|name| name)).unwrap().contents);
        assert_eq!(pending(), 0);
        in_two_threads(&|| {
            add(buffer, "child");
        });
        assert_eq!(pending(), 2);
    }
    let own = Pending::new(1.0, 0.0).unwrap();
    add(&own, "child");
    assert_eq!(count(&own.take().unwrap().contents), 1);
}

#[test]
fn a_fork_at_any_moment_leaves_a_child_that_works_and_a_parent_that_lost_nothing() {
    const FORKS: u32 = 200;
    in_time(3 * CHILD_TIMEOUT, || {
        let buffers = Arc::new([1, 2, 8].map(|shards| Pending::sharded(shards, 1.0, 0.0).unwrap()));
        let stop = AtomicBool::new(false);
        let until_stopped = |step: &dyn Fn() -> i128| {
            let mut sum = 0;
            while !stop.load(Ordering::Relaxed) {
                sum += step();
            }
            sum
        };
        let adding = || until_stopped(&|| buffers.iter().map(|buffer| add(buffer, "parent")).sum());
        let taken = |buffer: &Pending<Totals>| count(&buffer.take().unwrap().contents);
        let sending = || until_stopped(&|| buffers.iter().map(taken).sum());
        let making_buffers = || until_stopped(&|| taken(&Pending::new(1.0, 0.0).unwrap()));
        let forking = |buffers: Arc<[Pending<Totals>; 3]>| {
            let generation = fork::generation();
            for _ in 0..FORKS {
                let mut taken = buffers[0].take().unwrap();
                in_a_child(CHILD_TIMEOUT, || {
                    assert_eq!(fork::generation(), generation + 1);
                    assert!(taken.belongs_to_parent());
                    starts_empty_and_works(&*buffers);
                    in_a_child(CHILD_TIMEOUT / 2, || {
                        assert_eq!(fork::generation(), generation + 2);
                        starts_empty_and_works(&*buffers);
                    });
                    assert_eq!(count(&buffers[0].take().unwrap().contents), 2);
                });
                assert_eq!(fork::generation(), generation);
                assert!(!taken.belongs_to_parent());
                buffers[0].put_back(&mut taken);
            }
        };
        let (made, sent) = thread::scope(|scope| {
            let adders = [(); 2].map(|()| scope.spawn(adding));
            let sender = scope.spawn(sending);
            scope.spawn(making_buffers);
            let forkers = [(); 2].map(|()| {
                let buffers = buffers.clone();
                scope.spawn(move || forking(buffers))
            });
            let forkers = forkers.map(thread::ScopedJoinHandle::join);
            // Before a fork's failure is passed on: it would leave the others running.
            stop.store(true, Ordering::Relaxed);
            forkers.into_iter().for_each(Result::unwrap);
            let made = adders.map(|adder| adder.join().unwrap()).iter().sum::<i128>();
            (made, sender.join().unwrap())
        });
        let pending = buffers.iter().map(taken).sum::<i128>();
        assert_eq!(sent + pending, made);
    });
}

/// Locks that threads hold, wait for and are about to wait for at the moment of the fork, and that
/// the child's own threads wait for at once. Were waiters parked, as by `parking_lot::RawMutex`, four
/// children in a hundred would hang.
#[test]
fn no_child_waits_for_a_thread_that_it_lacks() {
    const FORKERS: u32 = 4;
    const ADDERS: u32 = 8; // beside each of them
    const ADDS: u32 = 300;
    let forks = env::var("FORKS").map_or(10_000, |forks| forks.parse().expect("a number"));
    in_time(CHILD_TIMEOUT + Duration::from_millis(20) * forks, move || {
        let buffers = Arc::new([(); 2].map(|()| Pending::new(1.0, 0.0).unwrap()));
        let forking = |buffers: Arc<[Pending<Totals>; 2]>| {
            for _ in 0..forks / FORKERS {
                let child = thread::scope(|scope| {
                    for buffer in buffers.iter().cycle().take(ADDERS as usize) {
                        scope.spawn(|| (0..ADDS).map(|_| add(buffer, "parent")).sum::<i128>());
                    }
                    start_child(|| starts_empty_and_works(&*buffers))
                });
                succeeds(child, CHILD_TIMEOUT);
            }
        };
        thread::scope(|scope| {
            for _ in 0..FORKERS {
                let buffers = buffers.clone();
                scope.spawn(move || forking(buffers));
            }
        });
        let added =
            buffers.iter().map(|buffer| count(&buffer.take().unwrap().contents)).sum::<i128>();
        assert_eq!(added, i128::from(forks / FORKERS * FORKERS * ADDERS * ADDS));
    });
}

/// A name that only the thread that made it may free. Any other is a thread that forks, or a child
/// in the middle of `fork()`: there is no interpreter that it could free a Python object with.
struct OwnersName(u32, ThreadId);

impl OwnersName {
    fn new() -> Self {
        Self(process::id(), thread::current().id())
    }
}

impl Drop for OwnersName {
    fn drop(&mut self) {
        assert_eq!((process::id(), thread::current().id()), (self.0, self.1));
    }
}

#[test]
fn a_child_frees_no_name_of_its_parent() {
    in_time(3 * CHILD_TIMEOUT, || {
        let pending = Pending::<totals::Totals<_>>::new(1.0, 0.0).unwrap();
        pending.lock().timers.add(b"timer", 0, OwnersName::new, 1.0).expect("timers have no range");
        pending.lock().counters.add(b"counter", 0, OwnersName::new, 1).expect("in range");
        in_a_child(CHILD_TIMEOUT, || assert!(pending.lock().entries() == 0));
        assert_eq!(pending.lock().entries(), 2);
    });
}

#[test]
fn a_buffer_that_is_dropped_during_a_fork_is_freed_by_its_owner() {
    in_time(3 * CHILD_TIMEOUT, || {
        // A fork is long enough with them for others to drop buffers during it.
        let _many = [(); 1000].map(|()| Pending::<Totals>::new(1.0, 0.0).unwrap());
        let forking = AtomicBool::new(true);
        let make_and_drop = || {
            while forking.load(Ordering::Relaxed) {
                let buffer = Pending::<totals::Totals<_>>::new(1.0, 0.0).unwrap();
                let added = buffer.lock().timers.add(b"timer", 0, OwnersName::new, 1.0);
                added.expect("timers have no range");
            }
        };
        thread::scope(|scope| {
            let owners = [(); 4].map(|()| scope.spawn(make_and_drop));
            let forks =
                scope.spawn(|| (0..150).for_each(|_| in_a_child(CHILD_TIMEOUT, || ()))).join();
            forking.store(false, Ordering::Relaxed);
            owners
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .fold(forks, Result::and)
                .unwrap();
        });
    });
}

/// A value that leaves `AtFork` as it is.
struct Inherited(u32);

impl AtFork for Inherited {}

#[test]
fn a_child_inherits_what_does_not_empty_itself() {
    in_time(3 * CHILD_TIMEOUT, || {
        let shared = Shared::new(Inherited(7)).unwrap();
        in_a_child(CHILD_TIMEOUT, || assert_eq!(shared.lock().0, 7));
        assert_eq!(shared.lock().0, 7);
    });
}

/// A count that a child starts anew.
struct Count(u32);

impl AtFork for Count {
    fn after_fork_in_child(&mut self) {
        self.0 = 0;
    }
}

#[test]
fn a_static_that_is_shared_is_prepared_for_a_child_like_any_other_value() {
    static COUNT: Mutex<Count> = mutex(Count(0));
    in_time(3 * CHILD_TIMEOUT, || {
        share(&COUNT).unwrap();
        COUNT.lock().0 = 7;
        in_a_child(CHILD_TIMEOUT, || assert_eq!(COUNT.lock().0, 0));
        assert_eq!(COUNT.lock().0, 7);
    });
}

#[test]
fn the_end_of_a_fork_that_took_no_locks_releases_none() {
    static COUNT: Mutex<Count> = mutex(Count(0));
    in_time(3 * CHILD_TIMEOUT, || {
        share(&COUNT).unwrap();
        // In a child, where no other test forks.
        in_a_child(CHILD_TIMEOUT, || {
            let held = COUNT.lock();
            fork::in_parent();
            assert!(COUNT.is_locked());
            drop(held);
        });
    });
}

#[test]
fn a_buffer_that_is_dropped_is_not_kept_for_forks_to_come() {
    in_time(3 * CHILD_TIMEOUT, || {
        let name = Arc::new(());
        let pending = Pending::<totals::Totals<_>>::new(1.0, 0.0).unwrap();
        let added = pending.lock().counters.add(b"name", 0, || name.clone(), 1);
        added.expect("in range");
        drop(pending);
        assert_eq!(Arc::strong_count(&name), 1);
    });
}
