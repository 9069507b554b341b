//! `tidbit embed`.

mod cli_support;

use cli_support::{copy_folder, fails, json, model, scratch, succeeds, tidbit};
use serde_json::{Map, Value, json as value};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tiny BERT with a tokenizer of words, and what sentence-transformers writes beside one.
fn encoder(folder: &Path) -> PathBuf {
    let checkpoint = folder.join("bert");
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/bert"), &checkpoint);
    let write = |name: &str, text: Value| {
        let path = checkpoint.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.to_string()).unwrap();
    };
    let mut vocab: Map<String, Value> = (4..71).map(|id| (format!("w{id}"), id.into())).collect();
    for (token, id) in [("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3)] {
        vocab.insert(token.into(), id.into());
    }
    write(
        "tokenizer.json",
        value!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "BertPreTokenizer" }, "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab } }),
    );
    write(
        "modules.json",
        value!([{ "path": "", "type": "sentence_transformers.models.Transformer" },
            { "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
            { "path": "2_Normalize", "type": "sentence_transformers.models.Normalize" }]),
    );
    write("1_Pooling/config.json", value!({ "word_embedding_dimension": 36, "pooling_mode_mean_tokens": true }));
    write("sentence_bert_config.json", value!({ "max_seq_length": 8, "do_lower_case": false }));
    checkpoint
}

fn embed(model: &Path, args: &[&str]) -> Command {
    let mut command = tidbit(["embed"]);
    command.arg(model).args(args);
    command
}

fn vectors(text: &str) -> Vec<Vec<f32>> {
    text.lines().map(|line| line.split(' ').map(|x| x.parse().unwrap()).collect()).collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

#[test]
fn a_vector_a_line_from_arguments_lines_and_stdin() {
    let folder = scratch();
    let model = encoder(folder.path());
    let text = succeeds(&mut embed(&model, &["w5 w6", "", "w7"])).stdout;
    let found = vectors(&text);
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [36, 36, 36]);
    assert!(found.iter().all(|v| (length(v) - 1.0).abs() < 1e-5), "normalized, as the checkpoint says");
    let lines = folder.path().join("lines.txt");
    std::fs::write(&lines, "w5 w6\n\nw7\n").unwrap();
    assert_eq!(succeeds(embed(&model, &["--file"]).arg(&lines)).stdout, text);
    let stdin = std::fs::File::open(&lines).unwrap();
    assert_eq!(succeeds(embed(&model, &[]).stdin(stdin)).stdout, text);
    assert_eq!(succeeds(&mut embed(&model, &["w5 w6", "", "w7", "--threads", "1"])).stdout, text);

    let report = json(&mut embed(&model, &["w5 w6", "--json"]));
    assert_eq!(
        (&report["dimensions"], &report["pooling"], &report["normalized"]),
        (&36.into(), &"mean".into(), &true.into())
    );
    assert_eq!(report["embeddings"][0]["tokens"], 4);
    let raw = vectors(&succeeds(&mut embed(&model, &["w5 w6", "--no-normalize"])).stdout);
    assert!((length(&raw[0]) - 1.0).abs() > 0.1);
    let cls = vectors(&succeeds(&mut embed(&model, &["w5 w6", "--pooling", "cls"])).stdout);
    assert!(cls[0] != found[0] && (length(&cls[0]) - 1.0).abs() < 1e-5);
}

#[test]
fn a_text_that_is_too_long_is_an_error_or_cut() {
    let folder = scratch();
    let model = encoder(folder.path());
    let long = "w5 w6 w7 w8 w9 w10 w11";
    fails(&mut embed(&model, &["w5", long]), 1, &["text 2 has 9 tokens, the model embeds at most 8"]);
    let cut = succeeds(&mut embed(&model, &[long, "--truncate"])).stdout;
    assert_eq!(cut, succeeds(&mut embed(&model, &["w5 w6 w7 w8 w9 w10"])).stdout, "the end token stays");
}

#[test]
fn an_encoder_does_not_write_and_a_decoder_embeds() {
    let folder = scratch();
    let encoder = encoder(folder.path());
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "w5 w6 w7").unwrap();
    let no_logits = "makes embeddings of texts, no logits";
    let written = fails(tidbit(["run"]).arg(&encoder).args(["-p", "w5"]), 1, &[no_logits]);
    assert!(written.stderr.contains("hint: tidbit embed "), "{}", written.stderr);
    fails(tidbit(["perplexity"]).arg(&encoder).arg(&text), 1, &[no_logits]);
    let shown = succeeds(tidbit(["inspect"]).arg(&encoder)).stdout;
    assert!(shown.contains("to the whole text") && shown.contains("no head: embeddings (mean"), "{shown}");

    let found = vectors(&succeeds(&mut embed(&model(), &["Once upon a time"])).stdout);
    assert_eq!((found.len(), found[0].len()), (1, 256));
    let last = vectors(&succeeds(&mut embed(&model(), &["Once upon a time", "--pooling", "last"])).stdout);
    assert_ne!(found, last);
    fails(&mut embed(&model(), &["a", ""]), 1, &["text 2 is empty"]);
    fails(&mut embed(&model(), &["a", "--pooling", "max"]), 2, &["mean, cls, last"]);
}
