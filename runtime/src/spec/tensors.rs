//! The tensors a spec needs: names, shapes and what each is for.
//!
//! The order is the order of execution, which is also the order in the file.

use super::{Head, NormKind, Position, QkNormOver, Residual, Spec, Trained};

/// What a tensor is for; decides how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A table from which single rows are read; when the head is tied it is also a projection.
    Embedding,
    /// A table by position or distance; its values are used as they are.
    Positions,
    /// A weight matrix `[out, in]`.
    Projection,
    /// The same of a router: small, and what follows hangs on it.
    Router,
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
        let mut list = List(Vec::new());
        let (d, e) = (self.d_model, self.embedding.dim.unwrap_or(self.d_model));
        list.add("embed.tokens", &[self.vocab_size, e], Role::Embedding);
        if e != d {
            list.add("embed.project.weight", &[d, e], Role::Projection);
        }
        if let Some(encoder) = self.of_encoder() {
            encoder.stack("encoder.", &mut list);
        }
        self.stack("", &mut list);
        if e != d && self.head != Head::None {
            list.add("head.project.weight", &[e, d], Role::Projection);
        }
        match self.head {
            Head::Tied | Head::None => {}
            Head::Untied => list.add("head.weight", &[self.vocab_size, e], Role::Head),
        }
        if self.logits.bias {
            list.add("head.bias", &[self.vocab_size], Role::Vector);
        }
        list.0
    }

    /// Those of a stack of blocks, from its positions to its last norm, whose names begin with `prefix`.
    fn stack(&self, prefix: &str, list: &mut List) {
        let d = self.d_model;
        match self.position {
            Position::Learned => {
                list.add(&format!("{prefix}embed.positions"), &[self.context_length, d], Role::Positions);
            }
            Position::RelativeBias(ref bias) => {
                list.add(&format!("{prefix}relative_bias"), &[bias.buckets, self.attention.n_heads], Role::Positions);
            }
            Position::Sinusoidal(_)
            | Position::Rotary(_)
            | Position::Alibi(_)
            | Position::TransformerXl(_)
            | Position::None => {}
        }
        let (kind, trained) = (self.norm.kind, self.norm.trained);
        if self.embedding.norm {
            list.norm(&format!("{prefix}embed.norm"), (kind, d), trained);
        }
        let (a, m, place) = (&self.attention, &self.mlp, self.norm.place);
        for i in 0..self.n_layers {
            let name = |part: &str| format!("{prefix}layers.{i}.{part}");
            if place.before() {
                list.norm(&name("attn_norm"), (kind, d), trained);
            }
            list.linear(&name("attn.qkv"), [a.qkv_rows(), d], a.qkv_bias);
            if let Some(norm) = &a.qk_norm {
                for (part, n_heads) in [("attn.q_norm", a.n_heads), ("attn.k_norm", a.n_kv_heads)] {
                    let heads = if norm.over == QkNormOver::Head { 1 } else { n_heads };
                    list.norm(&name(part), (norm.kind, heads * a.head_dim), norm.trained);
                }
            }
            if let Position::TransformerXl(_) = self.position {
                let rows = a.n_heads * a.head_dim;
                list.add(&name("attn.relative.weight"), &[rows, d], Role::Positions);
                list.add(&name("attn.content_bias"), &[rows], Role::Vector);
                list.add(&name("attn.position_bias"), &[rows], Role::Vector);
            }
            if a.sinks {
                list.add(&name("attn.sinks"), &[a.n_heads], Role::Vector);
            }
            list.linear(&name("attn.out"), [d, a.n_heads * a.head_dim], a.out_bias);
            if place.behind() {
                list.norm(&name("attn_post_norm"), (kind, d), trained);
            }
            if self.encoder.is_some() {
                if place.before() {
                    list.norm(&name("cross_norm"), (kind, d), trained);
                }
                list.linear(&name("cross.q"), [a.n_heads * a.head_dim, d], a.qkv_bias);
                list.linear(&name("cross.kv"), [a.kv_rows(), d], a.qkv_bias);
                list.linear(&name("cross.out"), [d, a.n_heads * a.head_dim], a.out_bias);
                if place.behind() {
                    list.norm(&name("cross_post_norm"), (kind, d), trained);
                }
            }
            if place.before() && self.residual != Residual::ParallelOneNorm {
                list.norm(&name("mlp_norm"), (kind, d), trained);
            }
            let mlp = |list: &mut List, part: &str, ffn_dim: usize| {
                if m.gated {
                    list.linear(&name(&format!("{part}.gate")), [ffn_dim, d], m.bias);
                }
                list.linear(&name(&format!("{part}.up")), [ffn_dim, d], m.bias);
                list.linear(&name(&format!("{part}.down")), [d, ffn_dim], m.bias);
            };
            if let Some(experts) = m.experts_of(i) {
                list.add(&name("mlp.router.weight"), &[experts.count, d], Role::Router);
                for e in 0..experts.count {
                    mlp(list, &format!("mlp.experts.{e}"), experts.ffn_dim);
                }
                if let Some(dim) = experts.shared_dim {
                    list.add(&name("mlp.shared_router.weight"), &[1, d], Role::Router);
                    mlp(list, "mlp.shared", dim);
                }
            } else {
                mlp(list, "mlp", m.ffn_dim);
            }
            if place.behind() {
                list.norm(&name("mlp_post_norm"), (kind, d), trained);
            }
        }
        if self.final_norm {
            list.norm(&format!("{prefix}final_norm"), (kind, d), trained);
        }
    }
}

struct List(Vec<TensorDecl>);

impl List {
    fn add(&mut self, name: &str, shape: &[usize], role: Role) {
        self.0.push(TensorDecl { name: name.into(), shape: shape.to_vec(), role });
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], bias: bool) {
        self.add(&format!("{name}.weight"), &shape, Role::Projection);
        if bias {
            self.add(&format!("{name}.bias"), &shape[..1], Role::Vector);
        }
    }

    fn norm(&mut self, name: &str, (kind, dim): (NormKind, usize), trained: Trained) {
        if trained != Trained::Nothing {
            self.add(&format!("{name}.weight"), &[kind.gain_len(dim)], Role::Vector);
        }
        if trained == Trained::GainAndBias {
            self.add(&format!("{name}.bias"), &[dim], Role::Vector);
        }
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
