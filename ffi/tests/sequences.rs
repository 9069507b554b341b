//! Random sequences of calls with hostile arguments: every failure is a status with a message, results of failures are
//! empty, and nothing ends the process.
//!
//! The default is a short run from a fixed seed. `TIDBIT_FUZZ_SECONDS=600` runs for so long, `TIDBIT_FUZZ_SEED=n` elsewhere; a
//! failure prints the seed and the number of the call.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "what is given is wrong on purpose, within what the header allows"
)]
#![allow(clippy::cast_ptr_alignment, reason = "memory that was made of such lines")]
#![allow(clippy::wildcard_imports, reason = "all functions of the header, and all codes")]

mod support;

use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tidbit::info::{tidbit_info, tidbit_info_int, tidbit_info_key};
use tidbit::message::{tidbit_last_error, tidbit_status_name};
use tidbit::model::*;
use tidbit::options::*;
use tidbit::saved::*;
use tidbit::session_calls::*;
use tidbit::status::*;
use tidbit::tokenizer::*;
use tidbit_convert::Options;
use tidbit_runtime::quant::QuantType;

/// Numbers that look random (`SplitMix64`, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const OPTIONS: usize = 0;
const MODEL: usize = 1;
const DECODER: usize = 2;
const SESSION: usize = 3;

/// What a host has in its hands.
struct Host {
    random: Random,
    /// Live handles by kind.
    live: [Vec<usize>; 4],
    freed: Vec<usize>,
    model_bytes: Vec<u8>,
    model_path: Vec<u8>,
    folder: Vec<u8>,
    saved: Vec<Vec<u8>>,
    /// Memory that was lent, given back or not.
    lent: usize,
    seen: [usize; 19],
}

static RELEASED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn release(data: *const u8, length: usize, user_data: *mut c_void) {
    RELEASED.fetch_add(1, Ordering::Relaxed);
    if !user_data.is_null() {
        assert_eq!(length as u64, user_data.addr() as u64);
        // The memory of `open_memory` below.
        drop(unsafe {
            Vec::from_raw_parts(data.cast_mut().cast::<[u64; 8]>(), length.div_ceil(64), length.div_ceil(64))
        });
    }
}

extern "C" fn log(_level: i32, text: *const c_char, length: usize, _user_data: *mut c_void) {
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    assert!(std::str::from_utf8(text).is_ok_and(|text| !text.is_empty() && !text.contains('\n')));
}

impl Host {
    /// A handle, mostly a good one of that kind.
    fn handle<T>(&mut self, kind: usize) -> *mut T {
        let good = self.live[kind].clone();
        let bits = match self.random.below(20) {
            0 => 0,
            1 if !self.freed.is_empty() => self.random.of(&self.freed.clone()),
            2 => {
                let other = self.live[self.random.below(4)].clone();
                if other.is_empty() { 1 } else { self.random.of(&other) }
            }
            3 if !good.is_empty() => {
                self.random.of(&good).wrapping_add_signed(self.random.of(&[-1, 1, 8, 64, 1 << 24]))
            }
            4 => self.random.next() as usize,
            _ if good.is_empty() => 0,
            _ => self.random.of(&good),
        };
        std::ptr::without_provenance_mut(bits)
    }

    /// A text or what pretends to be one; sometimes with a length that it does not have.
    fn text(&mut self, good: &[&str]) -> (Vec<u8>, usize) {
        let mut text = match self.random.below(8) {
            0 => Vec::new(),
            1 => (0..self.random.below(40)).map(|_| self.random.next() as u8).collect(),
            2 => vec![b'a'; self.random.below(3000)],
            3 => "😀é\0 漢字 <|endoftext|>".into(),
            _ => self.random.of(good).into(),
        };
        if self.random.one_in(15) && !text.is_empty() {
            let at = self.random.below(text.len());
            text[at] = self.random.next() as u8;
        }
        let length = if self.random.one_in(30) { usize::MAX - self.random.below(9) } else { text.len() };
        (text, length)
    }

    fn tokens(&mut self) -> (Vec<u32>, usize) {
        let most = self.random.of(&[12, 12, 12, 12, 12, 12, 200]);
        let n = self.random.below(most);
        let mut tokens: Vec<u32> = (0..n).map(|_| self.random.below(3000) as u32).collect();
        if self.random.one_in(12) && n > 0 {
            let at = self.random.below(n);
            tokens[at] = self.random.next() as u32;
        }
        let length = if self.random.one_in(30) { usize::MAX / 4 + 1 + self.random.below(9) } else { n };
        (tokens, length)
    }

    /// A capacity that the buffer has.
    fn capacity(&mut self, len: usize) -> usize {
        match self.random.below(4) {
            0 => 0,
            1 => self.random.below(len + 1),
            _ => len,
        }
    }

    /// Looks at what a call returned; `empty` says whether its results are.
    fn check(&mut self, name: &str, status: Status, empty: bool) {
        assert!((0..18).contains(&status), "{name}: status {status}: {}", message());
        self.seen[status as usize] += 1;
        if status != TIDBIT_OK && status != TIDBIT_END {
            assert!(!message().is_empty(), "{name}: {status} without a message");
            assert!(empty, "{name}: {status}, but there is a result");
        }
    }

    fn keep(&mut self, kind: usize, status: Status, handle: usize) {
        if status == TIDBIT_OK {
            assert_ne!(handle, 0);
            self.live[kind].push(handle);
        }
        // Not too many: sessions have memory.
        while self.live[kind].len() > 5 {
            self.free(kind, 0);
        }
    }

    fn free(&mut self, kind: usize, at: usize) {
        let handle = self.live[kind].remove(at);
        assert_eq!(free(kind, handle), TIDBIT_OK);
        self.freed.push(handle);
        if self.freed.len() > 50 {
            self.freed.remove(0);
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each function")]
    fn call(&mut self) {
        let mut length = 7usize;
        let mut handle = 7usize;
        let out = (&raw mut handle).cast::<*mut c_void>();
        let mut bytes = vec![0u8; 300];
        let capacity = self.capacity(bytes.len());
        let buffer = if self.random.one_in(25) { null_mut() } else { bytes.as_mut_ptr().cast::<c_char>() };
        let out_length = if self.random.one_in(40) { null_mut() } else { &raw mut length };
        // The length is told when it does not fit.
        let no_length = |status, length| status == TIDBIT_BUFFER_TOO_SMALL || length == 0 || length == 7;
        let (model, options) = (self.handle(MODEL), self.handle(OPTIONS));
        let (session, decoder) = (self.handle(SESSION), self.handle(DECODER));
        let options_or_null = if self.random.one_in(3) { null_mut() } else { options };
        let (name, status, empty) = match self.random.below(39) {
            0 => ("options_new", unsafe { tidbit_options_new(out.cast()) }, handle == 0),
            1 | 2 => {
                let (key, n) = self.text(&["session.context", "session.threads", "sampling.top_k", "sampling.seed"]);
                let value = self.random.of(&[0, 1, 2, 16, 64, -1, i64::MAX, i64::MIN]);
                ("set_int", unsafe { tidbit_options_set_int(options, key.as_ptr().cast(), n, value) }, true)
            }
            3 => {
                let (key, n) = self.text(&["sampling.temperature", "sampling.top_p", "sampling.min_p"]);
                let value = self.random.of(&[0.0, 0.5, 1.0, 1e300, -1.0, f64::NAN, f64::INFINITY, 1e-320]);
                ("set_float", unsafe { tidbit_options_set_float(options, key.as_ptr().cast(), n, value) }, true)
            }
            4 => {
                let (key, n) = self.text(&["model.access", "session.cache"]);
                let (value, m) = self.text(&["copy", "in-place", "auto", "f16", "f32", "q8"]);
                let (key, value) = (key.as_ptr().cast(), value.as_ptr().cast());
                ("set_text", unsafe { tidbit_options_set_text(options, key, n, value, m) }, true)
            }
            5 => {
                let (level, function) = (self.random.of(&[0, 1, 2, 3, -1]), self.random.of(&[None, Some(log as _)]));
                ("set_log", unsafe { tidbit_options_set_log(options, level, function, null_mut()) }, true)
            }
            6 | 7 => {
                let (path, n) = self.path();
                let status = unsafe { tidbit_model_open(path.as_ptr().cast(), n, options_or_null, out.cast()) };
                ("model_open", status, handle == 0)
            }
            8 => {
                let fd = self.random.of(&[0, 1, -1, 99, i32::MAX, i32::MIN]);
                let (offset, len) = (self.random.of(&[0, 1, u64::MAX]), self.random.of(&[0, 5, u64::MAX]));
                let status = unsafe { tidbit_model_open_fd(fd, offset, len, options_or_null, out.cast()) };
                ("model_open_fd", status, handle == 0)
            }
            9 => ("model_open_memory", self.open_memory(options_or_null, out.cast()), handle == 0),
            10 => {
                let (path, n) = self.path();
                let (mut a, mut b) = (7u64, 7u64);
                let (path, outs) = (path.as_ptr().cast(), (&raw mut a, &raw mut b));
                let status = unsafe { tidbit_model_estimate(path, n, options_or_null, outs.0, outs.1) };
                ("model_estimate", status, a == 0 && b == 0)
            }
            11 => ("model_share", unsafe { tidbit_model_share(model, out.cast()) }, handle == 0),
            12 => ("model_verify", unsafe { tidbit_model_verify(model) }, true),
            13 | 14 => {
                let (key, n) =
                    self.text(&["vocab_size", "architecture", "session.context", "options", "isa", "position"]);
                let any = self.any_handle();
                let status = unsafe { tidbit_info(any, key.as_ptr().cast(), n, buffer, capacity, out_length) };
                ("info", status, no_length(status, length))
            }
            15 => {
                let (key, n) =
                    self.text(&["vocab_size", "context", "tensors.embed/tokens.bytes", "cores", "eos_ids.0"]);
                let mut value = 7;
                let status = unsafe { tidbit_info_int(self.any_handle(), key.as_ptr().cast(), n, &raw mut value) };
                ("info_int", status, value == 0)
            }
            16 => {
                let index = self.random.of(&[0, 1, 5, 13, usize::MAX]);
                let status = unsafe { tidbit_info_key(self.any_handle(), index, buffer, capacity, out_length) };
                ("info_key", status, no_length(status, length))
            }
            17 | 18 => {
                let (text, n) = self.text(&["Once upon a time", "x", " the old man"]);
                let ids = buffer.cast();
                let status = unsafe { tidbit_encode(model, text.as_ptr().cast(), n, ids, capacity / 4, out_length) };
                ("encode", status, no_length(status, length))
            }
            19 => {
                let (tokens, n) = self.tokens();
                let status = unsafe { tidbit_decode(model, tokens.as_ptr(), n, buffer, capacity, out_length) };
                ("decode", status, no_length(status, length))
            }
            20 => ("decoder_new", unsafe { tidbit_decoder_new(model, out.cast()) }, handle == 0),
            21 => {
                let (tokens, n) = self.tokens();
                let status = unsafe { tidbit_decoder_push(decoder, tokens.as_ptr(), n, buffer, capacity, out_length) };
                ("decoder_push", status, no_length(status, length))
            }
            22 => {
                let status = unsafe { tidbit_decoder_finish(decoder, buffer, capacity, out_length) };
                ("decoder_finish", status, no_length(status, length))
            }
            23 => {
                let mut value = 7;
                let status = unsafe { tidbit_session_estimate(model, options_or_null, &raw mut value) };
                ("session_estimate", status, value == 0)
            }
            24 => ("session_new", unsafe { tidbit_session_new(model, options, out.cast()) }, handle == 0),
            25 => ("session_clone", unsafe { tidbit_session_clone(session, out.cast()) }, handle == 0),
            26 => {
                let (tokens, n) = self.tokens();
                ("append", unsafe { tidbit_session_append(session, tokens.as_ptr(), n) }, true)
            }
            27 => {
                let (text, n) = self.text(&["Once upon a time", " and", "!"]);
                let status = unsafe { tidbit_session_append_text(session, text.as_ptr().cast(), n, out_length) };
                ("append_text", status, length == 0 || length == 7)
            }
            28 | 29 => {
                let mut token = 7;
                let status = unsafe { tidbit_session_next(session, &raw mut token, buffer, capacity, out_length) };
                ("next", status, token == 0 && no_length(status, length))
            }
            30 => ("set_sampling", unsafe { tidbit_session_set_sampling(session, options_or_null) }, true),
            31 => {
                let (what, n) = (self.random.of(&[0, 1, 2, 3, -1]), self.random.of(&[1, 2, 0, 100, usize::MAX]));
                let mut floats = vec![0f32; 8000];
                let capacity = self.capacity(floats.len());
                let status =
                    unsafe { tidbit_session_output(session, what, n, floats.as_mut_ptr(), capacity, out_length) };
                ("output", status, no_length(status, length))
            }
            32 => {
                let (tokens, n) = self.tokens();
                let (mut total, mut scores) = (7.0, vec![0f32; tokens.len()]);
                let scores = if self.random.one_in(3) { null_mut() } else { scores.as_mut_ptr() };
                let status = unsafe { tidbit_session_score(session, tokens.as_ptr(), n, scores, &raw mut total) };
                ("score", status, total == 0.0)
            }
            33 => {
                let position = self.random.of(&[0, 1, 3, 10, 63, 64, 65, usize::MAX]);
                ("rewind", unsafe { tidbit_session_rewind(session, position) }, true)
            }
            34 => {
                let status = unsafe { tidbit_session_tokens(session, buffer.cast(), capacity / 4, out_length) };
                ("tokens", status, no_length(status, length))
            }
            35 => ("save", self.save(session), true),
            37 => {
                let (text, n) = self.text(&["Once upon a time", "x"]);
                let mut floats = vec![0f32; 300];
                let capacity = self.capacity(floats.len());
                let (text, floats) = (text.as_ptr().cast(), floats.as_mut_ptr());
                let status = unsafe { tidbit_session_embed(session, text, n, floats, capacity, out_length) };
                ("embed", status, no_length(status, length))
            }
            36 => ("load", self.load(session), true),
            _ => {
                let kind = self.random.below(4);
                if self.random.one_in(2) && !self.live[kind].is_empty() {
                    let at = self.random.below(self.live[kind].len());
                    self.free(kind, at);
                    return;
                }
                // What is not alive, or is of another kind.
                let wrong = self.handle::<c_void>(kind).addr();
                let status = if self.live[kind].contains(&wrong) { TIDBIT_OK } else { free(kind, wrong) };
                assert!(status == TIDBIT_INVALID_HANDLE || wrong == 0 || self.live[kind].contains(&wrong));
                ("free", status, true)
            }
        };
        self.check(name, status, empty);
        let made = match name {
            "options_new" => OPTIONS,
            "model_open" | "model_open_memory" | "model_share" | "model_open_fd" => MODEL,
            "decoder_new" => DECODER,
            "session_new" | "session_clone" => SESSION,
            _ => return,
        };
        self.keep(made, status, handle);
        if made == OPTIONS && status == TIDBIT_OK {
            // Small sessions, or a run would take its time.
            for (key, value) in [("session.context", 70), ("session.threads", 1)] {
                let options = std::ptr::without_provenance_mut(handle);
                unsafe { tidbit_options_set_int(options, key.as_ptr().cast(), key.len(), value) };
            }
        }
    }

    fn any_handle(&mut self) -> *const c_void {
        let kind = self.random.below(4);
        self.handle(kind)
    }

    fn path(&mut self) -> (Vec<u8>, usize) {
        let path = match self.random.below(8) {
            0 => self.folder.clone(),
            1 => [&self.folder[..], b"/missing"].concat(),
            2 => b"/dev/zero".to_vec(),
            3 => (0..self.random.below(300)).map(|_| self.random.next() as u8).collect(),
            _ => self.model_path.clone(),
        };
        let length = if self.random.one_in(30) { usize::MAX } else { path.len() };
        (path, length)
    }

    /// The model in lent memory, sometimes damaged.
    fn open_memory(
        &mut self,
        options: *const tidbit::objects::tidbit_options,
        out: *mut *mut tidbit::objects::tidbit_model,
    ) -> Status {
        let mut model = self.model_bytes.clone();
        if self.random.one_in(2) {
            for _ in 0..=self.random.below(3) {
                let at = self.random.below(model.len().min(30_000));
                model[at] = self.random.next() as u8;
            }
        }
        if self.random.one_in(4) {
            model.truncate(self.random.below(model.len()));
        }
        self.lent += 1;
        if self.random.one_in(10) {
            let length = self.random.of(&[0, 5, usize::MAX]);
            return unsafe { tidbit_model_open_memory(null(), length, Some(release), null_mut(), options, out) };
        }
        let length = model.len();
        let mut lines = vec![[0u64; 8]; length.div_ceil(64)];
        unsafe { std::ptr::copy_nonoverlapping(model.as_ptr(), lines.as_mut_ptr().cast(), length) };
        lines.shrink_to_fit();
        let data = std::mem::ManuallyDrop::new(lines).as_ptr().cast();
        let user_data = if length == 0 { null_mut() } else { std::ptr::without_provenance_mut(length) };
        unsafe { tidbit_model_open_memory(data, length, Some(release), user_data, options, out) }
    }

    fn save(&mut self, session: *mut tidbit::objects::tidbit_session) -> Status {
        let mut length = 0;
        let status = unsafe { tidbit_session_save(session, null_mut(), 0, &raw mut length) };
        if status != TIDBIT_BUFFER_TOO_SMALL {
            return status;
        }
        let mut bytes = vec![0; length];
        let status = unsafe { tidbit_session_save(session, bytes.as_mut_ptr(), length, &raw mut length) };
        if status == TIDBIT_OK {
            self.saved.push(bytes);
            if self.saved.len() > 8 {
                self.saved.remove(0);
            }
        }
        status
    }

    fn load(&mut self, session: *mut tidbit::objects::tidbit_session) -> Status {
        let at = self.random.below(self.saved.len());
        let mut bytes = self.saved.get(at).cloned().unwrap_or_default();
        if self.random.one_in(2) && !bytes.is_empty() {
            let at = self.random.below(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
        }
        if self.random.one_in(4) {
            bytes.truncate(self.random.below(bytes.len() + 1));
        }
        let length = if self.random.one_in(20) { usize::MAX } else { bytes.len() };
        unsafe { tidbit_session_load(session, bytes.as_ptr(), length) }
    }
}

fn message() -> String {
    let mut length = 0;
    let text = unsafe { tidbit_last_error(&raw mut length) };
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length + 1) };
    assert_eq!(bytes[length], 0);
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn free(kind: usize, handle: usize) -> Status {
    let handle: *mut c_void = std::ptr::without_provenance_mut(handle);
    unsafe {
        match kind {
            OPTIONS => tidbit_options_free(handle.cast()),
            MODEL => tidbit_model_free(handle.cast()),
            DECODER => tidbit_decoder_free(handle.cast()),
            _ => tidbit_session_free(handle.cast()),
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// A model of random weights with an encoder, and the tokenizer of the demo model.
fn with_an_encoder(folder: &Path) -> PathBuf {
    let yaml = "{vocab_size: 4096, context_length: 256, n_layers: 2, encoder_layers: 2, d_model: 64, n_heads: 4, \
                pos_type: relative_bias, norm_type: rmsnorm, activation: relu}";
    let spec = tidbit_convert::spec_from_yaml("m.yaml", yaml).unwrap();
    let tokenizer = std::fs::read(support::root().join("../models/gpt2-mini/tokenizer.json")).unwrap();
    let (path, options) = (folder.join("encoder.tidbit"), Options { quant: QuantType::Q8, cancel: None });
    tidbit_convert::write_random(&spec, &options, Some(&tokenizer), (&path, &[], 1)).unwrap();
    path
}

#[test]
fn any_sequence_of_calls_ends_in_statuses() {
    let folder = support::scratch();
    // One after the other: what was given back is counted for the process.
    for (path, calls) in [(support::gpt2(), 20_000), (with_an_encoder(folder.path()), 10_000)] {
        any_sequence(&path, calls);
    }
}

fn any_sequence(path: &Path, calls: usize) {
    let seconds = number("TIDBIT_FUZZ_SECONDS");
    let seed = number("TIDBIT_FUZZ_SEED").unwrap_or(1);
    let released = RELEASED.load(Ordering::Relaxed);
    let folder = support::scratch();
    let mut host = Host {
        random: Random(seed),
        live: Default::default(),
        freed: Vec::new(),
        model_bytes: std::fs::read(path).unwrap(),
        model_path: path.to_str().unwrap().into(),
        folder: folder.path().to_str().unwrap().into(),
        saved: Vec::new(),
        lent: 0,
        seen: [0; 19],
    };
    let started = Instant::now();
    let mut n = 0;
    loop {
        let now = n;
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| host.call()));
        if let Err(panic) = told {
            println!("call {now} with TIDBIT_FUZZ_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        n += 1;
        // One thread cancels and frees what another is using.
        if n % 50 == 0 && host.live[SESSION].len() > 1 {
            let shared = host.live[SESSION].remove(0);
            std::thread::scope(|scope| {
                let other: *mut tidbit::objects::tidbit_session = std::ptr::without_provenance_mut(shared);
                let tokens = vec![3u32; 60];
                let user = shared;
                let worker = scope.spawn(move || unsafe {
                    let session = std::ptr::without_provenance_mut(user);
                    tidbit_session_append(session, tokens.as_ptr(), tokens.len())
                });
                unsafe { tidbit_session_cancel(other) };
                unsafe { tidbit_session_rewind(other, 0) };
                assert_eq!(free(SESSION, shared), TIDBIT_OK);
                assert!((0..18).contains(&worker.join().unwrap()));
            });
            host.freed.push(shared);
        }
        match seconds {
            Some(seconds) if started.elapsed() > Duration::from_secs(seconds) => break,
            None if n == calls => break,
            _ => {}
        }
    }
    for kind in 0..4 {
        while !host.live[kind].is_empty() {
            host.free(kind, 0);
        }
    }
    assert_eq!(RELEASED.load(Ordering::Relaxed) - released, host.lent, "every memory is given back once");
    println!("{n} calls in {:.1?}, seed {seed}", started.elapsed());
    for (status, n) in host.seen.iter().enumerate() {
        let name = unsafe { std::ffi::CStr::from_ptr(tidbit_status_name(status as Status)) };
        println!("  {:<24} {n}", name.to_str().unwrap());
    }
    assert!(host.seen[TIDBIT_OK as usize] > n / 4, "most calls should get somewhere");
}
