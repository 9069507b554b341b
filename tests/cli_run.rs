//! `tidbit run` and `tidbit perplexity`.

mod cli_support;

use cli_support::{checkpoint, copy_folder, fails, json, model, names, run, scratch, succeeds, tidbit};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const PROMPT: &str = "Once upon a time";

/// Greedy text of the demo model.
fn greedy(args: &[&str]) -> String {
    let mut command = run(["-p", PROMPT, "--temperature", "0", "-n", "24", "--quiet"]);
    succeeds(command.args(args)).stdout
}

/// Runs with a text on stdin.
fn with_stdin(command: &mut Command, text: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn greedy_text_is_the_same_for_any_number_of_threads_and_any_kernels() {
    let text = greedy(&[]);
    assert!(text.starts_with(PROMPT) && text.len() > PROMPT.len() + 10 && text.ends_with('\n'), "{text}");
    for threads in ["1", "2"] {
        assert_eq!(greedy(&["--threads", threads]), text, "{threads} threads");
    }
    let mut command = run(["-p", PROMPT, "--temperature", "0", "-n", "24", "--quiet"]);
    assert_eq!(succeeds(command.env("TIDBIT_ISA", "scalar")).stdout, text);
}

#[test]
fn a_seed_makes_a_text_repeatable() {
    let text = |seed| succeeds(&mut run(["-p", PROMPT, "-n", "24", "--quiet", "--seed", seed])).stdout;
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
    let written = succeeds(&mut run(["-p", PROMPT, "-n", "12"]));
    let seed = written.stderr.split("seed ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let again = succeeds(&mut run(["-p", PROMPT, "-n", "12", "--seed", &seed]));
    assert_eq!(again.stdout, written.stdout, "the printed seed gives the same text");
}

#[test]
fn the_prompt_comes_from_an_option_a_file_or_stdin() {
    let text = greedy(&[]);
    let rest = ["--temperature", "0", "-n", "24", "--quiet"];
    let folder = scratch();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{PROMPT}\n")).unwrap();
    assert_eq!(succeeds(run(rest).arg("--prompt-file").arg(&file)).stdout, text);
    assert_eq!(with_stdin(&mut run(rest), &format!("{PROMPT}\n")), text);
    assert_eq!(with_stdin(run(rest).args(["--prompt-file", "-"]), PROMPT), text);
    assert_eq!(format!("{PROMPT}{}", greedy(&["--no-echo"])), text);
}

#[test]
fn ids_are_a_prompt_too() {
    let value = json(&mut run(["-p", PROMPT, "--temperature", "0", "-n", "5", "--json"]));
    let ids: Vec<String> = value["prompt_ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let same = json(&mut run(["--ids", &ids.join(","), "--temperature", "0", "-n", "5", "--json"]));
    assert_eq!(value["ids"], same["ids"]);
}

#[test]
fn a_model_without_a_tokenizer_reads_and_writes_ids() {
    let folder = scratch();
    let source = folder.path().join("mini");
    copy_folder(&checkpoint(), &source);
    for name in ["tokenizer.json", "vocab.json", "merges.txt"] {
        std::fs::remove_file(source.join(name)).unwrap();
    }
    let path = folder.path().join("m.tidbit");
    let converted = succeeds(tidbit(["convert"]).arg(&source).arg("-o").arg(&path));
    assert_eq!(converted.stderr.matches("warning: ").count(), 1, "{}", converted.stderr);

    let on = |args: &[&str]| {
        let mut command = tidbit(["run", "--temperature", "0", "-n", "5", "--quiet"]);
        command.arg(&path).args(args);
        command
    };
    let expected = json(&mut run(["--ids", "1,2", "--temperature", "0", "-n", "5", "--json"]));
    let ids: Vec<String> = expected["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let text = succeeds(&mut on(&["--ids", "1,2"])).stdout;
    assert_eq!(text, format!("1 2 {} \n", ids.join(" ")));
    let written = fails(&mut on(&["-p", "Once"]), 1, &["m.tidbit", "no tokenizer"]);
    assert!(written.stderr.contains("hint: give token ids with --ids"), "{}", written.stderr);
    fails(&mut on(&["-i"]), 1, &["m.tidbit", "no tokenizer"]);
}

#[test]
fn json_has_the_text_and_the_figures() {
    let value = json(&mut run(["-p", PROMPT, "--temperature", "0", "-n", "24", "--json", "--threads", "2"]));
    assert_eq!(format!("{PROMPT}{}\n", value["text"].as_str().unwrap()), greedy(&[]));
    assert_eq!(value["ids"].as_array().unwrap().len(), 24);
    assert_eq!(value["finish_reason"], "length");
    assert_eq!(value["threads"], 2);
    for field in ["load_ms", "first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(value["timings"][field].as_f64().unwrap() > 0.0, "{field}");
    }
    assert!(value["memory"]["kv_cache_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn the_cache_is_kept_as_asked() {
    let bytes = |kv: &[&str]| {
        let value = json(run(["-p", PROMPT, "-n", "4", "--json"]).args(kv));
        (value["kv"].clone(), value["memory"]["kv_cache_bytes"].as_u64().unwrap())
    };
    let (f32_name, f32_bytes) = bytes(&["--kv", "f32"]);
    let (f16_name, f16_bytes) = bytes(&["--kv", "f16"]);
    let (q8_name, q8_bytes) = bytes(&["--kv", "q8"]);
    let (q4_name, q4_bytes) = bytes(&["--kv", "q4"]);
    assert_eq!([f32_name, f16_name, q8_name, q4_name], ["f32", "f16", "q8", "q4"]);
    // Values of half the size beside keys of the same.
    assert!(q4_bytes > q8_bytes * 7 / 10 && q4_bytes < q8_bytes * 8 / 10, "{q4_bytes} of {q8_bytes}");
    assert_eq!(f32_bytes, 2 * f16_bytes);
    assert!(f16_bytes < 2 * q8_bytes && q8_bytes < f16_bytes * 6 / 10, "{q8_bytes} of {f16_bytes}");
    fails(run(["-p", PROMPT]).args(["--kv", "q5"]), 2, &["--kv", "q5", "f32, f16, q8, q4"]);
}

#[test]
fn statistics_go_to_stderr() {
    let written = succeeds(&mut run(["-p", PROMPT, "-n", "8"]));
    for part in ["tokens/s", "load", "first token after", "threads"] {
        assert!(written.stderr.contains(part), "no {part:?} in\n{}", written.stderr);
        assert!(!written.stdout.contains("tokens/s"));
    }
    assert_eq!(succeeds(&mut run(["-p", PROMPT, "-n", "8", "--quiet"])).stderr, "");
}

#[test]
fn stops_before_a_stop_text_even_across_tokens() {
    let whole = json(&mut run(["-p", PROMPT, "--temperature", "0", "-n", "24", "--json"]));
    let text = whole["text"].as_str().unwrap();
    // From the middle of one word into the middle of the next: no token boundary at either end.
    let space = text.char_indices().filter(|&(_, c)| c == ' ').nth(2).unwrap().0;
    let stop = &text[space - 2..space + 3];
    let expected = &text[..text.find(stop).unwrap()];
    let args = ["-p", PROMPT, "--temperature", "0", "-n", "24", "--stop", "never there", "--stop", stop];
    let value = json(run(args).arg("--json"));
    assert_eq!(value["text"], expected);
    assert_eq!(value["finish_reason"], "stop");
    assert_eq!(succeeds(&mut run(args)).stdout, format!("{PROMPT}{expected}\n"));
}

#[test]
fn a_full_context_ends_the_text_with_a_note() {
    let args = ["-p", PROMPT, "--temperature", "0", "-n", "100", "--ignore-eos", "--ctx", "10"];
    let value = json(run(args).arg("--json"));
    assert_eq!(value["finish_reason"], "context");
    // Ten tokens in the cache, five of them the prompt's, and the one that the last of them gave.
    assert_eq!(value["ids"].as_array().unwrap().len(), 6);
    assert!(succeeds(&mut run(args)).stderr.contains("the context of 10 tokens is full"));
    let value = json(&mut run(["-p", "a", "--ctx", "1", "--temperature", "0", "--json"]));
    assert_eq!(value["ids"].as_array().unwrap().len(), 1);
}

#[test]
fn a_checkpoint_is_converted_once_and_kept() {
    let folder = scratch();
    let source = folder.path().join("mini");
    let cache = folder.path().join("cache");
    copy_folder(&checkpoint(), &source);
    let run_on = |source: &Path| {
        let mut command = tidbit(["run", "-p", PROMPT, "--temperature", "0", "-n", "24"]);
        succeeds(command.arg(source).env("TIDBIT_CACHE", &cache))
    };
    let run = || run_on(&source);
    let first = run();
    assert!(first.stderr.contains("converting"), "{}", first.stderr);
    assert_eq!(first.stdout, greedy(&[]));
    assert_eq!(names(&cache).len(), 1);
    let second = run();
    assert!(!second.stderr.contains("converting"), "{}", second.stderr);
    assert_eq!(second.stdout, first.stdout);

    // A damaged file is made again.
    let kept = cache.join(&names(&cache)[0]);
    std::fs::write(&kept, "damaged").unwrap();
    assert!(run().stderr.contains("converting again"));
    assert_eq!(std::fs::read(&kept).unwrap(), std::fs::read(model()).unwrap());

    // A checkpoint that changed is another model, which replaces the first. Other files are left alone.
    std::fs::write(cache.join("mine.tidbit"), "").unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    std::fs::write(source.join("config.json"), config + "\n").unwrap();
    assert!(run().stderr.contains("converting"));
    assert_eq!(names(&cache).len(), 2);
    assert!(!kept.exists() && cache.join("mine.tidbit").exists());

    // A copy is another checkpoint. Whatever was not run for a month goes.
    let copy = folder.path().join("copy");
    copy_folder(&source, &copy);
    let month_old = || {
        let date = std::time::SystemTime::now() - std::time::Duration::from_hours(31 * 24);
        for name in names(&cache) {
            std::fs::File::options().write(true).open(cache.join(name)).unwrap().set_modified(date).unwrap();
        }
    };
    month_old();
    run();
    run_on(&copy);
    assert_eq!(names(&cache).len(), 3, "the first was run again: {:?}", names(&cache));
    month_old();
    std::fs::write(copy.join("config.json"), std::fs::read(source.join("config.json")).unwrap()).unwrap();
    run_on(&copy);
    assert_eq!(names(&cache).len(), 2, "the new one, and the file that is not ours: {:?}", names(&cache));
}

#[test]
fn a_prompt_loop_answers_each_line() {
    let args = ["-i", "--temperature", "0", "-n", "8", "--quiet"];
    let text = with_stdin(&mut run(args), "Once upon\n/reset\n\nOnce upon\n/quit\nnever read\n");
    let answers: Vec<&str> = text.split_inclusive('\n').collect();
    let half = answers.len() / 2;
    assert!(half > 0 && answers[..half] == answers[half..], "after /reset the same line has the same answer: {text}");

    // Without /reset the second line goes on: together they are one text.
    let two = with_stdin(&mut run(args), "Once upon\n a time\n");
    assert!(two.starts_with(&answers[..half].concat()) && two.len() > answers[..half].concat().len(), "{two}");
    assert_ne!(two, text);
    let full = with_stdin(run(args).args(["--ctx", "12"]), "Once upon\nOnce upon\nOnce upon\n");
    assert!(full.starts_with(answers[0]), "a full context is no error: {full}");
}

#[test]
fn perplexity_is_the_same_for_any_number_of_threads() {
    let folder = scratch();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "Once upon a time there was a little girl who lived in a wood.\n".repeat(20)).unwrap();
    let measure = |args: &[&str]| json(tidbit(["perplexity", "--json"]).arg(model()).arg(&file).args(args));
    let one = measure(&["--threads", "1"]);
    let two = measure(&["--threads", "2"]);
    for field in ["perplexity", "total_nll", "scored_tokens", "tokens", "window"] {
        assert_eq!(one[field], two[field], "{field}");
    }
    assert_eq!(one["window"], 512);
    let (nll, scored) = (one["total_nll"].as_f64().unwrap(), one["scored_tokens"].as_f64().unwrap());
    assert!((one["perplexity"].as_f64().unwrap() / (nll / scored).exp() - 1.0).abs() < 1e-9);

    let small = measure(&["--window", "16"]);
    let tokens = small["tokens"].as_u64().unwrap();
    let windows = tokens.div_ceil(16);
    assert_eq!(small["scored_tokens"].as_u64().unwrap(), tokens - windows, "each window leaves out its first token");
    let text = succeeds(tidbit(["perplexity"]).arg(model()).arg(&file)).stdout;
    assert!(text.starts_with("perplexity "), "{text}");
}

#[test]
fn help_shows_examples() {
    for command in ["convert", "run", "inspect", "eval", "perplexity"] {
        let help = succeeds(&mut tidbit([command, "--help"])).stdout;
        assert!(help.contains("Examples:"), "{help}");
    }
    assert!(succeeds(&mut tidbit(["--version"])).stdout.starts_with("tidbit "));
}
