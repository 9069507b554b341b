//! Which matrix gets how many bits, when there is room for so many bytes.
//!
//! Each matrix alone is rounded to 3 bits, and the divergence that this causes in what the model predicts is measured. For other types
//! it is taken to grow as their squared error, and several matrices' to add up. Bits then go where they save most for each
//! byte.

use tidbit_runtime::format::Stored;
use tidbit_runtime::quant::QuantType;

/// The type that the measurement rounds to.
pub(crate) const PROBE: QuantType = QuantType::Q3;

/// Squared error of a type, relative to the weights': of blocks of a trained 135M model.
fn squared_error(quant: QuantType) -> f64 {
    match quant {
        QuantType::F32 | QuantType::F16 => 0.0,
        QuantType::Q8 => 4.9e-5,
        QuantType::Q6 => 4.4e-4,
        QuantType::Q5 => 1.8e-3,
        QuantType::Q4 => 5.6e-3,
        QuantType::Q3 => 2.46e-2,
        QuantType::Q2 => 1.07e-1,
    }
}

/// A matrix that can have any integer type.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Its number in the plan.
    pub(crate) tensor: usize,
    pub(crate) shape: [usize; 2],
    /// The divergence when it alone has the type [`PROBE`].
    pub(crate) divergence: f64,
}

impl Candidate {
    fn bytes(&self, quant: QuantType) -> u64 {
        Stored::Matrix(quant).bytes(&self.shape).map_or(u64::MAX, |b| b as u64)
    }

    fn loss(&self, quant: QuantType) -> f64 {
        // A measurement can be as small as its noise.
        self.divergence.max(1e-9) * squared_error(quant) / squared_error(PROBE)
    }
}

/// Bytes that the candidates take at least.
pub(crate) fn least_bytes(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|c| c.bytes(QuantType::Q2)).sum()
}

/// Types for the candidates that take at most `room` bytes together, if that is possible.
pub(crate) fn allocate(candidates: &[Candidate], room: u64) -> Option<Vec<QuantType>> {
    // From the fewest bits up.
    let types: Vec<QuantType> = QuantType::INTEGER.into_iter().rev().collect();
    let mut chosen = vec![0usize; candidates.len()];
    let mut left = room.checked_sub(least_bytes(candidates))?;
    loop {
        let step = |(i, c): (usize, &Candidate)| {
            let (now, next) = (types[chosen[i]], *types.get(chosen[i] + 1)?);
            let more = c.bytes(next).saturating_sub(c.bytes(now)).max(1);
            (more <= left).then(|| (i, more, (c.loss(now) - c.loss(next)) / more as f64))
        };
        let best =
            candidates.iter().enumerate().filter_map(step).max_by(|a, b| a.2.total_cmp(&b.2).then(b.0.cmp(&a.0)));
        let Some((i, more, _)) = best else { break };
        chosen[i] += 1;
        left -= more;
    }
    Some(chosen.into_iter().map(|i| types[i]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_go_where_they_count() {
        let candidate = |tensor, divergence| Candidate { tensor, shape: [64, 1024], divergence };
        let list = [candidate(0, 0.5), candidate(1, 0.001), candidate(2, 0.02)];
        let bytes = |types: &[QuantType]| list.iter().zip(types).map(|(c, &t)| c.bytes(t)).sum::<u64>();
        let least = least_bytes(&list);
        assert_eq!(allocate(&list, least - 1), None);
        assert_eq!(allocate(&list, least).unwrap(), [QuantType::Q2; 3]);
        assert_eq!(allocate(&list, u64::MAX / 2).unwrap(), [QuantType::Q8; 3]);
        for room in (least..3 * least).step_by(1000) {
            let types = allocate(&list, room).unwrap();
            assert!(bytes(&types) <= room, "{types:?}");
            assert!(types[0] <= types[2] && types[2] <= types[1], "{types:?}");
        }
    }
}
