//! What numbers of a spec fit together.

#![forbid(unsafe_code)]

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
            ("ffn_dim", self.mlp.ffn_dim),
        ] {
            if value == 0 || value > MAX_COUNT {
                return Err(format!("`{name}` is {value}, expected 1 to {MAX_COUNT}"));
            }
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
            Position::Learned | Position::None => {}
        }
        if let Some(window) = &a.window {
            let layers = window.layers.iter().flatten();
            if window.size == 0 || window.size > MAX_COUNT {
                return Err(format!("window `size` is {}, expected 1 to {MAX_COUNT}", window.size));
            }
            if let Some(layer) = layers.clone().find(|&&layer| layer >= self.n_layers) {
                return Err(format!("window of layer {layer}, there are {}", self.n_layers));
            }
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
        if let Some(e) = &self.mlp.experts {
            for (name, value) in [
                ("experts `count`", e.count),
                ("experts `ffn_dim`", e.ffn_dim),
                ("`shared_dim`", e.shared_dim.unwrap_or(1)),
            ] {
                if value == 0 || value > MAX_COUNT {
                    return Err(format!("{name} is {value}, expected 1 to {MAX_COUNT}"));
                }
            }
            if e.used == 0 || e.used > e.count {
                return Err(format!("experts `used` is {}, there are {}", e.used, e.count));
            }
            if self.residual != Residual::Sequential || self.norm.place != Place::Before {
                return Err("experts in a block that is not sequential with norms before".into());
            }
        }
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
        if let Some(id) = self.eos_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(format!("end-of-text id {id} is outside the vocabulary of {}", self.vocab_size));
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
            for (name, there) in [
                ("a window", self.attention.window.is_some()),
                ("sparse blocks", self.attention.sparse.is_some()),
                ("ALiBi", alibi),
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

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::super::{
        FeatureMap, Pairs, QkNorm, QkNormOver, RelativeBias, Rotary, Sinusoidal, Sparse, SparsePattern, Window,
    };
    use super::*;

    type Change = fn(&mut Spec);

    fn sparse(stride: usize, layers: Option<Vec<usize>>) -> Sparse {
        Sparse { block: 8, local: 2, stride, pattern: SparsePattern::Strided, layers }
    }

    #[test]
    fn rejects_numbers_that_do_not_fit_together() {
        let cases: [(&str, Change); 23] = [
            ("sinusoidal positions of `d_model` 3", |s| {
                (s.d_model, s.position) = (3, Position::Sinusoidal(Sinusoidal { pairs: Pairs::Halves, offset: 0 }));
            }),
            ("relative `buckets` is 3, expected a multiple of 2", |s| {
                s.position = Position::RelativeBias(RelativeBias { buckets: 3, max_distance: 9 });
            }),
            ("relative `max_distance` is 16, expected more than 16", |s| {
                s.position = Position::RelativeBias(RelativeBias { buckets: 32, max_distance: 16 });
            }),
            ("norm kind ScaleNorm with a bias", |s| s.norm.kind = NormKind::ScaleNorm),
            ("query and key norm kind ScaleNorm", |s| {
                let (kind, trained, over) = (NormKind::ScaleNorm, Trained::Gain, QkNormOver::Head);
                s.attention.qk_norm = Some(QkNorm { kind, eps: 1e-5, trained, over });
            }),
            ("scale of the `stream` is 0", |s| s.scales.stream = 0.0),
            ("logits `scale` is -1", |s| s.logits.scale = -1.0),
            ("sparse `stride` is 0", |s| s.attention.sparse = Some(sparse(0, None))),
            ("sparse attention in layer 2, there are 2", |s| s.attention.sparse = Some(sparse(3, Some(vec![2])))),
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
