#!/usr/bin/env python3
"""The table of quality and size in docs/quantization.md: converts a checkpoint to every type, without and with data and to
target sizes, and measures each file with `tidbit eval` against the f32 model.

    cargo build --release
    benches/quality.py gpt2-mini neox-mini
    benches/quality.py smollm2 --checkpoint FOLDER --text wikitext2-test.txt --calibrate wikitext2-valid.txt

Rows are added to docs/quantization/NAME.tsv as they are measured; rows that are there already are kept (remove the file to
start again), so that it can be stopped at any time. At the end the page and its plots are written from all that is there;
`--page` does only that. Rivals' rows, in docs/quantization/llama.cpp-NAME.tsv, were measured by hand; the page says how.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "quantization"
PAGE = ROOT / "docs" / "quantization.md"
TYPES = ["q8", "q6", "q5", "q4", "q3", "q2"]
CACHES = ["q8", "q4"]
COLUMNS = ["type", "how", "file_bytes", "bits_per_weight", "perplexity", "perplexity_ratio", "kl_mean", "kl_mean_error",
           "kl_p99", "top1_agreement", "seconds"]
# What is measured by default: 32 windows of 512 tokens of the held-out text, the second half of each scored.
MODELS = {
    "gpt2-mini": dict(text="heldout.txt", windows=32, targets=[2.75, 3, 3.5, 4, 4.5, 5, 6, 7]),
    "neox-mini": dict(text="heldout.txt", windows=32, targets=[2.75, 3, 3.5, 4, 4.5, 5, 6, 7]),
    "smollm2": dict(text="-", windows=8, targets=[2.5, 3, 3.5, 4.2, 5.2, 6.05]),
}


def rows_of(path):
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"))) for line in lines[1:]]


def measure(name, args):
    model = MODELS[name]
    checkpoint = args.checkpoint or ROOT / "models" / name
    text = args.text or ROOT / "benches" / model["text"]
    table = FOLDER / f"{name}.tsv"
    done = {(row["type"], row["how"]) for row in rows_of(table)}
    calibrate = ["--calibrate"] + ([str(args.calibrate)] if args.calibrate else [])
    calibrate += ["--calibration-windows", str(args.calibration_windows)]
    jobs = [(t, "no data", ["--quant", t]) for t in TYPES] + [(t, "calibrated", ["--quant", t] + calibrate) for t in TYPES]
    jobs += [(str(t), "target", ["--target-bpw", str(t)] + calibrate) for t in model["targets"]]
    jobs += [(f"kv-{t}", "cache", ["--kv", t]) for t in CACHES]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        exact, file = pathlib.Path(scratch) / "f32.tidbit", pathlib.Path(scratch) / "model.tidbit"
        run(args.tidbit, "convert", checkpoint, "-o", exact, "--quant", "f32")
        for kind, how, options in jobs:
            if (kind, how) in done or (args.only and kind not in args.only):
                continue
            started = time.time()
            # The cache is measured with exact weights.
            measured, extra = (exact, options) if how == "cache" else (file, [])
            try:
                if how != "cache":
                    run(args.tidbit, "convert", checkpoint, "-o", file, *options)
            except subprocess.CalledProcessError as error:
                print(f"{name} {kind} {how}: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            seconds = time.time() - started
            found = json.loads(run(args.tidbit, "eval", measured, text, "--reference", exact, "--reference-kv", "f32", "--window",
                                   512, "--skip", 256, "--windows", model["windows"], "--json", *extra))
            found.update(type=kind, how=how, seconds=f"{seconds:.1f}")
            if not table.exists():
                table.write_text("\t".join(COLUMNS) + "\n")
            with table.open("a") as out:
                short = lambda v: f"{v:.6g}" if isinstance(v, float) else str(v)
                out.write("\t".join(short(found[column]) for column in COLUMNS) + "\n")
            print(f"{name} {kind} {how}: {found['bits_per_weight']:.3f} bits, KL {found['kl_mean']:.5f}", file=sys.stderr)


def run(tidbit, *args):
    command = [str(tidbit), *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def frontier(points):
    """The points (bytes, divergence) that no other one beats in both."""
    best, out = math.inf, []
    for size, kl in sorted(points, reverse=False):
        if kl < best:
            best = kl
            out.append((size, kl))
    return out


def at(line, size):
    """The divergence of a frontier at a size, between its points in proportion to the logarithm; None below it."""
    if size < line[0][0]:
        return None
    for (a, x), (b, y) in zip(line, line[1:]):
        if a <= size <= b:
            part = (size - a) / (b - a)
            return math.exp(math.log(x) * (1 - part) + math.log(y) * part)
    return line[-1][1]


def table(name):
    ours, theirs = rows_of(FOLDER / f"{name}.tsv"), rows_of(FOLDER / f"llama.cpp-{name}.tsv")
    line = frontier((int(r["file_bytes"]), float(r["kl_mean"])) for r in theirs)
    out = ["| type | data | file bytes | bits per weight | perplexity | KL, mean | KL, 99 % below | same top token "
           "| llama.cpp at this size, KL | ratio | convert |", "| --- | --- " + "| ---: " * 9 + "|"]
    for r in ours:
        if r["how"] == "cache":
            continue
        size, kl = int(r["file_bytes"]), float(r["kl_mean"])
        rival = at(line, size)
        seconds = f"{float(r['seconds']):.0f} s" if r["seconds"] else ""
        against = f"{rival:.5f} | {kl / rival:.2f}" if rival else "none so small | "
        out.append(f"| {r['type']} | {r['how']} | {size:,} | {float(r['bits_per_weight']):.3f} | "
                   f"{float(r['perplexity']):.3f} | {kl:.5f} ± {float(r['kl_mean_error']):.5f} | {float(r['kl_p99']):.4f} | "
                   f"{float(r['top1_agreement']):.2%} | {against} | {seconds} |")
    caches = [r for r in ours if r["how"] == "cache"]
    if caches:
        out += ["", "Exact weights, keys and values rounded:", "", "| cache | perplexity, ratio | KL, mean | KL, 99 % below | same top token |",
                "| --- " + "| ---: " * 4 + "|"]
        out += [f"| {r['type'].removeprefix('kv-')} | {float(r['perplexity_ratio']):.4f} | {float(r['kl_mean']):.5f} ± "
                f"{float(r['kl_mean_error']):.5f} | {float(r['kl_p99']):.4f} | {float(r['top1_agreement']):.2%} |" for r in caches]
    out += ["", f"<details><summary>llama.cpp's types on the same text</summary>", "",
            "| type | imatrix | file bytes | bits per weight | perplexity | KL, mean | same top token |",
            "| --- | --- " + "| ---: " * 5 + "|"]
    for r in sorted(theirs, key=lambda r: int(r["file_bytes"])):
        out.append(f"| {r['type']} | {r['imatrix']} | {int(r['file_bytes']):,} | {float(r['tensor_bits_per_weight']):.3f} | "
                   f"{float(r['ppl']):.3f} | {float(r['kl_mean']):.5f} | {float(r['same_top']) / 100:.2%} |")
    return "\n".join(out + ["", "</details>"])


def plot(name):
    """Divergence against bytes, both logarithmic, as SVG."""
    ours, theirs = rows_of(FOLDER / f"{name}.tsv"), rows_of(FOLDER / f"llama.cpp-{name}.tsv")
    point = lambda r: (int(r["file_bytes"]), float(r["kl_mean"]))
    series = [("llama.cpp, no imatrix", "#e8a33d", [point(r) for r in theirs if r["imatrix"] == "no"]),
              ("llama.cpp, imatrix", "#c0392b", [point(r) for r in theirs if r["imatrix"] == "yes"]),
              ("Tidbit, no data", "#7fb3d5", [point(r) for r in ours if r["how"] == "no data"]),
              ("Tidbit, calibrated", "#1f618d", [point(r) for r in ours if r["how"] == "calibrated"]),
              ("Tidbit, target", "#117a65", [point(r) for r in ours if r["how"] == "target"])]
    every = [p for _, _, points in series for p in points]
    lo, hi = [math.log(f(p[0] for p in every)) for f in (min, max)]
    low, high = math.floor(min(math.log10(p[1]) for p in every)), math.ceil(max(math.log10(p[1]) for p in every))
    width, height, left, top = 760, 440, 70, 20
    x = lambda v: left + (math.log(v) - lo) / (hi - lo) * (width - left - 30)
    y = lambda v: top + (high - math.log10(v)) / (high - low) * (height - top - 50)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for e in range(low, high + 1):
        out.append(f'<line x1="{left}" x2="{width - 30}" y1="{y(10 ** e):.1f}" y2="{y(10 ** e):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(10 ** e) + 4:.1f}" text-anchor="end">{10.0 ** e:g}</text>')
    for i in range(6):
        v = math.exp(lo + (hi - lo) * i / 5)
        out.append(f'<text x="{x(v):.1f}" y="{height - 30}" text-anchor="middle">{v / 1e6:.3g} MB</text>')
    out.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">file; mean KL divergence to f32 upwards, {name}</text>')
    for i, (label, colour, points) in enumerate(series):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in frontier(points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in points]
        out.append(f'<text x="{width - 190}" y="{top + 16 + 16 * i}" fill="{colour}">{label}</text>')
    (FOLDER / f"{name}.svg").write_text("\n".join(out + ["</svg>"]) + "\n")


def page():
    text = PAGE.read_text()
    for name in MODELS:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if rows_of(FOLDER / f"{name}.tsv") and begin in text:
            plot(name)
            before, rest = text.split(begin)
            after = rest.split(end)[1]
            text = f"{before}{begin}\n\n![divergence against bytes](quantization/{name}.svg)\n\n{table(name)}\n\n{end}{after}"
    PAGE.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"what to measure: {', '.join(MODELS)}")
    parser.add_argument("--tidbit", default=ROOT / "target" / "release" / "tidbit", type=pathlib.Path)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="its folder [default: models/NAME]")
    parser.add_argument("--text", type=pathlib.Path, help="what it is measured on [default: benches/heldout.txt]")
    parser.add_argument("--calibrate", type=pathlib.Path, help="[default: the text that comes with tidbit]")
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--only", type=lambda text: text.split(","), help="these types and targets only: q4,6.05")
    parser.add_argument("--scratch", help="folder for the files meanwhile")
    parser.add_argument("--page", action="store_true", help="write the page only")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in [] if args.page else args.models:
        measure(name, args)
    page()


if __name__ == "__main__":
    main()
