//! Debian's docker-registry.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::push;
use crate::certificates;
use crate::host::{HostNet, patience};
use crate::image::{Built, Image};

/// Who may pull from a registry with [`Debian::with_password`].
pub const USER: &str = "user";
pub const PASSWORD: &str = "secret-password";
/// The two, as htpasswd writes them.
const HTPASSWD: &str = "user:$2y$04$1OJlTnlXYIMEA410Y5m/q.Mon39LBCkaONpKWcEmRSkHsw6qq0hXO\n";

/// A running registry. Its content stays when it is started anew in another way.
#[derive(Debug)]
pub struct Debian {
    dir: TempDir,
    /// `HOST:PORT`.
    pub host: String,
    child: Child,
}

impl Debian {
    /// Starts one at `host` (`ADDRESS:PORT`) in `net`: http, and open to everyone.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(net: &HostNet, host: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("data")).expect("a folder");
        let child = serve(net, dir.path(), host, "", "");
        Self {
            dir,
            host: host.to_owned(),
            child,
        }
    }

    /// Pushes an image as `REPOSITORY:TAG`; returns its reference and its manifest's digest. The registry must be open.
    ///
    /// # Panics
    /// If the registry refuses it.
    pub fn push(
        &self,
        net: &HostNet,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> (String, String) {
        self.push_built(net, repository, tag, &image.build())
    }

    /// The same for something that need not be an image.
    pub fn push_built(
        &self,
        net: &HostNet,
        repository: &str,
        tag: &str,
        built: &Built,
    ) -> (String, String) {
        let digest = net.run(|| push::push(&self.host, repository, tag, built));
        (format!("{}/{repository}:{tag}", self.host), digest)
    }

    /// Pushes an index whose manifests are there.
    pub fn push_index(&self, net: &HostNet, repository: &str, tag: &str, index: &[u8]) -> String {
        net.run(|| push::push_index(&self.host, repository, tag, index))
    }

    /// Starts it anew, for [`USER`] only.
    pub fn with_password(&mut self, net: &HostNet) {
        let file = self.dir.path().join("htpasswd");
        std::fs::write(&file, HTPASSWD).expect("write");
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            file.display()
        );
        self.restart(net, &auth, "");
    }

    /// Starts it anew with https at an address, and returns the path of the certificate to trust.
    pub fn with_tls(&mut self, net: &HostNet, address: &str) -> std::path::PathBuf {
        let path = |name: &str| self.dir.path().join(name);
        certificates::make(self.dir.path(), address);
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            path("cert.pem").display(),
            path("key.pem").display()
        );
        let trusted = path("ca.pem");
        let port = self.host.rsplit(':').next().expect("a port");
        self.host = format!("{address}:{port}");
        self.restart(net, "", &tls);
        trusted
    }

    /// Starts it anew as [`Debian::with_tls`] does, for clients only that show a certificate of the same authority.
    /// Returns the folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub fn with_mutual_tls(&mut self, net: &HostNet, address: &str) -> std::path::PathBuf {
        let dir = self.with_tls(net, address);
        let dir = dir.parent().expect("a folder").to_owned();
        let tls = format!(
            "  tls:\n    certificate: {0}/cert.pem\n    key: {0}/key.pem\n    clientcas:\n      - {0}/ca.pem\n",
            dir.display()
        );
        self.restart(net, "", &tls);
        dir
    }

    fn restart(&mut self, net: &HostNet, auth: &str, tls: &str) {
        self.stop();
        self.child = serve(net, self.dir.path(), &self.host, auth, tls);
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(net: &HostNet, dir: &Path, host: &str, auth: &str, tls: &str) -> Child {
    let config = dir.join("config.yml");
    let data = dir.join("data");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n{auth}http:\n  addr: {host}\n{tls}",
        data.display()
    );
    std::fs::write(&config, text).expect("write");
    let log = std::fs::File::create(dir.join("log")).expect("a file");
    let mut command = Command::new("docker-registry");
    command
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .env("OTEL_TRACES_EXPORTER", "none");
    let child = net
        .run(|| command.spawn())
        .expect("Debian's docker-registry is installed");
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    while net.run(|| std::net::TcpStream::connect(host)).is_err() {
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "no registry: {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}
