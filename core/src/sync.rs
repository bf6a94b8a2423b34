//! What the core's concurrency is made of: std's atomics and threads, or loom's, which come to every
//! order that threads can run in. `make model` compiles the core with those.

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

/// The same without a write to a flag that is set. loom believes that such a write may come after one
/// that clears the flag next, and for ever.
#[cfg(loom)]
pub fn set(flag: &atomic::AtomicBool, order: atomic::Ordering) -> bool {
    flag.compare_exchange(false, true, order, atomic::Ordering::Relaxed).is_err()
}

/// Lets other threads run, since this one found a lock taken. That it does so changes nothing: what
/// happens next is what happens where it asks once, after the lock is released. loom comes to those
/// executions too, and has no end of this one.
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
