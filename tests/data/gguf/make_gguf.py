"""Two small GGUFs of the same LLaMA: `types.gguf` has a tensor of every type that is read, `types-f32.gguf` has all of them as the
Python package `gguf` reads them, in F32. Blocks are random bytes, but for scales that are numbers.

usage: make_gguf.py OUT_DIR        (needs gguf 0.17 or newer, numpy)
"""
import pathlib, sys
import gguf, numpy as np
from gguf import GGMLQuantizationType as T

D, FFN, VOCAB, HEAD, LAYERS = 256, 4, 4, 2, 2
# Where a block's f16 scales are.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2],
          T.Q5_K: [0, 2], T.Q6_K: [208]}
SHAPES = {"attn_q": (HEAD, D), "attn_k": (HEAD, D), "attn_v": (HEAD, D), "ffn_gate": (FFN, D), "ffn_up": (FFN, D),
          "attn_output": (D, HEAD), "ffn_down": (D, FFN)}


def blocks(rng, kind, shape):
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (shape[0] * shape[1] // weights, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = rng.uniform(-0.02, 0.02, (len(data), 1)).astype(np.float16)
        data[:, at:at + 2] = scale.view(np.uint8)
    return data.reshape(shape[0], -1)


def tensors(rng):
    packed, plain = iter(SCALES), iter([T.F16, T.BF16, T.F32, T.F16])
    random = lambda *shape: rng.normal(0, 0.1, shape).astype(np.float32)
    yield "output_norm.weight", T.F32, random(D)
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", T.F32, random(D)
        for name, shape in SHAPES.items():
            if shape[1] == D:
                kind = next(packed)
                yield f"blk.{i}.{name}.weight", kind, blocks(rng, kind, shape)
            else:
                kind = next(plain)
                yield f"blk.{i}.{name}.weight", kind, gguf.quantize(random(*shape), kind)
    yield "token_embd.weight", T.Q6_K, blocks(rng, T.Q6_K, (VOCAB, D))
    yield "output.weight", T.Q4_K, blocks(rng, T.Q4_K, (VOCAB, D))


def main():
    out = pathlib.Path(sys.argv[1])
    made = list(tensors(np.random.default_rng(7)))
    for file, exact in (("types.gguf", False), ("types-f32.gguf", True)):
        w = gguf.GGUFWriter(out / file, "llama")
        w.add_block_count(LAYERS), w.add_context_length(16), w.add_embedding_length(D), w.add_feed_forward_length(FFN)
        w.add_head_count(1), w.add_head_count_kv(1), w.add_key_length(HEAD), w.add_value_length(HEAD)
        w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(HEAD), w.add_rope_freq_base(10000.0)
        for name, kind, data in made:
            if exact:
                w.add_tensor(name, gguf.dequantize(data, kind).astype(np.float32))
            elif kind in (T.F32, T.F16):
                w.add_tensor(name, data)
            else:
                w.add_tensor(name, data, raw_dtype=kind)
        w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file()
        w.close()


if __name__ == "__main__":
    main()
