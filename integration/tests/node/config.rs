//! `carpel config` and what `carpel serve` makes of files and flags.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use carpel_integration::{TestNode, bin_dir};

fn carpel(args: &[&str]) -> Output {
    Command::new(bin_dir().join("carpel"))
        .args(args)
        .output()
        .expect("carpel")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with a configuration file and drop-ins; the file's path comes back, too.
fn files(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    fs::write(dir.path().join("config.toml"), "").unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let path = dir.path().join("config.toml").display().to_string();
    (dir, path)
}

#[test]
fn the_default_configuration_is_a_valid_file_that_changes_nothing() {
    let default = carpel(&["config", "default"]);
    assert!(default.status.success());
    let (_dir, path) = files(&[("config.toml", &stdout(&default))]);
    let (_dir, empty) = files(&[]);
    let show = |path: &str| stdout(&carpel(&["config", "show", "--config", path]));
    assert_eq!(show(&path), show(&empty));
    assert!(show(&empty).contains("root = \"/var/lib/carpel\""));
}

#[test]
fn flags_win_over_drop_ins_and_these_over_the_file() {
    let (_dir, path) = files(&[
        (
            "config.toml",
            "root = \"/a\"\nstate = \"/a\"\n[log]\nlevel = \"warn\"\nformat = \"json\"\n",
        ),
        (
            "conf.d/10-x.toml",
            "root = \"/b\"\n[log]\nlevel = \"debug\"\n",
        ),
    ]);
    let show = carpel(&[
        "config",
        "show",
        "--config",
        &path,
        "--root",
        "/c",
        "--cni-bin-dir",
        "/x",
        "--cni-bin-dir",
        "/y",
    ]);
    let text = stdout(&show);
    for line in [
        "root = \"/c\"",
        "state = \"/a\"",
        "level = \"debug\"",
        "format = \"json\"",
        "bin_dirs = [\"/x\", \"/y\"]",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[test]
fn an_error_names_the_file_and_the_line() {
    let (dir, path) = files(&[(
        "conf.d/50-bad.toml",
        "# a comment\n[network]\nbin_dir = \"/x\"\n",
    )]);
    let bad = dir.path().join("conf.d/50-bad.toml").display().to_string();
    for args in [
        ["config", "check", "--config", &path],
        ["config", "show", "--config", &path],
        ["serve", "--config", &path, "--log-level=info"],
    ] {
        let output = carpel(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        assert!(
            text.starts_with(&format!("carpel: {bad}:3: unknown field `bin_dir`")),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
    let (dir, path) = files(&[("config.toml", "workers = \"two\"\n")]);
    let text = stderr(&carpel(&["config", "check", "--config", &path]));
    assert!(
        text.contains(&format!("{}:1: ", dir.path().join("config.toml").display())),
        "{text}"
    );
    let text = stderr(&carpel(&[
        "config",
        "check",
        "--config",
        "/nonexistent.toml",
    ]));
    assert!(text.starts_with("carpel: /nonexistent.toml: "), "{text}");
}

#[test]
fn a_good_configuration_checks_out() {
    let (_dir, path) = files(&[("conf.d/a.toml", "[cgroup]\nparent = \"/x\"\n")]);
    let output = carpel(&["config", "check", "--config", &path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 2);
    assert!(text.lines().all(|line| line.ends_with(": ok")), "{text}");
}

#[test]
fn a_policy_with_an_error_is_named_with_the_place() {
    let (dir, path) = files(&[]);
    let policy = dir.path().join("policy.json");
    let text = format!("[image]\nsignature_policy = {policy:?}\n");
    fs::write(dir.path().join("config.toml"), text).unwrap();
    let state = dir.path().display();
    let state = [
        format!("--root={state}/root"),
        format!("--state={state}/state"),
    ];
    let listen = format!("--listen=unix://{}/socket", dir.path().display());
    for (policy_text, expected) in [
        (None, ": No such file or directory (os error 2)"),
        (
            Some("{\"default\": [}"),
            ": expected value at line 1 column 14",
        ),
        (
            Some(
                r#"{"default": [{"type": "reject"}], "transports": {"docker": {"quay.io": [{"type": "signedBy"}]}}}"#,
            ),
            ": transports.docker[\"quay.io\"][0].type: signedBy (signatures by GPG) is not supported",
        ),
    ] {
        if let Some(text) = policy_text {
            fs::write(&policy, text).unwrap();
        }
        let expected = format!(
            "carpel: image.signature_policy: {}{expected}",
            policy.display()
        );
        for args in [
            vec!["config", "check", "--config", &path],
            vec!["serve", "--config", &path, &state[0], &state[1], &listen],
        ] {
            let output = carpel(&args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            let text = stderr(&output);
            let last = text.lines().last().unwrap_or_default();
            assert!(last.starts_with(&expected), "{args:?}: {text}");
        }
    }
    fs::write(
        &policy,
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    let output = carpel(&["config", "check", "--config", &path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let show = carpel(&["config", "show", "--config", &path]);
    assert!(stdout(&show).contains(&format!("signature_policy = {policy:?}")));
}

#[test]
fn a_wrong_flag_is_refused_by_name() {
    for (args, part) in [
        (["serve", "--root", "relative"], "--root"),
        (["serve", "--listen", "tcp://127.0.0.1:1"], "--listen"),
        (["serve", "--log-level", "loud"], "--log-level"),
        (["serve", "--cgroup-parent", "../x"], "--cgroup-parent"),
    ] {
        let output = carpel(&args);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn the_daemon_runs_as_its_file_says() {
    let node = TestNode::builder()
        .no_image()
        .config("[log]\nformat = \"json\"\n")
        .start()
        .await;
    let log = node.daemon_log();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
    }
    assert!(log.contains("\"serving\""), "{log}");
    assert!(Path::new(&node.dir().join("root/lock")).exists());
    node.finish().await;
}
