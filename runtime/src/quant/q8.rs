//! `q8`: integers in -127..=127.

use super::integer::Grid;

const ENTRIES: [i8; 256] = {
    let mut entries = [0; 256];
    let mut i = 0;
    while i < 256 {
        entries[i] = i as u8 as i8;
        i += 1;
    }
    entries
};

/// The code is the two's complement byte.
pub(super) static GRID: Grid = Grid { planes: &[8], entries: &ENTRIES };
