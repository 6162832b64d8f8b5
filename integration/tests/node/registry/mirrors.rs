//! `hosts.toml`: mirrors, in their order, each with what is special about it.

use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::image::Image;
use carpel_integration::registry::{
    Body, Content, Debian, FAR, Fake, Reply, Request, add_far_address,
};
use carpel_integration::v1::AuthConfig;
use carpel_integration::{TestNode, host};
use tempfile::TempDir;
use tonic::Code;

use super::{assert_nothing_left, content, refused, remove_all, several_layers, timeout};

/// A folder of hosts.toml files.
pub(super) struct Hosts(TempDir);

impl Hosts {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// What a node has to be told of it.
    pub(super) fn config(&self) -> String {
        let (timeout, path) = (timeout(), self.0.path().display());
        format!("[registry]\ntimeout_seconds = {timeout}\nconfig_path = \"{path}\"\n")
    }

    pub(super) fn dir(&self, name: &str) -> std::path::PathBuf {
        let dir = self.0.path().join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        dir
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir(name).join("hosts.toml"), text).expect("a file");
    }
}

/// Answers as a mirror is asked: with the registry's name, and below a path.
fn mirrored(content: Content, ns: &'static str) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| match request.path.split_once("?ns=") {
        Some((path, given)) if given == ns => content.answer(&Request {
            path: path.to_owned(),
            ..request.clone()
        }),
        _ => Reply::status(400),
    }
}

async fn node(hosts: &Hosts) -> TestNode {
    let config = hosts.config();
    TestNode::builder().no_image().config(&config).start().await
}

const NAME: &str = "up.example:5000/a/b:1";
const NS: &str = "up.example%3A5000";

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let made = Image::tiny("x");
    let without = Fake::start(&node.net, |_| Reply::error(404, "UNKNOWN", "not here"));
    let broken = Fake::start(&node.net, |_| Reply::status(500));
    let good = Fake::start(&node.net, mirrored(content(&made), NS));
    let server = content(&made);
    let server = Fake::start(&node.net, mirrored(server, NS));
    let text = |good: &str| {
        // Not in the order of their names or ports.
        let mut text = format!("server = \"http://{}\"\n", server.host());
        for host in [&without.host(), &broken.host(), good] {
            text.push_str(&format!("[host.\"http://{host}\"]\n"));
        }
        text
    };
    hosts.write("up.example_5000_", &text(&good.host()));
    assert_eq!(
        node.cri.pull(NAME, None).await.expect("an image"),
        made.id()
    );
    // Who does not have one thing may have another; who is broken is let alone.
    assert_eq!((without.seen().len(), broken.seen().len()), (3, 1));
    assert_eq!((good.seen().len(), server.seen().len()), (3, 0));
    let ns = format!("?ns={NS}");
    assert!(
        without
            .seen()
            .iter()
            .all(|request| request.path.ends_with(&ns))
    );
    remove_all(&node).await;
    // The next pull reads the file anew.
    hosts.write("up.example_5000_", &text("127.0.0.1:1"));
    assert_eq!(
        node.cri.pull(NAME, None).await.expect("an image"),
        made.id()
    );
    assert_eq!((good.seen().len(), server.seen().len()), (3, 3));
    remove_all(&node).await;
    // With nobody left, an error tells of all.
    hosts.write(
        "up.example_5000_",
        &format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n",
            without.host()
        ),
    );
    let status = node.cri.pull(NAME, None).await.expect_err("nobody");
    let start = format!("RegistryUnavailable: image {NAME}: registry http://127.0.0.1:1 (after ");
    assert!(status.message().starts_with(&start), "{status}");
    let part = format!(
        "http://{}: manifest 1 not found (not here))",
        without.host()
    );
    assert!(status.message().contains(&part), "{status}");
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_layer_goes_on_where_a_mirror_left_it() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let made = several_layers();
    let good = mirrored(content(&made), NS);
    let mirror = Fake::start(&node.net, move |request| {
        let reply = good(request);
        match request.is_blob() && matches!(&reply.body, Body::Whole(bytes) if bytes.len() > 10_000)
        {
            true => Reply {
                status: 200,
                ..reply
            }
            .sent(|bytes| Body::Cut(bytes, 7_000)),
            false => reply,
        }
    });
    let server = Fake::start(&node.net, mirrored(content(&made), NS));
    hosts.write(
        "up.example:5000",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            server.host(),
            mirror.host()
        ),
    );
    assert_eq!(
        node.cri.pull(NAME, None).await.expect("an image"),
        made.id()
    );
    let seen = server.seen();
    let ranges = seen
        .iter()
        .filter(|request| request.header("range") == "bytes=7000-");
    assert!(ranges.count() >= 1, "{seen:?}");
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn what_a_mirror_has_wrong_comes_from_the_registry() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let made = several_layers();
    let server = Fake::start(&node.net, mirrored(content(&made), NS));
    // At the end, where the unpacking does not notice; in the middle, where it does; and of another kind altogether.
    for (name, spoil) in [
        (
            "end",
            (|bytes| *bytes.last_mut().expect("a byte") ^= 1) as fn(&mut Vec<u8>),
        ),
        ("middle", |bytes| {
            bytes.iter_mut().skip(1000).for_each(|byte| *byte ^= 1)
        }),
        ("kind", |bytes| bytes.fill(b'x')),
    ] {
        let good = mirrored(content(&made), NS);
        let mirror = Fake::start(&node.net, move |request| {
            let mut reply = good(request);
            match &mut reply.body {
                Body::Whole(bytes) if request.is_blob() && bytes.len() > 10_000 => spoil(bytes),
                _ => {}
            }
            reply
        });
        let before = server.count("/blobs/");
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            server.host(),
            mirror.host()
        );
        hosts.write("_default", &text);
        assert_eq!(node.cri.pull(NAME, None).await.expect(name), made.id());
        assert!(server.count("/blobs/") - before >= 5, "{name}");
        remove_all(&node).await;
        assert_nothing_left(&node).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_mirror_is_asked_for_what_it_may_give() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let made = Image::tiny("x");
    let mirror = Fake::start(&node.net, mirrored(content(&made), NS));
    let server = Fake::start(&node.net, mirrored(content(&made), NS));
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        server.host(),
        mirror.host()
    );
    hosts.write("_default", &text);
    node.cri.pull(NAME, None).await.expect("an image");
    let paths = |fake: &Fake| (fake.count("/manifests/"), fake.count("/blobs/"));
    assert_eq!((paths(&mirror), paths(&server)), ((0, 2), (1, 0)));
    remove_all(&node).await;
    // What a digest names needs no trust.
    let digest = carpel_integration::image::digest(&made.build().manifest);
    let name = format!("up.example:5000/a/b@{digest}");
    node.cri.pull(&name, None).await.expect("an image");
    assert_eq!((paths(&mirror), paths(&server)), ((1, 4), (1, 0)));
    remove_all(&node).await;
    let text = format!(
        "server = \"http://{}\"\ncapabilities = [\"pull\"]\n",
        server.host()
    );
    hosts.write("_default", &text);
    let pull = node.cri.pull(NAME, None).await;
    refused(
        pull,
        Code::InvalidArgument,
        "names no host that may resolve a tag",
    );
    node.finish().await;
}

#[tokio::test]
async fn a_mirror_has_a_path_and_headers_of_its_own() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let made = Image::tiny("x");
    let elsewhere = mirrored(content(&made), NS);
    let elsewhere = Fake::start(&node.net, elsewhere);
    let (manifests, host) = (mirrored(content(&made), NS), elsewhere.host());
    let mirror = Fake::start(&node.net, move |request| {
        let Some(path) = request.path.strip_prefix("/proxy/cache") else {
            return Reply::status(404);
        };
        match request.is_blob() {
            true => Reply::with(
                307,
                &[("location", &format!("http://{host}/v2{path}"))],
                b"",
            ),
            false => manifests(&Request {
                path: format!("/v2{path}"),
                ..request.clone()
            }),
        }
    });
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}/proxy/cache/\"]\noverride_path = true\n[host.\"http://{0}/proxy/cache/\".header]\nx-key = \"SECRET-KEY\"\nX-List = [\"a\", \"b\"]\n",
        mirror.host()
    );
    hosts.write("up.example_5000_", &text);
    node.cri.pull(NAME, None).await.expect("an image");
    for request in mirror.seen() {
        assert_eq!(request.header("x-key"), "SECRET-KEY");
        assert!(!request.header("x-list").is_empty());
    }
    // They are for the mirror, not for where it redirects to.
    assert_eq!(elsewhere.seen().len(), 2);
    for request in elsewhere.seen() {
        assert_eq!(request.header("x-key"), "");
    }
    assert!(!node.daemon_log().contains("SECRET-KEY"));
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_mirror_never_sees_the_registrys_credentials() {
    let hosts = Hosts::new();
    let auth_file = hosts.dir("files").join("auth.json");
    let config = hosts.config();
    let config = format!("{config}auth_files = [\"{}\"]\n", auth_file.display());
    let node = TestNode::builder().no_image().config(&config).start().await;
    let made = Image::tiny("x");
    let asks = |content: Content| {
        move |request: &Request| match request.header("authorization") {
            "" => Reply::with(401, &[("www-authenticate", "Basic realm=x")], b""),
            _ => content.answer(&Request {
                path: request
                    .path
                    .split('?')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                ..request.clone()
            }),
        }
    };
    let mirror = Fake::start(&node.net, asks(content(&made)));
    let server = Fake::start(&node.net, asks(content(&made)));
    let name = format!("{}/a/b:1", server.host());
    let text = format!("[host.\"http://{}\"]\n", mirror.host());
    hosts.write(&server.host(), &text);
    let given = Some(AuthConfig {
        username: "user".into(),
        password: "secret-password".into(),
        ..AuthConfig::default()
    });
    node.cri.pull(&name, given.clone()).await.expect("an image");
    let shown = |fake: &Fake| {
        let seen = fake.seen().into_iter();
        let shown = seen.map(|request| request.header("authorization").to_owned());
        shown.filter(|shown| !shown.is_empty()).collect::<Vec<_>>()
    };
    let basic = "Basic dXNlcjpzZWNyZXQtcGFzc3dvcmQ=";
    assert!(shown(&mirror).is_empty());
    assert!(!shown(&server).is_empty() && shown(&server).iter().all(|shown| shown == basic));
    remove_all(&node).await;
    // It has its own: mirror:of-its-own. The registry is not needed then.
    let before = server.seen().len();
    let text = format!(
        "{{\"auths\": {{\"{}\": {{\"auth\": \"bWlycm9yOm9mLWl0cy1vd24=\"}}}}}}",
        mirror.host()
    );
    std::fs::write(&auth_file, text).expect("a file");
    node.cri.pull(&name, given).await.expect("an image");
    assert_eq!(server.seen().len(), before);
    assert!(
        shown(&mirror)
            .iter()
            .all(|shown| shown == "Basic bWlycm9yOm9mLWl0cy1vd24=")
    );
    for secret in ["secret-password", "of-its-own", "bWlycm9y"] {
        assert!(!node.daemon_log().contains(secret), "{secret}");
    }
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_bad_file_is_named_with_its_line() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    let fake = Fake::start(&node.net, |_| Reply::status(500));
    let name = format!("{}/a/b:1", fake.host());
    let file = hosts.dir(&fake.host()).join("hosts.toml");
    let file = file.display();
    for (text, part) in [
        (
            "\nskip_verify = \"no\"\n",
            format!("{file}:2: invalid type"),
        ),
        ("[host.\"ftp://a\"]\n", format!("{file}:1: \"ftp://a\": ")),
        ("ca = \"not-there.pem\"\n", "/not-there.pem: ".to_owned()),
        (
            "ca = \"hosts.toml\"\n",
            "/hosts.toml: holds no certificate".to_owned(),
        ),
    ] {
        hosts.write(&fake.host(), text);
        let pull = node.cri.pull(&name, None).await;
        refused(pull, Code::Internal, &part);
    }
    assert!(fake.seen().is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_costs_its_own_timeout() {
    let hosts = Hosts::new();
    let config = hosts.config().replace(&format!("= {}", timeout()), "= 300");
    let node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    node.net.command(&[
        "nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }; add rule ip t o ip daddr 10.119.0.1 tcp dport 9 drop",
    ]);
    let made = Image::tiny("x");
    let server = Fake::start(&node.net, mirrored(content(&made), NS));
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{FAR}:9\"]\ndial_timeout = \"300ms\"\n",
        server.host()
    );
    hosts.write("up.example_5000_", &text);
    let begin = Instant::now();
    node.cri.pull(NAME, None).await.expect("an image");
    // For one request, not for each.
    let took = begin.elapsed();
    assert!(took < host::patience(Duration::from_secs(5)), "{took:?}");
    node.net.command(&["nft", "delete table ip t"]);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn tls_is_as_the_file_says() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    add_far_address(&node.net);
    let mut registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let ca = registry.with_tls(&node.net, FAR);
    let folder = format!("{FAR}_5000_");
    let pulled = async || {
        assert_eq!(
            node.cri.pull(&name, None).await.expect("an image"),
            made.id()
        );
        remove_all(&node).await;
    };
    let tls_fails = async |name: &str| {
        refused(node.cri.pull(name, None).await, Code::Unknown, ": TLS: ");
    };
    tls_fails(&name).await;
    hosts.write(&folder, &format!("ca = \"{}\"\n", ca.display()));
    pulled().await;
    // As docker has it: a certificate beside no hosts.toml, under a path of its own.
    std::fs::remove_file(hosts.dir(&folder).join("hosts.toml")).expect("a file");
    std::fs::copy(&ca, hosts.dir(&folder).join("any.crt")).expect("a file");
    pulled().await;
    std::fs::remove_file(hosts.dir(&folder).join("any.crt")).expect("a file");
    // The server's own certificate, instead of that of its authority.
    let own = ca.with_file_name("cert.pem");
    hosts.write(&folder, &format!("ca = [\"{}\"]\n", own.display()));
    pulled().await;
    // A name that the certificate does not have.
    node.net
        .command(&["ip", "addr", "add", "10.119.0.2/32", "dev", "lo"]);
    node.net.command(&[
        "nft", "add table ip t; add chain ip t o { type nat hook output priority -100; }; add rule ip t o ip daddr 10.119.0.2 dnat to 10.119.0.1",
    ]);
    let other = name.replace(FAR, "10.119.0.2");
    let other_folder = folder.replace(FAR, "10.119.0.2");
    for file in [&ca, &own] {
        hosts.write(&other_folder, &format!("ca = \"{}\"\n", file.display()));
        tls_fails(&other).await;
    }
    hosts.write(&other_folder, "skip_verify = true\n");
    node.cri.pull(&other, None).await.expect("an image");
    node.net.command(&["nft", "delete table ip t"]);
    remove_all(&node).await;
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_may_want_a_clients_certificate() {
    let hosts = Hosts::new();
    let node = node(&hosts).await;
    add_far_address(&node.net);
    let mut registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let dir = registry.with_mutual_tls(&node.net, FAR);
    let folder = format!("{FAR}_5000_");
    let ca = format!("ca = \"{}/ca.pem\"\n", dir.display());
    hosts.write(&folder, &ca);
    let pull = node.cri.pull(&name, None).await;
    refused(pull, Code::Unknown, "RegistryUnavailable: ");
    // In two files, in one, and as docker has them.
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a file");
    let (certificate, key) = (read("cert.pem"), read("key.pem"));
    let both = hosts.dir(&folder).join("both.pem");
    std::fs::write(&both, format!("{key}{certificate}")).expect("a file");
    let pair = format!(
        "{ca}client = [[\"{0}/cert.pem\", \"{0}/key.pem\"]]\n",
        dir.display()
    );
    for text in [pair, format!("{ca}client = \"both.pem\"\n"), String::new()] {
        hosts.write(&folder, &text);
        let here = |name: &str| hosts.dir(&folder).join(name);
        if text.is_empty() {
            for (from, to) in [
                ("cert.pem", "c.cert"),
                ("key.pem", "c.key"),
                ("ca.pem", "c.crt"),
            ] {
                std::fs::copy(dir.join(from), here(to)).expect("a file");
            }
        }
        assert_eq!(
            node.cri.pull(&name, None).await.expect("an image"),
            made.id()
        );
        remove_all(&node).await;
    }
    // A key of another certificate.
    let ca_key = Path::new(&dir).join("ca.key");
    let text = format!(
        "client = [[\"{}/cert.pem\", \"{}\"]]\n",
        dir.display(),
        ca_key.display()
    );
    hosts.write(&folder, &text);
    let pull = node.cri.pull(&name, None).await;
    refused(pull, Code::Internal, "ca.key: no key of ");
    assert_nothing_left(&node).await;
    node.finish().await;
}
