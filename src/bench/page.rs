//! Measurements as one web page that needs nothing else: plots, and the table they are made of.

use super::plot::{Axis, Chart, Point, Series, escape};
use super::record::Record;
use super::report::{COLUMNS, cells, count_of_threads, machine};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn html(records: &[Record]) -> String {
    let about = records.first().map_or_else(String::new, |r| escape(&machine(&r.subject)));
    let charts: String = charts(records).iter().map(Chart::html).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>tidbit bench</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>tidbit bench</h1>\n<p>{about}.</p>\n\
         <p>The roof is what this machine can do at most with as many threads, measured before each repetition: reading \
         the bytes that a token needs (decode), 8-bit multiply-adds (prefill).</p>\n\
         <div class=\"charts\">\n{charts}</div>\n{}{}</body>\n</html>\n",
        table(records),
        files(records)
    )
}

/// The distinct values of a field, in ascending order.
fn values<T: Ord>(records: &[&Record], field: impl Fn(&Record) -> T) -> Vec<T> {
    let mut values: Vec<T> = records.iter().map(|r| field(r)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// A plot for each phase and each thing that was varied, and one for each phase by quant type.
fn charts(records: &[Record]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for phase in ["decode", "prefill"] {
        let all: Vec<&Record> = records.iter().filter(|r| r.run.phase == phase).collect();
        let batches = values(&all, |r| r.run.batch);
        let runs: Vec<&Record> = all.iter().copied().filter(|r| Some(&r.run.batch) == batches.first()).collect();
        let lengths = values(&runs, length);
        let (Some(&shallowest), Some(&longest)) = (lengths.first(), lengths.last()) else { continue };
        let (usual, what, x_label) = if phase == "decode" {
            (shallowest, format!("Decode at depth {shallowest}"), "depth (tokens in the cache)")
        } else {
            (longest, format!("Prefill of {longest} tokens"), "prompt (tokens)")
        };
        let usual_runs: Vec<&Record> = runs.iter().copied().filter(|r| length(r) == usual).collect();
        let threads = values(&usual_runs, |r| r.run.threads);
        let most = threads.last().copied().unwrap_or(1);
        if threads.len() > 1 {
            charts.push(by_number(&usual_runs, format!("{what}, by threads"), "threads", |r| r.run.threads));
        }
        if lengths.len() > 1 {
            let runs: Vec<&Record> = runs.iter().copied().filter(|r| r.run.threads == most).collect();
            let title = if phase == "decode" { "Decode, by depth" } else { "Prefill, by length of the prompt" };
            charts.push(by_number(&runs, format!("{title}, {}", count_of_threads(most)), x_label, length));
        }
        if batches.len() > 1 {
            let runs: Vec<&Record> =
                all.iter().copied().filter(|r| r.run.threads == most && length(r) == usual).collect();
            let title = format!("{what}, by sequences, {}", count_of_threads(most));
            charts.push(by_number(&runs, title, "sequences decoded together", |r| r.run.batch));
        }
        charts.push(by_quant(&usual_runs, format!("{what}, by quant type"), &threads));
    }
    charts
}

/// What is varied in a phase: the tokens run before, or those run at once.
fn length(record: &Record) -> usize {
    if record.run.phase == "decode" { record.run.depth } else { record.run.n_tokens }
}

fn point(x: usize, record: &Record) -> Point {
    let run = &record.run;
    Point { x, y: run.tokens_per_s, low: run.p5, high: run.p95, roof: run.roof_tokens_per_s() }
}

/// Quant types in the order they were measured in.
fn quants(runs: &[&Record]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for run in runs {
        if !names.contains(&run.run.quant) {
            names.push(run.run.quant.clone());
        }
    }
    names
}

/// Lines, one for each quant type.
fn by_number(runs: &[&Record], title: String, x_label: &str, field: impl Fn(&Record) -> usize) -> Chart {
    let axis = values(runs, &field);
    let points = |name: &str| {
        let at = |(x, value): (usize, &usize)| {
            runs.iter().find(|r| r.run.quant == name && field(r) == *value).map(|r| point(x, r))
        };
        axis.iter().enumerate().filter_map(at).collect()
    };
    let series = quants(runs).into_iter().map(|name| Series { points: points(&name), name }).collect();
    Chart { title, x_label: x_label.into(), y_label: "tokens/s".into(), axis: Axis::Numbers(axis), series }
}

/// Groups of bars, one bar for each number of threads.
fn by_quant(runs: &[&Record], title: String, threads: &[usize]) -> Chart {
    let names = quants(runs);
    let points = |threads: usize| {
        let at = |(x, name): (usize, &String)| {
            runs.iter().find(|r| r.run.quant == *name && r.run.threads == threads).map(|r| point(x, r))
        };
        names.iter().enumerate().filter_map(at).collect()
    };
    let series = threads.iter().map(|&n| Series { name: count_of_threads(n), points: points(n) }).collect();
    Chart { title, x_label: "quant type".into(), y_label: "tokens/s".into(), axis: Axis::Names(names), series }
}

fn table(records: &[Record]) -> String {
    let mut html = String::from("<div class=\"table\"><table>\n<thead><tr>");
    for column in COLUMNS {
        // Writing to a `String` cannot fail.
        let _ = write!(html, "<th>{column}</th>");
    }
    html += "</tr></thead>\n<tbody>\n";
    for record in records {
        html += "<tr>";
        for cell in cells(record) {
            let _ = write!(html, "<td>{}</td>", escape(&cell));
        }
        html += "</tr>\n";
    }
    html + "</tbody>\n</table></div>\n<p class=\"note\">Load is opening the file and making a session; the first token is the \
            same and the logits after a prompt of 5 tokens. Both in a running process, with the file in the system's cache. \
            Peak memory counts the pages of the mapped file.</p>\n"
}

/// Which files these were.
fn files(records: &[Record]) -> String {
    let all: Vec<&Record> = records.iter().collect();
    let mut html = String::from(
        "<p class=\"note\">SHA-256 of the headers, which hold the checksum of every tensor:</p>\n<ul class=\"note\">\n",
    );
    for (file, hash) in values(&all, |r| (r.subject.file.clone(), r.subject.header_sha256.clone())) {
        let _ = writeln!(html, "<li>{} <code>{}</code></li>", escape(&file), escape(&hash));
    }
    html + "</ul>\n"
}

#[cfg(test)]
mod tests {
    use super::super::record::example;
    use super::*;

    fn records() -> Vec<Record> {
        let mut records = Vec::new();
        for quant in ["q4", "f32"] {
            for threads in [1, 2] {
                records.push(example("prefill", quant, threads, 0, 1000.0));
                for depth in [0, 900] {
                    records.push(example("decode", quant, threads, depth, 100.0));
                }
            }
        }
        records
    }

    #[test]
    fn everything_that_was_varied_has_its_plot() {
        let records = records();
        let titles = |records: &[Record]| charts(records).into_iter().map(|c| c.title).collect::<Vec<_>>();
        let expected = [
            "Decode at depth 0, by threads",
            "Decode, by depth, 2 threads",
            "Decode at depth 0, by quant type",
            "Prefill of 512 tokens, by threads",
            "Prefill of 512 tokens, by quant type",
        ];
        assert_eq!(titles(&records), expected);
        assert_eq!(titles(&records[..1]), ["Prefill of 512 tokens, by quant type"]);
        let mut batches = [1, 8].map(|batch| {
            let mut record = example("decode", "q4", 2, 0, 100.0 * batch as f64);
            record.run.batch = batch;
            record
        });
        let expected = ["Decode at depth 0, by sequences, 2 threads", "Decode at depth 0, by quant type"];
        assert_eq!(titles(&batches), expected);
        assert_eq!(charts(&batches)[0].series[0].points[1].y, 800.0);
        batches.reverse();
        assert_eq!(charts(&batches)[1].series[0].points[0].y, 100.0, "elsewhere the smallest batch is shown");
        let chart = &charts(&records)[1];
        assert_eq!(chart.series.len(), 2);
        assert_eq!(chart.series[0].points.len(), 2);
        assert_eq!(chart.series[0].points[0].roof, Some(200.0));
        let prefill = &charts(&records)[3];
        assert!(prefill.series[1].points[0].roof.is_none(), "f32 has no 8-bit roof");
    }

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let page = html(&records());
        for tag in ["html", "head", "body", "style", "figure", "svg", "table", "tr", "td", "ul", "li", "g", "text", "p"]
        {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
            assert!(opened > 0, "{tag}");
        }
        for outside in ["http", "src=", "@import", "url(", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("a&lt;b&gt;") && !page.contains("a<b>"));
        assert!(page.contains("prefers-color-scheme: dark"));
    }
}
