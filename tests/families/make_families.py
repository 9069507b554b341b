"""Makes a tiny random checkpoint of every family with Hugging Face transformers, and the outputs expected of it.

usage: make_families.py OUT_DIR [NAME...]

OUT_DIR/NAME gets config.json, model.safetensors and expected.safetensors; with NAMEs, only those cases are made anew.
README.md beside this file says what each is for and what is in expected.safetensors. Run it by hand when a case changes;
CI does not. It takes a minute on one CPU core; outputs of another processor may differ in the last digits. In a Python
environment with torch 2.15, transformers 5.23 and safetensors 0.8, from the root of the repository:

    python tests/families/make_families.py tests/families

A case is a config as hub checkpoints carry it (old spelling) or as transformers 5 writes it (`rope_parameters`), and what
to change in the tensors' names. The reference is computed from the files as written: transformers reads them back, in
float32, with plain ("eager") attention but where that is wrong. Each decoder also runs token by token and in chunks of 7
with its cache, in float64, and with the other attention ("sdpa"); what differs from the single pass is printed, and fails
unless the case says that it is known to differ. And each config field named in MATTERS is changed, to see that the fixture
would notice; each in IGNORED, that nothing moves.
"""
import argparse, json, logging, pathlib, re, tempfile, zlib
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

CHUNK = 7
SAME = 5e-5  # largest difference between ways to compute the same, in units of the logits' standard deviation
FILE_LIMIT, TOTAL_LIMIT = 150_000, 4_000_000

# ---------------------------------------------------------------- cases

GPT2 = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=71, n_positions=64, n_ctx=64, n_embd=30,
            n_head=3, n_layer=2, layer_norm_epsilon=2e-3, bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0,
            resid_pdrop=0.0)
NEOX = dict(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], vocab_size=71, max_position_embeddings=64,
            hidden_size=36, num_attention_heads=3, num_hidden_layers=2, intermediate_size=76, hidden_act="gelu",
            layer_norm_eps=2e-3, rotary_pct=0.25, rotary_emb_base=10000, use_parallel_residual=True,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
NEO = dict(model_type="gpt_neo", architectures=["GPTNeoForCausalLM"], vocab_size=71, max_position_embeddings=48,
           hidden_size=24, num_heads=3, num_layers=4, attention_types=[[["global", "local"], 2]], window_size=9,
           attention_layers=["global", "local", "global", "local"], intermediate_size=None,
           activation_function="gelu_new", layer_norm_epsilon=2e-3, bos_token_id=0, eos_token_id=0, attention_dropout=0,
           embed_dropout=0, resid_dropout=0)
GPTJ = dict(model_type="gptj", architectures=["GPTJForCausalLM"], vocab_size=71, n_positions=48, n_embd=32, n_head=4,
            n_layer=2, n_inner=None, rotary_dim=4, activation_function="gelu_new", layer_norm_epsilon=2e-3,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, rotary=True, scale_attn_weights=True)
OPT = dict(model_type="opt", architectures=["OPTForCausalLM"], vocab_size=71, max_position_embeddings=64, hidden_size=30,
           num_attention_heads=3, num_hidden_layers=2, ffn_dim=76, word_embed_proj_dim=30, activation_function="relu",
           do_layer_norm_before=True, _remove_final_layer_norm=False, dropout=0.0, attention_dropout=0.0, layerdrop=0.0,
           bos_token_id=2, eos_token_id=2, pad_token_id=1, prefix="</s>")
BLOOM = dict(model_type="bloom", architectures=["BloomForCausalLM"], vocab_size=71, n_embed=36, n_layer=2,
             num_attention_heads=9, layer_norm_epsilon=2e-3, apply_residual_connection_post_layernorm=False,
             hidden_dropout=0.0, attention_dropout=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=3, pretraining_tp=2,
             seq_length=32, skip_bias_add=True, slow_but_exact=False, unk_token_id=0, offset_alibi=100, bias_dropout_fusion=True)
MPT_ATTN = dict(alibi=True, alibi_bias_max=8, attn_impl="torch", attn_pdrop=0, attn_type="multihead_attention",
                attn_uses_sequence_id=False, clip_qkv=None, prefix_lm=False, qk_ln=False, softmax_scale=None)
MPT = dict(model_type="mpt", architectures=["MPTForCausalLM"], vocab_size=71, d_model=36, n_heads=9, n_layers=2,
           expansion_ratio=4, max_seq_len=64, attn_config=MPT_ATTN, emb_pdrop=0, resid_pdrop=0, embedding_fraction=1.0,
           init_device="cpu", learned_pos_emb=True, logit_scale=None, no_bias=True, norm_type="low_precision_layernorm",
           tokenizer_name="EleutherAI/gpt-neox-20b", use_cache=False, verbose=0)
FALCON = dict(model_type="falcon", architectures=["FalconForCausalLM"], vocab_size=71, hidden_size=30,
              num_attention_heads=5, num_hidden_layers=2, layer_norm_epsilon=2e-3, alibi=False, bias=False,
              multi_query=True, new_decoder_architecture=False, parallel_attn=True, hidden_dropout=0.0,
              attention_dropout=0.0, bos_token_id=11, eos_token_id=11)
PHI = dict(model_type="phi", architectures=["PhiForCausalLM"], vocab_size=71, hidden_size=32, num_attention_heads=2,
           num_key_value_heads=None, num_hidden_layers=2, intermediate_size=76, hidden_act="gelu_new",
           max_position_embeddings=64, layer_norm_eps=2e-3, partial_rotary_factor=0.5, qk_layernorm=False,
           rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False, attention_dropout=0.0, embd_pdrop=0.0,
           resid_pdrop=0.0, bos_token_id=None, eos_token_id=None)
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=71, hidden_size=32,
             num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2, intermediate_size=52, hidden_act="silu",
             max_position_embeddings=64, rms_norm_eps=2e-3, rope_scaling=None, rope_theta=10000.0, attention_bias=False,
             attention_dropout=0.0, pretraining_tp=1, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
MISTRAL = dict(model_type="mistral", architectures=["MistralForCausalLM"], vocab_size=71, hidden_size=32,
               num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=60, hidden_act="silu",
               max_position_embeddings=128, rms_norm_eps=2e-3, rope_theta=10000.0, sliding_window=16,
               attention_dropout=0.0, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
MIXTRAL = dict(MISTRAL, model_type="mixtral", architectures=["MixtralForCausalLM"], hidden_size=32, intermediate_size=20,
               num_local_experts=4, num_experts_per_tok=2, rope_theta=1000000.0, sliding_window=None,
               output_router_logits=False, router_aux_loss_coef=0.02)
QWEN2 = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=71, hidden_size=36,
             num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=60, hidden_act="silu",
             max_position_embeddings=64, max_window_layers=2, rms_norm_eps=2e-3, rope_theta=1000000.0,
             sliding_window=16, use_sliding_window=False, tie_word_embeddings=True, attention_dropout=0.0,
             bos_token_id=1, eos_token_id=2)
QWEN2MOE = dict(QWEN2, model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"], hidden_size=32,
                num_attention_heads=4, num_key_value_heads=4, intermediate_size=44, num_experts=5, num_experts_per_tok=2,
                moe_intermediate_size=12, shared_expert_intermediate_size=20, norm_topk_prob=False, decoder_sparse_step=1,
                mlp_only_layers=[], output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=False)
QWEN3 = dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=71, hidden_size=32, head_dim=12,
             num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=52, hidden_act="silu",
             max_position_embeddings=64, max_window_layers=2, rms_norm_eps=2e-3, rope_theta=1000000.0, rope_scaling=None,
             sliding_window=None, use_sliding_window=False, attention_bias=False, attention_dropout=0.0,
             tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
QWEN3MOE = dict(QWEN3, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=5,
                num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[],
                output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=False)
GEMMA = dict(model_type="gemma", architectures=["GemmaForCausalLM"], vocab_size=71, hidden_size=32, head_dim=16,
             num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2, intermediate_size=72, hidden_act="gelu",
             max_position_embeddings=64, rms_norm_eps=2e-3, rope_scaling=None, rope_theta=10000.0, attention_bias=False,
             attention_dropout=0.0, bos_token_id=2, eos_token_id=1, pad_token_id=0)
GEMMA2 = dict(model_type="gemma2", architectures=["Gemma2ForCausalLM"], vocab_size=71, hidden_size=32, head_dim=12,
              num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=36,
              hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", max_position_embeddings=64,
              rms_norm_eps=2e-3, rope_theta=10000.0, attention_bias=False, attention_dropout=0.0,
              attn_logit_softcapping=5.0, final_logit_softcapping=3.0, query_pre_attn_scalar=20, sliding_window=12,
              sliding_window_size=12, cache_implementation="hybrid", bos_token_id=2, eos_token_id=1, pad_token_id=0)
GEMMA3 = dict(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], vocab_size=71, hidden_size=32, head_dim=12,
              num_attention_heads=4, num_key_value_heads=1, num_hidden_layers=3, intermediate_size=44,
              hidden_activation="gelu_pytorch_tanh", max_position_embeddings=128, rms_norm_eps=2e-3,
              rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0),
              attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None, final_logit_softcapping=None,
              query_pre_attn_scalar=20, sliding_window=12, sliding_window_pattern=3, cache_implementation="hybrid",
              bos_token_id=2, eos_token_id=1, pad_token_id=0)
GEMMA3MM = dict(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], boi_token_index=60, eoi_token_index=61,
                image_token_index=62, mm_tokens_per_image=4, eos_token_id=[1, 2], initializer_range=0.02,
                text_config=dict(model_type="gemma3_text", hidden_size=32, head_dim=12, intermediate_size=36, num_attention_heads=2,
                                 num_hidden_layers=2, num_key_value_heads=1, sliding_window=12, sliding_window_pattern=2,
                                 query_pre_attn_scalar=20, vocab_size=71, rope_scaling=dict(rope_type="linear", factor=8.0)),
                vision_config=dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                   num_attention_heads=1, image_size=16, patch_size=8, num_channels=1, vision_use_head=False))
OLMO = dict(model_type="olmo", architectures=["OlmoForCausalLM"], vocab_size=71, hidden_size=32, num_attention_heads=4,
            num_key_value_heads=4, num_hidden_layers=2, intermediate_size=52, hidden_act="silu", clip_qkv=1.5,
            max_position_embeddings=64, rope_scaling=None, rope_theta=10000.0, attention_bias=False,
            attention_dropout=0.0, tie_word_embeddings=False, eos_token_id=0, pad_token_id=1)
OLMO2 = dict(model_type="olmo2", architectures=["Olmo2ForCausalLM"], vocab_size=71, hidden_size=32,
             num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=60, hidden_act="silu",
             max_position_embeddings=64, rms_norm_eps=2e-3, rope_scaling=None, rope_theta=500000, attention_bias=False,
             attention_dropout=0.0, tie_word_embeddings=False, eos_token_id=0, pad_token_id=1)
STABLELM = dict(model_type="stablelm", architectures=["StableLmForCausalLM"], vocab_size=71, hidden_size=32,
                num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=52,
                hidden_act="silu", max_position_embeddings=64, layer_norm_eps=2e-3, partial_rotary_factor=0.25,
                rope_theta=10000, rope_scaling=None, use_qkv_bias=True, use_parallel_residual=False, qk_layernorm=False,
                tie_word_embeddings=False, attention_dropout=0.0, hidden_dropout=0.0, bos_token_id=0, eos_token_id=0)
BERT = dict(model_type="bert", architectures=["BertModel"], vocab_size=71, hidden_size=36, num_attention_heads=3,
            num_hidden_layers=2, intermediate_size=76, hidden_act="gelu", max_position_embeddings=64, type_vocab_size=2,
            layer_norm_eps=2e-3, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, pad_token_id=0,
            position_embedding_type="absolute", classifier_dropout=None, gradient_checkpointing=False, use_cache=True)
ROBERTA = dict(BERT, model_type="roberta", architectures=["RobertaForMaskedLM"], hidden_size=30, num_attention_heads=3,
               intermediate_size=60,
               max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=2e-3, pad_token_id=1, bos_token_id=0,
               eos_token_id=2)
T5 = dict(model_type="t5", architectures=["T5ForConditionalGeneration"], vocab_size=71, d_model=32, d_kv=8, d_ff=52,
          num_heads=3, num_layers=2, num_decoder_layers=2, relative_attention_num_buckets=16,
          relative_attention_max_distance=24, dropout_rate=0.0, feed_forward_proj="relu", layer_norm_epsilon=2e-3,
          is_encoder_decoder=True, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, n_positions=64,
          initializer_factor=1.0, output_past=True)
MT5 = dict({k: v for k, v in T5.items() if k not in ("n_positions", "relative_attention_max_distance")}, model_type="mt5",
           architectures=["MT5ForConditionalGeneration"], feed_forward_proj="gated-gelu", num_decoder_layers=None,
           tie_word_embeddings=False, tokenizer_class="T5Tokenizer", relative_attention_num_buckets=32)


class Case:
    """One fixture: the config on disk, the text's length, the stored type, and changes to the tensors' names.

    `names` maps the state as transformers saves it to the state as written; `own_head` says that it adds an output
    projection to a model that transformers makes tied. `as_v5` writes the config as transformers 5 saves it. `attention` is
    transformers' implementation for the reference. `differs` names the ways of computing that are known to give something
    else than the single pass, which (but for "eager") are then stored as well. `short` is a length within the trained one to
    store on its own.
    """

    def __init__(self, base, tokens=40, dtype="float16", names=None, as_v5=False, differs=(), short=None, drop=(),
                 own_head=False, attention="eager", **change):
        self.config = {k: v for k, v in (base | change).items() if k not in drop}
        self.tokens, self.dtype, self.names, self.as_v5 = tokens, dtype, names, as_v5
        self.differs, self.short, self.own_head, self.attention = differs, short, own_head, attention


def without(prefix):
    """Names without a prefix, as many hub checkpoints have them."""
    return lambda state, config: {k.removeprefix(prefix): v for k, v in state.items()}


def causal_buffers(pattern, layers="num_hidden_layers"):
    """Adds the mask buffers that checkpoints of old transformers versions carry."""
    def change(state, config):
        n = config.max_position_embeddings
        for i in range(config.num_hidden_layers):
            state[pattern.format(i) + "bias"] = torch.tril(torch.ones(n, n, dtype=torch.bool)).view(1, 1, n, n)
            state[pattern.format(i) + "masked_bias"] = torch.tensor(-1e9)
        return state
    return change


def rotary_buffers(state, config):
    d = config.head_dim
    for i in range(config.num_hidden_layers):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, d, 2).float() / d)
    return state


def bert_old(state, config):
    """bert-base-uncased: `bert.` in front, `gamma` and `beta`, and the heads of pretraining."""
    out = {}
    for k, v in state.items():
        if "LayerNorm" in k:
            k = k.replace("weight", "gamma").replace("bias", "beta")
        out["bert." + k] = v
    d = config.hidden_size
    return out | {"cls.seq_relationship.weight": torch.ones(2, d).half(), "cls.seq_relationship.bias": torch.ones(2).half(),
                  "cls.predictions.bias": torch.ones(config.vocab_size).half()}


def roberta_hub(state, config):
    """roberta-base: `roberta.` in front, and the head of pretraining."""
    d = config.hidden_size
    return {"roberta." + k: v for k, v in state.items()} | {
        "lm_head.bias": torch.ones(config.vocab_size).half(), "lm_head.dense.weight": torch.ones(d, d).half(),
        "lm_head.dense.bias": torch.ones(d).half(), "lm_head.layer_norm.weight": torch.ones(d).half(),
        "lm_head.layer_norm.bias": torch.ones(d).half()}


def gemma3_hub(state, config):
    """gemma-3-4b on the hub has one name more in the path of the vision tower."""
    return {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in state.items()}


def position_ids(state, config):
    """sentence-transformers' MiniLM carries this buffer."""
    return state | {"embeddings.position_ids": torch.arange(config.max_position_embeddings)[None]}


def own_head(state, config):
    """Flan-T5 has a head of its own, which transformers 5 cannot make from a config, but loads."""
    shape, gen = state["shared.weight"].shape, torch.Generator().manual_seed(7)
    return state | {"lm_head.weight": (torch.randn(shape, generator=gen) * 1.5 / shape[1] ** 0.5).bfloat16()}


def t5_three_embeddings(state, config):
    """t5-small stores its one embedding three times."""
    same = state["shared.weight"]
    return state | {"encoder.embed_tokens.weight": same.clone(), "decoder.embed_tokens.weight": same.clone()}


YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CASES = {
    "gpt2-cerebras": Case(GPT2, 56, activation_function="gelu", n_inner=76, scale_attn_weights=True,
                          scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False),
    "neox-pythia": Case(NEOX, as_v5=True),
    "neox-linear": Case(NEOX, 48, max_position_embeddings=24, rotary_pct=0.5, hidden_act="gelu_fast", tie_word_embeddings=True,
                        rope_scaling=dict(type="linear", factor=4.0)),
    "gptneo": Case(NEO, intermediate_size=52, names=causal_buffers("transformer.h.{}.attn.attention.")),
    "gptneo-pattern": Case(NEO, attention_types=[[["local", "global"], 1], [["local"], 1]], num_layers=3, window_size=5,
                           activation_function="relu",
                           tie_word_embeddings=False, dtype="bfloat16", drop=("attention_layers",)),
    "gptj": Case(GPTJ, 48, names=causal_buffers("transformer.h.{}.attn.")),
    "gptj-inner": Case(GPTJ, n_inner=60, n_embd=40, rotary_dim=8, n_head=5, activation_function="gelu", dtype="bfloat16"),
    "opt-125m": Case(OPT, 60),
    "opt-350m": Case(OPT, do_layer_norm_before=False, word_embed_proj_dim=20, names=without("model."), dtype="bfloat16"),
    "opt-nobias": Case(OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu",
                       _remove_final_layer_norm=True,
                       word_embed_proj_dim=20, ffn_dim=60, tie_word_embeddings=False),
    "bloom": Case(BLOOM, 48, names=without("transformer.")),
    "bloom-residual": Case(BLOOM, n_embed=30, num_attention_heads=3, apply_residual_connection_post_layernorm=True,
                           pretraining_tp=1, dtype="bfloat16"),
    "mpt": Case(MPT, 48, dtype="bfloat16"),
    "mpt-clip": Case(MPT, d_model=30, n_heads=3, attn_config=MPT_ATTN | dict(clip_qkv=1.5, softmax_scale=0.2)),
    "falcon-7b": Case(FALCON, 56, ffn_hidden_size=100, dtype="bfloat16"),
    "falcon-40b": Case(FALCON, hidden_size=40, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, ffn_hidden_size=76),
    "falcon-11b": Case(FALCON, hidden_size=32, num_attention_heads=4, num_kv_heads=1, new_decoder_architecture=True, ffn_hidden_size=76,
                       num_ln_in_parallel_attn=1, rope_theta=500042.0, max_position_embeddings=64, tie_word_embeddings=False,
                       activation="gelu"),
    "falcon-rw": Case(FALCON, 48, hidden_size=36, num_attention_heads=9, alibi=True, bias=True, multi_query=False,
                      parallel_attn=False, ffn_hidden_size=60, dtype="bfloat16", attention="sdpa", differs=("eager",)),
    "falcon-rope-mha": Case(FALCON, num_attention_heads=4, bias=True, multi_query=False, parallel_attn=True, hidden_size=32,
                            ffn_hidden_size=60, rope_scaling=dict(type="linear", factor=2.0)),
    "phi-1": Case(PHI, 56),
    "phi-2": Case(PHI, hidden_size=30, num_attention_heads=3, num_key_value_heads=3, partial_rotary_factor=0.4),
    "phi-qknorm": Case(PHI, hidden_size=40, num_attention_heads=4, intermediate_size=44, num_key_value_heads=2, qk_layernorm=True, as_v5=True,
                       partial_rotary_factor=0.4, dtype="bfloat16"),
    "llama-1": Case(LLAMA, names=rotary_buffers, rms_norm_eps=2e-3, drop=("rope_theta", "num_key_value_heads",
                    "attention_bias", "rope_scaling"), pretraining_tp=2),
    "llama-smollm": Case(LLAMA, hidden_size=36, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                         rope_theta=100000, dtype="bfloat16", rope_interleaved=False),
    "llama-bias": Case(LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu", head_dim=10, num_key_value_heads=2,
                       as_v5=True),
    "llama-linear": Case(LLAMA, 64, max_position_embeddings=16, rope_scaling=dict(type="linear", factor=4.0)),
    "llama-dynamic": Case(LLAMA, 40, max_position_embeddings=20, rope_scaling=dict(type="dynamic", factor=2.0),
                          differs=("steps", "chunks"), short=16),
    "llama-yarn": Case(LLAMA, 64, max_position_embeddings=128, rope_scaling=YARN, num_attention_heads=2, num_key_value_heads=1,
                       rope_theta=50.0),
    "llama-yarn-set": Case(LLAMA, 64, num_attention_heads=2, num_key_value_heads=2, dtype="bfloat16",
                           max_position_embeddings=64, rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=3.0,
                           original_max_position_embeddings=24, beta_fast=4, beta_slow=0.5, attention_factor=0.9,
                           truncate=False), drop=("rope_theta", "rope_scaling")),
    "llama-3": Case(LLAMA, 72, num_attention_heads=2, num_key_value_heads=1, dtype="bfloat16",
                    rope_theta=500000.0, rope_scaling=LLAMA3, max_position_embeddings=256, mlp_bias=False,
                    eos_token_id=[2, 3], tie_word_embeddings=True),
    "mistral-window": Case(MISTRAL, 64, dtype="bfloat16"),
    "mistral-nemo": Case(MISTRAL, head_dim=12, sliding_window=None, num_key_value_heads=1, rope_theta=1000000.0),
    "mixtral": Case(MIXTRAL),
    "mixtral-window": Case(MIXTRAL, 56, num_local_experts=5, num_experts_per_tok=3, sliding_window=12, dtype="bfloat16",
                           intermediate_size=14),
    "qwen2": Case(QWEN2, 56, dtype="bfloat16"),
    "qwen2-window": Case(QWEN2, 48, num_hidden_layers=3, intermediate_size=32, use_sliding_window=True, max_window_layers=1, sliding_window=12,
                         tie_word_embeddings=False),
    "qwen2-yarn": Case(QWEN2, 64, rope_scaling=YARN, max_position_embeddings=32, dtype="bfloat16"),
    "qwen3": Case(QWEN3, 56, dtype="bfloat16"),
    "qwen3-window": Case(QWEN3, 48, num_hidden_layers=3, intermediate_size=36, use_sliding_window=True, max_window_layers=1, sliding_window=10,
                         attention_bias=True, tie_word_embeddings=False, as_v5=True),
    "qwen2-moe": Case(QWEN2MOE),
    "qwen3-moe": Case(QWEN3MOE, dtype="bfloat16", intermediate_size=28, num_hidden_layers=3),
    "gemma-1": Case(GEMMA, 56, dtype="bfloat16"),
    "gemma-2": Case(GEMMA2, 56, dtype="bfloat16"),
    "gemma-2-nocap": Case(GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None,
                          as_v5=True),
    "gemma-3": Case(GEMMA3, 64, dtype="bfloat16"),
    "gemma-3-layers": Case(GEMMA3, as_v5=True, sliding_window_pattern=2, num_key_value_heads=2),
    "gemma-3-vision": Case(GEMMA3MM, dtype="bfloat16", names=gemma3_hub),
    "olmo-1": Case(OLMO, 56),
    "olmo-1-tied": Case(OLMO, clip_qkv=None, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True,
                        dtype="bfloat16"),
    "olmo-2": Case(OLMO2, 56, dtype="bfloat16"),
    "stablelm-2": Case(STABLELM, 56),
    "stablelm-2-12b": Case(STABLELM, hidden_size=40, num_attention_heads=4, num_key_value_heads=2, partial_rotary_factor=0.4,
                           use_qkv_bias=False, use_parallel_residual=True, qk_layernorm=True, dtype="bfloat16"),
    "bert": Case(BERT, names=bert_old),
    "minilm": Case(BERT, names=position_ids, layer_norm_eps=1e-12, hidden_size=24, num_hidden_layers=3, intermediate_size=52, hidden_act="gelu_new"),
    "roberta": Case(ROBERTA, names=roberta_hub, dtype="bfloat16"),
    "t5": Case(T5, d_ff=28, names=t5_three_embeddings),
    "flan-t5": Case(T5, num_layers=2, num_decoder_layers=1, feed_forward_proj="gated-gelu", d_ff=36,
                    tie_word_embeddings=False, dtype="bfloat16", names=own_head, own_head=True),
    "mt5": Case(MT5, names=own_head, own_head=True, d_ff=40, num_heads=2, d_kv=12, num_layers=1),
    "t5-tied-gated": Case(T5, feed_forward_proj="gated-silu", d_ff=28, num_layers=1, num_decoder_layers=2, num_heads=2),
}


DROP = object()  # in a change of the config: the key is taken out


def attn(**change):
    return dict(attn_config=MPT_ATTN | change)


def rope(base, **change):
    return dict(rope_scaling=base | change)


YARN_SET = CASES["llama-yarn-set"].config["rope_parameters"]
# What changing one field does, everything else (weights, text) as it is. `MATTERS` must move the outputs by more than 5e-4 of
# their standard deviation (most move them by more than 0.03; the two forms of GELU are as close as that). `IGNORED` must not
# move them at all: transformers does not read it (any more), or what it says is said elsewhere.
MATTERS = {
    "gpt2-cerebras": [dict(activation_function="gelu_new"), dict(scale_attn_weights=False), dict(layer_norm_epsilon=1e-5),
                      dict(scale_attn_by_inverse_layer_idx=True)],
    "neox-pythia": [dict(use_parallel_residual=False), dict(hidden_act="relu"), dict(layer_norm_eps=1e-5),
                    dict(rope_parameters=dict(rope_theta=500, partial_rotary_factor=0.25, rope_type="default")),
                    dict(rope_parameters=dict(rope_theta=10000, partial_rotary_factor=0.5, rope_type="default"))],
    "neox-linear": [dict(rope_scaling=None), dict(rope_scaling=dict(type="linear", factor=2.0)), dict(rotary_pct=0.25),
                    dict(rotary_emb_base=500)],
    "gptneo": [dict(window_size=10), dict(attention_layers=["local"] * 4), dict(activation_function="relu"),
               dict(layer_norm_epsilon=1e-5)],
    "gptneo-pattern": [dict(window_size=6), dict(attention_types=[[["local"], 3]])],
    "gptj": [dict(rotary_dim=6), dict(activation_function="relu"), dict(layer_norm_epsilon=1e-5)],
    "opt-125m": [dict(activation_function="gelu"), dict(do_layer_norm_before=False), dict(_remove_final_layer_norm=True)],
    "bloom": [dict(apply_residual_connection_post_layernorm=True), dict(layer_norm_epsilon=1e-5)],
    "mpt-clip": [attn(clip_qkv=None, softmax_scale=0.2), attn(clip_qkv=1.5), dict(layer_norm_epsilon=2e-3)],
    "falcon-7b": [dict(activation="relu"), dict(layer_norm_epsilon=1e-5), dict(rope_theta=500.0), dict(alibi=True)],
    "falcon-11b": [dict(rope_theta=500.0)],
    "falcon-rw": [dict(alibi=False)],
    "falcon-rope-mha": [dict(rope_scaling=None)],
    "phi-1": [dict(partial_rotary_factor=0.25), dict(partial_rotary_factor=1.0), dict(hidden_act="gelu"), dict(rope_theta=500.0),
              dict(layer_norm_eps=1e-5)],
    "llama-1": [dict(rope_theta=500.0), dict(rms_norm_eps=1e-5), dict(hidden_act="gelu")],
    "llama-linear": [dict(rope_scaling=None), dict(rope_scaling=dict(type="linear", factor=2.0))],
    "llama-dynamic": [dict(rope_scaling=None), dict(rope_scaling=dict(type="dynamic", factor=4.0)), dict(max_position_embeddings=16)],
    "llama-yarn": [rope(YARN, factor=2.0), rope(YARN, original_max_position_embeddings=24), rope(YARN, beta_fast=2),
                   rope(YARN, beta_slow=0.2), rope(YARN, attention_factor=1.0), rope(YARN, mscale=1.0, mscale_all_dim=0.5)],
    "llama-yarn-set": [dict(rope_parameters=YARN_SET | c) for c in (
        dict(rope_theta=500.0), dict(factor=2.0), dict(original_max_position_embeddings=32), dict(beta_fast=2),
        dict(beta_slow=0.2), dict(attention_factor=1.0), dict(truncate=True))],
    "llama-3": [rope(LLAMA3, factor=4.0), rope(LLAMA3, low_freq_factor=0.5), rope(LLAMA3, high_freq_factor=3.0),
                rope(LLAMA3, original_max_position_embeddings=48)],
    "mistral-window": [dict(sliding_window=17), dict(sliding_window=None), dict(sliding_window=DROP)],
    "mixtral": [dict(num_experts_per_tok=1), dict(sliding_window=8), dict(rope_theta=500.0)],
    "mixtral-window": [dict(sliding_window=13), dict(num_experts_per_tok=2)],
    "qwen2-window": [dict(sliding_window=13), dict(max_window_layers=2), dict(max_window_layers=0), dict(use_sliding_window=False)],
    "qwen3": [dict(rope_theta=500.0), dict(rms_norm_eps=1e-5)],
    "qwen2-moe": [dict(norm_topk_prob=True), dict(num_experts_per_tok=3)],
    "qwen3-moe": [dict(norm_topk_prob=False), dict(num_experts_per_tok=2)],
    "gemma-1": [dict(hidden_act="relu"), dict(rms_norm_eps=1e-5)],
    "gemma-2": [dict(attn_logit_softcapping=None), dict(final_logit_softcapping=None), dict(query_pre_attn_scalar=12),
                dict(sliding_window=13), dict(hidden_activation="relu"), dict(layer_types=["full_attention"] * 3)],
    "gemma-3": [dict(query_pre_attn_scalar=12), dict(sliding_window=13), dict(sliding_window_pattern=2),
                dict(rope_local_base_freq=500.0), dict(rope_theta=500.0), dict(rope_scaling=None), dict(final_logit_softcapping=3.0)],
    "olmo-1": [dict(clip_qkv=1.4), dict(clip_qkv=None)],
    "olmo-2": [dict(rms_norm_eps=1e-5), dict(rope_theta=500.0)],
    "stablelm-2": [dict(partial_rotary_factor=0.5), dict(partial_rotary_factor=1.0), dict(layer_norm_eps=1e-5), dict(hidden_act="gelu"),
                   dict(use_parallel_residual=True)],
    "bert": [dict(layer_norm_eps=1e-5), dict(hidden_act="relu")],
    "roberta": [dict(pad_token_id=0)],
    "t5": [dict(relative_attention_max_distance=12), dict(layer_norm_epsilon=1e-5), dict(feed_forward_proj="gelu"),
           dict(tie_word_embeddings=False), dict(scale_decoder_outputs=False)],
    "flan-t5": [dict(feed_forward_proj="gated-relu"), dict(tie_word_embeddings=True)],
}
IGNORED = {
    "gpt2-cerebras": [dict(reorder_and_upcast_attn=True), dict(n_ctx=32)],
    "neox-linear": [dict(max_position_embeddings=64)],
    "gptneo": [dict(attention_types=[[["local", "global"], 2]])],
    "gptj": [dict(rotary=False), dict(scale_attn_weights=False)],
    "opt-125m": [dict(prefix=None)],
    "bloom": [dict(pretraining_tp=1), dict(seq_length=8), dict(offset_alibi=0), dict(skip_bias_add=False)],
    "mpt": [dict(learned_pos_emb=False), dict(logit_scale=0.5), dict(no_bias=False), dict(expansion_ratio=2), dict(norm_type="rmsnorm"),
            dict(embedding_fraction=0.5), attn(alibi=False), attn(alibi_bias_max=4), attn(qk_ln=True), attn(prefix_lm=True),
            attn(attn_type="multiquery_attention"), attn(attn_uses_sequence_id=True)],
    "falcon-7b": [dict(num_kv_heads=5), dict(max_position_embeddings=16)],
    "falcon-40b": [dict(multi_query=False), dict(num_ln_in_parallel_attn=2)],
    "llama-1": [dict(pretraining_tp=1), dict(rope_theta=10000.0), dict(max_position_embeddings=16)],
    "llama-yarn": [rope(YARN, beta_fast=32), rope(YARN, mscale=1.0), dict(max_position_embeddings=64)],
    "llama-3": [dict(max_position_embeddings=80)],
    "mistral-window": [dict(max_position_embeddings=16)],
    "mixtral": [dict(router_jitter_noise=0.5), dict(rope_theta=DROP)],
    "qwen2": [dict(sliding_window=4), dict(max_window_layers=0), dict(sliding_window=DROP)],
    "gemma-1": [dict(hidden_act="gelu_pytorch_tanh"), dict(hidden_activation="relu"), dict(tie_word_embeddings=True)],
    "gemma-2": [dict(hidden_act="relu"), dict(sliding_window_size=4), dict(cache_implementation=None)],
    "gemma-3": [dict(attn_logit_softcapping=1.0), dict(hidden_act="relu"), dict(rope_theta=DROP, rope_local_base_freq=DROP)],
    "olmo-1": [dict(rms_norm_eps=1e-5), dict(layer_norm_eps=1e-5)],
    "bert": [dict(position_embedding_type="relative_key")],
    "t5": [dict(n_positions=8), dict(tie_word_embeddings=True), dict(scale_decoder_outputs=True)],
    "mt5": [dict(tie_word_embeddings=True)],
}

# ---------------------------------------------------------------- weights

def randomise(model, gen):
    """Weights that make every tensor matter: no bias of zero, no gain of one, attention that chooses, logits of some units."""
    kind = model.config.model_type
    plus_one = kind.startswith("gemma")  # norms that multiply by 1 + weight
    text = model.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=gen)
        if p.dim() == 1:
            p.data = noise * 0.3 + (1.0 if name.endswith("weight") and not plus_one else 0.0)
        elif "relative_attention_bias" in name:
            p.data = noise
        elif kind in ("t5", "mt5") and "shared" in name:
            p.data = noise
        elif re.search(r"wpe|embed_positions|position_embeddings|token_type", name):
            p.data = noise * 0.5
        elif re.search(r"wte|embed|shared|lm_head", name):
            p.data = noise * 1.5 / p.shape[-1] ** 0.5
        else:
            conv1d = kind == "gpt2"  # stored [in, out]
            std = 1.8 / p.shape[0 if conv1d else -1] ** 0.5
            if kind in ("gpt_neo", "t5", "mt5") and re.search(r"q_proj|\.q\.", name):
                std /= head_dim ** 0.5  # their scores are not divided
            p.data = noise * std


def state_as_saved(model, folder):
    """The state as transformers writes it: names of the hub, tied tensors once, types as stored."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return load_file(folder / "model.safetensors")


def load(folder, cls, moe, attention, dtype=torch.float32):
    """The reference: weights as stored, upcast, plain attention; nothing missing, nothing left."""
    model, info = cls.from_pretrained(folder, dtype=dtype, attn_implementation=attention, output_loading_info=True,
                                      **({"experts_implementation": "eager"} if moe else {}))
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval(), sorted(info["unexpected_keys"])


# ---------------------------------------------------------------- outputs

@torch.no_grad()
def one_pass(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@torch.no_grad()
def in_chunks(model, ids, size):
    """Logits with a key-value cache, `size` tokens a call."""
    past, out = None, []
    for at in range(0, len(ids), size):
        step = model(torch.tensor([ids[at:at + size]]), past_key_values=past, use_cache=True)
        past = step.past_key_values
        out.append(step.logits[0])
    return torch.cat(out)


class Routing:
    """The least gap between a chosen expert's routing logit and one that was not chosen: too small a gap would make
    another order of summation choose otherwise."""

    def __init__(self, model):
        self.gap, self.k = float("inf"), getattr(model.config, "num_experts_per_tok", 0)
        for name, module in model.named_modules():
            if name.endswith("mlp.gate") and self.k:
                module.register_forward_hook(self.look)

    def look(self, module, args, output):
        logits = torch.nn.functional.linear(args[0].reshape(-1, args[0].shape[-1]), module.weight)
        top = logits.sort(descending=True).values
        self.gap = min(self.gap, (top[:, self.k - 1] - top[:, self.k]).min().item())


def decoder(model, double, other, case, gen):
    routing = Routing(model)
    first_image_id = getattr(model.config, "boi_token_index", None)
    ids = torch.randint(first_image_id or model.config.vocab_size, (case.tokens,), generator=gen)
    logits = one_pass(model, ids.tolist())
    out, notes = {"ids": ids, "logits": logits}, []
    ways = {"steps": in_chunks(model, ids.tolist(), 1), "chunks": in_chunks(model, ids.tolist(), CHUNK),
            "f64": one_pass(double, ids.tolist()).float()} | {way: one_pass(m, ids.tolist()) for way, m in other.items()}
    if case.short:
        out["logits_short"] = one_pass(model, ids[:case.short].tolist())
        ways["short"] = torch.cat([out["logits_short"], logits[case.short:]])
    scale = logits.std()
    for way, result in ways.items():
        difference = ((result - logits).abs().max() / scale).item()
        notes.append(f"{way} {difference:.0e}")
        known = way in case.differs or (way == "short" and case.differs) or way == "f64"
        assert (difference > 1e-2) if way in case.differs else known or difference < SAME, (way, difference)
        if way in case.differs and way != "eager":
            out["logits_" + way] = result
    if case.short:
        assert torch.allclose(out["logits_steps"][:case.short], out["logits_short"], atol=1e-4)
    if routing.gap < float("inf"):
        assert routing.gap > 2e-3, f"routing gap {routing.gap}"
        notes.append(f"routing gap {routing.gap:.0e}")
    return out, notes, logits


@torch.no_grad()
def encoder(model, double, other, case, gen):
    """Last hidden states of three texts alone and of a pair with token types; what is pooled of them."""
    out, notes, config = {}, [], model.config
    lengths = (1, 9, case.tokens)
    for name in [str(n) for n in lengths] + (["pair"] if config.type_vocab_size > 1 else []):
        n = 21 if name == "pair" else int(name)
        ids = torch.randint(4, config.vocab_size, (n,), generator=gen)
        types = torch.tensor([0] * 8 + [1] * 13) if name == "pair" else torch.zeros(n, dtype=torch.long)
        result = model(ids[None], token_type_ids=types[None])
        hidden = result.last_hidden_state[0]
        out |= {f"ids_{name}": ids, f"hidden_{name}": hidden, f"mean_{name}": hidden.mean(0), f"cls_{name}": hidden[0].clone()}
        if name == "pair":
            out["types_pair"] = types
        if result.pooler_output is not None:
            out[f"pooler_{name}"] = result.pooler_output[0]
        for way, m in {"f64": double, **other}.items():
            difference = (m(ids[None], token_type_ids=types[None]).last_hidden_state[0].float() - hidden).abs().max().item()
            assert difference < SAME, (way, difference)
            notes.append(f"{way} {difference:.0e}")
    # a batch with padding gives the same as each text alone
    a, b = out[f"ids_{lengths[1]}"], out[f"ids_{lengths[2]}"]
    pad = torch.full((len(b) - len(a),), config.pad_token_id)
    both = model(torch.stack([torch.cat([a, pad]), b]), attention_mask=torch.tensor([[1] * len(a) + [0] * len(pad), [1] * len(b)]))
    for row, text in enumerate((a, b)):
        difference = (both.last_hidden_state[row, :len(text)] - out[f"hidden_{len(text)}"]).abs().max().item()
        assert difference < SAME, ("padded", difference)
        notes.append(f"padded {difference:.0e}")
    return out, notes, hidden


@torch.no_grad()
def encoder_decoder(model, double, other, case, gen):
    """Encoder states of a text and of its first 5 tokens, and the decoder's logits from its start token on."""
    out, notes, config = {}, [], model.config
    for name, n in (("", case.tokens), ("_5", 5)):
        ids = torch.randint(2, config.vocab_size, (n,), generator=gen)
        answer = torch.cat([torch.tensor([config.decoder_start_token_id]),
                            torch.randint(2, config.vocab_size, (39 if not name else 3,), generator=gen)])
        whole = model(input_ids=ids[None], decoder_input_ids=answer[None], use_cache=False)
        out |= {"encoder_ids" + name: ids, "decoder_ids" + name: answer, "logits" + name: whole.logits[0],
                "encoder_hidden" + name: whole.encoder_last_hidden_state[0]}
        for way, size in (("steps", 1), ("chunks", CHUNK)):
            past, parts = None, []
            for at in range(0, len(answer), size):
                step = model(encoder_outputs=(whole.encoder_last_hidden_state,), decoder_input_ids=answer[None, at:at + size],
                             past_key_values=past, use_cache=True)
                past = step.past_key_values
                parts.append(step.logits[0])
            difference = ((torch.cat(parts) - whole.logits[0]).abs().max() / whole.logits.std()).item()
            notes.append(f"{way} {difference:.0e}")
            assert difference < SAME, (way, difference)
        for way, m in {"f64": double, **other}.items():
            result = m(input_ids=ids[None], decoder_input_ids=answer[None], use_cache=False).logits[0].float()
            difference = ((result - whole.logits[0]).abs().max() / whole.logits.std()).item()
            assert difference < SAME, (way, difference)
            notes.append(f"{way} {difference:.0e}")
    return out, notes, out["logits"]


@torch.no_grad()
def differently(name, folder, cls, out, change, moe):
    """How far the outputs move when the config is changed, in units of their standard deviation."""
    with tempfile.TemporaryDirectory() as temp:
        temp = pathlib.Path(temp)
        config = json.loads((folder / "config.json").read_text()) | change
        (temp / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not DROP}))
        (temp / "model.safetensors").symlink_to((folder / "model.safetensors").resolve())
        model = load(temp, cls, moe, CASES[name].attention)[0]
    if "encoder_ids" in out:
        before = out["logits"]
        after = model(input_ids=out["encoder_ids"][None], decoder_input_ids=out["decoder_ids"][None]).logits[0]
    elif "ids" in out:
        before, after = out["logits"], one_pass(model, out["ids"].tolist())
    else:
        before = out["hidden_9"]
        after = model(out["ids_9"][None]).last_hidden_state[0]
    return ((after - before).abs().max() / before.std()).item()


def make(name, case, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    gen = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    path = folder / "config.json"

    def write_config(value):
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

    write_config(case.config)
    config = AutoConfig.from_pretrained(folder)
    architecture = case.config["architectures"][0].replace("MPT", "Mpt").replace("ForMaskedLM", "Model")
    cls = getattr(transformers, architecture)
    made = cls(config)
    randomise(made, gen)
    state = state_as_saved(made.to(getattr(torch, case.dtype)), folder)
    if case.as_v5:
        saved = json.loads(path.read_text())
        write_config(saved | {"architectures": case.config["architectures"]})
    else:
        write_config(case.config | {"torch_dtype": case.dtype, "transformers_version": "4.31.0"})
    before = dict(state)
    if case.names:
        state = case.names(state, config)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})

    moe = hasattr(config, "num_experts_per_tok")
    model, unexpected = load(folder, cls, moe, case.attention)
    double, _ = load(folder, cls, moe, case.attention, torch.float64)
    other = {"eager": "sdpa", "sdpa": "eager"}[case.attention]
    try:
        other = {other: load(folder, cls, moe, other)[0]}
    except ValueError:
        other = {}  # GPT-Neo, GPT-J, BLOOM, MPT have one implementation
    for key, value in made.state_dict().items():
        if not (case.own_head and key == "lm_head.weight"):
            assert torch.equal(value.float(), model.state_dict()[key]), f"{name}: {key} is not what was made"
    assert sum(v.numel() for v in before.values()) == sum(p.numel() for p in made.parameters()), "tied or left out"
    assert case.own_head == (sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in made.parameters()))
    kind = encoder_decoder if config.is_encoder_decoder else encoder if config.model_type in ("bert", "roberta") else decoder
    out, notes, last = kind(model, double, other, case, gen)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors")
    for change in MATTERS.get(name, ()):
        moved = differently(name, folder, cls, out, change, moe)
        assert moved > 5e-4, f"{name}: {change} moves only {moved:.0e}"
    for change in IGNORED.get(name, ()):
        moved = differently(name, folder, cls, out, change, moe)
        assert moved < 1e-5, f"{name}: {change} moves {moved:.0e}"
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert size <= FILE_LIMIT, f"{name}: {size} bytes"
    print(f"{name:20} {size / 1e3:4.0f} kB  std {last.std():.2f}  {', '.join(notes)}"
          + (f"  ignored: {len(unexpected)} such as {unexpected[0]}" if unexpected else ""), flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("names", nargs="*")
    a = ap.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in a.names or CASES:
        make(name, CASES[name], a.out / name)
    total = sum(p.stat().st_size for name in CASES if (a.out / name).is_dir() for p in (a.out / name).iterdir())
    print(f"{total / 1e6:.2f} MB in all")
    assert total <= TOTAL_LIMIT


if __name__ == "__main__":
    main()
