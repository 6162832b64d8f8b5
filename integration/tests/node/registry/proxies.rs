//! Proxies from the environment, and those of one host alone.

use carpel_integration::TestNode;
use carpel_integration::image::Image;
use carpel_integration::registry::{Debian, FAR, Proxy, Socks, add_far_address};
use tonic::Code;

use super::mirrors::Hosts;
use super::{refused, remove_all};

#[tokio::test]
async fn pulls_go_by_the_environments_proxy() {
    let hosts = Hosts::new();
    let config = format!("{}plain_http = [\"{FAR}:5000\"]\n", hosts.config());
    let mut node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    let open = Proxy::start(&node.net, None);
    // user:proxy-word
    let closed = Proxy::start(&node.net, Some("Basic dXNlcjpwcm94eS13b3Jk"));
    let mut registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let near = Debian::start(&node.net, "127.0.0.1:5000");
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let (near_name, _) = near.push(&node.net, "a/b", "1", &made);
    assert!(node.terminate_daemon().await.success());
    node.set_env("http_proxy", &format!("http://{}", open.host()));
    let https = format!("http://user:proxy-word@{}/", closed.host());
    node.set_env("HTTPS_PROXY", &https);
    node.start_daemon(None).await;
    for name in [&name, &near_name] {
        assert_eq!(
            node.cri.pull(name, None).await.expect("an image"),
            made.id()
        );
    }
    let seen = open.seen();
    assert!(
        seen[0].starts_with(&format!("GET http://{FAR}:5000/v2/a/b/manifests/1 ")),
        "{seen:?}"
    );
    // What is on this machine is reached without.
    assert!(seen.iter().all(|line| line.contains(FAR)), "{seen:?}");
    remove_all(&node).await;

    // By a tunnel; the file says that it is https.
    let ca = registry.with_tls(&node.net, FAR);
    let folder = format!("{FAR}_5000_");
    let server = format!(
        "server = \"https://{FAR}:5000\"\nca = \"{}\"\n",
        ca.display()
    );
    hosts.write(&folder, &server);
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    let seen = closed.seen();
    let tunnel = format!("CONNECT {FAR}:5000 HTTP/1.1");
    assert!(
        !seen.is_empty() && seen.iter().all(|line| *line == tunnel),
        "{seen:?}"
    );
    remove_all(&node).await;

    // A host's own proxy goes before; without the password this one refuses.
    hosts.write(
        &folder,
        &format!("{server}proxy = \"http://{}\"\n", closed.host()),
    );
    let part = format!("connect: proxy {}: ", closed.host());
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);

    assert!(node.terminate_daemon().await.success());
    node.set_env("NO_PROXY", "10.119.0.0/16");
    node.start_daemon(None).await;
    hosts.write(&folder, &server);
    let before = closed.seen().len();
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    assert_eq!(closed.seen().len(), before);
    for secret in ["proxy-word", "dXNlcjpwcm94eS13b3Jk"] {
        assert!(
            !node.daemon_log().contains(secret),
            "{secret} is in the log"
        );
    }
    remove_all(&node).await;
    node.finish().await;
}

#[tokio::test]
async fn a_variable_that_names_no_proxy_stops_the_daemon() {
    let mut node = TestNode::builder().no_image().start().await;
    assert!(node.terminate_daemon().await.success());
    node.set_env("https_proxy", "socks4://user:proxy-word@127.0.0.1:1");
    let output = node.serve_command().output().expect("the daemon");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        text.contains("environment variable https_proxy: it is not of the form"),
        "{text}"
    );
    assert!(!text.contains("proxy-word"), "{text}");
    node.set_env("https_proxy", "");
    node.start_daemon(None).await;
    node.finish().await;
}

#[tokio::test]
async fn a_proxy_may_speak_socks_or_tls() {
    let hosts = Hosts::new();
    let config = format!("{}plain_http = [\"{FAR}:5000\"]\n", hosts.config());
    let mut node = TestNode::builder().no_image().config(&config).start().await;
    add_far_address(&node.net);
    let mut registry = Debian::start(&node.net, &format!("{FAR}:5000"));
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let open = Socks::start(&node.net, None);
    let closed = Socks::start(&node.net, Some(("user", "proxy-word")));
    assert!(node.terminate_daemon().await.success());
    node.set_env("HTTP_PROXY", &format!("socks5://{}", open.host()));
    let https = format!("socks5h://user:proxy-word@{}", closed.host());
    node.set_env("HTTPS_PROXY", &https);
    node.start_daemon(None).await;
    let pull = async |node: &TestNode| {
        let pulled = node.cri.pull(&name, None).await;
        assert_eq!(pulled.expect("an image"), made.id());
        remove_all(node).await;
    };
    pull(&node).await;
    assert!(!open.seen().is_empty());
    assert!(open.seen().iter().all(|to| *to == format!("{FAR}:5000")));

    let ca = registry.with_tls(&node.net, FAR);
    let folder = format!("{FAR}_5000_");
    let server = format!(
        "server = \"https://{FAR}:5000\"\nca = \"{}\"\n",
        ca.display()
    );
    hosts.write(&folder, &server);
    pull(&node).await;
    assert!(!closed.seen().is_empty());
    let wrong = format!("socks5://user:wrong-word@{}", closed.host());
    hosts.write(&folder, &format!("{server}proxy = \"{wrong}\"\n"));
    let part = format!(
        "connect: proxy {}: SOCKS error: credentials not accepted",
        closed.host()
    );
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);

    // A proxy that is spoken to over TLS, whose certificate is by the registry's authority.
    let dir = ca.parent().expect("a folder");
    let secure = Proxy::start_tls(&node.net, FAR, dir);
    hosts.write(
        &folder,
        &format!("{server}proxy = \"https://{}\"\n", secure.host()),
    );
    pull(&node).await;
    let tunnel = format!("CONNECT {FAR}:5000 HTTP/1.1");
    let seen = secure.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|line| *line == tunnel),
        "{seen:?}"
    );
    // One whose certificate nobody vouches for.
    let other = tempfile::tempdir().unwrap();
    carpel_integration::certificates::make(other.path(), FAR);
    let stranger = Proxy::start_tls(&node.net, FAR, other.path());
    hosts.write(
        &folder,
        &format!("{server}proxy = \"https://{}\"\n", stranger.host()),
    );
    let part = format!(
        "connect: proxy {}: invalid peer certificate",
        stranger.host()
    );
    refused(node.cri.pull(&name, None).await, Code::Unknown, &part);
    assert!(stranger.seen().is_empty());
    for secret in ["proxy-word", "wrong-word"] {
        assert!(
            !node.daemon_log().contains(secret),
            "{secret} is in the log"
        );
    }
    node.finish().await;
}
