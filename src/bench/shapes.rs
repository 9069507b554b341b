//! Architectures by name, as the `config.json` their publishers give them.

use crate::failure::Usage;
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use tidbit_convert::is_description;
use tidbit_runtime::spec::Spec;

/// Name, layers, width, heads: GPT-2's four sizes.
const GPT2: [(&str, usize, usize, usize); 4] =
    [("gpt2", 12, 768, 12), ("gpt2-medium", 24, 1024, 16), ("gpt2-large", 36, 1280, 20), ("gpt2-xl", 48, 1600, 25)];

/// Name, layers, width, heads: the Pythia suite up to what two cores run.
const PYTHIA: [(&str, usize, usize, usize); 6] = [
    ("pythia-70m", 6, 512, 8),
    ("pythia-160m", 12, 768, 12),
    ("pythia-410m", 24, 1024, 16),
    ("pythia-1b", 16, 2048, 8),
    ("pythia-1.4b", 24, 2048, 16),
    ("pythia-2.8b", 32, 2560, 32),
];

/// The architecture called `name`, or described by the file of that name.
pub(super) fn spec(name: &str) -> Result<Spec> {
    let config = if let Some((_, layers, width, heads)) = GPT2.iter().find(|s| s.0 == name) {
        json!({ "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_layer": layers, "n_embd": width, "n_head": heads })
    } else if let Some((_, layers, width, heads)) = PYTHIA.iter().find(|s| s.0 == name) {
        json!({
            "model_type": "gpt_neox", "vocab_size": 50304, "max_position_embeddings": 2048, "num_hidden_layers": layers,
            "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, "rotary_pct": 0.25,
        })
    } else if is_description(Path::new(name)) {
        return Ok(tidbit_convert::read_spec(Path::new(name))?.0);
    } else {
        let known: Vec<_> = GPT2.iter().chain(&PYTHIA).map(|s| s.0).collect();
        return Err(Usage(format!(
            "--shape is {name:?}, expected a config.json, a YAML file or one of {}",
            known.join(", ")
        ))
        .into());
    };
    Ok(tidbit_convert::spec_from_json(name, &config.to_string())?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_shapes_have_the_published_sizes() {
        for (name, parameters) in [
            ("gpt2", 124_439_808),
            ("gpt2-xl", 1_557_611_200),
            ("pythia-410m", 405_334_016),
            ("pythia-1.4b", 1_414_647_808),
        ] {
            let found: usize = spec(name).unwrap().tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
            assert_eq!(found, parameters, "{name}");
        }
        assert!(spec("gpt3").unwrap_err().to_string().contains("gpt2-xl"));
    }
}
