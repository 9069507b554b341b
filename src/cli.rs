//! The command line: flags, their help and their examples. Values that the runtime checks (a
//! temperature, a number of threads) are passed on as they are, so that there is one rule for them.

use crate::access::AccessArgs;
use crate::bench::BenchArgs;
use clap::{Args, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sampler::SamplerOptions;
use tidbit_runtime::session::CacheType;
use tidbit_runtime::spec::PoolingKind;
use tidbit_runtime::speculate::MAX_GUESSES;

/// Most guesses of a step, unless told otherwise.
const DEFAULT_GUESSES: &str = "15";

/// Run quantized language models on the CPU: one file, memory-mapped, the same bits everywhere.
#[derive(Debug, Parser)]
#[command(name = "tidbit", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tidbit run models/gpt2-mini -p \"Once upon a time\"
  tidbit convert models/gpt2-mini -o gpt2-mini.tidbit --quant q4
  tidbit run gpt2-mini.tidbit -p \"Once upon a time\" --temperature 0
  tidbit inspect gpt2-mini.tidbit --verify
  tidbit init --spec model.yaml -o model.tidbit

Environment:
  TIDBIT_ISA    use these kernels instead of the fastest ones (an unknown name lists them)
  TIDBIT_CACHE  where models are kept that a command converted itself";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Convert(ConvertArgs),
    Init(InitArgs),
    Run(RunArgs),
    Embed(EmbedArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "perplexity")]
    Eval(EvalArgs),
    Bench(BenchArgs),
}

/// Turn a trained checkpoint into one model file.
///
/// The checkpoint is a folder as Hugging Face publishes it: `config.json`, the weights
/// (`model.safetensors`, shards with an index, or `pytorch_model.bin`) and a tokenizer; or a GGUF
/// file. Every field of the config is honoured or refused by name. The file is written beside its final name and
/// renamed at the end: an interrupted conversion leaves nothing behind.
///
/// A model that you trained in code of your own needs no config: with --spec, a YAML file of some lines says what it is made
/// of, and docs/model-files.md how its tensors are called.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit convert models/gpt2-mini -o gpt2-mini.tidbit
  tidbit convert models/gpt2-mini --quant q4 --dry-run
  tidbit convert models/gpt2-mini -o gpt2-mini.tidbit --quant q4 --calibrate
  tidbit convert models/gpt2-mini -o gpt2-mini.tidbit --target-bpw 3.5 --calibrate book.txt
  tidbit convert --spec model.yaml weights.safetensors -o model.tidbit")]
pub(crate) struct ConvertArgs {
    /// Folder of the checkpoint, its weights file, or a GGUF file.
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) source: PathBuf,
    /// What the model is made of: a YAML file (docs/model-files.md), or a `config.json`. Tensors have Tidbit's own names then; a
    /// `tokenizer.json` beside the weights is taken.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// The model file to write; an existing one is replaced.
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// How weights are stored: f32, f16, q8 (8.25 bits), q6, q5, q4, q3 or q2 (embedding and head get one or two types more).
    #[arg(long, value_name = "TYPE", default_value = "q8", value_parser = parse_quant)]
    pub(crate) quant: QuantType,
    /// Round weights so that what the model makes of a text changes least: slower, better. Without a file, of a text that
    /// comes with the program (then give the option last).
    #[arg(long, value_name = "TEXT", conflicts_with = "dry_run")]
    #[expect(clippy::option_option, reason = "absent, without a value, with one")]
    pub(crate) calibrate: Option<Option<PathBuf>>,
    /// Windows of 512 tokens of that text to use, at most.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) calibration_windows: usize,
    /// Give each matrix the bits that it needs for a file of this size, such as 60MB. Calibrates.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with_all = ["quant", "target_bpw", "dry_run"])]
    pub(crate) target_size: Option<u64>,
    /// The same for so many bits per weight, all tensors counted.
    #[arg(long, value_name = "BITS", conflicts_with_all = ["quant", "dry_run"])]
    pub(crate) target_bpw: Option<f64>,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a model of random weights from a description: to try an architecture before it is trained.
///
/// Gains are near 1, everything else around 0 with a deviation of 0.02; the same seed gives the same file on every machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit init --spec model.yaml -o model.tidbit
  tidbit init --spec models/gpt2-mini/config.json -o random.tidbit --quant q4 --seed 7
  tidbit init --spec model.yaml --tokenizer tokenizer.json -o model.tidbit
  tidbit bench model.tidbit

docs/model-files.md has all keys of the YAML file. The shortest one:
  vocab_size: 4096
  context_length: 512
  n_layers: 6
  d_model: 384
  n_heads: 6
  pos_type: rotary
  norm_type: rmsnorm
  activation: silu")]
pub(crate) struct InitArgs {
    /// What the model is made of: a YAML file, a `config.json`, or a folder with one (whose `tokenizer.json` is taken).
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: PathBuf,
    /// The model file to write; an existing one is replaced.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How weights are stored: f32, f16, q8, q6, q5, q4, q3 or q2.
    #[arg(long, value_name = "TYPE", default_value = "q8", value_parser = parse_quant)]
    pub(crate) quant: QuantType,
    /// Start of the random numbers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// A `tokenizer.json` to put into the model; without one it takes token ids only.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Continue a text.
///
/// The text is streamed to stdout: first the prompt, then its continuation. A model with an encoder (T5) reads the prompt, and
/// only what it writes about it is printed. Statistics go to stderr. Given the folder of a checkpoint or a GGUF file, `run` converts it to q8 first and keeps the result in the
/// user's cache.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit run models/gpt2-mini -p \"Once upon a time\"
  tidbit run gpt2-mini.tidbit -p \"Once upon a time\" -n 200 --temperature 0.7 --seed 1
  tidbit run gpt2-mini.tidbit --prompt-file story.txt --stop \"THE END\" --quiet > out.txt
  echo \"Once upon a time\" | tidbit run gpt2-mini.tidbit --json
  tidbit run gpt2-mini.tidbit -i
  tidbit run flan-t5-small -p \"translate English to German: The house is wonderful.\" --temperature 0
  tidbit run --chat SmolLM2-135M-Instruct.Q4_1.gguf -p \"Why is the sky blue?\"
  tidbit run gpt2-mini.tidbit --prompt-file code.txt --temperature 0 --speculate lookup

Exit code: 0 when the text ended by itself, 1 after an error, 2 for a wrong option, 130 after Ctrl-C.")]
#[expect(clippy::struct_excessive_bools, reason = "they are independent flags")]
pub(crate) struct RunArgs {
    /// Model file, or folder of a checkpoint.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    /// Generate at most this many tokens (in each turn of a prompt loop), at least 1.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub(crate) n_tokens: usize,
    /// Stop before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Talk with a model that was trained to answer: the prompt is a message, written into the model's chat template. Without
    /// a prompt, each line of stdin is one, and the conversation goes on.
    #[arg(long, conflicts_with = "ids")]
    pub(crate) chat: bool,
    /// What a conversation begins with.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Go on after the token that ends a text.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Do not print the prompt.
    #[arg(long)]
    pub(crate) no_echo: bool,
    /// Threads [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Tokens of prompt and continuation together, or with an encoder of the continuation (a prompt may then be as long as those that the
    /// model was made for in any case) [default: as many as the model takes].
    #[arg(long, value_name = "N")]
    pub(crate) ctx: Option<usize>,
    /// Guess tokens and run them together, up to N of them; the text stays the same. `lookup` guesses from the text so far:
    /// faster where it repeats itself, as in summaries and edits of code.
    #[arg(long, value_name = "lookup[:N]", value_parser = parse_speculate, conflicts_with = "draft")]
    pub(crate) speculate: Option<usize>,
    /// Guess with a smaller model (file or folder) that has the same vocabulary; the text stays the same.
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<PathBuf>,
    /// Read the whole model into memory first, and keep the system from taking it out again.
    #[arg(long)]
    pub(crate) mlock: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Print no statistics.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Print one JSON object at the end instead of streaming: text, ids, `finish_reason`, timings.
    #[arg(long, conflicts_with = "interactive")]
    pub(crate) json: bool,
    // Last, because its heading would cover what follows.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// How keys and values of past tokens are kept.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CacheArgs {
    /// Keep keys and values as f32, f16, q8 (8 bits and a scale for each head) or q4 (values in 4 bits beside keys
    /// in 8: a quarter less memory) [default: q8 for a model of integer weights (q8 to q2), f16 or f32 for one of
    /// those].
    #[arg(long = "kv", value_name = "TYPE", value_parser = parse_cache_type)]
    pub(crate) cache_type: Option<CacheType>,
}

/// Where the prompt comes from; without any of these, from stdin when that is no terminal.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct PromptArgs {
    /// The prompt.
    #[arg(short = 'p', long = "prompt", value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// Read the prompt from a file, or from stdin if it is `-`; a line break at its end is left out.
    #[arg(long = "prompt-file", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The prompt as token ids, e.g. `1,2,3`; a model without a tokenizer then prints ids too.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) ids: Vec<u32>,
    /// Prompt loop: each line goes on where the last answer stopped, or with an encoder is a text of its own; `/reset` starts afresh,
    /// `/quit` ends.
    #[arg(short, long)]
    pub(crate) interactive: bool,
}

/// The steps of choosing a token, in this order: repeat penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (in this order: repeat penalty, temperature, top-k, top-p, min-p, draw)")]
pub(crate) struct SamplingArgs {
    /// Divides the logits of recent tokens (multiplies negative ones), prompt included; 1 is off.
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().repeat_penalty, allow_negative_numbers = true)]
    pub(crate) repeat_penalty: f32,
    /// How many of the latest tokens the repeat penalty looks at.
    #[arg(long, value_name = "N", default_value_t = SamplerOptions::default().repeat_last_n)]
    pub(crate) repeat_last_n: usize,
    /// Divides the logits; 0 always takes the most probable token.
    #[arg(long, value_name = "T", default_value_t = SamplerOptions::default().temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Keep this many of the most probable tokens; 0 is off.
    #[arg(long, value_name = "K", default_value_t = SamplerOptions::default().top_k)]
    pub(crate) top_k: usize,
    /// Keep the fewest tokens whose probabilities sum to this; 1 is off.
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().top_p, allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Keep tokens with at least this fraction of the best one's probability; 0 is off.
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().min_p, allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Start of the random numbers; the same seed gives the same text on every machine
    /// [default: a random one, printed with the statistics].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Turn texts into vectors.
///
/// One vector a line, in order of the texts. Encoders (such as BERT) are made for it and say how to pool; hidden states of
/// other models, of their encoder if they have one, are averaged. Given the folder of a checkpoint, `embed` converts it as `run` does.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit embed minilm.tidbit \"The cat sits on the mat.\" \"A feline rests.\"
  tidbit embed minilm.tidbit --file sentences.txt > vectors.txt
  tidbit embed minilm.tidbit --file sentences.txt --json")]
pub(crate) struct EmbedArgs {
    /// Model file, or folder of a checkpoint.
    pub(crate) model: PathBuf,
    /// Texts; without any, and without --file, each line of stdin is one.
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    pub(crate) texts: Vec<String>,
    /// Each line of this file is a text; `-` is stdin.
    #[arg(long, value_name = "LINES")]
    pub(crate) file: Option<PathBuf>,
    /// Which hidden states make the vector: the mean of all, the first (cls) or the last [default: as the model says].
    #[arg(long, value_name = "mean|cls|last", value_parser = parse_pooling)]
    pub(crate) pooling: Option<PoolingKind>,
    /// Leave the vector as long as it is, where the model says to divide it by its length.
    #[arg(long)]
    pub(crate) no_normalize: bool,
    /// Leave out the end of texts that are too long, instead of failing.
    #[arg(long)]
    pub(crate) truncate: bool,
    /// Threads [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what a model is made of.
///
/// Takes a model file, the folder of a checkpoint, a bare `config.json`, or a YAML file that describes a model. For all but the
/// first it predicts, before anything is trained: the size of the model file for each quant type, the memory that a token takes
/// in the cache, and how many tokens per second this machine could decode at most. That is an estimate from the speed at which
/// memory is read, which takes a moment to measure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit inspect gpt2-mini.tidbit --tensors
  tidbit inspect gpt2-mini.tidbit --verify
  tidbit inspect model.yaml
  tidbit inspect models/gpt2-mini/config.json --json")]
pub(crate) struct InspectArgs {
    /// Model file, folder of a checkpoint, `config.json`, or YAML file.
    pub(crate) model: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Read the whole model file and compare every checksum.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how well a model predicts a text, and how far it is from a reference.
///
/// The text is tokenized as a whole and cut into windows that do not overlap. Each is run alone, and every token
/// of it but the first is scored: perplexity = exp(sum of -log p / scored tokens). Intervals are those of 95 %
/// confidence, from the spread between windows; from 7 windows or fewer, from the spread between tokens, which is too
/// narrow because the tokens of a text are not independent.
///
/// With --reference both models run side by side, and at each scored token their whole predictions are
/// compared: the divergence KL(reference || model) in nats, and how often both find the same token most probable.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidbit eval gpt2-mini.tidbit book.txt
  tidbit eval gpt2-mini.tidbit book.txt --window 256 --json
  tidbit eval gpt2-mini-q4.tidbit book.txt --reference models/gpt2-mini
  tidbit eval gpt2-mini.tidbit book.txt --window 512 --skip 256 --windows 20

`tidbit perplexity` is the same command.")]
pub(crate) struct EvalArgs {
    /// Model file, or folder of a checkpoint.
    pub(crate) model: PathBuf,
    /// Text to score, UTF-8.
    #[arg(value_name = "TEXT")]
    pub(crate) file: PathBuf,
    /// Compare with this model, which must have the same tokens. The folder of a checkpoint (or a GGUF file) is converted
    /// to f32 and kept in the user's cache: beside it, all that quantization costs shows.
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<PathBuf>,
    /// Tokens of a window [default: 512, or the context of a model when that is less].
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Leave out the first K predictions of each window: their tokens only give context. A last window that is not
    /// whole is then left out too. Windows of 512 with 256 skipped are scored as llama-perplexity does.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) skip: usize,
    /// Only the first N windows [default: all].
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<NonZeroUsize>,
    /// Threads [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// The same for the reference.
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_type, requires = "reference")]
    pub(crate) reference_kv: Option<CacheType>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A number of bytes: `60MB`, `1.5GB`, `800kB`, or plain.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        other => return Err(format!("unit is \"{other}\", expected kB, MB or GB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit < 1e18 => Ok((n * unit) as u64),
        _ => Err("expected a size above 0, such as 60MB".into()),
    }
}

fn parse_quant(name: &str) -> Result<QuantType, String> {
    QuantType::from_name(name)
        .ok_or_else(|| format!("expected one of {}", QuantType::ALL.map(QuantType::name).join(", ")))
}

/// `lookup` or `lookup:N`: the most guesses of a step.
fn parse_speculate(text: &str) -> Result<usize, String> {
    let (kind, most) = text.split_once(':').unwrap_or((text, DEFAULT_GUESSES));
    match most.parse() {
        Ok(most) if kind == "lookup" && (1..=MAX_GUESSES).contains(&most) => Ok(most),
        _ => Err(format!("expected lookup, or lookup:N with N from 1 to {MAX_GUESSES}")),
    }
}

fn parse_pooling(name: &str) -> Result<PoolingKind, String> {
    PoolingKind::from_name(name)
        .ok_or_else(|| format!("expected one of {}", PoolingKind::ALL.map(PoolingKind::name).join(", ")))
}

fn parse_cache_type(name: &str) -> Result<CacheType, String> {
    CacheType::from_name(name)
        .ok_or_else(|| format!("expected one of {}", CacheType::ALL.map(CacheType::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
