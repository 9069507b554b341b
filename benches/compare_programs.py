"""The programs of compare.py, each measured in a process of its own.

usage: compare_programs.py JSON   (compare.py makes the JSON; samples go to stdout as JSON)
"""
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

from compare_models import Failure, output_of, package, silence

PROMPT = "Once upon a time there"  # five tokens with GPT-2's tokenizer
PROMPT_IDS = [7454, 2402, 257, 640, 612]


def ids(n, vocab):
    """Any ids do: speed does not depend on them."""
    return [i * 7919 % vocab for i in range(n)]


class LlamaCpp:
    """llama.cpp by the C API, through the declarations of llama-cpp-python."""

    def __init__(self, work):
        self.llama = llama = package("llama_cpp", "llama-cpp-python")
        silence(llama)
        llama.llama_backend_init()
        model = llama.llama_model_default_params()
        model.n_gpu_layers, model.use_extra_bufts = 0, work["repack"]
        self.model = llama.llama_model_load_from_file(os.fsencode(work["model"]), model)
        context = llama.llama_context_default_params()
        context.n_seq_max = work["batch"]
        # Whole blocks of 256 positions for each sequence, as llama.cpp rounds it.
        per_sequence = -(-max(work["depth"] + work["n_tokens"], 256) // 256) * 256
        context.n_ctx = per_sequence * work["batch"]
        context.n_batch = max(work["n_tokens"], work["depth"], 512)
        context.n_threads = context.n_threads_batch = work["threads"]
        if not work["flash"]:
            context.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED; the default is on, where it can be
        self.context = self.model and llama.llama_init_from_model(self.model, context)
        if not self.context:
            raise Failure(f"llama.cpp cannot open {work['model']}")
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.batch = llama.llama_batch_init(context.n_batch, 0, 1)
        self.sequences = work["batch"]

    def feed(self, tokens, start):
        """Runs `tokens` from position `start`: with one sequence all of them, otherwise one for each sequence."""
        batch = self.batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i], batch.seq_id[i][0] = (start + i, 0) if self.sequences == 1 else (start, i)
            batch.logits[i] = self.sequences > 1 or i + 1 == len(tokens)
        batch.n_tokens = len(tokens)
        code = self.llama.llama_decode(self.context, batch)
        if code != 0:
            raise Failure(f"llama_decode: {code}")
        self.llama.llama_synchronize(self.context)

    def rates(self, work):
        """Tokens per second of each repetition."""
        depth, n_tokens, samples = work["depth"], work["n_tokens"], []
        tokens = ids(depth + n_tokens, self.llama.llama_vocab_n_tokens(self.vocab))
        if depth:
            self.feed(tokens[:depth], 0)
        for _ in range(work["repetitions"] + 1):
            self.llama.llama_memory_seq_rm(self.memory, -1, depth, -1)
            begin = time.perf_counter()
            if work["phase"] == "prefill":
                self.feed(tokens, 0)
            else:
                for at in range(depth, depth + n_tokens):
                    self.feed([tokens[at]] * self.sequences, at)
            samples.append(n_tokens * self.sequences / (time.perf_counter() - begin))
        return samples[1:]

    @staticmethod
    def first_token(work):
        """Milliseconds to open the model and choose a token; the interpreter and its imports have started before."""
        package("llama_cpp", "llama-cpp-python")
        numpy = package("numpy", "numpy")
        begin = time.perf_counter()
        self = LlamaCpp(work)
        tokens = PROMPT_IDS
        if work["text"]:
            text, buffer = PROMPT.encode(), (ctypes.c_int32 * 64)()
            n = self.llama.llama_tokenize(self.vocab, text, len(text), buffer, len(buffer), False, False)
            tokens = list(buffer[:n])
        self.feed(tokens, 0)
        n_vocab = self.llama.llama_vocab_n_tokens(self.vocab)
        numpy.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.context, -1), (n_vocab,)).argmax()
        return [1e3 * (time.perf_counter() - begin)]


class Ctranslate2:
    """CTranslate2. It has no call that only computes logits: one greedy choice for each token is in its figures."""

    def __init__(self, work):
        self.ctranslate2 = package("ctranslate2", "ctranslate2")
        self.generator = self.ctranslate2.Generator(
            work["model"], device="cpu", compute_type=work["kind"], intra_threads=work["threads"], inter_threads=1
        )

    def seconds(self, prompts, n_tokens):
        """Seconds for `n_tokens` more after each of the prompts."""
        begin = time.perf_counter()
        self.generator.generate_batch(
            prompts, max_length=n_tokens, min_length=n_tokens, sampling_topk=1, include_prompt_in_result=False
        )
        return time.perf_counter() - begin

    def rates(self, work):
        """Tokens per second of each repetition."""
        depth, n_tokens, samples = work["depth"], work["n_tokens"], []
        tokens = [str(i) for i in ids(max(depth, n_tokens), 50000)]
        for _ in range(work["repetitions"] + 1):
            if work["phase"] == "prefill":
                seconds = self.seconds([tokens[:n_tokens]], 1)
            elif depth:
                # The prompt's own time, which ends with one choice, is taken off.
                seconds = self.seconds([tokens[:depth]], n_tokens + 1) - self.seconds([tokens[:depth]], 1)
            else:
                seconds = self.seconds([tokens[:1]] * work["batch"], n_tokens)
            samples.append(n_tokens * work["batch"] / seconds)
        return samples[1:]


def cold(work):
    """Milliseconds of fresh processes until their first token, both programs in turn: [[ours...], [theirs...]]."""
    prompt = ["-p", PROMPT] if work["text"] else ["--ids", ",".join(map(str, PROMPT_IDS))]
    ours, theirs = [], []
    tidbit = [work["tidbit"], "run", work["tidbit_model"], *prompt, "-n", "1", "--temperature", "0", "--quiet"]
    tidbit += ["--threads", str(work["threads"])]
    for _ in range(work["repetitions"] + 1):
        begin = time.perf_counter()
        output_of(tidbit)
        ours.append(1e3 * (time.perf_counter() - begin))
        if work["command"]:
            begin = time.perf_counter()
            output_of(work["command"])
            theirs.append(1e3 * (time.perf_counter() - begin))
        else:
            theirs += json.loads(output_of(worker_command({**work, "job": "first_token"})))
    return [ours[1:], theirs[1:]]


JOBS = {
    "llama.cpp": lambda work: LlamaCpp(work).rates(work),
    "ctranslate2": lambda work: Ctranslate2(work).rates(work),
    "first_token": LlamaCpp.first_token,
    "cold": cold,
}


def worker_command(work):
    """This program again, for one measurement in a process of its own."""
    return [sys.executable, os.path.abspath(__file__), json.dumps(work, default=str)]


def tidbit_rate(args, work):
    """Median tokens per second of `tidbit bench`, or none where it cannot measure this."""
    command = [*args.wrap, args.tidbit, "bench", work["tidbit_model"], "--threads", work["threads"], "--json"]
    command += ["--repetitions", args.repetitions, "--depth", work["depth"]]
    prefill = work["phase"] == "prefill"
    command += ["--prefill", work["n_tokens"] if prefill else 0, "--decode", 0 if prefill else work["n_tokens"]]
    if work["batch"] > 1:
        if "--batch" not in output_of([args.tidbit, "bench", "--help"]):
            return None
        command += ["--batch", work["batch"]]
    runs = json.loads(output_of(command))
    return next(run["tokens_per_s"] for run in runs if run["phase"] == work["phase"] and run["batch"] == work["batch"])


def cold_times(args, work):
    """Median milliseconds of both, or none where the rival's program cannot be had by itself."""
    work = work | {"job": "cold", "command": None, "flash": True}
    if args.llama_cli and work["program"] != "ctranslate2":
        work["command"] = [args.llama_cli, "-m", work["model"], "-p", PROMPT, "-n", 1, "-t", work["threads"]]
        work["command"] += args.llama_cli_args
    elif work["program"] != "llama.cpp":
        return None, None
    return [statistics.median(times) for times in json.loads(output_of([*args.wrap, *worker_command(work)]))]


def llama_bench_rate(args, work):
    """Median tokens per second of a llama-bench."""
    command = [args.llama_bench, "-m", work["model"], "-t", work["threads"], "-r", args.repetitions, "-o", "json"]
    command += args.llama_bench_args
    if work["phase"] == "prefill":
        command += ["-p", work["n_tokens"], "-n", 0]
    elif work["depth"] == 0:
        command += ["-p", 0, "-n", work["n_tokens"]]
    elif "-gp <" in output_of([args.llama_bench, "--help"]):
        command += ["-p", 0, "-n", 0, "-gp", f"{work['depth']},{work['n_tokens']}"]
    else:
        command += ["-p", 0, "-n", work["n_tokens"], "-d", work["depth"]]
    # The better of flash attention and none: it helps a prompt and hurts single tokens at depth.
    runs = json.loads(output_of([*args.wrap, *command, "-fa", "0,1"]))
    return max(statistics.median(run["samples_ts"]) for run in runs)


def llama_batched_bench_rate(args, work):
    """Median tokens per second of a llama-batched-bench, or none without one. It needs a prompt of a token."""
    if not args.llama_batched_bench:
        return None
    sequences = ",".join([str(work["batch"])] * (args.repetitions + 1))
    command = [args.llama_batched_bench, "-m", work["model"], "-t", work["threads"], "-c", 256 * work["batch"]]
    command += ["-npp", 1, "-ntg", work["n_tokens"], "-npl", sequences, *args.llama_batched_bench_args]
    # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |
    # A fork writes it to stderr.
    text = output_of([*args.wrap, *command], stderr=subprocess.STDOUT)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    rates = [float(row[8]) for row in rows if row[1].strip() == "1"]
    if len(rates) != args.repetitions + 1:
        raise Failure(f"{args.llama_batched_bench}: {len(rates)} rows, expected {args.repetitions + 1}")
    return statistics.median(rates[1:])


def rival_rate(args, work):
    """Median tokens per second of the rival, or none where it cannot be measured."""
    if work["program"] in ("llama.cpp", "ctranslate2"):
        work = work | {"job": work["program"]}
        # As in `llama_bench_rate`.
        kinds = [work | {"flash": flash} for flash in ([True, False] if work["program"] == "llama.cpp" else [True])]
        samples = [json.loads(output_of([*args.wrap, *worker_command(kind)])) for kind in kinds]
        return max(map(statistics.median, samples))
    return llama_batched_bench_rate(args, work) if work["batch"] > 1 else llama_bench_rate(args, work)


if __name__ == "__main__":
    try:
        WORK = json.loads(sys.argv[1])
        print(json.dumps(JOBS[WORK["job"]](WORK)))
    except Failure as failure:
        sys.exit(f"error: {failure}")
