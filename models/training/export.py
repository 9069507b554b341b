"""Writes a training state as a Hugging Face checkpoint: config, float16 weights, tokenizer.

usage: export.py {gpt2,neox} DATA_DIR STATE_DIR OUT_DIR
"""
import json, pathlib, shutil, sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
from model import CONTEXT, HEADS, LAYERS, WIDTH

EOT = "<|endoftext|>"


def names(arch):
    """Ours -> Hugging Face's."""
    root, h = ("transformer.", "h.") if arch == "gpt2" else ("gpt_neox.", "layers.")
    parts = dict(ln1="ln_1", ln2="ln_2", qkv="attn.c_attn", out="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj") if arch == "gpt2" else dict(
        ln1="input_layernorm", ln2="post_attention_layernorm", qkv="attention.query_key_value", out="attention.dense",
        up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h")
    top = dict(embed="wte", positions="wpe", ln="ln_f") if arch == "gpt2" else dict(embed="embed_in", ln="final_layer_norm")
    return {k: root + v for k, v in top.items()} | {f"blocks.{i}.{k}": f"{root}{h}{i}.{v}" for i in range(LAYERS) for k, v in parts.items()}


def convert(arch, state):
    out, to = {}, names(arch)
    for name, x in state.items():
        part, kind = name.rsplit(".", 1)
        if arch == "neox" and part.endswith("qkv"):  # query, key and value of a head lie together
            x = x.view(3, HEADS, WIDTH // HEADS, -1).transpose(0, 1).reshape(x.shape)
        if arch == "gpt2" and kind == "weight" and part.split(".")[-1] in ("qkv", "out", "up", "down"):  # [in, out]
            x = x.T
        out[f"{to[part]}.{kind}"] = x.contiguous()
    return out


def main(arch, data, state, folder):
    data, folder = pathlib.Path(data), pathlib.Path(folder)
    weights = torch.load(pathlib.Path(state) / "state.pt", weights_only=False)["model"]
    vocab = weights["embed.weight"].shape[0]
    common = dict(vocab_size=vocab, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True)
    if arch == "gpt2":
        cls, config = GPT2LMHeadModel, GPT2Config(
            n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_inner=4 * WIDTH, n_positions=CONTEXT, activation_function="gelu_new",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
    else:
        cls, config = GPTNeoXForCausalLM, GPTNeoXConfig(
            num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, hidden_act="gelu",
            max_position_embeddings=CONTEXT, rotary_pct=0.25, use_parallel_residual=True, **common)
    model = cls(config)
    missing, unexpected = model.load_state_dict(convert(arch, weights), strict=False)
    assert set(missing) <= {"lm_head.weight", "embed_out.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config["dtype"]  # the keys that transformers before version 5 wrote
    if "rope_parameters" in config:
        config["rotary_pct"] = config["rope_parameters"]["partial_rotary_factor"]
        config["rotary_emb_base"] = config["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copy(pathlib.Path(state) / "log.tsv", folder / "log.tsv")

    tokenizer = json.loads((data / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")
    spec = tokenizer["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    (folder / "vocab.json").write_text(json.dumps(spec["vocab"], ensure_ascii=False))
    special = {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT}
    added = {"content": EOT, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": {"0": added}, **special,
        "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT,
        "tokenizer_class": "GPT2Tokenizer" if arch == "gpt2" else "PreTrainedTokenizerFast"}, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
