"""A second reading of README.md: every family in numpy, from the table alone, compared with expected.safetensors.

usage: check_readme.py [FAMILIES_DIR]        (needs numpy, torch and safetensors; torch only reads bfloat16)

It proves that README.md says enough and says it right: it shares nothing with transformers. One layer function serves all; a family is
what `describe` returns. Token by token is the same arithmetic as all at once here (no cache), so only one pass is made.
"""
import json, math, pathlib, sys
import numpy as np
from safetensors.torch import load_file

erf = np.vectorize(math.erf)
sigmoid = lambda x: 1 / (1 + np.exp(-x))
gelu_tanh = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
ACT = {"relu": lambda x: np.maximum(x, 0), "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))), "silu": lambda x: x * sigmoid(x),
       **{n: gelu_tanh for n in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")}}


class Weights:
    """Tensors by name, under whichever of the prefixes they are."""

    def __init__(self, path):
        self.all = {k: v.double().numpy() for k, v in load_file(path).items()}

    def find(self, name, *prefixes):
        for p in prefixes + ("",):
            for n in (p + name, (p + name).replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")):
                if n in self.all:
                    return self.all[n]
        return None


def norm(x, w, b, kind, eps):
    if kind == "rms":
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    else:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    x = x if w is None else x * w
    return x if b is None else x + b


def rope_frequencies(p, R, P):
    """Frequencies, and what cos and sin are multiplied by."""
    kind, f = p.get("rope_type") or p.get("type") or "default", p.get("factor")
    theta = p["rope_theta"]
    freq = theta ** (-np.arange(0, R, 2) / R)
    if kind == "default":
        return freq, 1.0
    if kind == "linear":
        return freq / f, 1.0
    O = p.get("original_max_position_embeddings") or P
    if kind == "llama3":
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        w = 2 * math.pi / freq
        s = (O / w - low) / (high - low)
        return np.where(w < O / high, freq, np.where(w > O / low, freq / f, freq * ((1 - s) / f + s))), 1.0
    assert kind == "yarn", kind
    c = lambda r: R * math.log(O / (2 * math.pi * r)) / (2 * math.log(theta))
    low, high = c(p.get("beta_fast") or 32), c(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    high += 0.001 * (low == high)
    ramp = np.clip((np.arange(R // 2) - low) / (high - low), 0, 1)
    m = lambda x, k=1.0: 1.0 if x <= 1 else 0.1 * k * math.log(x) + 1
    a, k = p.get("mscale"), p.get("mscale_all_dim")
    scale = p.get("attention_factor") or (m(f, a) / m(f, k) if a and k else m(f))
    return freq * (ramp / f + 1 - ramp), scale


def rotate(x, freq, scale, interleaved, position):
    """x [T, heads, d]; position [T] or [T, frequencies]."""
    n = len(freq[0]) if freq.ndim == 2 else len(freq)
    angle = (position[:, None] * freq)[:, None]
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    x = x.copy()
    a, b = (x[..., 0:2 * n:2], x[..., 1:2 * n:2]) if interleaved else (x[..., :n], x[..., n:2 * n])
    ra, rb = a * c - b * s, b * c + a * s
    if interleaved:
        x[..., 0:2 * n:2], x[..., 1:2 * n:2] = ra, rb
    else:
        x[..., :n], x[..., n:2 * n] = ra, rb
    return x


def bfloat16(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def slopes(H):
    n = 2 ** int(math.log2(H))
    return np.array([2 ** (-8 * (h + 1) / n) for h in range(n)] + [2 ** (-8 * (2 * j + 1) / (2 * n)) for j in range(H - n)])


def mpt_slopes(H, M=8):
    n = 2 ** math.ceil(math.log2(H))
    s = [2 ** (-M * (j + 1) / n) for j in range(n)]
    return np.array(s if n == H else (s[1::2] + s[::2])[:H])


def bucket(r, B, far, both_ways):
    b = 0
    if both_ways:
        B //= 2
        b, r = (B if r > 0 else 0), abs(r)
    else:
        r = max(-r, 0)
    e = B // 2
    if r < e:
        return b + r
    large = np.float32(math.log(np.float32(r / e))) / np.float32(math.log(far / e)) * np.float32(B - e)
    return b + min(B - 1, e + int(large))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, scale, bias, causal, window, cap):
    """q [T, H, d], k and v [S, K, d], bias [H, T, S] added to scaled scores."""
    H, K = q.shape[1], k.shape[1]
    k, v = np.repeat(k, H // K, 1), np.repeat(v, H // K, 1)
    s = np.einsum("thd,shd->hts", q, k) * scale
    if cap:
        s = cap * np.tanh(s / cap)
    if bias is not None:
        s = s + bias
    t, u = np.arange(len(q))[:, None], np.arange(len(k))
    if causal:
        s = np.where(u <= t, s, -np.inf)
    if window:
        s = np.where(u > t - window, s, -np.inf)
    return np.einsum("hts,shd->thd", softmax(s), v).reshape(len(q), -1)


def linear(x, wb):
    w, b = wb
    return x @ w.T if b is None else x @ w.T + b


def decoder(S, W, ids):
    """The one forward pass: S says what the model is, W.find finds tensors."""
    g = lambda name: W.find(name, *S["prefix"])
    wb = lambda name: (g(name + ".weight"), g(name + ".bias"))
    H, K, d, T = S["H"], S["K"], S["d"], len(ids)
    kind, eps, plus = S["norm"], S["eps"], S.get("plus_one", 0)

    def n(name, x, kind=kind):
        w, b = wb(name)
        assert w is not None or S.get("no_gain"), name
        return norm(x, None if w is None else w + plus, b, kind, eps)

    x = g(S["embed"])[ids] * S.get("embed_scale", 1.0)
    if S.get("project"):
        x = linear(x, wb("project_in"))
    if "positions" in S:
        x = x + g(S["positions"])[np.arange(T) + S.get("offset", 0)]
    if "types" in S:
        x = x + g("embeddings.token_type_embeddings.weight")[S["types"]]
    if "embed_norm" in S:
        x = n(S["embed_norm"], x)
    for i in range(S["L"]):
        at = S["layer"].format(i)

        def attention(h):
            if "fused" in S:
                w, b = wb(at + S["fused"])
                w = w.T if S.get("conv1d") else w
                rows = np.arange(len(w))
                how = S["fused_order"]
                if how == "per head":      # [H, 3, d]
                    rows = rows.reshape(H, 3, d).transpose(1, 0, 2)
                    parts = [r.reshape(-1) for r in rows]
                elif how == "per group":   # [K, H/K + 2, d]
                    rows = rows.reshape(K, H // K + 2, d)
                    parts = [rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)]
                else:                      # all q, all k, all v
                    parts = np.split(rows, [H * d, (H + K) * d])
                q, k, v = (linear(h, (w[r], None if b is None else b[r])) for r in parts)
            else:
                q, k, v = (linear(h, wb(at + S["qkv"].format(c))) for c in S.get("qkv_names", "qkv"))
            if S.get("clip"):
                q, k, v = (np.clip(y, -S["clip"], S["clip"]) for y in (q, k, v))
            if S.get("qk_norm") == "all heads":
                q, k = n(at + "self_attn.q_norm", q), n(at + "self_attn.k_norm", k)
            q, k, v = q.reshape(T, H, d), k.reshape(T, K, d), v.reshape(T, K, d)
            if S.get("qk_norm") == "each head":
                q, k = n(at + S["q_norm"], q), n(at + S["k_norm"], k)
            if S.get("qk_norm") == "a gain for each head":
                q = np.stack([n(f"{at}self_attn.q_layernorm.norms.{j}", q[:, j]) for j in range(H)], 1)
                k = np.stack([n(f"{at}self_attn.k_layernorm.norms.{j}", k[:, j]) for j in range(K)], 1)
            if "rope" in S:
                p, R = (S["rope"][i] if isinstance(S["rope"], list) else S["rope"]), S["R"]
                if p.get("rope_type", p.get("type")) == "dynamic":  # token t with N = t + 1: `logits_steps`
                    N = np.maximum(np.arange(T) + 1, S["P"])
                    theta = p["rope_theta"] * (p["factor"] * N / S["P"] - (p["factor"] - 1)) ** (R / (R - 2))
                    freq, scale = theta[:, None] ** (-np.arange(0, R, 2) / R), 1.0
                else:
                    freq, scale = rope_frequencies(p, R, S["P"])
                q, k = (rotate(y, freq, scale, S.get("interleaved"), np.arange(T)) for y in (q, k))
            scale = S.get("scale", 1 / math.sqrt(d)) / (i + 1 if S.get("inverse_layer") else 1)
            bias = S["alibi"](T) if "alibi" in S else None
            y = attend(q, k, v, scale, bias, S.get("causal", True), S["windows"][i] if "windows" in S else None, S.get("cap"))
            w, b = wb(at + S["out"])
            return linear(y, (w.T if S.get("conv1d") else w, b))

        def gated(prefix, h, names):
            gate, up, down = (wb(prefix + m) for m in names)
            return linear(ACT[S["act"]](linear(h, gate)) * linear(h, up), down)

        def mlp(h):
            m = S.get("moe")
            if m and g(at + m["gate"]) is not None:
                p = softmax(h @ g(at + m["gate"]).T)
                out = np.zeros_like(h)
                for t in range(T):
                    best = np.argsort(-p[t])[:m["k"]]
                    weight = p[t, best] / (p[t, best].sum() if m["renormalize"] else 1)
                    for e, c in zip(best, weight):
                        out[t] += c * gated(at + m["expert"].format(e), h[t], m["names"])
                if m.get("shared"):
                    out += sigmoid(h @ g(at + "mlp.shared_expert_gate.weight").T) * gated(at + "mlp.shared_expert.", h, m["names"])
                return out
            if S.get("gated"):
                return gated(at + "mlp.", h, ("gate_proj", "up_proj", "down_proj"))
            (w1, b1), (w2, b2) = wb(at + S["up"]), wb(at + S["down"])
            if S.get("conv1d"):
                w1, w2 = w1.T, w2.T
            return linear(ACT[S["act"]](linear(h, (w1, b1))), (w2, b2))

        n1, n2 = (at + m for m in S["norms"][:2])
        block = S["block"]
        if block == "sequential":
            x = x + attention(n(n1, x))
            x = x + mlp(n(n2, x))
        elif block == "parallel":
            x = x + attention(n(n1, x)) + mlp(n(n2, x))
        elif block == "post":        # OPT-350m, BERT
            x = n(n1, x + attention(x))
            x = n(n2, x + mlp(x))
        elif block == "normed residual":  # BLOOM's option
            h = n(n1, x)
            x = h + attention(h)
            h = n(n2, x)
            x = h + mlp(h)
        elif block == "sandwich":
            n3, n4 = (at + m for m in S["norms"][2:])
            x = x + n(n2, attention(n(n1, x)))
            x = x + n(n4, mlp(n(n3, x)))
        elif block == "after":       # OLMo 2
            x = x + n(n1, attention(x))
            x = x + n(n2, mlp(x))
    if S["last_norm"]:
        x = n(S["last_norm"], x)
    if S.get("hidden_only"):
        return x
    if S.get("project"):
        x = linear(x, wb("project_out"))
    head = W.find("embed_out.weight") if "embed_out.weight" in W.all else W.find("lm_head.weight")
    x = linear(x, (head if head is not None else g(S["embed"]), W.find("lm_head.bias")))
    return S["logit_cap"] * np.tanh(x / S["logit_cap"]) if S.get("logit_cap") else x


def rope_of(c, factor=None, theta="rope_theta", default=10000.0):
    p = dict(c.get("rope_scaling") or c.get("rope_parameters") or {})
    p.setdefault("rope_theta", c.get(theta, default))
    p.setdefault("partial_rotary_factor", factor)
    return p


def describe(c):
    """What a config.json means."""
    if c["model_type"] == "gemma3":
        return describe(c["text_config"]) | dict(prefix=("language_model.model.",))
    t = c["model_type"]
    get = lambda *names, default=None: next((c[n] for n in names if c.get(n) is not None), default)
    D = get("n_embed", "hidden_size", "n_embd", "d_model")
    H, L = get("num_attention_heads", "n_head", "num_heads", "n_heads"), get("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if t == "gemma3_text":
        H = H or 8
    S = dict(H=H, K=H, L=L, d=D // H, eps=get("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", default=1e-6 if t == "gemma3_text" else 1e-5),
             P=get("max_position_embeddings", "n_positions", default=2048), norm="layer", act=get("hidden_act", "activation_function", "activation", default="gelu"), block="sequential")
    d = S["d"]
    if t == "gpt2":
        return S | dict(prefix=("transformer.",), embed="wte.weight", positions="wpe.weight", layer="h.{}.", conv1d=True, fused="attn.c_attn", fused_order="parts",
                        out="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj", norms=("ln_1", "ln_2"), last_norm="ln_f",
                        inverse_layer=c.get("scale_attn_by_inverse_layer_idx"), **({} if c.get("scale_attn_weights", True) else dict(scale=1.0)))
    if t == "gpt_neox":
        p = rope_of(c, c.get("rotary_pct", 0.25), "rotary_emb_base")
        return S | dict(prefix=("gpt_neox.",), embed="embed_in.weight", layer="layers.{}.", fused="attention.query_key_value", fused_order="per head",
                        out="attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", norms=("input_layernorm", "post_attention_layernorm"), last_norm="final_layer_norm",
                        rope=p, R=int(d * p["partial_rotary_factor"]), block="parallel" if c.get("use_parallel_residual", True) else "sequential")
    if t == "gpt_neo":
        kinds = c.get("attention_layers") or [k for kinds, times in c["attention_types"] for _ in range(times) for k in kinds]
        return S | dict(prefix=("transformer.",), embed="wte.weight", positions="wpe.weight", layer="h.{}.", qkv="attn.attention.{}_proj", out="attn.attention.out_proj",
                        up="mlp.c_fc", down="mlp.c_proj", norms=("ln_1", "ln_2"), last_norm="ln_f", scale=1.0, windows=[c["window_size"] if k == "local" else None for k in kinds])
    if t == "gptj":
        return S | dict(prefix=("transformer.",), embed="wte.weight", layer="h.{}.", qkv="attn.{}_proj", out="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out", norms=("ln_1", "ln_1"),
                        last_norm="ln_f", block="parallel", rope=dict(rope_theta=10000.0), R=c["rotary_dim"], interleaved=True)
    if t == "opt":
        pre = c.get("do_layer_norm_before", True)
        return S | dict(prefix=("model.decoder.", "decoder."), embed="embed_tokens.weight", positions="embed_positions.weight", offset=2, layer="layers.{}.", qkv="self_attn.{}_proj",
                        out="self_attn.out_proj", up="fc1", down="fc2", norms=("self_attn_layer_norm", "final_layer_norm"), eps=1e-5, no_gain=not c.get("layer_norm_elementwise_affine", True),
                        block="sequential" if pre else "post", last_norm="final_layer_norm" if pre and not c.get("_remove_final_layer_norm") else None, project=c.get("word_embed_proj_dim", D) != D)
    if t == "bloom":
        return S | dict(prefix=("transformer.",), embed="word_embeddings.weight", embed_norm="word_embeddings_layernorm", layer="h.{}.", fused="self_attention.query_key_value", fused_order="per head",
                        out="self_attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", norms=("input_layernorm", "post_attention_layernorm"), last_norm="ln_f", act="gelu_new",
                        alibi=lambda T: slopes(H)[:, None, None] * np.arange(T), block="normed residual" if c.get("apply_residual_connection_post_layernorm") else "sequential")
    if t == "mpt":
        a = c["attn_config"]
        return S | dict(prefix=("transformer.",), embed="wte.weight", layer="blocks.{}.", fused="attn.Wqkv", fused_order="parts", out="attn.out_proj", up="ffn.up_proj", down="ffn.down_proj",
                        norms=("norm_1", "norm_2"), last_norm="norm_f", act="gelu", clip=a.get("clip_qkv"), scale=a.get("softmax_scale") or 1 / math.sqrt(d),
                        alibi=lambda T: -mpt_slopes(H)[:, None, None] * (np.arange(T)[:, None] - np.arange(T)))
    if t == "falcon":
        new, multi = c.get("new_decoder_architecture"), c.get("multi_query", True)
        K = (c.get("num_kv_heads") or H) if new else 1 if multi else H
        S |= dict(prefix=("transformer.",), embed="word_embeddings.weight", layer="h.{}.", K=K, fused="self_attention.query_key_value", fused_order="per group" if new or multi else "per head",
                  out="self_attention.dense", up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h", last_norm="ln_f", norms=("input_layernorm",) * 2, block="parallel")
        if new and (c.get("num_ln_in_parallel_attn") or 2) == 2:
            S |= dict(norms=("ln_attn", "ln_mlp"))
        if not new and not c.get("parallel_attn", True):
            S |= dict(norms=("input_layernorm", "post_attention_layernorm"), block="sequential")
        if c.get("alibi"):
            return S | dict(alibi=lambda T: bfloat16(bfloat16(slopes(H))[:, None, None] * np.arange(T)) / math.sqrt(d))
        return S | dict(rope=rope_of(c), R=d)
    if t == "phi":
        p = rope_of(c, c.get("partial_rotary_factor", 0.5))
        return S | dict(prefix=("model.",), embed="embed_tokens.weight", layer="layers.{}.", K=c.get("num_key_value_heads") or H, qkv="self_attn.{}_proj", out="self_attn.dense", up="mlp.fc1", down="mlp.fc2",
                        norms=("input_layernorm",) * 2, last_norm="final_layernorm", block="parallel", rope=p, R=int(d * p["partial_rotary_factor"]),
                        qk_norm="each head" if c.get("qk_layernorm") else None, q_norm="self_attn.q_layernorm", k_norm="self_attn.k_layernorm")
    if t in ("bert", "roberta"):
        return S | dict(prefix=(t + ".",), embed="embeddings.word_embeddings.weight", positions="embeddings.position_embeddings.weight", offset=c["pad_token_id"] + 1 if t == "roberta" else 0,
                        embed_norm="embeddings.LayerNorm", layer="encoder.layer.{}.", qkv="attention.self.{}", qkv_names=("query", "key", "value"), out="attention.output.dense", up="intermediate.dense",
                        down="output.dense", norms=("attention.output.LayerNorm", "output.LayerNorm"), block="post", causal=False, last_norm=None, hidden_only=True)
    # LLaMA and those like it
    defaults = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128}
    d = c.get("head_dim") or defaults.get(t) or D // H
    S |= dict(prefix=("model.",), embed="embed_tokens.weight", layer="layers.{}.", d=d, K=c.get("num_key_value_heads") or {"gemma2": 4, "gemma3_text": 4}.get(t) or H, qkv="self_attn.{}_proj", out="self_attn.o_proj", gated=True,
              norms=("input_layernorm", "post_attention_layernorm"), last_norm="norm", norm="rms", rope=rope_of(c), R=d)
    if t in ("mistral", "mixtral"):
        S |= dict(windows=[c.get("sliding_window", 4096 if t == "mistral" else None)] * L)
    if t == "mixtral":
        S |= dict(moe=dict(gate="block_sparse_moe.gate.weight", expert="block_sparse_moe.experts.{}.", names=("w1", "w3", "w2"), k=c["num_experts_per_tok"], renormalize=True))
    if t in ("qwen2", "qwen3") and c.get("use_sliding_window"):
        S |= dict(windows=[c["sliding_window"] if i >= c["max_window_layers"] else None for i in range(L)])
    if t in ("qwen2_moe", "qwen3_moe"):
        S |= dict(moe=dict(gate="mlp.gate.weight", expert="mlp.experts.{}.", names=("gate_proj", "up_proj", "down_proj"), k=c["num_experts_per_tok"], renormalize=c["norm_topk_prob"], shared=t == "qwen2_moe"))
    if t in ("qwen3", "qwen3_moe", "gemma3_text"):
        S |= dict(qk_norm="each head", q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
    if t.startswith("gemma"):
        S |= dict(plus_one=1.0, embed_scale=math.sqrt(D), act=c.get("hidden_activation", "gelu_pytorch_tanh") if t != "gemma" else "gelu_pytorch_tanh")
    if t in ("gemma2", "gemma3_text"):
        kinds = c.get("layer_types") or ["full" if (i + 1) % (c.get("sliding_window_pattern", 6) if t != "gemma2" else 2) == 0 else "sliding_attention" for i in range(L)]
        S |= dict(norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"), block="sandwich", scale=1 / math.sqrt(c["query_pre_attn_scalar"]),
                  windows=[c["sliding_window"] if k == "sliding_attention" else None for k in kinds], logit_cap=c.get("final_logit_softcapping"))
        if t == "gemma2":
            S |= dict(cap=c.get("attn_logit_softcapping"))
        elif "full_attention" in (c.get("rope_parameters") or {}):
            S |= dict(rope=[c["rope_parameters"]["sliding_attention" if k == "sliding_attention" else "full_attention"] for k in kinds])
        else:
            S |= dict(rope=[dict(rope_theta=c.get("rope_local_base_freq", 1e4)) if k == "sliding_attention" else rope_of(c, default=1e6) for k in kinds])
    if t == "olmo":
        S |= dict(norm="layer", no_gain=True, eps=1e-5, clip=c.get("clip_qkv"))
    if t == "olmo2":
        S |= dict(norms=("post_attention_layernorm", "post_feedforward_layernorm"), block="after", qk_norm="all heads")
    if t == "stablelm":
        p = rope_of(c, c.get("partial_rotary_factor", 0.25))
        S |= dict(norm="layer", rope=p, R=int(d * p["partial_rotary_factor"]), qk_norm="a gain for each head" if c.get("qk_layernorm") else None)
        if c.get("use_parallel_residual"):
            S |= dict(norms=("input_layernorm",) * 2, block="parallel")
    return S


def t5(c, W, ids, stack, memory=None):
    """One stack of T5."""
    H, d, eps, dec = c["num_heads"], c["d_kv"], c["layer_norm_epsilon"], stack == "decoder"
    g, T = lambda name: W.find(f"{stack}.{name}.weight"), len(ids)
    name = c["feed_forward_proj"].split("-")
    act = ACT["gelu_new" if c["feed_forward_proj"] == "gated-gelu" else name[-1]]
    heads = lambda y: y.reshape(len(y), H, d)
    table = g("block.0.layer.0.SelfAttention.relative_attention_bias")
    which = [[bucket(u - t, c["relative_attention_num_buckets"], c.get("relative_attention_max_distance", 128), not dec) for u in range(T)] for t in range(T)]
    bias = table[np.array(which)].transpose(2, 0, 1)
    x = W.find("shared.weight")[ids]
    for i in range((c.get("num_decoder_layers") if dec else None) or c["num_layers"]):
        def part(j, kind, x, keys, bias, causal):
            q, k, v = (heads(y @ g(f"block.{i}.layer.{j}.{kind}.{m}").T) for m, y in (("q", x), ("k", keys), ("v", keys)))
            return attend(q, k, v, 1.0, bias, causal, None, None) @ g(f"block.{i}.layer.{j}.{kind}.o").T
        n = lambda j, x: norm(x, g(f"block.{i}.layer.{j}.layer_norm"), None, "rms", eps)
        h = n(0, x)
        x = x + part(0, "SelfAttention", h, h, bias, dec)
        if dec:
            x = x + part(1, "EncDecAttention", n(1, x), memory, None, False)
        j = 2 if dec else 1
        h, f = n(j, x), f"block.{i}.layer.{j}.DenseReluDense."
        h = act(h @ g(f + "wi_0").T) * (h @ g(f + "wi_1").T) if name[0] == "gated" else act(h @ g(f + "wi").T)
        x = x + h @ g(f + "wo").T
    return norm(x, g("final_layer_norm"), None, "rms", eps)


def outputs(folder):
    """Pairs of what is computed here and what is expected."""
    c, W = json.loads((folder / "config.json").read_text()), Weights(folder / "model.safetensors")
    E = {k: v.numpy() for k, v in load_file(folder / "expected.safetensors").items()}
    if c["model_type"] in ("t5", "mt5"):
        for s in ("", "_5"):
            memory = t5(c, W, E["encoder_ids" + s], "encoder")
            yield memory, E["encoder_hidden" + s]
            x = t5(c, W, E["decoder_ids" + s], "decoder", memory)
            x = x if c.get("tie_word_embeddings") is False else x * c["d_model"] ** -0.5
            head = W.find("lm_head.weight")
            yield x @ (W.find("shared.weight") if head is None else head).T, E["logits" + s]
        return
    S = describe(c)
    if S.get("hidden_only"):
        for name in [k.removeprefix("ids_") for k in E if k.startswith("ids_")]:
            S["types"] = E.get("types_" + name, np.zeros(len(E["ids_" + name]), int))
            h = decoder(S, W, E["ids_" + name])
            yield h, E["hidden_" + name]
            yield h.mean(0), E["mean_" + name]
            yield np.tanh(linear(h[0], (W.find("pooler.dense.weight", *S["prefix"]), W.find("pooler.dense.bias", *S["prefix"])))), E["pooler_" + name]
        return
    logits = decoder(S, W, E["ids"])
    yield logits, E.get("logits_steps", E["logits"])
    if "logits_short" in E:
        yield logits[:len(E["logits_short"])], E["logits_short"]


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    worst, wrong, count = 0.0, [], 0
    for folder in sorted(p.parent for p in root.glob("*/expected.safetensors")):
        difference = max(np.abs(a - b).max() / b.std() for a, b in outputs(folder))
        worst, count = max(worst, difference), count + 1
        if not difference < 5e-5:
            wrong.append(folder.name)
            print(f"{folder.name}: differs by {difference:.1e}")
    print(f"{count} fixtures, largest difference {worst:.1e} of a standard deviation; wrong: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
