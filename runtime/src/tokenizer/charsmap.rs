//! The check of SentencePiece's tables of replacements (`precompiled_charsmap`), which come from a file.
//!
//! The `tokenizers` library follows such a table wherever it leads, so all places that a text can lead to are looked at first.
//! The layout is Darts' (a trie as a double array): the trie's length in bytes as u32, its units of u32, then the replacements,
//! each ended by a zero byte. A unit has a label in bits 0 to 7 and 31, in bit 8 whether a key ends there, and in bits 9 to 31
//! the way to its children; where a key ends, the unit at the children's place has in bits 0 to 30 the place of a replacement.

/// The largest table: SentencePiece's own have 250,000 bytes.
const MAX_BYTES: usize = 1 << 24;
/// The longest replacement, in bytes: SentencePiece's own have 33. It takes the place of a character of every text.
const MAX_REPLACEMENT: usize = 1024;

/// Checks a table as it stands in a model of SentencePiece.
///
/// # Errors
/// What leads outside of it, with the place and the bounds.
pub fn check(table: &[u8]) -> Result<(), String> {
    if table.len() > MAX_BYTES {
        return Err(format!("{} bytes, at most {MAX_BYTES}", table.len()));
    }
    let (numbers, _) = table.as_chunks::<4>();
    let [length, ..] = numbers else {
        return Err(format!("expected a trie and its length, found {} bytes", table.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    let (Some(units), Some(texts)) = (
        numbers.get(1..).and_then(|rest| rest.get(..length / 4)),
        length.checked_add(4).and_then(|start| table.get(start..)),
    ) else {
        return Err(format!("a trie of {length} bytes in a table of {}", table.len()));
    };
    if !length.is_multiple_of(4) || units.is_empty() {
        return Err(format!("a trie of {length} bytes, expected units of 4"));
    }
    let texts = std::str::from_utf8(texts).map_err(|e| format!("its replacements are not UTF-8: {e}"))?;

    let unit = |at: usize| {
        let bytes = units.get(at).ok_or_else(|| format!("unit {at} of {}", units.len()))?;
        Ok::<_, String>(u32::from_le_bytes(*bytes) as usize)
    };
    let children = |at: usize, unit: usize| at ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6));
    let mut seen = vec![false; units.len()];
    let mut places = vec![children(0, unit(0)?)];
    while let Some(place) = places.pop() {
        // The library reads the unit of any byte that may follow, and 0 ends a key.
        for byte in 1..=usize::from(u8::MAX) {
            let at = place ^ byte;
            let found = unit(at)?;
            // Labels of text have bit 31 clear.
            if found & (1 << 31 | 0xFF) != byte || std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let below = children(at, found);
            if found & (1 << 8) != 0 {
                let replacement = unit(below)? & ((1 << 31) - 1);
                if !texts.is_char_boundary(replacement) {
                    return Err(format!("a replacement at byte {replacement} of {}", texts.len()));
                }
                let text = &texts.as_bytes()[replacement..];
                if text.len() > MAX_REPLACEMENT && !text[..MAX_REPLACEMENT].contains(&0) {
                    return Err(format!("a replacement of more than {MAX_REPLACEMENT} bytes"));
                }
            }
            places.push(below);
        }
    }
    Ok(())
}

/// Checks those of a `tokenizer.json`'s normalizer. What the library would stumble over is an error here: it panics there.
///
/// # Errors
/// As [`check`], or what is no table, no normalizer or no JSON.
#[cfg(feature = "json-tokenizer")]
pub(super) fn check_json(json: &str) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Description {
        #[serde(default)]
        normalizer: serde_json::Value,
    }
    // A second `normalizer` is an error, of which the library would take one.
    let description: Description = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let mut left: Vec<_> =
        Some(&description.normalizer).filter(|normalizer| !normalizer.is_null()).into_iter().collect();
    while let Some(part) = left.pop() {
        // The library would make of a list what it makes of an object.
        let Some(part) = part.as_object() else { return Err("a normalizer that is no object".into()) };
        let table = part.get("precompiled_charsmap");
        if table.is_some() || part.get("type").is_some_and(|kind| kind == "Precompiled") {
            let Some(table) = table.and_then(serde_json::Value::as_str) else {
                return Err("`precompiled_charsmap` is missing or no text".into());
            };
            check(&from_base64(table)?).map_err(|reason| format!("`precompiled_charsmap`: {reason}"))?;
        }
        left.extend(part.get("normalizers").and_then(serde_json::Value::as_array).into_iter().flatten());
    }
    Ok(())
}

/// The bytes of base64 with padding (RFC 4648), as strictly as the library reads it.
#[cfg(feature = "json-tokenizer")]
fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    let letters = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(letters.len() / 4 * 3);
    let (mut bits, mut n_bits) = (0u32, 0);
    for &letter in letters.as_bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(format!("`precompiled_charsmap` has the byte {letter:#04x}, which base64 has not")),
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            out.push((bits >> n_bits) as u8);
        }
    }
    let padding = text.len() - letters.len();
    if !text.len().is_multiple_of(4) || padding > 2 || bits & ((1 << n_bits) - 1) != 0 {
        return Err("`precompiled_charsmap` is no whole base64".into());
    }
    Ok(out)
}

#[cfg(all(test, feature = "json-tokenizer"))]
mod tests {
    use super::super::Tokenizer;

    /// A `tokenizer.json` whose normalizer has this table, for which the library would look while it reads: a token is normalized.
    fn message(table: &str) -> String {
        message_of(&serde_json::json!({ "type": "Precompiled", "precompiled_charsmap": table }))
    }

    /// The same of one of a list of normalizers.
    fn message_of(normalizer: &serde_json::Value) -> String {
        let json = description(&serde_json::json!({ "type": "Sequence", "normalizers": [normalizer] }));
        match Tokenizer::from_json(json.to_string().as_bytes()) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        }
    }

    fn description(normalizer: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
            "normalizer": normalizer,
            "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" },
            "model": { "type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["x", -1.0]] },
            "added_tokens": [{ "id": 1, "content": "x", "special": false, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": true }],
        })
    }

    #[test]
    fn tables_of_a_tokenizer_json_are_checked_before_the_library_follows_them() {
        // A trie of one unit: the children of the root are outside of it.
        for (table, expected) in [
            ("BAAAAAAAAAA=", "tokenizer.json: `precompiled_charsmap`: unit 1 of 1"),
            ("BAAA", "`precompiled_charsmap`: expected a trie and its length, found 3 bytes"),
            ("BAAAAAAA", "`precompiled_charsmap`: a trie of 4 bytes in a table of 6"),
            ("B*", "`precompiled_charsmap` has the byte 0x2a, which base64 has not"),
            ("BAAAAAAAAAB=", "`precompiled_charsmap` is no whole base64"),
            ("BAA", "`precompiled_charsmap` is no whole base64"),
        ] {
            let message = message(table);
            assert!(message.contains(expected), "{message:?} should contain {expected:?}");
        }
    }
    #[test]
    fn normalizers_that_the_library_would_panic_on_are_errors() {
        use serde_json::json;
        for (normalizer, expected) in [
            (json!({ "type": "Precompiled" }), "`precompiled_charsmap` is missing or no text"),
            (
                json!({ "type": "Precompiled", "precompiled_charsmap": null }),
                "`precompiled_charsmap` is missing or no text",
            ),
            (
                json!([{ "type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA=" }]),
                "a normalizer that is no object",
            ),
        ] {
            let message = message_of(&normalizer);
            assert!(message.contains(expected), "{message:?} should contain {expected:?}");
        }
        let twice = description(&json!({ "type": "NFC" })).to_string();
        let twice = twice.replacen(
            '{',
            "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAAA=\"},",
            1,
        );
        let message = Tokenizer::from_json(twice.as_bytes()).err().unwrap().to_string();
        assert!(message.contains("duplicate field `normalizer`"), "{message}");
    }
}
