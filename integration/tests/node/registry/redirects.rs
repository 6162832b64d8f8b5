//! Redirects: followed, a few times, and without the credentials.

use carpel_integration::TestNode;
use carpel_integration::image::Image;
use carpel_integration::registry::{FAR, Fake, Reply, Request, add_far_address};
use carpel_integration::v1::AuthConfig;
use tonic::Code;

use super::{assert_nothing_left, content, node, refused, remove_all};

fn to(location: &str) -> Reply {
    Reply::with(307, &[("location", location)], b"")
}

fn known() -> Option<AuthConfig> {
    Some(AuthConfig {
        username: "user".into(),
        password: "secret-password".into(),
        ..AuthConfig::default()
    })
}

fn is_known(request: &Request) -> bool {
    request.header("authorization").starts_with("Basic ")
}

#[tokio::test]
async fn blobs_may_be_elsewhere_and_the_credentials_stay() {
    let node = node().await;
    let made = Image::tiny("x");
    let blobs = content(&made);
    // It would like to have them, too.
    let elsewhere = Fake::start(&node.net, move |request| {
        let path = request
            .path
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned();
        blobs.answer(&Request {
            path,
            ..request.clone()
        })
    });
    let (manifests, host) = (content(&made), elsewhere.host());
    let fake = Fake::start(&node.net, move |request| {
        if !is_known(request) {
            return Reply::with(401, &[("www-authenticate", "Basic realm=x")], b"");
        }
        match request.is_blob() {
            true => to(&format!("http://{host}{}?signature=SIGNED", request.path)),
            false => manifests.answer(request),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    assert_eq!(
        node.cri.pull(&name, known()).await.expect("an image"),
        made.id()
    );
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|request| request.header("authorization").is_empty()),
        "{seen:?}"
    );
    assert!(!node.daemon_log().contains("SIGNED"));
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn an_error_elsewhere_shows_neither_url_nor_text() {
    let node = node().await;
    let made = Image::tiny("x");
    let elsewhere = Fake::start(&node.net, |request| {
        match request.path.contains("challenge") {
            true => Reply::with(401, &[("www-authenticate", "Basic realm=x")], b""),
            false => Reply::error(403, "DENIED", "SIGNED is over"),
        }
    });
    for kind in ["denied", "challenge"] {
        let (manifests, host) = (content(&made), elsewhere.host());
        let fake = Fake::start(&node.net, move |request| {
            if !is_known(request) {
                return Reply::with(401, &[("www-authenticate", "Basic realm=x")], b"");
            }
            match request.is_blob() {
                true => to(&format!("http://{host}/{kind}?signature=SIGNED")),
                false => manifests.answer(request),
            }
        });
        let name = format!("{}/a/b:1", fake.host());
        let status = node.cri.pull(&name, known()).await.expect_err("denied");
        assert!(
            status
                .message()
                .contains("from where the registry redirects to"),
            "{status}"
        );
        assert!(!status.message().contains("SIGNED"), "{status}");
    }
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen.iter()
            .all(|request| request.header("authorization").is_empty()),
        "{seen:?}"
    );
    assert!(!node.daemon_log().contains("SIGNED"));
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_them() {
    let node = node().await;
    let made = Image::tiny("x");
    let content = content(&made);
    let fake = Fake::start(&node.net, move |request| {
        if !is_known(request) {
            return Reply::with(401, &[("www-authenticate", "Basic realm=x")], b"");
        }
        match request.path.strip_prefix("/moved") {
            Some(path) => content.answer(&Request {
                path: path.into(),
                ..request.clone()
            }),
            None => to(&format!("/moved{}", request.path)),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    node.cri.pull(&name, known()).await.expect("an image");
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn redirects_end() {
    let node = node().await;
    let fake = Fake::start(&node.net, |request| to(&format!("{}x", request.path)));
    let name = format!("{}/a/b:1", fake.host());
    refused(
        node.cri.pull(&name, None).await,
        Code::InvalidArgument,
        "redirects more than 5 times",
    );
    assert_eq!(fake.seen().len(), 6);
    for location in ["", "ftp://a/b", "//a/b", "http://u:p@a/b", "x"] {
        let fake = Fake::start(&node.net, move |_| to(location));
        let name = format!("{}/a/b:1", fake.host());
        refused(
            node.cri.pull(&name, None).await,
            Code::InvalidArgument,
            "redirects to a",
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn a_registry_of_the_network_cannot_lead_to_this_machine() {
    let config = format!("[registry]\nplain_http = [\"{FAR}:5000\"]\n");
    let node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    let inside = Fake::start(&node.net, |_| Reply::status(200));
    let port = inside.host().rsplit(':').next().expect("a port").to_owned();
    let _far = Fake::start_at(&node.net, &format!("{FAR}:5000"), move |request| {
        let host = match request.path.contains("/name/") {
            true => "localhost",
            false => "127.0.0.1",
        };
        to(&format!("http://{host}:{port}/"))
    });
    for repository in ["name/b", "number/b"] {
        let name = format!("{FAR}:5000/{repository}:1");
        let pull = node.cri.pull(&name, None).await;
        refused(pull, Code::InvalidArgument, "on this machine");
    }
    assert!(inside.seen().is_empty());
    node.finish().await;
}
