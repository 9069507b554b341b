"""The models of compare.py: random weights in the real shapes, for each program in its own format.

No weights are read from anywhere. A GGUF is written in f16 and quantized by llama.cpp itself, so that its mixture of
types is what its users get; a model of CTranslate2 is made by that package's own specification classes.
"""
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys

# Family, layers, width, heads, vocabulary, positions.
SHAPES = {
    "gpt2": ("gpt2", 12, 768, 12, 50257, 1024),
    "gpt2-medium": ("gpt2", 24, 1024, 16, 50257, 1024),
    "gpt2-large": ("gpt2", 36, 1280, 20, 50257, 1024),
    "gpt2-xl": ("gpt2", 48, 1600, 25, 50257, 1024),
    "pythia-160m": ("gptneox", 12, 768, 12, 50304, 2048),
    "pythia-410m": ("gptneox", 24, 1024, 16, 50304, 2048),
    "pythia-1.4b": ("gptneox", 24, 2048, 16, 50304, 2048),
}
CTRANSLATE2_TYPES = ("int8", "int16", "float32")


class Failure(Exception):
    """Ends the program with one line."""


def package(name, pip):
    """A package, or how to get it."""
    try:
        return __import__(name)
    except ImportError:
        raise Failure(f"the Python package {pip} is missing: pip install {pip}") from None


def output_of(command, stderr=subprocess.PIPE):
    """stdout of a command that must succeed."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True)
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout
    if done.returncode == -signal.SIGSEGV:
        hint = "docs/performance.md names a known cause in llama.cpp; --no-repack avoids it"
        raise Failure(f"{shlex.join(command)}: crashed\nhint: {hint}")
    tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
    raise Failure(f"{shlex.join(command)}: exit code {done.returncode}: {' / '.join(tail) or 'no message'}")


def silence(llama):
    """llama.cpp's log goes nowhere; the callback must outlive every call."""
    silence.callback = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silence.callback, None)


def gguf_tensors(shape, separate_head):
    """Names and shapes [rows, columns] of a GGUF, as llama.cpp's own converter writes them."""
    family, layers, width, _, vocab, positions = SHAPES[shape]
    yield "token_embd.weight", (vocab, width)
    if family == "gpt2":
        yield "position_embd.weight", (positions, width)
    if family != "gpt2" or separate_head:
        yield "output.weight", (vocab, width)
    for norm in ["output_norm"] + [f"blk.{i}.{norm}" for i in range(layers) for norm in ("attn_norm", "ffn_norm")]:
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)
    for i in range(layers):
        for name, rows, columns in [
            ("attn_qkv", 3 * width, width),
            ("attn_output", width, width),
            ("ffn_up", 4 * width, width),
            ("ffn_down", width, 4 * width),
        ]:
            yield f"blk.{i}.{name}.weight", (rows, columns)
            yield f"blk.{i}.{name}.bias", (rows,)


def gguf_tokenizer(writer, family, vocab, tokenizer):
    """Puts a byte-level BPE of a tokenizer.json into the file, or none."""
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    source = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokens = {i: token for token, i in source["model"]["vocab"].items()}
    tokens.update({added["id"]: added["content"] for added in source["added_tokens"]})
    if max(tokens) >= vocab:
        raise Failure(f"{tokenizer}: token id {max(tokens)}, but the shape has {vocab}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in source["model"]["merges"]]
    added = {token["id"] for token in source["added_tokens"]}
    normal, control, unused = 1, 3, 5
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens.get(i, f"[unused {i}]") for i in range(vocab)])
    writer.add_token_types([control if i in added else normal if i in tokens else unused for i in range(vocab)])
    writer.add_token_merges(merges)
    end = next(i for i, token in tokens.items() if token == "<|endoftext|>")
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)


def write_gguf(path, shape, tokenizer, separate_head):
    """Random weights in f16, vectors and positions in f32."""
    gguf, numpy = package("gguf", "gguf"), package("numpy", "numpy")
    family, layers, width, heads, vocab, positions = SHAPES[shape]
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(positions)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if family == "gptneox":
        writer.add_rope_dimension_count(width // heads // 4)
        writer.add_parallel_residual(True)
    gguf_tokenizer(writer, family, vocab, tokenizer)
    tensors = list(gguf_tensors(shape, separate_head))
    types = [numpy.float32 if len(size) == 1 or "position" in name else numpy.float16 for name, size in tensors]
    for (name, size), dtype in zip(tensors, types):
        writer.add_tensor_info(name, size, numpy.dtype(dtype), numpy.prod(size).item() * numpy.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = numpy.random.default_rng(1)
    for (name, size), dtype in zip(tensors, types):
        values = random.standard_normal(size, dtype=numpy.float32) * 0.02
        writer.write_tensor_data((values + ("norm.weight" in name)).astype(dtype))
    writer.close()


def write_ctranslate2(folder, shape, kind):
    """The same for CTranslate2, by the specification classes of its package."""
    numpy = package("numpy", "numpy")
    package("ctranslate2", "ctranslate2")
    from ctranslate2.specs import common_spec, transformer_spec
    family, layers, width, heads, vocab, positions = SHAPES[shape]
    random = numpy.random.default_rng(1)

    def normal(*size):
        return random.standard_normal(size, dtype=numpy.float32) * numpy.float32(0.02)

    def norm(spec):
        spec.gamma, spec.beta = numpy.ones(width, numpy.float32), normal(width)

    def linear(spec, rows, columns):
        spec.weight, spec.bias = normal(rows, columns), normal(rows)

    gpt2 = family == "gpt2"
    options = {} if gpt2 else {"rotary_dim": width // heads // 4, "rotary_interleave": False, "parallel_residual": True}
    activation = common_spec.Activation.GELUTanh if gpt2 else common_spec.Activation.GELU
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        layers, heads, pre_norm=True, activation=activation, shared_layer_norm=False, **options
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = normal(vocab, width)
    if gpt2:
        decoder.position_encodings.encodings = normal(positions, width)
    decoder.projection.weight = decoder.embeddings.weight if gpt2 else normal(vocab, width)
    norm(decoder.layer_norm)
    for layer in decoder.layer:
        norm(layer.self_attention.layer_norm if gpt2 else layer.input_layer_norm)
        norm(layer.ffn.layer_norm if gpt2 else layer.post_attention_layer_norm)
        if not gpt2:
            delattr(layer.self_attention, "layer_norm")
            delattr(layer.ffn, "layer_norm")
        linear(layer.self_attention.linear[0], 3 * width, width)
        linear(layer.self_attention.linear[1], width, width)
        linear(layer.ffn.linear_0, 4 * width, width)
        linear(layer.ffn.linear_1, width, 4 * width)
    spec.register_vocabulary([str(i) for i in range(vocab)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize(quantization=None if kind == "float32" else kind)
    folder.mkdir()
    spec.save(str(folder))


class Models:
    """The folder of models; what is missing is made."""

    def __init__(self, args):
        self.args, self.folder = args, args.models
        self.folder.mkdir(parents=True, exist_ok=True)
        self.suffix = ("-text" if args.tokenizer else "") + ("-head" if args.separate_head else "")

    def make(self, name, write):
        """Written beside its place and renamed, so that an interrupted run leaves no half of a model."""
        path, part = self.folder / name, self.folder / f"{name}.{os.getpid()}.part"
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            try:
                write(part)
                part.rename(path)
            finally:
                if part.is_file():
                    part.unlink()
        return path

    def tidbit(self, shape, quant):
        """A model file of Tidbit: path, bytes, bits per weight."""

        def write(part):
            command = [self.args.tidbit, "bench", "--shape", shape, "--quant", quant, "--save", part, "--prefill", "0"]
            command += ["--decode", "1", "--repetitions", "1", "--threads", "1", "--json"]
            output_of(command + (["--tokenizer", self.args.tokenizer] if self.args.tokenizer else []))

        path = self.make(f"{shape}{'-text' if self.args.tokenizer else ''}-{quant}.tidbit", write)
        about = json.loads(output_of([self.args.tidbit, "inspect", path, "--json"]))
        return path, path.stat().st_size, about["bits_per_weight"]

    def gguf(self, shape, kind):
        """A GGUF, made from f16 by llama.cpp itself: path, bytes, bits per weight."""
        f16 = f"{shape}{self.suffix}-F16.gguf"

        def write(part):
            write_gguf(part, shape, self.args.tokenizer, self.args.separate_head)

        def quantize(part):
            llama = package("llama_cpp", "llama-cpp-python")
            ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
            if ftype is None:
                raise Failure(f"{kind} is no type that llama-cpp-python writes, and {self.folder} has no file of it")
            params = llama.llama_model_quantize_default_params()
            params.ftype, params.nthread = ftype, max(self.args.threads)
            source = self.make(f16, write)
            silence(llama)
            if llama.llama_model_quantize(bytes(source), bytes(part), ctypes.byref(params)) != 0:
                raise Failure(f"llama.cpp could not make {kind} of {source}")

        path = self.make(f16, write) if kind == "F16" else self.make(f"{shape}{self.suffix}-{kind}.gguf", quantize)
        size = path.stat().st_size
        try:
            tensors = package("gguf", "gguf").GGUFReader(path).tensors
        except ValueError:
            # A type that only a fork has: all bytes over the weights, the file's other contents included.
            weights = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in gguf_tensors(shape, False))
            return path, size, 8 * size / weights
        return path, size, 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)

    def ctranslate2(self, shape, kind):
        """A model folder of CTranslate2: path, bytes, bits per weight."""
        path = self.make(f"{shape}-{kind}.ct2", lambda part: write_ctranslate2(part, shape, kind))
        size = (path / "model.bin").stat().st_size
        weights = sum(size[0] * (size[1] if len(size) > 1 else 1) for _, size in gguf_tensors(shape, False))
        return path, size, 8 * size / weights

    def drop_f16(self, shape):
        """Removes the source of the quantized files, which is larger than all of them together."""
        if not any(rival == "F16" for _, rival in self.args.pairs):
            (self.folder / f"{shape}{self.suffix}-F16.gguf").unlink(missing_ok=True)
