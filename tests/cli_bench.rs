//! `tidbit bench` on a tiny shape: every form of output can be read back, and bad input is told before any work.

mod cli_support;

use cli_support::{fails, json, model, names, scratch, succeeds, tidbit};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tidbit_runtime::quant::QuantType;

const SIZES: [(&str, u64); 5] =
    [("vocab_size", 64), ("n_positions", 32), ("n_layer", 2), ("n_embd", 32), ("n_head", 2)];

/// A `config.json` of a GPT-2 with these sizes.
fn config(folder: &Path, sizes: &[(&str, u64)]) -> PathBuf {
    let mut config = serde_json::json!({ "model_type": "gpt2" });
    for (name, value) in sizes {
        config[name] = (*value).into();
    }
    let path = folder.join("tiny.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn bench<'a>(shape: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = tidbit(["bench", "--repetitions", "2", "--shape"]);
    command.arg(shape).args(args);
    command
}

const NUMBERS: [&str; 15] = [
    "threads",
    "n_tokens",
    "depth",
    "batch",
    "tokens_per_s",
    "p5",
    "p95",
    "read_gb_per_s",
    "int8_tops",
    "roof",
    "roof_fraction",
    "file_bytes",
    "cores",
    "load_ms",
    "first_token_ms",
];

fn number(run: &Value, field: &str) -> f64 {
    run[field].as_f64().unwrap_or_else(|| panic!("{field} in {run}"))
}

#[test]
fn json_is_a_list_of_runs_that_stand_alone() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let args =
        ["--quant", "all", "--threads", "1,2,1", "--prefill", "4,0,8", "--decode", "3", "--depth", "0,7", "--json"];
    let runs = json(&mut bench(&shape, args));
    let runs = runs.as_array().unwrap();
    assert_eq!(runs.len(), QuantType::ALL.len() * 2 * 4);
    for run in runs {
        for field in NUMBERS {
            assert!(run[field].is_number() || run[field].is_null(), "{field} in {run}");
        }
        for field in ["phase", "quant", "file", "isa", "cpu", "version"] {
            assert!(run[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {run}");
        }
        let hash = run["header_sha256"].as_str().unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
        let (p5, median, p95) = (number(run, "p5"), number(run, "tokens_per_s"), number(run, "p95"));
        assert!(0.0 < p5 && p5 <= median && median <= p95, "{run}");
        assert!(0.0 < number(run, "load_ms") && number(run, "load_ms") < number(run, "first_token_ms"), "{run}");
        assert!(number(run, "file_bytes") > 1000.0 && number(run, "batch") == 1.0, "{run}");
        if cfg!(target_os = "linux") {
            assert!(number(run, "peak_rss_bytes") > 1e6, "{run}");
        }
        let integer = matches!(run["quant"].as_str(), Some("q8" | "q6" | "q5" | "q4" | "q3" | "q2"));
        let ceiling = match (run["phase"].as_str().unwrap(), integer) {
            ("decode", _) => {
                assert!(run["int8_tops"].is_null() && run["n_tokens"] == 3, "{run}");
                Some("read_gb_per_s")
            }
            ("prefill", true) => Some("int8_tops"),
            ("prefill", false) => None,
            (phase, _) => panic!("{phase}"),
        };
        if let Some(achieved) = ceiling {
            assert!(number(run, achieved) > 0.0 && number(run, "roof") > 0.0 && number(run, "roof_fraction") > 0.0);
        } else {
            assert!(["int8_tops", "read_gb_per_s", "roof", "roof_fraction"].iter().all(|f| run[f].is_null()), "{run}");
        }
    }
    let what = |run: &Value| (run["threads"].as_u64(), run["n_tokens"].as_u64(), run["depth"].as_u64());
    let expected = [(1, 4, 0), (1, 8, 0), (1, 3, 0), (1, 3, 7), (2, 4, 0), (2, 8, 0), (2, 3, 0), (2, 3, 7)];
    let found: Vec<_> = runs[..8].iter().map(what).collect();
    assert_eq!(found, expected.map(|(t, n, d)| (Some(t), Some(n), Some(d))));
}

#[test]
fn csv_has_a_line_of_names_and_one_for_each_run() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let text = succeeds(&mut bench(&shape, ["--threads", "1", "--csv"])).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let names: Vec<&str> = lines[0].split(',').collect();
    assert_eq!(&names[..4], ["phase", "quant", "threads", "n_tokens"]);
    for name in NUMBERS {
        assert!(names.contains(&name), "{name}");
    }
    // Nothing before these can hold a comma. The default lengths are the whole context.
    assert!(lines[1].starts_with("prefill,q4,1,32,0,1,") && lines[2].starts_with("decode,q4,1,32,0,1,"), "{text}");
    let rate = lines[2].split(',').nth(6).unwrap();
    assert!(rate.parse::<f64>().unwrap() > 0.0);
}

#[test]
fn markdown_is_a_table_to_paste() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let text = succeeds(&mut bench(&shape, ["--threads", "1,2", "--prefill", "8", "--decode", "2", "--md"])).stdout;
    let (about, table) = text.split_once("\n\n").unwrap();
    assert!(about.starts_with("tidbit ") && about.contains("cores"), "{about}");
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 2 + 4, "{table}");
    for row in &rows {
        assert!(row.starts_with('|') && row.ends_with('|'), "{row}");
        assert_eq!(row.matches('|').count(), rows[0].matches('|').count(), "{row}");
    }
    assert!(rows[2].contains("prefill 8") && rows[5].contains("decode at depth 0"), "{table}");
}

#[test]
fn html_is_one_page_with_plots() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let args = ["--quant", "q8,q4", "--threads", "1,2", "--prefill", "8", "--decode", "2", "--depth", "0,9", "--html"];
    let written = succeeds(&mut bench(&shape, args));
    let page = written.stdout;
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(!page.contains("http"), "the page refers to the outside");
    assert_eq!(page.matches("<figure>").count(), 5);
    for part in ["<svg ", "by threads", "by depth", "by quant type", "tokens/s", "roof", "prefers-color-scheme: dark"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<tr>").count(), 1 + 2 * 2 * 3);
    assert!(written.stderr.contains("tokens/s"), "progress goes to stderr");
}

#[test]
fn a_table_for_people_comes_without_any_option() {
    let written = succeeds(tidbit(["bench", "--repetitions", "1", "--prefill", "4", "--decode", "1"]).arg(model()));
    for part in ["MB, in-place)", "ms to the first token", "prefill 4", "decode at depth 0", "peak memory"] {
        assert!(written.stdout.contains(part), "{part} in {}", written.stdout);
    }
}

#[test]
fn a_saved_model_can_be_measured_again() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let saved = folder.path().join("kept.tidbit");
    let args = ["--threads", "1", "--prefill", "0", "--decode", "1", "--json", "--save", saved.to_str().unwrap()];
    let first = json(&mut bench(&shape, args));
    assert_eq!(names(folder.path()), ["kept.tidbit", "tiny.json"]);
    let again = json(tidbit(["bench", "--repetitions", "1", "--threads", "1", "--decode", "1", "--json"]).arg(&saved));
    assert_eq!(first[0]["header_sha256"], again[0]["header_sha256"]);
    assert_eq!(again[0]["file"], "kept.tidbit");
}

#[test]
fn refuses_options_that_cannot_be() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let cases: [(&[&str], &[&str]); 12] = [
        (&["--threads", "0"], &["0 threads", "1 to 256"]),
        (&["--threads", "1,100000"], &["100000 threads", "1 to 256"]),
        (&["--repetitions", "0"], &["--repetitions is 0"]),
        (&["--prefill", "0", "--decode", "0"], &["--prefill", "--decode", "0"]),
        (&["--quant", "q4,q7"], &["\"q7\"", "all", "f32, f16, q8, q6, q5, q4, q3, q2"]),
        (&["--prefill", "33"], &["--prefill 33", "32 tokens", "tiny.json"]),
        (&["--decode", "2", "--depth", "0,31"], &["--depth 0,31", "32 tokens"]),
        (&["--depth", "18446744073709551615"], &["--depth 18446744073709551615", "32 tokens"]),
        (&["--threads", "-1"], &["-1"]),
        (&["--json", "--html"], &["--json", "--html"]),
        (&["--csv", "--md"], &["--csv", "--md"]),
        (&["--quant", "all", "--save", "x.tidbit"], &["--save", "one quant type"]),
    ];
    for (args, parts) in cases {
        let mut command = tidbit(["bench", "--shape"]);
        fails(command.arg(&shape).args(args), 2, parts);
    }
    fails(tidbit(["bench", "--quant", "q4"]).arg(model()), 2, &["--quant"]);
    fails(&mut tidbit(["bench", "--shape", "gpt7"]), 2, &["\"gpt7\"", "gpt2-xl"]);
}

#[test]
fn saves_over_nothing_that_it_reads() {
    let folder = scratch();
    let shape = config(folder.path(), &SIZES);
    let described = std::fs::read(&shape).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::copy(cli_support::checkpoint().join("tokenizer.json"), &tokenizer).unwrap();
    let same = folder.path().join("../").join(folder.path().file_name().unwrap()).join("tiny.json");
    let save = |path: &Path| {
        let mut command = bench(&shape, ["--tokenizer"]);
        command.arg(&tokenizer).arg("--save").arg(path);
        command
    };
    for path in [&shape, &same, &tokenizer] {
        let written = fails(&mut save(path), 2, &["is also an input", "would be overwritten"]);
        assert!(!written.stderr.contains("writing random weights"), "{}", written.stderr);
    }
    for (path, part) in [("", "is a folder"), ("no/m.tidbit", "cannot write into the folder")] {
        fails(&mut save(&folder.path().join(path)), 1, &[part]);
    }
    assert_eq!(std::fs::read(&shape).unwrap(), described);
    assert_eq!(names(folder.path()), ["tiny.json", "tokenizer.json"]);
}

#[test]
fn shapes_that_fit_no_memory_are_told_before_any_work() {
    let folder = scratch();
    // The most that a config may say, and more than that.
    let (most, most_layers) = (1 << 24, 1 << 14);
    let wide = [("n_layer", most_layers), ("n_embd", most / 4), ("n_head", most / 256)];
    let long = [("n_layer", most_layers), ("n_positions", most), ("n_embd", 16), ("n_head", 1)];
    let no_shape = [("n_layer", u64::MAX)];
    let cases: [(&[(&str, u64)], &str, i32, &[&str]); 3] = [
        (&wide, "32", 2, &["tiny.json in q4", "EB are needed (weights", "are available"]),
        (&long, "16777216", 2, &["are needed", "cache 9.90 TB"]),
        (&no_shape, "32", 1, &["tiny.json", "n_layer", "18446744073709551615"]),
    ];
    for (sizes, prefill, code, parts) in cases {
        let shape = config(folder.path(), &[&SIZES, sizes].concat());
        let written = fails(&mut bench(&shape, ["--prefill", prefill]), code, parts);
        assert!(!written.stderr.contains("writing random weights"), "{}", written.stderr);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_temporary_model() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;
    let folder = scratch();
    let temporary = scratch();
    let sizes = [("vocab_size", 50_000), ("n_positions", 1024), ("n_layer", 4), ("n_embd", 512), ("n_head", 8)];
    let shape = config(folder.path(), &sizes);
    // While the weights are written, and while they are measured.
    for line in ["writing random weights", "tiny-q4.tidbit"] {
        let mut command = tidbit(["bench", "--csv", "--repetitions", "100000", "--shape"]);
        let mut child = command.arg(&shape).env("TMPDIR", temporary.path()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|l| l.contains(line)), "{line}");
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let rest: Vec<String> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
        assert!(!rest.iter().any(|l| l.contains("error") || l.contains("panicked")), "{rest:?}");
        assert_eq!(names(temporary.path()), [] as [&str; 0], "left behind after {line:?}");
    }
}
