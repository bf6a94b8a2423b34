//! The core of the metrics buffers: plain Rust, which knows nothing of Python.
//!
//! No two modules need each other. From the ground up: `sync`, [`lock`], [`fork`], [`shared`],
//! [`throttle`], [`pending`]; then what may be pending, [`sums`] in [`totals`], and [`deliveries`].

pub mod deliveries;
pub mod fork;
pub mod lock;
pub mod pending;
pub mod shared;
pub mod sums;
mod sync;
pub mod throttle;
pub mod totals;
