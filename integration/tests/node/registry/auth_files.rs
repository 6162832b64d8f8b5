//! Credentials that pulls do not bring: from files that docker, podman and the kubelet write.

use carpel_integration::TestNode;
use carpel_integration::image::Image;
use carpel_integration::registry::{Debian, PASSWORD};
use tonic::Code;

use super::{refused, remove_all, timeout};

#[tokio::test]
async fn the_files_have_what_a_pull_does_not_bring() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("auth.json");
    let config = format!(
        "[registry]\ntimeout_seconds = {}\nauth_files = [\"/nonexistent/auth.json\", \"{}\"]\n",
        timeout(),
        file.display()
    );
    let node = TestNode::builder().no_image().config(&config).start().await;
    let mut registry = Debian::start(&node.net, "127.0.0.1:5000");
    let made = Image::tiny("x");
    let (name, _) = registry.push(&node.net, "a/b", "1", &made);
    let (other, _) = registry.push(&node.net, "c/d", "1", &made);
    registry.with_password(&node.net);
    let denied = |pull| refused(pull, Code::PermissionDenied, "none were given");
    denied(node.cri.pull(&name, None).await);
    // The longest path counts: those of the whole registry are wrong, user:wrong.
    let text = format!(
        "{{\"auths\": {{\"127.0.0.1:5000\": {{\"auth\": \"dXNlcjp3cm9uZw==\"}}, \"127.0.0.1:5000/a\": {{\"username\": \"user\", \"password\": \"{PASSWORD}\"}}}}}}"
    );
    std::fs::write(&file, text).expect("a file");
    assert_eq!(
        node.cri.pull(&name, None).await.expect("an image"),
        made.id()
    );
    let pull = node.cri.pull(&other, None).await;
    refused(pull, Code::PermissionDenied, "refuses the credentials");
    remove_all(&node).await;
    // Of another port.
    std::fs::write(
        &file,
        "{\"auths\": {\"127.0.0.1\": {\"auth\": \"dXNlcjp3cm9uZw==\"}}}",
    )
    .expect("a file");
    denied(node.cri.pull(&name, None).await);
    for (text, part) in [
        (
            "{\"credHelpers\": {\"127.0.0.1:5000\": \"x\"}}",
            "auth.json: 127.0.0.1:5000: its credentials are with a credential helper",
        ),
        (
            "{\"auths\": {\"127.0.0.1:5000\": {}}, \"credsStore\": \"x\"}",
            "auth.json: 127.0.0.1:5000: its credentials are with a credential helper",
        ),
        (
            "{\"auths\": {\"127.0.0.1:5000\": {\"auth\": \"secret!\"}}}",
            "auth.json: 127.0.0.1:5000: its auth is not the base64 form",
        ),
        ("{\n\"auths\": secret}", "auth.json: line 2: no JSON"),
    ] {
        std::fs::write(&file, text).expect("a file");
        let status = node.cri.pull(&name, None).await.expect_err("refused");
        assert!(!status.message().contains("secret"), "{status}");
        refused::<String>(Err(status), Code::Internal, part);
    }
    assert!(!node.daemon_log().contains(PASSWORD));
    node.finish().await;
}
