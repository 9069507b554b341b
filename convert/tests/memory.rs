//! Peak memory: one tensor at a time, whatever the size of the model. Alone in its file, because the
//! peak is that of the process.

#![cfg(target_os = "linux")]

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::fs::File;
use std::io::Write as _;
use tidbit_convert::{Checkpoint, Options, convert, spec_from_json};
use tidbit_runtime::quant::QuantType;

/// The largest resident size so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

const CONFIG: &str = r#"{"model_type": "gpt2", "n_embd": 768, "n_layer": 16, "n_head": 12, "vocab_size": 8000}"#;

#[test]
fn only_one_tensor_is_in_memory_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    let (mut tensors, mut end) = (Vec::new(), 0);
    let d = 768;
    let mut add = |name: String, shape: Vec<usize>| {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        tensors.push((name, TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) }));
    };
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
    // A file of zeros that takes no place on the disk.
    let header = serde_json::to_vec(&Metadata::new(None, tensors).unwrap()).unwrap();
    let mut file = File::create(folder.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end as u64).unwrap();

    let before = peak();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.spec(), &spec_from_json("config.json", CONFIG).unwrap().0);
    let output = folder.path().join("model.tidbit");
    let options = Options { quant: QuantType::Q4, cancel: None };
    let plan = convert(&checkpoint, &output, &options, &mut ()).unwrap().plan;
    let growth = peak() - before;
    let (largest, total) = (plan.largest_source_bytes, plan.source_bytes);
    assert!(total > 400 << 20 && largest < 25 << 20, "{total} bytes, the largest tensor {largest}");
    assert!(growth < largest + (64 << 20), "{growth} bytes for a largest tensor of {largest}, of {total} in all");
}
