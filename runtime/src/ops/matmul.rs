//! `out = epilogue(x wᵀ + bias)`.

use super::{Buffer, rows_per_task, zeros};
use crate::error::SessionError;
use crate::kernels::{ActBlock, Epilogue, Input, Kernels};
use crate::quant::{BLOCK, Matrix, PANEL_ROWS};
use crate::threads::Pool;
use std::ops::Range;

/// Tasks per thread: more even out a busy core, fewer keep the reads long.
const TASKS_PER_THREAD: usize = 4;

/// Room for 8-bit activations.
#[derive(Clone, Debug)]
pub struct MatmulScratch(Vec<ActBlock>);

impl MatmulScratch {
    /// Enough for `max_tokens` rows of up to `max_cols`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(max_tokens: usize, max_cols: usize) -> Result<Self, SessionError> {
        zeros(max_tokens.saturating_mul(max_cols.div_ceil(BLOCK)), ActBlock::ZERO, "8-bit activations").map(Self)
    }

    /// Bytes that such scratch memory takes.
    pub fn bytes_of(max_tokens: usize, max_cols: usize) -> usize {
        max_tokens.saturating_mul(max_cols.div_ceil(BLOCK)).saturating_mul(size_of::<ActBlock>())
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<ActBlock>()
    }
}

/// Multiplies rows `tokens` of `x` by every row of `w`; the products go to the first rows of `out`.
///
/// # Panics
/// When shapes do not fit together.
pub fn matmul(
    (kernels, pool): (Kernels, &mut Pool),
    scratch: &mut MatmulScratch,
    (w, bias): (&Matrix, Option<&[f32]>),
    (x, tokens): (&Buffer, Range<usize>),
    epilogue: Epilogue,
    out: &mut Buffer,
) {
    assert_eq!((x.cols(), out.cols()), (w.cols(), w.rows()), "a matrix [{}, {}]", w.rows(), w.cols());
    let n_tokens = tokens.len();
    if n_tokens == 0 {
        return;
    }
    let (source, stride) = (x.rows(tokens), x.stride());
    let input = if w.quant().is_integer() {
        let n_blocks = w.cols().div_ceil(BLOCK);
        let blocks = &mut scratch.0[..n_tokens * n_blocks];
        let quantize =
            |row: usize, blocks: &mut [ActBlock]| kernels.quantize(&source[row * stride..][..w.cols()], blocks);
        if n_tokens == 1 {
            quantize(0, blocks);
        } else {
            let rows = rows_per_task(pool, n_tokens);
            pool.run_blocks(blocks, n_blocks, rows, n_blocks, &|rows, _, mut out| {
                rows.enumerate().for_each(|(i, row)| quantize(row, out.row_mut(i)));
            });
        }
        Input::Int(blocks)
    } else {
        Input::Float { x: source, stride }
    };
    let n_tasks = if pool.n_threads() == 1 { 1 } else { pool.n_threads() * TASKS_PER_THREAD };
    // Even, because kernels take panels in pairs.
    let panels = w.n_panels().div_ceil(n_tasks).next_multiple_of(2);
    let stride = out.stride();
    pool.run_blocks(out.rows_mut(0..n_tokens), stride, n_tokens, panels * PANEL_ROWS, &|_, cols, mut block| {
        kernels.gemm(w, cols.start / PANEL_ROWS..cols.end / PANEL_ROWS, input, bias, epilogue, &mut block);
    });
}
