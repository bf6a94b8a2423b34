//! What a `BufferedMetricsBackend` sums, and the values of its gauges.

use std::ops::Add;

use crate::sums::Total;

/// A number as Python has it: an `int` stays one until a `float` is added to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// As wide as a counter, see [`Total`].
    Int(i128),
    /// A `float`.
    Float(f64),
}

impl Default for Number {
    fn default() -> Self {
        Self::Int(0)
    }
}

impl Number {
    #[allow(clippy::cast_precision_loss)] // Python rounds in the same way
    fn to_float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

impl Add for Number {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Int(one), Self::Int(other)) => Self::Int(one + other),
            _ => Self::Float(self.to_float() + other.to_float()),
        }
    }
}

impl Total for Number {
    fn in_range(self) -> bool {
        match self {
            Self::Int(int) => int.in_range(),
            Self::Float(_) => true,
        }
    }
}

/// The value of a gauge, whose total is what was added last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Last(pub Number);

impl Add for Last {
    type Output = Self;

    fn add(self, later: Self) -> Self {
        later
    }
}

impl Total for Last {
    fn in_range(self) -> bool {
        self.0.in_range()
    }
}
