//! What happens at a fork. The forking thread first takes the lock of every
//! [`Shared`](crate::shared::Shared) value, so that no other thread is in the middle of a change.
//!
//! The handlers are `pthread_atfork`'s and not `os.register_at_fork`'s: they also run where a
//! server forks from C and calls no Python before it. They don't touch Python, so it doesn't matter
//! whether the forking thread is attached to the interpreter.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::lock::{ArcMutexGuard, Mutex, MutexGuard, mutex};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::global;

/// A value behind a lock, of which the child of a fork gets a copy.
pub trait AtFork: Send + 'static {
    /// Runs in the child, in the middle of `fork()`: it must neither call Python nor drop a Python
    /// object. By default the child keeps the value as it is.
    fn after_fork_in_child(&mut self) {}
}

/// How many forks lie between this process and the one that loaded the module.
///
/// If a thread reads another number than before, it is now the only thread of a child.
pub fn generation() -> u64 {
    // Relaxed: it changes only while the process has a single thread.
    GENERATION.load(Ordering::Relaxed)
}

global! {
    static GENERATION: AtomicU64 = AtomicU64::new(0);
}

global! {
    /// Every live lock by its number, which is the order in which a fork takes them.
    static REGISTRY: Mutex<Registry> = mutex(BTreeMap::new());
}

type Registry = BTreeMap<u64, Arc<dyn RegisteredLock>>;

/// A mutex, whatever it guards.
trait RegisteredLock: Send + Sync {
    fn acquire(self: Arc<Self>) -> Box<dyn HeldLock>;
}

/// A mutex that a fork holds.
trait HeldLock: Send {
    fn after_fork_in_child(&mut self);
}

impl<T: AtFork> RegisteredLock for Mutex<T> {
    fn acquire(self: Arc<Self>) -> Box<dyn HeldLock> {
        Box::new(self.lock_arc())
    }
}

impl<T: AtFork> HeldLock for ArcMutexGuard<T> {
    fn after_fork_in_child(&mut self) {
        (**self).after_fork_in_child();
    }
}

/// While this exists, every fork takes the lock that is registered under this number.
///
/// Its owner keeps a reference to the lock until this is dropped. Otherwise the drop would free the
/// lock and its contents, while the registry is locked.
pub(crate) struct Registration(u64);

pub(crate) fn register<T: AtFork>(mutex: Arc<Mutex<T>>) -> Registration {
    let mut registry = REGISTRY.lock();
    let number = registry.last_key_value().map_or(0, |(last, _)| last + 1);
    registry.insert(number, mutex);
    Registration(number)
}

impl Drop for Registration {
    fn drop(&mut self) {
        REGISTRY.lock().remove(&self.0);
    }
}

/// All that a fork holds. When this is dropped, the locks are released in the order in which they
/// were taken, and the registry after them: no other fork begins to take locks before all are free.
struct HeldLocks {
    locks: Vec<Box<dyn HeldLock>>,
    _registry: MutexGuard<'static, Registry>,
}

global! {
    /// What the fork in progress holds, from the handler before the fork to the handler after it.
    /// The lock of this static is free at the moment of a fork: each handler that takes it also
    /// releases it, and the next fork waits for that.
    static HELD_BY_FORK: Mutex<Option<HeldLocks>> = mutex(None);
}

/// Runs before a fork: afterwards no other thread has a lock.
pub fn before() {
    let registry = REGISTRY.lock();
    let locks = registry.values().map(|lock| lock.clone().acquire()).collect();
    *HELD_BY_FORK.lock() = Some(HeldLocks { locks, _registry: registry });
}

/// Runs in the parent after a fork.
pub fn in_parent() {
    drop(HELD_BY_FORK.lock().take());
}

/// Runs in the child after a fork.
pub fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    let mut held = HELD_BY_FORK.lock().take();
    for lock in held.iter_mut().flat_map(|held| &mut held.locks) {
        lock.after_fork_in_child();
    }
}

/// Makes every later fork of this process take the locks. Only the first call does anything.
///
/// The handlers stay for the life of the process, and so must this library. Python never unloads
/// an extension module.
///
/// # Errors
///
/// `ENOMEM`, if there is no memory for the handlers.
#[cfg(unix)]
pub fn install_handlers() -> io::Result<()> {
    extern "C" fn before_fork() {
        before();
    }
    extern "C" fn after_fork_in_parent() {
        in_parent();
    }
    extern "C" fn after_fork_in_child() {
        in_child();
    }
    global! {
        static INSTALLED: Mutex<bool> = mutex(false);
    }

    let mut installed = INSTALLED.lock();
    if !*installed {
        // SAFETY: the handlers are plain functions that live as long as the process and unwind into
        // nothing: a panic in an `extern "C"` function aborts.
        let errno = unsafe {
            libc::pthread_atfork(
                Some(before_fork),
                Some(after_fork_in_parent),
                Some(after_fork_in_child),
            )
        };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        *installed = true;
    }
    Ok(())
}

/// Without `fork()` there is nothing to prepare for.
#[cfg(not(unix))]
pub fn install_handlers() -> io::Result<()> {
    Ok(())
}
