//! What a registry asks for in `WWW-Authenticate`.

/// One way of proving who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Bytes of one header that are looked at.
const MOST_BYTES: usize = 8 << 10;

/// The challenges of one header that are understood, in its order.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    if header.len() > MOST_BYTES {
        return Vec::new();
    }
    let mut rest = header;
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    while let Some((word, after)) = token(rest.trim_start_matches([' ', '\t', ','])) {
        let spaced = after.trim_start_matches([' ', '\t']);
        match spaced.strip_prefix('=') {
            Some(value) => {
                let Some((value, after)) = parameter(value.trim_start_matches([' ', '\t'])) else {
                    break;
                };
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            // A word without a value is the scheme of the next challenge.
            None => {
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.into_iter().filter_map(understand).collect()
}

fn understand((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        }),
        _ => None,
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A token or a quoted string.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn challenges_are_read() {
        for (header, expected) in [
            (r#"Basic realm="x""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/token",service="a b",scope="repository:x/y:pull,push""#,
                vec![bearer(
                    "https://a/token",
                    Some("a b"),
                    Some("repository:x/y:pull,push"),
                )],
            ),
            (
                r#"BEARER Realm = "r" , error="invalid_token", Basic realm="q\"\\", Digest nonce=z"#,
                vec![bearer("r", None, None), Challenge::Basic],
            ),
            (
                r#"Negotiate, Bearer realm=r"#,
                vec![bearer("r", None, None)],
            ),
            ("Bearer service=x", vec![]),
            (r#"Bearer realm="open"#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
        assert!(parse(&format!("Basic {}", " ".repeat(MOST_BYTES))).is_empty());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header: String) {
            let _ = parse(&header);
        }
    }
}
