"""Chooses the simplest, most tale-like documents of a large collection, trains the tokenizer and packs the tokens.

usage: select_text.py TRAIN.txt.xz HELDOUT.txt OUT_DIR

TRAIN has documents separated by <|endoftext|> lines. A document's score is how common its words are (share of its words
among the 2,500 commonest of the collection) plus how tale-like (share of words of a short list), both standardized,
less half the length (likewise) of its sentences and of its words. The best 35 million characters are "tales", the next 65 million "stories".
OUT_DIR gets tokenizer.json, tales.npy, stories.npy and heldout.npy (uint16 ids; <|endoftext|> = 0 ends each document).
"""
import collections, lzma, pathlib, random, re, sys
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB, EOT = 3584, "<|endoftext|>"
TALES, STORIES = 35_000_000, 65_000_000
TALE_WORDS = set("""king queen prince princess fairy fairies witch wizard giant dwarf dwarfs dragon castle palace forest wood
magic enchanted ogre mother father sister brother sisters brothers boy girl child children little old poor golden cat dog bird
birds mouse rabbit bear wolf fox lion horse cow hen goose duck frog pig donkey tree trees flowers garden cottage supper bread
cried asked""".split())


def select(docs):
    """Indices of the documents, best first."""
    words = [collections.Counter(re.findall(r"[a-z']+", d.lower())) for d in docs]
    total = collections.Counter()
    for w in words:
        total.update(w)
    common = set(w for w, _ in total.most_common(2500))
    rows = []
    for d, w in zip(docs, words):
        n = max(1, w.total())
        rows.append((sum(c for k, c in w.items() if k in common) / n, np.log(1 + 1000 * sum(w[k] for k in TALE_WORDS) / n),
                     np.log(n / max(1, len(re.findall(r"[.!?]", d)))), sum(len(k) * c for k, c in w.items()) / n))
    z = np.array(rows)
    z = ((z - z.mean(0)) / z.std(0)).clip(-3, 3)
    return np.argsort(-(z @ [1.0, 1.0, -0.5, -0.5]), kind="stable")


def main(train, heldout, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    docs = lzma.open(train, "rt", encoding="utf-8").read().strip("\n").split(f"\n{EOT}\n")
    parts, size = {"tales": [], "stories": []}, 0
    for i in select(docs):
        if size < TALES + STORIES:
            parts["tales" if size < TALES else "stories"].append(docs[i])
        size += len(docs[i])
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(parts["tales"], trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tok.save(str(out / "tokenizer.json"))
    for name, chosen in parts.items():
        random.Random(1).shuffle(chosen)
        ids = [i for e in tok.encode_batch_fast(chosen, add_special_tokens=False) for i in e.ids + [0]]
        np.save(out / f"{name}.npy", np.array(ids, np.uint16))
        print(f"{name}: {len(chosen)} documents, {sum(map(len, chosen)):,} characters, {len(ids):,} tokens", flush=True)
    ids = tok.encode(pathlib.Path(heldout).read_text()).ids
    np.save(out / "heldout.npy", np.array(ids, np.uint16))
    print(f"held out: {len(ids):,} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
