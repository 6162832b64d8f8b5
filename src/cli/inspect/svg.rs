//! A timeline as a picture: one lane for each pod and container, a bar for each span, a scale above.
//!
//! It is legible on light and dark.

use std::fmt::Write;

use super::timeline::{Timeline, millis};
use crate::cli::svg::{escape, head};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// Columns of the spans' names.
const NAMES: f64 = 230.0;
/// Columns of the spans' times, right of the bars.
const TIMES: f64 = 80.0;
const ROW: f64 = 20.0;
const BAR: f64 = 12.0;
/// Between two lanes.
const GAP: f64 = 22.0;
const COLOURS: [&str; 6] = [
    "#2a78c8", "#2d9d78", "#c9822b", "#8a63c9", "#c95672", "#5b8f2e",
];

/// Draws the timelines, each on a scale of its own.
pub fn draw(timelines: &[Timeline]) -> String {
    let lanes = timelines.iter().map(lane_height);
    let height = MARGIN * 2.0 + lanes.sum::<f64>();
    let mut svg = head(WIDTH, height);
    let mut top = MARGIN;
    for timeline in timelines {
        lane(&mut svg, timeline, top);
        top += lane_height(timeline);
    }
    svg.push_str("</svg>\n");
    svg
}

fn lane_height(timeline: &Timeline) -> f64 {
    // The title and the scale take a row each.
    ROW * (2.0 + timeline.spans.len() as f64) + GAP
}

fn lane(svg: &mut String, timeline: &Timeline, top: f64) {
    let total = timeline.total_us().max(1);
    let left = MARGIN + NAMES;
    let room = WIDTH - MARGIN - TIMES - left;
    let x = |us: u64| left + room * (us as f64 / total as f64);
    let (title, time) = (escape(&timeline.whose), millis(timeline.busy_us()));
    let baseline = top + 14.0;
    let bottom = top + ROW * (2.0 + timeline.spans.len() as f64);
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<text class=\"ink\" x=\"{MARGIN}\" y=\"{baseline}\" font-size=\"14\" font-weight=\"600\">{title} \
         <tspan class=\"faint\" font-weight=\"400\">{time}</tspan></text>"
    );
    for tick in ticks(total) {
        let (at, label) = (x(tick), tick_label(tick));
        let (from, words) = (top + ROW * 2.0 - 4.0, top + ROW * 2.0 - 8.0);
        let _ = writeln!(
            svg,
            "<line class=\"line\" x1=\"{at:.1}\" y1=\"{from}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
             <text class=\"faint\" x=\"{at:.1}\" y=\"{words}\" font-size=\"10\" text-anchor=\"middle\">{label}</text>"
        );
    }
    for (n, span) in timeline.spans.iter().enumerate() {
        let row = top + ROW * (2.0 + n as f64);
        let (bar, words) = (row + (ROW - BAR) / 2.0, row + 14.0);
        let (from, name) = (x(span.start_us), escape(&span.name));
        // A span too short to see is seen all the same.
        let width = (x(span.end_us()) - from).max(1.5);
        let (colour, took) = (COLOURS[n % COLOURS.len()], millis(span.duration_us));
        let end = WIDTH - MARGIN;
        let _ = writeln!(
            svg,
            "<text class=\"ink\" x=\"{MARGIN}\" y=\"{words}\">{name}</text>\
             <rect x=\"{from:.1}\" y=\"{bar}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\">\
             <title>{name}: {took}, from {}</title></rect>\
             <text class=\"faint\" x=\"{end}\" y=\"{words}\" text-anchor=\"end\">{took}</text>",
            millis(span.start_us)
        );
    }
}

/// Round points of a scale up to `total` microseconds: four to ten of them.
fn ticks(total: u64) -> Vec<u64> {
    let mut step = 1;
    while total / step > 8 {
        // 1, 2, 5, 10, 20, …
        step = match step.to_string().as_bytes()[0] {
            b'2' => step / 2 * 5,
            _ => step * 2,
        };
    }
    (0..)
        .map_while(|n: u64| n.checked_mul(step))
        .take_while(|tick| *tick <= total)
        .collect()
}

/// A time on the scale: without decimals that say nothing.
fn tick_label(us: u64) -> String {
    format!("{} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::timeline;
    use super::*;

    #[test]
    fn every_span_is_drawn_inside_the_picture() {
        let spans = [
            ("spawn", 0, 4000),
            ("cni <bridge> & more", 1000, 2500),
            ("blink", 3999, 0),
        ];
        let svg = draw(&[timeline("ns/web", &spans), timeline("app", &[])]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<rect x=").count(), 3);
        assert!(svg.contains("cni &lt;bridge&gt; &amp; more: 2.5 ms, from 1.0 ms"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for part in svg.split("<rect x=\"").skip(1) {
            let number = |text: &str| text.split('"').next().unwrap().parse::<f64>().unwrap();
            let width = part.split("width=\"").nth(1).unwrap();
            assert!(number(part) + number(width) <= WIDTH - MARGIN, "{part}");
        }
        for (open, close) in [
            ("<text", "</text>"),
            ("<title", "</title>"),
            ("<tspan", "</tspan>"),
        ] {
            assert_eq!(
                svg.matches(open).count(),
                svg.matches(close).count(),
                "{open}"
            );
        }
    }

    #[test]
    fn a_scale_is_round() {
        assert_eq!(
            ticks(4000),
            [0, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000]
        );
        assert_eq!(ticks(1), [0, 1]);
        for total in [1, 7, 9, 99, 12_345, 1_000_000, u64::MAX] {
            assert!((2..=10).contains(&ticks(total).len()), "{total}");
        }
        assert_eq!(tick_label(1500), "1.5 ms");
        assert_eq!(tick_label(2000), "2 ms");
    }
}
