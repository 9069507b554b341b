//! Plots as SVG: points with whiskers joined by lines, or bars, each below its roof. Nothing here knows what is plotted.
//!
//! Colours are the classes `s0` to `s7`, which the page defines for light and dark; every series has its own marker too.

use super::report::rate;
use std::fmt::Write as _;

/// Size of the drawing in its own units, and where the axes lie in it.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 48.0;

/// Series are told apart by this many colours.
const COLOURS: usize = 8;

/// Labels on the x axis that are nearer than this would touch.
const LABEL_ROOM: f64 = 34.0;

/// What the x axis shows.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// Numbers, in ascending order: lines.
    Numbers(Vec<usize>),
    /// Names: groups of bars.
    Names(Vec<String>),
}

impl Axis {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Names(names) => names.len(),
        }
    }

    fn label(&self, i: usize) -> String {
        match self {
            Self::Numbers(values) => values[i].to_string(),
            Self::Names(names) => names[i].clone(),
        }
    }

    /// Where the values lie between the left end (0) and the right end (1).
    fn place(&self, i: usize) -> f64 {
        match self {
            Self::Names(names) => (i as f64 + 0.5) / names.len() as f64,
            Self::Numbers(values) => {
                let (first, last) = (values[0] as f64, values[values.len() - 1] as f64);
                if first == last { 0.5 } else { 0.08 + 0.84 * (values[i] as f64 - first) / (last - first) }
            }
        }
    }
}

/// A measured value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// Index on the x axis.
    pub(super) x: usize,
    pub(super) y: f64,
    /// Ends of the whisker.
    pub(super) low: f64,
    pub(super) high: f64,
    /// The most that is possible.
    pub(super) roof: Option<f64>,
}

/// Points of one colour, in ascending order of x.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// One plot.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) axis: Axis,
    pub(super) series: Vec<Series>,
}

impl Chart {
    /// The plot with its title and legend.
    pub(super) fn html(&self) -> String {
        let title = escape(&self.title);
        format!(
            "<figure>\n<figcaption>{title}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">\n{}{}</svg>\n{}</figure>\n",
            self.axes(),
            self.marks(),
            self.legend()
        )
    }

    fn is_bars(&self) -> bool {
        matches!(self.axis, Axis::Names(_))
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|s| &s.points)
    }

    /// Distance of the lines of the y axis.
    fn step(&self) -> f64 {
        let highest = self.points().flat_map(|p| [p.high, p.y, p.roof.unwrap_or(0.0)]).filter(|v| v.is_finite());
        nice_step(highest.fold(0.0, f64::max) * 1.02 / 5.0)
    }

    fn top(&self) -> f64 {
        let step = self.step();
        let highest = self.points().flat_map(|p| [p.high, p.y, p.roof.unwrap_or(0.0)]).filter(|v| v.is_finite());
        (highest.fold(0.0, f64::max) * 1.02 / step).ceil() * step
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * value / self.top()
    }

    /// Where a point of series `s` lies; series stand beside each other, so that their whiskers do not cover each other.
    fn x(&self, s: usize, i: usize) -> f64 {
        let beside = s as f64 - (self.series.len() as f64 - 1.0) / 2.0;
        let apart = if self.is_bars() { self.bar_width() * 1.12 } else { 5.0 };
        LEFT + (RIGHT - LEFT) * self.axis.place(i) + beside * apart
    }

    fn bar_width(&self) -> f64 {
        let bars = (self.axis.len() * self.series.len()) as f64;
        ((RIGHT - LEFT) / bars * 0.62).min(56.0)
    }

    fn axes(&self) -> String {
        let mut svg = String::new();
        let (step, top) = (self.step(), self.top());
        for i in 0..=(top / step).round() as usize {
            let value = i as f64 * step;
            let y = self.y(value);
            // Writing to a `String` cannot fail.
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>");
            let text = tick(value, step);
            let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{text}</text>", LEFT - 8.0, y + 4.0);
        }
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>");
        let mut free = f64::NEG_INFINITY;
        for i in 0..self.axis.len() {
            let x = LEFT + (RIGHT - LEFT) * self.axis.place(i);
            if x >= free {
                let text = escape(&self.axis.label(i));
                let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"mid\">{text}</text>", BOTTOM + 18.0);
                free = x + LABEL_ROOM;
            }
        }
        let (x, y) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
        let (x_label, y_label) = (escape(&self.x_label), escape(&self.y_label));
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"mid name\">{x_label}</text>", HEIGHT - 10.0);
        let _ =
            writeln!(svg, "<text class=\"mid name\" transform=\"translate(15 {y:.1}) rotate(-90)\">{y_label}</text>");
        svg
    }

    fn marks(&self) -> String {
        let mut svg = String::new();
        for (s, series) in self.series.iter().enumerate() {
            let _ = writeln!(svg, "<g class=\"s{}\">", s % COLOURS);
            if !self.is_bars() {
                svg += &self.roof(s, series);
                let corners = series.points.iter().map(|p| (self.x(s, p.x), self.y(p.y)));
                let _ = writeln!(svg, "<path class=\"line\" d=\"{}\"/>", path(corners));
            }
            for point in &series.points {
                svg += &self.mark(s, series, *point);
            }
            if self.is_bars() {
                // Over the bars: a busy machine can be faster than its roof was a moment before.
                svg += &self.roof(s, series);
            }
            svg += "</g>\n";
        }
        svg
    }

    /// One value: bar or marker, whisker, and what a pointer shows.
    fn mark(&self, s: usize, series: &Series, point: Point) -> String {
        let (x, y, low, high) = (self.x(s, point.x), self.y(point.y), self.y(point.low), self.y(point.high));
        let mut svg = format!(
            "<g><title>{}, {}: {} {} ({} to {}){}</title>\n",
            escape(&series.name),
            escape(&self.axis.label(point.x)),
            rate(point.y),
            escape(&self.y_label),
            rate(point.low),
            rate(point.high),
            point.roof.map_or_else(String::new, |roof| format!(", roof {}", rate(roof))),
        );
        if self.is_bars() {
            let width = self.bar_width();
            let (left, height) = (x - width / 2.0, (BOTTOM - y).max(0.0));
            let _ = writeln!(
                svg,
                "<rect class=\"bar\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            );
            if width >= 22.0 {
                // Inside the bar where it is high enough, away from whisker and roof.
                let (class, at) = if height > 40.0 { ("in", BOTTOM - 8.0) } else { ("", y.min(high) - 5.0) };
                let text = rate(point.y);
                let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{at:.1}\" class=\"mid value {class}\">{text}</text>");
            }
        } else {
            let _ = writeln!(svg, "<path class=\"dot\" transform=\"translate({x:.1} {y:.1})\" d=\"{}\"/>", marker(s));
        }
        let (left, right) = (x - 4.0, x + 4.0);
        let ends = format!("M{left:.1} {low:.1}H{right:.1}M{left:.1} {high:.1}H{right:.1}");
        let _ = writeln!(svg, "<path class=\"whisker\" d=\"M{x:.1} {low:.1}V{high:.1}{ends}\"/></g>");
        svg
    }

    /// The roof: a dashed line over the points, or over each bar.
    fn roof(&self, s: usize, series: &Series) -> String {
        let roofs: Vec<(f64, f64)> =
            series.points.iter().filter_map(|p| Some((self.x(s, p.x), self.y(p.roof?)))).collect();
        let half = self.bar_width() / 2.0 + 1.0;
        let around = |&(x, y): &(f64, f64)| format!("M{:.1} {y:.1}H{:.1}", x - half, x + half);
        let d = match roofs.as_slice() {
            [] => return String::new(),
            [_] => roofs.iter().map(around).collect(),
            _ if self.is_bars() => roofs.iter().map(around).collect(),
            _ => path(roofs.iter().copied()),
        };
        let over = if self.is_bars() { " over" } else { "" };
        format!("<path class=\"roof{over}\" d=\"{d}\"/>\n")
    }

    fn legend(&self) -> String {
        let mut html = String::from("<ul class=\"legend\">\n");
        for (s, series) in self.series.iter().enumerate() {
            let mark = if self.is_bars() {
                "<path class=\"bar\" d=\"M4 1h16v10H4Z\"/>".to_owned()
            } else {
                format!(
                    "<path class=\"line\" d=\"M0 6H24\"/><path class=\"dot\" transform=\"translate(12 6)\" d=\"{}\"/>",
                    marker(s)
                )
            };
            let (colour, name) = (s % COLOURS, escape(&series.name));
            let _ = writeln!(html, "<li><svg class=\"s{colour}\" viewBox=\"0 0 24 12\">{mark}</svg>{name}</li>");
        }
        if self.points().any(|p| p.roof.is_some()) {
            html += "<li><svg viewBox=\"0 0 24 12\"><path class=\"roof\" d=\"M0 6H24\"/></svg>roof</li>\n";
        }
        html += "<li><svg viewBox=\"0 0 24 12\"><path class=\"whisker\" d=\"M12 1V11M8 1H16M8 11H16\"/></svg>p5 to p95</li>\n</ul>\n";
        html
    }
}

/// A path through the points.
fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    for (x, y) in points {
        let _ = write!(d, "{}{x:.1} {y:.1}", if d.is_empty() { 'M' } else { 'L' });
    }
    d
}

/// Circle, square, diamond, triangle.
fn marker(series: usize) -> &'static str {
    ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "M-4-4H4V4H-4Z", "M0-5.5L5.5 0L0 5.5L-5.5 0Z", "M0-5L5 4H-5Z"][series % 4]
}

/// The least of 1, 2 and 5 times a power of ten that is no less than `least`.
fn nice_step(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&step| step >= least * 0.999_999).unwrap_or(least)
}

/// A number on the y axis.
fn tick(value: f64, step: f64) -> String {
    if step >= 1000.0 && step % 1000.0 == 0.0 {
        return if value == 0.0 { "0".into() } else { format!("{}k", value / 1000.0) };
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

/// Text, fit for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        for (highest, expected) in [(0.9, 0.2), (5.0, 1.0), (99.0, 20.0), (101.0, 50.0), (3700.0, 1000.0)] {
            assert_eq!(nice_step(highest / 5.0), expected, "{highest}");
        }
        assert_eq!(nice_step(f64::NAN), 1.0);
        assert_eq!(nice_step(0.0), 1.0);
    }

    #[test]
    fn ticks_show_what_differs() {
        assert_eq!((tick(0.4, 0.2), tick(40.0, 20.0), tick(3000.0, 1000.0)), ("0.4".into(), "40".into(), "3k".into()));
    }

    #[test]
    fn everything_lies_inside_the_drawing() {
        let point = |x, y, roof| Point { x, y, low: y * 0.5, high: y * 1.5, roof };
        let series = Series {
            name: "a".into(),
            points: vec![point(0, 10.0, Some(90.0)), point(1, 20.0, None), point(2, 0.1, None)],
        };
        for axis in [Axis::Numbers(vec![1, 2, 8]), Axis::Names(["x", "y", "z"].map(String::from).into())] {
            let (title, label) = (String::from("t"), String::from("l"));
            let series = vec![series.clone(); 9];
            let chart = Chart { title, x_label: label.clone(), y_label: label, axis, series };
            for s in 0..9 {
                for i in 0..3 {
                    assert!((LEFT..=RIGHT).contains(&chart.x(s, i)), "{s} {i}");
                }
            }
            assert_eq!((chart.y(0.0), chart.y(chart.top())), (BOTTOM, TOP));
            assert!(chart.top() >= 90.0);
            assert!(!chart.html().contains("NaN"));
        }
    }

    #[test]
    fn names_from_outside_stay_text() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
