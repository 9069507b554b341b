//! `q5`: integers in -16..=15.
//!
//! A table fitted as `q4`'s would have an RMSE of 3.60 % where this has 4.22 %, for two look-ups.

use super::integer::{self, Grid};

pub(super) static GRID: Grid = Grid { planes: &[4, 1], entries: &ENTRIES };
static ENTRIES: [i8; 32] = integer::centered();
