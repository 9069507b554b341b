//! The file that is written: same bytes for any number of threads, the stored types asked for, the
//! sources' checksums, and nothing half-written.

mod support;

use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::*;
use tidbit_convert::{Checkpoint, ConvertError, Options, Progress, convert, spec_from_json, write_random};
use tidbit_runtime::format::header::hex;
use tidbit_runtime::format::{ModelFile, Stored, TOKENIZER};
use tidbit_runtime::quant::QuantType;

fn options(quant: QuantType) -> Options {
    Options { quant, cancel: None }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Wide enough for several panels and blocks.
const CONFIG: &str = r#"{"model_type": "gpt_neox", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 200, "vocab_size": 503, "max_position_embeddings": 64}"#;

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    Fake::neox().write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let spec = spec_from_json("config.json", CONFIG).unwrap().0;
    for quant in QuantType::ALL {
        let bytes = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (a, b) = (folder.path().join("a.tidbit"), folder.path().join("b.tidbit"));
            pool.install(|| {
                convert(&checkpoint, &a, &options(quant), &mut ()).unwrap();
                write_random(&spec, &Options { quant, cancel: None }, None, (&b, &[], 5)).unwrap();
            });
            (std::fs::read(a).unwrap(), std::fs::read(b).unwrap())
        });
        assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2], "{quant}");
    }
}

#[test]
fn each_quant_type_stores_each_role_as_planned() {
    use QuantType::{F16, F32, Q2, Q3, Q4, Q5, Q6, Q8};
    for (quant, embedding, positions, projection) in [
        (F32, F32, F32, F32),
        (F16, F16, F16, F16),
        (Q8, Q8, Q8, Q8),
        (Q6, Q8, Q8, Q6),
        (Q5, Q6, Q8, Q5),
        (Q4, Q6, Q8, Q4),
        (Q3, Q5, Q8, Q3),
        (Q2, Q4, Q8, Q2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        Fake::gpt2().write(folder.path());
        let (file, report) = converted(folder.path(), quant).unwrap();
        assert_eq!(file.provenance().quant, quant.name());
        for (name, expected) in [
            ("embed.tokens", Stored::Matrix(embedding)),
            ("embed.positions", Stored::Matrix(positions)),
            ("layers.1.mlp.up.weight", Stored::Matrix(projection)),
            ("layers.1.mlp.up.bias", Stored::Vector),
            ("final_norm.weight", Stored::Vector),
        ] {
            let planned = report.plan.tensors.iter().find(|t| t.name == name).unwrap();
            let (_, record, bytes) = file.tensors().find(|(n, ..)| *n == name).unwrap();
            assert_eq!((planned.stored, record.stored), (expected, expected), "{name} under {quant}");
            assert_eq!((planned.bytes, &planned.shape), (bytes as u64, &record.shape), "{name}");
        }
        let bytes: u64 = report.plan.tensors.iter().map(|t| t.bytes).sum();
        let parameters: usize = file.spec().tensors().iter().map(tidbit_runtime::spec::TensorDecl::len).sum();
        assert_eq!(report.plan.parameters, parameters as u64);
        assert!((report.plan.bits_per_weight - bytes as f64 * 8.0 / parameters as f64).abs() < 1e-9);
    }
    let spec = spec_from_json("c", &CONFIG.replace("503", "512")).unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let report =
        write_random(&spec, &Options { quant: Q4, cancel: None }, None, (&folder.path().join("m"), &[], 1)).unwrap();
    let head = report.plan.tensors.iter().find(|t| t.name == "head.weight").unwrap();
    assert_eq!(head.stored, Stored::Matrix(Q6));
}

#[test]
fn sources_are_named_with_their_checksums() {
    let folder = tempfile::tempdir().unwrap();
    Fake::gpt2().write(folder.path());
    let (file, _) = converted(folder.path(), QuantType::Q8).unwrap();
    let sources = &file.provenance().sources;
    assert_eq!(sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
    for source in sources {
        let bytes = std::fs::read(folder.path().join(&source.name)).unwrap();
        let hash = hex(&Sha256::digest(&bytes));
        assert_eq!((source.bytes, &source.sha256), (bytes.len() as u64, &hash));
    }
    assert!(file.provenance().converter.starts_with("tidbit "));
}

/// Cancels when a tensor has been written, and counts.
struct CancelAfter {
    left: usize,
    flag: Arc<AtomicBool>,
    told: Vec<u64>,
    total: u64,
}

impl Progress for CancelAfter {
    fn begin(&mut self, total_bytes: u64, _: usize) {
        self.total = total_bytes;
    }
    fn tensor(&mut self, _: &str, source_bytes: u64) {
        self.told.push(source_bytes);
        self.left -= 1;
        if self.left == 0 {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_cancelled_conversion_leaves_the_folder_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    Fake::gpt2().write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let output = folder.path().join("model.tidbit");
    std::fs::write(&output, "an earlier model").unwrap();
    let n = checkpoint.spec().tensors().len();
    let before = entries(folder.path());
    for after in [1, 5, n] {
        let flag = Arc::new(AtomicBool::new(false));
        let mut progress = CancelAfter { left: after, flag: Arc::clone(&flag), told: Vec::new(), total: 0 };
        let options = Options { quant: QuantType::Q4, cancel: Some(flag) };
        let error = convert(&checkpoint, &output, &options, &mut progress).unwrap_err();
        assert!(matches!(error, ConvertError::Cancelled), "{error}");
        assert_eq!(progress.told.len(), after);
        assert_eq!(progress.told.iter().sum::<u64>() == progress.total, after == n);
        assert_eq!(entries(folder.path()), before);
        assert_eq!(std::fs::read(&output).unwrap(), b"an earlier model");
    }
    convert(&checkpoint, &output, &options(QuantType::Q4), &mut ()).unwrap();
    ModelFile::open(&output).unwrap();
    assert_eq!(entries(folder.path()), before);
}

#[test]
fn outputs_that_cannot_be_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    Fake::gpt2().write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let before = entries(folder.path());
    for (output, expected) in [
        (folder.path().join("no/model.tidbit"), "no/model.tidbit: cannot write into the folder"),
        (folder.path().join("config.json/model.tidbit"), "is not a folder"),
        (folder.path().to_path_buf(), "is a folder, expected the name of a file"),
        (folder.path().join("model.safetensors"), "is also an input"),
        (folder.path().join("../").join(folder.path().file_name().unwrap()).join("config.json"), "is also an input"),
        (Path::new("").into(), "expected the name of a file"),
    ] {
        let message = convert(&checkpoint, &output, &options(QuantType::F32), &mut ()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should contain {expected}");
        assert_eq!(entries(folder.path()), before);
    }
}

#[cfg(unix)]
#[test]
fn special_files_are_not_replaced_and_modes_are_those_of_new_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    Fake::gpt2().write(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let message =
        convert(&checkpoint, Path::new("/dev/null"), &options(QuantType::F32), &mut ()).unwrap_err().to_string();
    assert!(message.contains("/dev/null: is a special file"), "{message}");
    let output = folder.path().join("model.tidbit");
    convert(&checkpoint, &output, &options(QuantType::F32), &mut ()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&output), mode(&folder.path().join("config.json")), "as any other new file");
}

#[test]
fn random_models_open_and_differ_by_seed() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec_from_json("config.json", CONFIG).unwrap().0;
    let make = |seed: u64| {
        let output = folder.path().join(format!("{seed}.tidbit"));
        let report =
            write_random(&spec, &Options { quant: QuantType::Q8, cancel: None }, Some(b"{}"), (&output, &[], seed))
                .unwrap();
        assert_eq!(report.file_bytes, std::fs::metadata(&output).unwrap().len());
        let file = ModelFile::open(&output).unwrap();
        file.verify().unwrap();
        let (form, bytes) = file.tokenizer().unwrap();
        assert_eq!((form, &*bytes), (TOKENIZER, &b"{}"[..]), "what is no tokenizer is kept as it is");
        file
    };
    let (a, b) = (make(1), make(2));
    assert_ne!(values(&a, "embed.tokens"), values(&b, "embed.tokens"));
    let gains = values(&a, "layers.1.attn_norm.weight");
    assert!(gains.iter().all(|g| (g - 1.0).abs() < 0.5));
    assert_ne!(gains[..48], gains[48..]);
    assert_ne!(values(&a, "layers.0.mlp.up.weight"), values(&a, "layers.1.mlp.up.weight"));
}
