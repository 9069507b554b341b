//! Models described by a file: `tidbit init`, `convert --spec`, and `inspect` before anything is trained.

mod cli_support;

use cli_support::{checkpoint, fails, json, names, scratch, succeeds, tidbit};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json as value_of;
use std::path::{Path, PathBuf};
use tidbit_runtime::format::ModelFile;

const YAML: &str = "\
vocab_size: 96
context_length: 64
n_layers: 2
d_model: 32
n_heads: 4
n_kv_heads: 2
head_dim: 16
pos_type: rotary
norm_type: rmsnorm
ffn_type: gated
ffn_dim: 64
activation: silu
";

fn described(folder: &Path, yaml: &str) -> PathBuf {
    let path = folder.join("model.yaml");
    std::fs::write(&path, yaml).unwrap();
    path
}

/// Writes the weights of an f32 model file as safetensors under their own names.
fn export(model: &Path, weights: &Path) {
    let file = ModelFile::open(model).unwrap();
    let mut tensors = Vec::new();
    for decl in file.spec().tensors() {
        let mut values = vec![0f32; decl.len()];
        match decl.shape[..] {
            [n] => values.copy_from_slice(&file.vector(&decl.name).unwrap()[..n]),
            [_, cols] => {
                let matrix = file.matrix(&decl.name).unwrap();
                values.chunks_mut(cols).enumerate().for_each(|(row, out)| matrix.decode_row(row, out));
            }
            _ => unreachable!("{decl:?}"),
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((decl.name, decl.shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(weights, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_described_model_goes_from_init_to_text_and_back() {
    let folder = scratch();
    let yaml = described(folder.path(), YAML);
    let at = |name: &str| folder.path().join(name);
    let report = json(tidbit(["init", "--json", "--quant", "f32", "--spec"]).arg(&yaml).arg("-o").arg(at("a.tidbit")));
    assert_eq!((&report["quant"], &report["seed"]), (&"f32".into(), &1.into()));
    assert_eq!(report["file_bytes"], std::fs::metadata(at("a.tidbit")).unwrap().len());

    let text = |model: &str| {
        let mut run = tidbit(["run", "--ids", "1,2,3", "-n", "8", "--temperature", "0", "--ignore-eos"]);
        succeeds(run.arg(at(model))).stdout
    };
    let written = text("a.tidbit");
    assert_eq!(written.split_whitespace().count(), 11, "{written}");

    export(&at("a.tidbit"), &at("weights.safetensors"));
    let mut convert = tidbit(["convert", "--quant", "f32", "--spec"]);
    let done = succeeds(convert.arg(&yaml).arg(at("weights.safetensors")).arg("-o").arg(at("b.tidbit")));
    assert!(done.stderr.contains("no tokenizer.json"), "{}", done.stderr);
    assert_eq!(text("b.tidbit"), written);
    let inspected = json(tidbit(["inspect", "--json", "--verify"]).arg(at("b.tidbit")));
    assert_eq!(inspected["parameters"], report["parameters"]);
    let sources = inspected["provenance"]["sources"].as_array().unwrap().clone();
    assert_eq!(
        sources.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["model.yaml", "weights.safetensors"]
    );
}

#[test]
fn a_tokenizer_beside_the_weights_is_taken() {
    let folder = scratch();
    let yaml = described(folder.path(), &YAML.replace("vocab_size: 96", "vocab_size: 3584"));
    let at = |name: &str| folder.path().join(name);
    let tokenizer = checkpoint().join("tokenizer.json");
    let mut init = tidbit(["init", "--quant", "f32", "--spec"]);
    let done = succeeds(init.arg(&yaml).arg("-o").arg(at("a.tidbit")).arg("--tokenizer").arg(&tokenizer));
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    export(&at("a.tidbit"), &at("weights.safetensors"));
    std::fs::copy(&tokenizer, at("tokenizer.json")).unwrap();
    let mut convert = tidbit(["convert", "--spec"]);
    let done = succeeds(convert.arg(&yaml).arg(at("weights.safetensors")).arg("-o").arg(at("b.tidbit")));
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    for model in ["a.tidbit", "b.tidbit"] {
        let value = json(tidbit(["inspect", "--json"]).arg(at(model)));
        assert_eq!(value["tokenizer"]["tokens"], 3584, "{model}");
    }
}

#[test]
fn init_takes_a_config_a_folder_and_a_seed() {
    let folder = scratch();
    let written = |args: &[&str], spec: &Path| {
        let path = folder.path().join("m.tidbit");
        succeeds(tidbit(["init", "--quant", "q4"]).args(args).arg("--spec").arg(spec).arg("-o").arg(&path));
        std::fs::read(path).unwrap()
    };
    let config = checkpoint().join("config.json");
    let one = written(&[], &config);
    assert!(one == written(&["--seed", "1"], &config), "the same seed, the same file");
    assert!(one != written(&["--seed", "2"], &config));
    assert!(written(&[], &checkpoint()).len() > one.len(), "the folder has a tokenizer");
    assert_eq!(names(folder.path()), ["m.tidbit"]);
}

#[test]
fn inspect_tells_what_to_expect_before_training() {
    let folder = scratch();
    let yaml = described(folder.path(), YAML);
    let value = json(tidbit(["inspect", "--json"]).arg(&yaml));
    let layer = 2 * 32 + (4 + 2 * 2) * 16 * 32 + 64 * 32 + 3 * 64 * 32;
    assert_eq!(value["parameters"], 96 * 32 + 2 * layer + 32);
    let caches: Vec<_> = value["kv_caches"].as_array().unwrap().iter().map(|c| c["bytes_per_token"].as_u64()).collect();
    // Two layers, two heads, keys and values of 16 dimensions.
    assert!(caches.contains(&Some(2 * 2 * 2 * 16 * 4)) && caches.contains(&Some(2 * 2 * 2 * 16 * 2)), "{caches:?}");
    assert_eq!(value["predicted"].as_array().unwrap().len(), 8);
    let decode = value["expected"]["decode"].as_array().unwrap();
    assert_eq!(decode.len(), 8);
    for one in decode {
        assert!(one["tokens_per_s"].as_f64().unwrap() > 0.0 && one["read_gb_per_s"].as_f64().unwrap() > 0.0, "{one}");
    }
    // The head is the embedding: a token reads all weights.
    assert_eq!(
        (&decode[0]["quant"], &decode[0]["bytes_per_token"]),
        (&"f32".into(), &value_of!(4 * (96 * 32 + 2 * layer + 32)))
    );

    let text = succeeds(tidbit(["inspect", "--tensors"]).arg(&yaml)).stdout;
    for part in ["custom, 2 layers", "tokens/s", "an estimate", "bytes a token", "layers.1.mlp.gate.weight", "q2"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let more = "attention_type: alternating\nwindow: 16\nexpert_dim: 24\nn_experts: 8\nexperts_per_token: 2\n";
    let moe = described(folder.path(), &(YAML.replace("ffn_type: gated", "ffn_type: moe") + more));
    let text = succeeds(tidbit(["inspect"]).arg(&moe)).stdout;
    for part in [
        "window in some layers (16 positions, in 1 of 2 layers)",
        "grouped queries (2 share keys and values)",
        "experts (2 of 8, 24 wide, shares of the chosen ones)",
        "4 heads (2 key-value) of 16\n",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    // An encoder reads a text at once: what it does in a second is not a number of tokens decoded.
    let encoder = described(folder.path(), &format!("{YAML}attention_type: bidirectional\n"));
    let text = succeeds(tidbit(["inspect"]).arg(&encoder)).stdout;
    assert!(text.contains("no head: embeddings (mean of") && !text.contains("tokens/s"), "{text}");
    assert!(json(tidbit(["inspect", "--json"]).arg(&encoder))["expected"].is_null());
    // What it predicts is what init writes.
    described(folder.path(), YAML);
    let model = folder.path().join("m.tidbit");
    let report = json(tidbit(["init", "--json", "--spec"]).arg(&yaml).arg("-o").arg(&model));
    assert_eq!(report["file_bytes"], value["predicted"][2]["bytes"]);
}

#[test]
fn bench_takes_a_described_shape() {
    let folder = scratch();
    let yaml = described(folder.path(), YAML);
    let mut bench =
        tidbit(["bench", "--json", "--threads", "1", "--prefill", "4", "--decode", "2", "--repetitions", "1"]);
    // In capitals, too, as some systems write names.
    let capitals = folder.path().join("MODEL.YML");
    std::fs::rename(yaml, &capitals).unwrap();
    let value = json(bench.arg("--shape").arg(&capitals));
    assert_eq!(value.as_array().unwrap().len(), 2);
    assert_eq!(value[0]["file"], "MODEL-q4.tidbit");
    succeeds(tidbit(["inspect"]).arg(&capitals));
    fails(tidbit(["convert", "--dry-run"]).arg(&capitals), 1, &["MODEL.YML: describes a model", "--spec"]);
}

#[test]
fn wrong_descriptions_are_one_line_and_leave_nothing_behind() {
    let folder = scratch();
    let out = scratch();
    let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let deep = "[".repeat(200_000);
    for (yaml, parts) in [
        (YAML.replace("n_layers", "n_layer"), &["model.yaml", "`n_layer` is 2", "did you mean `n_layers`?"][..]),
        (
            YAML.replace("rotary", "rotery"),
            &[
                "`pos_type` is \"rotery\"",
                "learned, sinusoidal, rotary, alibi, relative_bias, transformer_xl, none",
                "did you mean rotary?",
            ],
        ),
        (YAML.replace("n_kv_heads: 2", "n_kv_heads: 3"), &["`n_heads` 4", "`n_kv_heads` 3"]),
        (format!("{YAML}window: 0\n"), &["`window` is 0"]),
        (format!("{YAML}n_experts: 4\n"), &["`n_experts` is 4", "`ffn_type` moe", "gated"]),
        (format!("{YAML}d_model: 64\n"), &["line 13", "`d_model` is given twice"]),
        (laughs.into(), &["line 2", "alias"]),
        (deep, &["not valid YAML"]),
        (
            YAML.replace("n_layers: 2", "n_layers: 16384")
                .replace("d_model: 32", "d_model: 16777216")
                .replace("ffn_dim: 64", "ffn_dim: 16777216")
                .replace("n_heads: 4", "n_heads: 65536")
                .replace("n_kv_heads: 2", "n_kv_heads: 65536")
                .replace("head_dim: 16", "head_dim: 256"),
            &["overflows"],
        ),
    ] {
        let path = described(folder.path(), &yaml);
        fails(tidbit(["inspect"]).arg(&path), 1, parts);
        fails(tidbit(["init", "--spec"]).arg(&path).arg("-o").arg(out.path().join("m.tidbit")), 1, parts);
    }
    let path = described(folder.path(), YAML);
    let missing = folder.path().join("missing.yaml");
    fails(
        tidbit(["init", "--spec"]).arg(&missing).arg("-o").arg(out.path().join("m")),
        1,
        &["missing.yaml", "No such file"],
    );
    fails(tidbit(["inspect", "--verify"]).arg(&path), 2, &["--verify"]);
    let tokenizer = checkpoint().join("tokenizer.json");
    let mut init = tidbit(["init", "--spec"]);
    init.arg(&path).arg("-o").arg(out.path().join("m")).arg("--tokenizer").arg(tokenizer);
    fails(&mut init, 1, &["tokenizer.json", "`vocab_size` is 96"]);
    let model = cli_support::model();
    fails(
        tidbit(["convert", "--dry-run", "--spec"]).arg(&path).arg(model),
        1,
        &["gpt2-mini.tidbit", "expected a folder"],
    );
    let mut convert = tidbit(["convert", "--dry-run", "--spec"]);
    let written =
        fails(convert.arg(&path).arg(checkpoint()), 1, &["model.safetensors", "`embed.tokens.weight`", "missing"]);
    assert!(written.stderr.contains("hint: docs/model-files.md"), "{}", written.stderr);
    assert_eq!(names(out.path()), [] as [&str; 0]);
}

#[test]
fn help_shows_how() {
    for (command, parts) in [
        ("init", &["--seed", "pos_type", "tidbit init --spec model.yaml"][..]),
        ("convert", &["--spec <FILE>", "convert --spec model.yaml weights.safetensors", "docs/model-files.md"]),
        ("inspect", &["inspect model.yaml", "before anything is trained", "estimate"]),
    ] {
        let text = succeeds(&mut tidbit([command, "--help"])).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
