//! Properties that every quant type has.

use super::QuantType::{F16, F32, Q2, Q3, Q4, Q5, Q6, Q8};
use super::*;
use proptest::prelude::*;

/// Decodes a whole matrix.
fn decode(m: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; m.rows() * m.cols()];
    for (row, out) in out.chunks_mut(m.cols()).enumerate() {
        m.decode_row(row, out);
    }
    out
}

fn values(rows: usize, cols: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed | 1;
    (0..rows * cols)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

proptest! {
    #[test]
    fn errors_stay_within_a_step_of_the_largest_value(rows in 1usize..40, cols in 1usize..100, seed: u64, exponent in -12i32..12) {
        let source = values(rows, cols, seed, 2f32.powi(exponent));
        let steps = [(F32, 0.0), (F16, 1.0 / 1024.0), (Q8, 1.0 / 50.0), (Q6, 0.04), (Q5, 0.08), (Q4, 0.2), (Q3, 0.35), (Q2, 0.65)];
        for (quant, step) in steps {
            let m = Matrix::encode(quant, rows, cols, &source).unwrap();
            prop_assert_eq!(m.bytes().len(), quant.matrix_bytes(rows, cols).unwrap());
            for (row, (a, b)) in source.chunks(cols).zip(decode(&m).chunks(cols)).enumerate() {
                let row_largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (block, (a, b)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
                    // 4e-6: below 6e-5, f16 is subnormal and loses digits.
                    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                    // Half a step of the block's scale, about 127 times the root of its part of the row's largest.
                    let scale = if quant.is_integer() { (largest * row_largest).sqrt() / 127.0 * 1.5 } else { 0.0 };
                    for (x, y) in a.iter().zip(b) {
                        prop_assert!((x - y).abs() <= largest * step + scale + 4e-6, "{quant} row {row} block {block}: {x} became {y}, largest {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_nothing(rows in 1usize..20, cols in 1usize..70, seed: u64) {
        let m = Matrix::encode(QuantType::F16, rows, cols, &values(rows, cols, seed, 1.0)).unwrap();
        let again = Matrix::encode(QuantType::F16, rows, cols, &decode(&m)).unwrap();
        prop_assert_eq!(m.bytes(), again.bytes());
    }
}

#[test]
fn true_bits_per_weight() {
    for (quant, bits) in QuantType::ALL.into_iter().zip([32.0, 16.0, 8.25, 6.25, 5.25, 4.25, 3.25, 2.25]) {
        let bytes = quant.matrix_bytes(1600, 8192).unwrap();
        // The row scales.
        let more = if quant.is_integer() { 32.0 / 8192.0 } else { 0.0 };
        assert!((bytes as f64 * 8.0 / (1600.0 * 8192.0) - bits - more).abs() < 1e-9, "{quant}");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    for quant in QuantType::ALL {
        assert_eq!(quant.matrix_bytes(usize::MAX, 64), None, "{quant}");
        assert_eq!(quant.matrix_bytes(64, usize::MAX / 2), None, "{quant}");
    }
}

#[test]
fn values_that_do_not_fit_are_named() {
    for quant in QuantType::ALL {
        for (bad, fits) in [(f32::NAN, false), (f32::INFINITY, false), (1e9, quant != QuantType::F16)] {
            let mut source = values(20, 40, 3, 1.0);
            source[18 * 40 + 35] = bad;
            match Matrix::encode(quant, 20, 40, &source) {
                Ok(_) => assert!(fits, "{quant} took {bad}"),
                Err(e) => {
                    assert!(!fits, "{quant} refused {bad}");
                    assert_eq!((e.row, e.col, e.value.to_bits()), (18, 35, bad.to_bits()), "{quant}");
                }
            }
        }
    }
}

#[test]
fn zeros_and_tiny_values_are_harmless() {
    for quant in QuantType::ALL {
        for value in [0.0, -0.0, 1e-30, -1e-9] {
            let m = Matrix::encode(quant, 3, 33, &[value; 99]).unwrap();
            assert!(decode(&m).iter().all(|v| (v - value).abs() <= 1e-9), "{quant} {value}");
        }
    }
}

#[test]
fn a_single_column_or_row_is_as_good_as_many() {
    for quant in QuantType::ALL {
        for (rows, cols) in [(1, 1), (37, 1), (1, 37), (16, 1), (1, 32)] {
            let source = values(rows, cols, 9, 3.0);
            let m = Matrix::encode(quant, rows, cols, &source).unwrap();
            for (i, (a, b)) in source.iter().zip(decode(&m)).enumerate() {
                // The scale of a block of one is a multiple of its value; with others, an error of the type.
                let step = if cols == 1 { 0.02 } else { 0.65 };
                assert!((a - b).abs() <= 3.0 * step, "{quant} [{rows}, {cols}] {i}: {a} became {b}");
            }
        }
    }
}

#[test]
fn rows_of_zeros_beside_others_stay_zeros() {
    let (rows, cols) = (18, 70);
    let mut source = values(rows, cols, 4, 1.0);
    source[3 * cols..4 * cols].fill(0.0);
    source[17 * cols..].fill(0.0);
    // A block of zeros in a row of others.
    source[5 * cols + 32..5 * cols + 64].fill(0.0);
    for quant in QuantType::ALL {
        let decoded = decode(&Matrix::encode(quant, rows, cols, &source).unwrap());
        for at in [3 * cols..4 * cols, 17 * cols..18 * cols, 5 * cols + 32..5 * cols + 64] {
            assert!(decoded[at].iter().all(|v| *v == 0.0), "{quant}");
        }
    }
}

#[test]
fn values_at_the_ends_of_f32_stay_finite() {
    for quant in QuantType::ALL.into_iter().filter(|q| *q != QuantType::F16) {
        for value in [f32::MAX / 2.0, f32::MIN / 4.0, f32::MIN_POSITIVE, -1e-40] {
            let source = [value, 0.0, value, -value];
            let decoded = decode(&Matrix::encode(quant, 2, 2, &source).unwrap());
            for (a, b) in source.iter().zip(&decoded) {
                assert!(b.is_finite() && (a - b).abs() <= value.abs().max(1e-30) * 0.65, "{quant}: {a} became {b}");
            }
        }
    }
}

#[test]
fn a_matrix_of_the_wrong_size_is_refused() {
    let message = Matrix::new(QuantType::Q4, 16, 32, Bytes::copy_from(&[0; 64])).unwrap_err();
    assert_eq!(message, "[16, 32] in q4 needs 384 bytes, found 64");
}

#[test]
fn entries_keep_avx2_exact() {
    for grid in QuantType::INTEGER.into_iter().skip(1).filter_map(QuantType::grid) {
        assert_eq!(grid.entries.len(), 1 << grid.planes.iter().sum::<u32>());
        assert!(grid.entries.is_sorted() && grid.entries.iter().all(|c| (-63..=63).contains(c)));
    }
}

#[test]
fn codes_that_are_put_are_found() {
    for grid in QuantType::INTEGER.into_iter().filter_map(QuantType::grid) {
        let mut block = vec![0; grid.block_bytes()];
        let code = |row: usize, col: usize| (row * 37 + col * 11 + row * col) % grid.entries.len();
        for (row, col) in (0..PANEL_ROWS).flat_map(|row| (0..BLOCK).map(move |col| (row, col))) {
            grid.put(&mut block, row, col, code(row, col));
        }
        for (row, col) in (0..PANEL_ROWS).flat_map(|row| (0..BLOCK).map(move |col| (row, col))) {
            assert_eq!(grid.codes(&block, row, col / 4)[col % 4], code(row, col), "{:?} {row} {col}", grid.planes);
        }
    }
}

#[test]
fn block_scales_are_the_nearest() {
    for i in 0..4000 {
        let scale = i as f32 / 4000.0 * square(127);
        let found = (f32::from(nearest_scale(scale, 1.0)).powi(2) - scale).abs();
        let best = (0..128).map(|s| ((s * s) as f32 - scale).abs()).fold(f32::INFINITY, f32::min);
        assert!(found <= best, "{scale}: off by {found}, at best {best}");
        assert_eq!(nearest_scale(-scale, 1.0), -nearest_scale(scale, 1.0));
    }
}

#[test]
fn outliers_leave_the_rest_of_a_row_alone() {
    // One column, and one row, a hundred times as large as the rest.
    let (rows, cols) = (32, 256);
    let plain = values(rows, cols, 5, 0.02);
    let mut outliers = plain.clone();
    (0..rows).for_each(|row| outliers[row * cols + 100] *= 100.0);
    (0..cols).for_each(|col| outliers[3 * cols + col] *= 100.0);
    let error = |m: &[f32], values: &[f32]| {
        let of = |i: usize| i % cols / BLOCK != 100 / BLOCK && i / cols != 3;
        let (mut off, mut all) = (0.0, 0.0);
        for i in (0..rows * cols).filter(|&i| of(i)) {
            off += f64::from(m[i] - values[i]).powi(2);
            all += f64::from(values[i]).powi(2);
        }
        (off / all).sqrt()
    };
    for quant in QuantType::INTEGER {
        let [without, with] =
            [&plain, &outliers].map(|v| error(&decode(&Matrix::encode(quant, rows, cols, v).unwrap()), v));
        assert!(with < without * 1.25 + 0.005, "{quant}: {without} became {with}");
    }
}
