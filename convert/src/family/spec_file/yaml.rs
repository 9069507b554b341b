//! The part of YAML that a table of settings needs, as JSON: scalars, lists of them, and mappings in mappings.
//!
//! What could surprise or grow is refused with its line: aliases (and so "billion laughs"), tags, deep nesting, a key given
//! twice, a key without a value, a second document. Plain scalars are read as YAML 1.2 does: `yes` is a word, `1e-5` a number.

use crate::error::{ConvertError, shown};
use granit_parser::{Event, Parser, ScalarStyle, StrInput, options};
use serde_json::{Map, Number, Value};

/// The longest file, in bytes; a spec takes some hundred.
const MOST_BYTES: usize = 1 << 20;

/// Mappings and lists inside each other.
const DEEPEST: usize = 4;

/// Reads a file that is one mapping; `file` stands for it in messages.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, ConvertError> {
    let error = |reason: String| ConvertError::config(file, reason);
    if bytes.len() > MOST_BYTES {
        return Err(error(format!("{} bytes, expected at most {MOST_BYTES}", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| error(format!("not valid YAML: {e}")))?;
    let options = options! { flow_nesting_limit: DEEPEST, block_nesting_limit: DEEPEST, disallow_directives: true };
    let mut reader = Reader { events: Parser::new_from_str_with_options(text, options), line: 1 };
    let value = reader.document().map_err(|reason| error(format!("line {}: {reason}", reader.line)))?;
    match value {
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(error("expected a mapping, one `key: value` a line".into())),
        None => Err(error("the file is empty, expected one `key: value` a line".into())),
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// Of the last event.
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(e)) => {
                self.line = e.marker().line();
                Err(format!("not valid YAML: {}", shown(&e.info())))
            }
            None => Ok(Event::StreamEnd),
        }
    }

    /// The one document; `None` when there is none.
    fn document(&mut self) -> Result<Option<Value>, String> {
        let mut found = None;
        loop {
            match self.next()? {
                Event::StreamEnd => return Ok(found),
                Event::DocumentStart(..) if found.is_some() => return Err("a second document, expected one".into()),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                // An empty document is one empty scalar.
                Event::Scalar(text, ScalarStyle::Plain, ..) if text.is_empty() => {}
                event => found = Some(self.value(event, "the file")?),
            }
        }
    }

    /// The value that `event` begins. Depth is the parser's to limit.
    fn value(&mut self, event: Event<'a>, key: &str) -> Result<Value, String> {
        if let Some(tag) = event.tag() {
            return Err(format!("`{key}` has the tag {}, expected none", shown(&format!("{tag:?}"))));
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text, key),
            Event::Scalar(text, ..) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(list)),
                        event => list.push(self.value(event, key)?),
                    }
                }
            }
            Event::MappingStart(..) => self.mapping(),
            Event::Alias(_) => Err(format!("`{key}` is an alias, expected the value itself")),
            other => Err(format!("not valid YAML: {}", shown(&format!("{other:?}")))),
        }
    }

    fn mapping(&mut self) -> Result<Value, String> {
        let mut map = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(map)),
                Event::Scalar(key, _, _, None) => key.into_owned(),
                _ => return Err("a key that is no word".into()),
            };
            let name = shown(&key);
            let event = self.next()?;
            let value = self.value(event, &name)?;
            if map.insert(key, value).is_some() {
                return Err(format!("`{name}` is given twice"));
            }
        }
    }
}

/// A scalar without quotes.
fn plain(text: &str, key: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" => return Err(format!("`{key}` has no value; leave the key out for its default")),
        "true" | "false" => return Ok(Value::Bool(text == "true")),
        _ => {}
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    let numeric = digits && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    match text.parse::<f64>() {
        Ok(number) if numeric => Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| format!("`{key}` is {text}, expected a finite number")),
        _ => Ok(Value::String(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_are_those_of_yaml_1_2() {
        let text = "a: 12\nb: 1e-5\nc: -1.5\nd: yes\ne: true # why\nf: \"12\"\ng: [0, 2]\nh:\n  - 1\n  - two\ni: {j: 0.5}\nk: .nan\nl: 1_000";
        let expected = json!({ "a": 12, "b": 1e-5, "c": -1.5, "d": "yes", "e": true, "f": "12", "g": [0, 2],
            "h": [1, "two"], "i": { "j": 0.5 }, "k": ".nan", "l": "1_000" });
        assert_eq!(Value::Object(read("m.yaml", text.as_bytes()).unwrap()), expected);
        assert_eq!(read("m.yaml", b"--- # a comment\nn: 1\n...\n").unwrap().len(), 1);
        assert_eq!(read("m.yaml", br#"{"n": 1, "rope_scaling": {"factor": 2.0}}"#).unwrap().len(), 2, "JSON is YAML");
    }

    #[test]
    fn what_could_surprise_or_grow_is_refused_with_its_line() {
        let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]";
        let deep = format!("a: {}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let blocks = (0..1000).map(|i| " ".repeat(i) + "a:").collect::<Vec<_>>().join("\n");
        for (text, expected) in [
            (laughs, "line 2: `b` is an alias"),
            (&deep, "line 1: not valid YAML"),
            (&blocks, "not valid YAML"),
            ("a: 1\nb: 2\na: 3", "line 3: `a` is given twice"),
            ("a: 1\nb:\nc: 2", "`b` has no value"),
            ("a: ~", "`a` has no value"),
            ("a: 1e999", "`a` is 1e999, expected a finite number"),
            ("a: !!python/object:os.system x", "`a` has the tag"),
            ("a: 1\n---\nb: 2", "a second document"),
            ("[1, 2]: 3", "a key that is no word"),
            ("- 1\n- 2", "expected a mapping"),
            ("just words", "expected a mapping"),
            ("", "the file is empty"),
            ("# nothing\n", "the file is empty"),
            ("a: [1, 2", "not valid YAML"),
            ("a: 1\n b: 2", "line 2: not valid YAML"),
            ("%YAML 1.1\n---\na: 1", "not valid YAML"),
        ] {
            let message = read("m.yaml", text.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("m.yaml: ") && message.contains(expected), "{message} for {text:.60}");
            assert!(!message.contains('\n') && message.len() < 300, "{message}");
        }
        assert!(read("m.yaml", &[b'a', 0xff]).is_err());
        assert!(read("m.yaml", &vec![b' '; MOST_BYTES + 1]).is_err());
    }
}
