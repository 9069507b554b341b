//! Measurements as lines for people, as CSV and as a Markdown table.

use super::measure::Run;
use super::record::{FIELDS, Record, Subject};
use anyhow::Result;
use serde_json::Value;
use std::fmt::Write as _;

/// What was measured, in one line.
pub(super) fn heading(subject: &Subject) -> String {
    format!(
        "{} ({:.1} MB, {}), {} on {}, {} cores",
        subject.file,
        subject.file_bytes as f64 / 1e6,
        subject.access,
        subject.isa,
        subject.cpu,
        subject.cores
    )
}

/// How it started, in one line.
pub(super) fn start_line(threads: usize, subject: &Subject) -> String {
    format!(
        "     start                 {:9} {:8.2} ms to load, {:.2} ms to the first token (in this process)",
        count_of_threads(threads),
        subject.start.load_ms,
        subject.start.first_token_ms
    )
}

/// One measurement in one line.
pub(super) fn line(run: &Run) -> String {
    let threads = count_of_threads(run.threads);
    let mut text = format!(
        "{:4} {:21} {threads:9} {:8.1} tokens/s ({:.1} to {:.1})",
        run.quant,
        work(run),
        run.tokens_per_s,
        run.p5,
        run.p95
    );
    if let Some(roof) = of_roof(run) {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "  {roof}");
    }
    text
}

/// What was run.
pub(super) fn work(run: &Run) -> String {
    match run.phase {
        "prefill" => format!("prefill {}", run.n_tokens),
        phase if run.batch > 1 => format!("{phase} {} at depth {}", run.batch, run.depth),
        phase => format!("{phase} at depth {}", run.depth),
    }
}

pub(super) fn count_of_threads(threads: usize) -> String {
    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") }
}

/// What was reached of the ceiling, where there is one.
pub(super) fn of_roof(run: &Run) -> Option<String> {
    let (value, roof, fraction) = (run.achieved()?, run.roof?, run.roof_fraction?);
    Some(format!("{value:.2} of {roof:.2} {} = {:.0} %", run.unit(), fraction * 100.0))
}

/// One line for each measurement after a line of names (RFC 4180, lines end in a line feed); empty where nothing applies.
pub(super) fn csv(records: &[Record]) -> Result<String> {
    let mut text = FIELDS.join(",") + "\n";
    for record in records {
        let record = serde_json::to_value(record)?;
        let cells: Vec<String> = FIELDS.iter().map(|field| csv_cell(&record[field])).collect();
        text += &cells.join(",");
        text += "\n";
    }
    Ok(text)
}

fn csv_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns of the tables for people.
pub(super) const COLUMNS: [&str; 10] = [
    "model",
    "quant",
    "kv",
    "work",
    "threads",
    "tokens/s",
    "p5 to p95",
    "of the roof",
    "load, first token",
    "peak memory",
];

/// The cells of those columns.
pub(super) fn cells(record: &Record) -> [String; 10] {
    let (run, subject) = (&record.run, &record.subject);
    [
        format!("{} ({:.1} MB)", subject.file, subject.file_bytes as f64 / 1e6),
        run.quant.clone(),
        subject.kv.into(),
        work(run),
        run.threads.to_string(),
        rate(run.tokens_per_s),
        format!("{} to {}", rate(run.p5), rate(run.p95)),
        of_roof(run).unwrap_or_else(|| "–".into()),
        format!("{:.2} ms, {:.1} ms", subject.start.load_ms, subject.start.first_token_ms),
        record.peak_rss_bytes.map_or_else(|| "–".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6)),
    ]
}

/// Three figures or more.
pub(super) fn rate(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// The machine in one sentence, and how to read the figures.
pub(super) fn machine(subject: &Subject) -> String {
    format!(
        "tidbit {}, {} on {}, {} cores; medians of {} repetitions",
        subject.version, subject.isa, subject.cpu, subject.cores, subject.repetitions
    )
}

/// A table to paste.
pub(super) fn markdown(records: &[Record]) -> String {
    let row = |cells: &[String]| {
        let escaped: Vec<String> = cells.iter().map(|cell| cell.replace('\\', "\\\\").replace('|', "\\|")).collect();
        format!("| {} |\n", escaped.join(" | "))
    };
    let mut text = records.first().map(|r| machine(&r.subject) + "\n\n").unwrap_or_default();
    text += &row(&COLUMNS.map(String::from));
    text += "|---|---|---|---|---:|---:|---:|---:|---:|---:|\n";
    for record in records {
        text += &row(&cells(record));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::example;
    use super::*;

    #[test]
    fn csv_quotes_what_needs_it() {
        let text = csv(&[example("prefill", "f32", 2, 0, 1000.0)]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with("prefill,f32,2,512,0,1,1000.0,900.0,1100.0,,,,,"), "{}", lines[1]);
        assert!(lines[1].contains("\"A CPU, of \"\"8\"\" cores | <fast>\""), "{}", lines[1]);
    }

    #[test]
    fn markdown_has_as_many_cells_in_each_row() {
        let text = markdown(&[example("decode", "q4", 1, 900, 12.34), example("prefill", "f32", 2, 0, 1000.0)]);
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(table.len(), 4);
        for line in &table {
            assert_eq!(line.replace("\\|", "").matches('|').count(), COLUMNS.len() + 1, "{line}");
        }
        assert!(table[2].contains("| 12.3 | 11.1 to 13.6 | 10.00 of 20.00 GB/s = 50 % |"), "{}", table[2]);
    }

    #[test]
    fn rates_keep_three_figures() {
        assert_eq!((rate(1.234), rate(12.34), rate(1234.5)), ("1.23".into(), "12.3".into(), "1234".into()));
    }
}
