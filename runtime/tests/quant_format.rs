//! Matrices as `docs/format.md` describes them: a reader written from that page, apart from the runtime's, and any bytes at
//! all.

use proptest::prelude::*;
use tidbit_runtime::quant::{Matrix, QuantType};
use tidbit_runtime::storage::Bytes;

/// `pad(n, m)`.
fn pad(n: usize, m: usize) -> usize {
    n.div_ceil(m) * m
}

/// The widths of the planes, as the table of types has them.
fn planes(quant: QuantType) -> &'static [usize] {
    match quant {
        QuantType::F32 | QuantType::F16 => &[],
        QuantType::Q8 => &[8],
        QuantType::Q6 => &[4, 2],
        QuantType::Q5 => &[4, 1],
        QuantType::Q4 => &[4],
        QuantType::Q3 => &[2, 1],
        QuantType::Q2 => &[2],
    }
}

/// `ENTRY[code]`.
fn entry(quant: QuantType, code: u8) -> f32 {
    let list: &[i32] = match quant {
        QuantType::Q4 => &[-59, -46, -36, -28, -21, -15, -9, -4, 1, 6, 12, 18, 25, 33, 42, 58],
        QuantType::Q3 => &[-52, -32, -17, -4, 8, 21, 37, 62],
        QuantType::Q2 => &[-43, -9, 21, 62],
        QuantType::Q6 => return f32::from(code) - 32.0,
        QuantType::Q5 => return f32::from(code) - 16.0,
        _ => return f32::from(code as i8),
    };
    list[usize::from(code)] as f32
}

fn panel_bytes(quant: QuantType, cols: usize) -> usize {
    match quant {
        QuantType::F32 => 64 * cols,
        QuantType::F16 => pad(32 * cols, 64),
        _ => {
            let blocks = cols.div_ceil(32);
            64 + pad(16 * blocks, 64) + blocks * 64 * planes(quant).iter().sum::<usize>()
        }
    }
}

/// The value at a row and a column.
fn value(quant: QuantType, cols: usize, data: &[u8], row: usize, c: usize) -> f32 {
    let bytes = panel_bytes(quant, cols);
    let (panel, r) = (&data[row / 16 * bytes..][..bytes], row % 16);
    let f32_at = |at: usize| f32::from_le_bytes(panel[at..at + 4].try_into().unwrap());
    match quant {
        QuantType::F32 => return f32_at((c * 16 + r) * 4),
        QuantType::F16 => {
            let at = (c * 16 + r) * 2;
            return half::f16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        }
        _ => {}
    }
    let (blocks, widths) = (cols.div_ceil(32), planes(quant));
    let (b, k) = (c / 32, c % 32);
    let g = k / 4;
    let s = f32::from(panel[64 + b * 16 + r] as i8);
    let mut plane = 64 + pad(16 * blocks, 64) + b * 64 * widths.iter().sum::<usize>();
    let (mut code, mut known) = (0, 0);
    for &w in widths {
        let byte = panel[plane + g * w / 8 * 64 + r * 4 + k % 4];
        let part = u32::from(byte) >> (g * w % 8) & ((1 << w) - 1);
        code |= part << known;
        (known, plane) = (known + w, plane + 64 * w);
    }
    s * s.abs() * f32_at(r * 4) * entry(quant, code as u8)
}

/// Pseudorandom bytes.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(next).collect()
}

fn assert_reads_alike(quant: QuantType, [rows, cols]: [usize; 2], data: &[u8]) {
    let matrix = Matrix::new(quant, rows, cols, Bytes::copy_from(data)).unwrap();
    let mut decoded = vec![0.0; cols];
    for row in 0..rows {
        matrix.decode_row(row, &mut decoded);
        for (col, &found) in decoded.iter().enumerate() {
            // `+ 0.0`, as a row is added to zeros: no minus zero.
            let expected = value(quant, cols, data, row, col) + 0.0;
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{quant} [{rows}, {cols}] at {row}, {col}: {found}, by the document {expected}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_values_and_those_of_the_document(rows in 1usize..40, cols in 1usize..150, seed: u64) {
        for quant in QuantType::ALL {
            let n = panel_bytes(quant, cols) * rows.div_ceil(16);
            prop_assert_eq!(quant.matrix_bytes(rows, cols), Some(n), "{}", quant);
            assert_reads_alike(quant, [rows, cols], &bytes(n, seed));
        }
    }
}

#[test]
fn extreme_bytes_are_values_and_those_of_the_document() {
    for quant in QuantType::ALL {
        for [rows, cols] in [[1, 1], [16, 32], [17, 33], [33, 129]] {
            let n = quant.matrix_bytes(rows, cols).unwrap();
            for byte in [0, 1, 0x7f, 0x80, 0x81, 0xff] {
                assert_reads_alike(quant, [rows, cols], &vec![byte; n]);
            }
        }
    }
}

#[test]
fn the_lowest_byte_has_its_plain_meaning() {
    for quant in QuantType::INTEGER {
        let mut data = vec![0; quant.matrix_bytes(1, 1).unwrap()];
        data[..4].copy_from_slice(&0.5f32.to_le_bytes());
        // The block scale -128, and the code 0.
        data[64] = 0x80;
        let matrix = Matrix::new(quant, 1, 1, Bytes::copy_from(&data)).unwrap();
        let mut found = [0.0];
        matrix.decode_row(0, &mut found);
        assert_eq!(found[0], -8192.0 * entry(quant, 0) + 0.0, "{quant}");
    }
    let mut data = vec![0; QuantType::Q8.matrix_bytes(1, 1).unwrap()];
    data[..4].copy_from_slice(&0.5f32.to_le_bytes());
    (data[64], data[128]) = (2, 0x80);
    let mut found = [0.0];
    Matrix::new(QuantType::Q8, 1, 1, Bytes::copy_from(&data)).unwrap().decode_row(0, &mut found);
    assert_eq!(found[0], -256.0, "the code -128");
}

#[test]
fn encoded_matrices_are_those_of_the_document() {
    for quant in QuantType::ALL {
        for [rows, cols] in [[1, 1], [5, 1], [1, 7], [16, 32], [19, 70], [48, 260]] {
            let source: Vec<f32> = bytes(rows * cols, 7).into_iter().map(|b| f32::from(b) / 64.0 - 2.0).collect();
            let matrix = Matrix::encode(quant, rows, cols, &source).unwrap();
            assert_reads_alike(quant, [rows, cols], matrix.bytes());
            let data = matrix.bytes();
            for (i, &exact) in source.iter().enumerate() {
                let found = value(quant, cols, data, i / cols, i % cols);
                assert!((found - exact).abs() < 1.4, "{quant} {i}: {exact} became {found}");
            }
        }
    }
}
