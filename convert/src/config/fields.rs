//! What is known of config fields that a family does not read: whether they can matter.

use serde_json::{Value, json};

/// Fields that cannot change the result of inference: training, generation defaults, bookkeeping, and
/// precision or memory switches of the original implementation.
pub(super) const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "activation_dropout",
    "afn",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "custom_pipelines",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "emb_pdrop",
    "embd_pdrop",
    "embed_dropout",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "init_device",
    "init_std",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_dropout",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "tokenizer_name",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
    "verbose",
];

/// Fields that change the result in some architecture, and the value at which they do not
/// (besides null, false and empty ones).
pub(super) fn neutral_values(field: &str) -> Option<Value> {
    Some(match field {
        "position_embedding_type" => json!("absolute"),
        "rope_interleaved" | "alibi" | "use_alibi" | "sliding_window" | "use_sliding_window" => json!(false),
        "logit_scale"
        | "embedding_multiplier"
        | "residual_multiplier"
        | "logits_scaling"
        | "attention_multiplier"
        | "scale_embedding"
        | "pretraining_tp"
        | "embedding_scale" => json!(1),
        "rope_scaling"
        | "rope_parameters"
        | "rope_theta"
        | "rope_local_base_freq"
        | "rotary_pct"
        | "rotary_emb_base"
        | "rotary_dim"
        | "partial_rotary_factor"
        | "attention_window"
        | "attention_types"
        | "attention_layers"
        | "window_size"
        | "layer_types"
        | "max_window_layers"
        | "sliding_window_pattern"
        | "use_bidirectional_attention"
        | "use_mrope"
        | "num_key_value_heads"
        | "n_kv_heads"
        | "num_kv_heads"
        | "head_dim"
        | "kv_channels"
        | "multi_query"
        | "multi_query_attention"
        | "new_decoder_architecture"
        | "final_logit_softcapping"
        | "attn_logit_softcapping"
        | "attention_logit_cap"
        | "query_pre_attn_scalar"
        | "clip_qkv"
        | "parallel_attn"
        | "use_parallel_residual"
        | "parallel_residual"
        | "qk_layernorm"
        | "use_qk_norm"
        | "qk_norm"
        | "qkv_bias"
        | "use_qkv_bias"
        | "attention_bias"
        | "mlp_bias"
        | "bias"
        | "use_bias"
        | "enable_bias"
        | "layer_norm_elementwise_affine"
        | "no_bias"
        | "norm_type"
        | "normalization"
        | "rms_norm_eps"
        | "norm_epsilon"
        | "layer_norm_eps"
        | "layer_norm_epsilon"
        | "activation_function"
        | "hidden_act"
        | "hidden_activation"
        | "activation"
        | "gated_mlp"
        | "ffn_config"
        | "attn_config"
        | "do_layer_norm_before"
        | "apply_residual_connection_post_layernorm"
        | "word_embed_proj_dim"
        | "embedding_size"
        | "moe"
        | "num_experts"
        | "num_local_experts"
        | "n_routed_experts"
        | "scale_attn_weights"
        | "scale_attn_by_inverse_layer_idx"
        | "tie_word_embeddings"
        | "quantization_config"
        | "compression_config"
        | "auto_map"
        | "pruned_heads"
        | "add_cross_attention"
        | "is_encoder_decoder"
        | "adapters"
        | "encoder"
        | "decoder" => Value::Null,
        _ => return None,
    })
}
