"""Compares Tidbit with llama.cpp and CTranslate2 in the same shapes, pairwise, on the machine it runs on.

usage: compare.py [--models DIR] [--shapes gpt2,...] [--pairs q4=Q4_0,...] [--threads 1,2] [--json] ...

Models have random weights in the real shapes: speed does not depend on them, and nothing is downloaded. They are made
once and kept in --models. The rivals are the packages of the Python that runs this: `pip install llama-cpp-python gguf
numpy`, and `ctranslate2` where it is compared. docs/performance.md says how to read the table.

What makes the figures comparable:
- Both programs run in turn, in processes of their own, several rounds. A ratio says how many times as fast Tidbit is:
  the median of the rounds' ratios, because a shared machine drifts by more from minute to minute than two neighbouring
  processes differ.
- Both get the same shape, threads, tokens and depth; one repetition that is not counted, then the median of the others.
- Tidbit and llama.cpp map their file, compute the logits of the last position only, and choosing a token is not timed.
  CTranslate2 does none of this: it has no call for it.
- Each keeps keys and values as it does by default: Tidbit in 8 bits beside integer weights, llama.cpp in f16. llama.cpp runs with
  flash attention and without, and the faster counts.
"""
import argparse
import itertools
import json
import os
import pathlib
import shlex
import statistics
import sys

from compare_models import CTRANSLATE2_TYPES, SHAPES, Failure, Models
from compare_programs import cold_times, rival_rate, tidbit_rate


def measurements(args):
    """Column, and what is to be run for it."""
    one = {"batch": 1, "depth": 0}
    if args.prefill:
        yield f"prefill {args.prefill}", {**one, "phase": "prefill", "n_tokens": args.prefill}
    for depth in args.depth if args.decode else []:
        yield f"decode at {depth}", {**one, "phase": "decode", "n_tokens": args.decode, "depth": depth}
    if args.batch > 1 and args.decode:
        yield f"{args.batch} sequences", {**one, "phase": "decode", "n_tokens": args.decode, "batch": args.batch}
    if not args.no_cold:
        yield "first token, ms", {**one, "phase": "cold", "n_tokens": 1}


def compare(args, models):
    """One record for each shape, pair, number of threads and measurement."""
    for shape in args.shapes:
        for quant, kind in args.pairs:
            ours = models.tidbit(shape, quant)
            if kind in CTRANSLATE2_TYPES:
                program, theirs = "ctranslate2", models.ctranslate2(shape, kind)
            else:
                program, theirs = args.llama_bench_name if args.llama_bench else "llama.cpp", models.gguf(shape, kind)
            for threads, (column, work) in itertools.product(args.threads, measurements(args)):
                work = work | {"program": program, "model": theirs[0], "kind": kind, "threads": threads}
                work |= {"tidbit": args.tidbit, "tidbit_model": ours[0], "text": bool(args.tokenizer)}
                work |= {"repetitions": args.repetitions, "repack": not args.no_repack}
                rounds = [measure(args, work) for _ in range(args.rounds)]
                record = {"shape": shape, "threads": threads, "measurement": column}
                record["tidbit"] = side("tidbit", quant, ours, [r[0] for r in rounds])
                record["rival"] = side(program, kind, theirs, [r[1] for r in rounds])
                # Tokens per second, but milliseconds of the first token.
                ratios = [b / a if work["phase"] == "cold" else a / b for a, b in rounds if a and b]
                record["ratios"], record["ratio"] = ratios, statistics.median(ratios) if ratios else None
                told = f"{shape} {quant} and {program} {kind}, {threads} threads, {column}: {cell(record)}"
                print(told, file=sys.stderr, flush=True)
                yield record
        models.drop_f16(shape)


def measure(args, work):
    """One round: Tidbit, then the rival; none for what cannot be measured."""
    if work["phase"] == "cold":
        return cold_times(args, work)
    return tidbit_rate(args, work), rival_rate(args, work)


def side(program, kind, model, samples):
    """One program's part of a record."""
    _, size, bits = model
    samples = [s for s in samples if s is not None]
    median = statistics.median(samples) if samples else None
    about = {"program": program, "type": kind, "file_bytes": size, "bits_per_weight": bits}
    return about | {"median": median, "rounds": samples}


def cell(record):
    """`ours / theirs = ratio`."""
    ours, theirs = (record[who]["median"] for who in ("tidbit", "rival"))
    ours, theirs = ("-" if x is None else f"{x:.3g}" if x < 100 else f"{x:.0f}" for x in (ours, theirs))
    return f"{ours} / {theirs}" + (f" = {record['ratio']:.2f}" if record["ratio"] else "")


def table(records, columns):
    """Markdown: a row for each pair and number of threads, a column for each measurement."""
    names = ["shape", "tidbit (MB, bits)", "rival (MB, bits)", "threads", *columns]
    lines = ["| " + " | ".join(names) + " |", "|---|---|---|---:|" + "---:|" * len(columns)]
    rows = {}
    for record in records:
        ours, theirs = record["tidbit"], record["rival"]
        about = [f"{s['file_bytes'] / 1e6:.1f}, {s['bits_per_weight']:.2f}" for s in (ours, theirs)]
        key = (record["shape"], f"{ours['type']} ({about[0]})", f"{theirs['program']} {theirs['type']} ({about[1]})")
        rows.setdefault((*key, str(record["threads"])), {})[record["measurement"]] = cell(record)
    lines += ["| " + " | ".join([*key, *(cells.get(c, "") for c in columns)]) + " |" for key, cells in rows.items()]
    return "\n".join(lines)


def arguments():
    """The command line."""

    def several(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    def pair(text):
        quant, _, rival = text.partition("=")
        if not rival:
            raise argparse.ArgumentTypeError(f"{text!r}: expected OURS=THEIRS, for example q4=Q4_K_M")
        return quant, rival

    def shape(text):
        if text not in SHAPES:
            raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(SHAPES)}")
        return text

    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--tidbit", default="target/release/tidbit", help="the binary [%(default)s]")
    add("--models", type=pathlib.Path, default="target/compare", help="folder of the models, kept [%(default)s]")
    add("--shapes", type=several(shape), default=["gpt2"], help=f"of {', '.join(SHAPES)} [gpt2]")
    add("--pairs", type=several(pair), default=[("q4", "Q4_0"), ("q4", "Q4_K_M"), ("q8", "Q8_0")],
        help=f"OURS=THEIRS: a type of llama.cpp, or of CTranslate2 ({', '.join(CTRANSLATE2_TYPES)}) "
        "[q4=Q4_0,q4=Q4_K_M,q8=Q8_0]")
    add("--threads", type=several(int), default=sorted({1, os.cpu_count() or 1}), help="[1 and all cores]")
    add("--prefill", type=int, default=512, help="tokens at once, 0 for none [%(default)s]")
    add("--decode", type=int, default=32, help="tokens one by one, 0 for none [%(default)s]")
    add("--depth", type=several(int), default=[0, 900], help="tokens in the cache before those [0,900]")
    add("--batch", type=int, default=8, help="sequences decoded together, 1 for none [%(default)s]")
    add("--no-cold", action="store_true", help="do not time fresh processes to their first token")
    add("--rounds", type=int, default=3, help="how often both programs take turns [%(default)s]")
    add("--repetitions", type=int, default=3, help="in each round, after one to warm up [%(default)s]")
    add("--tokenizer", type=pathlib.Path, metavar="FILE",
        help="a tokenizer.json for both; without one, the first token comes after ids")
    add("--no-repack", action="store_true", help="llama.cpp without its weights rearranged at load (use_extra_bufts)")
    add("--separate-head", action="store_true", help="store GPT-2's head twice in a GGUF, for programs that need it so")
    add("--llama-bench", metavar="PATH", help="measure this llama-bench of llama.cpp or a fork, not the package")
    add("--llama-batched-bench", metavar="PATH", help="and the sequences with this llama-batched-bench")
    add("--llama-bench-name", default="llama-bench", help="what to call it [%(default)s]")
    add("--llama-bench-args", type=shlex.split, default=[], help="more flags for it, for example '-rtr 1'")
    add("--llama-batched-bench-args", type=shlex.split, default=[], help="more flags for that one")
    add("--llama-cli", metavar="PATH", help="take the first token from this program instead of the package")
    add("--llama-cli-args", type=shlex.split, default=["-no-cnv", "--no-warmup"],
        help="more flags for it [-no-cnv --no-warmup]")
    add("--wrap", type=shlex.split, default=[], help="put before every measured command, for example 'taskset -c 0,1'")
    add("--json", action="store_true", help="print a list of records instead of the table")
    return parser.parse_args()


def main():
    """Runs the comparison."""
    args = arguments()
    records = list(compare(args, Models(args)))
    columns = list(dict.fromkeys(record["measurement"] for record in records))
    print(json.dumps(records, indent=1) if args.json else table(records, columns))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
