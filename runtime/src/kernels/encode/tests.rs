//! Encoders: the same bytes on every instruction set and from every layout, and scales that are good.

use super::*;
use crate::kernels::tests::cases;
use half::{bf16, f16};
use proptest::prelude::*;

/// Deterministic values, close to normal, with a few large ones.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| {
            let normal = (0..12).map(|_| uniform()).sum::<f32>();
            if uniform() > 0.49 { normal * 5.0 } else { normal }
        })
        .collect()
}

fn to_bytes(values: &[f32], element: Element) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&v| match element {
            Element::F32 => v.to_le_bytes().to_vec(),
            Element::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
            Element::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        })
        .collect()
}

/// Panels full of what must not be left in them.
fn encode(k: Kernels, quant: QuantType, source: &Source<'_>, shape: [usize; 2]) -> Result<Vec<u8>, Unrepresentable> {
    let mut panels = vec![0xa5; quant.matrix_bytes(shape[0], shape[1]).unwrap()];
    k.encode(quant, source, shape, &mut panels).map(|()| panels)
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn the_bytes_depend_on_neither_isa_nor_layout(rows in 1usize..70, cols in 1usize..140, seed: u64, exponent in -24i32..12) {
        let scale = 2f32.powi(exponent);
        for element in [Element::F32, Element::F16, Element::BF16] {
            // What the element's type makes of them is what all sources hold.
            let bytes = to_bytes(&values(rows * cols, seed).iter().map(|v| v * scale).collect::<Vec<_>>(), element);
            let width = element.bytes();
            let exact: Vec<f32> = bytes.chunks_exact(width).map(|b| element.read(b)).collect();
            // Columns of a wider matrix, behind an odd byte: nothing is aligned.
            let (first, stride) = (3, rows + 5);
            let mut columns = vec![0x7fu8; 1 + (first + cols * stride) * width];
            for (i, value) in bytes.chunks_exact(width).enumerate() {
                let at = 1 + (first + i % cols * stride + i / cols) * width;
                columns[at..][..width].copy_from_slice(value);
            }
            let starts: Vec<usize> = (0..rows).map(|row| row * cols).collect();
            let by_rows = Source { bytes: &bytes, element, layout: Layout::Rows { starts: &starts } };
            let by_columns = Source { bytes: &columns[1..], element, layout: Layout::Columns { first, stride } };
            for quant in QuantType::ALL {
                let scalar = *supported().last().unwrap();
                let expected = scalar.encode_matrix(quant, rows, cols, &exact).unwrap();
                for k in supported() {
                    for (name, source) in [("rows", &by_rows), ("columns", &by_columns)] {
                        let found = encode(k, quant, source, [rows, cols]).unwrap();
                        prop_assert!(found == expected.bytes(), "{} {quant} from {name} of {element:?}", k.name());
                    }
                }
            }
        }
    }
}

/// Root of the mean squared error, relative to that of the values.
fn relative_error(quant: QuantType, values: &[f32], cols: usize) -> f64 {
    let matrix = Matrix::encode(quant, values.len() / cols, cols, values).unwrap();
    let mut decoded = vec![0.0; cols];
    let (mut error, mut all) = (0.0, 0.0);
    for (row, values) in values.chunks(cols).enumerate() {
        matrix.decode_row(row, &mut decoded);
        error += values.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        all += values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    }
    (error / all).sqrt()
}

#[test]
fn q4_scales_are_nearly_the_best_there_are() {
    let mut normal = values(512 * 320, 1);
    for v in &mut normal {
        *v = v.clamp(-5.0, 5.0);
    }
    let found = relative_error(QuantType::Q4, &normal, 320);

    // Every scale of a fine grid, every index the nearest.
    let nearest = |y: f32| {
        let entries = crate::quant::Q4_CODEBOOK.map(f32::from).into_iter();
        entries.map(|q| (y - q).abs()).fold(f32::INFINITY, f32::min)
    };
    let (mut error, mut all) = (0.0, 0.0);
    for block in normal.chunks(BLOCK).step_by(16) {
        let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let of = |target: f32| {
            let scale = largest / target;
            block.iter().map(|v| f64::from(nearest(v / scale) * scale).powi(2)).sum::<f64>()
        };
        error += (-160..160).map(|i| of(i as f32 / 2.0 + 0.25)).fold(f64::INFINITY, f64::min);
        all += block.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    }
    let best = (error / all).sqrt();
    assert!(found < best * 1.015, "{found}, the best scales give {best}");
}

#[test]
fn q8_errors_are_those_of_its_steps() {
    let found = relative_error(QuantType::Q8, &values(64 * 320, 2), 320);
    assert!(found < 0.0071, "{found}");
}

#[test]
fn a_value_that_does_not_fit_is_named_from_any_layout() {
    let (rows, cols) = (40, 70);
    for (row, col) in [(0, 0), (17, 33), (39, 69)] {
        for (bad, finite) in [(f32::NAN, false), (f32::NEG_INFINITY, false), (-3e7, true)] {
            let mut plain = values(rows * cols, 3);
            plain[row * cols + col] = bad;
            let mut turned = vec![0.0; rows * cols];
            (0..rows * cols).for_each(|i| turned[i % cols * rows + i / cols] = plain[i]);
            let starts: Vec<usize> = (0..rows).map(|row| row * cols).collect();
            for (values, layout) in
                [(&plain, Layout::Rows { starts: &starts }), (&turned, Layout::Columns { first: 0, stride: rows })]
            {
                let source = Source { bytes: bytemuck::must_cast_slice(values), element: Element::F32, layout };
                for quant in QuantType::ALL {
                    let takes = finite && quant != QuantType::F16;
                    for k in supported() {
                        match encode(k, quant, &source, [rows, cols]) {
                            Ok(_) => assert!(takes, "{} {quant} took {bad}", k.name()),
                            Err(e) => {
                                assert!(!takes, "{} {quant} refused {bad}", k.name());
                                assert_eq!((e.row, e.col, e.value.to_bits()), (row, col, bad.to_bits()), "{quant}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "row 15, column 31 of 1020 bytes")]
fn a_source_that_is_too_short_is_refused() {
    let source =
        Source { bytes: &[0; 1020], element: Element::F16, layout: Layout::Columns { first: 0, stride: PANEL_ROWS } };
    let _ = encode(supported()[0], QuantType::Q4, &source, [PANEL_ROWS, BLOCK]);
}
