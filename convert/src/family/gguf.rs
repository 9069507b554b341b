//! What the keys and tensors of a GGUF mean: a config in the fields of its family, and rules with GGUF's names.
//!
//! An architecture is an entry of [`ARCHITECTURES`]. Its keys become a config as Hugging Face has it, which the family's
//! own reader reads, so that there is one place that knows a family. Where GGUF's tensors differ from Hugging Face's:
//!
//! - queries and keys of `llama` and `olmo` have the dimensions that turn together as neighbours;
//! - query, key and value in one tensor lie one after the other, not head by head;
//! - `gpt2` has its matrices as `[out, in]`;
//! - the gains of Gemma have the 1 added.

use super::{
    Described, Family, Order, Rule, bert, bloom, falcon, gemma, gemma2, gemma3, gpt2, llama, mpt, neox, olmo, olmo2,
};
use super::{phi, qwen2, qwen3, read_fields, rule, same, stablelm, t5};
use crate::checkpoint::gguf::{Gguf, Metadata};
use crate::checkpoint::{Dtype, read_range};
use crate::config::Config;
use crate::error::{ConvertError, shown};
use serde_json::{Map, Value, json};
use std::path::Path;
use tidbit_runtime::kernels::Element;
use tidbit_runtime::spec::{Pooling, PoolingKind};

/// An architecture of GGUF.
struct Architecture {
    /// `general.architecture`, also the first part of its keys.
    name: &'static str,
    /// What its config calls the context and the inner width.
    sizes: [&'static str; 2],
    /// The key of the norms' epsilon, and what its config calls it.
    eps: [&'static str; 2],
    /// The rest of its config.
    rest: fn(&Model<'_>, &mut Fields) -> Result<(), ConvertError>,
    tensors: &'static Family,
}

/// A config in the making.
type Fields = Map<String, Value>;

const CONTEXT: &str = "max_position_embeddings";
const FFN: &str = "intermediate_size";
const LAYER: &str = "attention.layer_norm_epsilon";
const RMS: &str = "attention.layer_norm_rms_epsilon";
const RMS_EPS: [&str; 2] = [RMS, "rms_norm_eps"];

/// All that are understood.
static ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_llama, tensors: &LLAMA },
    Architecture { name: "qwen2", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_qwen, tensors: &QWEN2 },
    Architecture { name: "qwen3", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_llama, tensors: &QWEN3 },
    Architecture { name: "gemma", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_qwen, tensors: &GEMMA },
    Architecture { name: "gemma2", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_gemma2, tensors: &GEMMA2 },
    Architecture { name: "gemma3", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_gemma3, tensors: &GEMMA3 },
    Architecture {
        name: "olmo",
        sizes: [CONTEXT, FFN],
        eps: [LAYER, "layer_norm_eps"],
        rest: like_olmo,
        tensors: &OLMO,
    },
    Architecture { name: "olmo2", sizes: [CONTEXT, FFN], eps: RMS_EPS, rest: like_qwen, tensors: &OLMO2 },
    Architecture {
        name: "stablelm",
        sizes: [CONTEXT, FFN],
        eps: [LAYER, "layer_norm_eps"],
        rest: like_stablelm,
        tensors: &STABLELM,
    },
    Architecture { name: "phi2", sizes: [CONTEXT, FFN], eps: [LAYER, "layer_norm_eps"], rest: like_phi, tensors: &PHI },
    Architecture {
        name: "gptneox",
        sizes: [CONTEXT, FFN],
        eps: [LAYER, "layer_norm_eps"],
        rest: like_neox,
        tensors: &NEOX,
    },
    Architecture {
        name: "gpt2",
        sizes: ["n_positions", "n_inner"],
        eps: [LAYER, "layer_norm_epsilon"],
        rest: |_, _| Ok(()),
        tensors: &GPT2,
    },
    Architecture {
        name: "bloom",
        sizes: ["seq_length", "n_inner"],
        eps: [LAYER, "layer_norm_epsilon"],
        rest: |_, _| Ok(()),
        tensors: &BLOOM,
    },
    Architecture {
        name: "falcon",
        sizes: [CONTEXT, "ffn_hidden_size"],
        eps: [LAYER, "layer_norm_epsilon"],
        rest: like_falcon,
        tensors: &FALCON,
    },
    Architecture {
        name: "mpt",
        sizes: ["max_seq_len", FFN],
        eps: [LAYER, "layer_norm_epsilon"],
        rest: like_mpt,
        tensors: &MPT,
    },
    Architecture {
        name: "bert",
        sizes: [CONTEXT, FFN],
        eps: [LAYER, "layer_norm_eps"],
        rest: like_bert,
        tensors: &BERT,
    },
    Architecture {
        name: "t5",
        sizes: ["n_positions", "d_ff"],
        eps: [RMS, "layer_norm_epsilon"],
        rest: like_t5,
        tensors: &T5,
    },
];

static LLAMA: Family = Family {
    rules: &[PAIRS, COMMON],
    prefixes: &[],
    // Read by `stretched`.
    unread: &["rope_freqs.weight"],
    ..llama::FAMILY
};
static QWEN2: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..qwen2::FAMILY };
static QWEN3: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..qwen3::FAMILY };
static GEMMA: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..gemma::FAMILY };
static GEMMA2: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..gemma2::FAMILY };
static GEMMA3: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..gemma3::TEXT };
static OLMO: Family = Family { rules: &[PAIRS, COMMON], prefixes: &[], unread: &[], ..olmo::FAMILY };
static OLMO2: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..olmo2::FAMILY };
static STABLELM: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..stablelm::FAMILY };
static PHI: Family = Family { rules: &[SPLIT, COMMON], prefixes: &[], unread: &[], ..phi::FAMILY };
/// As [`PHI`], with query, key and value in one.
static PHI_FUSED: Family = Family { rules: &[FUSED, COMMON], prefixes: &[], unread: &[], ..phi::FAMILY };
static NEOX: Family = Family { rules: &[FUSED, COMMON], prefixes: &[], unread: &[], ..neox::FAMILY };
static GPT2: Family = Family { rules: &[FUSED, COMMON], prefixes: &[], unread: &[], ..gpt2::FAMILY };
static BLOOM: Family = Family { rules: &[FUSED, COMMON], prefixes: &[], unread: &[], ..bloom::FAMILY };
static FALCON: Family = Family { rules: &[FUSED, TWO_NORMS, COMMON], prefixes: &[], unread: &[], ..falcon::FAMILY };
static MPT: Family = Family { rules: &[FUSED, COMMON], prefixes: &[], unread: &[], ..mpt::FAMILY };
/// What classifies is not read, as in checkpoints.
static BERT: Family = Family { rules: &[SPLIT, BEHIND, COMMON], prefixes: &[], unread: &["cls."], ..bert::FAMILY };
/// Old ones have a table that was never used.
static T5: Family =
    Family { rules: &[STACKS, COMMON], prefixes: &[], unread: &["dec.blk.0.cross_attn_rel_b.weight"], ..t5::T5 };

const FUSED: &[Rule] = &[same("layers.{}.attn.qkv.*", &["blk.{}.attn_qkv.*"])];
const QKV: &[&str] = &["blk.{}.attn_q.*", "blk.{}.attn_k.*", "blk.{}.attn_v.*"];
const SPLIT: &[Rule] = &[rule("layers.{}.attn.qkv.*", QKV, Order::QueryKeyValue)];
const PAIRS: &[Rule] = &[rule("layers.{}.attn.qkv.*", QKV, Order::PairsKeyValue)];

/// Where there are two norms, the second one's is attention's.
const TWO_NORMS: &[Rule] = &[
    same("layers.{}.attn_norm.*", &["blk.{}.attn_norm_2.*", "blk.{}.attn_norm.*"]),
    same("layers.{}.mlp_norm.*", &["blk.{}.attn_norm.*"]),
];

/// Positions with the only kind of token that is used, and norms behind each part.
const BEHIND: &[Rule] = &[
    rule("embed.positions", &["position_embd.weight", KINDS], Order::AfterAndKind(0)),
    same("layers.{}.attn_post_norm.*", &["blk.{}.attn_output_norm.*"]),
    same("layers.{}.mlp_post_norm.*", &["blk.{}.layer_output_norm.*"]),
];

/// Two stacks, of which only the decoder's last norm and the head are not called after one.
const STACKS: &[Rule] = &[
    same("encoder.relative_bias", &["enc.blk.0.attn_rel_b.weight"]),
    same("relative_bias", &["dec.blk.0.attn_rel_b.weight"]),
    same("encoder.layers.{}.attn_norm.*", &["enc.blk.{}.attn_norm.*"]),
    rule(
        "encoder.layers.{}.attn.qkv.*",
        &["enc.blk.{}.attn_q.*", "enc.blk.{}.attn_k.*", "enc.blk.{}.attn_v.*"],
        Order::QueryKeyValue,
    ),
    same("encoder.layers.{}.attn.out.*", &["enc.blk.{}.attn_o.*"]),
    same("encoder.layers.{}.mlp_norm.*", &["enc.blk.{}.ffn_norm.*"]),
    same("encoder.layers.{}.mlp.gate.*", &["enc.blk.{}.ffn_gate.*"]),
    same("encoder.layers.{}.mlp.up.*", &["enc.blk.{}.ffn_up.*"]),
    same("encoder.layers.{}.mlp.down.*", &["enc.blk.{}.ffn_down.*"]),
    same("encoder.final_norm.*", &["enc.output_norm.*"]),
    same("layers.{}.attn_norm.*", &["dec.blk.{}.attn_norm.*"]),
    rule(
        "layers.{}.attn.qkv.*",
        &["dec.blk.{}.attn_q.*", "dec.blk.{}.attn_k.*", "dec.blk.{}.attn_v.*"],
        Order::QueryKeyValue,
    ),
    same("layers.{}.attn.out.*", &["dec.blk.{}.attn_o.*"]),
    same("layers.{}.cross_norm.*", &["dec.blk.{}.cross_attn_norm.*"]),
    same("layers.{}.cross.q.*", &["dec.blk.{}.cross_attn_q.*"]),
    rule("layers.{}.cross.kv.*", &["dec.blk.{}.cross_attn_k.*", "dec.blk.{}.cross_attn_v.*"], Order::KeyValue),
    same("layers.{}.cross.out.*", &["dec.blk.{}.cross_attn_o.*"]),
    same("layers.{}.mlp_norm.*", &["dec.blk.{}.ffn_norm.*"]),
    same("layers.{}.mlp.gate.*", &["dec.blk.{}.ffn_gate.*"]),
    same("layers.{}.mlp.up.*", &["dec.blk.{}.ffn_up.*"]),
    same("layers.{}.mlp.down.*", &["dec.blk.{}.ffn_down.*"]),
    same("final_norm.*", &["dec.output_norm.*"]),
];

/// What all have the same name for.
const COMMON: &[Rule] = &[
    same("embed.tokens", &[EMBEDDING]),
    same("embed.positions", &["position_embd.weight"]),
    same("embed.norm.*", &["token_embd_norm.*"]),
    same("layers.{}.attn_norm.*", &["blk.{}.attn_norm.*"]),
    same("layers.{}.attn.q_norm.*", &["blk.{}.attn_q_norm.*"]),
    same("layers.{}.attn.k_norm.*", &["blk.{}.attn_k_norm.*"]),
    same("layers.{}.attn.out.*", &["blk.{}.attn_output.*"]),
    same("layers.{}.attn_post_norm.*", &["blk.{}.post_attention_norm.*"]),
    same("layers.{}.mlp_norm.*", &["blk.{}.ffn_norm.*"]),
    same("layers.{}.mlp.gate.*", &["blk.{}.ffn_gate.*"]),
    same("layers.{}.mlp.up.*", &["blk.{}.ffn_up.*"]),
    same("layers.{}.mlp.down.*", &["blk.{}.ffn_down.*"]),
    same("layers.{}.mlp_post_norm.*", &["blk.{}.post_ffw_norm.*"]),
    same("final_norm.*", &["output_norm.*"]),
    same("head.*", &["output.*"]),
];

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
const KINDS: &str = "token_types.weight";

/// Keys of an architecture that change the result where they have a value, and are not understood.
const ACTIVE: &[&str] = &[
    "attention.causal",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "expert_used_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_sections",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.yarn_log_multiplier",
    "swin_norm",
    "use_parallel_residual",
];

/// A file, with what most questions about it need.
struct Model<'a> {
    architecture: &'static Architecture,
    metadata: &'a Metadata,
    gguf: &'a Gguf,
    path: &'a Path,
    width: u64,
    n_heads: u64,
    n_layers: u64,
}

impl Model<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// A whole number that must be there.
    fn required(metadata: &Metadata, key: &str) -> Result<u64, ConvertError> {
        let most = 1 << 32;
        metadata.count(key)?.filter(|n| (1..=most).contains(n)).ok_or_else(|| metadata.refuse(key, "a positive number"))
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.contains_key(tensor)
    }

    /// Copies a number, if it is there.
    fn copy(&self, key: &str, fields: &mut Fields, field: &str) -> Result<(), ConvertError> {
        if let Some(number) = self.metadata.number(&self.key(key))? {
            fields.insert(field.into(), number);
        }
        Ok(())
    }

    /// The width of a head.
    fn head_dim(&self) -> Result<u64, ConvertError> {
        let [key, value] = ["attention.key_length", "attention.value_length"].map(|key| self.key(key));
        let stated = self.metadata.count(&key)?;
        if let Some(other) = self.metadata.count(&value)?
            && other != stated.unwrap_or(other)
        {
            return Err(self.metadata.refuse(&value, format!("as `{key}`, {}", stated.unwrap_or(0))));
        }
        match stated {
            Some(dim) if dim > 0 => Ok(dim),
            Some(_) => Err(self.metadata.refuse(&key, "a positive number")),
            None if self.width.is_multiple_of(self.n_heads) => Ok(self.width / self.n_heads),
            None => {
                let (d_model, n_heads) = (self.width, self.n_heads);
                Err(self.metadata.error(format!("a width of {d_model} is not a multiple of {n_heads} heads")))
            }
        }
    }

    /// Key heads and the width of a head, for families that have fields for them.
    fn grouped(&self, fields: &mut Fields) -> Result<(), ConvertError> {
        let kv = self.metadata.count(&self.key("attention.head_count_kv"))?.unwrap_or(self.n_heads);
        fields.insert("num_key_value_heads".into(), json!(kv));
        fields.insert("head_dim".into(), json!(self.head_dim()?));
        Ok(())
    }

    /// Positions of a head that turns as a whole.
    fn whole(&self, fields: &mut Fields) -> Result<(), ConvertError> {
        let key = self.key("rope.dimension_count");
        let (dims, head_dim) = (self.metadata.count(&key)?, self.head_dim()?);
        if dims.is_some_and(|dims| dims != head_dim) {
            return Err(self.metadata.refuse(&key, format!("{head_dim}, the width of a head")));
        }
        self.turning(fields)
    }

    /// Positions of which a head turns a part, in a field.
    fn part(&self, fields: &mut Fields, field: &str) -> Result<(), ConvertError> {
        let key = self.key("rope.dimension_count");
        let head_dim = self.head_dim()?;
        let dims = self.metadata.count(&key)?.unwrap_or(head_dim);
        if !(1..=head_dim).contains(&dims) {
            return Err(self.metadata.refuse(&key, format!("1 to {head_dim}")));
        }
        let mut part = dims as f64 / head_dim as f64;
        if (part * head_dim as f64) < dims as f64 {
            part = part.next_up();
        }
        fields.insert(field.into(), json!(part));
        self.turning(fields)
    }

    /// The base and the scaling.
    fn turning(&self, fields: &mut Fields) -> Result<(), ConvertError> {
        self.copy("rope.freq_base", fields, "rope_theta")?;
        let [kind, factor, original, tuned] =
            ["type", "factor", "original_context_length", "finetuned"].map(|k| self.key(&format!("rope.scaling.{k}")));
        let scaling = match self.metadata.text(&kind)? {
            None | Some("none") => return Ok(()),
            Some("linear") => json!({ "rope_type": "linear" }),
            Some("yarn") => json!({ "rope_type": "yarn" }),
            Some(_) => return Err(self.metadata.refuse(&kind, "none, linear or yarn")),
        };
        let Value::Object(mut scaling) = scaling else { return Ok(()) };
        let number =
            self.metadata.number(&factor)?.ok_or_else(|| self.metadata.refuse(&factor, "a positive number"))?;
        scaling.insert("factor".into(), number);
        if let Some(original) = self.metadata.count(&original)? {
            scaling.insert("original_max_position_embeddings".into(), json!(original));
        }
        for beta in ["beta_fast", "beta_slow"] {
            if let Some(number) = self.metadata.number(&self.key(&format!("rope.scaling.yarn_{beta}")))? {
                scaling.insert(beta.into(), number);
            }
        }
        self.metadata.get(&tuned);
        fields.insert("rope_scaling".into(), scaling.into());
        Ok(())
    }

    /// Factors by which the positions of `LLaMA` 3.1 and later are stretched: the numbers that they were made from.
    fn stretched(&self, fields: &mut Fields) -> Result<(), ConvertError> {
        const NAME: &str = "rope_freqs.weight";
        // All models that have them were made with these.
        const LOW: f64 = 1.0;
        const HIGH: f64 = 4.0;
        const ORIGINAL: f64 = 8192.0;
        let Some(tensor) = self.gguf.tensors.get(NAME) else { return Ok(()) };
        let error = |reason: String| Err(ConvertError::tensor(self.path, NAME, reason));
        let half = self.head_dim()? / 2;
        if tensor.dtype != Dtype::F32 || tensor.blocks.is_some() || half > 4096 || tensor.shape != [half as usize] {
            return error(format!("expected F32 of shape [{half}], found {} of {:?}", tensor.dtype, tensor.shape));
        }
        let bytes = read_range(self.path, NAME, tensor.offset, tensor.bytes().unwrap_or(0))?;
        let found: Vec<_> = bytes.chunks_exact(4).map(|bytes| f64::from(Element::F32.read(bytes))).collect();
        let factor = found.iter().copied().fold(1.0, f64::max);
        let theta = self.metadata.float(&self.key("rope.freq_base"))?.unwrap_or(10_000.0);
        for (i, &found) in found.iter().enumerate() {
            let length = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / (2 * half) as f64);
            let smooth = ((ORIGINAL / length - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
            if !found.is_finite() || (found - expected).abs() > 1e-3 * expected {
                return error(format!("element {i} is {found}, expected {expected}, as LLaMA 3.1 stretches positions"));
            }
        }
        if fields.contains_key("rope_scaling") {
            return error("is there besides another scaling of positions".into());
        }
        let scaling = json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64 });
        fields.insert("rope_scaling".into(), scaling);
        Ok(())
    }
}

fn like_llama(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.grouped(fields)?;
    model.whole(fields)?;
    if model.architecture.name == "llama" {
        model.stretched(fields)?;
        fields.insert("mlp_bias".into(), json!(model.has("blk.0.ffn_up.bias")));
        let window = model.metadata.count(&model.key("attention.sliding_window"))?.filter(|&window| window > 0);
        if let Some(window) = window {
            fields.insert("model_type".into(), json!("mistral"));
            fields.insert("sliding_window".into(), json!(window));
            return Ok(());
        }
    }
    fields.insert("attention_bias".into(), json!(model.has("blk.0.attn_q.bias")));
    Ok(())
}

fn like_qwen(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.grouped(fields)?;
    model.whole(fields)
}

fn like_gemma2(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    like_qwen(model, fields)?;
    model.copy("attention.sliding_window", fields, "sliding_window")?;
    model.copy("attn_logit_softcapping", fields, "attn_logit_softcapping")?;
    model.copy("final_logit_softcapping", fields, "final_logit_softcapping")?;
    // Not in the file. The largest model's is its width by its heads, the others' the width of a head.
    let divided = model.n_layers == 46;
    let scalar = if divided { model.width / model.n_heads } else { model.head_dim()? };
    fields.insert("query_pre_attn_scalar".into(), json!(scalar));
    Ok(())
}

fn like_gemma3(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    like_qwen(model, fields)?;
    model.copy("attention.sliding_window", fields, "sliding_window")?;
    model.copy("final_logit_softcapping", fields, "final_logit_softcapping")?;
    model.copy("attention.sliding_window_pattern", fields, "sliding_window_pattern")?;
    let divided = model.n_layers == 62;
    let scalar = if divided { model.width / model.n_heads } else { model.head_dim()? };
    fields.insert("query_pre_attn_scalar".into(), json!(scalar));
    Ok(())
}

fn like_olmo(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    like_qwen(model, fields)?;
    if model.metadata.float(&model.key("attention.clamp_kqv"))?.is_some_and(|clip| clip > 0.0) {
        model.copy("attention.clamp_kqv", fields, "clip_qkv")?;
    }
    Ok(())
}

fn like_stablelm(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.grouped(fields)?;
    model.part(fields, "partial_rotary_factor")?;
    let parallel = model.metadata.bool(&model.key("use_parallel_residual"))?;
    // The larger model has no second norm, whatever the key says.
    let parallel = parallel.unwrap_or(false) && !model.has("blk.0.ffn_norm.weight");
    fields.insert("use_parallel_residual".into(), json!(parallel));
    fields.insert("use_qkv_bias".into(), json!(model.has("blk.0.attn_q.bias")));
    fields.insert("qk_layernorm".into(), json!(model.has("blk.0.attn_q_norm.weight")));
    Ok(())
}

fn like_phi(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.grouped(fields)?;
    model.part(fields, "partial_rotary_factor")
}

fn like_neox(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.part(fields, "rotary_pct")?;
    let parallel = model.metadata.bool(&model.key("use_parallel_residual"))?.unwrap_or(true);
    fields.insert("use_parallel_residual".into(), json!(parallel));
    Ok(())
}

fn like_falcon(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    model.whole(fields)?;
    let kv = model.metadata.count(&model.key("attention.head_count_kv"))?.unwrap_or(1);
    let two_norms = model.has("blk.0.attn_norm_2.weight");
    if two_norms || (kv > 1 && kv < model.n_heads) {
        fields.insert("new_decoder_architecture".into(), json!(true));
        fields.insert("num_kv_heads".into(), json!(kv));
        fields.insert("num_ln_in_parallel_attn".into(), json!(if two_norms { 2 } else { 1 }));
    } else {
        fields.insert("multi_query".into(), json!(kv == 1));
    }
    fields.insert("bias".into(), json!(model.has("blk.0.attn_qkv.bias")));
    Ok(())
}

fn like_mpt(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    let mut attention = Fields::new();
    let bias = model.metadata.float(&model.key("attention.max_alibi_bias"))?;
    attention.insert("alibi".into(), json!(bias != Some(0.0)));
    model.copy("attention.max_alibi_bias", &mut attention, "alibi_bias_max")?;
    if model.metadata.float(&model.key("attention.clamp_kqv"))?.is_some_and(|clip| clip > 0.0) {
        model.copy("attention.clamp_kqv", &mut attention, "clip_qkv")?;
    }
    fields.insert("attn_config".into(), attention.into());
    Ok(())
}

fn like_bert(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    const COUNT: &str = "tokenizer.ggml.token_type_count";
    let causal = model.key("attention.causal");
    if model.metadata.bool(&causal)?.unwrap_or(false) {
        return Err(model.metadata.refuse(&causal, "false"));
    }
    let kinds = model.gguf.tensors.get(KINDS).and_then(|t| t.shape.first().copied());
    let kinds = kinds.unwrap_or(1);
    if model.metadata.count(COUNT)?.is_some_and(|n| n != kinds as u64) {
        return Err(model.metadata.refuse(COUNT, format!("{kinds}, the rows of `{KINDS}`")));
    }
    fields.insert("type_vocab_size".into(), json!(kinds));
    Ok(())
}

fn like_t5(model: &Model<'_>, fields: &mut Fields) -> Result<(), ConvertError> {
    for (usual, name) in
        [("hidden_size", "d_model"), ("num_hidden_layers", "num_layers"), ("num_attention_heads", "num_heads")]
    {
        if let Some(value) = fields.remove(usual) {
            fields.insert(name.into(), value);
        }
    }
    fields.insert("d_kv".into(), json!(model.head_dim()?));
    model.copy("decoder_block_count", fields, "num_decoder_layers")?;
    model.copy("decoder_start_token_id", fields, "decoder_start_token_id")?;
    model.copy("attention.relative_buckets_count", fields, "relative_attention_num_buckets")?;
    // The same number again.
    model.metadata.get(&model.key(LAYER));
    // Not in the file: these two are in use, with a gate and without.
    let network = if model.has("enc.blk.0.ffn_gate.weight") { "gated-gelu" } else { "relu" };
    fields.insert("feed_forward_proj".into(), json!(network));
    Ok(())
}

/// How hidden states become an embedding. Files say nothing about its length: it is 1, as llama.cpp gives them.
fn pooling(model: &Model<'_>) -> Result<Option<Pooling>, ConvertError> {
    let key = model.key("pooling_type");
    let kind = match model.metadata.count(&key)? {
        None | Some(0) => return Ok(None),
        Some(1) => PoolingKind::Mean,
        Some(2) => PoolingKind::Cls,
        Some(3) => PoolingKind::Last,
        Some(_) => return Err(model.metadata.refuse(&key, "0 (none), 1 (mean), 2 (cls) or 3 (last)")),
    };
    Ok(Some(Pooling { kind, normalize: true, ..Pooling::default() }))
}

/// Reads what a file says of its model.
pub(crate) fn describe(path: &Path, gguf: &Gguf) -> Result<Described, ConvertError> {
    const ARCHITECTURE: &str = "general.architecture";
    let metadata = &gguf.metadata;
    if metadata.count("split.count")?.is_some_and(|n| n > 1) {
        return Err(metadata.refuse("split.count", "one file: join them first"));
    }
    let name = metadata.text(ARCHITECTURE)?;
    let Some(architecture) = ARCHITECTURES.iter().find(|a| Some(a.name) == name) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        return Err(metadata.refuse(ARCHITECTURE, format!("one of: {}", known.join(", "))));
    };
    let size = |key: &str| Model::required(metadata, &format!("{}.{key}", architecture.name));
    let (d_model, n_layers, n_heads) = (size("embedding_length")?, size("block_count")?, size("attention.head_count")?);
    let model = Model { architecture, metadata, gguf, path, width: d_model, n_heads, n_layers };
    let Some(&[vocab_size, _]) = gguf.tensors.get(EMBEDDING).map(|t| t.shape.as_slice()) else {
        return Err(ConvertError::tensor(path, EMBEDDING, "missing, or not a matrix"));
    };
    if metadata.count(&model.key("vocab_size"))?.is_some_and(|n| n != vocab_size as u64) {
        let expected = format!("{vocab_size}, as `{EMBEDDING}` has");
        return Err(metadata.refuse(&model.key("vocab_size"), expected));
    }

    let mut fields = Fields::new();
    let mut set = |field: &str, value: Value| drop(fields.insert(field.into(), value));
    set("model_type", json!(architecture.tensors.model_type));
    set("hidden_size", json!(d_model));
    set("num_hidden_layers", json!(n_layers));
    set("num_attention_heads", json!(n_heads));
    set("vocab_size", json!(vocab_size));
    set(architecture.sizes[0], json!(size("context_length")?));
    set(architecture.sizes[1], json!(size("feed_forward_length")?));
    set("tie_word_embeddings", json!(!model.has(HEAD)));
    set("eos_token_id", ends(metadata, vocab_size)?);
    model.copy(architecture.eps[0], &mut fields, architecture.eps[1])?;
    (architecture.rest)(&model, &mut fields)?;
    // Says with which program the tensors were made.
    metadata.get(&model.key("tensor_data_layout"));

    let fused = architecture.name == "phi2" && model.has("blk.0.attn_qkv.weight");
    let family = if fused { &PHI_FUSED } else { architecture.tensors };
    let described = read_fields(&Config::of(&path.display().to_string(), fields))?;
    let mut described = Described { family, said_by: "metadata", ..described };
    if let Some(pooling) = pooling(&model)? {
        described.spec.pooling = pooling;
    }
    for key in metadata.unseen() {
        let Some(bare) = key.strip_prefix(architecture.name).and_then(|key| key.strip_prefix('.')) else { continue };
        let neutral = matches!(metadata.get(&key), Some(value) if value.is_neutral());
        if ACTIVE.contains(&bare) && !neutral {
            return Err(metadata.refuse(&key, "it to be absent: it changes the result, and is not supported here"));
        }
        described.left.ignored.push(shown(&key));
        if !neutral && !HARMLESS.contains(&bare) {
            described.left.unknown.push(shown(&key));
        }
    }
    Ok(described)
}

/// Keys of an architecture that say what is known anyway.
const HARMLESS: &[&str] =
    &["attention.head_count_kv", "rope.dimension_count", "attention.key_length", "attention.value_length"];

/// The tokens that end a text.
fn ends(metadata: &Metadata, vocab_size: usize) -> Result<Value, ConvertError> {
    let mut ids: Vec<u64> = Vec::new();
    for key in ["eos_token_id", "eot_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        // All bits are set where there is none.
        let Some(id) = metadata.count(&key)?.filter(|&id| id != u64::from(u32::MAX)) else { continue };
        if id >= vocab_size as u64 {
            return Err(metadata.refuse(&key, format!("less than {vocab_size}, the size of the vocabulary")));
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(json!(ids))
}
