//! The command line used wrongly: each error says what to do, and nothing panics.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use carpel_integration::TestNode;
use carpel_integration::cli::{Said, carpel};

const NOWHERE: &str = "unix:///nonexistent/carpel.sock";

#[test]
fn without_a_daemon_every_command_says_so() {
    for args in [
        &["ps"][..],
        &["pods"],
        &["images"],
        &["pull", "localhost/x:1"],
        &["logs", "x"],
        &["stop", "x"],
        &["rm", "x"],
        &["inspect", "x"],
        &["stats"],
        &["events"],
        &["info"],
        &["df"],
        &["version"],
        &["image", "rm", "x"],
    ] {
        let said = Said::by(carpel(NOWHERE, args));
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        said.failed(1, "carpel serve");
    }
    for args in [&["run", "x"][..], &["exec", "x", "y"]] {
        Said::by(carpel(NOWHERE, args)).failed(125, "--endpoint");
    }
    assert!(
        Said::by(carpel(NOWHERE, &["version", "--client"]))
            .ok()
            .contains("carpel")
    );
    // The version that is known is told even so.
    assert!(
        Said::by(carpel(NOWHERE, &["version"]))
            .stdout
            .starts_with("client:")
    );
}

#[test]
fn a_socket_that_is_no_runtimes_is_no_reason_to_hang() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let endpoint = format!("unix://{}", path.display());
    let said = Said::by(carpel(&endpoint, &["ps"]));
    server.join().unwrap();
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains(&endpoint), "{said:?}");
}

#[test]
fn wrong_flags_are_wrong_usage() {
    for args in [
        &["ps", "--nonsense"][..],
        &["ps", "-o", "yaml"],
        &["ps", "-s", "sleeping"],
        &["ps", "-l", "nonsense"],
        &["ps", "--endpoint", "tcp://1.2.3.4:5"],
        &["run"],
        &["run", "-p", "99999", "x"],
        &["run", "-v", "relative:/x", "x"],
        &["run", "-m", "much", "x"],
        &["run", "--cpus", "0", "x"],
        &["run", "-d", "--rm", "x"],
        &["exec", "x"],
        &["logs"],
        &["logs", "x", "--since", "yesterday"],
        &["logs", "x", "--tail", "-1"],
        &["stats", "--interval", "5"],
        &["completions", "tcsh"],
        &["nonsense"],
        &[],
    ] {
        let said = Said::by(carpel(NOWHERE, args));
        assert_eq!(said.status, 2, "{args:?}: {said:?}");
        assert!(!said.stderr.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn unknown_names_say_where_to_look() {
    let node = TestNode::start().await;
    let run = |args: &[&str]| Said::by(carpel(&node.endpoint(), args));
    for args in [
        &["logs", "nobody"][..],
        &["stats", "nobody"],
        &["stop", "nobody"],
        &["rm", "-f", "nobody"],
        &["events", "-p", "nobody"],
    ] {
        let said = run(args);
        assert!(said.stderr.contains("`carpel p"), "{said:?}");
        said.failed(1, "nobody");
    }
    run(&["exec", "nobody", "true"]).failed(125, "`carpel ps -a`");
    run(&["inspect", "nobody"]).failed(1, "`carpel images`");
    run(&["inspect", "-t", "pod", "nobody"]).failed(1, "`carpel pods`");
    run(&["image", "rm", "localhost/nobody:1"]).failed(1, "no image");
    run(&["ps", "-p", "nobody"]).failed(1, "no pod");
    // Names that might be mistaken for something else.
    for name in [
        "",
        "/",
        "..",
        "-",
        "a b",
        "%s\u{1b}[2J",
        &"x".repeat(10_000),
    ] {
        let said = run(&["logs", "--", name]);
        assert_eq!(said.status, 1, "{said:?}");
        assert!(
            !said.stderr.contains('\u{1b}') && !said.stderr.contains("panicked"),
            "{said:?}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    let node = TestNode::start().await;
    for args in [
        &["ps"][..],
        &["images", "-o", "json"],
        &["info"],
        &["config", "default"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = carpel(&node.endpoint(), args);
        let output = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{args:?}: {output:?}"
        );
    }
    node.finish().await;
}
