//! Every key of a spec file: what it may be, what it is when left out, and where it belongs. The documentation is written from
//! this table, and messages about keys that nobody read come from it.

use super::kinds;
use crate::config::{Config, closest};
use crate::error::ConvertError;

/// A key.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it may be.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    pub(super) values: Values,
    /// What it is when left out; `required` when it must be there.
    pub(super) default: &'static str,
    /// It has an effect only where these other keys have one of these values.
    pub(super) with: &'static [(&'static str, &'static [&'static str])],
    /// What it says.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    pub(super) about: &'static str,
}

/// What a key may be.
#[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
pub(super) enum Values {
    /// So described.
    Like(&'static str),
    /// One of these.
    OneOf(fn() -> Vec<&'static str>),
}

const SIZE: Values = Values::Like("positive whole number");
const NUMBER: Values = Values::Like("positive number");
const FLAG: Values = Values::Like("true, false");
const LAYERS: Values = Values::Like("list of layers, counted from 0");

const ROTARY: (&str, &[&str]) = ("pos_type", &["rotary"]);
const ALIBI: (&str, &[&str]) = ("pos_type", &["alibi"]);
const SINUSOIDAL: (&str, &[&str]) = ("pos_type", &["sinusoidal"]);
const RELATIVE: (&str, &[&str]) = ("pos_type", &["relative_bias"]);
const DISTANCES: (&str, &[&str]) = ("pos_type", &["relative_bias", "transformer_xl"]);
const WINDOW: (&str, &[&str]) = ("attention_type", &["window", "alternating"]);
const SPARSE: (&str, &[&str]) = ("attention_type", &["sparse"]);
const QK_NORM: (&str, &[&str]) = ("qk_norm", &["per_head", "per_head_gain", "all_heads"]);
const MOE: (&str, &[&str]) = ("ffn_type", &["moe"]);
const HEAD: (&str, &[&str]) = ("head_type", &["tied", "untied"]);

const fn key(name: &'static str, values: Values, default: &'static str, about: &'static str) -> Key {
    Key { name, values, default, with: &[], about }
}

impl Key {
    const fn with(self, with: &'static [(&'static str, &'static [&'static str])]) -> Self {
        Self { with, ..self }
    }
}

/// All of them, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    key("name", Values::Like("text"), "custom", "what `inspect` calls the model"),
    key("vocab_size", SIZE, "required", "tokens of the vocabulary"),
    key("context_length", SIZE, "required", "positions that the model was trained for"),
    key("n_layers", SIZE, "required", "blocks"),
    key("d_model", SIZE, "required", "width of the residual stream"),
    key("n_heads", SIZE, "required", "query heads"),
    key("n_kv_heads", SIZE, "`n_heads`", "key and value heads; divides `n_heads` (1: multi-query, between: grouped-query)"),
    key("head_dim", SIZE, "`d_model` / `n_heads`", "width of a head"),
    key("bias", FLAG, "false", "the default of `qkv_bias`, `attn_out_bias` and `ffn_bias`"),
    key("eos_token_id", Values::Like("token id, or a list of them"), "none", "the tokens that end a text"),
    key("encoder_layers", SIZE, "none", "blocks of an encoder, like those of the decoder, that reads the text which the decoder writes about"),
    key("decoder_start_token_id", Values::Like("token id"), "0", "what the decoder's text begins with (only with `encoder_layers`)"),
    key("embedding_dim", SIZE, "`d_model`", "width of the token table, where a matrix leads from it to `d_model`"),
    key("embedding_scale", NUMBER, "1", "what the table's rows are multiplied by"),
    key("embedding_norm", FLAG, "false", "a norm between the embedding (positions added) and the first block"),
    key("pos_type", Values::OneOf(|| kinds::names(kinds::POSITIONS)), "required", "how a token learns where it stands"),
    key("rope_theta", NUMBER, "10000", "base of the frequencies").with(&[ROTARY]),
    key("rope_dims", SIZE, "`head_dim`", "dimensions of a head that turn; even").with(&[ROTARY]),
    key("rope_pairs", Values::OneOf(|| kinds::names(kinds::PAIRS)), "half", "which dimensions turn together: `i` and `i + rope_dims / 2` (half), or `2i` and `2i + 1`").with(&[ROTARY]),
    key("rope_exponent", SIZE, "`rope_dims`", "divisor in the exponents of the frequencies").with(&[ROTARY]),
    key("rope_scaling", Values::Like("mapping as in `config.json`"), "none", "`type` is linear, dynamic, llama3 or yarn, with `factor`, `original_max_position_embeddings` and the numbers of that type").with(&[ROTARY]),
    key("alibi_max_bias", NUMBER, "8", "exponent of the steepest slope").with(&[ALIBI]),
    key("alibi_bf16", FLAG, "false", "slopes and their products rounded to bf16, as Falcon has them").with(&[ALIBI]),
    key("sinusoidal_pairs", Values::OneOf(|| kinds::names(kinds::PAIRS)), "interleaved", "sine and cosine side by side, as in the paper, or all sines first, as in fairseq").with(&[SINUSOIDAL]),
    key("sinusoidal_offset", SIZE, "0", "position of the first token (2 in fairseq)").with(&[SINUSOIDAL]),
    key("relative_buckets", SIZE, "32", "ranges of distances, each with a bias for every head").with(&[RELATIVE]),
    key("relative_max_distance", SIZE, "128; `context_length` - 1 with transformer_xl", "distances from here on share a bias, or a key").with(&[DISTANCES]),
    key("norm_type", Values::OneOf(|| kinds::names(kinds::NORMS)), "required", "which normalization"),
    key("norm_eps", NUMBER, "1e-5", "added to the variance; the least length with scalenorm"),
    key("norm_gain", FLAG, "true", "whether norms have a gain (`weight`)"),
    key("norm_bias", FLAG, "true with layernorm, else false", "whether norms have a bias"),
    key("norm_placement", Values::OneOf(|| kinds::names(kinds::PLACES)), "pre", "`x + f(norm(x))` (pre), `norm(x + f(x))` (post), `x + norm(f(x))` (branch), `x + norm2(f(norm1(x)))` (sandwich)"),
    key("final_norm", FLAG, "true unless post", "a norm between the last block and the head"),
    key("residual_type", Values::OneOf(|| kinds::names(kinds::RESIDUALS)), "sequential", "attention and network one after the other, side by side with a norm each, side by side behind one norm, or sequential with `h = norm(x); x = h + f(h)`"),
    key("residual_scale", NUMBER, "1", "what the residual stream is multiplied by in every sum; the alpha of DeepNorm with `norm_placement` post"),
    key("branch_scale", NUMBER, "1", "what is added to it is multiplied by this"),
    key("attention_type", Values::OneOf(|| kinds::names(kinds::ATTENTIONS)), "full", "what a token sees: all before it, the last `window`, the last `window` in some layers, blocks of positions (sparse), all before it by sums of constant size (linear, with elu + 1), or its whole text"),
    key("sparse_block", SIZE, "required", "positions of a block").with(&[SPARSE]),
    key("sparse_local", SIZE, "1", "the last blocks that are seen whole, the query's own included").with(&[SPARSE]),
    key("sparse_stride", SIZE, "required", "of how many blocks one is seen from afar").with(&[SPARSE]),
    key("sparse_pattern", Values::OneOf(|| kinds::names(kinds::PATTERNS)), "strided", "every `sparse_stride`-th block back from the query's, or the last of every `sparse_stride` from the start of the text").with(&[SPARSE]),
    key("sparse_layers", LAYERS, "all", "the layers with blocks").with(&[SPARSE]),
    key("window", SIZE, "required", "positions that a query sees, its own included").with(&[WINDOW]),
    key("window_layers", LAYERS, "0, 2, 4, …", "the layers with a window").with(&[("attention_type", &["alternating"])]),
    key("window_rope_theta", NUMBER, "`rope_theta`", "base in layers with a window").with(&[WINDOW, ROTARY]),
    key("window_rope_dims", SIZE, "`rope_dims`", "the same of `rope_dims`").with(&[WINDOW, ROTARY]),
    key("window_rope_pairs", Values::OneOf(|| kinds::names(kinds::PAIRS)), "`rope_pairs`", "the same of `rope_pairs`").with(&[WINDOW, ROTARY]),
    key("window_rope_exponent", SIZE, "`window_rope_dims`", "the same of `rope_exponent`").with(&[WINDOW, ROTARY]),
    key("window_rope_scaling", Values::Like("mapping as `rope_scaling`"), "none beside another `window_rope_` key, else `rope_scaling`", "the same of `rope_scaling`").with(&[WINDOW, ROTARY]),
    key("qkv_bias", FLAG, "`bias`", "biases of queries, keys and values"),
    key("attn_out_bias", FLAG, "`bias`", "bias of the attention's output"),
    key("attention_scale", NUMBER, "1 / sqrt(`head_dim`)", "what products of queries and keys are multiplied by"),
    key("attention_scale_by_inverse_layer", FLAG, "false", "also divided by the layer, counted from 1"),
    key("attention_softcap", NUMBER, "none", "scores `s` become `c * tanh(s / c)`"),
    key("attention_sinks", FLAG, "false", "a trained score for each head that takes its share of the probabilities and has no value"),
    key("qkv_clip", NUMBER, "none", "queries, keys and values are clamped to plus and minus this"),
    key("qk_norm", Values::OneOf(|| kinds::names(kinds::QK_NORMS)), "none", "a norm of queries and keys before they turn: of each head (one gain for all, or one each), or of all heads together"),
    key("qk_norm_type", Values::OneOf(|| kinds::names(kinds::HEAD_NORMS)), "`norm_type`, required with scalenorm", "which").with(&[QK_NORM]),
    key("qk_norm_eps", NUMBER, "`norm_eps`", "added to its variance").with(&[QK_NORM]),
    key("qk_norm_gain", FLAG, "true", "whether it has a gain").with(&[QK_NORM]),
    key("qk_norm_bias", FLAG, "true with layernorm, else false", "whether it has a bias").with(&[QK_NORM]),
    key("ffn_type", Values::OneOf(|| kinds::names(kinds::NETWORKS)), "plain", "`down(act(up(x)))`, `down(act(gate(x)) * up(x))` (SwiGLU, GeGLU, ReGLU), or a mixture of experts"),
    key("ffn_dim", SIZE, "`expert_dim` with moe, else 4 × `d_model`", "inner width of the network"),
    key("ffn_bias", FLAG, "`bias`", "biases of the network"),
    key("activation", Values::OneOf(|| kinds::names(kinds::ACTIVATIONS)), "required", "the non-linearity; `gelu` is the exact one, `gelu_tanh` (also called `gelu_new`, `gelu_pytorch_tanh`) its approximation; `silu` is `swish`"),
    key("n_experts", SIZE, "required", "experts of a layer").with(&[MOE]),
    key("experts_per_token", SIZE, "required", "those that a token takes (top-k)").with(&[MOE]),
    key("expert_type", Values::OneOf(|| kinds::names(kinds::EXPERTS)), "gated", "the form of an expert, and of the network in layers without").with(&[MOE]),
    key("expert_dim", SIZE, "`ffn_dim`", "inner width of an expert").with(&[MOE]),
    key("norm_topk_prob", FLAG, "true", "probabilities of the chosen experts are divided by their sum").with(&[MOE]),
    key("shared_expert_dim", SIZE, "none", "inner width of one more expert that all tokens take, behind a sigmoid gate").with(&[MOE]),
    key("moe_layers", LAYERS, "all", "the layers with experts").with(&[MOE]),
    key("head_type", Values::OneOf(|| kinds::names(kinds::HEADS)), "tied", "whether the embedding is the output projection; none (always with bidirectional attention) is an encoder"),
    key("head_bias", FLAG, "false", "bias of the logits").with(&[HEAD]),
    key("logit_scale", NUMBER, "1", "what logits are multiplied by").with(&[HEAD]),
    key("logit_softcap", NUMBER, "none", "logits `x` become `c * tanh(x / c)`").with(&[HEAD]),
    key("pooling", Values::OneOf(|| kinds::names(kinds::POOLINGS)), "mean", "which hidden states make a text's embedding (`tidbit embed`)"),
    key("pooling_normalize", FLAG, "false", "whether it is divided by its length"),
    key("pooling_max_tokens", SIZE, "`context_length`", "the longest text that is embedded"),
];

/// What others call them.
const ALSO: &[(&str, &str)] = &[
    ("activation_function", "activation"),
    ("block_size", "context_length"),
    ("hidden_act", "activation"),
    ("hidden_dim", "ffn_dim"),
    ("hidden_size", "d_model"),
    ("intermediate_size", "ffn_dim"),
    ("max_position_embeddings", "context_length"),
    ("max_seq_len", "context_length"),
    ("n_ctx", "context_length"),
    ("n_embd", "d_model"),
    ("n_positions", "context_length"),
    ("num_attention_heads", "n_heads"),
    ("num_experts", "n_experts"),
    ("num_experts_per_tok", "experts_per_token"),
    ("num_hidden_layers", "n_layers"),
    ("num_key_value_heads", "n_kv_heads"),
    ("rms_norm_eps", "norm_eps"),
    ("sliding_window", "window"),
    ("tie_word_embeddings", "head_type"),
    ("top_k", "experts_per_token"),
    ("width", "d_model"),
];

/// Refuses a key that there is not: first of all, because one that is misspelt is also missing.
pub(super) fn refuse_unknown(config: &Config) -> Result<(), ConvertError> {
    let known = |name: &str| KEYS.iter().any(|key| key.name == name);
    let Some(name) = config.names().find(|name| !known(name)) else { return Ok(()) };
    let also = ALSO.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours);
    let hint = match also.or_else(|| closest(name, KEYS.iter().map(|key| key.name))) {
        Some(key) => format!("did you mean `{key}`?"),
        None => "docs/model-files.md has all keys".into(),
    };
    Err(config.refuse(name, format!("no such key; {hint}")))
}

/// Refuses a key that nobody read, because it belongs to another value of another key.
pub(super) fn refuse_unread(config: &Config) -> Result<(), ConvertError> {
    let unread = config.unread();
    let Some((name, key)) = unread.iter().find_map(|name| Some((*name, KEYS.iter().find(|key| key.name == *name)?)))
    else {
        return Ok(());
    };
    for (other, values) in key.with {
        let default = || KEYS.iter().find(|key| key.name == *other).map_or("", |key| key.default).to_owned();
        let found = config.text(other)?.unwrap_or_else(default);
        if !values.contains(&found.as_str()) {
            let expected = format!("it only with `{other}` {}, which is {found}", values.join(" or "));
            return Err(config.refuse(name, expected));
        }
    }
    Err(config.refuse(name, "it to be absent: it has no effect here"))
}
