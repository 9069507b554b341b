//! Reference outputs of Hugging Face transformers: logits, greedy continuations, perplexity.
//!
//! Data in `tests/data` always runs; the larger files run when `../shared` (or `TIDBIT_SHARED`) is there: those of two
//! other, less trained models of the same names, and the text that perplexity is measured on. Each test prints its figures:
//! `cargo test --test goldens -- --nocapture`.

use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::eval::{Windows, evaluate};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::{Model, Session, SessionOptions};

const MODELS: [&str; 2] = ["gpt2-mini", "neox-mini"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of larger reference data, when it is there.
fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("TIDBIT_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no folder ../shared (or TIDBIT_SHARED)");
    None
}

fn converted(checkpoint: &Path, quant: QuantType, folder: &Path) -> Model {
    let output = folder.join("model.tidbit");
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    convert(&checkpoint, &output, &Options { quant, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

fn session(model: &Model, threads: usize) -> Session {
    Session::new(model, &SessionOptions { threads: Some(threads), ..SessionOptions::default() }).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
    tensor.data().chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn id_list(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| u32::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

/// Differences of logits.
#[derive(Default)]
struct Difference {
    largest: f64,
    sum: f64,
    count: usize,
}

impl Difference {
    fn add(&mut self, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            let d = f64::from((a - b).abs());
            // A NaN must not pass for a small difference.
            self.largest = if d <= self.largest { self.largest } else { d };
            self.sum += d;
        }
        self.count += found.len();
    }

    fn check(&self, what: &str) {
        let mean = self.sum / self.count as f64;
        println!("{what}: largest logit difference {:.2e}, mean {mean:.2e} over {} logits", self.largest, self.count);
        assert!(self.largest < 1e-3 && mean < 1e-4, "{what}: largest {}, mean {mean}", self.largest);
    }
}

/// Greedy continuation, token by token.
fn greedy(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    session.rewind(0);
    let mut next = argmax(session.append(prompt).unwrap());
    let mut out = vec![next];
    while out.len() < n {
        next = argmax(session.append(&[next]).unwrap());
        out.push(next);
    }
    out
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    u32::try_from(best).unwrap()
}

/// Every folder of random weights in every shape: logits of all positions at once and token by token, greedy tokens.
fn check_shapes(folder: &Path) -> usize {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in &names {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let temp = tempfile::tempdir().unwrap();
        let model = converted(path, QuantType::F32, temp.path());
        let bytes = std::fs::read(path.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let vocab = model.spec().vocab_size;
        let mut session = session(&model, 2);
        let mut difference = Difference::default();
        for length in [1, 7, 40] {
            let prompt = ids(&golden, &format!("ids_{length}"));
            let expected = floats(&golden, &format!("logits_{length}"));
            session.rewind(0);
            let mut together = Vec::new();
            session
                .append_each(&prompt, |i, logits| {
                    difference.add(logits, &expected[i * vocab..][..vocab]);
                    together.extend(logits.iter().map(|v| v.to_bits()));
                })
                .unwrap();
            session.rewind(0);
            for (i, id) in prompt.iter().enumerate() {
                let alone: Vec<u32> = session.append(&[*id]).unwrap().iter().map(|v| v.to_bits()).collect();
                assert!(alone == together[i * vocab..][..vocab], "{name}: token {i} of {length} alone has other bits");
            }
            let continuation = ids(&golden, &format!("greedy_{length}"));
            assert_eq!(greedy(&mut session, &prompt, continuation.len()), continuation, "{name}, {length} tokens");
        }
        difference.check(&name);
    }
    names.len()
}

#[test]
fn logits_of_every_shape_match_the_reference() {
    let mut checked = check_shapes(&root().join("tests/data/shapes"));
    if let Some(shared) = shared() {
        checked = check_shapes(&shared.join("golden/shapes"));
        assert_eq!(checked, 20);
    }
    assert!(checked > 0);
}

#[test]
fn logits_of_trained_models_match_the_reference() {
    let Some(shared) = shared() else { return };
    for name in MODELS {
        let temp = tempfile::tempdir().unwrap();
        let model = converted(&shared.join("checkpoints").join(name), QuantType::F32, temp.path());
        let folder = shared.join("golden").join(name);
        let bytes = std::fs::read(folder.join("logits.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let vocab = model.spec().vocab_size;
        let mut session = session(&model, 2);
        for (n, prompt) in json(&folder.join("prompts.json")).as_array().unwrap().iter().enumerate() {
            let prompt_ids = id_list(&prompt["ids"]);
            let found = model.tokenizer().unwrap().unwrap().encode(prompt["text"].as_str().unwrap()).unwrap();
            assert_eq!(found, prompt_ids, "{name} prompt {n}");
            let expected = floats(&golden, &format!("prompt_{n}"));
            let first = usize::try_from(prompt["logit_positions"][0].as_u64().unwrap()).unwrap();
            let mut difference = Difference::default();
            session.rewind(0);
            session
                .append_each(&prompt_ids, |i, logits| {
                    if i >= first {
                        difference.add(logits, &expected[(i - first) * vocab..][..vocab]);
                    }
                })
                .unwrap();
            difference.check(&format!("{name} prompt {n} ({} tokens)", prompt_ids.len()));
        }
    }
}

#[test]
fn greedy_tokens_match_the_reference() {
    for name in MODELS {
        let temp = tempfile::tempdir().unwrap();
        let model = converted(&root().join("models").join(name), QuantType::F32, temp.path());
        let folder = root().join("tests/data").join(name);
        let (prompts, expected) = (json(&folder.join("prompts.json")), json(&folder.join("greedy.json")));
        for threads in [1, 2] {
            let mut session = session(&model, threads);
            let mut equal = 0;
            for (n, prompt) in prompts.as_array().unwrap().iter().enumerate() {
                let expected = id_list(&expected[n]["ids"]);
                assert_eq!(greedy(&mut session, &id_list(&prompt["ids"]), 64), expected, "{name} prompt {n}");
                equal += expected.len();
            }
            println!("{name}, {threads} threads: {equal} greedy tokens equal");
        }
    }
}

#[test]
fn perplexity_matches_the_reference() {
    let Some(shared) = shared() else { return };
    let text = std::fs::read_to_string(shared.join("text/heldout.txt")).unwrap();
    for name in MODELS {
        let golden = json(&root().join("tests/data").join(name).join("perplexity.json"));
        // f32 on the whole text; what quantization costs shows on a quarter of it.
        for (quant, tolerance, windows) in [
            (QuantType::F32, 1e-4, usize::MAX),
            (QuantType::F16, 1e-4, 50),
            (QuantType::Q8, 1e-3, 50),
            (QuantType::Q4, 2.5e-2, 50),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let model = converted(&root().join("models").join(name), quant, temp.path());
            let mut ids = model.tokenizer().unwrap().unwrap().encode(&text).unwrap();
            assert_eq!(ids.len() as u64, golden["tokens"].as_u64().unwrap());
            let nll = golden["window_nll"].as_array().unwrap();
            let windows = windows.min(nll.len());
            ids.truncate(windows * 512);
            let expected: f64 = nll[..windows].iter().map(|v| v.as_f64().unwrap()).sum();
            let expected = (expected / (ids.len() - windows) as f64).exp();
            let result = evaluate(&mut session(&model, 2), None, &ids, &Windows::of_length(512), |_| {}).unwrap();
            assert_eq!(result.scored_tokens, ids.len() - windows);
            let off = result.perplexity.value / expected - 1.0;
            let found = result.perplexity.value;
            println!(
                "{name} {quant}, {windows} windows: perplexity {found:.5}, {:+.4} % of {expected:.5}",
                off * 100.0
            );
            assert!(off.abs() < tolerance, "{name} {quant}");
        }
    }
}
