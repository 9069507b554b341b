//! What a token costs, by the tensors that it needs.

use tidbit_runtime::format::Stored;
use tidbit_runtime::spec::{Head, Spec};

/// Bytes of weights that decode reads, and multiply-adds of the blocks and of the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) matrix_bytes: u64,
    pub(crate) block_macs: usize,
    pub(crate) head_macs: usize,
}

impl Cost {
    /// Of tensors by name, how each is stored, its shape and its bytes. Of experts those count that a token takes.
    pub(crate) fn of<'a>(spec: &Spec, tensors: impl Iterator<Item = (&'a str, Stored, &'a [usize], u64)>) -> Self {
        let used = spec.mlp.experts.as_ref().map_or(0, |experts| experts.used);
        let mut cost = Self::default();
        for (name, stored, shape, bytes) in tensors {
            // Single rows of the embeddings are read, unless the embedding is the head too.
            let head = name == "head.weight" || (name == "embed.tokens" && spec.head == Head::Tied);
            let rows = name == "embed.tokens" || name == "embed.positions";
            // What an encoder reads is read once, and made into keys and values for the decoder once; so are keys of distances.
            let once = [".cross.kv.", ".attn.relative."].iter().any(|part| name.contains(part));
            let before = name.starts_with("encoder.") || once;
            let read = head || (!rows && !before && stored != Stored::Bytes);
            if !read || expert(name).is_some_and(|expert| expert >= used) {
                continue;
            }
            cost.matrix_bytes += bytes;
            if matches!(stored, Stored::Matrix(_)) {
                *(if head { &mut cost.head_macs } else { &mut cost.block_macs }) += shape.iter().product::<usize>();
            }
        }
        cost
    }
}

/// The expert that a tensor is of.
fn expert(name: &str) -> Option<usize> {
    name.split_once(".experts.")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidbit_convert::{Plan, spec_from_yaml};
    use tidbit_runtime::quant::QuantType;

    #[test]
    fn a_token_reads_its_experts_and_no_embedding() {
        let yaml = "{vocab_size: 64, context_length: 8, n_layers: 2, d_model: 32, n_heads: 2, pos_type: none, \
                    norm_type: rmsnorm, activation: silu, ffn_type: moe, n_experts: 16, experts_per_token: 2, ffn_dim: 48";
        let cost = |more: &str| {
            let spec = spec_from_yaml("m.yaml", &format!("{yaml}{more}}}")).unwrap();
            let plan = Plan::of_spec(&spec, QuantType::F32).unwrap();
            Cost::of(&spec, plan.tensors.iter().map(|t| (&*t.name, t.stored, &*t.shape, t.bytes)))
        };
        let (attention, router, expert) = (4 * 32 * 32, 16 * 32, 3 * 48 * 32);
        let expected = Cost {
            matrix_bytes: 4 * (2 * (attention + router + 2 * expert + 2 * 32) + 32 + 64 * 32) as u64,
            block_macs: 2 * (attention + router + 2 * expert),
            head_macs: 64 * 32,
        };
        assert_eq!(cost(""), expected);
        assert_eq!(cost(", head_type: untied"), expected, "the table is not read as a whole");
    }

    #[test]
    fn a_token_reads_nothing_of_an_encoder() {
        let cost = |more: &str| {
            let yaml = format!(
                "{{vocab_size: 64, context_length: 8, n_layers: 2, d_model: 32, n_heads: 2, pos_type: none, \
                 norm_type: rmsnorm, activation: silu{more}}}"
            );
            let spec = spec_from_yaml("m.yaml", &yaml).unwrap();
            let plan = Plan::of_spec(&spec, QuantType::F32).unwrap();
            Cost::of(&spec, plan.tensors.iter().map(|t| (&*t.name, t.stored, &*t.shape, t.bytes)))
        };
        let (alone, with) = (cost(""), cost(", encoder_layers: 5"));
        // A norm, queries and the output of the look at its text, in each layer.
        assert_eq!(with.block_macs - alone.block_macs, 2 * 2 * 32 * 32);
        assert_eq!(with.matrix_bytes - alone.matrix_bytes, 4 * 2 * (2 * 32 * 32 + 32));
        assert_eq!(with.head_macs, alone.head_macs);
    }
}
