//! The command on a model with an encoder: `run` gives it the prompt and prints what the decoder writes about it.

mod cli_support;

use cli_support::{copy_folder, fails, json, run, scratch, succeeds, tidbit};
use serde_json::{Value, json as value};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What transformers 5.23 writes after these ids, greedily (`generate` of 12 tokens, f32; the two best logits are 0.04 apart
/// at least).
const READ: &str = "55,48,25,50,41";
const WRITTEN: [u32; 12] = [38, 14, 29, 38, 14, 29, 29, 36, 14, 38, 14, 38];

/// The tiny Flan-T5, with a tokenizer of words as T5's is: unigrams, spaces as U+2581, `</s>` behind a text.
fn checkpoint(folder: &Path) -> PathBuf {
    let checkpoint = folder.join("flan-t5");
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/flan-t5"), &checkpoint);
    let mut vocab = vec![value!(["<pad>", 0.0]), value!(["</s>", 0.0]), value!(["<unk>", -10.0])];
    vocab.extend((3..71).map(|id| value!([format!("\u{2581}w{id}"), -2.0])));
    let special = |id: u32, content: &str| {
        value!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let spaces = value!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true });
    let tokenizer = value!({ "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, spaces] },
        "post_processor": { "type": "TemplateProcessing", "pair": [],
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } } },
        "decoder": spaces,
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false } });
    std::fs::write(checkpoint.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    checkpoint
}

fn converted(folder: &Path, quant: &str) -> PathBuf {
    let model = folder.join(format!("{quant}.tidbit"));
    succeeds(tidbit(["convert", "--quant", quant, "-o"]).arg(&model).arg(checkpoint(folder)));
    model
}

fn on(command: &str, model: &Path, args: &[&str]) -> Command {
    let mut command = tidbit([command]);
    command.arg(model).args(args);
    command
}

fn text_of(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_prompt_is_read_and_the_answer_is_printed() {
    let folder = scratch();
    let model = converted(folder.path(), "f32");
    // A special token is a token: the model is not asked to end here.
    let greedy = ["--temperature", "0", "-n", "12", "--ignore-eos", "--quiet"];
    let written = succeeds(on("run", &model, &["--ids", READ]).args(greedy));
    assert_eq!(written.stdout.trim_end(), text_of(&WRITTEN), "and nothing of what was read");

    let report = json(on("run", &model, &["--ids", READ, "--json"]).args(greedy));
    assert_eq!((&report["ids"], &report["text"]), (&value!(WRITTEN), &value!(text_of(&WRITTEN))));
    assert_eq!(report["prompt_ids"], value!([55, 48, 25, 50, 41]));
    assert_eq!(report["timings"]["prefill_tokens"], 6, "five that were read, and the one it begins with");

    // A text has the token that ends it; and guesses change nothing.
    let report = json(on("run", &model, &["-p", "w55 w48", "--json"]).args(greedy));
    assert_eq!(report["prompt_ids"], value!([55, 48, 1]));
    let guessed = json(on("run", &model, &["-p", "w55 w48", "--json", "--speculate", "lookup:4"]).args(greedy));
    assert_eq!(report["ids"], guessed["ids"]);
}

#[test]
fn each_line_of_a_loop_is_a_text_of_its_own() {
    let folder = scratch();
    let model = converted(folder.path(), "f32");
    let flags = ["--temperature", "0", "-n", "6", "--ignore-eos", "--quiet"];
    let alone = |text: &str| succeeds(on("run", &model, &["-p", text]).args(flags)).stdout;
    let mut child =
        on("run", &model, &["-i"]).args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"w5 w6\nw9\n/reset\nw5 w6\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let (first, second) = (alone("w5 w6"), alone("w9"));
    assert_ne!(first, second);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), [&*first, &second, &first].concat());
}

#[test]
fn every_type_of_weights_runs_and_is_inspected() {
    let folder = scratch();
    for quant in ["q4", "q8", "f16"] {
        let model = converted(folder.path(), quant);
        let report =
            json(&mut on("run", &model, &["--ids", READ, "--json", "--temperature", "0", "-n", "3", "--ignore-eos"]));
        assert_eq!(report["ids"].as_array().map(Vec::len), Some(3), "{quant}");
        let about = json(&mut on("inspect", &model, &["--json", "--tensors", "--verify"]));
        assert_eq!(about["architecture"]["encoder"], value!({ "n_layers": 2, "start_id": 0 }));
        let values = |of: &Value| -> u64 { of.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product() };
        let all: u64 = about["tensors"].as_array().unwrap().iter().map(|t| values(&t["shape"])).sum();
        let tokenizer: u64 = about["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["type"] == "bytes")
            .map(|t| values(&t["shape"]))
            .sum();
        assert_eq!(about["parameters"], all - tokenizer);
        let text = succeeds(&mut on("inspect", &model, &[])).stdout;
        assert!(text.contains("an encoder and a decoder (2 layers read"), "{text}");
    }
}

#[test]
fn a_text_may_be_longer_than_those_it_was_trained_with() {
    let folder = scratch();
    let model = converted(folder.path(), "f32");
    let long = vec!["9"; 200].join(",");
    fails(&mut on("run", &model, &["--ids", &long]), 1, &["the prompt has 200 tokens, the context holds 64"]);
    succeeds(&mut on("run", &model, &["--ids", &long, "--ctx", "200", "-n", "2"]));
    fails(&mut on("run", &model, &["--ids", "1", "--ctx", "70000"]), 2, &["a context of 70000 tokens"]);
    fails(&mut on("run", &model, &["--ids", "71"]), 1, &["token id 71 is outside the vocabulary of 71"]);
}

#[test]
fn its_encoder_embeds() {
    let folder = scratch();
    let model = converted(folder.path(), "f32");
    let report = json(&mut on("embed", &model, &["w5 w6 w7", "--json"]));
    assert_eq!(report["embeddings"][0]["tokens"], 4);
    assert_eq!(report["dimensions"], 32);
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let folder = scratch();
    let model = converted(folder.path(), "q8");
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "w5 w6 w7 ".repeat(100)).unwrap();
    let reads = "this model writes about a text that its encoder reads";
    fails(on("eval", &model, &[]).arg(&text), 1, &[reads]);
    fails(&mut on("run", &model, &["--chat", "-p", "w5"]), 1, &[reads]);
    fails(&mut on("bench", &model, &["--json"]), 1, &["a model with an encoder is not measured"]);
    fails(run(["-p", "Once", "-n", "1", "--draft"]).arg(&model), 1, &["it cannot draft for another"]);
    let output = folder.path().join("out.tidbit");
    let mut calibrate = tidbit(["convert", "--quant", "q4", "-o"]);
    calibrate.arg(&output).arg(folder.path().join("flan-t5")).arg("--calibrate").arg(&text);
    fails(&mut calibrate, 1, &["config.json: a model with an encoder cannot be calibrated"]);
    assert!(!output.exists());
}
