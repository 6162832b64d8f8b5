//! What commands print: text, JSON, colour where a terminal wants it.
//!
//! Everything goes through [`print`], which answers with an error where `println!` would panic: a reader
//! that has gone (`carpel ps | head -1`) ends the command quietly, see [`is_closed_pipe`].

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person
    Text,
    /// The runtime's answer, in the JSON of protocol buffers
    Json,
}

#[derive(Debug, Args)]
pub struct FormatArgs {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
}

impl FormatArgs {
    pub fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

/// How a list is printed.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print full ids and nothing else
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids and names
    #[arg(long)]
    pub no_trunc: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Prints ids, one a line.
///
/// # Errors
/// As [`print`].
pub fn print_ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let lines = ids.into_iter().map(|id| format!("{id}\n"));
    print(lines.collect::<String>())
}

/// Writes to the standard output and flushes it.
///
/// # Errors
/// As `write(2)`; EPIPE if nobody reads any more.
pub fn print(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())?;
    out.flush()
}

/// Prints JSON for people and programs alike: indented, with a newline at the end.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &Value) -> io::Result<()> {
    print(format!("{value:#}\n"))
}

/// Prints JSON on a line of its own: what streams are made of.
///
/// # Errors
/// As [`print`].
pub fn print_json_line(value: &Value) -> io::Result<()> {
    print(format!("{value}\n"))
}

/// Whether an error is that of a standard output that nobody reads any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// A message of the CRI as JSON. `name` is the message's, without its package.
///
/// The field names are those of proto JSON (camelCase), 64-bit numbers are strings, enums names, bytes
/// base64. Fields at their default are there too: a script may rely on each.
pub fn message(name: &str, message: &impl Message) -> Value {
    in_package("runtime.v1", name, message)
}

/// A message of carpel's own services as JSON, as [`message`] makes it.
pub fn own_message(name: &str, message: &impl Message) -> Value {
    in_package("carpel.v1", name, message)
}

fn in_package(package: &str, name: &str, message: &impl Message) -> Value {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(carpel_api::DESCRIPTORS).expect("our own descriptors are valid")
    });
    let descriptor = POOL
        .get_message_by_name(&format!("{package}.{name}"))
        .expect("the name of a message");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic
        .transcode_from(message)
        .expect("a message fits its own descriptor");
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("every message has a JSON form")
}

/// An answer with verbose `info`, whose values are JSON in strings, with that JSON as what it is.
pub fn verbose_message(name: &str, answer: &impl Message) -> Value {
    let mut value = message(name, answer);
    if let Some(Value::Object(info)) = value.get_mut("info") {
        for entry in info.values_mut() {
            let parsed = entry
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok());
            if let Some(parsed) = parsed {
                *entry = parsed;
            }
        }
    }
    value
}

/// A text's colour, given only where there is a terminal that wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Bold,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Colour {
    fn code(self) -> u8 {
        match self {
            Self::Bold => 1,
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Cyan => 36,
        }
    }
}

/// What the standard output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Columns, if it is a terminal.
    pub width: Option<usize>,
    pub colour: bool,
}

impl Screen {
    /// Looks at the standard output and at `NO_COLOR` and `TERM`.
    pub fn detect() -> Self {
        if !io::stdout().is_terminal() {
            return Self {
                width: None,
                colour: false,
            };
        }
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        // A terminal that does not say how wide it is (0) takes everything.
        let width = size.map(|size| usize::from(size.ws_col)).filter(|w| *w > 0);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            width,
            colour: !plain,
        }
    }

    /// `text` in `colour`, or as it is.
    pub fn paint(&self, colour: Option<Colour>, text: &str) -> String {
        match colour {
            Some(colour) if self.colour && !text.is_empty() => {
                format!("\x1b[{}m{text}\x1b[0m", colour.code())
            }
            _ => text.to_owned(),
        }
    }
}

/// Text from elsewhere, fit for one line of a terminal: a control character, and so an escape sequence,
/// becomes a question mark.
pub fn printable(text: &str) -> String {
    let is_bad = |c: char| c.is_control();
    text.replace(is_bad, "?")
}

/// The same for text of several lines.
pub fn printable_lines(text: &str) -> String {
    let is_bad = |c: char| c.is_control() && c != '\n';
    text.replace(is_bad, "?")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use carpel_api::cri;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_has_all_its_fields_under_their_json_names() {
        let list = cri::ListPodSandboxResponse {
            items: vec![cri::PodSandbox {
                id: "a".into(),
                created_at: 1 << 60,
                state: cri::PodSandboxState::SandboxNotready.into(),
                labels: BTreeMap::from([("k".into(), "v".into())]),
                ..cri::PodSandbox::default()
            }],
        };
        assert_eq!(
            message("ListPodSandboxResponse", &list),
            json!({ "items": [{
                "id": "a", "createdAt": "1152921504606846976", "state": "SANDBOX_NOTREADY",
                "labels": { "k": "v" }, "annotations": {}, "runtimeHandler": "",
            }]})
        );
        // An enum's first value is no absence.
        let created = message("Container", &cri::Container::default());
        assert_eq!(created["state"], "CONTAINER_CREATED");
    }

    #[test]
    fn every_answer_that_commands_print_has_a_name() {
        for name in [
            "ListContainersResponse",
            "ListImagesResponse",
            "ContainerStatusResponse",
            "PodSandboxStatusResponse",
            "ImageStatusResponse",
            "StatusResponse",
            "VersionResponse",
            "RuntimeConfigResponse",
            "ImageFsInfoResponse",
            "ListContainerStatsResponse",
            "ListPodSandboxStatsResponse",
            "ContainerEventResponse",
            "ExecSyncResponse",
        ] {
            assert!(message(name, &()).is_object(), "{name}");
        }
    }

    #[test]
    fn verbose_info_is_unpacked() {
        let answer = cri::StatusResponse {
            info: BTreeMap::from([
                ("config".into(), "{\"a\":1}".into()),
                ("text".into(), "no json".into()),
            ]),
            ..cri::StatusResponse::default()
        };
        let value = verbose_message("StatusResponse", &answer);
        assert_eq!(
            value["info"],
            json!({ "config": { "a": 1 }, "text": "no json" })
        );
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        let screen = |colour| Screen {
            width: None,
            colour,
        };
        assert_eq!(
            screen(true).paint(Some(Colour::Red), "x"),
            "\x1b[31mx\x1b[0m"
        );
        assert_eq!(screen(false).paint(Some(Colour::Red), "x"), "x");
        assert_eq!(screen(true).paint(None, "x"), "x");
        assert_eq!(printable("a\x1b[31m\nb"), "a?[31m?b");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        let error = |kind| anyhow::Error::from(io::Error::from(kind)).context("print");
        assert!(is_closed_pipe(&error(io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_pipe(&error(io::ErrorKind::NotFound)));
    }
}
