//! Where the time of a start went: the spans that carpel keeps with each pod and container.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::output::{Colour, Screen, printable};

/// Columns of a bar that is as long as its whole timeline.
const BAR: u64 = 40;
/// Most columns of a span's name.
const NAME: usize = 32;

/// A span, in microseconds since the first request of its pod or container arrived.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Span {
    pub name: String,
    pub start_us: u64,
    pub duration_us: u64,
}

impl Span {
    pub fn end_us(&self) -> u64 {
        self.start_us.saturating_add(self.duration_us)
    }
}

/// The spans of a pod or container, in the order of their beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    pub whose: String,
    pub spans: Vec<Span>,
}

/// The part of a verbose status's details that is shown here.
#[derive(Deserialize)]
struct Details {
    timeline: Vec<Span>,
}

impl Timeline {
    /// Reads it from a verbose status.
    ///
    /// # Errors
    /// There is none in it: another runtime's.
    pub fn read(whose: &str, info: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let details = info.get("info").map_or("", String::as_str);
        let details: Details = serde_json::from_str(details)
            .ok()
            .context("this runtime keeps no timeline; carpel does")?;
        let mut spans = details.timeline;
        spans.sort_by_key(|span| (span.start_us, std::cmp::Reverse(span.duration_us)));
        Ok(Self {
            whose: whose.to_owned(),
            spans,
        })
    }

    /// From the first span's beginning to the last one's end, in microseconds.
    pub fn total_us(&self) -> u64 {
        self.spans.iter().map(Span::end_us).max().unwrap_or(0)
    }

    /// The time in which some span was under way, in microseconds: what is between them is that of the client.
    pub fn busy_us(&self) -> u64 {
        let (mut busy, mut until) = (0, 0);
        for span in &self.spans {
            busy += span.end_us().saturating_sub(span.start_us.max(until));
            until = until.max(span.end_us());
        }
        busy
    }
}

pub fn millis(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

/// The timelines as bars, one below the other.
pub fn text(timelines: &[Timeline], screen: &Screen) -> String {
    let names = timelines.iter().flat_map(|timeline| &timeline.spans);
    let widest = names
        .map(|span| span.name.chars().count())
        .max()
        .unwrap_or(0);
    let width = widest.clamp(12, NAME);
    let mut text = String::new();
    for (n, timeline) in timelines.iter().enumerate() {
        if n > 0 {
            text.push('\n');
        }
        let title = screen.paint(Some(Colour::Bold), &printable(&timeline.whose));
        if timeline.spans.is_empty() {
            // A daemon that was started since has not seen it.
            text.push_str(&format!(
                "{title}  (nothing is known: the daemon was started since)\n"
            ));
            continue;
        }
        text.push_str(&format!("{title}  {}\n", millis(timeline.busy_us())));
        let total = timeline.total_us().max(1);
        // In 128 bits: a span's times may be as large as they like.
        let column = |us: u64| {
            let column = u128::from(us) * u128::from(BAR) / u128::from(total);
            usize::try_from(column).unwrap_or(0)
        };
        for span in &timeline.spans {
            let from = column(span.start_us).min(BAR as usize - 1);
            let to = column(span.end_us()).max(from + 1);
            let bar = format!("{}{}", " ".repeat(from), "█".repeat(to - from));
            let bar = screen.paint(Some(Colour::Cyan), &format!("{bar:<40}"));
            let name: String = printable(&span.name).chars().take(width).collect();
            let took = millis(span.duration_us);
            text.push_str(&format!("  {name:<width$}  {bar}  {took:>9}\n"));
        }
    }
    text
}

/// The timelines for programs.
pub fn json(timelines: &[Timeline]) -> Value {
    let span = |span: &Span| {
        json!({
            "name": span.name, "startMicros": span.start_us, "durationMicros": span.duration_us,
        })
    };
    let timeline = |timeline: &Timeline| {
        json!({
            "name": timeline.whose,
            "busyMicros": timeline.busy_us(),
            "spans": timeline.spans.iter().map(span).collect::<Vec<_>>(),
        })
    };
    json!({ "timelines": timelines.iter().map(timeline).collect::<Vec<_>>() })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn timeline(whose: &str, spans: &[(&str, u64, u64)]) -> Timeline {
        let spans = spans.iter().map(|(name, start_us, duration_us)| {
            json!({ "name": name, "start_us": start_us, "duration_us": duration_us })
        });
        let info = json!({ "timeline": spans.collect::<Vec<_>>() }).to_string();
        Timeline::read(whose, &BTreeMap::from([("info".into(), info)])).unwrap()
    }

    #[test]
    fn bars_stand_where_the_time_was() {
        let pod = timeline(
            "ns/web",
            &[("b", 1000, 3000), ("a", 0, 1000), ("all", 0, 4000)],
        );
        assert_eq!(pod.total_us(), 4000);
        assert_eq!(pod.busy_us(), 4000);
        let screen = Screen {
            width: None,
            colour: false,
        };
        let text = text(&[pod, timeline("app", &[])], &screen);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ns/web  4.0 ms");
        assert_eq!(
            lines[1],
            format!("  all           {}     4.0 ms", "█".repeat(40))
        );
        let b = format!("{}{}", " ".repeat(10), "█".repeat(30));
        assert_eq!(lines[3], format!("  b             {b}     3.0 ms"));
        assert!(lines[5].starts_with("app  (nothing is known"));
    }

    #[test]
    fn the_clients_pauses_are_not_counted() {
        let container = timeline("app", &[("create", 0, 2000), ("start", 900_000, 3000)]);
        assert_eq!(container.busy_us(), 5000);
        assert_eq!(json(&[container])["timelines"][0]["busyMicros"], 5000);
    }

    #[test]
    fn odd_times_do_no_harm() {
        let odd = timeline(
            "x",
            &[("a", u64::MAX, u64::MAX), ("b", 0, 0), ("c", 5, u64::MAX)],
        );
        let screen = Screen {
            width: None,
            colour: true,
        };
        text(&[odd], &screen);
        assert!(Timeline::read("x", &BTreeMap::new()).is_err());
    }
}
