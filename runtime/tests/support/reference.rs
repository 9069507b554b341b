//! A forward pass in plain f64, written from the papers: one token and one head at a time, nothing fused, nothing kept. It
//! calls nothing of the runtime.

use super::models::Weights;
use tidbit_runtime::spec::{
    Activation, Experts, FeatureMap, Head, Logits, NormKind, Pairs, Place, Position, QkNormOver, Residual, Rotary,
    RotaryScaling, SparsePattern, Spec, Trained,
};

type Row = Vec<f64>;

/// The same about a text that the encoder has read.
pub(crate) fn forward_about(spec: &Spec, w: &Weights, read: &[u32], ids: &[u32]) -> Vec<Row> {
    let mut encoder = spec.clone();
    encoder.n_layers = spec.encoder.as_ref().unwrap().n_layers;
    (encoder.encoder, encoder.attention.causal) = (None, false);
    (encoder.head, encoder.logits) = (Head::None, Logits::default());
    // Tokens are in one table; all else is its own.
    let shared = |name: &str| ["embed.tokens", "embed.project.weight"].contains(&name).then(|| name.to_owned());
    let own = |name: &String| name.strip_prefix("encoder.").map(str::to_owned).or_else(|| shared(name));
    let own = w.iter().filter_map(|(name, values)| Some((own(name)?, values.clone()))).collect();
    run(&Model { spec, w, about: forward(&encoder, &own, read) }, ids)
}

/// For each token the logits, or where there is no head the hidden state.
pub(crate) fn forward(spec: &Spec, w: &Weights, ids: &[u32]) -> Vec<Row> {
    run(&Model { spec, w, about: Vec::new() }, ids)
}

fn run(model: &Model<'_>, ids: &[u32]) -> Vec<Row> {
    let mut x: Vec<Row> = ids.iter().enumerate().map(|(position, &id)| model.embed(id as usize, position)).collect();
    for layer in 0..model.spec.n_layers {
        x = model.block(layer, &x);
    }
    x.iter().map(|x| model.output(x)).collect()
}

struct Model<'a> {
    spec: &'a Spec,
    w: &'a Weights,
    /// What an encoder made of another text, if one has read it.
    about: Vec<Row>,
}

impl Model<'_> {
    fn row(&self, name: &str, row: usize, cols: usize) -> Row {
        self.w[name][row * cols..][..cols].iter().map(|&x| f64::from(x)).collect()
    }

    /// `x wᵀ + bias`.
    fn linear(&self, name: &str, x: &[f64], rows: usize) -> Row {
        let bias = self.w.get(&format!("{name}.bias"));
        let weight = format!("{name}.weight");
        let one = |i: usize| dot(&self.row(&weight, i, x.len()), x) + bias.map_or(0.0, |b| f64::from(b[i]));
        (0..rows).map(one).collect()
    }

    /// The three kinds of normalization; gain and bias start at `at`.
    fn norm_by(&self, (kind, eps, trained): (NormKind, f32, Trained), name: &str, x: &[f64], at: usize) -> Row {
        let (n, eps) = (x.len() as f64, f64::from(eps));
        let mean = if kind == NormKind::LayerNorm { x.iter().sum::<f64>() / n } else { 0.0 };
        let squares: f64 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
        let divisor = if kind == NormKind::ScaleNorm { squares.sqrt().max(eps) } else { (squares / n + eps).sqrt() };
        let part = |part: &str, i: usize, there: bool, none: f64| {
            let i = if kind == NormKind::ScaleNorm { 0 } else { at + i };
            if there { f64::from(self.w[&format!("{name}.{part}")][i]) } else { none }
        };
        let gain = |i| part("weight", i, trained != Trained::Nothing, 1.0);
        let bias = |i| part("bias", i, trained == Trained::GainAndBias, 0.0);
        x.iter().enumerate().map(|(i, x)| (x - mean) / divisor * gain(i) + bias(i)).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Row {
        let norm = &self.spec.norm;
        self.norm_by((norm.kind, norm.eps, norm.trained), name, x, 0)
    }

    fn embed(&self, id: usize, position: usize) -> Row {
        let (spec, d) = (self.spec, self.spec.d_model);
        let width = spec.embedding.dim.unwrap_or(d);
        let mut x = self.row("embed.tokens", id, width);
        for x in &mut x {
            *x *= f64::from(spec.embedding.scale);
        }
        if width != d {
            x = self.linear("embed.project", &x, d);
        }
        let place = match &spec.position {
            Position::Learned => self.row("embed.positions", position, d),
            Position::Sinusoidal(s) => {
                let (position, half) = ((position + s.offset) as f64, d / 2);
                let at = |i: usize| match s.pairs {
                    // fairseq: exp(-i log(10000) / (half - 1)).
                    Pairs::Halves => {
                        (i / half, position * (-((i % half) as f64) * 1e4f64.ln() / (half - 1) as f64).exp())
                    }
                    // Vaswani et al.: pos / 10000^(2i / d).
                    Pairs::Interleaved => (i % 2, position / 1e4f64.powf((i / 2 * 2) as f64 / d as f64)),
                };
                (0..d).map(|i| if at(i).0 == 0 { at(i).1.sin() } else { at(i).1.cos() }).collect()
            }
            _ => vec![0.0; d],
        };
        x = sum(&x, &place);
        if spec.embedding.norm { self.norm("embed.norm", &x) } else { x }
    }

    fn block(&self, layer: usize, x: &[Row]) -> Vec<Row> {
        let place = self.spec.norm.place;
        let (stream, branch) = (f64::from(self.spec.scales.stream), f64::from(self.spec.scales.branch));
        let normed = |part: &str, x: &[Row], when: bool| -> Vec<Row> {
            let name = format!("layers.{layer}.{part}");
            x.iter().map(|x| if when { self.norm(&name, x) } else { x.clone() }).collect()
        };
        let before = matches!(place, Place::Before | Place::Sandwich);
        let branches = matches!(place, Place::Branch | Place::Sandwich);
        // `x` and what `f` made of it, with the norms that stand behind.
        let join = |part: &str, x: &[Row], f: Vec<Row>| {
            let f = normed(part, &f, branches);
            let one = |(x, f): (&Row, &Row)| x.iter().zip(f).map(|(x, f)| stream * x + branch * f).collect();
            normed(part, &x.iter().zip(&f).map(one).collect::<Vec<_>>(), place == Place::After)
        };
        let h = normed("attn_norm", x, before);
        let attended = self.attention(layer, &h);
        let feed = |x: &[Row]| x.iter().map(|x| self.feed_forward(layer, x)).collect::<Vec<_>>();
        match self.spec.residual {
            Residual::Sequential => {
                let mut x = join("attn_post_norm", x, attended);
                if !self.about.is_empty() {
                    x = join("cross_post_norm", &x, self.cross(layer, &normed("cross_norm", &x, before)));
                }
                join("mlp_post_norm", &x, feed(&normed("mlp_norm", &x, before)))
            }
            Residual::FromNorm => {
                let x = join("attn_post_norm", &h, attended);
                let h = normed("mlp_norm", &x, true);
                join("mlp_post_norm", &h, feed(&h))
            }
            Residual::Parallel | Residual::ParallelOneNorm => {
                let other = if self.spec.residual == Residual::Parallel { normed("mlp_norm", x, true) } else { h };
                let both = attended.iter().zip(feed(&other)).map(|(a, f)| sum(a, &f)).collect();
                join("", x, both)
            }
        }
    }

    fn attention(&self, layer: usize, x: &[Row]) -> Vec<Row> {
        let (a, name) = (&self.spec.attention, format!("layers.{layer}.attn"));
        let (n_heads, n_kv_heads, dim) = (a.n_heads, a.n_kv_heads, a.head_dim);
        let window = a.window.as_ref().filter(|w| w.layers.as_ref().is_none_or(|l| l.contains(&layer)));
        let turn = |position: usize, qkv: Row| -> Row {
            let clipped: Row =
                qkv.iter().map(|&x| a.clip.map_or(x, |c| x.clamp(-f64::from(c), f64::from(c)))).collect();
            let mut qkv = self.normed_heads(&name, clipped);
            if let Position::Rotary(rotary) = &self.spec.position {
                let rotary = window.and_then(|w| w.rotary.as_ref()).unwrap_or(rotary);
                let turned = (n_heads + n_kv_heads) * dim;
                qkv[..turned].chunks_exact_mut(dim).for_each(|head| rotate(rotary, position, head));
            }
            qkv
        };
        let qkv_rows = (n_heads + 2 * n_kv_heads) * dim;
        let qkv = x.iter().enumerate().map(|(p, x)| turn(p, self.linear(&format!("{name}.qkv"), x, qkv_rows)));
        let qkv: Vec<Row> = qkv.collect();
        let part = |token: usize, head: usize| &qkv[token][head * dim..][..dim];
        // Katharopoulos et al., in the form of their equation 4.
        let feature = |x: &[f64]| x.iter().map(|&x| if x > 0.0 { x + 1.0 } else { x.exp() }).collect::<Row>();
        let attend = |q: usize, head: usize| -> Row {
            let shared = head / (n_heads / n_kv_heads);
            let keys: Vec<usize> = (0..x.len()).filter(|&k| self.sees(layer, q, k)).collect();
            let weight = |&k: &usize| {
                let (query, key) = (part(q, head), part(k, n_heads + shared));
                match a.feature_map {
                    Some(FeatureMap::EluPlusOne) => dot(&feature(query), &feature(key)),
                    None => self.score(layer, head, (q, k), self.product(layer, head, (q, k), query, key)).exp(),
                }
            };
            let mut weights: Row = keys.iter().map(weight).collect();
            let sink = if a.sinks { f64::from(self.w[&format!("{name}.sinks")][head]).exp() } else { 0.0 };
            let total = weights.iter().sum::<f64>() + sink;
            for weight in &mut weights {
                *weight /= total;
            }
            let mut out = vec![0.0; dim];
            for (&k, weight) in keys.iter().zip(weights) {
                let value = part(k, n_heads + n_kv_heads + shared);
                out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
            out
        };
        let one = |q: usize| (0..n_heads).flat_map(|head| attend(q, head)).collect::<Row>();
        (0..x.len()).map(|q| self.linear(&format!("{name}.out"), &one(q), self.spec.d_model)).collect()
    }

    /// Vaswani et al., 3.2.3: queries of the decoder, keys and values of the encoder's output.
    fn cross(&self, layer: usize, x: &[Row]) -> Vec<Row> {
        let (a, name) = (&self.spec.attention, format!("layers.{layer}.cross"));
        let (n_heads, n_kv_heads, dim) = (a.n_heads, a.n_kv_heads, a.head_dim);
        let kv = |state: &Row| self.linear(&format!("{name}.kv"), state, 2 * n_kv_heads * dim);
        let kv: Vec<Row> = self.about.iter().map(kv).collect();
        let of = |token: usize, head: usize| &kv[token][head * dim..][..dim];
        let attend = |query: &[f64], head: usize| -> Row {
            let shared = head / (n_heads / n_kv_heads);
            let weights = (0..kv.len()).map(|k| self.scaled(layer, dot(query, of(k, shared))).exp());
            let weights: Row = weights.collect();
            let total: f64 = weights.iter().sum();
            let value = |d: usize| (0..kv.len()).map(|k| weights[k] / total * of(k, n_kv_heads + shared)[d]).sum();
            (0..dim).map(value).collect()
        };
        let one = |x: &Row| {
            let queries = self.linear(&format!("{name}.q"), x, n_heads * dim);
            let heads: Row = (0..n_heads).flat_map(|head| attend(&queries[head * dim..][..dim], head)).collect();
            self.linear(&format!("{name}.out"), &heads, self.spec.d_model)
        };
        x.iter().map(one).collect()
    }

    fn normed_heads(&self, name: &str, qkv: Row) -> Row {
        let a = &self.spec.attention;
        let Some(norm) = &a.qk_norm else { return qkv };
        let kind = (norm.kind, norm.eps, norm.trained);
        let (queries, rest) = qkv.split_at(a.n_heads * a.head_dim);
        let (keys, values) = rest.split_at(a.n_kv_heads * a.head_dim);
        let side = |part: &str, heads: &[f64]| -> Row {
            let name = format!("{name}.{part}");
            let of_head = |(i, head)| {
                self.norm_by(kind, &name, head, if norm.over == QkNormOver::Head { 0 } else { i * a.head_dim })
            };
            match norm.over {
                QkNormOver::AllHeads => self.norm_by(kind, &name, heads, 0),
                _ => heads.chunks_exact(a.head_dim).enumerate().flat_map(of_head).collect(),
            }
        };
        [side("q_norm", queries), side("k_norm", keys), values.to_vec()].concat()
    }

    fn sees(&self, layer: usize, q: usize, k: usize) -> bool {
        let a = &self.spec.attention;
        let here = |layers: &Option<Vec<usize>>| layers.as_ref().is_none_or(|l| l.contains(&layer));
        let window = a.window.as_ref().filter(|w| here(&w.layers)).is_none_or(|w| k + w.size > q);
        let sparse = a.sparse.as_ref().filter(|s| here(&s.layers)).is_none_or(|s| {
            let (q, k) = ((q / s.block) as i64, (k / s.block) as i64);
            let stride = s.stride as i64;
            let far = match s.pattern {
                SparsePattern::Strided => (q - k) % stride == 0,
                SparsePattern::Fixed => k % stride == stride - 1,
            };
            q - k < s.local as i64 || far
        });
        !a.causal || k <= q && window && sparse
    }

    /// The product of a query and a key, or Dai et al., 3.3: terms (a) and (c), then (b) and (d).
    fn product(&self, layer: usize, head: usize, (q, k): (usize, usize), query: &[f64], key: &[f64]) -> f64 {
        let Position::TransformerXl(of) = &self.spec.position else { return dot(query, key) };
        let (d, dim, name) = (self.spec.d_model, query.len(), format!("layers.{layer}.attn"));
        let distance = (q - k).min(of.max_distance) as f64;
        let angle = |i: usize| distance / 1e4f64.powf((2 * i) as f64 / d as f64);
        let sinusoids = (0..d / 2).map(|i| angle(i).sin()).chain((0..d / 2).map(|i| angle(i).cos())).collect::<Row>();
        let weight = format!("{name}.relative.weight");
        let of_distance = (0..dim).map(|i| dot(&self.row(&weight, head * dim + i, d), &sinusoids)).collect::<Row>();
        let plus = |part: &str| sum(query, &self.row(&format!("{name}.{part}"), head, dim));
        dot(&plus("content_bias"), key) + dot(&plus("position_bias"), &of_distance)
    }

    /// What is made of the product of a query and a key, wherever they stand.
    fn scaled(&self, layer: usize, product: f64) -> f64 {
        let a = &self.spec.attention;
        let score = product * f64::from(a.scale) / if a.scale_by_inverse_layer { (layer + 1) as f64 } else { 1.0 };
        a.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// What is made of the product of a query and a key.
    fn score(&self, layer: usize, head: usize, (q, k): (usize, usize), product: f64) -> f64 {
        let (a, score) = (&self.spec.attention, self.scaled(layer, product));
        match &self.spec.position {
            Position::Alibi(alibi) => {
                // The reference implementation: slopes of the power of two below, then every second of the next.
                let below = 1 << a.n_heads.ilog2();
                let slope = |n: usize, i: usize| 2f64.powf(-f64::from(alibi.max_bias) * (i + 1) as f64 / n as f64);
                let slope = if head < below { slope(below, head) } else { slope(2 * below, 2 * (head - below)) };
                score + slope * (k as f64 - q as f64)
            }
            Position::RelativeBias(bias) => {
                // Mesh TensorFlow's `_relative_position_bucket`.
                let (mut n, mut bucket, mut distance) = (bias.buckets, 0, q as f64 - k as f64);
                if !a.causal {
                    n /= 2;
                    bucket = if distance < 0.0 { n } else { 0 };
                    distance = distance.abs();
                }
                let exact = (n / 2) as f64;
                if distance < exact {
                    bucket += distance as usize;
                } else {
                    let log = (distance / exact).ln() / (bias.max_distance as f64 / exact).ln();
                    bucket += ((exact + log * (n as f64 - exact)) as usize).min(n - 1);
                }
                score + self.row("relative_bias", bucket, a.n_heads)[head]
            }
            _ => score,
        }
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Row {
        let (mlp, name) = (&self.spec.mlp, format!("layers.{layer}.mlp"));
        let network = |name: &str, dim: usize| -> Row {
            let mut inner = self.linear(&format!("{name}.{}", if mlp.gated { "gate" } else { "up" }), x, dim);
            for x in &mut inner {
                *x = activate(mlp.activation, *x);
            }
            if mlp.gated {
                let up = self.linear(&format!("{name}.up"), x, dim);
                inner.iter_mut().zip(up).for_each(|(x, up)| *x *= up);
            }
            self.linear(&format!("{name}.down"), &inner, self.spec.d_model)
        };
        let experts = mlp.experts.as_ref().filter(|e| e.layers.as_ref().is_none_or(|l| l.contains(&layer)));
        let Some(Experts { count, used, ffn_dim, renormalized, shared_dim, .. }) = experts else {
            return network(&name, mlp.ffn_dim);
        };
        let scores: Row = self.linear(&format!("{name}.router"), x, *count).iter().map(|s| s.exp()).collect();
        let mut order: Vec<usize> = (0..*count).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(*used);
        let total: f64 = if *renormalized { order.iter().map(|&e| scores[e]).sum() } else { scores.iter().sum() };
        let mut out = vec![0.0; self.spec.d_model];
        for e in order {
            let made = network(&format!("{name}.experts.{e}"), *ffn_dim);
            out.iter_mut().zip(made).for_each(|(o, x)| *o += scores[e] / total * x);
        }
        if let Some(dim) = shared_dim {
            let weight = sigmoid(self.linear(&format!("{name}.shared_router"), x, 1)[0]);
            out.iter_mut().zip(network(&format!("{name}.shared"), *dim)).for_each(|(o, x)| *o += weight * x);
        }
        out
    }

    fn output(&self, x: &[f64]) -> Row {
        let spec = self.spec;
        let mut x = if spec.final_norm { self.norm("final_norm", x) } else { x.to_vec() };
        let width = spec.embedding.dim.unwrap_or(spec.d_model);
        let table = match spec.head {
            Head::None => return x,
            Head::Tied => "embed.tokens",
            Head::Untied => "head.weight",
        };
        if width != spec.d_model {
            x = self.linear("head.project", &x, width);
        }
        let logit = |id: usize| {
            let bias = if spec.logits.bias { f64::from(self.w["head.bias"][id]) } else { 0.0 };
            let logit = (dot(&self.row(table, id, width), &x) + bias) * f64::from(spec.logits.scale);
            spec.logits.softcap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh())
        };
        (0..spec.vocab_size).map(logit).collect()
    }
}

fn rotate(rotary: &Rotary, position: usize, head: &mut [f64]) {
    let factor = match rotary.scaling {
        None => 1.0,
        Some(RotaryScaling::Linear { factor }) => f64::from(factor),
        // Not in the table of parts: their formulas are transformers' own, and tests/families compares with those.
        Some(RotaryScaling::Dynamic { .. } | RotaryScaling::Llama3 { .. } | RotaryScaling::Yarn { .. }) => {
            panic!("{:?}: only tests/families compares this scaling", rotary.scaling)
        }
    };
    for i in 0..rotary.dims / 2 {
        let (a, b) = match rotary.pairs {
            Pairs::Halves => (i, i + rotary.dims / 2),
            Pairs::Interleaved => (2 * i, 2 * i + 1),
        };
        let angle = position as f64 / factor * f64::from(rotary.theta).powf(-((2 * i) as f64) / rotary.dims as f64);
        let (x, y) = (head[a], head[b]);
        (head[a], head[b]) = (x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin());
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::GeluErf => x / 2.0 * (1.0 + libm::erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::GeluQuick => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[f64], b: &[f64]) -> Row {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
