//! A converted model has exactly the source's values, each in its place: the shapes and orders of
//! every family, checked against formulas that are written down here a second time.

mod support;

use safetensors::Dtype;
use serde_json::json;
use std::path::{Path, PathBuf};
use support::*;
use tidbit_convert::Checkpoint;
use tidbit_runtime::format::ModelFile;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::Head;

/// The source's values in our order.
fn expected(name: &str, family: &str, heads: usize, source: &Tensors) -> Vec<f32> {
    let parts: Vec<&str> = name.split('.').collect();
    let theirs = |name: &str| {
        let layer = parts.get(1).copied().unwrap_or_default();
        let name = name.replace("{}", layer);
        let found = ["transformer.", "gpt_neox.", ""].iter().find_map(|p| source.get(&format!("{p}{name}")));
        found.unwrap_or_else(|| panic!("no {name} in the source"))
    };
    let kind = *parts.last().unwrap();
    let ours = if parts[0] == "layers" { parts[2..].join(".") } else { name.to_string() };
    let (source, order) = match (family, ours.as_str()) {
        ("gpt2", "embed.tokens") => (theirs("wte.weight"), 's'),
        ("gpt2", "embed.positions") => (theirs("wpe.weight"), 's'),
        ("gpt2", "head.weight") => (theirs("lm_head.weight"), 's'),
        ("gpt2", "final_norm.weight" | "final_norm.bias") => (theirs(&format!("ln_f.{kind}")), 's'),
        ("gpt2", "attn_norm.weight" | "attn_norm.bias") => (theirs(&format!("h.{{}}.ln_1.{kind}")), 's'),
        ("gpt2", "mlp_norm.weight" | "mlp_norm.bias") => (theirs(&format!("h.{{}}.ln_2.{kind}")), 's'),
        ("gpt2", "attn.qkv.weight") => (theirs("h.{}.attn.c_attn.weight"), 't'),
        ("gpt2", "attn.out.weight") => (theirs("h.{}.attn.c_proj.weight"), 't'),
        ("gpt2", "mlp.up.weight") => (theirs("h.{}.mlp.c_fc.weight"), 't'),
        ("gpt2", "mlp.down.weight") => (theirs("h.{}.mlp.c_proj.weight"), 't'),
        ("gpt2", "attn.qkv.bias") => (theirs("h.{}.attn.c_attn.bias"), 's'),
        ("gpt2", "attn.out.bias") => (theirs("h.{}.attn.c_proj.bias"), 's'),
        ("gpt2", "mlp.up.bias") => (theirs("h.{}.mlp.c_fc.bias"), 's'),
        ("gpt2", "mlp.down.bias") => (theirs("h.{}.mlp.c_proj.bias"), 's'),
        ("gpt_neox", "embed.tokens") => (theirs("embed_in.weight"), 's'),
        ("gpt_neox", "head.weight") => (source.get("embed_out.weight").or(source.get("lm_head.weight")).unwrap(), 's'),
        ("gpt_neox", "final_norm.weight" | "final_norm.bias") => (theirs(&format!("final_layer_norm.{kind}")), 's'),
        ("gpt_neox", "attn_norm.weight" | "attn_norm.bias") => {
            (theirs(&format!("layers.{{}}.input_layernorm.{kind}")), 's')
        }
        ("gpt_neox", "mlp_norm.weight" | "mlp_norm.bias") => {
            (theirs(&format!("layers.{{}}.post_attention_layernorm.{kind}")), 's')
        }
        ("gpt_neox", "attn.qkv.weight" | "attn.qkv.bias") => {
            (theirs(&format!("layers.{{}}.attention.query_key_value.{kind}")), 'h')
        }
        ("gpt_neox", "attn.out.weight" | "attn.out.bias") => {
            (theirs(&format!("layers.{{}}.attention.dense.{kind}")), 's')
        }
        ("gpt_neox", "mlp.up.weight" | "mlp.up.bias") => {
            (theirs(&format!("layers.{{}}.mlp.dense_h_to_4h.{kind}")), 's')
        }
        ("gpt_neox", "mlp.down.weight" | "mlp.down.bias") => {
            (theirs(&format!("layers.{{}}.mlp.dense_4h_to_h.{kind}")), 's')
        }
        other => panic!("{other:?}"),
    };
    let values = source.values();
    match order {
        's' => values,
        't' => {
            let [inputs, outputs] = source.shape[..] else { panic!("{:?}", source.shape) };
            (0..outputs).flat_map(|o| (0..inputs).map(move |i| i * outputs + o)).map(|at| values[at]).collect()
        }
        _ => {
            // [head, (q, k, v), dim] to [(q, k, v), head, dim], each with its columns.
            let cols = source.shape.get(1).copied().unwrap_or(1);
            let dim = source.shape[0] / 3 / heads;
            let mut all = Vec::new();
            for part in 0..3 {
                for head in 0..heads {
                    let start = (head * 3 * dim + part * dim) * cols;
                    all.extend_from_slice(&values[start..start + dim * cols]);
                }
            }
            all
        }
    }
}

fn assert_equal_to_source(file: &ModelFile, source: &Tensors) {
    let spec = file.spec();
    for decl in spec.tensors() {
        let want = expected(&decl.name, &spec.family, spec.attention.n_heads, source);
        let got = values(file, &decl.name);
        assert_eq!(got.len(), want.len(), "{}", decl.name);
        assert!(got == want, "{}: values differ from the source", decl.name);
    }
}

fn assert_converts(fake: &Fake) -> ModelFile {
    let folder = tempfile::tempdir().unwrap();
    fake.write(folder.path());
    let (file, _) = converted(folder.path(), QuantType::F32).unwrap();
    assert_equal_to_source(&file, &fake.tensors);
    file
}

#[test]
fn gpt2_weights_are_transposed_back() {
    let file = assert_converts(&Fake::gpt2());
    assert_eq!(file.spec().head, Head::Tied);
    assert!(file.tokenizer().is_none());
}

#[test]
fn neox_queries_keys_and_values_are_separated() {
    assert_converts(&Fake::neox());
}

#[test]
fn names_may_lack_the_prefix() {
    for (mut fake, prefix) in [(Fake::gpt2(), "transformer."), (Fake::neox(), "gpt_neox.")] {
        fake.tensors =
            fake.tensors.into_iter().map(|(n, t)| (n.strip_prefix(prefix).unwrap_or(&n).to_string(), t)).collect();
        assert_converts(&fake);
    }
}

#[test]
fn buffers_are_dropped() {
    let mut gpt2 = Fake::gpt2();
    let mask = Tensor::new(&[1, 1, 10, 10], |_| 1.0);
    for name in ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"] {
        gpt2.tensors.insert(name.into(), mask.clone());
    }
    assert_converts(&gpt2);
    let mut neox = Fake::neox();
    let bools = Tensor { dtype: Dtype::BOOL, shape: vec![1, 1, 4, 4], bytes: vec![1; 16] };
    neox.tensors.insert("gpt_neox.layers.0.attention.bias".into(), bools);
    neox.tensors.insert("gpt_neox.layers.1.attention.rotary_emb.inv_freq".into(), mask);
    assert_converts(&neox);
}

#[test]
fn heads_may_be_tied_or_not_in_both_families() {
    let mut gpt2 = Fake::gpt2();
    gpt2.set("tie_word_embeddings", json!(false));
    gpt2.tensors.insert("lm_head.weight".into(), Tensor::new(&[VOCAB, D], |i| i as f32));
    assert_eq!(assert_converts(&gpt2).spec().head, Head::Untied);

    let mut neox = Fake::neox();
    neox.rename("embed_out.weight", "lm_head.weight");
    assert_eq!(assert_converts(&neox).spec().head, Head::Untied);
    neox.tensors.remove("lm_head.weight");
    neox.set("tie_word_embeddings", json!(true));
    assert_eq!(assert_converts(&neox).spec().head, Head::Tied);
    // A copy of the embedding, even in another type, says nothing new.
    let mut copy = neox.tensors["gpt_neox.embed_in.weight"].cast(Dtype::F16);
    neox.tensors.insert("gpt_neox.embed_in.weight".into(), copy.clone());
    copy = Tensor::new(&[VOCAB, D], |i| copy.values()[i]);
    neox.tensors.insert("embed_out.weight".into(), copy);
    assert_eq!(assert_converts(&neox).spec().head, Head::Tied);
}

#[test]
fn tied_heads_that_differ_are_both_kept_and_pointed_out() {
    let mut fake = Fake::gpt2();
    let mut head = fake.tensors["transformer.wte.weight"].clone();
    head.bytes[4 * (3 * D + 5)] ^= 1;
    fake.tensors.insert("lm_head.weight".into(), head);
    assert_eq!(assert_converts(&fake).spec().head, Head::Untied);
    let folder = tempfile::tempdir().unwrap();
    fake.write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let warning = &checkpoint.warnings()[0];
    assert!(warning.contains("`tie_word_embeddings` is true, but row 3, column 5 of `lm_head.weight` is"), "{warning}");
    assert!(warning.ends_with("in `transformer.wte.weight`: both are used"), "{warning}");
}

#[test]
fn one_of_two_tied_tensors_serves_as_both() {
    let mut fake = Fake::gpt2();
    let folder = tempfile::tempdir().unwrap();
    fake.rename("transformer.wte.weight", "lm_head.weight");
    fake.write(folder.path());
    let (file, _) = converted(folder.path(), QuantType::F32).unwrap();
    assert_eq!(file.spec().head, Head::Tied);
    assert_eq!(values(&file, "embed.tokens"), fake.tensors["lm_head.weight"].values());

    // Not where they are two.
    fake.set("tie_word_embeddings", json!(false)).write(folder.path());
    let message = failure(folder.path());
    assert!(message.contains("`transformer.wte.weight`: missing, expected shape [37, 12]"), "{message}");
}

#[test]
fn parts_of_a_tensor_may_lie_in_two_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/families/llama-bias");
    let (file, _) = converted(&folder, QuantType::F32).unwrap();
    // Every second tensor in another file.
    let source = read_safetensors(&[folder.join("model.safetensors")]);
    let apart = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), apart.path().join("config.json")).unwrap();
    let (mut a, mut b) = (Tensors::new(), Tensors::new());
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in source.iter().enumerate() {
        let (shard, file) = if i % 2 == 0 { (&mut a, "a.safetensors") } else { (&mut b, "b.safetensors") };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(file));
    }
    write_safetensors(&apart.path().join("a.safetensors"), &a);
    write_safetensors(&apart.path().join("b.safetensors"), &b);
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(apart.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let (other, _) = converted(apart.path(), QuantType::F32).unwrap();
    for decl in file.spec().tensors() {
        assert!(values(&file, &decl.name) == values(&other, &decl.name), "{}", decl.name);
    }
}

#[test]
fn half_precision_and_shards_are_read() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let mut fake = Fake::neox();
        for tensor in fake.tensors.values_mut() {
            *tensor = tensor.cast(dtype);
        }
        assert_converts(&fake);

        let folder = tempfile::tempdir().unwrap();
        let index = shard(&fake, folder.path());
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let (file, _) = converted(folder.path(), QuantType::F32).unwrap();
        assert_equal_to_source(&file, &fake.tensors);
        let names: Vec<_> = file.provenance().sources.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"]);
    }
}

/// Writes two shards, and returns their index.
fn shard(fake: &Fake, folder: &Path) -> serde_json::Value {
    fake.write_config(folder);
    let (mut a, mut b) = (Tensors::new(), Tensors::new());
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in fake.tensors.iter().enumerate() {
        let (shard, file) = if i % 3 == 0 { (&mut a, "a.safetensors") } else { (&mut b, "b.safetensors") };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(file));
    }
    write_safetensors(&folder.join("a.safetensors"), &a);
    write_safetensors(&folder.join("b.safetensors"), &b);
    json!({ "metadata": {}, "weight_map": map })
}

#[test]
fn indexes_that_do_not_match_the_shards_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let good = shard(&Fake::gpt2(), folder.path());
    let name = "transformer.wte.weight";
    let case = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let mut index = good.clone();
        change(&mut index);
        std::fs::write(&path, index.to_string()).unwrap();
        let message = failure(folder.path());
        assert!(message.contains(expected), "{message} should contain {expected}");
    };
    case(&|i| i["weight_map"][name] = json!("c.safetensors"), "shard c.safetensors is missing");
    case(&|i| i["weight_map"][name] = json!("../b.safetensors"), "its shard is \"../b.safetensors\"");
    case(&|i| i["weight_map"][name] = json!(3), "its shard is 3, expected a file name");
    case(&|i| i["weight_map"]["ghost"] = json!("a.safetensors"), "tensor `ghost`: in the index, but not in this file");
    case(&|i| i["weight_map"]["transformer.h.0.attn.c_attn.bias"] = json!("b.safetensors"), "found it in");
    case(&|i| i["weight_map"] = json!(1), "no `weight_map` object");
}

#[test]
fn a_weight_file_finds_the_config_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::gpt2();
    fake.write(folder.path());
    let (file, _) = converted(&folder.path().join("model.safetensors"), QuantType::F32).unwrap();
    assert_equal_to_source(&file, &fake.tensors);
}

#[test]
fn shared_checkpoints_keep_every_value() {
    let Some(shapes) = shared("golden/shapes") else { return };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(shapes).unwrap().map(|e| e.unwrap().path()).collect();
    folders.extend(shared("checkpoints").iter().flat_map(|c| [c.join("gpt2-mini"), c.join("neox-mini")]));
    let mut done = 0;
    for folder in folders {
        let files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .filter(|p| !p.ends_with("golden.safetensors"))
            .collect();
        let (file, _) = converted(&folder, QuantType::F32).unwrap_or_else(|e| panic!("{e}"));
        if !files.is_empty() {
            assert_equal_to_source(&file, &read_safetensors(&files));
            done += 1;
        }
        assert_eq!(Checkpoint::open(&folder).unwrap().has_tokenizer(), folder.join("tokenizer.json").exists());
    }
    assert!(done >= 20, "{done} checkpoints compared");
}
