//! The files that a pod's containers share: /etc/hosts, /etc/hostname, /etc/resolv.conf.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::selinux::{self, Label};
use crate::spec::config::{Dns, SandboxConfig, Scope};

/// Where they lie on the host, in the sandbox's folder.
pub fn paths(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    (
        dir.join("hosts"),
        dir.join("hostname"),
        dir.join("resolv.conf"),
    )
}

/// Writes them.
///
/// # Errors
/// As `write(2)`.
pub fn write(dir: &Path, config: &SandboxConfig, ips: &[IpAddr]) -> io::Result<()> {
    let (hosts, hostname, resolv_conf) = paths(dir);
    let name = match &config.hostname {
        Some(name) => name.clone(),
        None => node_hostname(),
    };
    let hosts_text = match config.network {
        Scope::Node => read_host("/etc/hosts")?,
        Scope::Pod => hosts_of(&name, ips),
    };
    put(&hosts, &hosts_text)?;
    put(&hostname, &format!("{name}\n"))?;
    let resolv_conf_text = match &config.dns {
        Some(dns) => resolv_conf_of(dns),
        None => read_host("/etc/resolv.conf")?,
    };
    put(&resolv_conf, &resolv_conf_text)
}

/// Gives them an SELinux label.
///
/// # Errors
/// As `setxattr(2)`.
pub fn label(dir: &Path, label: &Label) -> io::Result<()> {
    let (hosts, hostname, resolv_conf) = paths(dir);
    [hosts, hostname, resolv_conf]
        .iter()
        .try_for_each(|path| selinux::set_label(path, label))
}

/// The node's own host name.
pub fn node_hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Every user in the container reads these, whatever the daemon's umask.
fn put(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
}

fn read_host(path: &str) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

fn hosts_of(name: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{name}");
    }
    text
}

fn resolv_conf_of(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_the_pod_asked_for() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "search a.local b.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n";
        assert_eq!(resolv_conf_of(&dns), expected);
        assert_eq!(resolv_conf_of(&Dns::default()), "");
    }
}
