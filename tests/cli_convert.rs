//! `tidbit convert` and `tidbit inspect`.

mod cli_support;

use cli_support::{checkpoint, fails, json, model, names, scratch, succeeds, tidbit};
use tidbit_runtime::kernels::{self, Kernels};

/// Every quant type, most precise first.
const QUANTS: [&str; 8] = ["f32", "f16", "q8", "q6", "q5", "q4", "q3", "q2"];

#[test]
fn converts_to_every_quant_type() {
    let out = scratch();
    let mut sizes = Vec::new();
    for quant in QUANTS {
        let path = out.path().join(format!("{quant}.tidbit"));
        let mut command = tidbit(["convert", "--json", "--quant", quant]);
        let report = json(command.arg(checkpoint()).arg("-o").arg(&path));
        assert_eq!(report["quant"], quant);
        assert_eq!(report["parameters"], 4_208_128);
        assert_eq!(report["file_bytes"], std::fs::metadata(&path).unwrap().len());
        let inspected = json(tidbit(["inspect", "--json", "--verify", "--tensors"]).arg(&path));
        assert_eq!(inspected["parameters"], 4_208_128);
        assert_eq!(inspected["bits_per_weight"], report["bits_per_weight"]);
        assert_eq!(inspected["tensors"].as_array().unwrap().len(), 53);
        assert_eq!(inspected["verified"]["tensors"], 53);
        assert_eq!(inspected["tokenizer"]["tokens"], 3584);
        assert_eq!(inspected["provenance"]["quant"], quant);
        sizes.push(report["file_bytes"].as_u64().unwrap());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    assert_eq!(names(out.path()).len(), QUANTS.len(), "nothing but the models is left");
}

#[test]
fn few_bits_without_data_are_advised_against() {
    let out = scratch();
    let notes = |args: &[&str]| {
        let mut command = tidbit(["convert", "--calibration-windows", "1"]);
        let done = command.arg(checkpoint()).arg("-o").arg(out.path().join("m")).args(args).output().unwrap();
        assert!(done.status.success());
        String::from_utf8(done.stderr).unwrap()
    };
    assert!(notes(&["--quant", "q2"]).contains("note: q2 without data costs much quality: --calibrate"));
    assert!(!notes(&["--quant", "q4"]).contains("without data"));
    assert!(!notes(&["--quant", "q2", "--calibrate"]).contains("without data"));
}

#[test]
fn the_bytes_are_the_same_from_every_instruction_set() {
    let out = scratch();
    let path = out.path().join("m.tidbit");
    let text = out.path().join("text.txt");
    std::fs::write(&text, "The king went home, and the fox said nothing. ".repeat(60)).unwrap();
    let mut isas: Vec<_> = kernels::supported().into_iter().map(Kernels::name).collect();
    assert_eq!(isas.pop(), Some("scalar"));
    let written = |isa: &str, args: &[&str]| {
        let mut command = tidbit(["convert"]);
        succeeds(command.arg(checkpoint()).arg("-o").arg(&path).args(args).env("TIDBIT_ISA", isa));
        std::fs::read(&path).unwrap()
    };
    for quant in QUANTS {
        let expected = written("scalar", &["--quant", quant]);
        for isa in &isas {
            assert!(written(isa, &["--quant", quant]) == expected, "{isa} {quant}");
        }
    }
    let calibrate = ["--quant", "q3", "--calibration-windows", "1", "--calibrate", text.to_str().unwrap()];
    let expected = written("scalar", &calibrate);
    assert!(expected != written("scalar", &["--quant", "q3"]), "the text was used");
    for isa in &isas {
        assert!(written(isa, &calibrate) == expected, "{isa}, calibrated");
    }
    assert_eq!(names(out.path()), ["m.tidbit", "text.txt"]);
}

#[test]
fn a_dry_run_tells_the_truth_and_writes_nothing() {
    let out = scratch();
    let path = out.path().join("m.tidbit");
    let mut dry = tidbit(["convert", "--dry-run", "--json"]);
    let dry = json(dry.arg(checkpoint()).arg("-o").arg(&path));
    assert_eq!(names(out.path()), [] as [&str; 0]);
    assert_eq!(dry["output"], serde_json::Value::Null);
    assert_eq!(dry["file_bytes"], std::fs::metadata(model()).unwrap().len());
    let text = succeeds(tidbit(["convert", "--dry-run", "--quant", "q4"]).arg(checkpoint()));
    assert!(text.stdout.contains("nothing written") && text.stdout.contains("bits per weight"), "{}", text.stdout);
}

#[test]
fn lists_ignored_fields_once() {
    let written = succeeds(tidbit(["convert", "--dry-run"]).arg(checkpoint()));
    assert_eq!(written.stderr.matches("resid_pdrop").count(), 1, "{}", written.stderr);
    assert!(!written.stderr.contains("activation_function"), "{}", written.stderr);
    assert!(!written.stdout.contains("resid_pdrop"), "{}", written.stdout);
}

#[test]
fn replaces_an_existing_file() {
    let out = scratch();
    let path = out.path().join("m.tidbit");
    std::fs::write(&path, "something else").unwrap();
    succeeds(tidbit(["convert"]).arg(checkpoint()).arg("-o").arg(&path));
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(model()).unwrap(), "conversion is deterministic");
    assert_eq!(names(out.path()), ["m.tidbit"]);
}

#[test]
fn inspects_a_config_that_has_no_weights() {
    let config = checkpoint().join("config.json");
    let value = json(tidbit(["inspect", "--json"]).arg(&config));
    assert_eq!(value["parameters"], 4_208_128);
    // Without the token table (3584 x 256) and the positions (512 x 256).
    assert_eq!(value["parameters_without_embeddings"], 4_208_128 - 3584 * 256 - 512 * 256);
    assert_eq!(value["context_length"], 512);
    // Per layer and head: keys and values of 64 dimensions in bytes, and their scales.
    assert_eq!(
        (&value["kv_cache_type"], &value["kv_cache_bytes_per_token"]),
        (&"q8".into(), &(4 * 4 * (2 * 64 + 4)).into())
    );
    assert_eq!(value["predicted"].as_array().unwrap().len(), QUANTS.len());
    // What is measured is never twice the same.
    let unmeasured = |mut value: serde_json::Value| {
        value.as_object_mut().unwrap().remove("expected").expect("what to expect");
        value
    };
    let of_folder = json(tidbit(["inspect", "--json"]).arg(checkpoint()));
    assert_eq!(unmeasured(value.clone()), unmeasured(of_folder), "the folder says the same");

    // What it predicts is what convert plans, apart from the tokenizer and the list of sources.
    for (i, quant) in QUANTS.into_iter().enumerate() {
        let plan = json(tidbit(["convert", "--dry-run", "--json", "--quant", quant]).arg(checkpoint()));
        assert_eq!(value["predicted"][i]["quant"], quant);
        assert_eq!(value["predicted"][i]["bits_per_weight"], plan["bits_per_weight"]);
    }
}

#[test]
fn inspects_for_people() {
    let text = succeeds(tidbit(["inspect", "--tensors", "--verify"]).arg(model())).stdout;
    for part in
        ["gpt2, 4 layers", "4,208,128", "layers.3.mlp.down.weight", "bits per weight", "every checksum is right"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let text = succeeds(tidbit(["inspect"]).arg(checkpoint())).stdout;
    assert!(text.contains("q4") && text.contains("tanh GELU") && text.contains("tied head"), "{text}");
    fails(tidbit(["inspect", "--verify"]).arg(checkpoint()), 2, &["--verify"]);
}
