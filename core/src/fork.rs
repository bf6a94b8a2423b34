//! What happens at a fork. The forking thread first takes the lock of every
//! [`Shared`](crate::shared::Shared) value, so that no other thread is in the middle of a change.
//!
//! The handlers are `pthread_atfork`'s and not `os.register_at_fork`'s: they also run where a
//! server forks from C and calls no Python before it. They don't touch Python, so it doesn't matter
//! whether the forking thread is attached to the interpreter. And they allocate nothing: nobody
//! could be told that a fork can't be made safe.

use std::io;
use std::mem;
use std::ptr::NonNull;

use crate::lock::{Mutex, mutex};
use crate::memory::OutOfMemory;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::global;

/// A value behind a lock, of which the child of a fork gets a copy.
pub trait AtFork: Send + 'static {
    /// Runs in the child, in the middle of `fork()`: it must neither call Python nor drop a Python
    /// object. By default the child keeps the value as it is.
    fn after_fork_in_child(&mut self) {}
}

/// How many forks lie between this process and the one that loaded the module.
///
/// If a thread reads another number than before, it is now the only thread of a child. A thread
/// that has the lock of a [`Shared`](crate::shared::Shared) value is in no fork, so what it reads
/// holds until it unlocks.
pub fn generation() -> u64 {
    // Relaxed: it changes only while the process has a single thread.
    GENERATION.load(Ordering::Relaxed)
}

global! {
    static GENERATION: AtomicU64 = AtomicU64::new(0);
}

global! {
    /// Every live lock, in the order in which a fork takes them. The fork in progress holds this
    /// lock too, from the handler before it to the handler after it.
    static REGISTRY: Mutex<Vec<Entry>> = mutex(Vec::new());
}

global! {
    /// Whether a fork in progress holds the locks. Relaxed: `REGISTRY` is locked meanwhile.
    static IS_HELD: AtomicBool = AtomicBool::new(false);
}

struct Entry {
    number: u64,
    lock: NonNull<dyn RegisteredLock>,
}

// SAFETY: the pointer leads to a mutex, which any thread may use.
unsafe impl Send for Entry {}

impl Entry {
    fn lock(&self) -> &dyn RegisteredLock {
        // SAFETY: the owner of the registration keeps the mutex where it is until the entry is
        // gone, as `register` asks, and that waits for whoever has the registry.
        unsafe { self.lock.as_ref() }
    }
}

/// A mutex, whatever it guards.
trait RegisteredLock: Sync {
    fn acquire(&self);

    /// # Safety
    ///
    /// The calling thread has acquired the lock, and this is the child of a fork.
    unsafe fn after_fork_in_child(&self);

    /// # Safety
    ///
    /// The calling thread has acquired the lock.
    unsafe fn release(&self);
}

impl<T: AtFork> RegisteredLock for Mutex<T> {
    fn acquire(&self) {
        mem::forget(self.lock());
    }

    unsafe fn after_fork_in_child(&self) {
        // SAFETY: the value is this thread's alone, which has the lock.
        unsafe { (*self.data_ptr()).after_fork_in_child() };
    }

    unsafe fn release(&self) {
        // SAFETY: this thread has the lock, and its guard was forgotten.
        unsafe { self.force_unlock() };
    }
}

/// While this exists, every fork takes the lock that is registered under this number.
pub(crate) struct Registration(u64);

/// # Safety
///
/// The mutex stays where it is until the registration is dropped.
///
/// # Errors
///
/// [`OutOfMemory`].
pub(crate) unsafe fn register<T: AtFork>(mutex: &Mutex<T>) -> Result<Registration, OutOfMemory> {
    let lock: &dyn RegisteredLock = mutex;
    let mut registry = REGISTRY.lock();
    registry.try_reserve(1)?;
    let number = registry.last().map_or(0, |last| last.number + 1);
    registry.push(Entry { number, lock: NonNull::from(lock) });
    Ok(Registration(number))
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock();
        if let Ok(place) = registry.binary_search_by_key(&self.0, |entry| entry.number) {
            registry.remove(place);
        }
    }
}

/// Runs before a fork: afterwards no other thread has a lock.
pub fn before() {
    let registry = REGISTRY.lock();
    registry.iter().for_each(|entry| entry.lock().acquire());
    mem::forget(registry);
    IS_HELD.store(true, Ordering::Relaxed);
}

/// Runs in the parent after a fork.
pub fn in_parent() {
    release(|_| ());
}

/// Runs in the child after a fork.
pub fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `release` passes locks that this thread has acquired, and this is the child.
    release(|lock| unsafe { lock.after_fork_in_child() });
}

/// Releases what `before` has acquired, in the same order, and the registry after all: no other
/// fork begins to take locks before all are free.
fn release(first: impl Fn(&dyn RegisteredLock)) {
    if !IS_HELD.swap(false, Ordering::Relaxed) {
        return; // the handlers were installed while this fork was made
    }
    // SAFETY: this thread has acquired the registry's lock and all that are in it, in `before`,
    // and nothing can have changed the registry meanwhile.
    unsafe {
        for entry in &*REGISTRY.data_ptr() {
            first(entry.lock());
            entry.lock().release();
        }
        REGISTRY.force_unlock();
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
