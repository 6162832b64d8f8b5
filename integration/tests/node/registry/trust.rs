//! The policy: which images may be pulled, and by whose key they must be signed.

use std::path::Path;

use carpel_integration::TestNode;
use carpel_integration::image::{Image, digest};
use carpel_integration::registry::sign::{
    Key, Signature, signature_tag, signatures, signatures_with,
};
use carpel_integration::registry::{Content, Debian, Fake, Reply};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use super::{assert_nothing_left, refused, remove_all};

const REGISTRY: &str = "127.0.0.1:5000";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// A node whose policy has these scopes and rejects all else, and the folder of the policy.
async fn node(scopes: &[(&str, Value)]) -> (TestNode, TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let scopes = scopes.iter().cloned();
    let scopes = scopes.map(|(scope, value)| (scope.to_owned(), value));
    let policy = json!({
        "default": [{ "type": "reject" }],
        "transports": { "docker": scopes.collect::<serde_json::Map<_, _>>() },
    });
    let path = dir.path().join("policy.json");
    std::fs::write(&path, policy.to_string()).expect("write");
    let config = format!(
        "[registry]\ntimeout_seconds = {}\n[image]\nsignature_policy = {path:?}\n",
        super::timeout()
    );
    let node = TestNode::builder().no_image().config(&config).start().await;
    (node, dir)
}

fn accept() -> Value {
    json!([{ "type": "insecureAcceptAnything" }])
}

fn signed_by(key: &Path, identity: &str) -> Value {
    json!([{ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": { "type": identity } }])
}

/// Pulls what must be refused by the policy, and makes sure that it leaves nothing.
async fn untrusted(node: &TestNode, name: &str, part: &str) {
    let outcome = node.cri.pull(name, None).await;
    if let Err(status) = &outcome {
        // The kubelet looks at how it begins, and sees it with this code only.
        let begin = format!("SignatureValidationFailed: image {name} of registry http");
        assert!(status.message().starts_with(&begin), "{status}");
        assert!(status.message().contains("policy.json: "), "{status}");
    }
    refused(outcome, Code::Unknown, part);
    assert_nothing_left(node).await;
}

async fn pulled(node: &TestNode, name: &str) {
    node.cri.pull(name, None).await.expect(name);
    remove_all(node).await;
}

#[tokio::test]
async fn what_a_name_begins_with_decides() {
    let reject = || json!([{ "type": "reject" }]);
    let (node, _dir) = node(&[
        (&format!("{REGISTRY}/open"), accept()),
        (&format!("{REGISTRY}/open/closed"), reject()),
        (&format!("{REGISTRY}/open/closed/but:1"), accept()),
        (&format!("{REGISTRY}/open/one:1"), reject()),
    ])
    .await;
    let registry = Debian::start(&node.net, REGISTRY);
    let made = Image::tiny("x");
    let push = |repository: &str, tag: &str| registry.push(&node.net, repository, tag, &made);
    for (repository, tag) in [
        ("open", "1"),
        ("open/a", "1"),
        ("open/one", "2"),
        ("open/closed/but", "1"),
    ] {
        pulled(&node, &push(repository, tag).0).await;
    }
    let scope = |scope: &str| format!("transports.docker[\"{REGISTRY}/{scope}\"]: rejected");
    for (repository, tag, place) in [
        ("open/closed", "1", scope("open/closed")),
        ("open/closed/a/b", "1", scope("open/closed")),
        ("open/closed/but", "2", scope("open/closed")),
        ("open/one", "1", scope("open/one:1")),
        ("opened", "1", "policy.json: default: rejected".into()),
    ] {
        untrusted(&node, &push(repository, tag).0, &place).await;
    }
    // By digest the rule of a tag says nothing.
    let (name, digest) = push("open/one", "1");
    let by_digest = format!("{}@{digest}", name.trim_end_matches(":1"));
    pulled(&node, &by_digest).await;
    node.finish().await;
}

#[tokio::test]
async fn only_what_is_signed_with_the_key_is_pulled() {
    let (key, other) = (Key::new(), Key::new());
    let (node, _dir) = node(&[
        (
            &format!("{REGISTRY}/signed"),
            signed_by(&key.public(), "matchRepository"),
        ),
        (
            &format!("{REGISTRY}/exact"),
            signed_by(&key.public(), "matchRepoDigestOrExact"),
        ),
    ])
    .await;
    let registry = Debian::start(&node.net, REGISTRY);
    let stranger = digest(b"another manifest");
    let mut count = 0;
    let mut push = |repository: &str, sign: &dyn Fn(&str, &str) -> Vec<Signature>| {
        count += 1;
        let made = Image::tiny(&format!("x{count}"));
        let (name, digest) = registry.push(&node.net, repository, "1", &made);
        let signed = sign(&format!("{REGISTRY}/{repository}"), &digest);
        if !signed.is_empty() {
            let (tag, built) = (signature_tag(&digest), signatures(&signed));
            registry.push_built(&node.net, repository, &tag, &built);
        }
        (name, digest)
    };
    // As cosign signs: for the repository.
    let (name, digest) = push("signed/right", &|name, digest| vec![key.sign(name, digest)]);
    pulled(&node, &name).await;
    pulled(&node, &format!("{}@{digest}", name.trim_end_matches(":1"))).await;
    // One of several is enough.
    let (name, _) = push("signed/second", &|name, digest| {
        vec![other.sign(name, digest), key.sign(name, digest)]
    });
    pulled(&node, &name).await;
    let (name, _) = push("exact/right", &|name, digest| {
        vec![key.sign(&format!("{name}:1"), digest)]
    });
    pulled(&node, &name).await;

    let (name, digest) = push("signed/none", &|_, _| Vec::new());
    untrusted(&node, &name, &format!("no signature of {digest}")).await;
    let (name, _) = push("signed/wrong", &|name, digest| {
        vec![other.sign(name, digest)]
    });
    untrusted(
        &node,
        &name,
        "its signature is not accepted: one is by another key",
    )
    .await;
    let (name, digest) = push("signed/elsewhere", &|name, _| {
        vec![key.sign(name, &stranger)]
    });
    untrusted(
        &node,
        &name,
        &format!("one is for {stranger}, not {digest}"),
    )
    .await;
    let (name, _) = push("signed/moved", &|_, digest| {
        vec![key.sign(&format!("{REGISTRY}/signed/right"), digest)]
    });
    untrusted(
        &node,
        &name,
        &format!("one is for {REGISTRY}/signed/right, not {name}"),
    )
    .await;
    let (name, _) = push("signed/changed", &|name, digest| {
        let mut changed = key.sign(name, digest);
        changed.payload.push(b' ');
        vec![changed]
    });
    untrusted(&node, &name, "one is by another key").await;
    let (name, _) = push("signed/text", &|_, _| vec![key.sign_payload(b"text")]);
    untrusted(&node, &name, "one has a malformed payload").await;
    let (name, _) = push("signed/more", &|name, digest| {
        let signed = key.sign(name, digest);
        let mut payload: Value = serde_json::from_slice(&signed.payload).expect("json");
        payload["critical"]["expires"] = json!("yesterday");
        vec![key.sign_payload(payload.to_string().as_bytes())]
    });
    untrusted(&node, &name, "unknown field `expires`").await;
    let (name, _) = push("exact/bare", &|name, digest| vec![key.sign(name, digest)]);
    untrusted(
        &node,
        &name,
        "a signedIdentity of type matchRepository accepts that",
    )
    .await;
    let (name, _) = push("exact/tag", &|name, digest| {
        vec![key.sign(&format!("{name}:2"), digest)]
    });
    untrusted(&node, &name, "one is for 127.0.0.1:5000/exact/tag:2, not").await;
    node.finish().await;
}

#[tokio::test]
async fn a_signature_of_an_index_is_one_of_what_it_leads_to() {
    let key = Key::new();
    let (node, _dir) = node(&[(REGISTRY, signed_by(&key.public(), "matchRepository"))]).await;
    let registry = Debian::start(&node.net, REGISTRY);
    for (repository, of_index) in [("index", true), ("manifest", false)] {
        let made = Image::tiny(repository);
        let manifest = made.build().manifest;
        let (_, own) = registry.push(&node.net, repository, "own", &made);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{ "mediaType": MANIFEST, "digest": own, "size": manifest.len() }],
        })
        .to_string();
        let top = registry.push_index(&node.net, repository, "1", index.as_bytes());
        let name = format!("{REGISTRY}/{repository}:1");
        untrusted(&node, &name, &format!("no signature of {top}")).await;
        let signed = if of_index { &top } else { &own };
        let signature = key.sign(&format!("{REGISTRY}/{repository}"), signed);
        let built = signatures(&[signature]);
        registry.push_built(&node.net, repository, &signature_tag(signed), &built);
        pulled(&node, &name).await;
        // What the index leads to is another image of its own, which only its own signature vouches for.
        let own = format!("{REGISTRY}/{repository}:own");
        match of_index {
            true => untrusted(&node, &own, "no signature of").await,
            false => pulled(&node, &own).await,
        }
    }
    node.finish().await;
}

/// An index of referrers with one entry.
fn referrers(kind: &str, manifest: &[u8]) -> Vec<u8> {
    many_referrers(kind, &[manifest])
}

fn many_referrers(kind: &str, manifests: &[&[u8]]) -> Vec<u8> {
    let entry = |manifest: &&[u8]| {
        json!({
            "mediaType": MANIFEST,
            "artifactType": kind,
            "digest": digest(manifest),
            "size": manifest.len(),
        })
    };
    let entries: Vec<_> = manifests.iter().map(entry).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    index.to_string().into_bytes()
}

#[tokio::test]
async fn a_long_list_of_what_is_no_signature_is_not_worked_off() {
    let key = Key::new();
    let (node, _dir) = node(&[("", signed_by(&key.public(), "matchRepository"))]).await;
    let made = Image::tiny("x").build();
    let none: Vec<_> = (0..500).map(|n| format!("none of it {n}")).collect();
    let none: Vec<_> = none.iter().map(String::as_bytes).collect();
    let content = Content::default().image("a/b", "1", &made).referrers(
        "a/b",
        &digest(&made.manifest),
        &many_referrers(SIGNATURE, &none),
    );
    let fake = Fake::start(&node.net, move |request| content.answer(request));
    let name = format!("{}/a/b:1", fake.host());
    untrusted(&node, &name, "no signature of").await;
    let asked = fake.count("/manifests/sha256:");
    // The image's own manifest is asked for, too.
    assert!((100..110).contains(&asked), "{asked}");
    node.finish().await;
}

#[tokio::test]
async fn signatures_may_refer_to_what_they_sign() {
    let key = Key::new();
    let (node, _dir) = node(&[(REGISTRY, signed_by(&key.public(), "matchRepository"))]).await;
    let made = Image::tiny("x").build();
    let manifest = digest(&made.manifest);
    let sign = |repository: &str| {
        let signature = key.sign(&format!("{REGISTRY}/{repository}"), &manifest);
        signatures_with(&[signature], &json!({ "artifactType": SIGNATURE }))
    };
    let (one, two) = (sign("one"), sign("two"));
    let tag = manifest.replace(':', "-");
    let bundle = referrers("application/vnd.dev.sigstore.bundle.v0.3+json", b"{}");
    let content = ["one", "two", "three"]
        .iter()
        .fold(Content::default(), |content, repository| {
            content.image(repository, "1", &made)
        })
        // A registry that knows referrers.
        .image("one", "unused", &one)
        .referrers("one", &manifest, &referrers(SIGNATURE, &one.manifest))
        // One that does not: the list is under a tag.
        .image("two", "unused", &two)
        .manifest("two", &tag, INDEX, &referrers(SIGNATURE, &two.manifest))
        // What cosign 3 makes unless it is told otherwise.
        .referrers("three", &manifest, &bundle);
    let fake = Fake::start_at(&node.net, REGISTRY, move |request| content.answer(request));
    for repository in ["one", "two"] {
        pulled(&node, &format!("{REGISTRY}/{repository}:1")).await;
    }
    let name = format!("{REGISTRY}/three:1");
    untrusted(&node, &name, "sigstore bundle, which is not supported").await;
    // No layer was asked for.
    let layer = digest(&made.layers[0]);
    assert_eq!(fake.count(&format!("/three/blobs/{layer}")), 0);
    assert_eq!(fake.count(&format!("/one/blobs/{layer}")), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_fails_is_not_an_image_without_signature() {
    let key = Key::new();
    let (node, _dir) = node(&[("", signed_by(&key.public(), "matchRepository"))]).await;
    let made = Image::tiny("x").build();
    let content = Content::default().image("a/b", "1", &made);
    let fake = Fake::start(&node.net, move |request| {
        match request.path.ends_with(".sig") {
            true => Reply::status(500),
            false => content.answer(request),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    let part = format!(
        "RegistryUnavailable: image {name}: registry http://{}: ",
        fake.host()
    );
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);
    assert_nothing_left(&node).await;
    node.finish().await;
}
