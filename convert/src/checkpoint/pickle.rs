//! The pickle in a torch file, read by a whitelist.
//!
//! Pickle is a program for a stack machine that may call anything. Here only the opcodes that
//! `torch.save` writes for a state dict are known, and only the few names that rebuild a
//! tensor; they are recognised, never called. Anything else is an error with its name. Values
//! other than tensors are kept just well enough to be skipped.

use super::Dtype;
use crate::error::shown;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Most values on the stack and in the memo: a state dict needs about ten per tensor.
const MAX_VALUES: usize = 1 << 20;
/// Deepest nesting of tuples; torch writes 3. Also bounds the recursion when they are dropped.
const MAX_DEPTH: u8 = 16;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// A storage: a run of elements of one type in an entry of the archive.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    pub(super) key: Rc<str>,
    /// Number of elements.
    pub(super) elements: u64,
}

/// A view of a storage. Offset and strides are counted in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<u64>,
}

impl Tensor {
    /// Whether the elements lie in row-major order without gaps.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1u64;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return self.shape.contains(&0);
            }
            expected = expected.saturating_mul(size as u64);
        }
        true
    }
}

/// A value on the stack.
#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Str(Rc<str>),
    Tuple(Rc<[Value]>, u8),
    /// Entries with a string for a key; the value is kept when it is a tensor.
    Dict(Rc<RefCell<Entries>>),
    /// Contents are not kept.
    List,
    Global(Global),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
}

/// A dict's entries: tensors, and the kind of anything else.
type Entries = Vec<(Rc<str>, Result<Rc<Tensor>, &'static str>)>;

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an integer",
            Self::Str(_) => "a string",
            Self::Tuple(..) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::List => "a list",
            Self::Global(_) => "a global",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The names that a state dict may use.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Recognises a name of the whitelist.
fn global(module: &str, name: &str) -> Result<Global, String> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", storage) => Global::Storage(match storage {
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::BF16,
            "DoubleStorage" => Dtype::F64,
            "LongStorage" => Dtype::I64,
            "IntStorage" => Dtype::I32,
            "ShortStorage" => Dtype::I16,
            "CharStorage" => Dtype::I8,
            "ByteStorage" => Dtype::U8,
            "BoolStorage" => Dtype::BOOL,
            _ => return Err(forbidden(module, name)),
        }),
        _ => return Err(forbidden(module, name)),
    })
}

fn forbidden(module: &str, name: &str) -> String {
    format!("refers to `{}.{}`, which no state dict needs; nothing of it is executed", shown(module), shown(name))
}

/// Reads a state dict: name to tensor.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let mut machine = Machine { rest: bytes, length: bytes.len(), ..Machine::default() };
    let Value::Dict(entries) = machine.run()? else { return Err("expected a state dict at the top".into()) };
    let mut state = BTreeMap::new();
    for (name, value) in entries.borrow().iter() {
        match value {
            Ok(tensor) => state.insert(name.to_string(), Tensor::clone(tensor)),
            Err(kind) => return Err(format!("`{}` is {kind}, expected a tensor: not a bare state dict", shown(name))),
        };
    }
    Ok(state)
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    length: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            let at = self.length - self.rest.len();
            let [opcode] = self.bytes::<1>()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode).map_err(|e| format!("{e} (at byte {at})"))?;
            if self.stack.len() > MAX_VALUES || self.memo.len() > MAX_VALUES || self.marks.len() > MAX_VALUES {
                return Err(format!("more than {MAX_VALUES} values (at byte {at})"));
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one line per opcode: the whitelist is read as a table")]
    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            // PROTO, FRAME
            0x80 => {
                let [version] = self.bytes()?;
                if !(2..=5).contains(&version) {
                    return Err(format!("pickle protocol {version}, expected 2 to 5"));
                }
            }
            0x95 => drop(self.bytes::<8>()?),
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let value = i32::from_le_bytes(self.bytes()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let [value] = self.bytes()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.bytes()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let [n] = self.bytes()?;
                let digits = self.take(n.into())?;
                if digits.len() > 8 {
                    return Err(format!("an integer of {n} bytes, expected at most 8"));
                }
                let negative = digits.last().is_some_and(|d| d & 0x80 != 0);
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..digits.len()].copy_from_slice(digits);
                self.stack.push(Value::Int(i64::from_le_bytes(wide)));
            }
            // BINUNICODE, SHORT_BINUNICODE, BINSTRING, SHORT_BINSTRING
            b'X' | b'T' => {
                let n = u32::from_le_bytes(self.bytes()?);
                self.push_text(n)?;
            }
            0x8c | b'U' => {
                let [n] = self.bytes()?;
                self.push_text(n.into())?;
            }
            // EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE
            b'}' => self.stack.push(Value::Dict(Rc::default())),
            b']' => self.stack.push(Value::List),
            b')' => self.push_tuple(Vec::new())?,
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // TUPLE, TUPLE1, TUPLE2, TUPLE3
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items)?;
            }
            0x85..=0x87 => {
                let items = self.pop_n(usize::from(opcode - 0x84))?;
                self.push_tuple(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let [slot] = self.bytes()?;
                self.put(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.bytes()?);
                self.put(slot)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            b'h' => {
                let [slot] = self.bytes()?;
                self.get(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.bytes()?);
                self.get(slot)?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(global(module, name)?));
            }
            0x93 => match self.pop_n(2)?.as_slice() {
                [Value::Str(module), Value::Str(name)] => self.stack.push(Value::Global(global(module, name)?)),
                _ => return Err("a global without a name".into()),
            },
            // BINPERSID, REDUCE, BUILD
            b'Q' => {
                let id = self.pop()?;
                self.stack.push(Value::Storage(Rc::new(storage(&id)?)));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.stack.push(reduce(&function, &arguments)?);
            }
            b'b' => {
                // The attributes of a state dict (`_metadata`) say nothing about its tensors.
                let _state = self.pop()?;
                if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                    return Err("attributes on something that is not a dict".into());
                }
            }
            // SETITEM, SETITEMS, APPEND, APPENDS
            b's' => {
                let pair = self.pop_n(2)?;
                self.set_items(&pair)?;
            }
            b'u' => {
                let pairs = self.pop_to_mark()?;
                self.set_items(&pairs)?;
            }
            b'a' => drop(self.pop()?),
            b'e' => drop(self.pop_to_mark()?),
            other => return Err(format!("opcode 0x{other:02x}, which no state dict needs")),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| {
            format!(
                "truncated: {n} more bytes expected at byte {}, found {}",
                self.length - self.rest.len(),
                self.rest.len()
            )
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(taken);
        Ok(bytes)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = std::str::from_utf8(self.take(end)?).map_err(|_| "a name that is not UTF-8")?;
        self.take(1)?;
        Ok(line)
    }

    fn push_text(&mut self, length: u32) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(length as usize)?).map_err(|_| "a string that is not UTF-8")?;
        self.stack.push(Value::Str(text.into()));
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Result<(), String> {
        let inner = items.iter().map(|v| if let Value::Tuple(_, depth) = v { *depth } else { 0 }).max().unwrap_or(0);
        if inner >= MAX_DEPTH {
            return Err(format!("tuples nested more than {MAX_DEPTH} deep"));
        }
        self.stack.push(Value::Tuple(items.into(), inner + 1));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        Ok(self.pop_n(1)?.remove(0))
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Value>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(at) if at >= floor => Ok(self.stack.split_off(at)),
            _ => Err("takes more values than there are".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let at = self.marks.pop().ok_or("no mark to go back to")?;
        Ok(self.stack.split_off(at.min(self.stack.len())))
    }

    fn put(&mut self, slot: u32) -> Result<(), String> {
        let value = self.stack.last().ok_or("nothing to remember")?.clone();
        self.memo.insert(slot, value);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), String> {
        let value = self.memo.get(&slot).ok_or_else(|| format!("memo {slot} was never set"))?.clone();
        self.stack.push(value);
        Ok(())
    }

    fn set_items(&mut self, pairs: &[Value]) -> Result<(), String> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err("items for something that is no dict".into());
        };
        for pair in pairs.chunks(2) {
            let [key, value] = pair else { return Err("a key without a value".into()) };
            // Keys that are not strings occur in optimizer states only; they get a name to be refused by.
            let key = if let Value::Str(text) = key { Rc::clone(text) } else { key.kind().into() };
            let value = if let Value::Tensor(tensor) = value { Ok(Rc::clone(tensor)) } else { Err(value.kind()) };
            dict.borrow_mut().push((key, value));
        }
        Ok(())
    }
}

/// `('storage', type, key, device, elements)`
fn storage(id: &Value) -> Result<Storage, String> {
    let Value::Tuple(items, _) = id else { return Err(format!("a storage given as {}, expected a tuple", id.kind())) };
    match &**items {
        [Value::Str(tag), Value::Global(Global::Storage(dtype)), Value::Str(key), Value::Str(_), Value::Int(n)]
            if **tag == *"storage" =>
        {
            let elements = u64::try_from(*n).map_err(|_| format!("a storage of {n} elements"))?;
            Ok(Storage { dtype: *dtype, key: Rc::clone(key), elements })
        }
        _ => Err("a storage that is not described by (\"storage\", type, key, device, elements)".into()),
    }
}

/// What a call of one of the known names stands for.
fn reduce(function: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Global(function), Value::Tuple(items, _)) = (function, arguments) else {
        return Err(format!("a call of {} with {}", function.kind(), arguments.kind()));
    };
    match (function, &**items) {
        (Global::OrderedDict, []) => Ok(Value::Dict(Rc::default())),
        (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (Global::RebuildTensor, [Value::Storage(storage), Value::Int(offset), shape, strides, ..]) => {
            let offset = u64::try_from(*offset).map_err(|_| format!("a tensor at element {offset}"))?;
            let shape: Vec<usize> = sizes(shape)?.into_iter().map(|n| n as usize).collect();
            let strides = sizes(strides)?;
            if shape.len() != strides.len() {
                return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
            }
            Ok(Value::Tensor(Rc::new(Tensor { storage: Storage::clone(storage), offset, shape, strides })))
        }
        _ => Err(format!("a call of {function:?} with {} unexpected arguments", items.len())),
    }
}

fn sizes(value: &Value) -> Result<Vec<u64>, String> {
    let Value::Tuple(items, _) = value else { return Err(format!("a shape given as {}", value.kind())) };
    if items.len() > MAX_DIMS {
        return Err(format!("a tensor of {} dimensions, expected at most {MAX_DIMS}", items.len()));
    }
    items
        .iter()
        .map(|item| match item {
            Value::Int(n) => u64::try_from(*n).map_err(|_| format!("a size of {n}")),
            other => Err(format!("a size given as {}", other.kind())),
        })
        .collect()
}

#[cfg(test)]
mod tests;
