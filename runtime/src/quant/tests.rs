//! Properties that every quant type has.

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
        for (quant, step) in [(QuantType::F32, 0.0), (QuantType::F16, 1.0 / 1024.0), (QuantType::Q8, 1.0 / 120.0), (QuantType::Q4, 0.2)] {
            let m = Matrix::encode(quant, rows, cols, &source).unwrap();
            prop_assert_eq!(m.bytes().len(), quant.matrix_bytes(rows, cols).unwrap());
            for (row, (a, b)) in source.chunks(cols).zip(decode(&m).chunks(cols)).enumerate() {
                for (block, (a, b)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
                    // 4e-6: scales below 6e-5 are subnormal in f16 and lose digits.
                    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                    for (x, y) in a.iter().zip(b) {
                        prop_assert!((x - y).abs() <= largest * step + 4e-6, "{quant} row {row} block {block}: {x} became {y}, largest {largest}");
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
    for (quant, bits) in [(QuantType::F32, 32.0), (QuantType::F16, 16.0), (QuantType::Q8, 8.5), (QuantType::Q4, 4.5)] {
        let bytes = quant.matrix_bytes(1600, 1600).unwrap();
        assert!((bytes as f64 * 8.0 / (1600.0 * 1600.0) - bits).abs() < 1e-9, "{quant}");
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
        for (bad, fits) in [(f32::NAN, false), (f32::INFINITY, false), (1e9, quant == QuantType::F32)] {
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
fn a_matrix_of_the_wrong_size_is_refused() {
    let message = Matrix::new(QuantType::Q4, 16, 32, Bytes::copy_from(&[0; 64])).unwrap_err();
    assert_eq!(message, "[16, 32] in q4 needs 320 bytes, found 64");
}

#[test]
fn the_q4_table_keeps_avx2_exact() {
    assert!(Q4_CODEBOOK.is_sorted() && Q4_CODEBOOK.iter().all(|c| (-63..=63).contains(c)));
}
