//! Atomics and threads: std's, or loom's, which try every order that threads can run in. `make
//! model` compiles the core with loom's.

#[cfg(loom)]
pub use loom::sync::atomic;
#[cfg(not(loom))]
pub use std::{sync::atomic, thread::yield_now};

/// Sets a flag and tells whether it was set.
#[cfg(not(loom))]
#[inline]
pub fn set(flag: &atomic::AtomicBool, order: atomic::Ordering) -> bool {
    flag.swap(true, order)
}

/// Sets a flag and tells whether it was set. It does not write to a flag that is set: loom would
/// try executions in which that write takes effect after the flag is cleared, and the flag stays
/// set for ever.
#[cfg(loom)]
pub fn set(flag: &atomic::AtomicBool, order: atomic::Ordering) -> bool {
    flag.compare_exchange(false, true, order, atomic::Ordering::Relaxed).is_err()
}

/// Lets other threads run, because this thread found a lock taken. loom skips the executions in
/// which that happens. Each of them goes on like an execution in which the thread first asks after
/// the lock is released, and loom tries that one. Without the skip, the thread could ask again
/// without end.
#[cfg(loom)]
pub fn yield_now() {
    loom::skip_branch();
    loom::thread::yield_now();
}

/// Declares a static. With loom every execution of a model begins with a new one.
macro_rules! global {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(loom))]
        $(#[$attribute])*
        static $name: $type = $value;
        #[cfg(loom)]
        loom::lazy_static! {
            $(#[$attribute])*
            static ref $name: $type = $value;
        }
    };
}

/// Declares a static of which every thread has its own.
macro_rules! per_thread {
    (static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(not(loom))]
        std::thread_local! { static $name: $type = const { $value }; }
        #[cfg(loom)]
        loom::thread_local! { static $name: $type = $value; }
    };
}

pub(crate) use {global, per_thread};
