//! How a client is told how its command ended.

use serde::Serialize;

use super::upgrade::Status;

/// How a command, or an attachment, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Not 0.
    ExitCode(i32),
    Failed(String),
}

#[derive(Serialize)]
struct Document {
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

impl Outcome {
    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(why) => format!("Internal error occurred: {why}"),
        }
    }

    /// What goes to the error stream; nothing: all is well.
    pub fn encode(&self, how: Status) -> Vec<u8> {
        let message = self.message();
        if how == Status::Text {
            return message.into_bytes();
        }
        let document = Document {
            message,
            status: match self {
                Self::Success => "Success",
                _ => "Failure",
            },
            reason: match self {
                Self::Success => None,
                Self::ExitCode(_) => Some("NonZeroExitCode"),
                Self::Failed(_) => Some("InternalError"),
            },
            details: match self {
                Self::ExitCode(code) => Some(Details {
                    causes: [Cause {
                        reason: "ExitCode",
                        message: code.to_string(),
                    }],
                }),
                _ => None,
            },
            code: matches!(self, Self::Failed(_)).then_some(500),
        };
        serde_json::to_vec(&document).expect("texts and numbers have a JSON form")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document(outcome: Outcome) -> Value {
        serde_json::from_slice(&outcome.encode(Status::Json)).unwrap()
    }

    #[test]
    fn the_document_is_what_clients_read() {
        assert_eq!(document(Outcome::Success), json!({ "status": "Success" }));
        assert_eq!(
            document(Outcome::ExitCode(3)),
            json!({
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
                "message": "command terminated with non-zero exit code: exit status 3",
            })
        );
        assert_eq!(
            document(Outcome::Failed("no such container".into())),
            json!({
                "status": "Failure",
                "reason": "InternalError",
                "message": "Internal error occurred: no such container",
                "code": 500,
            })
        );
    }

    #[test]
    fn older_protocols_have_a_sentence() {
        assert_eq!(Outcome::Success.encode(Status::Text), b"");
        let text = Outcome::ExitCode(1).encode(Status::Text);
        assert!(String::from_utf8(text).unwrap().ends_with(" 1"));
    }
}
