//! What templates expect of the Python that they were written for, and Jinja crates do not have.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// `json.dumps` of Python: a space after every comma and colon, or lines that are indented; no character is escaped that need
/// not be.
#[expect(clippy::needless_pass_by_value, reason = "the form that minijinja calls")]
pub(super) fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // These change nothing here.
    let _: (Option<bool>, Option<Value>) = (options.get("ensure_ascii")?, options.get("separators")?);
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) if n <= 16 => {
            let indent = vec![b' '; n];
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&indent)))
        }
        Some(n) => return Err(Error::new(ErrorKind::InvalidOperation, format!("indent is {n}, expected 16 or less"))),
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    String::from_utf8(out).map(Value::from).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// A space after every comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A template whose `{% generation %}` blocks, which mark answers for training, are blocks without effect.
pub(super) fn without_generation_blocks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let (mark, name) = match tag.strip_prefix(['-', '+']) {
            Some(name) => (&tag[..1], name),
            None => ("", tag),
        };
        let end = name.find("%}").unwrap_or(0);
        let instead = match name[..end].trim_end_matches(['-', '+']).trim() {
            "generation" => " if true ",
            "endgeneration" => " endif ",
            _ => {
                rest = tag;
                continue;
            }
        };
        out.push_str(mark);
        out.push_str(instead);
        rest = &name[name[..end].trim_end_matches(['-', '+']).len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_have_no_effect() {
        for (template, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% if true %}b{% endif %}c"),
            ("{%- generation -%} x {%+ endgeneration +%}", "{%- if true -%} x {%+ endif +%}"),
            ("{% if generation %}{%", "{% if generation %}{%"),
        ] {
            assert_eq!(without_generation_blocks(template), expected);
        }
    }
}
