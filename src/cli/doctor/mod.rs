//! `carpel doctor`: whether this machine is fit for carpel, and what to do where it is not.
//!
//! What a kernel can do is found by doing it, as a version number says little of what a distribution or a
//! container around us has switched off. Nothing is left behind.

mod cgroups;
mod daemon;
mod kernel;
mod network;
mod registry;
mod rights;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::client::Connection;
use super::output::{self, Colour, FormatArgs, Screen, printable};
use super::{FAILURE, Outcome, SUCCESS};
use crate::config::Config;

/// Columns of the checks' names.
const NAMES: usize = 20;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Configuration file of the daemon [default: /etc/carpel/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check this registry, too, as HOST[:PORT] or http://HOST[:PORT]; may be given several times. A bare
    /// HOST is asked as a pull asks it, its mirrors in hosts.toml first. Those of registry.plain_http are checked anyway
    #[arg(long, value_name = "HOST")]
    registry: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Something does not work that not everybody needs.
    Warn,
    /// carpel does not work so.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::Ok => Colour::Green,
            Self::Warn => Colour::Yellow,
            Self::Fail => Colour::Red,
        }
    }
}

/// What was looked at, how it is, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do next; "" if there is nothing to do.
    advice: String,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Ok,
        found: found.into(),
        advice: String::new(),
    }
}

fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Warn,
        found: found.into(),
        advice: advice.into(),
    }
}

fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Fail,
        found: found.into(),
        advice: advice.into(),
    }
}

impl DoctorArgs {
    pub async fn run(self) -> Outcome {
        // A daemon that runs knows best what it runs with: its flags are in no file.
        let running = daemon::configuration(&self.connection).await;
        let loaded = Config::load(self.config.as_deref(), running.unwrap_or_default());
        let (config, mut checks) = match loaded {
            Ok((config, files)) => (config, vec![configuration(&files)]),
            Err(error) => {
                let advice = "put the file right (`carpel config check` tells more)";
                (
                    Config::default(),
                    vec![fail("configuration", error.to_string(), advice)],
                )
            }
        };
        checks.extend(rights::checks());
        checks.extend(kernel::checks(&config, daemon::pid(&self.connection.endpoint())).await);
        checks.extend(cgroups::checks());
        checks.extend(network::checks(&config));
        checks.extend(daemon::checks(&config, &self.connection).await);
        checks.extend(registry::checks(&self.registry, &config.registry).await);
        let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
        if self.format.is_json() {
            output::print_json(&json(&checks))?;
        } else {
            output::print(text(&checks, &Screen::detect()))?;
        }
        Ok(if failed { FAILURE } else { SUCCESS })
    }
}

fn configuration(files: &[PathBuf]) -> Check {
    let files: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    match files.is_empty() {
        true => ok("configuration", "no file: the defaults apply"),
        false => ok("configuration", files.join(", ")),
    }
}

fn json(checks: &[Check]) -> Value {
    let check = |check: &Check| {
        json!({
            "name": check.name,
            "state": check.verdict.word(),
            "found": check.found,
            "advice": check.advice,
        })
    };
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    json!({ "ok": !failed, "checks": checks.iter().map(check).collect::<Vec<_>>() })
}

fn text(checks: &[Check], screen: &Screen) -> String {
    let mut text = String::new();
    for check in checks {
        let word = format!("{:<4}", check.verdict.word());
        let word = screen.paint(Some(check.verdict.colour()), &word);
        let (name, found) = (check.name, printable(&check.found));
        text.push_str(&format!("{word}  {name:<NAMES$}  {found}\n"));
        if !check.advice.is_empty() {
            let advice = printable(&check.advice);
            text.push_str(&format!("      {:<NAMES$}  → {advice}\n", ""));
        }
    }
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let summary = match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "everything is fine".to_owned(),
        (0, warnings) => format!("fit for carpel; {warnings} to look at"),
        (failures, warnings) => format!("{failures} to put right, {warnings} to look at"),
    };
    text.push_str(&format!("\n{summary}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_what_to_do_next() {
        let checks = [
            ok("kernel", "6.1"),
            warn("psi", "off", "boot with psi=1"),
            fail("root", "no", "use sudo"),
        ];
        let screen = Screen {
            width: None,
            colour: false,
        };
        let arrow = format!("{:28}→", "");
        assert_eq!(
            text(&checks, &screen),
            format!(
                "ok    kernel                6.1\n\
                 warn  psi                   off\n{arrow} boot with psi=1\n\
                 fail  root                  no\n{arrow} use sudo\n\
                 \n1 to put right, 1 to look at\n"
            )
        );
        assert_eq!(json(&checks)["ok"], false);
        assert_eq!(json(&checks[..2])["ok"], true);
        assert_eq!(json(&checks)["checks"][1]["state"], "warn");
    }
}
