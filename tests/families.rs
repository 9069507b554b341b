//! Every family that can be converted against transformers: the tiny checkpoints of `tests/families`, at every position,
//! all at once and token by token. `docs/architectures.md` is what these tests have shown; `UPDATE=1` writes it anew.

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tidbit_convert::{Checkpoint, Options, convert, supported_families};
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::{Engine, EngineOptions, Feed};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sequence::{Sequence, SequenceOptions};
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::spec::{
    Activation, Head, NormKind, Pairs, Place, Pooling, PoolingKind, Position, QkNormOver, Residual, RotaryScaling,
    Scales, Spec,
};

/// Differences allowed, as a part of the logits' standard deviation. The two forms of GELU differ by 6e-4 on these models.
const ALLOWED: f64 = 1e-4;

/// Checkpoints of encoders.
const ENCODERS: [&str; 3] = ["bert", "minilm", "roberta"];

/// Checkpoints of an encoder and a decoder.
const PAIRS: [&str; 4] = ["flan-t5", "mt5", "t5", "t5-tied-gated"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families")
}

/// The checkpoints of supported families, by name.
fn fixtures() -> Vec<(String, PathBuf)> {
    let mut list: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("config.json").is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    list.sort();
    assert!(list.len() > 40, "{} checkpoints", list.len());
    list
}

fn converted(checkpoint: &Path) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.tidbit");
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    convert(&checkpoint, &output, &Options { quant: QuantType::F32, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = file.tensor(name).ok()?;
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    Some(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
}

fn deviation(x: &[f32]) -> f64 {
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    (x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
}

fn ids_of(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let bytes = file.tensor(name).unwrap();
    bytes.data().chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect()
}

/// The largest differences from the reference in standard deviations, and what of.
type Found = Vec<(&'static str, f64)>;

/// Those of an encoder: of hidden states, and of embeddings.
fn differences_of_encoder(path: &Path) -> (Model, Found) {
    let model = converted(path);
    let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut of_hidden, mut of_pooled) = (0f64, 0f64);
    let options = EngineOptions { threads: Some(2), max_batch: None };
    let mut engine = Engine::new(&model, &options).unwrap();
    let embedder = |kind| {
        let pooling = Pooling { kind, ..Pooling::default() };
        Embedder::new(&model, &options).unwrap().with_pooling(pooling)
    };
    let lengths = [1, 9, 40];
    let texts = lengths.map(|n| ids_of(&file, &format!("ids_{n}")));
    for (n, ids) in lengths.into_iter().zip(&texts) {
        let expected = floats(&file, &format!("hidden_{n}")).unwrap();
        let (d_model, unit) = (model.spec().d_model, deviation(&expected));
        assert_eq!(expected.len(), n * d_model);
        let mut sequence = Sequence::new(&model, &SequenceOptions::default()).unwrap();
        let visit = |_, token: usize, hidden: &[f32]| {
            of_hidden = of_hidden.max(largest(hidden, &expected[token * d_model..], unit));
        };
        engine.each_hidden(&mut [Feed::new(&mut sequence, ids)], visit).unwrap();
    }
    for kind in [PoolingKind::Mean, PoolingKind::Cls] {
        // Together, as texts of different lengths are; then alone, with the same bits.
        let found = embedder(kind).embed(&texts).unwrap();
        for ((n, ids), found) in lengths.into_iter().zip(&texts).zip(&found) {
            let expected = floats(&file, &format!("{}_{n}", kind.name())).unwrap();
            let unit = deviation(&floats(&file, &format!("hidden_{n}")).unwrap());
            of_pooled = of_pooled.max(largest(found, &expected, unit));
            assert_eq!(embedder(kind).embed(std::slice::from_ref(ids)).unwrap(), std::slice::from_ref(found));
        }
    }
    (model, vec![("hidden states", of_hidden), ("embeddings", of_pooled)])
}

/// The largest difference in `unit`s.
fn largest(found: &[f32], expected: &[f32], unit: f64) -> f64 {
    let pairs = found.iter().zip(expected);
    // A NaN must not pass for a small difference.
    pairs.map(|(a, b)| f64::from((a - b).abs()) / unit).fold(0.0, |most, d| if d <= most { most } else { d })
}

/// Those of an encoder-decoder, of two texts by themselves and in one batch: of the encoder's hidden states, of one pass of the
/// decoder, and token by token.
fn differences_of_pair(path: &Path) -> (Model, Found) {
    let model = converted(path);
    let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (encoder, vocab_size, d_model) = (model.encoder().unwrap(), model.spec().vocab_size, model.spec().d_model);
    let options = EngineOptions { threads: Some(2), max_batch: None };
    let (mut engine, mut reader) = (Engine::new(&model, &options).unwrap(), Engine::new(encoder, &options).unwrap());
    let (mut of_hidden, mut at_once, mut by_token) = (0f64, 0f64, 0f64);
    let mut texts = Vec::new();
    for suffix in ["", "_5"] {
        let ids = |name: &str| ids_of(&file, &format!("{name}_ids{suffix}"));
        let values = |name: &str| floats(&file, &format!("{name}{suffix}")).unwrap();
        let (read, written, hidden, logits) =
            (ids("encoder"), ids("decoder"), values("encoder_hidden"), values("logits"));
        assert_eq!((hidden.len(), logits.len()), (read.len() * d_model, written.len() * vocab_size));
        assert_eq!(written[0], model.spec().encoder.as_ref().unwrap().start_id);
        let mut sequence = Sequence::new(encoder, &SequenceOptions::default()).unwrap();
        let unit = deviation(&hidden);
        let visit = |_, token: usize, found: &[f32]| {
            of_hidden = of_hidden.max(largest(found, &hidden[token * d_model..], unit));
        };
        reader.each_hidden(&mut [Feed::new(&mut sequence, &read)], visit).unwrap();

        let unit = deviation(&logits);
        let difference = |token: usize, found: &[f32]| largest(found, &logits[token * vocab_size..], unit);
        let mut sequence = Sequence::new(&model, &SequenceOptions::default()).unwrap();
        engine.encode(&mut sequence, &read).unwrap();
        engine.each(&mut sequence, &written, |token, found| at_once = at_once.max(difference(token, found))).unwrap();
        sequence.rewind(0);
        for (token, id) in written.iter().enumerate() {
            let found = engine.step(&mut [Feed::new(&mut sequence, &[*id])]).unwrap();
            by_token = by_token.max(difference(token, found.row(0)));
        }
        sequence.rewind(0);
        texts.push((sequence, written, logits));
    }
    // Both at once, of different lengths and about texts of different lengths.
    let expected: Vec<(f64, Vec<f32>)> = texts.iter().map(|(_, _, l)| (deviation(l), l.clone())).collect();
    let mut feeds: Vec<_> = texts.iter_mut().map(|(s, ids, _)| Feed::new(s, ids).with_logits(ids.len())).collect();
    let found = engine.step(&mut feeds).unwrap();
    let rows = expected.iter().flat_map(|(unit, logits)| logits.chunks(vocab_size).map(move |row| (unit, row)));
    let mut n = 0;
    for (i, (unit, row)) in rows.enumerate() {
        at_once = at_once.max(largest(found.row(i), row, *unit));
        n += 1;
    }
    assert_eq!(found.len(), n);
    (model, vec![("hidden states", of_hidden), ("at once", at_once), ("by token", by_token)])
}

/// Those of a decoder: of one pass, and token by token.
fn differences(path: &Path) -> (Model, Found) {
    let model = converted(path);
    let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = ids_of(&file, "ids");
    // With dynamic scaling transformers differs from itself; token by token is what depends on the text alone.
    let expected = floats(&file, "logits_steps").or_else(|| floats(&file, "logits")).unwrap();
    let vocab_size = model.spec().vocab_size;
    assert_eq!(expected.len(), ids.len() * vocab_size);
    let unit = deviation(&expected);
    let difference = |token: usize, found: &[f32]| largest(found, &expected[token * vocab_size..], unit);
    let options = SessionOptions { context: Some(ids.len()), threads: Some(2), ..SessionOptions::default() };
    let (mut at_once, mut by_token) = (0f64, 0f64);
    let mut session = Session::new(&model, &options).unwrap();
    session.append_each(&ids, |token, logits| at_once = at_once.max(difference(token, logits))).unwrap();
    session.rewind(0);
    for (token, id) in ids.iter().enumerate() {
        by_token = by_token.max(difference(token, session.append(&[*id]).unwrap()));
    }
    (model, vec![("at once", at_once), ("by token", by_token)])
}

#[test]
fn logits_and_hidden_states_are_those_of_transformers() {
    let mut wrong = Vec::new();
    let mut proven: BTreeMap<String, Vec<(String, Spec)>> = BTreeMap::new();
    for (name, path) in fixtures() {
        let (model, found) = match name.as_str() {
            name if ENCODERS.contains(&name) => differences_of_encoder(&path),
            name if PAIRS.contains(&name) => differences_of_pair(&path),
            _ => differences(&path),
        };
        let shown: Vec<_> = found.iter().map(|(what, difference)| format!("{difference:.1e} {what}")).collect();
        println!("{name:<20} {}", shown.join(", "));
        if !found.iter().all(|(_, d)| *d <= ALLOWED) {
            wrong.push(format!("{name}: {found:?}"));
        }
        let spec = model.spec().clone();
        proven.entry(spec.family.clone()).or_default().push((name, spec));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (path, text) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architectures.md"), table(&proven));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/architectures.md is not what was shown: UPDATE=1 cargo test --test families");
}

/// What was shown, for people.
fn table(proven: &BTreeMap<String, Vec<(String, Spec)>>) -> String {
    let mut text = String::from(
        "# Architectures\n\n\
         Families of checkpoints that `tidbit convert` reads, in Hugging Face layout. Each variant below is a tiny random checkpoint\n\
         made by transformers (`tests/families`); Tidbit's f32 logits equal its logits at every position, to one part in ten\n\
         thousand of their standard deviation, all at once and token by token. Of encoders, hidden states and embeddings do. This\n\
         page is written by that test (`UPDATE=1 cargo test --test families`).\n\n\
         A family is one file in `convert/src/family`, made of parts that the runtime has; the runtime knows no family.\n\n\
         | family (`model_type`) | architectures | shown with | parts |\n|---|---|---|---|\n",
    );
    for (model_type, architectures) in supported_families() {
        let Some(shown) = proven.get(model_type) else { continue };
        let mut parts: Vec<String> = Vec::new();
        for part in shown.iter().flat_map(|(_, spec)| parts_of(spec)) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        let names: Vec<_> = shown.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(
            text,
            "| `{model_type}` | {} | {} | {} |",
            architectures.join(", "),
            names.join(", "),
            parts.join("; ")
        );
    }
    text
}

/// How a token learns where it stands, in words.
fn position_of(spec: &Spec) -> Vec<&'static str> {
    let rotary = match &spec.position {
        Position::Learned => return vec!["learned positions"],
        Position::Sinusoidal(_) => return vec!["sinusoidal positions"],
        Position::RelativeBias(_) => return vec!["relative biases"],
        Position::TransformerXl(_) => return vec!["Transformer-XL positions"],
        Position::Alibi(alibi) => return vec![if alibi.bf16 { "ALiBi in bf16" } else { "ALiBi" }],
        Position::None => return vec!["no positions"],
        Position::Rotary(rotary) => rotary,
    };
    let partial = rotary.dims < spec.attention.head_dim;
    let mut parts = vec![if partial { "partial rotary" } else { "rotary" }];
    match rotary.pairs {
        Pairs::Halves => {}
        Pairs::Interleaved => parts.push("interleaved pairs"),
    }
    match rotary.scaling {
        None => {}
        Some(RotaryScaling::Linear { .. }) => parts.push("linear scaling"),
        Some(RotaryScaling::Dynamic { .. }) => parts.push("dynamic scaling"),
        Some(RotaryScaling::Llama3 { .. }) => parts.push("LLaMA 3 scaling"),
        Some(RotaryScaling::Yarn { .. }) => parts.push("YaRN"),
    }
    parts
}

/// The parts that a model is made of, in words.
fn parts_of(spec: &Spec) -> Vec<String> {
    let a = &spec.attention;
    let mut parts: Vec<String> = position_of(spec).into_iter().map(String::from).collect();
    let mut add = |part: &str| parts.push(part.to_string());
    if spec.encoder.is_some() {
        add("an encoder and a decoder");
    }
    if let Some(window) = &a.window {
        add(if window.layers.is_some() { "window in some layers" } else { "window" });
    }
    if a.sparse.is_some() {
        add("sparse blocks");
    }
    if a.feature_map.is_some() {
        add("linear attention");
    }
    if a.sinks {
        add("sinks");
    }
    if !a.causal {
        add("attention to the whole text");
    }
    if a.n_kv_heads == 1 && a.n_heads > 1 {
        add("multi-query");
    } else if a.n_kv_heads < a.n_heads {
        add("grouped queries");
    }
    match a.qk_norm.as_ref().map(|norm| norm.over) {
        None => {}
        Some(QkNormOver::AllHeads) => add("query and key norm over all heads"),
        Some(QkNormOver::Head | QkNormOver::HeadWithItsGain) => add("query and key norm"),
    }
    if a.clip.is_some() {
        add("clipped queries, keys and values");
    }
    if a.softcap.is_some() || spec.logits.softcap.is_some() {
        add("soft-caps");
    }
    add(match spec.norm.kind {
        NormKind::LayerNorm => "LayerNorm",
        NormKind::RmsNorm => "RMSNorm",
        NormKind::ScaleNorm => "ScaleNorm",
    });
    match spec.norm.place {
        Place::Before => {}
        Place::After => add("norms after the sum"),
        Place::Branch => add("norms on the branches"),
        Place::Sandwich => add("sandwich norms"),
    }
    match spec.residual {
        Residual::Sequential => {}
        Residual::Parallel => add("parallel"),
        Residual::ParallelOneNorm => add("parallel with one norm"),
        Residual::FromNorm => add("residual from the norm"),
    }
    if spec.scales != Scales::default() {
        add("scaled sums");
    }
    if spec.embedding.norm {
        add("embedding norm");
    }
    if spec.embedding.scale != 1.0 {
        add("scaled embedding");
    }
    if spec.embedding.dim.is_some() {
        add("projected embedding");
    }
    let activation = match spec.mlp.activation {
        Activation::Relu => "ReLU",
        Activation::ReluSquared => "squared ReLU",
        Activation::GeluErf => "exact GELU",
        Activation::GeluTanh => "tanh GELU",
        Activation::GeluQuick => "quick GELU",
        Activation::Silu => "SiLU",
        Activation::Tanh => "tanh",
    };
    add(&if spec.mlp.gated { format!("gated {activation}") } else { activation.to_string() });
    if let Some(experts) = &spec.mlp.experts {
        add(if experts.shared_dim.is_some() { "experts, one of them shared" } else { "experts" });
    }
    match spec.head {
        Head::Tied => add("tied head"),
        Head::Untied => {}
        Head::None => add("no head: embeddings"),
    }
    if spec.logits.bias {
        add("head bias");
    }
    parts
}

#[test]
fn only_chosen_experts_are_read() {
    let path = folder().join("mixtral");
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("model.tidbit");
    let options = Options { quant: QuantType::F32, cancel: None };
    convert(&Checkpoint::open(&path).unwrap(), &file, &options, &mut ()).unwrap();
    let good = std::fs::read(&file).unwrap();
    let model = Model::open(&file).unwrap();
    let experts = model.spec().mlp.experts.clone().unwrap();
    let damaged = |layer: usize, expert: usize| {
        let mut bytes = good.clone();
        let tensor = format!("layers.{layer}.mlp.experts.{expert}.down.weight");
        let matrix = model.file().matrix(&tensor).unwrap();
        let at = matrix.bytes().as_ptr() as usize - model.file().bytes().as_ptr() as usize;
        for value in bytes[at..at + matrix.bytes().len()].chunks_exact_mut(4) {
            value.copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let path = scratch.path().join("damaged.tidbit");
        std::fs::write(&path, bytes).unwrap();
        let model = Model::open(&path).unwrap();
        let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
        session.append(&[5]).unwrap().iter().any(|x| x.is_nan())
    };
    for layer in 0..model.spec().n_layers {
        let read = (0..experts.count).filter(|&expert| damaged(layer, expert)).count();
        assert_eq!(read, experts.used, "experts of layer {layer} that one token read");
    }
}
