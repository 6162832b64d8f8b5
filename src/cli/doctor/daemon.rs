//! The daemon: its programs, its folders, its socket, and whether it answers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use carpel_api::cri::{StatusRequest, VersionRequest};
use nix::sys::socket::{getsockopt, sockopt};

use super::super::client::Connection;
use super::super::df::Space;
use super::super::units::bytes;
use super::{Check, fail, ok, warn};
use crate::config::{Config, Endpoint, Layer};
use crate::daemon::STATE_DIR;

/// Room for a few images: with less of it pulls fail.
const LITTLE: u64 = 1 << 30;
/// Part of a file system's size or inodes, in percent, below which a kubelet evicts pods.
const NARROW: u64 = 10;

pub async fn checks(config: &Config, connection: &Connection) -> Vec<Check> {
    let mut checks = vec![match config.libexec.find_supervisor() {
        Ok(path) => ok("supervisor", path.display().to_string()),
        Err(error) => fail(
            "supervisor",
            error.to_string(),
            "no pod starts without it: install carpel as a whole (make install)",
        ),
    }];
    for (name, dir) in [
        ("root folder", &config.root),
        ("state folder", &config.state),
    ] {
        checks.push(private(name, dir));
    }
    checks.push(space(&config.root));
    checks.extend(daemon(connection).await);
    checks
}

/// What the daemon that listens says it runs with; `None` if none does, or if it is no carpel of this age.
pub async fn configuration(connection: &Connection) -> Option<Layer> {
    let client = connection.connect().await.ok()?;
    let answer = client.status(StatusRequest { verbose: true }).await.ok()?;
    let mut config: serde_json::Value = serde_json::from_str(answer.info.get("config")?).ok()?;
    // What others know the root by is no key of the configuration.
    config.as_object_mut()?.remove(STATE_DIR);
    serde_json::from_value(config).ok()
}

/// A folder whose content is root's alone.
fn private(name: &'static str, dir: &Path) -> Check {
    let shown = dir.display();
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return ok(name, format!("{shown}: not there yet, the daemon makes it"));
        }
        Err(error) => {
            return fail(
                name,
                format!("{shown}: {error}"),
                "look at the folders above it",
            );
        }
    };
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_dir() {
        return fail(
            name,
            format!("{shown}: no folder"),
            "take away what is in the way",
        );
    }
    if metadata.uid() != 0 || mode & 0o077 != 0 {
        let found = format!("{shown}: owner {}, mode {mode:04o}", metadata.uid());
        let advice = format!("close it to others: chown root {shown}; chmod 0700 {shown}");
        return fail(name, found, advice);
    }
    ok(name, format!("{shown}, mode {mode:04o}"))
}

fn space(root: &Path) -> Check {
    let name = "disk space";
    let dir = root
        .ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"));
    let Some(space) = Space::of(dir) else {
        return warn(
            name,
            format!("{}: not known", dir.display()),
            "look with df",
        );
    };
    let found = format!(
        "{} of {} free on {}",
        bytes(space.free),
        bytes(space.size),
        dir.display()
    );
    let narrow =
        |free: u64, of: u64| of > 0 && u128::from(free) * 100 < u128::from(of) * u128::from(NARROW);
    let advice =
        "remove images and containers (`carpel df`, `carpel image rm`), or enlarge the disk";
    if space.free < LITTLE {
        return fail(name, found, advice);
    }
    if narrow(space.inodes_free, space.inodes) {
        let found = format!(
            "{} of {} inodes free on {}",
            space.inodes_free,
            space.inodes,
            dir.display()
        );
        return warn(name, found, advice);
    }
    match narrow(space.free, space.size) {
        true => warn(name, found, advice),
        false => ok(name, found),
    }
}

/// Whether a daemon listens, who it is, and whether it is ready.
async fn daemon(connection: &Connection) -> Vec<Check> {
    let endpoint = connection.endpoint();
    let client = match connection.connect().await {
        Ok(client) => client,
        Err(error) => {
            let advice = "start the daemon: systemctl start carpel, or carpel serve";
            return vec![warn("daemon", error.to_string(), advice)];
        }
    };
    let mut checks = vec![socket(&endpoint)];
    match client.version(VersionRequest::default()).await {
        Ok(version) => {
            let (name, number) = (version.runtime_name, version.runtime_version);
            let own = env!("CARGO_PKG_VERSION");
            let found = format!("{name} {number} answers at {endpoint}{}", owner(&endpoint));
            checks.push(match name == "carpel" && number != own {
                true => warn(
                    "daemon",
                    found,
                    format!("this command is {own}: restart the daemon, pods do not notice"),
                ),
                false => ok("daemon", found),
            });
        }
        Err(error) => {
            let advice = "look at its log: journalctl -u carpel";
            checks.push(fail("daemon", error.to_string(), advice));
            return checks;
        }
    }
    if let Ok(answer) = client.status(StatusRequest { verbose: false }).await {
        let conditions = answer.status.unwrap_or_default().conditions;
        for condition in conditions.iter().filter(|condition| !condition.status) {
            let found = format!("{}: {}", condition.reason, condition.message);
            let name = if condition.r#type == "NetworkReady" {
                "network ready"
            } else {
                "runtime ready"
            };
            checks.push(fail(
                name,
                found,
                "pods are not started before this is put right",
            ));
        }
    }
    checks
}

/// The socket's owner and mode: whoever may write to it is root on this machine.
fn socket(endpoint: &Endpoint) -> Check {
    let name = "socket";
    let Ok(metadata) = fs::metadata(endpoint.path()) else {
        return warn(name, format!("{endpoint} has gone"), "try once more");
    };
    let mode = metadata.mode() & 0o777;
    let found = format!("{endpoint}, owner {}, mode {mode:04o}", metadata.uid());
    match metadata.uid() == 0 && mode & 0o007 == 0 {
        true => ok(name, found),
        false => fail(
            name,
            found,
            format!(
                "anybody who can use it is root here: chmod 0600 {}",
                endpoint.path().display()
            ),
        ),
    }
}

/// Who listens, if it is somebody of this machine.
pub fn pid(endpoint: &Endpoint) -> Option<i32> {
    let connected = std::os::unix::net::UnixStream::connect(endpoint.path());
    let peer = getsockopt(&connected.ok()?, sockopt::PeerCredentials).ok()?;
    Some(peer.pid()).filter(|pid| *pid > 0)
}

/// ", pid 1 (name)" of who listens.
fn owner(endpoint: &Endpoint) -> String {
    let Some(pid) = pid(endpoint) else {
        return String::new();
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!(", pid {pid} ({})", name.trim_end())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_folder_that_others_can_enter_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("root");
        assert_eq!(private("root folder", &sub).verdict, Verdict::Ok);
        fs::create_dir(&sub).unwrap();
        fs::set_permissions(&sub, fs::Permissions::from_mode(0o755)).unwrap();
        let check = private("root folder", &sub);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("mode 0755"), "{}", check.found);
        assert!(check.advice.contains("chmod 0700"));
        fs::set_permissions(&sub, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(private("root folder", &sub).verdict, Verdict::Ok);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(private("root folder", &file).verdict, Verdict::Fail);
    }
}
