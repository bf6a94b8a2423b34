//! The core of the metrics buffers: plain Rust, which knows nothing of Python.
//!
//! There are no cycles between the modules. Each uses only some of those before it in this list:
//! `sync`, [`lock`], [`fork`], [`shared`], [`throttle`], [`pending`], [`sums`], [`totals`],
//! [`deliveries`].

pub mod deliveries;
pub mod fork;
pub mod lock;
pub mod pending;
pub mod shared;
pub mod sums;
mod sync;
pub mod throttle;
pub mod totals;
