//! Bad input: each is one line that names the file, the thing and both values; exit code 1, or 2 when the command
//! line is at fault; no panic, and nothing half-written.

mod cli_support;

use cli_support::{checkpoint, copy_folder, fails, model, names, run, scratch, tidbit};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::path::{Path, PathBuf};
use std::process::Command;
use tidbit_runtime::format::header;
use tidbit_runtime::format::{ModelFile, TensorRecord};
use tidbit_runtime::spec::Spec;

/// Writes a file into a scratch folder.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Every command that opens a model, on `path`.
fn open_with_each_command(path: &Path) -> [Command; 3] {
    let text = checkpoint().join("config.json");
    let mut run = tidbit(["run", "-p", "a"]);
    run.arg(path);
    let mut inspect = tidbit(["inspect"]);
    inspect.arg(path);
    let mut perplexity = tidbit(["perplexity"]);
    perplexity.arg(path).arg(text);
    [run, inspect, perplexity]
}

fn refused_by_each_command(path: &Path, parts: &[&str]) {
    let name = path.display().to_string();
    for mut command in open_with_each_command(path) {
        fails(&mut command, 1, &[&[name.as_str()], parts].concat());
    }
}

/// Converts a checkpoint that cannot be converted; the folder of the output must stay empty.
fn refused_by_convert(source: &Path, parts: &[&str]) {
    let out = scratch();
    fails(tidbit(["convert"]).arg(source).arg("-o").arg(out.path().join("m.tidbit")), 1, parts);
    assert_eq!(names(out.path()), [] as [&str; 0], "something was left behind");
}

/// A copy of the demo checkpoint with one field of its config changed.
fn with_config(folder: &Path, field: &str, value: serde_json::Value) {
    copy_folder(&checkpoint(), folder);
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn missing_file() {
    let folder = scratch();
    let path = folder.path().join("nothing.tidbit");
    refused_by_each_command(&path, &["No such file"]);
    refused_by_convert(&path, &["nothing.tidbit", "No such file"]);
    fails(tidbit(["perplexity"]).arg(model()).arg(&path), 1, &["nothing.tidbit", "No such file"]);
    fails(run(["--prompt-file"]).arg(&path), 1, &["nothing.tidbit", "No such file"]);
}

#[test]
fn empty_file() {
    let folder = scratch();
    let path = write(folder.path(), "empty.tidbit", b"");
    refused_by_each_command(&path, &["empty"]);
    copy_folder(&checkpoint(), &folder.path().join("c"));
    write(&folder.path().join("c"), "model.safetensors", b"");
    refused_by_convert(&folder.path().join("c"), &["model.safetensors"]);
    write(&folder.path().join("c"), "config.json", b"");
    refused_by_convert(&folder.path().join("c"), &["config.json"]);
}

#[test]
fn directory_without_a_config() {
    let folder = scratch();
    write(folder.path(), "readme.txt", b"no model here");
    refused_by_each_command(folder.path(), &["config.json"]);
    refused_by_convert(folder.path(), &["config.json"]);
}

#[test]
fn unsupported_architecture() {
    let folder = scratch();
    with_config(folder.path(), "model_type", "mamba".into());
    refused_by_convert(folder.path(), &["config.json", "`model_type`", "mamba", "gpt2"]);
    fails(tidbit(["inspect"]).arg(folder.path()), 1, &["config.json", "`model_type`", "mamba", "gpt2"]);
}

#[test]
fn config_field_with_an_unsupported_value() {
    let folder = scratch();
    with_config(folder.path(), "activation_function", "gelu_of_the_future".into());
    refused_by_convert(folder.path(), &["config.json", "`activation_function`", "gelu_of_the_future"]);
    with_config(folder.path(), "n_head", 5.into());
    refused_by_convert(folder.path(), &["config.json", "5"]);
}

#[test]
fn config_that_is_not_json() {
    let folder = scratch();
    let path = write(folder.path(), "config.json", b"{ \"model_type\": ");
    fails(tidbit(["inspect"]).arg(&path), 1, &["config.json", "JSON"]);
}

#[test]
fn truncated_model() {
    let folder = scratch();
    let bytes = std::fs::read(model()).unwrap();
    for keep in [1, 7, 8, 100, 20_000, bytes.len() / 2, bytes.len() - 1] {
        let path = write(folder.path(), "cut.tidbit", &bytes[..keep]);
        refused_by_each_command(&path, &[]);
    }
    let path = write(folder.path(), "cut.tidbit", &bytes[..bytes.len() - 1]);
    let expected = ModelFile::open(&model()).unwrap().tensors().map(|(_, _, bytes)| bytes).sum::<usize>();
    refused_by_each_command(&path, &["truncated", &expected.to_string(), &(expected - 1).to_string()]);
}

#[test]
fn model_with_something_after_its_end() {
    let folder = scratch();
    let bytes = [std::fs::read(model()).unwrap(), vec![0; 3]].concat();
    refused_by_each_command(&write(folder.path(), "long.tidbit", &bytes), &["too long"]);
}

#[test]
fn bit_flipped_header() {
    let folder = scratch();
    let bytes = std::fs::read(model()).unwrap();
    let text = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json_end = 8 + bytes[8..8 + text].iter().rposition(|&b| b == b'}').unwrap();
    for i in 0..40 {
        let mut flipped = bytes.clone();
        flipped[i * json_end / 40] ^= 1 << (i % 7);
        let path = write(folder.path(), "flipped.tidbit", &flipped);
        fails(tidbit(["inspect"]).arg(&path), 1, &["flipped.tidbit"]);
    }
}

#[test]
fn bit_flipped_data_is_found_by_verify() {
    let folder = scratch();
    let mut bytes = std::fs::read(model()).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let container: safetensors::tensor::Metadata = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let name = "layers.3.mlp.up.weight";
    let (start, end) = container.info(name).unwrap().data_offsets;
    let at = 8 + length + start;
    let before = header::sha256_hex(&bytes[at..8 + length + end]);
    bytes[at + 5] ^= 0x10;
    let after = header::sha256_hex(&bytes[at..8 + length + end]);
    let path = write(folder.path(), "flipped.tidbit", &bytes);
    let parts = ["flipped.tidbit", name, &before, &after];
    fails(tidbit(["inspect", "--verify"]).arg(&path), 1, &parts);
    fails(tidbit(["inspect", "--verify", "--json"]).arg(&path), 1, &parts);
}

/// A model with this spec and these records; all its data are zeros.
fn forged(spec: &Spec, records: &[(String, TensorRecord)]) -> Vec<u8> {
    let mut bytes = header::encode(spec, &header::Provenance::default(), None, records).unwrap();
    let data: usize = records.iter().map(|(_, r)| r.stored.bytes(&r.shape).unwrap()).sum();
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn records() -> (Spec, Vec<(String, TensorRecord)>) {
    let file = ModelFile::open(&model()).unwrap();
    (file.spec().clone(), file.tensors().map(|(name, record, _)| (name.to_owned(), record.clone())).collect())
}

#[test]
fn wrong_shape_in_a_model() {
    let folder = scratch();
    let (mut spec, records) = records();
    spec.mlp.ffn_dim = 1000;
    let path = write(folder.path(), "shape.tidbit", &forged(&spec, &records));
    refused_by_each_command(&path, &["`layers.0.mlp.up.weight`", "[1000, 256]", "[1024, 256]"]);
}

#[test]
fn missing_tensor_in_a_model() {
    let folder = scratch();
    let (spec, mut records) = records();
    records.retain(|(name, _)| name != "layers.2.attn.out.weight");
    let path = write(folder.path(), "missing.tidbit", &forged(&spec, &records));
    refused_by_each_command(&path, &["`layers.2.attn.out.weight`", "missing"]);
}

#[test]
fn absurd_sizes_in_a_model() {
    let folder = scratch();
    let (mut spec, records) = records();
    spec.n_layers = 1 << 24;
    let path = write(folder.path(), "absurd.tidbit", &forged(&spec, &records));
    refused_by_each_command(&path, &["16777216", "layers"]);
}

#[test]
fn wrong_shape_in_a_checkpoint() {
    let folder = scratch();
    copy_folder(&checkpoint(), folder.path());
    let bytes = std::fs::read(checkpoint().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed = tensors.iter().find(|(name, _)| name.ends_with("h.3.mlp.c_fc.weight")).unwrap().0.to_owned();
    let views = tensors.tensors().into_iter().map(|(name, view)| {
        let shape = if name == changed { vec![1024, 256] } else { view.shape().to_vec() };
        let view = TensorView::new(view.dtype(), shape, view.data()).unwrap();
        (name, view)
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    refused_by_convert(folder.path(), &["model.safetensors", &changed, "[256, 1024]", "[1024, 256]"]);
}

#[test]
fn header_that_claims_gigabytes() {
    let folder = scratch();
    for claim in [u64::MAX, 8 << 30, 90_000_000] {
        let bytes = [&claim.to_le_bytes()[..], b"{}"].concat();
        let path = write(folder.path(), "claim.tidbit", &bytes);
        refused_by_each_command(&path, &[&claim.to_string(), "at most 2"]);
        copy_folder(&checkpoint(), &folder.path().join("c"));
        write(&folder.path().join("c"), "model.safetensors", &bytes);
        refused_by_convert(&folder.path().join("c"), &["model.safetensors"]);
    }
}

/// A header may also claim a tensor that is not there.
#[test]
fn tensor_that_claims_gigabytes() {
    let folder = scratch();
    let text = r#"{"a":{"dtype":"U8","shape":[9000000000],"data_offsets":[0,9000000000]}}"#;
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    refused_by_each_command(&write(folder.path(), "claim.tidbit", &bytes), &["9000000000"]);
}

#[test]
fn tokenizer_that_does_not_match_the_vocabulary() {
    let folder = scratch();
    copy_folder(&checkpoint(), folder.path());
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut extra = tokenizer["added_tokens"][0].clone();
    extra["id"] = 3584.into();
    extra["content"] = "<|extra|>".into();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(extra);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    refused_by_convert(folder.path(), &["tokenizer.json", "<|extra|>", "3584"]);
}

/// As above, in a model file: it may come from another converter.
#[test]
fn tokenizer_of_a_model_that_does_not_match_its_vocabulary() {
    let folder = scratch();
    let (mut spec, mut records) = records();
    let damaged = write(folder.path(), "damaged.tidbit", &forged(&spec, &records));
    fails(tidbit(["run", "-p", "a"]).arg(&damaged), 1, &["damaged.tidbit", "tokenizer"]);

    spec.vocab_size = 3500;
    for (name, record) in &mut records {
        if name == "embed.tokens" {
            record.shape[0] = 3500;
        }
    }
    let mut bytes = forged(&spec, &records);
    let (name, tokenizer) = ModelFile::open(&model()).unwrap().tokenizer().unwrap();
    assert_eq!(records.last().unwrap().0, name, "the last in the file, as the names are sorted");
    let at = bytes.len() - tokenizer.len().next_multiple_of(64);
    bytes[at..at + tokenizer.len()].copy_from_slice(&tokenizer);
    let path = write(folder.path(), "other.tidbit", &bytes);
    fails(tidbit(["run", "-p", "a"]).arg(&path), 1, &["other.tidbit", "tokenizer", "3583", "3500"]);
    fails(tidbit(["perplexity"]).arg(&path).arg(checkpoint().join("config.json")), 1, &["3583", "3500"]);
}

#[test]
fn tokenizer_that_is_damaged() {
    let folder = scratch();
    copy_folder(&checkpoint(), folder.path());
    write(folder.path(), "tokenizer.json", b"{\"version\": \"1.0\", \"model\": ");
    refused_by_convert(folder.path(), &["tokenizer.json"]);
}

#[test]
fn empty_prompt() {
    let written = fails(&mut run(["-p", ""]), 1, &["the prompt is empty"]);
    assert!(written.stderr.contains("hint: "), "{}", written.stderr);
    fails(&mut run([]), 1, &["the prompt is empty"]);
    let folder = scratch();
    fails(run(["--prompt-file"]).arg(write(folder.path(), "p.txt", b"\n")), 1, &["the prompt is empty"]);
}

#[test]
fn prompt_longer_than_the_context() {
    fails(&mut run(["-p", "Once upon a time", "--ctx", "1"]), 1, &["5 tokens", "1"]);
    let long = "time ".repeat(600);
    let written = fails(&mut run(["-p", &long]), 1, &["tokens", "512"]);
    assert!(written.stderr.contains("hint: "), "{}", written.stderr);
}

#[test]
fn prompt_that_is_not_text() {
    let folder = scratch();
    let path = write(folder.path(), "p.txt", b"abc\xFFdef");
    fails(run(["--prompt-file"]).arg(&path), 1, &["p.txt", "UTF-8", "byte 3", "0xff"]);
    fails(tidbit(["perplexity"]).arg(model()).arg(&path), 1, &["p.txt", "UTF-8", "byte 3"]);
}

#[test]
fn options_out_of_range() {
    for (option, value, parts) in [
        ("-n", "0", &["`-n` is 0", "1 or more"][..]),
        ("--temperature", "NaN", &["`temperature` is NaN", "0 or more"]),
        ("--temperature", "-1", &["`temperature` is -1", "0 or more"]),
        ("--temperature", "inf", &["`temperature` is inf"]),
        ("--top-p", "0", &["`top-p` is 0"]),
        ("--top-p", "1.5", &["`top-p` is 1.5"]),
        ("--min-p", "-0.5", &["`min-p` is -0.5"]),
        ("--repeat-penalty", "0", &["`repeat-penalty` is 0"]),
        ("--threads", "0", &["0 threads", "1 to"]),
        ("--threads", "100000", &["100000 threads"]),
        ("--ctx", "0", &["context of 0", "1 to 512"]),
        ("--ctx", "513", &["context of 513", "1 to 512"]),
        ("--stop", "", &["`--stop`"]),
        ("--temperature", "warm", &["warm"]),
        ("-n", "-1", &["-1"]),
    ] {
        fails(&mut run(["-p", "Once", option, value]), 2, parts);
    }
    fails(&mut run(["-p", "Once", "--ids", "1"]), 2, &["cannot be used with"]);
    fails(&mut run(["--ids", "3584"]), 1, &["3584", "vocabulary"]);
    fails(&mut tidbit(["convert", "x", "-o", "y", "--quant", "q7"]), 2, &["q7", "f32, f16, q8, q6, q5, q4, q3, q2"]);
    fails(&mut tidbit(["convert", "x"]), 2, &["required"]);
    fails(&mut tidbit(["fly"]), 2, &["fly"]);
}

#[test]
fn texts_that_cannot_calibrate() {
    let folder = scratch();
    let output = scratch();
    let path = output.path().join("m.tidbit");
    let refused = |checkpoint: &Path, text: &Path, windows: &str, code: i32, parts: &[&str]| {
        let mut command = tidbit(["convert", "--quant", "q4", "--calibration-windows", windows, "--calibrate"]);
        fails(command.arg(text).arg(checkpoint).arg("-o").arg(&path), code, parts);
        assert_eq!(names(output.path()), [] as [&str; 0], "{parts:?}");
    };
    let short = ["tokens, expected", "one window of 512"];
    let empty = write(folder.path(), "empty.txt", b"");
    refused(&checkpoint(), &empty, "4", 1, &["empty.txt"]);
    let text = write(folder.path(), "short.txt", &b"Once upon a time. ".repeat(20));
    refused(&checkpoint(), &text, "4", 1, &["short.txt", short[0], short[1]]);
    let bytes = write(folder.path(), "bytes.txt", b"Once upon \xff\xfe a time");
    refused(&checkpoint(), &bytes, "4", 1, &["bytes.txt", "UTF-8"]);
    refused(&checkpoint(), &folder.path().join("none.txt"), "4", 1, &["none.txt"]);
    refused(&checkpoint(), folder.path(), "4", 1, &[folder.path().to_str().unwrap()]);
    let long = write(folder.path(), "long.txt", &b"Once upon a time. ".repeat(300));
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/llama-3");
    refused(&llama, &long, "4", 1, &["long.txt", "no tokenizer"]);
    fails(tidbit(["convert", "-o", "m", "--target-size", "60MX"]).arg(checkpoint()), 2, &["60MX", "kB, MB or GB"]);
    fails(tidbit(["convert", "-o", "m", "--target-bpw", "4", "--quant", "q4"]).arg(checkpoint()), 2, &["--quant"]);
}

#[test]
fn a_file_of_the_layout_before_is_refused_by_name() {
    let folder = scratch();
    let bytes = std::fs::read(model()).unwrap();
    let at = bytes.windows(11).position(|w| w == b"planes16x4\"").unwrap();
    // The name is shorter by one byte, and there is one more space at the header's end.
    let mut old = bytes.clone();
    old[at..at + 10].copy_from_slice(b"panel16x4\"");
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let end = 8 + usize::try_from(n).unwrap();
    old.copy_within(at + 11..end, at + 10);
    old[end - 1] = b' ';
    let path = write(folder.path(), "old.tidbit", &old);
    refused_by_each_command(&path, &["old.tidbit", "tidbit.tile", "panel16x4", "planes16x4"]);
}

#[test]
fn windows_out_of_range() {
    let text = checkpoint().join("config.json");
    for window in ["0", "1", "513"] {
        let mut command = tidbit(["perplexity", "--window", window]);
        fails(command.arg(model()).arg(&text), 2, &["window", window, "2 to 512"]);
    }
    let folder = scratch();
    let one_token = write(folder.path(), "short.txt", b"a");
    fails(tidbit(["perplexity"]).arg(model()).arg(one_token), 1, &["short.txt", "1 tokens", "2"]);
}

/// `tidbit eval` on the demo model and a text of its own.
fn eval(folder: &Path, args: &[&str]) -> Command {
    let text = write(folder, "text.txt", "Once upon a time there was a king.\n".repeat(40).as_bytes());
    let mut command = tidbit(["eval"]);
    command.arg(model()).arg(text).args(args);
    command
}

#[test]
fn parts_of_windows_out_of_range() {
    let folder = scratch();
    let eval = |args: &[&str]| eval(folder.path(), args);
    for skip in ["15", "16", "1000"] {
        fails(&mut eval(&["--window", "16", "--skip", skip]), 2, &["skipping", skip, "window of 16", "0 to 14"]);
    }
    fails(&mut eval(&["--window", "16", "--windows", "0"]), 2, &["--windows", "0"]);
    fails(&mut eval(&["--skip", "-1"]), 2, &["-1"]);
    fails(&mut eval(&["--reference-kv", "f16"]), 2, &["required arguments"]);
    let short = write(folder.path(), "short.txt", b"Once upon a time");
    let mut command = tidbit(["eval", "--window", "16", "--skip", "4"]);
    fails(command.arg(model()).arg(short), 1, &["short.txt", "5 tokens", "at least 16"]);
}

#[test]
fn reference_with_another_vocabulary_or_context() {
    let folder = scratch();
    let small = folder.path().join("small.tidbit");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shapes/gpt2-bin");
    assert!(tidbit(["convert"]).arg(source).arg("-o").arg(&small).output().unwrap().status.success());
    let name = model().display().to_string();
    let written =
        fails(eval(folder.path(), &[]).arg("--reference").arg(&small), 1, &["small.tidbit", "503", "3584", &name]);
    assert!(written.stderr.contains("hint: compare models"), "{}", written.stderr);
    let parts = ["small.tidbit", "window of 65", "2 to 64"];
    fails(eval(folder.path(), &["--window", "65"]).arg("--reference").arg(&small), 2, &parts);
    let nothing = folder.path().join("nothing.tidbit");
    fails(eval(folder.path(), &[]).arg("--reference").arg(&nothing), 1, &["nothing.tidbit", "No such file"]);
}

#[test]
fn reference_with_another_tokenizer() {
    let folder = scratch();
    let source = folder.path().join("c");
    copy_folder(&checkpoint(), &source);
    let path = source.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (upon, time) = (vocab["Ġupon"].clone(), vocab["Ġtime"].clone());
    vocab["Ġupon"] = time.clone();
    vocab["Ġtime"] = upon.clone();
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let other = folder.path().join("other.tidbit");
    assert!(tidbit(["convert"]).arg(source).arg("-o").arg(&other).output().unwrap().status.success());
    let parts = ["other.tidbit", "of the text is", &format!("id {time}"), &format!("id {upon}")];
    let written = fails(eval(folder.path(), &[]).arg("--reference").arg(&other), 1, &parts);
    assert!(written.stderr.contains("hint: compare models"), "{}", written.stderr);
}

#[test]
fn logits_that_are_not_numbers() {
    let folder = scratch();
    let mut bytes = std::fs::read(model()).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let container: safetensors::tensor::Metadata = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let at = 8 + length + container.info("final_norm.bias").unwrap().data_offsets.0;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken = write(folder.path(), "nan.tidbit", &bytes);
    let text = write(folder.path(), "text.txt", b"Once upon a time");
    let parts = ["nan.tidbit", "token 0 of the text", "NaN"];
    fails(tidbit(["eval"]).arg(&broken).arg(&text), 1, &parts);
    fails(eval(folder.path(), &[]).arg("--reference").arg(&broken), 1, &parts);
    fails(tidbit(["eval"]).arg(&broken).arg(&text).arg("--reference").arg(model()), 1, &parts);
    fails(
        tidbit(["eval", "--windows", "1", "--skip", "2", "--window", "4"]).arg(&broken).arg(&text),
        1,
        &["token 2 of"],
    );
}

#[test]
fn unknown_isa() {
    let mut command = run(["-p", "Once"]);
    fails(command.env("TIDBIT_ISA", "abacus"), 1, &["TIDBIT_ISA", "abacus", "scalar"]);
}

#[test]
fn output_that_cannot_be_written() {
    let folder = scratch();
    let convert = |output: &Path| {
        let mut command = tidbit(["convert"]);
        command.arg(checkpoint()).arg("-o").arg(output);
        command
    };
    fails(&mut convert(folder.path()), 1, &[&folder.path().display().to_string()]);
    fails(&mut convert(&folder.path().join("no/such/m.tidbit")), 1, &["m.tidbit"]);
    assert_eq!(names(folder.path()), [] as [&str; 0]);

    // Renaming the result over its own source would destroy the checkpoint.
    copy_folder(&checkpoint(), &folder.path().join("c"));
    let weights = folder.path().join("c/model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    let parts = ["model.safetensors", "is also an input"];
    let written = fails(tidbit(["convert"]).arg(folder.path().join("c")).arg("-o").arg(&weights), 2, &parts);
    assert!(written.stderr.contains("hint: choose another name"), "{}", written.stderr);
    assert_eq!(std::fs::read(&weights).unwrap(), before);
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "Once upon a time").unwrap();
    let mut calibrate = tidbit(["convert", "--quant", "q4", "--calibrate"]);
    fails(calibrate.arg(&text).arg("-o").arg(&text).arg(folder.path().join("c")), 2, &["text.txt", "is also an input"]);
    assert_eq!(std::fs::read(&text).unwrap(), b"Once upon a time");
}

/// A limit on the size of files stands for a full disk: writing fails in the middle.
#[cfg(unix)]
#[test]
fn full_disk() {
    let folder = scratch();
    let limited = |args: &[&Path]| {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tidbit")]);
        command.args(args).env("TIDBIT_CACHE", folder.path());
        command
    };
    let output = folder.path().join("m.tidbit");
    let convert = [Path::new("convert"), &checkpoint(), Path::new("-o"), &output];
    fails(&mut limited(&convert), 1, &["m.tidbit", "too large"]);
    assert_eq!(names(folder.path()), [] as [&str; 0], "something was left behind");
    let run = [Path::new("run"), &checkpoint(), Path::new("-p"), Path::new("Once")];
    fails(&mut limited(&run), 1, &["gpt2-mini-q8-", "too large"]);
    assert_eq!(names(folder.path()), [] as [&str; 0], "something was left behind");
}

#[cfg(target_os = "linux")]
#[test]
fn full_stdout() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    fails(run(["-p", "Once"]).stdout(full()), 1, &["stdout", "No space left"]);
    fails(tidbit(["inspect"]).arg(model()).stdout(full()), 1, &["stdout", "No space left"]);
}

#[test]
fn weights_that_were_not_converted() {
    let weights = checkpoint().join("model.safetensors");
    let mut command = tidbit(["run", "-p", "Once"]);
    let written = fails(command.arg(weights), 1, &["model.safetensors", "not a tidbit model"]);
    assert!(written.stderr.contains("hint: convert it first: tidbit convert"), "{}", written.stderr);
}
