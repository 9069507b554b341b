"""Small GGUFs with SentencePiece tokenizers, and what SentencePiece makes of many texts.

usage: make_sentencepiece.py OUT_DIR CORPUS                 trains four small models on a text, `sentencepiece-NAME.gguf`
       make_sentencepiece.py OUT_DIR CORPUS NAME=MODEL ...  takes models that are there

`sentencepiece.json` has the texts, and for each model and text the FNV-1a checksum (32 bits, 8 digits) of the ids as u32. The ids are
those of SentencePiece for the parts of a text between the tokens that Tidbit recognises in texts, as llama.cpp does.
(needs sentencepiece, gguf 0.17 or newer, numpy)
"""
import io, json, pathlib, random, re, sys
import gguf, numpy as np, sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

D = 32
RULES = "FF21\t41\nFF42\t62\n9\t20\nA\t20\n3000\t20\nA0\t20\nFB01\t66 69\nAD\t\n2026\t2E 2E 2E\n65 301\tE9\n327F\t110E 1161\n"
COMMON = dict(minloglevel=2, num_threads=1, hard_vocab_limit=False)
BPE = dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
           allow_whitespace_only_pieces=True, character_coverage=0.999, unk_id=0, bos_id=1, eos_id=2)
MODELS = {
    "llama": dict(BPE, vocab_size=560, byte_fallback=True, control_symbols=["<ctl>"], user_defined_symbols=["<sep>", "<sep><sep>"]),
    "gemma": dict(BPE, vocab_size=560, byte_fallback=True, add_dummy_prefix=False,
                  user_defined_symbols=["<mask>", "▁▁", "▁▁▁", "▁▁▁▁", "<b>", "</b>", "ing"]),
    "unknown": dict(BPE, vocab_size=360, split_by_whitespace=False),
    "t5": dict(model_type="unigram", vocab_size=500, character_coverage=0.999, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
               user_defined_symbols=["<extra_id_0>"]),
}


def train(out, corpus, options):
    made = io.BytesIO()
    if options["model_type"] == "unigram":
        rules = out / "rules.tsv"
        rules.write_text(RULES)
        options = dict(options, normalization_rule_tsv=str(rules))
    spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus.split("\n")), model_writer=made, **COMMON, **options)
    (out / "rules.tsv").unlink(missing_ok=True)
    return made.getvalue()


def write(path, proto):
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1), w.add_context_length(16), w.add_embedding_length(D), w.add_feed_forward_length(D)
    w.add_head_count(2), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(D // 2)
    is_bpe, rules = proto.trainer_spec.model_type == 2, proto.normalizer_spec
    w.add_tokenizer_model("llama" if is_bpe else "t5")
    w.add_tokenizer_pre("default")
    w.add_token_list([p.piece.replace("▁", " ") if p.type == 4 else p.piece for p in proto.pieces])
    w.add_token_scores([p.score for p in proto.pieces])
    w.add_token_types([p.type for p in proto.pieces])
    w.add_add_space_prefix(rules.add_dummy_prefix)
    if not is_bpe:
        w.add_remove_extra_whitespaces(rules.remove_extra_whitespaces)
        w.add_precompiled_charsmap(rules.precompiled_charsmap)
    for name, piece in (("bos", proto.trainer_spec.bos_id), ("eos", proto.trainer_spec.eos_id), ("unk", proto.trainer_spec.unk_id)):
        if piece >= 0:
            getattr(w, f"add_{name}_token_id")(piece)
    ones = lambda *shape: gguf.quantize(np.ones(shape, np.float32), gguf.GGMLQuantizationType.Q8_0)
    q8 = dict(raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("token_embd.weight", ones(len(proto.pieces), D), **q8)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        w.add_tensor(f"blk.0.{part}.weight", ones(D, D), **q8)
    for part in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        w.add_tensor(f"{part}.weight", np.ones(D, np.float32))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file()
    w.close()


def texts(corpus, names):
    rng = random.Random(7)
    made = ["", " ", "  ", "\n", "\t", "a", " a", "a ", " a ", "Hello world", "<0x41>", "<0x0A>\n", "▁", "▁▁ ▁", " ▁a", "\0", "\r\n", "é", "e\u0301",
            "漢字かな交じり文", "한국어", "\u1112\u1161\u11ab", "العربية", "👩‍👩‍👧🏽 🦊", "ﬁﬁ…Ａｂ", "a\u00adb\u3000c", "  lots   of    space     "]
    words = re.findall(r"\S+", corpus)
    odd = [" ", "  ", "   ", "\n", "\n\n", "\t", "▁", "▁▁", "a", "aa", "aaa", "ab", "ba", "the", "he", "ing", "1", "2024", ".", "...", "<", ">", "é", "e\u0301",
           "ß", "漢", "字", "🦊", "\u200d", "\u3000", "\u00a0", "\ufeff", "\u0000", "\u007f", "\u00ad", "…", "ﬁ", "Ａ", "ｂ", "<0x41>", "<0xFF>", "<unk>", "㉿",
           "\ue000", "𝟙", "\U0010ffff", *names]
    while len(made) < 2400:
        kind = rng.randrange(7)
        if kind == 0:
            at = rng.randrange(len(corpus))
            made.append(corpus[at:at + rng.randrange(80)])
        elif kind == 1:
            made.append("".join(rng.choice(odd) for _ in range(rng.randrange(14))))
        elif kind == 2:
            made.append(rng.choice(words) + " " * rng.randrange(9) + rng.choice(words) + rng.choice(odd) + rng.choice(words))
        elif kind == 3:
            made.append("".join(rng.choice("aabett \n") for _ in range(rng.randrange(24))))
        elif kind == 4:
            made.append(rng.choice(odd) * rng.randrange(1, 12))
        elif kind == 5:
            made.append("".join(chr(c) for c in (rng.randrange(0x3000) for _ in range(rng.randrange(10)))))
        else:
            planes = (rng.choice([0x20, 0x250, 0x3040, 0x4e00, 0xac00, 0x1f300, 0xe000, 0x10fff0]) + rng.randrange(96) for _ in range(rng.randrange(10)))
            made.append("".join(map(chr, (c for c in planes if c < 0x110000))))
    return made


def ids(model, proto, text):
    # Between user-defined tokens there is no space to add in a model that adds none, so there SentencePiece finds them itself.
    found = (3, 2, 4) if proto.normalizer_spec.add_dummy_prefix else (3, 2)
    known = {p.piece.replace("▁", " ") if p.type == 4 else p.piece: i for i, p in enumerate(proto.pieces) if p.type in found}
    names = sorted(filter(None, known), key=len, reverse=True)
    for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
        yield from [known[part]] if part in known else model.encode(part)


def checksum(ids):
    sum = 0x811C9DC5
    for id in ids:
        for byte in int(id).to_bytes(4, "little"):
            sum = (sum ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{sum:08x}"


def main():
    out, corpus = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_text()
    models = {name: pathlib.Path(path).read_bytes() for name, path in (a.split("=") for a in sys.argv[3:])}
    models = models or {name: train(out, corpus, options) for name, options in MODELS.items()}
    protos = {name: pb.ModelProto.FromString(model) for name, model in models.items()}
    names = sorted({p.piece for proto in protos.values() for p in proto.pieces if p.type in (3, 4) and p.piece[0] != "▁"})
    all, sums = texts(corpus, names[:20]), {}
    for name, proto in protos.items():
        write(out / f"sentencepiece-{name}.gguf", proto)
        model = spm.SentencePieceProcessor(model_proto=models[name])
        sums[name] = "".join(checksum(ids(model, proto, text)) for text in all)
    (out / "sentencepiece.json").write_text(json.dumps({"texts": all, "sums": sums}, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
