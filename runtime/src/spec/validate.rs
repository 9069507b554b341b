//! What numbers of a spec fit together.

#![forbid(unsafe_code)]

/// Experts of all layers together, at most: a hostile description must not ask for absurd lists.
const MAX_EXPERTS: usize = 1 << 17;

/// Positions of a text that is read at once, at most: room for all of them is taken beforehand.
pub(super) const MAX_AT_ONCE: usize = 1 << 16;

use super::{Head, Logits, MAX_COUNT, MAX_HEAD_DIM, NormKind, Place, Position, Residual, Spec, Trained};

impl Spec {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// One line that names the field and both values.
    pub fn validate(&self) -> Result<(), String> {
        let a = &self.attention;
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("n_layers", self.n_layers),
            ("d_model", self.d_model),
            ("context_length", self.context_length),
            ("n_heads", a.n_heads),
            ("n_kv_heads", a.n_kv_heads),
            ("head_dim", a.head_dim),
            ("ffn_dim", self.mlp.plain_dim(self.n_layers).unwrap_or(1)),
        ] {
            if value == 0 || value > MAX_COUNT {
                return Err(format!("`{name}` is {value}, expected 1 to {MAX_COUNT}"));
            }
        }
        if !a.causal && self.context_length > MAX_AT_ONCE {
            let found = self.context_length;
            return Err(format!("`context_length` {found} of a text that is read at once, at most {MAX_AT_ONCE}"));
        }
        if !a.n_heads.is_multiple_of(a.n_kv_heads) {
            return Err(format!("`n_heads` {} is not a multiple of `n_kv_heads` {}", a.n_heads, a.n_kv_heads));
        }
        if a.head_dim > MAX_HEAD_DIM {
            return Err(format!("`head_dim` is {}, at most {MAX_HEAD_DIM} is supported", a.head_dim));
        }
        if a.n_heads > MAX_COUNT / a.head_dim {
            return Err(format!("`n_heads` {} times `head_dim` {} is more than {MAX_COUNT}", a.n_heads, a.head_dim));
        }
        match &self.position {
            Position::Rotary(rotary) => rotary.validate(a.head_dim)?,
            Position::Sinusoidal(sinusoidal) => sinusoidal.validate(self.d_model)?,
            Position::Alibi(alibi) => positive("alibi `max_bias`", alibi.max_bias)?,
            Position::RelativeBias(bias) => bias.validate(a.causal)?,
            Position::TransformerXl(of) => of.validate(self)?,
            Position::Learned | Position::None => {}
        }
        if let Some(window) = &a.window {
            if window.size == 0 || window.size > MAX_COUNT {
                return Err(format!("window `size` is {}, expected 1 to {MAX_COUNT}", window.size));
            }
            in_order("window", window.layers.as_deref(), self.n_layers)?;
            match (&window.rotary, &self.position) {
                (Some(rotary), Position::Rotary(_)) => rotary.validate(a.head_dim)?,
                (Some(_), _) => return Err("a window with `rotary`, other layers have none".into()),
                (None, _) => {}
            }
        }
        if let Some(sparse) = &a.sparse {
            sparse.validate(self.n_layers)?;
            if a.window.is_some() {
                return Err("sparse attention with a window, expected one of them".into());
            }
        }
        self.validate_linear()?;
        self.validate_norms()?;
        self.validate_experts()?;
        self.validate_output()?;
        if let Some(dim) = self.embedding.dim
            && (dim == 0 || dim > MAX_COUNT)
        {
            return Err(format!("embedding `dim` is {dim}, expected 1 to {MAX_COUNT}"));
        }
        if self.residual != Residual::Sequential && self.norm.place != Place::Before {
            let (residual, place) = (self.residual, self.norm.place);
            return Err(format!("residual {residual:?} with norms in place {place:?}, expected Before"));
        }
        for (name, value) in [
            ("norm eps", Some(self.norm.eps)),
            ("attention scale", Some(a.scale)),
            ("embedding `scale`", Some(self.embedding.scale)),
            ("attention `clip`", a.clip),
            ("attention `softcap`", a.softcap),
            ("logits `softcap`", self.logits.softcap),
            ("logits `scale`", Some(self.logits.scale)),
            ("scale of the `stream`", Some(self.scales.stream)),
            ("scale of the `branch`", Some(self.scales.branch)),
            ("query and key norm eps", a.qk_norm.as_ref().map(|n| n.eps)),
        ] {
            value.map_or(Ok(()), |value| positive(name, value))?;
        }
        self.validate_encoder()?;
        if let Some(id) = self.eos_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(format!("end-of-text id {id} is outside the vocabulary of {}", self.vocab_size));
        }
        Ok(())
    }

    /// Checks that there are as many experts as are taken, where they can be.
    fn validate_experts(&self) -> Result<(), String> {
        let Some(e) = &self.mlp.experts else { return Ok(()) };
        for (name, value) in [
            ("experts `count`", e.count),
            ("experts `ffn_dim`", e.ffn_dim),
            ("`shared_dim`", e.shared_dim.unwrap_or(1)),
        ] {
            if value == 0 || value > MAX_COUNT {
                return Err(format!("{name} is {value}, expected 1 to {MAX_COUNT}"));
            }
        }
        in_order("experts", e.layers.as_deref(), self.n_layers)?;
        if e.count > MAX_EXPERTS / self.n_layers.min(MAX_EXPERTS) {
            let (count, n_layers) = (e.count, self.n_layers);
            return Err(format!("{count} experts in each of {n_layers} layers, at most {MAX_EXPERTS} in all"));
        }
        if e.used == 0 || e.used > e.count {
            return Err(format!("experts `used` is {}, there are {}", e.used, e.count));
        }
        if self.residual != Residual::Sequential || self.norm.place != Place::Before {
            return Err("experts in a block that is not sequential with norms before".into());
        }
        Ok(())
    }

    /// Checks that linear attention has nothing that only scores have.
    fn validate_linear(&self) -> Result<(), String> {
        let a = &self.attention;
        let position = match self.position {
            Position::Rotary(_) => Some("rotary positions"),
            Position::Alibi(_) => Some("ALiBi"),
            Position::RelativeBias(_) => Some("relative biases"),
            Position::TransformerXl(_) => Some("Transformer-XL positions"),
            Position::Learned | Position::Sinusoidal(_) | Position::None => None,
        };
        let found = [
            (!a.causal, "attention to the whole text"),
            (position.is_some(), position.unwrap_or_default()),
            (a.window.is_some(), "a window"),
            (a.sparse.is_some(), "sparse blocks"),
            (a.softcap.is_some(), "a soft-cap"),
            (a.sinks, "sinks"),
            (a.scale != 1.0 || a.scale_by_inverse_layer, "a scale"),
        ];
        match found.into_iter().find(|(there, _)| *there) {
            Some((_, name)) if a.feature_map.is_some() => Err(format!("linear attention with {name}, expected none")),
            _ => Ok(()),
        }
    }

    /// Checks that norms have what is trained of them.
    fn validate_norms(&self) -> Result<(), String> {
        if (self.norm.kind, self.norm.trained) == (NormKind::ScaleNorm, Trained::GainAndBias) {
            return Err("norm kind ScaleNorm with a bias, expected a gain or nothing to be trained".into());
        }
        match &self.attention.qk_norm {
            Some(norm) if norm.kind == NormKind::ScaleNorm => {
                Err("query and key norm kind ScaleNorm, expected LayerNorm or RmsNorm".into())
            }
            _ => Ok(()),
        }
    }

    /// Checks that what comes out fits what is inside.
    fn validate_output(&self) -> Result<(), String> {
        if !self.attention.causal {
            let alibi = matches!(self.position, Position::Alibi(_));
            let transformer_xl = matches!(self.position, Position::TransformerXl(_));
            for (name, there) in [
                ("a window", self.attention.window.is_some()),
                ("sparse blocks", self.attention.sparse.is_some()),
                ("ALiBi", alibi),
                ("Transformer-XL positions", transformer_xl),
                ("a head", self.head != Head::None),
            ] {
                if there {
                    return Err(format!("attention that is not causal, with {name}, expected none"));
                }
            }
        }
        if self.head == Head::None && self.logits != Logits::default() {
            return Err(format!("logits {:?} without a head", self.logits));
        }
        if let Some(most) = self.pooling.max_tokens.filter(|&n| n == 0 || n > self.context_length) {
            let context = self.context_length;
            return Err(format!("pooling `max_tokens` is {most}, expected 1 to `context_length` {context}"));
        }
        Ok(())
    }
}

pub(super) fn positive(name: &str, value: f32) -> Result<(), String> {
    let good = value.is_finite() && value > 0.0;
    if good { Ok(()) } else { Err(format!("{name} is {value}, expected a positive number")) }
}

/// Checks that a list of layers has some, in order, each once, and that there are so many.
pub(super) fn in_order(part: &str, layers: Option<&[usize]>, n_layers: usize) -> Result<(), String> {
    let Some(layers) = layers else { return Ok(()) };
    match (layers.last(), layers.windows(2).find(|pair| pair[0] >= pair[1])) {
        (None, _) => Err(format!("{part} of no layer, expected some of {n_layers}, or no list")),
        (Some(&last), _) if last >= n_layers => Err(format!("{part} of layer {last}, there are {n_layers}")),
        (_, Some(pair)) => {
            Err(format!("{part} of layer {} behind {}, expected each once and in order", pair[1], pair[0]))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::super::{
        Encoder, Experts, FeatureMap, Pairs, QkNorm, QkNormOver, RelativeBias, Rotary, RotaryScaling, Sinusoidal,
        Sparse, SparsePattern, TransformerXl, Window,
    };
    use super::*;

    type Change = fn(&mut Spec);

    fn sparse(stride: usize, layers: Option<Vec<usize>>) -> Sparse {
        Sparse { block: 8, local: 2, stride, pattern: SparsePattern::Strided, layers }
    }

    fn transformer_xl(max_distance: usize) -> Position {
        Position::TransformerXl(TransformerXl { max_distance })
    }

    fn experts(count: usize, layers: Option<Vec<usize>>) -> Experts {
        Experts { count, used: 1, ffn_dim: 8, renormalized: true, shared_dim: None, layers }
    }

    #[test]
    fn rejects_numbers_that_do_not_fit_together() {
        let cases: [(&str, Change); 41] = [
            ("encoder `n_layers` is 0, expected 1 to", |s| s.encoder = Some(Encoder { n_layers: 0, start_id: 0 })),
            ("encoder `start_id` 50 is outside the vocabulary of 50", |s| {
                s.encoder = Some(Encoder { n_layers: 1, start_id: 50 });
            }),
            ("an encoder with a decoder without a head", |s| {
                (s.encoder, s.head) = (Some(Encoder { n_layers: 1, start_id: 0 }), Head::None);
            }),
            ("an encoder with a residual that is not sequential", |s| {
                (s.encoder, s.residual) = (Some(Encoder { n_layers: 1, start_id: 0 }), Residual::Parallel);
            }),
            ("the encoder: `context_length` 65537 of a text that is read at once", |s| {
                (s.encoder, s.context_length) = (Some(Encoder { n_layers: 1, start_id: 0 }), 65_537);
            }),
            ("sinusoidal positions of `d_model` 3", |s| {
                (s.d_model, s.position) = (3, Position::Sinusoidal(Sinusoidal { pairs: Pairs::Halves, offset: 0 }));
            }),
            ("relative `buckets` is 3, expected a multiple of 2", |s| {
                s.position = Position::RelativeBias(RelativeBias { buckets: 3, max_distance: 9 });
            }),
            ("relative `max_distance` is 16, expected more than 16", |s| {
                s.position = Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 16 });
            }),
            ("Transformer-XL `max_distance` is 0, expected 1 to 65535", |s| s.position = transformer_xl(0)),
            ("Transformer-XL `max_distance` is 65536, expected 1 to 65535", |s| s.position = transformer_xl(1 << 16)),
            ("Transformer-XL positions of `d_model` 25, expected an even number", |s| {
                (s.d_model, s.position) = (25, transformer_xl(9));
            }),
            ("Transformer-XL `max_distance` is 60000, expected at most 2783 for keys of 48000 dimensions", |s| {
                (s.n_layers, s.position) = (2000, transformer_xl(60_000));
            }),
            ("Transformer-XL positions with a `softcap` of scores, 30, expected none", |s| {
                (s.attention.softcap, s.position) = (Some(30.0), transformer_xl(9));
            }),
            ("norm kind ScaleNorm with a bias", |s| s.norm.kind = NormKind::ScaleNorm),
            ("query and key norm kind ScaleNorm", |s| {
                let (kind, trained, over) = (NormKind::ScaleNorm, Trained::Gain, QkNormOver::Head);
                s.attention.qk_norm = Some(QkNorm { kind, eps: 1e-5, trained, over });
            }),
            ("scale of the `stream` is 0", |s| s.scales.stream = 0.0),
            ("logits `scale` is -1", |s| s.logits.scale = -1.0),
            ("sparse `stride` is 0", |s| s.attention.sparse = Some(sparse(0, None))),
            ("sparse attention of layer 2, there are 2", |s| s.attention.sparse = Some(sparse(3, Some(vec![2])))),
            ("sparse attention of layer 0 behind 1, expected each once", |s| {
                s.attention.sparse = Some(sparse(3, Some(vec![1, 0])));
            }),
            ("16777216 experts in each of 2 layers, at most 131072 in all", |s| {
                s.mlp.experts = Some(experts(1 << 24, None));
            }),
            ("experts of no layer, expected some of 2", |s| s.mlp.experts = Some(experts(4, Some(vec![])))),
            ("sparse attention of no layer", |s| s.attention.sparse = Some(sparse(3, Some(vec![])))),
            ("window of no layer", |s| {
                s.attention.window = Some(Window { size: 3, layers: Some(vec![]), rotary: None });
            }),
            ("experts of layer 1 behind 1", |s| s.mlp.experts = Some(experts(4, Some(vec![1, 1])))),
            ("`context_length` 65537 of a text that is read at once, at most 65536", |s| {
                (s.attention.causal, s.context_length) = (false, 65_537);
            }),
            ("sparse attention with a window", |s| {
                s.attention.sparse = Some(sparse(3, None));
                s.attention.window = Some(Window { size: 3, layers: None, rotary: None });
            }),
            ("linear attention with rotary positions", |s| s.attention.feature_map = Some(FeatureMap::EluPlusOne)),
            ("`n_layers` is 0", |s| s.n_layers = 0),
            ("`vocab_size` is 18446744073709551615", |s| s.vocab_size = usize::MAX),
            ("`n_heads` 3 is not a multiple of `n_kv_heads` 2", |s| s.attention.n_kv_heads = 2),
            ("`head_dim` is 1024, at most 512", |s| s.attention.head_dim = 1024),
            ("rotary `dims` is 3", |s| s.position = Position::Rotary(Rotary::new(3, 1e4))),
            ("rotary `exponent` 3 with scaling, expected none or a linear one", |s| {
                let scaling = Some(RotaryScaling::Dynamic { factor: 2.0, original: 40 });
                s.position = Position::Rotary(Rotary { exponent: Some(3), scaling, ..Rotary::new(4, 1e4) });
            }),
            ("rotary `theta` is NaN", |s| s.position = Position::Rotary(Rotary::new(4, f32::NAN))),
            ("norm eps is -1", |s| s.norm.eps = -1.0),
            ("attention scale is inf", |s| s.attention.scale = f32::INFINITY),
            ("attention that is not causal, with a head", |s| s.attention.causal = false),
            ("softcap: Some(3.0) } without a head", |s| (s.head, s.logits.softcap) = (Head::None, Some(3.0))),
            ("pooling `max_tokens` is 41, expected 1 to `context_length` 40", |s| s.pooling.max_tokens = Some(41)),
            ("end-of-text id 50 is outside the vocabulary of 50", |s| s.eos_ids = vec![0, 50]),
        ];
        for (expected, change) in cases {
            let mut spec = small();
            change(&mut spec);
            let message = spec.validate().unwrap_err();
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
        small().validate().unwrap();
    }
}
