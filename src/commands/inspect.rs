//! `tidbit inspect`: what a model is made of.

use crate::bench::estimate;
use crate::cache;
use crate::cli::InspectArgs;
use crate::failure::Usage;
use crate::output::{print, print_json};
use crate::prompt;
use crate::sizes::{Sizes, parameters};
use anyhow::anyhow;
use indicatif::{DecimalBytes, HumanCount};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use tidbit_convert::Plan;
use tidbit_runtime::format;
use tidbit_runtime::kv_cache::{CacheType, bytes_of, bytes_per_token, default_type, usual_type};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::session::Model;
use tidbit_runtime::spec::{Activation, Head, NormKind, Position, Residual, Spec};

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = &args.model;
    if path.is_dir() {
        return inspect_config(args, &path.join("config.json"));
    }
    if path.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|known| e.eq_ignore_ascii_case(known))) {
        return inspect_config(args, path);
    }
    inspect_model(args)
}

fn inspect_model(args: &InspectArgs) -> anyhow::Result<()> {
    let model = Model::open(&args.model)?;
    let file = model.file();
    let verified = if args.verify { Some(file.verify()?) } else { None };
    let tokenizer = if args.verify || args.json { prompt::tokenizer(&model)? } else { None };
    if let (true, Some(tokenizer)) = (args.verify, tokenizer) {
        // The first text makes it check everything that encoding needs.
        tokenizer.encode("").map_err(|e| anyhow!("{}: {e}", args.model.display()))?;
    }
    let spec = file.spec();
    let tensors: Vec<_> = file.tensors().collect();
    let sizes = Sizes::of_file(file);
    if args.json {
        let mut value = describe_json(spec, default_type(file));
        value["file"] = json!(file.path());
        value["file_bytes"] = json!(file.len());
        value["format_version"] = json!(format::VERSION);
        value["bits_per_weight"] = json!(sizes.bits_per_weight());
        value["types"] = sizes.json();
        value["tokenizer"] = json!(tokenizer.map(|t| json!({ "tokens": t.vocab_len() })));
        value["provenance"] = json!(file.provenance());
        if args.tensors {
            let list = tensors.iter().map(|(name, record, bytes)| {
                json!({ "name": name, "type": record.stored, "shape": record.shape, "bytes": bytes,
                    "sha256": record.sha256 })
            });
            value["tensors"] = list.collect();
        }
        if let Some(report) = verified {
            value["verified"] = json!({ "tensors": report.tensors, "bytes": report.bytes });
        }
        return print_json(&value);
    }

    let mut text = describe(spec, default_type(file));
    let provenance = file.provenance();
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "file          {}, format {}", DecimalBytes(file.len() as u64), format::VERSION);
    let _ = writeln!(text, "weights       {:.3} bits per weight", sizes.bits_per_weight());
    text.push_str(&sizes.table());
    let tokenizer = match file.tokenizer() {
        Some((format::TOKENIZER_TABLES, bytes)) => format!("tables, {}", DecimalBytes(bytes.len() as u64)),
        Some((name, bytes)) => format!("{name}, {}", DecimalBytes(bytes.len() as u64)),
        None => "none: the model takes token ids only".into(),
    };
    let _ = writeln!(text, "tokenizer     {tokenizer}");
    let _ = writeln!(text, "converted by  {} (--quant {})", provenance.converter, provenance.quant);
    if let Some(calibration) = &provenance.calibration {
        let _ = writeln!(text, "calibrated    {calibration}");
    }
    for source in &provenance.sources {
        let _ =
            writeln!(text, "  from        {} ({}, sha256 {})", source.name, DecimalBytes(source.bytes), source.sha256);
    }
    if args.tensors {
        let width = tensors.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let _ = writeln!(text, "tensors");
        for (name, record, bytes) in &tensors {
            let shape = format!("{:?}", record.shape);
            let _ = writeln!(text, "  {name:<width$}  {:<6}  {shape:<16} {bytes:>12} bytes", record.stored);
        }
    }
    if let Some(report) = verified {
        let size = DecimalBytes(report.bytes);
        let _ = writeln!(text, "verified      {} tensors, {size}: every checksum is right", report.tensors);
    }
    print(&text)
}

fn inspect_config(args: &InspectArgs, config: &Path) -> anyhow::Result<()> {
    if args.verify {
        let reason = "--verify needs a model file, a checkpoint has no checksums";
        return Err(Usage(format!("{}: {reason}", args.model.display())).into());
    }
    let (spec, ignored) = tidbit_convert::read_spec(config)?;
    let plan = |quant| Plan::of_spec(&spec, quant).map_err(|e| anyhow::anyhow!("{}: {e}", config.display()));
    let plans = QuantType::ALL.into_iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        let mut value = describe_json(&spec, usual_type([cache::QUANT]));
        value["file"] = json!(config);
        value["ignored_fields"] = json!(ignored);
        let (threads, expected) = estimate::expected(&spec, &plans)?;
        value["expected"] = json!({ "estimate": true, "threads": threads, "decode": expected });
        let caches = CacheType::ALL.map(|t| json!({ "type": t.name(), "bytes_per_token": bytes_per_token(&spec, t) }));
        value["kv_caches"] = json!(caches);
        let predicted = plans.iter().map(|plan| {
            json!({ "quant": plan.quant.name(), "bytes": plan.file_bytes, "bits_per_weight": plan.bits_per_weight })
        });
        value["predicted"] = predicted.collect();
        if args.tensors {
            value["tensors"] = spec.tensors().iter().map(|t| json!({ "name": t.name, "shape": t.shape })).collect();
        }
        return print_json(&value);
    }

    let mut text = describe(&spec, usual_type([cache::QUANT]));
    let caches = CacheType::ALL.map(|t| format!("{} {}", t.name(), bytes_per_token(&spec, t)));
    let _ = writeln!(text, "cache         bytes a token: {}", caches.join(", "));
    let (threads, expected) = estimate::expected(&spec, &plans)?;
    let fastest = expected.first().map_or(0.0, |e| e.read_gb_per_s);
    let _ = writeln!(
        text,
        "model file, without a tokenizer; tokens/s are an estimate: {threads} threads read {fastest:.1} GB/s here"
    );
    for (plan, expected) in plans.iter().zip(&expected) {
        let (size, bits) = (DecimalBytes(plan.file_bytes).to_string(), plan.bits_per_weight);
        let speed = expected.tokens_per_s;
        let _ = writeln!(
            text,
            "  {:<10}  {size:>10}, {bits:>6.3} bits per weight, about {speed:>8.1} tokens/s",
            plan.quant
        );
    }
    if !ignored.is_empty() {
        let _ = writeln!(text, "no effect     {}", ignored.join(", "));
    }
    if args.tensors {
        let _ = writeln!(text, "tensors");
        for tensor in spec.tensors() {
            let _ = writeln!(text, "  {}  {:?}", tensor.name, tensor.shape);
        }
    }
    print(&text)
}

/// The architecture, for people.
fn describe(spec: &Spec, cache_type: CacheType) -> String {
    let (a, mlp) = (&spec.attention, &spec.mlp);
    let (total, inner) = parameters(spec);
    let position = match &spec.position {
        Position::Learned => "learned".into(),
        Position::Rotary(r) => {
            let scaled = if r.scaling.is_some() { ", scaled" } else { "" };
            format!("rotary, {} of {} dimensions, theta {}{scaled}", r.dims, a.head_dim, r.theta)
        }
        Position::Sinusoidal(_) => "sinusoidal".into(),
        Position::Alibi(alibi) => format!("ALiBi, steepest slope 2^-{}", alibi.max_bias),
        Position::RelativeBias(bias) => {
            format!("relative biases, {} buckets up to a distance of {}", bias.buckets, bias.max_distance)
        }
        Position::TransformerXl(of) => {
            format!("Transformer-XL, keys of {} distances", HumanCount(of.distances() as u64))
        }
        Position::None => "none".into(),
    };
    let norm = match spec.norm.kind {
        NormKind::LayerNorm => "layer norm",
        NormKind::RmsNorm => "RMS norm",
        NormKind::ScaleNorm => "scale norm",
    };
    let residual = match spec.residual {
        Residual::Sequential => "sequential",
        Residual::Parallel => "parallel",
        Residual::ParallelOneNorm => "parallel, one norm",
        Residual::FromNorm => "sequential, from the norm",
    };
    let head = match spec.head {
        Head::Tied => "tied to the embedding",
        Head::Untied => "its own matrix",
        Head::None => "none",
    };
    let pooling = match (&spec.head, &spec.pooling) {
        (Head::None, p) => format!(
            "embeddings    {} of the hidden states{}, {} tokens at most\n",
            p.kind.name(),
            if p.normalize { ", normalized" } else { "" },
            HumanCount(p.max_tokens.unwrap_or(spec.context_length) as u64),
        ),
        _ => String::new(),
    };
    let some = |layers: &Option<Vec<usize>>| match layers {
        Some(layers) => format!(" in {} layers", layers.len()),
        None => String::new(),
    };
    let window = a.window.as_ref().map_or_else(String::new, |w| format!(", window of {}{}", w.size, some(&w.layers)));
    let experts = mlp.experts.as_ref().map_or_else(String::new, |e| {
        let shared = if e.shared_dim.is_some() { " and a shared one" } else { "" };
        format!("; {} of {} experts of {}{shared}{}", e.used, e.count, e.ffn_dim, some(&e.layers))
    });
    let encoder = spec.encoder.as_ref().map_or_else(String::new, |e| {
        format!(
            "encoder       {} layers of the same, for the whole text; the decoder begins with token {}\n",
            e.n_layers, e.start_id
        )
    });
    let read = if spec.encoder.is_some() { ", as much again for what the encoder read" } else { "" };
    let kv = bytes_per_token(spec, cache_type) as u64;
    // What a window does not hold is not counted; a cache that keeps nothing of a token has a size nevertheless.
    let held = bytes_of(spec, cache_type, spec.context_length) as u64;
    let full = if kv == 0 { held } else { kv.saturating_mul(spec.context_length as u64).min(held) };
    format!(
        "architecture  {}, {} layers, {} wide
attention     {} heads ({} key-value) of {}{}{window}
mlp           {} wide, {}{}{experts}
norm          {norm}, eps {:e}; {residual} residual
positions     {position}
{encoder}vocabulary    {} tokens, head {head}
context       {} tokens, {} cache {kv} bytes a token ({} when full{read})
{pooling}parameters    {} ({} without embedding and head)
",
        spec.family,
        spec.n_layers,
        spec.d_model,
        a.n_heads,
        a.n_kv_heads,
        a.head_dim,
        if a.causal { "" } else { ", to the whole text" },
        mlp.ffn_dim,
        activation(mlp.activation),
        if mlp.gated { ", gated" } else { "" },
        spec.norm.eps,
        HumanCount(spec.vocab_size as u64),
        HumanCount(spec.context_length as u64),
        cache_type.name(),
        DecimalBytes(full),
        HumanCount(total),
        HumanCount(inner),
    )
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu => "ReLU",
        Activation::ReluSquared => "squared ReLU",
        Activation::GeluErf => "GELU (exact)",
        Activation::GeluTanh => "GELU (tanh)",
        Activation::GeluQuick => "GELU (sigmoid)",
        Activation::Silu => "SiLU",
        Activation::Tanh => "tanh",
    }
}

/// The same for scripts.
fn describe_json(spec: &Spec, cache_type: CacheType) -> Value {
    let (total, inner) = parameters(spec);
    json!({
        "architecture": spec,
        "parameters": total,
        "parameters_without_embeddings": inner,
        "context_length": spec.context_length,
        "kv_cache_type": cache_type.name(),
        "kv_cache_bytes_per_token": bytes_per_token(spec, cache_type),
    })
}
