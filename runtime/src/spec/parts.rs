//! What a model is made of, in words: for people, and never decided on. `inspect` and `docs/architectures.md` say it from here.

#![forbid(unsafe_code)]

use super::{
    Activation, Alibi, Attention, Embedding, Encoder, Experts, FeatureMap, Head, Logits, Mlp, Norm, NormKind, Pairs,
    Place, Pooling, Position, QkNorm, QkNormOver, RelativeBias, Residual, Rotary, RotaryScaling, Scales, Sinusoidal,
    Sparse, SparsePattern, Spec, Trained, TransformerXl, Window,
};
use std::fmt::Display;

/// A part that not every model has, or not of this kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is called, e.g. `window in some layers`.
    pub name: String,
    /// Its numbers, e.g. `16 positions, in 1 of 2 layers`; empty where it has none.
    pub about: String,
}

impl Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.about.as_str() {
            "" => f.write_str(&self.name),
            about => write!(f, "{} ({about})", self.name),
        }
    }
}

/// The parts so far.
struct Parts(Vec<Part>);

impl Parts {
    fn add(&mut self, name: impl Into<String>, about: impl Into<String>) {
        self.0.push(Part { name: name.into(), about: about.into() });
    }

    fn add_if(&mut self, there: bool, name: &str) {
        if there {
            self.add(name, "");
        }
    }
}

impl Spec {
    /// Every part of this model, from positions to the head. Not listed are sizes, which every model has, and what is so usual
    /// that only its absence is said: causal attention to all positions, norms before each half of a block, one half after the
    /// other, a norm at the end.
    pub fn parts(&self) -> Vec<Part> {
        // Without `..`, here and below: a field that is new has to be said, or left out, by someone who thought of it.
        let Self {
            family: _,
            vocab_size: _,
            n_layers,
            d_model: _,
            context_length,
            embedding: Embedding { dim, scale, norm: embedding_norm },
            position,
            norm: Norm { kind, eps, trained, place },
            attention,
            mlp,
            residual,
            scales,
            final_norm,
            head,
            logits,
            pooling,
            eos_ids: _,
            encoder,
        } = self;
        let mut parts = Parts(Vec::new());
        position_parts(position, attention.head_dim, &mut parts);
        if let Some(Encoder { n_layers, start_id }) = encoder {
            let about = format!("{n_layers} layers read the whole text, the others write from token {start_id} on");
            parts.add("an encoder and a decoder", about);
        }
        attention_parts(attention, logits.softcap, *n_layers, &mut parts);
        parts.add(norm_name(*kind), format!("eps {eps:e}{}", trained_in_words(*kind, *trained)));
        match place {
            Place::Before => {}
            Place::After => parts.add("norms after the sum", ""),
            Place::Branch => parts.add("norms on the branches", ""),
            Place::Sandwich => parts.add("sandwich norms", ""),
        }
        // Behind a norm after the last sum there is none as a rule.
        match (final_norm, place) {
            (true, Place::After) => parts.add("final norm", ""),
            (false, Place::Before | Place::Branch | Place::Sandwich) => parts.add("no final norm", ""),
            (true, Place::Before | Place::Branch | Place::Sandwich) | (false, Place::After) => {}
        }
        match residual {
            Residual::Sequential => {}
            Residual::Parallel => parts.add("parallel", ""),
            Residual::ParallelOneNorm => parts.add("parallel with one norm", ""),
            Residual::FromNorm => parts.add("residual from the norm", ""),
        }
        if *scales != Scales::default() {
            let Scales { stream, branch } = scales;
            parts.add("scaled sums", format!("the stream times {stream}, the branch times {branch}"));
        }
        parts.add_if(*embedding_norm, "embedding norm");
        if *scale != 1.0 {
            parts.add("scaled embedding", format!("times {scale}"));
        }
        if let Some(dim) = dim {
            parts.add("projected embedding", format!("{dim} wide"));
        }
        mlp_parts(mlp, *n_layers, &mut parts);
        biases(attention, mlp, &mut parts);
        match head {
            Head::Tied => parts.add("tied head", ""),
            Head::Untied => parts.add("untied head", ""),
            Head::None => {
                let Pooling { kind, normalize, max_tokens } = pooling;
                let normalized = if *normalize { ", normalized" } else { "" };
                let most = max_tokens.unwrap_or(*context_length);
                let about = format!("{} of the hidden states{normalized}, {most} tokens at most", kind.name());
                parts.add("no head: embeddings", about);
            }
        }
        let Logits { bias, scale, softcap: _ } = logits;
        parts.add_if(*bias, "head bias");
        if *scale != 1.0 {
            parts.add("scaled logits", format!("times {scale}"));
        }
        parts.0
    }
}

fn position_parts(position: &Position, head_dim: usize, parts: &mut Parts) {
    match position {
        Position::Learned => parts.add("learned positions", ""),
        Position::Sinusoidal(Sinusoidal { pairs, offset }) => {
            let order = match pairs {
                Pairs::Halves => "sines, then cosines",
                Pairs::Interleaved => "sines and cosines in turn",
            };
            parts.add("sinusoidal positions", format!("{order}, from {offset} on"));
        }
        Position::RelativeBias(RelativeBias { buckets, max_distance }) => {
            parts.add("relative biases", format!("{buckets} buckets up to a distance of {max_distance}"));
        }
        Position::TransformerXl(TransformerXl { max_distance }) => {
            parts.add("Transformer-XL positions", format!("up to a distance of {max_distance}"));
        }
        Position::Alibi(Alibi { max_bias, bf16 }) => {
            let name = if *bf16 { "ALiBi in bf16" } else { "ALiBi" };
            parts.add(name, format!("steepest slope 2^-{max_bias}"));
        }
        Position::None => parts.add("no positions", ""),
        Position::Rotary(rotary) => rotary_parts(rotary, head_dim, parts),
    }
}

fn rotary_parts(Rotary { dims, theta, exponent, pairs, scaling }: &Rotary, head_dim: usize, parts: &mut Parts) {
    let odd = exponent.map_or_else(String::new, |exponent| format!(" with the exponents of {exponent}"));
    let name = if *dims < head_dim { "partial rotary" } else { "rotary" };
    parts.add(name, format!("{dims} of {head_dim} dimensions{odd}, theta {theta}"));
    match pairs {
        Pairs::Halves => {}
        Pairs::Interleaved => parts.add("interleaved pairs", ""),
    }
    match scaling {
        None => {}
        Some(RotaryScaling::Linear { factor }) => parts.add("linear scaling", format!("by {factor}")),
        Some(RotaryScaling::Dynamic { factor, original }) => {
            parts.add("dynamic scaling", format!("by {factor} from {original} positions on"));
        }
        Some(RotaryScaling::Llama3 { factor, low, high, original }) => {
            parts.add("LLaMA 3 scaling", format!("by {factor} between {low} and {high} turns in {original} positions"));
        }
        Some(RotaryScaling::Yarn { factor, beta_fast, beta_slow, original, magnitude, truncate: _ }) => {
            let about = format!(
                "by {factor} between {beta_slow} and {beta_fast} turns in {original} positions, times {magnitude}"
            );
            parts.add("YaRN", about);
        }
    }
}

fn attention_parts(attention: &Attention, softcap_of_logits: Option<f32>, n_layers: usize, parts: &mut Parts) {
    let Attention {
        n_heads,
        n_kv_heads,
        head_dim,
        causal,
        scale,
        scale_by_inverse_layer,
        qkv_bias: _,
        out_bias: _,
        qk_norm,
        clip,
        softcap,
        window,
        sparse,
        sinks,
        feature_map,
    } = attention;
    let name = |part: &str, layers: &Option<Vec<usize>>| {
        if layers.is_some() { format!("{part} in some layers") } else { part.to_string() }
    };
    if let Some(Window { size, layers, rotary }) = window {
        parts.add(name("window", layers), format!("{size} positions{}", in_layers(layers.as_ref(), n_layers)));
        if let Some(rotary) = rotary {
            let mut inside = Parts(Vec::new());
            rotary_parts(rotary, *head_dim, &mut inside);
            let about: Vec<_> = inside.0.iter().map(|part| format!("{} {}", part.name, part.about)).collect();
            parts.add("other positions in windows", about.join(", ").trim_end());
        }
    }
    if let Some(Sparse { block, local, stride, pattern, layers }) = sparse {
        let pattern = match pattern {
            SparsePattern::Strided => "back from the query's",
            SparsePattern::Fixed => "from the start",
        };
        let layers_too = in_layers(layers.as_ref(), n_layers);
        let about = format!("of {block} positions, the last {local} and every {stride}. {pattern}{layers_too}");
        parts.add(name("sparse blocks", layers), about);
    }
    match feature_map {
        None => {}
        Some(FeatureMap::EluPlusOne) => parts.add("linear attention", "elu + 1"),
    }
    parts.add_if(*sinks, "sinks");
    parts.add_if(!causal, "attention to the whole text");
    if *n_kv_heads == 1 && *n_heads > 1 {
        parts.add("multi-query", "");
    } else if n_kv_heads < n_heads {
        parts.add("grouped queries", format!("{} share keys and values", n_heads / n_kv_heads));
    }
    if let Some(QkNorm { kind, eps, trained, over }) = qk_norm {
        let (name, of) = match over {
            QkNormOver::AllHeads => ("query and key norm over all heads", ""),
            QkNormOver::Head => ("query and key norm", ""),
            QkNormOver::HeadWithItsGain => ("query and key norm", ", a gain for each head"),
        };
        parts.add(name, format!("{}, eps {eps:e}{}{of}", norm_name(*kind), trained_in_words(*kind, *trained)));
    }
    if let Some(clip) = clip {
        parts.add("clipped queries, keys and values", format!("to {clip}"));
    }
    let caps = [("scores", *softcap), ("logits", softcap_of_logits)];
    let caps: Vec<_> = caps.iter().filter_map(|(of, cap)| Some(format!("{of} at {}", (*cap)?))).collect();
    if !caps.is_empty() {
        parts.add("soft-caps", caps.join(", "));
    }
    // As good as the usual one where a checkpoint spells it out in few digits.
    let usual = if feature_map.is_some() { 1.0 } else { Attention::new(*n_heads, *n_kv_heads, *head_dim).scale };
    if (scale / usual - 1.0).abs() > 1e-5 {
        parts.add("another scale of scores", format!("times {scale}"));
    }
    parts.add_if(*scale_by_inverse_layer, "scores divided by the layer's number");
}

fn mlp_parts(Mlp { ffn_dim: _, activation, bias: _, gated, experts }: &Mlp, n_layers: usize, parts: &mut Parts) {
    let activation = match activation {
        Activation::Relu => "ReLU",
        Activation::ReluSquared => "squared ReLU",
        Activation::GeluErf => "exact GELU",
        Activation::GeluTanh => "tanh GELU",
        Activation::GeluQuick => "quick GELU",
        Activation::Silu => "SiLU",
        Activation::Tanh => "tanh",
    };
    parts.add(if *gated { format!("gated {activation}") } else { activation.into() }, "");
    if let Some(Experts { count, used, ffn_dim, renormalized, shared_dim, layers }) = experts {
        let sum = if *renormalized { ", shares of the chosen ones" } else { "" };
        let shared = shared_dim.map_or_else(String::new, |dim| format!(" and a shared one of {dim}"));
        let about = format!("{used} of {count}, {ffn_dim} wide{shared}{sum}{}", in_layers(layers.as_ref(), n_layers));
        parts.add(if shared_dim.is_some() { "experts, one of them shared" } else { "experts" }, about);
    }
}

fn biases(attention: &Attention, mlp: &Mlp, parts: &mut Parts) {
    let all = [
        (attention.qkv_bias, "queries, keys and values"),
        (attention.out_bias, "attention's output"),
        (mlp.bias, "network"),
    ];
    let there: Vec<_> = all.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
    if !there.is_empty() {
        parts.add("biases", there.join(", "));
    }
}

fn in_layers(layers: Option<&Vec<usize>>, n_layers: usize) -> String {
    layers.map_or_else(String::new, |layers| format!(", in {} of {n_layers} layers", layers.len()))
}

fn norm_name(kind: NormKind) -> &'static str {
    match kind {
        NormKind::LayerNorm => "LayerNorm",
        NormKind::RmsNorm => "RMSNorm",
        NormKind::ScaleNorm => "ScaleNorm",
    }
}

/// What is trained of a norm, where it is not what is usual for its kind.
fn trained_in_words(kind: NormKind, trained: Trained) -> &'static str {
    match trained {
        _ if trained == Norm::new(kind, 1.0).trained => "",
        Trained::GainAndBias => ", with a bias",
        Trained::Gain => ", without a bias",
        Trained::Nothing => ", nothing trained",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::*;

    fn words(spec: &Spec) -> Vec<String> {
        spec.parts().iter().map(Part::to_string).collect()
    }

    #[test]
    fn what_is_usual_is_not_said() {
        let mut spec = small();
        (spec.attention.scale, spec.position) = (8f32.powf(-0.5), Position::None);
        (spec.attention.qkv_bias, spec.attention.out_bias, spec.mlp.bias) = (false, false, false);
        assert_eq!(words(&spec), ["no positions", "LayerNorm (eps 1e-5)", "exact GELU", "untied head"]);
    }

    #[test]
    fn parts_have_their_numbers() {
        let mut spec = small();
        let rotary = Some(Rotary::new(8, 500.0));
        spec.attention.window = Some(Window { size: 9, layers: Some(vec![1]), rotary });
        spec.mlp.experts =
            Some(Experts { count: 8, used: 2, ffn_dim: 24, renormalized: false, shared_dim: None, layers: None });
        spec.scales.stream = 2.0;
        (spec.attention.sinks, spec.final_norm, spec.norm.trained) = (true, false, Trained::Gain);
        assert_eq!(
            words(&spec),
            [
                "partial rotary (4 of 8 dimensions, theta 10000)",
                "window in some layers (9 positions, in 1 of 2 layers)",
                "other positions in windows (rotary 8 of 8 dimensions, theta 500)",
                "sinks",
                "another scale of scores (times 0.3)",
                "LayerNorm (eps 1e-5, without a bias)",
                "no final norm",
                "scaled sums (the stream times 2, the branch times 1)",
                "exact GELU",
                "experts (2 of 8, 24 wide)",
                "biases (queries, keys and values, attention's output, network)",
                "untied head",
            ]
        );
    }
}
