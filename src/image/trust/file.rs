//! The file of a policy: containers-policy.json(5).

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::identity::{Identity, is_bare};
use super::key::PublicKey;
use super::{PolicyError, Requirement, Rules, SignedBy};
use crate::image::json;
use crate::image::reference::Reference;

/// Bytes of a policy, and of a key.
const MOST_BYTES: u64 = 1 << 20;
const KEYS: [&str; 4] = ["keyPath", "keyPaths", "keyData", "keyDatas"];
/// What signatures without a key of one's own take, with the words that an error calls it by.
const KEYLESS: [(&str, &str); 6] = [
    ("fulcio", "keyless signatures"),
    ("pki", "signatures by certificates"),
    ("rekorPublicKeyPath", "proofs of a transparency log"),
    ("rekorPublicKeyPaths", "proofs of a transparency log"),
    ("rekorPublicKeyData", "proofs of a transparency log"),
    ("rekorPublicKeyDatas", "proofs of a transparency log"),
];

/// What is wrong, and where.
struct Fault {
    place: String,
    why: String,
}

type Parsed<T> = Result<T, Fault>;

fn fault<T>(place: impl Into<String>, why: impl Display) -> Parsed<T> {
    Err(Fault {
        place: place.into(),
        why: why.to_string(),
    })
}

/// # Errors
/// [`PolicyError`].
pub(super) fn read(path: &Path) -> Result<Rules, PolicyError> {
    let path = path.to_owned();
    let text = match bytes(&path) {
        Ok(text) => text,
        Err(source) => return Err(PolicyError::Read { path, source }),
    };
    let document: Value = match json::parse(&text) {
        Ok(document) => document,
        Err(why) => return Err(PolicyError::Syntax { path, why }),
    };
    match parse(&document) {
        Ok((default, scopes)) => Ok(Rules {
            path,
            default,
            scopes,
        }),
        Err(Fault { place, why }) => Err(PolicyError::Invalid { path, place, why }),
    }
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST_BYTES {
        true => Err(io::Error::other(format!("more than {MOST_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

/// Where the requirements of a scope are.
pub(super) fn place_of(scope: &str) -> String {
    format!("transports.docker[{scope:?}]")
}

type Scopes = HashMap<String, Vec<Requirement>>;

fn parse(document: &Value) -> Parsed<(Vec<Requirement>, Scopes)> {
    let top = object(document, "", &["default", "transports"])?;
    let Some(default) = top.get("default") else {
        return fault("default", "missing");
    };
    let default = requirements(default, "default")?;
    let mut found = Scopes::new();
    let transports = top.get("transports");
    for (transport, scopes) in map(transports, "transports")? {
        let place = format!("transports.{transport}");
        // Images come from registries only. What is said of other places is for other programs.
        if transport != "docker" {
            map(Some(scopes), &place)?;
            continue;
        }
        for (scope, value) in map(Some(scopes), &place)? {
            found.insert(scope.clone(), requirements(value, &place_of(scope))?);
        }
    }
    Ok((default, found))
}

fn map<'a>(value: Option<&'a Value>, place: &str) -> Parsed<&'a Map<String, Value>> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    match value {
        None => Ok(&NONE),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => fault(place, "must be an object"),
    }
}

/// An object that has none but these fields.
fn object<'a>(value: &'a Value, place: &str, known: &[&str]) -> Parsed<&'a Map<String, Value>> {
    let map = map(
        Some(value),
        if place.is_empty() { "the file" } else { place },
    )?;
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => fault(member(place, key), "unknown field"),
        None => Ok(map),
    }
}

fn member(place: &str, key: &str) -> String {
    match place {
        "" => key.to_owned(),
        place => format!("{place}.{key}"),
    }
}

fn text<'a>(map: &'a Map<String, Value>, place: &str, key: &str) -> Parsed<&'a str> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => fault(member(place, key), "must be a string"),
        None => fault(member(place, key), "missing"),
    }
}

fn requirements(value: &Value, place: &str) -> Parsed<Vec<Requirement>> {
    match value.as_array().map(Vec::as_slice) {
        None => fault(place, "must be a list of requirements"),
        Some([]) => fault(place, "must have at least one requirement"),
        Some(list) => {
            let numbered = list.iter().enumerate();
            let parse = |(n, value)| requirement(value, &format!("{place}[{n}]"));
            numbered.map(parse).collect()
        }
    }
}

fn requirement(value: &Value, place: &str) -> Parsed<Requirement> {
    let kind = text(map(Some(value), place)?, place, "type")?;
    let unsupported = |what: &str| {
        fault(
            member(place, "type"),
            format!(
                "{kind} ({what}) is not supported, only insecureAcceptAnything, reject and sigstoreSigned with a key"
            ),
        )
    };
    match kind {
        "insecureAcceptAnything" => object(value, place, &["type"]).map(|_| Requirement::Accept),
        "reject" => object(value, place, &["type"]).map(|_| Requirement::Reject),
        "sigstoreSigned" => Ok(Requirement::SignedBy(signed_by(value, place)?)),
        "signedBy" => unsupported("signatures by GPG"),
        "signedBaseLayer" => unsupported("signatures of base images"),
        _ => fault(member(place, "type"), format!("unknown type {kind:?}")),
    }
}

fn signed_by(value: &Value, place: &str) -> Parsed<SignedBy> {
    let fields = map(Some(value), place)?;
    for (key, what) in KEYLESS {
        if fields.contains_key(key) {
            return fault(
                member(place, key),
                format!("{what} are not supported, only signatures by a key: keyPath or keyData"),
            );
        }
    }
    let known = [&["type", "signedIdentity"][..], &KEYS].concat();
    object(value, place, &known)?;
    let given: Vec<_> = KEYS
        .into_iter()
        .filter(|key| fields.contains_key(*key))
        .collect();
    let [source] = given[..] else {
        return fault(place, format!("must have one of {}", KEYS.join(", ")));
    };
    let at = member(place, source);
    let texts = texts(&fields[source], &at, source.ends_with('s'))?;
    let read: fn(&str) -> Result<PublicKey, String> = match source.starts_with("keyPath") {
        true => key_at,
        false => PublicKey::of_data,
    };
    let keys = texts
        .into_iter()
        .map(|(at, text)| read(text).map_err(|why| Fault { place: at, why }));
    Ok(SignedBy {
        keys: keys.collect::<Result<_, _>>()?,
        identity: match fields.get("signedIdentity") {
            Some(value) => identity(value, &member(place, "signedIdentity"))?,
            None => Identity::RepositoryDigestOrExact,
        },
    })
}

/// A string, or a list of at least one, each with its place.
fn texts<'a>(value: &'a Value, place: &str, several: bool) -> Parsed<Vec<(String, &'a str)>> {
    match (value, several) {
        (Value::String(text), false) => Ok(vec![(place.to_owned(), text)]),
        (_, false) => fault(place, "must be a string"),
        (Value::Array(list), true) if !list.is_empty() => {
            let each = list.iter().enumerate().map(|(n, value)| {
                let place = format!("{place}[{n}]");
                match value.as_str() {
                    Some(text) => Ok((place, text)),
                    None => fault(place, "must be a string"),
                }
            });
            each.collect()
        }
        (_, true) => fault(place, "must be a list of at least one string"),
    }
}

fn key_at(text: &str) -> Result<PublicKey, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is not an absolute path"));
    }
    let key = bytes(path).map_err(|error| error.to_string());
    let key = key.and_then(|bytes| PublicKey::of_pem(&bytes));
    key.map_err(|why| format!("{text}: {why}"))
}

fn identity(value: &Value, place: &str) -> Parsed<Identity> {
    let kind = text(map(Some(value), place)?, place, "type")?;
    let with = |keys: &[&str]| object(value, place, &[&["type"], keys].concat());
    let named = |key: &str, bare: bool| {
        let text = text(with(&[key])?, place, key)?;
        match text.parse::<Reference>() {
            Err(error) => fault(member(place, key), error),
            Ok(_) if is_bare(text) && !bare => {
                fault(member(place, key), "must have a tag or a digest")
            }
            Ok(_) if !is_bare(text) && bare => {
                fault(member(place, key), "must have neither tag nor digest")
            }
            Ok(reference) => Ok(reference),
        }
    };
    match kind {
        "matchExact" => with(&[]).map(|_| Identity::Exact),
        "matchRepoDigestOrExact" => with(&[]).map(|_| Identity::RepositoryDigestOrExact),
        "matchRepository" => with(&[]).map(|_| Identity::Repository),
        "exactReference" => Ok(Identity::ExactReference(named("dockerReference", false)?)),
        "exactRepository" => {
            let repository = named("dockerRepository", true)?;
            Ok(Identity::ExactRepository(repository.repository().clone()))
        }
        "remapIdentity" => {
            let fields = with(&["prefix", "signedPrefix"])?;
            let part = |key| match text(fields, place, key)? {
                "" => fault(member(place, key), "must not be empty"),
                text => Ok(text.to_owned()),
            };
            Ok(Identity::Remap {
                prefix: part("prefix")?,
                signed: part("signedPrefix")?,
            })
        }
        _ => fault(member(place, "type"), format!("unknown type {kind:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unpack::testing::tool;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    /// A folder with a key; its text.
    fn key(dir: &Path) -> String {
        let openssl = |line: &str| tool("openssl", &line.split(' ').collect::<Vec<_>>(), dir, b"");
        openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key");
        let text = openssl("pkey -in key -pubout");
        std::fs::write(dir.join("key.pub"), &text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn read_text(dir: &Path, text: &str) -> Result<Rules, String> {
        let path = dir.join("policy.json");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| {
            let text = crate::error::chain(&error);
            text.replace(&dir.display().to_string(), "DIR")
        })
    }

    #[test]
    fn a_policy_as_operators_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = key(dir.path());
        let path = dir.path().join("key.pub");
        let rules = read_text(
            dir.path(),
            &json!({
                "default": [{ "type": "reject" }],
                "transports": {
                    "docker": {
                        "": [{ "type": "insecureAcceptAnything" }],
                        "quay.io/a": [{ "type": "sigstoreSigned", "keyPath": path }],
                        "*.example.com": [
                            { "type": "sigstoreSigned", "keyDatas": [STANDARD.encode(&text)],
                              "signedIdentity": { "type": "matchRepository" } },
                            { "type": "sigstoreSigned", "keyPaths": [path, path], "signedIdentity": {
                                "type": "remapIdentity", "prefix": "a", "signedPrefix": "b" } },
                        ],
                        "x.io": [{ "type": "sigstoreSigned", "keyData": STANDARD.encode(&text),
                            "signedIdentity": { "type": "exactRepository", "dockerRepository": "busybox" } }],
                        "y.io": [{ "type": "sigstoreSigned", "keyPath": path,
                            "signedIdentity": { "type": "exactReference", "dockerReference": "busybox:1" } }],
                    },
                    "docker-daemon": { "": [{ "type": "signedBy" }] },
                    "oci": {},
                },
            })
            .to_string(),
        )
        .unwrap();
        assert!(matches!(rules.default[..], [Requirement::Reject]));
        assert!(matches!(rules.scopes[""][..], [Requirement::Accept]));
        let [Requirement::SignedBy(first)] = &rules.scopes["quay.io/a"][..] else {
            panic!("{rules:?}");
        };
        assert_eq!(first.identity, Identity::RepositoryDigestOrExact);
        let [Requirement::SignedBy(one), Requirement::SignedBy(two)] =
            &rules.scopes["*.example.com"][..]
        else {
            panic!("{rules:?}");
        };
        assert_eq!(one.identity, Identity::Repository);
        assert_eq!((one.keys.len(), two.keys.len()), (1, 2));
        assert_eq!(rules.scopes.len(), 5);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        key(dir.path());
        std::fs::write(dir.path().join("no.pub"), "no key").unwrap();
        let at = |path: &str| dir.path().join(path).display().to_string();
        let docker = |requirement: Value| json!({ "default": [{ "type": "reject" }], "transports": { "docker": { "r.io": [requirement] } } });
        let signed = |mut fields: Value| {
            fields["type"] = json!("sigstoreSigned");
            docker(fields).to_string()
        };
        let identity = |identity: Value| {
            signed(json!({ "keyPath": at("key.pub"), "signedIdentity": identity }))
        };
        let here = "DIR/policy.json: transports.docker[\"r.io\"][0]";
        let cases = [
            (
                "{".to_owned(),
                "DIR/policy.json: EOF while parsing an object at line 1 column 1".to_owned(),
            ),
            (
                "{\n\"a\": 1,\n\"a\": 1}".to_owned(),
                "DIR/policy.json: key \"a\" twice at line 3".to_owned(),
            ),
            (
                "[]".to_owned(),
                "DIR/policy.json: the file: must be an object".to_owned(),
            ),
            (
                "{}".to_owned(),
                "DIR/policy.json: default: missing".to_owned(),
            ),
            (
                json!({ "default": [] }).to_string(),
                "DIR/policy.json: default: must have at least one".to_owned(),
            ),
            (
                json!({ "defaults": [] }).to_string(),
                "DIR/policy.json: defaults: unknown field".to_owned(),
            ),
            (
                json!({ "default": [{ "type": "reject" }], "transports": [] }).to_string(),
                "DIR/policy.json: transports: must be an object".to_owned(),
            ),
            (
                docker(json!({ "type": "signedBy", "keyType": "GPGKeys" })).to_string(),
                format!("{here}.type: signedBy (signatures by GPG) is not supported"),
            ),
            (
                docker(json!({ "type": "signedBaseLayer" })).to_string(),
                format!("{here}.type: signedBaseLayer "),
            ),
            (
                docker(json!({ "type": "accept" })).to_string(),
                format!("{here}.type: unknown type \"accept\""),
            ),
            (
                docker(json!({})).to_string(),
                format!("{here}.type: missing"),
            ),
            (
                docker(json!({ "type": "reject", "keyPath": "/x" })).to_string(),
                format!("{here}.keyPath: unknown field"),
            ),
            (
                signed(json!({})),
                format!("{here}: must have one of keyPath, "),
            ),
            (
                signed(json!({ "keyPath": "/a", "keyData": "x" })),
                format!("{here}: must have one of keyPath, "),
            ),
            (
                signed(json!({ "fulcio": {} })),
                format!("{here}.fulcio: keyless signatures are not supported"),
            ),
            (
                signed(json!({ "keyPath": at("key.pub"), "rekorPublicKeyPath": "/x" })),
                format!("{here}.rekorPublicKeyPath: proofs of a transparency log are not"),
            ),
            (
                signed(json!({ "keyPath": "key.pub" })),
                format!("{here}.keyPath: \"key.pub\" is not an absolute path"),
            ),
            (
                signed(json!({ "keyPath": at("none") })),
                format!("{here}.keyPath: DIR/none: No such file"),
            ),
            (
                signed(json!({ "keyPath": at("no.pub") })),
                format!("{here}.keyPath: DIR/no.pub: no public key in PEM"),
            ),
            (
                signed(json!({ "keyPaths": [at("key.pub"), at("no.pub")] })),
                format!("{here}.keyPaths[1]: DIR/no.pub: "),
            ),
            (
                signed(json!({ "keyPaths": [] })),
                format!("{here}.keyPaths: must be a list of at least one"),
            ),
            (
                signed(json!({ "keyData": 5 })),
                format!("{here}.keyData: must be a string"),
            ),
            (
                signed(json!({ "keyData": "?" })),
                format!("{here}.keyData: not base64"),
            ),
            (
                identity(json!({ "type": "any" })),
                format!("{here}.signedIdentity.type: unknown type \"any\""),
            ),
            (
                identity(json!({ "type": "matchExact", "x": 1 })),
                format!("{here}.signedIdentity.x: unknown field"),
            ),
            (
                identity(json!({ "type": "exactReference", "dockerReference": "r.io/a" })),
                format!("{here}.signedIdentity.dockerReference: must have a tag"),
            ),
            (
                identity(json!({ "type": "exactRepository", "dockerRepository": "r.io/a:1" })),
                format!("{here}.signedIdentity.dockerRepository: must have neither"),
            ),
            (
                identity(json!({ "type": "exactRepository", "dockerRepository": "r.io/A" })),
                format!("{here}.signedIdentity.dockerRepository: image name "),
            ),
            (
                identity(json!({ "type": "remapIdentity", "prefix": "" })),
                format!("{here}.signedIdentity.prefix: must not be empty"),
            ),
        ];
        for (text, expected) in cases {
            let error = read_text(dir.path(), &text).unwrap_err();
            assert!(error.starts_with(&expected), "{text} gives {error}");
        }
        let missing = read(&dir.path().join("missing.json")).unwrap_err();
        assert!(matches!(missing, PolicyError::Read { .. }), "{missing}");
    }
}
