//! Options by key and typed value.
//!
//! One table says everything about a key: to add one, add its line.

use crate::guard::guard;
use crate::log::{LogFunction, LogSink};
use crate::memory::{Out, text};
use crate::objects::{self, tidbit_options};
use crate::status::{Failure, Outcome, Status, TIDBIT_BUSY, TIDBIT_UNKNOWN_KEY};
use serde_json::{Value, json};
use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError, TryLockError};
use tidbit_runtime::sampler::SamplerOptions;
use tidbit_runtime::session::CacheType;

/// What a handle of options stands for.
pub(crate) struct Options(Mutex<Settings>);

/// How the bytes of a model are had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Auto,
    Copy,
    InPlace,
}

/// Everything that can be set.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) access: Access,
    pub(crate) verify: bool,
    /// Bytes, 0 for no limit.
    pub(crate) memory_limit: u64,
    /// 0 for the model's own.
    pub(crate) context: usize,
    /// 0 for one per core.
    pub(crate) threads: usize,
    pub(crate) cache_type: Option<CacheType>,
    pub(crate) ignore_eos: bool,
    pub(crate) sampler: SamplerOptions,
    pub(crate) log: Option<LogSink>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access: Access::Auto,
            verify: false,
            memory_limit: 0,
            context: 0,
            threads: 0,
            cache_type: None,
            ignore_eos: false,
            sampler: SamplerOptions::default(),
            log: None,
        }
    }
}

impl Settings {
    /// Refuses to take more memory than the host allows.
    pub(crate) fn check_limit(&self, bytes: usize, what: &str) -> Outcome {
        if self.memory_limit == 0 || bytes as u64 <= self.memory_limit {
            return Ok(());
        }
        let limit = self.memory_limit;
        let message = format!("{what} needs {bytes} bytes, `memory.limit` is {limit}");
        Err(Failure::new(crate::status::TIDBIT_OUT_OF_MEMORY, message))
    }
}

/// A value as the host gives it.
#[derive(Clone, Copy)]
enum Given<'a> {
    Int(i64),
    Float(f64),
    Text(&'a str),
}

/// What values a key takes.
#[derive(Clone, Copy)]
enum Takes {
    /// A number of this range.
    Int(fn(&mut Settings, i64), i64, i64),
    /// A number, checked as the sampler's options are.
    Float(fn(&mut Settings, f32)),
    /// One of these words.
    Word(fn(&mut Settings, usize), &'static [&'static str]),
}

struct Key {
    name: &'static str,
    takes: Takes,
    get: fn(&Settings) -> Value,
    about: &'static str,
}

const ACCESS: &[&str] = &["auto", "copy", "in-place"];
const CACHE: &[&str] = &["auto", "f32", "f16", "q8", "q4"];

const KEYS: &[Key] = &[
    Key {
        name: "model.access",
        takes: Takes::Word(|s, i| s.access = [Access::Auto, Access::Copy, Access::InPlace][i], ACCESS),
        get: |s| json!(ACCESS[s.access as usize]),
        about: "copy: read the file into memory, so that nothing done to it later matters; in-place: map it and share its \
                pages with other processes, while who truncates it ends this process; auto: copy files, use the host's \
                own memory in place",
    },
    Key {
        name: "model.verify",
        takes: Takes::Int(|s, v| s.verify = v != 0, 0, 1),
        get: |s| json!(u8::from(s.verify)),
        about: "1: compare every checksum when a model is opened",
    },
    Key {
        name: "memory.limit",
        takes: Takes::Int(|s, v| s.memory_limit = v as u64, 0, i64::MAX),
        get: |s| json!(s.memory_limit),
        about: "most bytes that opening a model or making a session may take; 0: no limit",
    },
    Key {
        name: "session.context",
        takes: Takes::Int(|s, v| s.context = v as usize, 0, 1 << 31),
        get: |s| json!(s.context),
        about: "tokens that a session holds; 0: as many as the model was trained for",
    },
    Key {
        name: "session.threads",
        takes: Takes::Int(|s, v| s.threads = v as usize, 0, 1 << 20),
        get: |s| json!(s.threads),
        about: "threads of a session, the caller's included; 0: one for each core",
    },
    Key {
        name: "session.cache",
        takes: Takes::Word(|s, i| s.cache_type = CacheType::from_name(CACHE[i]), CACHE),
        get: |s| json!(s.cache_type.map_or("auto", CacheType::name)),
        about: "how keys and values are kept; auto: f32 for a model of f32 weights, q8 for one with integers of 8 bits or \
                fewer, f16 for others; q4 is q8 with values in 4 bits: a quarter less",
    },
    Key {
        name: "session.ignore_eos",
        takes: Takes::Int(|s, v| s.ignore_eos = v != 0, 0, 1),
        get: |s| json!(u8::from(s.ignore_eos)),
        about: "1: tokens that end a text are tokens like others",
    },
    Key {
        name: "sampling.temperature",
        takes: Takes::Float(|s, v| s.sampler.temperature = v),
        get: |s| json!(s.sampler.temperature),
        about: "logits are divided by it; 0 always takes the best token",
    },
    Key {
        name: "sampling.top_k",
        takes: Takes::Int(|s, v| s.sampler.top_k = v as usize, 0, 1 << 31),
        get: |s| json!(s.sampler.top_k),
        about: "keep so many of the best tokens; 0 keeps all",
    },
    Key {
        name: "sampling.top_p",
        takes: Takes::Float(|s, v| s.sampler.top_p = v),
        get: |s| json!(s.sampler.top_p),
        about: "keep the fewest best tokens that have this probability together; 1 keeps all",
    },
    Key {
        name: "sampling.min_p",
        takes: Takes::Float(|s, v| s.sampler.min_p = v),
        get: |s| json!(s.sampler.min_p),
        about: "keep tokens with this fraction of the best one's probability; 0 keeps all",
    },
    Key {
        name: "sampling.repeat_penalty",
        takes: Takes::Float(|s, v| s.sampler.repeat_penalty = v),
        get: |s| json!(s.sampler.repeat_penalty),
        about: "positive logits of recent tokens are divided by it, negative ones multiplied; 1 changes nothing",
    },
    Key {
        name: "sampling.repeat_last_n",
        takes: Takes::Int(|s, v| s.sampler.repeat_last_n = v as usize, 0, 1 << 31),
        get: |s| json!(s.sampler.repeat_last_n),
        about: "how many of the latest tokens are recent",
    },
    Key {
        name: "sampling.seed",
        takes: Takes::Int(|s, v| s.sampler.seed = v as u64, i64::MIN, i64::MAX),
        get: |s| json!(s.sampler.seed),
        about: "start of the random numbers: the same seed, the same text",
    },
];

impl Takes {
    fn name(self) -> &'static str {
        match self {
            Self::Int(..) => "int",
            Self::Float(_) => "float",
            Self::Word(..) => "text",
        }
    }
}

impl Key {
    fn set(&self, settings: &mut Settings, given: Given<'_>) -> Outcome {
        let wrong = |found: String, expected: String| {
            Err(Failure::argument(format!("`{}` is {found}, expected {expected}", self.name)))
        };
        // Nothing changes unless all of it is right.
        let mut changed = settings.clone();
        match (self.takes, given) {
            (Takes::Int(_, least, most), Given::Int(v)) if v < least || v > most => {
                return wrong(v.to_string(), format!("{least} to {most}"));
            }
            (Takes::Int(set, ..), Given::Int(v)) => set(&mut changed, v),
            (Takes::Float(set), Given::Float(v)) => {
                set(&mut changed, v as f32);
                changed.sampler.validate().map_err(|e| {
                    Failure::argument(format!("`{}` is {}, expected {}", self.name, e.value, e.expected))
                })?;
            }
            (Takes::Word(set, words), Given::Text(v)) => match words.iter().position(|word| *word == v) {
                Some(i) => set(&mut changed, i),
                None => return wrong(format!("{v:?}"), format!("one of {}", words.join(", "))),
            },
            (takes, given) => {
                let found = match given {
                    Given::Int(_) => "an int",
                    Given::Float(_) => "a float",
                    Given::Text(_) => "a text",
                };
                return wrong(found.into(), format!("a value of type {}", takes.name()));
            }
        }
        *settings = changed;
        Ok(())
    }
}

impl Options {
    fn with<T>(&self, run: impl FnOnce(&mut Settings) -> Outcome<T>) -> Outcome<T> {
        match self.0.try_lock() {
            Ok(mut settings) => run(&mut settings),
            // Every change is one assignment: there is no half-way.
            Err(TryLockError::Poisoned(settings)) => run(&mut settings.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Failure::new(TIDBIT_BUSY, "another thread is using these options")),
        }
    }

    /// All keys with their values.
    pub(crate) fn describe(&self) -> Value {
        let settings = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        KEYS.iter().map(|key| (key.name.to_owned(), (key.get)(&settings))).collect::<serde_json::Map<_, _>>().into()
    }
}

/// All keys with what they take, their defaults and what they mean.
pub(crate) fn describe_keys() -> Value {
    let defaults = Settings::default();
    let describe = |key: &Key| {
        let mut about = json!({ "key": key.name, "type": key.takes.name(), "default": (key.get)(&defaults),
            "about": key.about });
        match key.takes {
            Takes::Int(_, least, most) => (about["least"], about["most"]) = (json!(least), json!(most)),
            Takes::Word(_, words) => about["words"] = json!(words),
            Takes::Float(_) => {}
        }
        about
    };
    KEYS.iter().map(describe).collect()
}

/// The settings of a handle, or the defaults for null.
pub(crate) fn settings(handle: *const tidbit_options) -> Outcome<Settings> {
    if handle.is_null() {
        return Ok(Settings::default());
    }
    objects::get::<Options>(handle)?.with(|settings| Ok(settings.clone()))
}

fn set(handle: *mut tidbit_options, key: *const c_char, key_length: usize, given: Given<'_>) -> Outcome {
    let options = objects::get::<Options>(handle)?;
    // SAFETY: the host vouches for the key, as the header asks.
    let name = unsafe { text(key, key_length, "the key")? };
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        return Err(Failure::new(TIDBIT_UNKNOWN_KEY, format!("there is no option {name:?}")));
    };
    options.with(|settings| key.set(settings, given))
}

/// Makes options, all at their defaults.
///
/// The keys: `tidbit_info_key` of the options lists them, `tidbit_info` of them tells their values, and `tidbit_info` of
/// null with the key `options` describes them all.
///
/// Ownership: the caller frees the handle with `tidbit_options_free`. Models and sessions copy what they need.
/// Threads: any. The handle belongs to one thread at a time; another gets `TIDBIT_BUSY`.
/// Errors: `TIDBIT_INVALID_ARGUMENT`, `TIDBIT_OUT_OF_MEMORY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_new(out_options: *mut *mut tidbit_options) -> Status {
    guard(|| {
        // SAFETY: the host vouches for its pointers, as the header asks; here and below.
        let out = unsafe { Out::new(out_options, std::ptr::null_mut(), "out_options")? };
        out.set(objects::insert(Options(Mutex::default()))?);
        Ok(())
    })
}

/// Sets an option that is a whole number; yes and no are 1 and 0.
///
/// Ownership: the key stays the caller's.
/// Threads: as `tidbit_options_new`.
/// Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`, `TIDBIT_UNKNOWN_KEY`; `TIDBIT_INVALID_ARGUMENT` for a key of another type
/// or a value out of range: nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_set_int(
    options: *mut tidbit_options,
    key: *const c_char,
    key_length: usize,
    value: i64,
) -> Status {
    guard(|| set(options, key, key_length, Given::Int(value)))
}

/// Sets an option that is a number with a fraction.
///
/// Ownership, threads, errors: as `tidbit_options_set_int`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_set_float(
    options: *mut tidbit_options,
    key: *const c_char,
    key_length: usize,
    value: f64,
) -> Status {
    guard(|| set(options, key, key_length, Given::Float(value)))
}

/// Sets an option that is a word.
///
/// Ownership: key and value stay the caller's.
/// Threads, errors: as `tidbit_options_set_int`; and `TIDBIT_INVALID_UTF8`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_set_text(
    options: *mut tidbit_options,
    key: *const c_char,
    key_length: usize,
    value: *const c_char,
    value_length: usize,
) -> Status {
    guard(|| {
        // SAFETY: as in `tidbit_options_new`.
        let value = unsafe { text(value, value_length, "the value")? };
        set(options, key, key_length, Given::Text(value))
    })
}

/// Says where the log of models and sessions made with these options goes: to `function`, for records of the levels up to
/// `level` (`TIDBIT_LOG_WARNING`, `TIDBIT_LOG_INFO`); with a null function nowhere, as at first.
///
/// Ownership: `user_data` stays the caller's. It must be valid, and usable on every thread that calls the library, for as long
/// as a model or session made with these options.
/// Threads: as `tidbit_options_new`; see `tidbit_log_function` for the thread it is called on.
/// Errors: `TIDBIT_INVALID_HANDLE`, `TIDBIT_BUSY`; `TIDBIT_INVALID_ARGUMENT` for a level that there is not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_set_log(
    options: *mut tidbit_options,
    level: i32,
    function: LogFunction,
    user_data: *mut c_void,
) -> Status {
    guard(|| {
        let options = objects::get::<Options>(options)?;
        if !(1..=2).contains(&level) {
            return Err(Failure::argument(format!("a log level of {level} is not possible, expected 1 or 2")));
        }
        options.with(|settings| {
            settings.log = function.map(|function| LogSink { most: level, function, user_data });
            Ok(())
        })
    })
}

/// Frees options. Null is nothing to free.
///
/// Threads: any.
/// Errors: `TIDBIT_INVALID_HANDLE`, also when they are freed twice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidbit_options_free(options: *mut tidbit_options) -> Status {
    guard(|| objects::free::<Options>(options, |_| {}))
}
