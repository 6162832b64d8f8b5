//! Credentials: given to those they are for, and to nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};

use carpel_integration::TestNode;
use carpel_integration::image::Image;
use carpel_integration::registry::{
    Content, Debian, FAR, Fake, PASSWORD, Reply, Request, USER, add_far_address,
};
use carpel_integration::v1::AuthConfig;
use serde_json::json;
use tonic::Code;

use super::{assert_nothing_left, content, node, refused, remove_all, several_layers};

fn password(password: &str) -> Option<AuthConfig> {
    Some(AuthConfig {
        username: USER.into(),
        password: password.into(),
        ..AuthConfig::default()
    })
}

/// `Basic` and [`USER`] with [`PASSWORD`].
const BASIC: &str = "Basic dXNlcjpzZWNyZXQtcGFzc3dvcmQ=";

fn assert_no_secret(node: &TestNode) {
    let log = node.daemon_log();
    for secret in [
        PASSWORD,
        "dXNlcjpzZWNyZXQtcGFzc3dvcmQ",
        "refresh-token",
        "access-token",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_registry_with_a_password() {
    let node = node().await;
    let mut registry = Debian::start(&node.net, "127.0.0.1:5000");
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    registry.with_password(&node.net);
    refused(
        node.cri.pull(&name, None).await,
        Code::PermissionDenied,
        "none were given",
    );
    refused(
        node.cri.pull(&name, password("wrong")).await,
        Code::PermissionDenied,
        "refuses the credentials",
    );
    assert_nothing_left(&node).await;
    assert_eq!(
        node.cri
            .pull(&name, password(PASSWORD))
            .await
            .expect("an image"),
        made.id()
    );
    // Those of another registry are not shown to this one.
    let elsewhere = password(PASSWORD).map(|auth| AuthConfig {
        server_address: "registry.example".into(),
        ..auth
    });
    refused(
        node.cri.pull(&name, elsewhere).await,
        Code::PermissionDenied,
        "none were given",
    );
    let packed = AuthConfig {
        auth: BASIC.trim_start_matches("Basic ").into(),
        server_address: registry.host.clone(),
        ..AuthConfig::default()
    };
    node.cri.pull(&name, Some(packed)).await.expect("an image");
    assert_no_secret(&node);
    remove_all(&node).await;
    node.finish().await;
}

/// A registry with a token service on the same port. The token is good `uses` times.
fn with_tokens(content: Content, uses: usize) -> impl Fn(&Request) -> Reply + Send + Sync {
    let (given, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    move |request| {
        if request.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            used.store(0, Ordering::SeqCst);
            let known = request.header("authorization") == BASIC
                || request.body.contains("refresh_token=refresh-token");
            if request.path.contains("private") && !known {
                return Reply::error(401, "UNAUTHORIZED", "who?");
            }
            let token = json!({ "token": format!("access-token-{number}"), "expires_in": 60 });
            return Reply::with(200, &[], token.to_string().as_bytes());
        }
        let latest = given.load(Ordering::SeqCst);
        let good = request.header("authorization") == format!("Bearer access-token-{latest}");
        if !good || latest == 0 || used.fetch_add(1, Ordering::SeqCst) >= uses {
            let host = request.header("host");
            let kind = if request.path.contains("private") {
                "private"
            } else {
                "public"
            };
            let challenge = format!(
                "Bearer realm=\"http://{host}/token/{kind}?x=y\",service=\"the registry\",scope=\"repository:a/b:pull\""
            );
            return Reply::with(401, &[("www-authenticate", &challenge)], b"{}");
        }
        content.answer(request)
    }
}

#[tokio::test]
async fn a_registry_with_a_token_service() {
    let node = node().await;
    let made = several_layers();
    let both = content(&made).image("private/b", "1", &made.build());
    let fake = Fake::start(&node.net, with_tokens(both, usize::MAX));
    let public = format!("{}/a/b:1", fake.host());
    node.cri
        .pull(&public, None)
        .await
        .expect("an image for everyone");
    let asked = fake
        .seen()
        .into_iter()
        .find(|r| r.path.starts_with("/token"))
        .expect("asked");
    assert_eq!(
        asked.path,
        "/token/public?x=y&service=the%20registry&scope=repository%3Aa%2Fb%3Apull"
    );
    assert_eq!(asked.header("authorization"), "");
    remove_all(&node).await;

    let private = format!("{}/private/b:1", fake.host());
    refused(
        node.cri.pull(&private, None).await,
        Code::PermissionDenied,
        "none were given",
    );
    refused(
        node.cri.pull(&private, password("wrong")).await,
        Code::PermissionDenied,
        "its token service refuses the credentials",
    );
    let identity = Some(AuthConfig {
        identity_token: "refresh-token".into(),
        ..AuthConfig::default()
    });
    for auth in [password(PASSWORD), identity] {
        node.cri
            .pull(&private, auth)
            .await
            .expect("an image for those who are known");
        remove_all(&node).await;
    }
    // The password went to the token service only.
    for request in fake.seen() {
        let authorization = request.header("authorization");
        assert!(request.path.starts_with("/token") || !authorization.starts_with("Basic"));
    }
    assert_no_secret(&node);
    assert_nothing_left(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let node = node().await;
    let made = Image::tiny("x");
    let content = content(&made);
    let fake = Fake::start(&node.net, move |request| {
        match request.header("authorization") {
            "Bearer access-token" => content.answer(request),
            _ => Reply::with(
                401,
                &[("www-authenticate", "Bearer realm=\"http://x/\"")],
                b"",
            ),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    let token = |token: &str| {
        Some(AuthConfig {
            registry_token: token.into(),
            ..AuthConfig::default()
        })
    };
    refused(
        node.cri.pull(&name, token("other-token")).await,
        Code::PermissionDenied,
        "refuses the credentials",
    );
    node.cri
        .pull(&name, token("access-token"))
        .await
        .expect("an image");
    assert_no_secret(&node);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    let node = node().await;
    let made = several_layers();
    // Good for more requests than there are at once: a new one is not used up before it is used.
    let fake = Fake::start(&node.net, with_tokens(content(&made), 6));
    let name = format!("{}/a/b:1", fake.host());
    node.cri.pull(&name, None).await.expect("an image");
    assert!(fake.count("/token") > 1);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_token_that_is_never_accepted_ends_the_pull() {
    let node = node().await;
    let fake = Fake::start(&node.net, with_tokens(Content::default(), 0));
    let name = format!("{}/a/b:1", fake.host());
    refused(
        node.cri.pull(&name, None).await,
        Code::PermissionDenied,
        "refuses the credentials",
    );
    assert!(fake.seen().len() < 10, "{:?}", fake.seen());
    node.finish().await;
}

#[tokio::test]
async fn a_token_service_of_another_site_gets_no_credentials() {
    let mut node = node().await;
    add_far_address(&node.net);
    let grab = Fake::start_at(&node.net, &format!("{FAR}:0"), |_| {
        Reply::with(200, &[], br#"{"token":"access-token"}"#)
    });
    let made = Image::tiny("x");
    let content = content(&made);
    let realm = format!("Bearer realm=\"http://{}/token\"", grab.host());
    let fake = Fake::start(&node.net, move |request| {
        match request.header("authorization") {
            "Bearer access-token" => content.answer(request),
            _ => Reply::with(401, &[("www-authenticate", &realm)], b""),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    refused(
        node.cri.pull(&name, password(PASSWORD)).await,
        Code::PermissionDenied,
        "is of another site, so it gets no credentials",
    );
    assert!(grab.seen().is_empty());
    // Who shows nothing has nothing to lose.
    node.cri.pull(&name, None).await.expect("an image");
    assert_eq!(grab.seen().len(), 1);
    remove_all(&node).await;
    // The operator may know better.
    assert!(node.terminate_daemon().await.success());
    let allowed = format!("[registry]\ntoken_hosts = [\"{FAR}\"]\n");
    std::fs::write(node.dir().join("config.toml"), allowed).expect("write");
    node.start_daemon(None).await;
    node.cri
        .pull(&name, password(PASSWORD))
        .await
        .expect("an image");
    assert_eq!(grab.seen()[1].header("authorization"), BASIC);
    assert_no_secret(&node);
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_registry_of_the_network_cannot_have_this_machine_asked() {
    let config = format!("[registry]\nplain_http = [\"{FAR}:5000\"]\n");
    let node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    let inside = Fake::start(&node.net, |_| Reply::status(200));
    let local = format!("http://{}/token", inside.host());
    let _far = Fake::start_at(&node.net, &format!("{FAR}:5000"), move |request| {
        let realm = match request.path.contains("/local/") {
            true => &local,
            false => "http://169.254.169.254/token",
        };
        let challenge = format!("Bearer realm=\"{realm}\"");
        Reply::with(401, &[("www-authenticate", &challenge)], b"")
    });
    for repository in ["local/b", "meta/b"] {
        let name = format!("{FAR}:5000/{repository}:1");
        let pull = node.cri.pull(&name, None).await;
        refused(
            pull,
            Code::PermissionDenied,
            "is not asked, because it is on this machine",
        );
    }
    assert!(inside.seen().is_empty());
    node.finish().await;
}

#[tokio::test]
async fn what_a_registry_says_of_a_secret_is_not_passed_on() {
    let node = node().await;
    let fake = Fake::start(&node.net, |request| match request.header("authorization") {
        "" => Reply::with(401, &[("www-authenticate", "Basic")], b""),
        authorization => Reply::error(403, "DENIED", &format!("{authorization} {PASSWORD}")),
    });
    let name = format!("{}/a/b:1", fake.host());
    let status = node
        .cri
        .pull(&name, password(PASSWORD))
        .await
        .expect_err("denied");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(
        !status.message().contains(PASSWORD) && !status.message().contains("dXNl"),
        "{status}"
    );
    assert!(status.message().ends_with("access denied"), "{status}");
    assert_no_secret(&node);
    node.finish().await;
}

#[tokio::test]
async fn two_users_do_not_share_a_pull() {
    let node = node().await;
    let made = Image::tiny("x");
    let content = content(&made);
    let fake = Fake::start(&node.net, move |request| {
        match request.header("authorization") {
            BASIC if request.is_blob() => {
                std::thread::sleep(std::time::Duration::from_millis(300));
                content.answer(request)
            }
            BASIC => content.answer(request),
            _ => Reply::with(401, &[("www-authenticate", "Basic")], b""),
        }
    });
    let name = format!("{}/a/b:1", fake.host());
    let (good, none): (Result<String, _>, Result<String, _>) = tokio::join!(
        node.cri.pull(&name, password(PASSWORD)),
        node.cri.pull(&name, None)
    );
    good.expect("an image");
    refused(none, Code::PermissionDenied, "none were given");
    remove_all(&node).await;
    node.finish().await;
}
