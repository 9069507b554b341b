"""Computes the reference outputs that the tests compare with, by Hugging Face transformers and tokenizers.

usage: make_golden.py OUT_DIR [--models DIR --heldout FILE] [--tokenizers DIR]

OUT_DIR/shapes/NAME gets small checkpoints of random weights, with logits and greedy ids. With --models (the folder of
gpt2-mini and neox-mini) and --heldout (a text), OUT_DIR/gpt2-mini and OUT_DIR/neox-mini get prompts, logits, greedy ids
and perplexity of the trained models. With --tokenizers, each DIR/NAME/tokenizer.json gets a tokenizer-golden.json.

Run it by hand, when a model or a case changes; CI does not. It takes some minutes on a CPU, and logits of another
processor may differ in the last digits. From the root of the repository, in a Python environment with torch 2.15,
transformers 5.23, tokenizers 0.23 and safetensors 0.8:

    python tests/make_golden.py OUT_DIR --models models --heldout heldout.txt

tests/data holds what is small of this: prompts.json, greedy.json and perplexity.json of the trained models, and all shapes.
"""
import argparse, json, pathlib
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

WINDOW, NEW_TOKENS, LAST = 512, 64, 8


def write_json(path, value, **kw):
    path.write_text(json.dumps(value, ensure_ascii=True, **kw) + "\n")


def load(path):
    """The reference model: weights as stored, upcast to float32, plain attention."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, ids, count):
    """Greedy continuation that does not stop at <|endoftext|>, and each step's gap between the two best logits."""
    out, margins = list(ids), []
    for _ in range(count):
        top = logits_of(model, out)[-1].topk(2)
        margins.append(round((top.values[0] - top.values[1]).item(), 5))
        out.append(top.indices[0].item())
    return out[len(ids):], margins


# ---------------------------------------------------------------- trained models

def prompts(tok, heldout):
    ids = tok.encode(heldout).ids
    texts = [
        "The",
        "Once upon a time",
        "\"Who are you?\" asked the little girl.\n\"I am the King of the",
        "The caf\u00e9 in Z\u00fcrich was na\u00efve \u2014 \u201cfa\u00e7ade\u201d, \u03a9\u03bc\u03ad\u03b3\u03b1, \u041f\u0440\u0438\u0432\u0435\u0442, \u6f22\u5b57 and cafe\u0301.",
        "The fox \U0001F98A smiled \U0001F642 at the \U0001F469\u200d\U0001F469\u200d\U0001F467 family \U0001F1EB\U0001F1F7\n\n\n\tand   said:  ",
        "def area(r):\n    return 3.14159 * r ** 2  # 1,000,000 == 10**6\n",
        tok.decode(ids[20000:20120]).strip(),
        tok.decode(ids[3000:3400]).strip(),
    ]
    return [{"text": t, "ids": tok.encode(t).ids} for t in texts]


def trained(checkpoint, text, out):
    out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = load(checkpoint)
    heldout = text.read_text()
    items, tensors, continuations = prompts(tok, heldout), {}, []
    for n, item in enumerate(items):
        ids = item["ids"]
        start = 0 if len(ids) <= 64 else len(ids) - LAST
        item["logit_positions"] = [start, len(ids)]
        tensors[f"prompt_{n}"] = logits_of(model, ids)[start:].contiguous()
        new, margins = greedy(model, ids, NEW_TOKENS)
        continuations.append({"ids": new, "text": tok.decode(new, skip_special_tokens=False), "top1_minus_top2": margins})
    with torch.no_grad():
        states = model(torch.tensor([items[1]["ids"]]), output_hidden_states=True).hidden_states
    tensors["prompt_1_hidden_states"] = torch.cat(states).contiguous()
    write_json(out / "prompts.json", items, indent=1)
    write_json(out / "greedy.json", continuations, indent=1)
    save_file(tensors, out / "logits.safetensors")

    ids, windows = tok.encode(heldout).ids, []
    for at in range(0, len(ids), WINDOW):
        window = ids[at:at + WINDOW]
        if len(window) > 1:
            logp = logits_of(model, window[:-1]).double().log_softmax(-1)
            windows.append(-logp.gather(1, torch.tensor(window[1:])[:, None]).sum().item())
    scored = sum(len(ids[at:at + WINDOW]) - 1 for at in range(0, len(ids), WINDOW))
    nll = sum(windows)
    write_json(out / "perplexity.json", {
        "text": text.name,
        "protocol": "The whole file is tokenized as one string with no special token added. The ids are cut into consecutive "
                    "non-overlapping windows of 512 (the last one is shorter and is kept). Each window is run alone from position 0, "
                    "and every token but its first is scored: nll = -log softmax(logits[t-1])[id[t]], natural log, float32 logits, "
                    "float64 sums. perplexity = exp(total_nll / scored_tokens).",
        "window": WINDOW, "tokens": len(ids), "scored_tokens": scored, "total_nll": nll,
        "nll_per_token": nll / scored, "perplexity": torch.tensor(nll / scored).double().exp().item(),
        "window_nll": [round(w, 4) for w in windows],
    }, indent=1)
    if checkpoint.name == "gpt2-mini":  # both have the same tokenizer
        tokenizer_golden(tok, out / "tokenizer-golden.json")


# ---------------------------------------------------------------- random-weight shapes

GPT2 = dict(vocab_size=503, n_positions=64, n_embd=48, n_head=3, n_layer=3, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
NEOX = dict(vocab_size=503, max_position_embeddings=64, hidden_size=72, num_attention_heads=3, num_hidden_layers=3,
            intermediate_size=200, bos_token_id=0, eos_token_id=0, rotary_pct=0.25, rotary_emb_base=10000,
            use_parallel_residual=True, tie_word_embeddings=False, hidden_act="gelu", attention_bias=True)
SHAPES = {  # name: (config changes, file layout)
    "gpt2-head16": ({}, "plain"),
    "gpt2-head15": (dict(n_embd=60, n_head=4), "plain"),
    "gpt2-inner100": (dict(n_inner=100), "plain"),
    "gpt2-untied": (dict(tie_word_embeddings=False), "plain"),
    "gpt2-scale-inverse": (dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True), "plain"),
    "gpt2-noscale-relu": (dict(scale_attn_weights=False, activation_function="relu"), "plain"),
    "gpt2-noprefix": ({}, "noprefix"),
    "gpt2-bin": ({}, "bin"),
    "gpt2-sharded-bf16": ({}, "sharded"),
    "neox-base": ({}, "plain"),
    "neox-serial": (dict(use_parallel_residual=False), "plain"),
    "neox-rotary100": (dict(rotary_pct=1.0), "plain"),
    "neox-rotary-base": (dict(rotary_pct=0.5, rotary_emb_base=500), "plain"),
    "neox-nobias": (dict(attention_bias=False), "plain"),
    "neox-tied": (dict(tie_word_embeddings=True), "plain"),
    "neox-buffers": ({}, "buffers"),
    **{f"neox-{act.replace('_', '-')}": (dict(hidden_act=act), "plain") for act in ("gelu_fast", "gelu_new", "relu", "silu")},
}


def randomise(model, seed):
    """Weights that make every tensor matter: no bias of zero, no gain of one, logits a few units wide."""
    gen = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=gen)
        if p.dim() == 1:
            gain = ("ln_" in name or "layernorm" in name or "layer_norm" in name) and name.endswith("weight")
            p.data = noise * 0.2 + (1.0 if gain else 0.0)
        elif "wpe" in name:
            p.data = noise * 0.3
        else:
            p.data = noise * (1.5 if "wte" in name or "embed" in name else 2.0) / p.shape[-1] ** 0.5


def write_layout(model, cfg, layout, out):
    """Writes config and weights; config.json carries the keys that hub checkpoints of both ages carry."""
    dtype = torch.bfloat16 if layout == "sharded" else torch.float32
    model.to(dtype)
    if layout == "sharded":
        total = sum(p.numel() * 2 for p in model.parameters())
        model.save_pretrained(out, max_shard_size=total * 6 // 10)
    else:
        model.save_pretrained(out)
    merge_legacy_config(out / "config.json", cfg)
    (out / "generation_config.json").unlink(missing_ok=True)
    state, n = dict(model.state_dict()), 64
    mask = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
    if layout == "noprefix":  # the original gpt2 on the hub
        state = {k.removeprefix("transformer."): v.contiguous() for k, v in state.items() if k != "lm_head.weight"}
        state |= {f"h.{i}.attn.bias": mask.clone() for i in range(model.config.n_layer)}
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    elif layout == "bin":  # torch.save of an old transformers version, with its buffers and the tied head twice
        for i in range(model.config.n_layer):
            state[f"transformer.h.{i}.attn.bias"] = mask.to(torch.uint8)
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-10000.0)
        torch.save(state, out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()
    elif layout == "buffers":  # pythia on the hub
        for i in range(model.config.num_hidden_layers):
            at = f"gpt_neox.layers.{i}.attention."
            state |= {at + "bias": mask.bool().clone(), at + "masked_bias": torch.tensor(-1e9),
                      at + "rotary_emb.inv_freq": 1.0 / 10000 ** (torch.arange(0, 6, 2).float() / 6)}
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})


def merge_legacy_config(path, extra):
    config = json.loads(path.read_text())
    config.update(extra, torch_dtype=config.get("dtype", "float32"))
    write_json(path, config, indent=2, sort_keys=True)


def shapes(folder):
    for n, (name, (change, layout)) in enumerate(SHAPES.items()):
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        for old in out.iterdir():
            old.unlink()
        base, config, cls = (GPT2, GPT2Config, GPT2LMHeadModel) if name.startswith("gpt2") else (NEOX, GPTNeoXConfig, GPTNeoXForCausalLM)
        cfg = base | change
        made = cls(config(**cfg))
        randomise(made, n)
        legacy = {k: cfg[k] for k in ("rotary_pct", "rotary_emb_base") if k in cfg}
        write_layout(made, legacy, layout, out)
        model = load(out)
        for a, b in zip(made.state_dict().values(), model.state_dict().values()):
            assert torch.equal(a.float(), b), name
        gen, tensors = torch.Generator().manual_seed(n), {}
        for length in (1, 7, 40):
            ids = torch.randint(cfg["vocab_size"], (length,), generator=gen)
            tensors[f"ids_{length}"] = ids
            tensors[f"logits_{length}"] = logits_of(model, ids.tolist()).contiguous()
            tensors[f"greedy_{length}"] = torch.tensor(greedy(model, ids.tolist(), 16)[0])
        save_file(tensors, out / "golden.safetensors")
        top = tensors["logits_40"].topk(2).values
        print(name, [p.name for p in sorted(out.iterdir())], "logit std %.2f" % tensors["logits_40"].std(),
              "least margin %.4f" % (top[:, 0] - top[:, 1]).min())


# ---------------------------------------------------------------- tokenizers

STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", " \t \n ", "a", " a", "a ", "  a", "a  ", "a   b", "a    b\n     c",
    " " * 24, " " * 25, " " * 60 + "x", "x\n    y\n        z\n\tt", "\r\n", "line one\r\nline two\r",
    "Hello, world!", "hello world", " Hello  World ", "HELLO wOrLd", "The quick brown fox jumps over the lazy dog.",
    "I'm you're he'll they've we'd don't it's", "I'M YOU'RE HE'LL", "'s 't 're 've 'm 'll 'd", "rock 'n' roll's 'twas", "it\u2019s \u201cquoted\u201d \u2014 dash\u2026",
    "0 1 12 123 1234 12345 3.14159 1,000,000 1e-5 0x7fff", "2024-02-29T12:34:56Z", "\u00bd \u00b2 \u2460 \u0663\u0664 \u2167",
    "a_b-c.d/e\\f@g#h$i%j^k&l*m(n)o+p=q", "!!!???...,,,;;;:::", "http://example.org/a?b=c&d=%20#e", "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n",
    "def f(x):\n\treturn x**2  # comment\n", "{\"key\": [1, 2.5, null, true]}", "<html><body class=\"x\">&amp;</body></html>", "\\n \\t \\u0041 C:\\temp",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 200, "ab" * 100, "\u00e9" * 40, "Donaudampfschifffahrtsgesellschaftskapit\u00e4n",
    "caf\u00e9 na\u00efve \u00fcber \u00dfcharf \u0141\u00f3d\u017a", "cafe\u0301 nai\u0308ve A\u030a", "Z\u0351\u036b\u0343a\u0337l\u0334g\u0338o\u0335", "\u1e9b\u0323 \ufb01 \u212b \u2126",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uff8a\uff9d\uff76\uff78", "\uc548\ub155\ud558\uc138\uc694 \u1112\u1161\u11ab", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\U0001F642", "\U0001F469\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 \U0001F44D\U0001F3FD \U0001F1EB\U0001F1F7 \u2764\ufe0f", "x\U0001F600y \U0001F600 z", "\U0001D54F\U0001D56A \U00020BB7",
    "\u00a0nbsp\u00a0 \u2003em\u2003 \u3000wide\u3000 \u200bzero\u200b \u2028ls\u2029ps \u0085nel \u001cfs", "\ufeffbom", "\ufffd \uffff \ue000 \U0010ffff", "\u0000\u0001\u007f\u0080\u009f", "\u200f\u202eabc\u202c",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> \n<|endoftext|><|endoftext|>", "<|endoftext", "<|padding|> <|unk|> <|ENDOFTEXT|>", "x<|endoftext|>    y",
    "=" * 30, "-" * 17 + "\n" + "*" * 33, "\u2500" * 12, "One\n\nTwo\n \nThree\n  \n\n   Four", "tail spaces   ", "tail newline\n", "tab\tseparated\tvalues\n1\t2\t3",
]


def tokenizer_golden(tok, path):
    items = [{"text": s, "ids": tok.encode(s).ids} for s in STRINGS]
    for item in items:
        item["decoded"] = tok.decode(item["ids"], skip_special_tokens=False)
        item["decoded_skip_special"] = tok.decode(item["ids"], skip_special_tokens=True)
    write_json(path, items, indent=1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--models", type=pathlib.Path)
    ap.add_argument("--heldout", type=pathlib.Path)
    ap.add_argument("--tokenizers", type=pathlib.Path)
    a = ap.parse_args()
    if (a.models is None) != (a.heldout is None):
        ap.error("--models and --heldout belong together")
    torch.manual_seed(0)
    shapes(a.out / "shapes")
    for name in ("gpt2-mini", "neox-mini") if a.models else ():
        trained(a.models / name, a.heldout, a.out / name)
    for path in sorted(a.tokenizers.glob("*/tokenizer.json")) if a.tokenizers else ():
        tokenizer_golden(Tokenizer.from_file(str(path)), path.with_name("tokenizer-golden.json"))


if __name__ == "__main__":
    main()
