//! The runtimes that are measured when none is given: carpel from this tree with its own network plugins,
//! and the containerd at hand with Debian's, if there is one.
//!
//! They run in a network namespace of their own, on private folders, with the same image and the same
//! network configuration but for the names of bridge and range.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use carpel_integration::host::HostNet;
use carpel_integration::image::Image;
use carpel_integration::registry::Debian;
use serde_json::json;

/// What the containers run.
pub const IMAGE: &str = "carpel.test/busybox:latest";
/// What containerd keeps a pod's namespaces with.
const PAUSE: &str = "carpel.test/pause:latest";
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

/// Runtimes that run until this is dropped.
pub struct Runtimes {
    dir: tempfile::TempDir,
    net: HostNet,
    children: Vec<Child>,
    /// Name, endpoint and the beginnings of its processes' names.
    pub peers: Vec<(String, String, Vec<String>)>,
}

impl Runtimes {
    /// Starts them and gives them the image.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("carpel-bench-").tempdir()?;
        let mut runtimes = Self {
            dir,
            net: HostNet::new(),
            children: Vec::new(),
            peers: Vec::new(),
        };
        let images = runtimes.images()?;
        runtimes.carpel(120, &images)?;
        if installed("containerd") && installed("runc") {
            runtimes.containerd(121, &images)?;
        } else {
            eprintln!("containerd and runc are not installed: carpel is measured alone");
        }
        Ok(runtimes)
    }

    /// Where they serve.
    pub fn net(&self) -> &HostNet {
        &self.net
    }

    /// A registry on the loopback interface that both can reach, with these images under their tags.
    pub fn registry(&self, images: &[Image]) -> (Debian, Vec<String>) {
        let registry = Debian::start(&self.net, "127.0.0.1:5000");
        let push = |image: &Image| {
            let tag = image.tags.first().map_or("latest", String::as_str);
            registry.push(&self.net, "bench", tag, image).0
        };
        let names = images.iter().map(push).collect();
        (registry, names)
    }

    fn images(&self) -> Result<Vec<PathBuf>> {
        let sleep = json!(["/bin/busybox", "sleep", "1000000"]);
        let made = [
            ("image.tar", Image::busybox().tagged(IMAGE)),
            (
                "pause.tar",
                Image::busybox()
                    .tagged(PAUSE)
                    .set("Entrypoint", sleep)
                    .set("Cmd", json!([])),
            ),
        ];
        let write = |(name, image): (&str, Image)| {
            let path = self.dir.path().join(name);
            fs::write(&path, image.docker())?;
            Ok(path)
        };
        made.into_iter().map(write).collect()
    }

    fn carpel(&mut self, range: u8, images: &[PathBuf]) -> Result<()> {
        let dir = self.folder("carpel", range)?;
        let endpoint = format!("unix://{}/carpel.sock", dir.join("run").display());
        let carpel = carpel_integration::bin_dir().join("carpel");
        let mut serve = Command::new(&carpel);
        serve
            .arg("serve")
            .args([
                "--config",
                "/dev/null",
                "--listen",
                &endpoint,
                "--log-level",
                "warn",
            ])
            .args(["--cgroup-parent", &format!("/carpel-bench-{range}")])
            // Its own plugins: what a node without any plugin package runs.
            .args(["--cni-bin-dir", "/nonexistent"])
            .arg("--root")
            .arg(dir.join("root"))
            .arg("--state")
            .arg(dir.join("run"))
            .arg("--netns-dir")
            .arg(dir.join("netns"))
            .arg("--cni-conf-dir")
            .arg(dir.join("net.d"));
        self.spawn(serve, &dir.join("log"), &dir.join("run/carpel.sock"))?;
        let mut import = Command::new(&carpel);
        import
            .args(["image", "import", "--endpoint", &endpoint])
            .arg(&images[0]);
        finish(import)?;
        self.peers
            .push(("carpel".to_owned(), endpoint, vec!["carpel".to_owned()]));
        Ok(())
    }

    fn containerd(&mut self, range: u8, images: &[PathBuf]) -> Result<()> {
        let dir = self.folder("containerd", range)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, containerd_config(&dir, &socket))?;
        let mut serve = Command::new("containerd");
        serve.arg("--config").arg(&config);
        self.spawn(serve, &dir.join("log"), &socket)?;
        for image in images {
            let mut import = Command::new("ctr");
            import
                .arg("--address")
                .arg(&socket)
                .args(["-n", "k8s.io", "images", "import"])
                .arg(image);
            finish(import)?;
        }
        let endpoint = format!("unix://{}", socket.display());
        self.peers.push((
            "containerd".to_owned(),
            endpoint,
            vec!["containerd".to_owned()],
        ));
        Ok(())
    }

    /// A runtime's folder with its network configuration.
    fn folder(&self, name: &str, range: u8) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        for folder in ["net.d", "netns", "run"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let conflist = json!({
            "cniVersion": "1.0.0",
            "name": "bench",
            "plugins": [{
                "type": "bridge", "bridge": format!("cbench{range}"), "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join("ipam"),
                    "ranges": [[{ "subnet": format!("10.{range}.0.0/16") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        fs::write(dir.join("net.d/10-bench.conflist"), conflist.to_string())?;
        Ok(dir)
    }

    /// Starts a daemon and waits for its socket.
    fn spawn(&mut self, mut command: Command, log: &Path, socket: &Path) -> Result<()> {
        let file = File::create(log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = self.net.run(|| command.spawn());
        self.children
            .push(child.with_context(|| format!("{:?}", command.get_program()))?);
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if Instant::now() > deadline {
                bail!(
                    "{:?} does not serve: {}",
                    command.get_program(),
                    fs::read_to_string(log)?
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for range in [120, 121] {
            for dir in carpel_integration::host::cgroup_dirs(&format!("/carpel-bench-{range}")) {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

fn containerd_config(dir: &Path, socket: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{DEBIAN_PLUGINS}"
    conf_dir = "{dir}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"#,
        socket.display()
    )
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn finish(mut command: Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
