//! Peak memory: one tensor at a time, whatever the size of the model. Alone in its file, because the
//! peak is that of the process.

#![cfg(target_os = "linux")]

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use tidbit_convert::{Checkpoint, Options, convert, spec_from_json};
use tidbit_runtime::quant::QuantType;

/// The largest resident size so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A checkpoint of zeros that takes no place on the disk.
fn write(folder: &Path, config: &str, tensors: &[(String, Vec<usize>)]) {
    std::fs::write(folder.join("config.json"), config).unwrap();
    let (mut infos, mut end) = (Vec::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        infos.push((name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) }));
    }
    let header = serde_json::to_vec(&Metadata::new(None, infos).unwrap()).unwrap();
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end as u64).unwrap();
}

/// How much the peak grows while a checkpoint is converted, the bytes of its largest tensor, and of all.
fn growth(config: &str, tensors: &[(String, Vec<usize>)]) -> [u64; 3] {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    let before = peak();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.spec(), &spec_from_json("config.json", config).unwrap().0);
    let options = Options { quant: QuantType::Q4, cancel: None };
    let plan = convert(&checkpoint, &folder.path().join("model.tidbit"), &options, &mut ()).unwrap().plan;
    [peak() - before, plan.largest_source_bytes, plan.source_bytes]
}

const GPT2: &str = r#"{"model_type": "gpt2", "n_embd": 768, "n_layer": 16, "n_head": 12, "vocab_size": 8000}"#;

const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8,
    "intermediate_size": 64, "vocab_size": 100, "tie_word_embeddings": true}"#;

#[test]
fn only_one_tensor_is_in_memory_at_a_time() {
    let mut tensors = Vec::new();
    let d = 768;
    let mut add = |name: String, shape: Vec<usize>| tensors.push((name, shape));
    add("wte.weight".into(), vec![8000, d]);
    add("wpe.weight".into(), vec![1024, d]);
    for i in 0..16 {
        for (name, cols, rows) in
            [("attn.c_attn", 3 * d, d), ("attn.c_proj", d, d), ("mlp.c_fc", 4 * d, d), ("mlp.c_proj", d, 4 * d)]
        {
            add(format!("h.{i}.{name}.weight"), vec![rows, cols]);
            add(format!("h.{i}.{name}.bias"), vec![cols]);
        }
        for name in ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"] {
            add(format!("h.{i}.{name}"), vec![d]);
        }
    }
    for name in ["ln_f.weight", "ln_f.bias"] {
        add(name.into(), vec![d]);
    }
    let [growth_gpt2, largest, total] = growth(GPT2, &tensors);
    assert!(total > 400 << 20 && largest < 25 << 20, "{total} bytes, the largest tensor {largest}");
    assert!(
        growth_gpt2 < largest + (96 << 20),
        "{growth_gpt2} bytes for a largest tensor of {largest}, of {total} in all"
    );

    // All queries, then all keys, then all values: no layer's three are near each other.
    let d = 1024;
    let mut tensors = vec![("embed_tokens.weight".into(), vec![100, d]), ("norm.weight".into(), vec![d])];
    for (name, shape) in [
        ("self_attn.q_proj", vec![d, d]),
        ("self_attn.k_proj", vec![d, d]),
        ("self_attn.v_proj", vec![d, d]),
        ("self_attn.o_proj", vec![d, d]),
        ("mlp.gate_proj", vec![64, d]),
        ("mlp.up_proj", vec![64, d]),
        ("mlp.down_proj", vec![d, 64]),
        ("input_layernorm", vec![d]),
        ("post_attention_layernorm", vec![d]),
    ] {
        tensors.extend((0..24).map(|i| (format!("layers.{i}.{name}.weight"), shape.clone())));
    }
    let [growth_llama, largest, total] = growth(LLAMA, &tensors);
    assert!(total > 380 << 20 && largest == 12 << 20, "{total} bytes, the largest tensor {largest}");
    // Reading is up to 64 MB ahead, as far as it gets, now as before. Kept until all values come, queries and keys were 192 MB.
    assert!(growth_llama < 96 << 20, "{growth_llama} bytes more for a largest tensor of {largest}, of {total} in all");
}
