//! The tensors a spec needs: names, shapes and what each is for.
//!
//! The order is the order of execution, which is also the order in the file.

use super::{Head, NormKind, Position, Spec};

/// What a tensor is for; decides how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A table from which single rows are read; when the head is tied it is also a projection.
    Embedding,
    /// A table of positions; single rows are read.
    Positions,
    /// A weight matrix `[out, in]`.
    Projection,
    /// The output projection `[vocab, d_model]`.
    Head,
    /// A gain or a bias, kept in f32.
    Vector,
}

/// A tensor that a spec needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name in the file, e.g. `layers.3.attn.qkv.weight`.
    pub name: String,
    /// `[rows, cols]` of a matrix, `[len]` of a vector.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl TensorDecl {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element (a valid spec declares no such tensor).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Spec {
    /// Every tensor of this model, in order of execution.
    ///
    /// Call [`Spec::validate`] first: sizes are multiplied here.
    pub fn tensors(&self) -> Vec<TensorDecl> {
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize], role| {
            list.push(TensorDecl { name, shape: shape.to_vec(), role });
        };
        let d = self.d_model;
        add("embed.tokens".into(), &[self.vocab_size, d], Role::Embedding);
        match self.position {
            Position::Learned => add("embed.positions".into(), &[self.context_length, d], Role::Positions),
            Position::Rotary(_) => {}
        }
        let linear =
            |add: &mut dyn FnMut(String, &[usize], Role), name: String, out: usize, cols: usize, bias: bool| {
                add(format!("{name}.weight"), &[out, cols], Role::Projection);
                if bias {
                    add(format!("{name}.bias"), &[out], Role::Vector);
                }
            };
        let norm = |add: &mut dyn FnMut(String, &[usize], Role), name: String| match self.norm.kind {
            NormKind::LayerNorm => {
                add(format!("{name}.weight"), &[d], Role::Vector);
                add(format!("{name}.bias"), &[d], Role::Vector);
            }
        };
        let (a, m) = (&self.attention, &self.mlp);
        for i in 0..self.n_layers {
            norm(&mut add, format!("layers.{i}.attn_norm"));
            linear(&mut add, format!("layers.{i}.attn.qkv"), a.qkv_rows(), d, a.qkv_bias);
            linear(&mut add, format!("layers.{i}.attn.out"), d, a.n_heads * a.head_dim, a.out_bias);
            norm(&mut add, format!("layers.{i}.mlp_norm"));
            linear(&mut add, format!("layers.{i}.mlp.up"), m.ffn_dim, d, m.bias);
            linear(&mut add, format!("layers.{i}.mlp.down"), d, m.ffn_dim, m.bias);
        }
        norm(&mut add, "final_norm".into());
        match self.head {
            Head::Tied => {}
            Head::Untied => add("head.weight".into(), &[self.vocab_size, d], Role::Head),
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::*;

    #[test]
    fn counts_the_parameters_of_gpt2() {
        let mut spec = small();
        (spec.vocab_size, spec.n_layers, spec.d_model, spec.context_length) = (50257, 12, 768, 1024);
        (spec.attention.n_heads, spec.attention.n_kv_heads, spec.attention.head_dim) = (12, 12, 64);
        (spec.mlp.ffn_dim, spec.position, spec.head) = (3072, Position::Learned, Head::Tied);
        let total: usize = spec.tensors().iter().map(TensorDecl::len).sum();
        assert_eq!(total, 124_439_808, "the figure of the GPT-2 paper's smallest model");
    }

    #[test]
    fn names_are_unique_and_biases_optional() {
        let mut spec = small();
        spec.attention.qkv_bias = false;
        let list = spec.tensors();
        let mut names: Vec<_> = list.iter().map(|t| &t.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), list.len());
        assert!(!names.iter().any(|n| n.ends_with("qkv.bias")));
    }
}
