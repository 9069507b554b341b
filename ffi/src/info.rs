//! What there is to know of the library, a model, a session or options, by key.
//!
//! Everything about an object is one JSON value; a key is a path into it, with dots.

use crate::guard::guard;
use crate::memory::{Buffer, Out, text};
use crate::model::OpenModel;
use crate::objects::{self, Object};
use crate::options;
use crate::session::Session;
use crate::status::{Failure, Outcome, Status, TIDBIT_UNKNOWN_KEY, TIDBIT_UNSUPPORTED};
use serde_json::{Value, json};
use std::ffi::{c_char, c_void};
use tidbit_runtime::error::TokenizerError;
use tidbit_runtime::format::{self, Stored};
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::spec::{Role, TensorDecl};
use tidbit_runtime::{kernels, kv_cache, threads};

/// The number that `tidbit_abi_version` returns.
pub const TIDBIT_ABI_VERSION: u32 = 1;

fn library() -> Value {
    let supported: Vec<_> = kernels::supported().iter().map(|row| row.name()).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi_version": TIDBIT_ABI_VERSION,
        "format_version": format::VERSION,
        "isa": kernels::active().map_or(Value::Null, |row| json!(row.name())),
        "isas": supported,
        "cores": threads::available_cores(),
        "quant_types": QuantType::ALL.map(QuantType::name),
        "json_tokenizer": cfg!(feature = "json-tokenizer"),
        "options": options::describe_keys(),
    })
}

/// As `tidbit inspect --json` tells it.
fn model(open: &OpenModel) -> Value {
    let (file, spec) = (open.model.file(), open.model.spec());
    let declared = spec.tensors();
    let parameters = |keep: fn(Role) -> bool| -> u64 {
        declared.iter().filter(|t| keep(t.role)).map(TensorDecl::len).map(|n| n as u64).sum()
    };
    // One that cannot be used leaves all else to be known.
    let tokenizer = match open.model.tokenizer() {
        Ok(tokenizer) => tokenizer.map(|t| json!({ "tokens": t.vocab_len() })),
        Err(error) => Some(json!({ "error": error.to_string() })),
    };
    let (mut weights, mut bytes) = (0u64, 0u64);
    let mut tensors = serde_json::Map::new();
    for (name, record, length) in file.tensors() {
        if record.stored != Stored::Bytes {
            weights += record.shape.iter().map(|&n| n as u64).product::<u64>();
            bytes += length as u64;
        }
        // Names have dots; a key has them between its parts.
        let about = json!({ "type": record.stored, "shape": record.shape, "bytes": length, "sha256": record.sha256 });
        tensors.insert(name.replace('.', "/"), about);
    }
    json!({
        "architecture": spec,
        "family": spec.family,
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "d_model": spec.d_model,
        "n_layers": spec.n_layers,
        "eos_ids": spec.eos_ids,
        "parameters": parameters(|_| true),
        "parameters_without_embeddings": parameters(|role| matches!(role, Role::Projection | Role::Vector)),
        "kv_cache_bytes_per_token": kv_cache::bytes_per_token(spec, kv_cache::default_type(file)),
        "file": file.path().to_string_lossy(),
        "file_bytes": file.len(),
        "format_version": format::VERSION,
        "header_sha256": file.header_sha256(),
        "access": open.access,
        "bits_per_weight": if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 },
        "tokenizer": tokenizer,
        "provenance": file.provenance(),
        "tensors": tensors,
    })
}

fn session(session: &Session) -> Outcome<Value> {
    let state = session.lock()?;
    let (prefill, decode) = (state.statistics.prefill, state.statistics.decode);
    Ok(json!({
        "position": state.text.len(),
        "context": state.sequence.context(),
        "threads": state.engine.threads(),
        "isa": state.engine.kernels().name(),
        "max_batch": state.engine.max_batch(),
        "cache_bytes": state.sequence.cache_bytes(),
        "shared_bytes": state.sequence.shared_bytes(),
        "scratch_bytes": state.engine.scratch_bytes(),
        "random_draws": state.sampler.draws(),
        "prefill_tokens": prefill.0,
        "prefill_ns": prefill.1.as_nanos() as u64,
        "decode_tokens": decode.0,
        "decode_ns": decode.1.as_nanos() as u64,
    }))
}

/// What there is to know of a handle; null is the library.
fn with_facts<T>(handle: *const c_void, run: impl FnOnce(&Value) -> Outcome<T>) -> Outcome<T> {
    if handle.is_null() {
        return run(&library());
    }
    match &*objects::get_any(handle.addr())? {
        Object::Options(options) => run(&options.describe()),
        Object::Session(it) => run(&session(it)?),
        Object::Decoder(_) => Err(Failure::new(TIDBIT_UNSUPPORTED, "there is nothing to know of a decoder")),
        Object::Model(open) => {
            // Without the memory for its tokenizer it is asked again.
            if open.facts.get().is_none()
                && let Err(error @ TokenizerError::Memory { .. }) = open.model.tokenizer()
            {
                return Err(error.into());
            }
            // It does not change, and a model has many tensors.
            run(open.facts.get_or_init(|| model(open)))
        }
    }
}

fn find<'a>(facts: &'a Value, key: &str) -> Outcome<&'a Value> {
    let unknown = || Failure::new(TIDBIT_UNKNOWN_KEY, format!("there is no key {key:?}"));
    // Keys of options have dots themselves.
    if let Some(value) = facts.get(key) {
        return Ok(value);
    }
    let step = |value: &'a Value, part: &str| match value {
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        value => value.get(part),
    };
    key.split('.').try_fold(facts, step).ok_or_else(unknown)
}

/// Tells a fact by key, as text: words and numbers as they are, everything else as JSON.
///
/// `handle` is a model, a session or options, or null for the library itself. `tidbit_info_key` lists the keys; a key with
/// dots leads into a value (`architecture.attention.n_heads`, `provenance.sources.0.name`).
///
/// Ownership: handle, key and buffer stay the caller's. A null buffer of capacity 0 asks for the length. A NUL follows the
/// text where there is room.
/// Threads: any; of a session that another call is using, `TIDBIT_BUSY`.
/// Errors: `TIDBIT_UNKNOWN_KEY`; `TIDBIT_OUT_OF_MEMORY`; `TIDBIT_BUFFER_TOO_SMALL`, with the length in `out_length`; `TIDBIT_UNSUPPORTED`
/// of a decoder; `TIDBIT_POISONED`, `TIDBIT_INVALID_HANDLE`, `TIDBIT_INVALID_UTF8`, `TIDBIT_INVALID_ARGUMENT`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_info(
    handle: *const c_void,
    key: *const c_char,
    key_length: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        // SAFETY: as above.
        let key = unsafe { text(key, key_length, "the key")? };
        with_facts(handle, |facts| match find(facts, key)? {
            Value::String(text) => out.write_text(text),
            value => out.write_text(&value.to_string()),
        })
    })
}

/// Tells a fact that is a whole number.
///
/// Ownership, threads: as `tidbit_info`.
/// Errors: as `tidbit_info`; `TIDBIT_INVALID_ARGUMENT` for a fact that is no whole number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_info_int(
    handle: *const c_void,
    key: *const c_char,
    key_length: usize,
    out_value: *mut i64,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_info`.
        let out = unsafe { Out::new(out_value, 0, "out_value")? };
        // SAFETY: as above.
        let key = unsafe { text(key, key_length, "the key")? };
        with_facts(handle, |facts| {
            let value = find(facts, key)?;
            // A seed is any 64 bits.
            let number = value.as_i64().or_else(|| value.as_u64().map(|v| v as i64));
            out.set(number.ok_or_else(|| Failure::argument(format!("`{key}` is no whole number")))?);
            Ok(())
        })
    })
}

/// Lists the keys of a handle, or of the library: the one with number `index`, counted from 0.
///
/// Ownership, threads: as `tidbit_info`.
/// Errors: as `tidbit_info`; `TIDBIT_UNKNOWN_KEY` from the end of the list on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_info_key(
    handle: *const c_void,
    index: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_length: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_info`.
        let out = unsafe { Buffer::new(buffer, capacity, out_length)? };
        with_facts(handle, |facts| match facts.as_object().and_then(|facts| facts.keys().nth(index)) {
            Some(key) => out.write_text(key),
            None => Err(Failure::new(TIDBIT_UNKNOWN_KEY, format!("there is no key number {index}"))),
        })
    })
}
