//! `config.json`, read so that no field is dropped in silence.
//!
//! [`Config`] remembers which fields a family looked at. What is left at the [end](Config::finish)
//! is *harmless* (it cannot change the result of inference and is listed as ignored), *active* (it
//! changes the result in some architecture, and has a value that does: an error), or *unknown*
//! (listed, and pointed out).

mod fields;

use crate::error::{ConvertError, shown};
use fields::{HARMLESS, neutral_values};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A JSON object whose fields are read by name.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file, for messages.
    file: String,
    /// In front of the fields' names in messages, e.g. `rope_parameters.`
    prefix: String,
    fields: Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
    /// Fields that have no effect in this family.
    harmless: RefCell<BTreeSet<&'static str>>,
    /// What nobody looked at in the objects inside.
    inner: RefCell<Leftover>,
}

/// What no family looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftover {
    /// All such fields.
    pub(crate) ignored: Vec<String>,
    /// Those of them that are not known to be harmless.
    pub(crate) unknown: Vec<String>,
}

impl Config {
    /// Parses a config.
    pub(crate) fn parse(file: &str, json: &[u8]) -> Result<Self, ConvertError> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(fields)) => Ok(Self::over(file, "", fields)),
            Ok(_) => Err(ConvertError::config(file, "expected a JSON object")),
            Err(e) => Err(ConvertError::config(file, format!("not valid JSON: {}", shown(&e.to_string())))),
        }
    }

    /// A config of these fields.
    pub(crate) fn of(file: &str, fields: Map<String, Value>) -> Self {
        Self::over(file, "", fields)
    }

    fn over(file: &str, prefix: &str, fields: Map<String, Value>) -> Self {
        Self {
            file: file.into(),
            prefix: prefix.into(),
            fields,
            seen: RefCell::default(),
            harmless: RefCell::default(),
            inner: RefCell::default(),
        }
    }

    /// Whether the config has a field, be it null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The names of those that nobody looked at.
    pub(crate) fn unread(&self) -> Vec<&str> {
        let seen = self.seen.borrow();
        self.names().filter(|name| !seen.contains(*name)).collect()
    }

    /// These fields have no effect in this family, whatever they say.
    pub(crate) fn harmless(&self, names: &[&'static str]) {
        self.harmless.borrow_mut().extend(names);
    }

    /// The value of a field, if it is there and not null. The field counts as looked at.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(name.into());
        self.fields.get(name).filter(|v| !v.is_null())
    }

    /// An error about a field: its name and value, and what it may be.
    pub(crate) fn refuse(&self, name: &str, expected: impl std::fmt::Display) -> ConvertError {
        let value = self.fields.get(name).map_or_else(|| "missing".into(), |v| format!("is {}", shown(&v.to_string())));
        ConvertError::config(&self.file, format!("`{}{}` {value}, expected {expected}", self.prefix, shown(name)))
    }

    /// An error about a field that should be one of `names`, with the one that was probably meant.
    pub(crate) fn refuse_name(&self, field: &str, names: &[&'static str]) -> ConvertError {
        let found = self.fields.get(field).and_then(Value::as_str).unwrap_or_default();
        let hint =
            closest(found, names.iter().copied()).map_or_else(String::new, |name| format!("; did you mean {name}?"));
        self.refuse(field, format!("one of: {}{hint}", names.join(", ")))
    }

    /// An error about the whole.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ConvertError {
        ConvertError::config(&self.file, reason)
    }

    /// The one value that a field has under several spellings; contradicting ones are an error.
    fn one_of<T: PartialEq>(
        &self,
        names: &[&str],
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConvertError> {
        let mut found: Option<(&str, T)> = None;
        for &name in names {
            let Some(value) = self.get(name) else { continue };
            let value = read(value).ok_or_else(|| self.refuse(name, expected))?;
            match &found {
                Some((other, earlier)) if *earlier != value => {
                    let earlier = self.fields.get(*other).map(ToString::to_string).unwrap_or_default();
                    let same = format!("the same as `{}{other}`, which is {}", self.prefix, shown(&earlier));
                    return Err(self.refuse(name, same));
                }
                Some(_) => {}
                None => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    /// A positive whole number, or `None` when missing or null.
    pub(crate) fn size(&self, names: &[&str]) -> Result<Option<usize>, ConvertError> {
        let read = |v: &Value| v.as_u64().filter(|&n| (1..=1 << 32).contains(&n)).map(|n| n as usize);
        self.one_of(names, "a positive whole number", read)
    }

    /// A positive whole number that must be there.
    pub(crate) fn required_size(&self, names: &[&str]) -> Result<usize, ConvertError> {
        let missing = || self.refuse(names.first().unwrap_or(&""), "a positive whole number");
        self.size(names)?.ok_or_else(missing)
    }

    /// A positive finite number, or `None` when missing or null.
    pub(crate) fn positive(&self, names: &[&str]) -> Result<Option<f64>, ConvertError> {
        let read = |v: &Value| v.as_f64().filter(|x| *x > 0.0 && (*x as f32).is_finite() && *x as f32 > 0.0);
        self.one_of(names, "a positive number", read)
    }

    /// A whole number that may be 0, or `None` when missing or null.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, ConvertError> {
        let read = |v: &Value| v.as_u64().filter(|&n| n <= 1 << 32).map(|n| n as usize);
        self.one_of(&[name], "a whole number", read)
    }

    /// A list of whole numbers; empty when missing or null.
    pub(crate) fn counts(&self, name: &str) -> Result<Vec<usize>, ConvertError> {
        let one = |v: &Value| v.as_u64().filter(|&n| n <= 1 << 32).map(|n| n as usize);
        let read = |v: &Value| v.as_array()?.iter().map(one).collect();
        Ok(self.one_of(&[name], "a list of whole numbers", read)?.unwrap_or_default())
    }

    /// A positive number; `default` when missing, `None` when null.
    pub(crate) fn optional(&self, name: &str, default: f64) -> Result<Option<f32>, ConvertError> {
        let value = if self.has(name) { self.positive(&[name])? } else { Some(default) };
        Ok(value.map(|v| v as f32))
    }

    /// A positive number that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<f32, ConvertError> {
        let value = self.positive(&[name])?.ok_or_else(|| self.refuse(name, "a positive number"))?;
        Ok(value as f32)
    }

    /// A boolean, or `default` when missing or null.
    pub(crate) fn bool(&self, name: &str, default: bool) -> Result<bool, ConvertError> {
        Ok(self.one_of(&[name], "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string, or `None` when missing or null.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ConvertError> {
        self.one_text(&[name])
    }

    /// A string under one of several names, or `None` when missing or null.
    pub(crate) fn one_text(&self, names: &[&str]) -> Result<Option<String>, ConvertError> {
        self.one_of(names, "a string", |v| v.as_str().map(String::from))
    }

    /// A list of strings; empty when missing or null.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, ConvertError> {
        let read = |v: &Value| v.as_array()?.iter().map(|s| s.as_str().map(String::from)).collect();
        Ok(self.one_of(&[name], "a list of strings", read)?.unwrap_or_default())
    }

    /// Token ids: a number, a list of them, or null for none. An absent field means `default`, if the
    /// vocabulary has it.
    pub(crate) fn token_ids(
        &self,
        name: &str,
        default: Option<u32>,
        vocab_size: usize,
    ) -> Result<Vec<u32>, ConvertError> {
        if !self.has(name) {
            return Ok(Vec::from_iter(default.filter(|&id| (id as usize) < vocab_size)));
        }
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let read = |v: &Value| match v {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|id| vec![id]),
        };
        Ok(self.one_of(&[name], "a token id or a list of them", read)?.unwrap_or_default())
    }

    /// An object of its own, if there is one.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, ConvertError> {
        let object = self.one_of(&[name], "an object", |v| v.as_object().cloned())?;
        Ok(object.map(|fields| Self::over(&self.file, &format!("{}{name}.", self.prefix), fields)))
    }

    /// Accepts a field only when it says what the model does anyway.
    pub(crate) fn expect_size(&self, names: &[&str], value: usize, why: &str) -> Result<(), ConvertError> {
        for &name in names {
            if self.size(&[name])?.is_some_and(|found| found != value) {
                return Err(self.refuse(name, format!("{value} ({why})")));
            }
        }
        Ok(())
    }

    /// Accepts a boolean only when it says what the model does anyway.
    pub(crate) fn expect_bool(&self, name: &str, value: bool) -> Result<(), ConvertError> {
        if self.bool(name, value)? == value { Ok(()) } else { Err(self.refuse(name, value)) }
    }

    /// Adds what nobody looked at in an object inside.
    pub(crate) fn adopt(&self, inner: &Self) -> Result<(), ConvertError> {
        let Leftover { ignored, unknown } = inner.finish()?;
        let mut all = self.inner.borrow_mut();
        all.ignored.extend(ignored);
        all.unknown.extend(unknown);
        Ok(())
    }

    /// Sorts the fields that nobody looked at; the first that would change the result is an error.
    pub(crate) fn finish(&self) -> Result<Leftover, ConvertError> {
        let mut left = self.inner.borrow().clone();
        let (seen, harmless) = (self.seen.borrow(), self.harmless.borrow());
        for (name, value) in self.fields.iter().filter(|(name, _)| !seen.contains(*name)) {
            let shown = format!("{}{}", self.prefix, shown(name));
            if harmless.contains(name.as_str()) {
                left.ignored.push(shown);
                continue;
            }
            let empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::String(text) => text.is_empty(),
                Value::Bool(true) | Value::Number(_) => false,
            };
            if let Some(neutral) = neutral_values(name)
                && !empty
                && !equal(value, &neutral)
            {
                return Err(self.refuse(name, "it to be absent: it changes the result, and is not supported here"));
            }
            if !HARMLESS.contains(&name.as_str()) && neutral_values(name).is_none() && !empty {
                left.unknown.push(shown.clone());
            }
            left.ignored.push(shown);
        }
        Ok(left)
    }
}

/// The name that is most like a misspelt one, if one is.
pub(crate) fn closest(found: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let like = |name: &str| strsim::jaro_winkler(&found.to_lowercase().replace('-', "_"), name);
    let (alike, name) = names.map(|name| (like(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (alike > 0.8).then_some(name)
}

/// Equality that does not tell `1` from `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse("config.json", json.as_bytes()).unwrap()
    }

    #[test]
    fn fields_nobody_read_are_sorted_by_what_they_can_do() {
        let c = config(r#"{"n_layer": 2, "attn_pdrop": 0.1, "shiny": 3, "sliding_window": null, "logit_scale": 1.0}"#);
        assert_eq!(c.required_size(&["n_layer"]).unwrap(), 2);
        let left = c.finish().unwrap();
        assert_eq!(left.ignored, ["attn_pdrop", "logit_scale", "shiny", "sliding_window"]);
        assert_eq!(left.unknown, ["shiny"]);
    }

    #[test]
    fn active_fields_are_refused_by_name_and_value() {
        for (field, value) in [
            ("sliding_window", "4096"),
            ("quantization_config", r#"{"bits":4}"#),
            ("pruned_heads", r#"{"0":[1]}"#),
            ("auto_map", r#"{"AutoModel":"x.Y"}"#),
            ("add_cross_attention", "true"),
            ("is_encoder_decoder", "true"),
            ("logit_scale", "0.5"),
            ("position_embedding_type", r#""relative_key""#),
        ] {
            let message = config(&format!(r#"{{"{field}": {value}}}"#)).finish().unwrap_err().to_string();
            assert!(message.starts_with(&format!("config.json: `{field}` is {value}, expected")), "{message}");
        }
    }

    #[test]
    fn wrong_types_name_the_field_and_the_value() {
        let c = config(r#"{"a": -1, "b": "x", "c": 0, "d": [1, "2"], "e": -0.5, "f": 1.5}"#);
        let cases = [
            (c.size(&["a"]).unwrap_err(), "`a` is -1, expected a positive whole number"),
            (c.size(&["c"]).unwrap_err(), "`c` is 0, expected a positive whole number"),
            (c.size(&["f"]).unwrap_err(), "`f` is 1.5, expected a positive whole number"),
            (c.bool("b", true).unwrap_err(), "`b` is \"x\", expected true or false"),
            (c.positive(&["a"]).unwrap_err(), "`a` is -1, expected a positive number"),
            (c.positive(&["e"]).unwrap_err(), "`e` is -0.5, expected a positive number"),
            (c.token_ids("d", Some(0), 1).unwrap_err(), "`d` is [1,\"2\"], expected a token id or a list of them"),
            (c.required_size(&["z"]).unwrap_err(), "`z` missing, expected a positive whole number"),
        ];
        for (error, expected) in cases {
            assert_eq!(error.to_string(), format!("config.json: {expected}"));
        }
        assert!(config(r#"{"tiny": 1e-60}"#).positive(&["tiny"]).is_err(), "zero in f32");
    }

    #[test]
    fn contradicting_spellings_name_both() {
        let c = config(r#"{"n_embd": 8, "hidden_size": 16}"#);
        let message = c.size(&["n_embd", "hidden_size"]).unwrap_err().to_string();
        assert_eq!(message, "config.json: `hidden_size` is 16, expected the same as `n_embd`, which is 8");
    }
}
