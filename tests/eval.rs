//! `tidbit eval` and the library under it: perplexity, intervals, and what a reference adds.

mod cli_support;

use cli_support::{json, names, scratch, succeeds, tidbit};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tidbit_runtime::error::{EvalError, SessionError};
use tidbit_runtime::eval::{Unit, Windows, evaluate};
use tidbit_runtime::kernels;
use tidbit_runtime::session::{Model, Session, SessionOptions};

/// A demo model in a quant type, converted once per process.
fn model(name: &str, quant: &str) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = LOCK.lock();
    let path = FOLDER.get_or_init(scratch).path().join(format!("{name}-{quant}.tidbit"));
    if !path.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        succeeds(tidbit(["convert", "--quant", quant]).arg(source).arg("-o").arg(&path));
    }
    path
}

/// A tale whose sentences differ; about 2300 tokens.
fn text(folder: &Path) -> PathBuf {
    let (who, what) = (["king", "girl", "fox", "old woman", "tailor"], ["went home", "said nothing", "ate the cake"]);
    let sentence = |i: usize| {
        let (a, b, c) = (who[i % 5], what[i % 3], who[(i * i + 2) % 5]);
        format!("Once upon a time there was a {a} who {b}, and on day {} the {c} laughed.\n", i * 37 % 100)
    };
    let path = folder.join("text.txt");
    std::fs::write(&path, (0..110).map(sentence).collect::<String>()).unwrap();
    path
}

fn eval(model: &Path, text: &Path, args: &[&str]) -> serde_json::Value {
    json(tidbit(["eval", "--json"]).arg(model).arg(text).args(args))
}

fn beside(model: &Path, reference: &Path, text: &Path, args: &[&str]) -> serde_json::Value {
    json(tidbit(["eval", "--json"]).arg(model).arg(text).arg("--reference").arg(reference).args(args))
}

fn number(value: &serde_json::Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("`{name}` is {}", value[name]))
}

#[test]
fn the_text_of_a_calibration_is_known_again() {
    let folder = scratch();
    let (text, path) = (text(folder.path()), folder.path().join("m.tidbit"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gpt2-mini");
    let mut convert = tidbit(["convert", "--quant", "q4", "--calibration-windows", "2", "--calibrate"]);
    succeeds(convert.arg(&text).arg(source).arg("-o").arg(&path));
    let said = succeeds(tidbit(["inspect"]).arg(&path)).stdout;
    assert!(said.contains("calibrated    text.txt, sha256 "), "{said}");
    let warned =
        |text: &Path| succeeds(tidbit(["eval"]).arg(&path).arg(text)).stderr.contains("calibrated with this text");
    assert!(warned(&text));
    let other = folder.path().join("other.txt");
    std::fs::write(&other, "Once upon a time there was another text.").unwrap();
    assert!(!warned(&other));
}

#[test]
fn a_model_beside_itself_is_equal() {
    let folder = scratch();
    let (model, text) = (model("gpt2-mini", "q4"), text(folder.path()));
    let value = beside(&model, &model, &text, &["--window", "200"]);
    for name in ["kl_mean", "kl_mean_error", "kl_median", "kl_p90", "kl_p99", "kl_max", "top1_agreement_error"] {
        assert_eq!(number(&value, name), 0.0, "{name}");
    }
    assert_eq!((number(&value, "top1_agreement"), number(&value, "perplexity_ratio")), (1.0, 1.0));
    assert_eq!(number(&value, "perplexity_ratio_error"), 0.0);
    assert_eq!(value["reference_perplexity"], value["perplexity"]);
    assert_eq!(value["errors_from"], "windows");
}

#[test]
fn fewer_bits_diverge_more() {
    let folder = scratch();
    let text = text(folder.path());
    for name in ["gpt2-mini", "neox-mini"] {
        let reference = model(name, "f32");
        let [f16, q8, q4] = ["f16", "q8", "q4"].map(|quant| {
            let value = beside(&model(name, quant), &reference, &text, &[]);
            let list = ["kl_median", "kl_p90", "kl_p99", "kl_max"].map(|part| number(&value, part));
            assert!(list.is_sorted() && list[0] > 0.0, "{name} {quant}: {list:?}");
            let (kl, low, high) =
                (number(&value, "kl_mean"), number(&value, "kl_mean_low"), number(&value, "kl_mean_high"));
            assert!(0.0 <= low && low < kl && kl < high, "{name} {quant}: {low} {kl} {high}");
            println!("{name} {quant}: kl {kl:.7}, same top {}", value["top1_agreement"]);
            (kl, number(&value, "top1_agreement"))
        });
        assert!(f16.0 < q8.0 && q8.0 * 3.0 < q4.0, "{name}: {f16:?} {q8:?} {q4:?}");
        assert!(f16.1 >= q8.1 && q8.1 > q4.1 && q4.1 > 0.8, "{name}: {f16:?} {q8:?} {q4:?}");
    }
}

#[test]
fn perplexity_is_the_same_command_and_the_reference_changes_nothing() {
    let folder = scratch();
    let (model, other, text) = (model("gpt2-mini", "q4"), model("gpt2-mini", "f32"), text(folder.path()));
    let plain = eval(&model, &text, &[]);
    let perplexity = json(tidbit(["perplexity", "--json"]).arg(&model).arg(&text));
    let compared = beside(&model, &other, &text, &[]);
    let alone = eval(&other, &text, &[]);
    for name in ["perplexity", "perplexity_low", "total_nll", "scored_tokens", "tokens", "window", "windows", "skip"] {
        assert_eq!(plain[name], perplexity[name], "{name}");
        assert_eq!(plain[name], compared[name], "{name}");
    }
    assert_eq!(alone["perplexity"], compared["reference_perplexity"]);
    let ratio = number(&compared, "perplexity") / number(&alone, "perplexity");
    assert!((number(&compared, "perplexity_ratio") - ratio).abs() < 1e-12 * ratio);
    assert!(plain.get("kl_mean").is_none() && compared["reference_kv"] == "f32");

    let inspected = json(tidbit(["inspect", "--json"]).arg(&model));
    for name in ["bits_per_weight", "file_bytes"] {
        assert_eq!(plain[name], inspected[name], "{name}");
    }
    let written = succeeds(tidbit(["eval"]).arg(&model).arg(&text).arg("--reference").arg(&other)).stdout;
    let starts: Vec<_> = written.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert!(starts[0].starts_with("perplexity "), "{written}");
    assert_eq!(starts[1..7], ["total nll", "interval", "reference", "ratio", "kl", "same top"], "{written}");
    assert!(written.lines().nth(7).unwrap().contains("bits per weight"), "{written}");
}

#[test]
fn nothing_depends_on_threads_or_isa() {
    let folder = scratch();
    let text = text(folder.path());
    let (model, reference) = (model("neox-mini", "q4"), model("neox-mini", "f32"));
    let mut expected = None;
    for isa in kernels::supported() {
        for threads in ["1", "2", "5"] {
            if isa.name() == "scalar" && threads != "2" {
                continue; // slow
            }
            let mut command = tidbit(["eval", "--json", "--window", "150", "--windows", "3", "--threads", threads]);
            command.arg(&model).arg(&text).arg("--reference").arg(&reference).env("TIDBIT_ISA", isa.name());
            let mut value = json(&mut command);
            for name in ["seconds", "tokens_per_s", "threads", "isa"] {
                value.as_object_mut().unwrap().remove(name);
            }
            assert_eq!(&value, expected.get_or_insert_with(|| value.clone()), "{} with {threads}", isa.name());
        }
    }
}

#[test]
fn windows_are_cut_as_asked() {
    let folder = scratch();
    let (model, text) = (model("gpt2-mini", "q8"), text(folder.path()));
    let counts = |args: &[&str]| {
        let value = eval(&model, &text, args);
        ["scored_tokens", "windows", "tokens"].map(|name| value[name].as_u64().unwrap())
    };
    let [scored, windows, tokens] = counts(&["--window", "100"]);
    assert_eq!((scored, windows), (tokens - tokens.div_ceil(100), tokens.div_ceil(100)));
    // As llama-perplexity: 255 of 512, and no window that is not whole.
    assert_eq!(counts(&["--window", "512", "--skip", "256"]), [255 * (tokens / 512), tokens / 512, tokens]);
    assert_eq!(counts(&["--window", "100", "--skip", "98"]), [tokens / 100, tokens / 100, tokens]);
    assert_eq!(counts(&["--window", "100", "--windows", "3"]), [297, 3, tokens]);
    assert_eq!(counts(&["--window", "100", "--windows", "1000"]), [scored, windows, tokens]);
    assert_eq!(eval(&model, &text, &["--windows", "3"])["errors_from"], "tokens");
}

#[test]
fn a_checkpoint_is_a_reference_in_f32() {
    let folder = scratch();
    let (cache, text) = (folder.path().join("cache"), text(folder.path()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gpt2-mini");
    let measure = |model: &Path, kv: &[&str]| {
        let mut command = tidbit(["eval", "--json", "--windows", "1"]);
        command.arg(model).arg(&text).arg("--reference").arg(&source).args(kv);
        json(command.env("TIDBIT_CACHE", &cache))
    };
    let value = measure(&model("gpt2-mini", "f32"), &[]);
    assert_eq!((number(&value, "kl_mean"), value["reference_kv"].as_str()), (0.0, Some("f32")));
    // The checkpoint as it is run, in q8, is kept beside it.
    let value = measure(&source, &["--kv", "f16", "--reference-kv", "f16"]);
    assert_eq!((value["kv"].as_str(), value["reference_kv"].as_str()), (Some("f16"), Some("f16")));
    assert!(number(&value, "kl_mean") > 0.0);
    assert_eq!(names(&cache).iter().map(|name| name.split('-').nth(2).unwrap()).collect::<Vec<_>>(), ["f32", "q8"]);
    measure(&source, &[]);
    assert_eq!(names(&cache).len(), 2);
}

/// As the documentation defines it: whole windows of one model after the other, every sum a loop.
#[test]
fn is_the_definition() {
    const WINDOW: usize = 70;
    const SKIP: usize = 20;
    let [model, reference] = ["q4", "f32"].map(|quant| Model::open(&model("gpt2-mini", quant)).unwrap());
    let new = |model| {
        let options = SessionOptions { context: Some(WINDOW), threads: Some(2), ..SessionOptions::default() };
        Session::new(model, &options).unwrap()
    };
    let ids: Vec<u32> = (0..WINDOW as u32 * 9 + 50).map(|i| (i * 7919 + i * i * 31) % 3584).collect();
    let log_softmax = |session: &mut Session, window: &[u32]| {
        let mut rows = Vec::new();
        session.rewind(0);
        session
            .append_each(window, |_, logits| {
                let sum = logits.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
                rows.push(logits.iter().map(|&v| f64::from(v) - sum).collect::<Vec<_>>());
            })
            .unwrap();
        rows
    };
    let best = |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let (mut session, mut other) = (new(&model), new(&reference));
    // For each window the scores of its tokens: log-likelihoods of both, divergence, agreement.
    let mut windows: Vec<Vec<[f64; 4]>> = Vec::new();
    for window in ids.chunks_exact(WINDOW) {
        let (q, p) = (log_softmax(&mut session, window), log_softmax(&mut other, window));
        let score = |i: usize| {
            let (q, p, id) = (&q[i], &p[i], window[i + 1] as usize);
            let kl: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
            [-q[id], -p[id], kl, f64::from(u8::from(best(p) == best(q)))]
        };
        windows.push((SKIP..WINDOW - 1).map(score).collect());
    }
    let scores = windows.concat();
    // All windows are as long as each other, so the error is that of the mean of their means.
    let estimate = |value: fn(&[f64; 4]) -> f64| {
        let mean = |scores: &[[f64; 4]]| scores.iter().map(value).sum::<f64>() / scores.len() as f64;
        let all = mean(&scores);
        let squares: f64 = windows.iter().map(|window| (mean(window) - all).powi(2)).sum();
        (all, (squares / (9.0 * 8.0)).sqrt())
    };

    let cut = Windows { length: WINDOW, skip: SKIP, most: None };
    let found = evaluate(&mut session, Some(&mut other), &ids, &cut, |_| {}).unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6 * b.abs().max(1e-3), "{a}, expected {b}");
    let c = found.comparison.unwrap();
    assert_eq!((found.scored_tokens, found.windows, found.unit), (9 * 49, 9, Unit::Window));
    for (found, (mean, error)) in [
        (found.perplexity, estimate(|s| s[0])),
        (c.perplexity, estimate(|s| s[1])),
        (c.ratio, estimate(|s| s[0] - s[1])),
    ] {
        near(found.value, mean.exp());
        near(found.error, mean.exp() * error);
        // 2.306 is the 97.5 % point for 8 degrees of freedom.
        assert!((found.high - (mean + 2.306 * error).exp()).abs() < 1e-3 * found.value);
    }
    for (found, (mean, error)) in [(c.kl, estimate(|s| s[2])), (c.agreement, estimate(|s| s[3]))] {
        near(found.value, mean);
        near(found.error, error);
    }
    let mut kl: Vec<f64> = scores.iter().map(|s| s[2]).collect();
    kl.sort_by(f64::total_cmp);
    // Of 441 values the median, 90 % and the largest are values; 99 % lies between two.
    near(c.kl_median, kl[220]);
    near(c.kl_p90, kl[396]);
    near(c.kl_p99, kl[435] + 0.6 * (kl[436] - kl[435]));
    near(c.kl_max, kl[440]);
}

#[test]
fn what_cannot_be_evaluated_is_an_error() {
    let model = Model::open(&model("gpt2-mini", "q8")).unwrap();
    let options = SessionOptions { context: Some(16), threads: Some(1), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options).unwrap();
    let mut error = |ids: &[u32], windows: Windows| evaluate(&mut session, None, ids, &windows, |_| {}).unwrap_err();
    let of = |length, skip| Windows { length, skip, most: NonZeroUsize::new(2) };
    assert!(matches!(error(&[1], of(16, 0)), EvalError::TooShort { tokens: 1, needed: 2 }));
    assert!(matches!(error(&[1; 15], of(16, 4)), EvalError::TooShort { tokens: 15, needed: 16 }));
    assert!(matches!(error(&[1; 15], of(18, 0)), EvalError::Window { window: 18, most: 17, .. }));
    assert!(matches!(error(&[1; 15], of(1, 0)), EvalError::Window { window: 1, .. }));
    assert!(matches!(error(&[1; 15], of(0, 0)), EvalError::Window { window: 0, .. }));
    assert!(matches!(error(&[1; 15], of(16, 15)), EvalError::Skip { skip: 15, window: 16 }));
    let outside = EvalError::Session(SessionError::Token { id: 3584, vocab_size: 3584 });
    assert_eq!(error(&[1, 3584], of(16, 0)).to_string(), outside.to_string());
    session.cancel_flag().store(true, std::sync::atomic::Ordering::Relaxed);
    let cancelled = evaluate(&mut session, None, &[1; 15], &of(16, 0), |_| {}).unwrap_err();
    assert!(matches!(cancelled, EvalError::Session(SessionError::Cancelled)));
}
