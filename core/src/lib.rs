//! The core of the metrics buffers: plain Rust, which knows nothing of Python.
//!
//! There are no cycles between the modules. Each uses only some of those before it in this list:
//! `sync`, [`lock`], [`memory`], [`fork`], [`shared`], [`throttle`], [`outage`], `put_back`,
//! [`pending`], [`sums`], [`numbers`], [`totals`], [`deliveries`].

pub mod deliveries;
pub mod fork;
pub mod lock;
pub mod memory;
pub mod numbers;
pub mod outage;
pub mod pending;
mod put_back;
pub mod shared;
pub mod sums;
mod sync;
pub mod throttle;
pub mod totals;
