//! Small checkpoints made on the spot, so that the tests need no data; and where the larger data is.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod gguf;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tidbit_convert::{Checkpoint, ConvertError, Options, Report, convert};
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::quant::QuantType;

/// The shared data beside the repository, if it is there.
pub(crate) fn shared(part: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let root = std::env::var_os("TIDBIT_SHARED").map_or(beside, PathBuf::from);
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no shared data ({part})");
    None
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let bytes = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Its values, by a decoder that is not the converter's.
    pub(crate) fn values(&self) -> Vec<f32> {
        let two = |b: &[u8]| [b[0], b[1]];
        match self.dtype {
            Dtype::F32 => self.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => self.bytes.chunks(2).map(|b| f16::from_le_bytes(two(b)).to_f32()).collect(),
            Dtype::BF16 => {
                self.bytes.chunks(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes(two(b))) << 16)).collect()
            }
            other => panic!("{other}"),
        }
    }

    pub(crate) fn cast(&self, dtype: Dtype) -> Self {
        let bytes = match dtype {
            Dtype::F16 => self.values().into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => self.values().into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            other => panic!("{other}"),
        };
        Self { dtype, shape: self.shape.clone(), bytes }
    }
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A checkpoint to be written into a folder.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(crate) config: Value,
    pub(crate) tensors: Tensors,
}

/// Values that all differ within a model and stay small, so that any exchange shows.
fn add(tensors: &mut Tensors, name: String, shape: &[usize]) {
    let salt = tensors.len() as u32;
    let value = move |i: usize| ((i as u32 * 64 + salt) as f32).mul_add(1e-5, -0.3);
    tensors.insert(name, Tensor::new(shape, value));
}

pub(crate) const D: usize = 12;
pub(crate) const VOCAB: usize = 37;
pub(crate) const LAYERS: usize = 2;
pub(crate) const HEADS: usize = 3;
pub(crate) const FFN: usize = 20;

impl Fake {
    pub(crate) fn gpt2() -> Self {
        let mut t = Tensors::new();
        add(&mut t, "transformer.wte.weight".into(), &[VOCAB, D]);
        add(&mut t, "transformer.wpe.weight".into(), &[10, D]);
        for i in 0..LAYERS {
            for (name, shape) in [
                ("ln_1.weight", &[D][..]),
                ("ln_1.bias", &[D]),
                ("attn.c_attn.weight", &[D, 3 * D]),
                ("attn.c_attn.bias", &[3 * D]),
                ("attn.c_proj.weight", &[D, D]),
                ("attn.c_proj.bias", &[D]),
                ("ln_2.weight", &[D]),
                ("ln_2.bias", &[D]),
                ("mlp.c_fc.weight", &[D, FFN]),
                ("mlp.c_fc.bias", &[FFN]),
                ("mlp.c_proj.weight", &[FFN, D]),
                ("mlp.c_proj.bias", &[D]),
            ] {
                add(&mut t, format!("transformer.h.{i}.{name}"), shape);
            }
        }
        add(&mut t, "transformer.ln_f.weight".into(), &[D]);
        add(&mut t, "transformer.ln_f.bias".into(), &[D]);
        let config = json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": D, "n_layer": LAYERS,
            "n_head": HEADS, "n_inner": FFN, "n_positions": 10, "vocab_size": VOCAB,
        });
        Self { config, tensors: t }
    }

    pub(crate) fn neox() -> Self {
        let mut t = Tensors::new();
        add(&mut t, "gpt_neox.embed_in.weight".into(), &[VOCAB, D]);
        for i in 0..LAYERS {
            for (name, shape) in [
                ("input_layernorm.weight", &[D][..]),
                ("input_layernorm.bias", &[D]),
                ("attention.query_key_value.weight", &[3 * D, D]),
                ("attention.query_key_value.bias", &[3 * D]),
                ("attention.dense.weight", &[D, D]),
                ("attention.dense.bias", &[D]),
                ("post_attention_layernorm.weight", &[D]),
                ("post_attention_layernorm.bias", &[D]),
                ("mlp.dense_h_to_4h.weight", &[FFN, D]),
                ("mlp.dense_h_to_4h.bias", &[FFN]),
                ("mlp.dense_4h_to_h.weight", &[D, FFN]),
                ("mlp.dense_4h_to_h.bias", &[D]),
            ] {
                add(&mut t, format!("gpt_neox.layers.{i}.{name}"), shape);
            }
        }
        add(&mut t, "gpt_neox.final_layer_norm.weight".into(), &[D]);
        add(&mut t, "gpt_neox.final_layer_norm.bias".into(), &[D]);
        add(&mut t, "embed_out.weight".into(), &[VOCAB, D]);
        let config = json!({
            "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": D,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN,
            "max_position_embeddings": 10, "vocab_size": VOCAB, "rotary_pct": 0.5,
        });
        Self { config, tensors: t }
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.into(), tensor);
    }

    pub(crate) fn set(&mut self, field: &str, value: Value) -> &mut Self {
        self.config[field] = value;
        self
    }

    /// Writes config and `model.safetensors`.
    pub(crate) fn write(&self, folder: &Path) {
        self.write_config(folder);
        write_safetensors(&folder.join("model.safetensors"), &self.tensors);
    }

    pub(crate) fn write_config(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
    }
}

pub(crate) fn write_safetensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(n, t)| (n, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Reads all tensors of safetensors files, by the crate's own reader.
pub(crate) fn read_safetensors(paths: &[PathBuf]) -> Tensors {
    let mut all = Tensors::new();
    for path in paths {
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in file.tensors() {
            let tensor = Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            all.insert(name, tensor);
        }
    }
    all
}

/// Converts, and opens the result.
pub(crate) fn converted(path: &Path, quant: QuantType) -> Result<(ModelFile, Report), ConvertError> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.tidbit");
    let checkpoint = Checkpoint::open(path)?;
    let report = convert(&checkpoint, &output, &Options { quant, cancel: None }, &mut ())?;
    assert_eq!(std::fs::metadata(&output).unwrap().len(), report.file_bytes, "the length that was reported");
    assert_eq!(report.plan.file_bytes, report.file_bytes, "the length that was planned");
    let file = ModelFile::open(&output).unwrap();
    file.verify().unwrap();
    Ok((file, report))
}

/// The message of a conversion that must fail, and leave nothing behind.
pub(crate) fn failure(path: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.tidbit");
    let attempt = Checkpoint::open(path)
        .and_then(|c| convert(&c, &output, &Options { quant: QuantType::F32, cancel: None }, &mut ()));
    let message = attempt.expect_err("a conversion that fails").to_string();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files left behind after: {message}");
    assert!(!message.contains('\n') && !message.ends_with('.'), "one line without a full stop: {message:?}");
    message
}

/// A tensor of a model file in f32, row by row, without padding.
pub(crate) fn values(file: &ModelFile, name: &str) -> Vec<f32> {
    let (_, record, _) = file.tensors().find(|(n, ..)| *n == name).unwrap_or_else(|| panic!("no {name}"));
    let shape = record.shape.clone();
    if shape.len() == 1 {
        return file.vector(name).unwrap()[..shape[0]].to_vec();
    }
    let matrix = file.matrix(name).unwrap();
    let mut all = vec![0.0; shape[0] * shape[1]];
    for (row, out) in all.chunks_mut(shape[1]).enumerate() {
        matrix.decode_row(row, out);
    }
    all
}
