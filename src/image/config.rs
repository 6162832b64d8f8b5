//! An image's configuration, checked.
//!
//! It is input and no instruction: what it may set is args, environment, working directory, user, stop signal, volumes and
//! labels. A user that is a number out of range is an error, and never taken for a name.

use oci_spec::image::ImageConfiguration;

use super::json;
use super::platform::Platform;
use crate::store::blobs::Digest;

/// Who the image wants to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// It does not say.
    Unset,
    Id(u32),
    /// To be looked up in the image's /etc/passwd.
    Name(String),
}

/// A configuration that has been checked, and what is read out of it.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub configuration: ImageConfiguration,
    pub platform: Platform,
    /// Bottom first.
    pub diff_ids: Vec<Digest>,
    pub user: ImageUser,
}

/// As many as an overlay may have.
pub(super) const MOST_LAYERS: usize = 127;
/// Bytes of all variables, and of all labels.
const MOST_TEXT: usize = 1 << 20;
const MOST_USER: usize = 256;

impl Checked {
    /// # Errors
    /// What is wrong with the configuration, for people.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let configuration: ImageConfiguration = json::parse(bytes)?;
        let diff_ids = configuration.rootfs().diff_ids();
        if diff_ids.len() > MOST_LAYERS {
            return Err(format!(
                "{} layers, more than {MOST_LAYERS}",
                diff_ids.len()
            ));
        }
        let diff_ids = diff_ids
            .iter()
            .map(|id| {
                id.parse::<Digest>()
                    .map_err(|e| format!("a diff id is {e}"))
            })
            .collect::<Result<_, _>>()?;
        let platform = Platform {
            architecture: configuration.architecture().to_string(),
            os: configuration.os().to_string(),
            variant: configuration.variant().clone(),
        };
        check_texts(&configuration)?;
        let user = configuration
            .config()
            .as_ref()
            .and_then(|config| config.user().as_deref());
        let user = parse_user(user.unwrap_or_default())?;
        Ok(Self {
            configuration,
            platform,
            diff_ids,
            user,
        })
    }
}

fn check_texts(configuration: &ImageConfiguration) -> Result<(), String> {
    let Some(config) = configuration.config() else {
        return Ok(());
    };
    let lists = [
        ("environment", config.env()),
        ("entrypoint", config.entrypoint()),
        ("command", config.cmd()),
        ("volumes", config.volumes()),
    ];
    for (what, list) in lists {
        let texts = list.iter().flatten();
        if texts.clone().any(|text| text.contains('\0')) {
            return Err(format!("a zero byte in its {what}"));
        }
        if texts.map(String::len).sum::<usize>() > MOST_TEXT {
            return Err(format!("more than {MOST_TEXT} bytes in its {what}"));
        }
    }
    let labels = config.labels().iter().flatten();
    if labels
        .map(|(key, value)| key.len() + value.len())
        .sum::<usize>()
        > MOST_TEXT
    {
        return Err(format!("more than {MOST_TEXT} bytes in its labels"));
    }
    let directory = config.working_dir().as_deref().unwrap_or_default();
    if directory.contains('\0') || directory.len() > 4096 {
        return Err("malformed working directory".into());
    }
    Ok(())
}

/// Takes the user of `user[:group]`; both are checked.
fn parse_user(text: &str) -> Result<ImageUser, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let parsed = parse_principal(user).and_then(|user| parse_principal(group).map(|_| user));
    parsed.map_err(|why| {
        format!(
            "user {:?}: {why}",
            text.chars().take(60).collect::<String>()
        )
    })
}

fn parse_principal(text: &str) -> Result<ImageUser, &'static str> {
    if text.is_empty() {
        return Ok(ImageUser::Unset);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        // Beyond this other programs have taken an id for a negative number, or for 0.
        return match text.parse::<i32>().map(u32::try_from) {
            Ok(Ok(id)) if !text.starts_with('+') => Ok(ImageUser::Id(id)),
            _ => Err("a number must be between 0 and 2147483647"),
        };
    }
    let bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/');
    if text.len() > MOST_USER || text.contains(bad) {
        return Err("neither a number nor a name");
    }
    Ok(ImageUser::Name(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let name = |text: &str| Ok(ImageUser::Name(text.into()));
        for (text, expected) in [
            ("", Ok(ImageUser::Unset)),
            (":5", Ok(ImageUser::Unset)),
            ("0", Ok(ImageUser::Id(0))),
            ("1000:1000", Ok(ImageUser::Id(1000))),
            ("2147483647", Ok(ImageUser::Id(2_147_483_647))),
            ("alice", name("alice")),
            ("alice:staff", name("alice")),
            ("0x0", name("0x0")),
            ("ContainerAdministrator", name("ContainerAdministrator")),
        ] {
            assert_eq!(parse_user(text), expected, "{text}");
        }
        for bad in [
            "-1",
            "+1",
            "2147483648",
            "4294967295",
            "4294967296",
            "99999999999999999999999999",
            "1000:99999999999",
            "1000:-1",
            "-",
            "a b",
            "a\n",
            "a\0",
            "a:b:c",
            "../a",
        ] {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_configuration_is_bounded() {
        let with = |config: serde_json::Value, layers: usize| {
            let diff_ids = vec![Digest::of(b"").to_string(); layers];
            let document = serde_json::json!({
                "architecture": "amd64", "os": "linux", "config": config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            });
            Checked::parse(document.to_string().as_bytes())
        };
        assert!(
            with(
                serde_json::json!({"Env": null, "Labels": null, "User": ""}),
                127
            )
            .is_ok()
        );
        assert!(with(serde_json::json!({}), 128).is_err());
        assert!(with(serde_json::json!({"Env": ["A=\u{0}"]}), 1).is_err());
        assert!(with(serde_json::json!({"Env": ["A".repeat(1 << 21)]}), 1).is_err());
        assert!(with(serde_json::json!({"Labels": {"a": "A".repeat(1 << 21)}}), 1).is_err());
        assert!(with(serde_json::json!({"User": "4294967296"}), 1).is_err());
        assert!(Checked::parse(b"{}").is_err());
    }
}
