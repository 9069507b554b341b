//! GGUF files made on the spot, right or wrong.

use std::path::{Path, PathBuf};

/// The value of a key.
#[derive(Clone)]
pub(crate) enum Key {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
    /// A type and bytes.
    Raw(u32, Vec<u8>),
}

pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Key {
    fn write(&self, out: &mut Vec<u8>) {
        let kind = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
        match self {
            Self::U32(n) => [4u32, *n].iter().for_each(|n| out.extend(n.to_le_bytes())),
            Self::F32(x) => {
                kind(out, 6);
                out.extend(x.to_le_bytes());
            }
            Self::Bool(b) => {
                kind(out, 7);
                out.push((*b).into());
            }
            Self::Text(t) => {
                kind(out, 8);
                text(out, t);
            }
            Self::Texts(list) => {
                kind(out, 9);
                kind(out, 8);
                out.extend((list.len() as u64).to_le_bytes());
                for t in list {
                    text(out, t);
                }
            }
            Self::Ints(list) => {
                kind(out, 9);
                kind(out, 5);
                out.extend((list.len() as u64).to_le_bytes());
                for n in list {
                    out.extend(n.to_le_bytes());
                }
            }
            Self::Floats(list) => {
                kind(out, 9);
                kind(out, 6);
                out.extend((list.len() as u64).to_le_bytes());
                for x in list {
                    out.extend(x.to_le_bytes());
                }
            }
            Self::Bytes(list) => {
                kind(out, 9);
                kind(out, 0);
                out.extend((list.len() as u64).to_le_bytes());
                out.extend(list);
            }
            Self::Raw(n, bytes) => {
                kind(out, *n);
                out.extend(bytes);
            }
        }
    }
}

/// An entry of the table, and its bytes.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// As in our shapes, the other way round than in the file.
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    /// Instead of the next free place.
    pub(crate) offset: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct File {
    pub(crate) keys: Vec<(String, Key)>,
    pub(crate) tensors: Vec<Entry>,
}

impl File {
    pub(crate) fn key(&mut self, name: &str, value: Key) -> &mut Self {
        self.keys.retain(|(key, _)| key != name);
        self.keys.push((name.into(), value));
        self
    }

    pub(crate) fn f32s(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = shape.iter().map(|&n| n as u64).collect();
        self.tensors.push(Entry { name: name.into(), shape, kind: 0, offset: None, bytes });
        self
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Entry {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut data: Vec<u8> = Vec::new();
        for t in &self.tensors {
            text(&mut out, &t.name);
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

pub(crate) const D: usize = 32;

/// A `LLaMA` of one layer that converts.
pub(crate) fn llama() -> File {
    let mut file = File::default();
    file.key("general.architecture", Key::Text("llama"));
    for (key, n) in [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", D as u32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
    ] {
        file.key(&format!("llama.{key}"), Key::U32(n));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", Key::F32(1e-5));
    let mut add = |name: &str, shape: &[usize]| {
        file.f32s(name, shape, &vec![0.5; shape.iter().product()]);
    };
    add("token_embd.weight", &[8, D]);
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        add(&format!("blk.0.{part}.weight"), &[32, 32]);
    }
    add("blk.0.attn_norm.weight", &[D]);
    add("blk.0.ffn_norm.weight", &[D]);
    add("output_norm.weight", &[D]);
    file
}
