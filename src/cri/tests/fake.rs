//! A domain without a node, and a client of the services over it.

mod client;

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carpel_api::carpel::LayerState;
use carpel_api::cri;
use futures::Stream;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use prost::Message;

pub use client::*;

use crate::cgroup::{CpuUsage, MemoryUsage, Usage};
use crate::cri::domain::*;
use crate::cri::export::{Chunks, VerifySteps};
use crate::cri::import::{Archive, Progress};
use crate::cri::pull::Steps;
use crate::cri::update::{self, Merge};
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::image::pull::{LayerProgress, Phase, PullState, PulledManifest, Wanted};
use crate::image::reference::Reference;
use crate::image::{Artifact, Platforms, Unused};
use crate::network::Checked;
use crate::sandbox::PodLimits;
use crate::spec::config::{ContainerConfig, SandboxConfig};
use crate::stats::{
    ContainerAccounts, ContainerFigures, DiskTotal, DiskUsage, Figures, Interface, SandboxAccounts,
    SandboxFigures, Volume,
};
use crate::store::blobs::Digest;
use crate::streaming;
use crate::timeline::Span;

/// Remembers objects; what it is told to do it notes in `calls`.
#[derive(Default)]
pub struct Fake {
    pub calls: Mutex<Vec<String>>,
    pub sandboxes: Mutex<Vec<SandboxDetail>>,
    pub containers: Mutex<Vec<ContainerDetail>>,
    pub images: Vec<ImageView>,
    pub events: Mutex<Vec<Result<EventView, Missed>>>,
    pub network_down: bool,
    /// Of every container.
    pub accounts: ContainerAccounts,
}

impl Fake {
    fn note(&self, call: impl Into<String>) {
        self.calls
            .lock()
            .expect("no test panics in here")
            .push(call.into());
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no test panics in here").clone()
    }

    /// Changes the only container.
    pub fn change_container(&self, change: impl FnOnce(&mut ContainerDetail)) {
        let mut containers = self.containers.lock().expect("no test panics in here");
        change(containers.last_mut().expect("there is one"));
    }
}

impl Fake {
    fn image_use(&self, name: &str) -> Result<ImageUse, Error> {
        let image = self.image(name)?.ok_or_else(|| Error::NotFound {
            kind: "image",
            id: name.to_owned(),
        })?;
        Ok(ImageUse {
            image,
            unshared: 3,
            containers: Vec::new(),
        })
    }
}

/// Notes when the call that has it is dropped.
struct Left<'a>(&'a Fake);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.note("pull given up");
    }
}

fn find<T: Copy + ToString>(ids: impl Iterator<Item = T>, text: &str) -> Result<T, Lookup> {
    let found: Vec<T> = ids.filter(|id| id.to_string().starts_with(text)).collect();
    match found[..] {
        [] => Err(Lookup::NotFound),
        [id] => Ok(id),
        _ => Err(Lookup::Ambiguous),
    }
}

impl Domain for Fake {
    async fn run_sandbox(
        &self,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> Result<SandboxId, Error> {
        if config.hostname.as_deref() == Some("panic") {
            panic!("boom");
        }
        let mut sandboxes = self.sandboxes.lock().expect("no test panics in here");
        // Ids that share their beginning, so that it is ambiguous.
        let mut object = [0xab; 32];
        object[31] = u8::try_from(sandboxes.len()).expect("few sandboxes");
        let id = SandboxId::from(object);
        sandboxes.push(SandboxDetail {
            view: SandboxView {
                id,
                config: Arc::new(config),
                created_at: 7,
                ready: true,
                ips: ["10.1.0.2", "fd00::2"]
                    .map(|ip| ip.parse::<IpAddr>().expect("an address"))
                    .into(),
            },
            request,
            limits: PodLimits::default(),
        });
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.note(format!("stop sandbox {id}"));
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.note(format!("remove sandbox {id}"));
        Ok(())
    }

    async fn update_sandbox(&self, id: &SandboxId, change: PodLimits) -> Result<(), Error> {
        let mut sandboxes = self.sandboxes.lock().expect("no test panics in here");
        let detail = sandboxes.iter_mut().find(|detail| detail.view.id == *id);
        detail.expect("found before").limits = change;
        Ok(())
    }

    fn find_sandbox(&self, text: &str) -> Result<SandboxId, Lookup> {
        find(self.sandboxes().iter().map(|view| view.id), text)
    }

    fn sandbox(&self, id: &SandboxId) -> Option<SandboxDetail> {
        let sandboxes = self.sandboxes.lock().expect("no test panics in here");
        sandboxes
            .iter()
            .find(|detail| detail.view.id == *id)
            .cloned()
    }

    fn sandbox_info(&self, id: &SandboxId) -> Option<SandboxInfo> {
        self.sandbox(id).map(|_| SandboxInfo {
            pid: Some(42),
            netns: Some("/run/netns/x".into()),
            port_mappings: Vec::new(),
            cgroup: "/pods/x".into(),
            selinux: None,
            timeline: vec![Span {
                name: "network".into(),
                start_us: 1,
                duration_us: 2,
            }],
        })
    }

    fn sandboxes(&self) -> Vec<SandboxView> {
        let sandboxes = self.sandboxes.lock().expect("no test panics in here");
        sandboxes.iter().map(|detail| detail.view.clone()).collect()
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
        request: Vec<u8>,
    ) -> Result<ContainerId, Error> {
        let id = ContainerId::random();
        let mut containers = self.containers.lock().expect("no test panics in here");
        containers.push(ContainerDetail {
            view: ContainerView {
                id,
                sandbox: *sandbox,
                image_id: "sha256:1234".into(),
                image_ref: "busybox@sha256:5678".into(),
                created_at: 8,
                state: ContainerState::Created,
                config: Arc::new(config),
            },
            request,
            limits: None,
            log_path: Some("/var/log/pods/x/web/0.log".into()),
            uid: 1000,
            gid: 1001,
            groups: vec![1001, 5],
            stop_signal: 10,
            image_volumes: Vec::new(),
        });
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.note(format!("start {id}"));
        Err(Error::FailedPrecondition(format!(
            "container {id} has exited"
        )))
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.note(format!("stop {id} {grace:?}"));
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.note(format!("remove {id}"));
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        arguments: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        self.note(format!("exec {id} {arguments:?} {timeout:?}"));
        if timeout.is_some() {
            return Err(Error::DeadlineExceeded(
                "command took longer than 1s".into(),
            ));
        }
        Ok(ExecOutput {
            stdout: vec![b'x'; 16 << 20],
            stderr: b"err".to_vec(),
            exit_code: 3,
        })
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.note(format!("reopen {id}"));
        Ok(())
    }

    fn find_container(&self, text: &str) -> Result<ContainerId, Lookup> {
        find(self.containers().iter().map(|view| view.id), text)
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerDetail> {
        let containers = self.containers.lock().expect("no test panics in here");
        containers
            .iter()
            .find(|detail| detail.view.id == *id)
            .cloned()
    }

    fn container_info(&self, id: &ContainerId) -> Option<ContainerInfo> {
        self.container(id).map(|container| ContainerInfo {
            sandbox_id: container.view.sandbox.to_string(),
            pid: Some(43),
            dropped_log_lines: None,
            cgroup: "/pods/y".into(),
            stdin: true,
            timeline: Vec::new(),
            runtime_spec: Arc::new(Spec::default()),
        })
    }

    async fn update_container(&self, id: &ContainerId, merge: Merge) -> Result<(), Error> {
        let detail = self.container(id).expect("found before");
        let created = cri::ContainerConfig::decode(&*detail.request).expect("as it was sent");
        let asked = update::asked(detail.limits.as_deref(), &created)?;
        let (resources, asked) = merge(asked)?;
        self.note(format!("update {id} {:?}", resources.memory_limit));
        self.change_container(|container| container.limits = Some(asked));
        Ok(())
    }

    fn containers_of(&self, sandbox: &SandboxId) -> Vec<ContainerDetail> {
        let containers = self.containers.lock().expect("no test panics in here");
        let mine = |detail: &&ContainerDetail| detail.view.sandbox == *sandbox;
        containers.iter().filter(mine).cloned().collect()
    }

    async fn container_figures(
        &self,
        ids: Vec<ContainerId>,
    ) -> Result<Vec<(ContainerId, ContainerFigures)>, Error> {
        let container = ContainerFigures {
            figures: Some(figures()),
            disk: Some(DiskUsage {
                at: 9,
                bytes: 4096,
                inodes: 1,
            }),
        };
        Ok(ids.into_iter().map(|id| (id, container.clone())).collect())
    }

    async fn sandbox_figures(
        &self,
        ids: Vec<SandboxId>,
    ) -> Result<Vec<(SandboxId, SandboxFigures)>, Error> {
        let mut all = Vec::new();
        for id in ids {
            let containers = self.containers_of(&id);
            let ids = containers.iter().map(|detail| detail.view.id).collect();
            let sandbox = SandboxFigures {
                figures: figures(),
                network: None,
                containers: self.container_figures(ids).await?,
            };
            all.push((id, sandbox));
        }
        Ok(all)
    }

    async fn sandbox_accounts(
        &self,
        ids: Vec<SandboxId>,
    ) -> Result<Vec<(SandboxId, SandboxAccounts)>, Error> {
        let accounts = |id: SandboxId| {
            let containers = self.containers_of(&id).into_iter();
            let accounts = SandboxAccounts {
                cgroup: "/pods/x".into(),
                interfaces: vec![Interface {
                    name: "eth0".into(),
                    rx_packets: 5,
                    ..Interface::default()
                }],
                containers: containers
                    .map(|detail| (detail.view.id, self.accounts.clone()))
                    .collect(),
            };
            (id, accounts)
        };
        Ok(ids.into_iter().map(accounts).collect())
    }

    fn volume(&self) -> Option<Volume> {
        Some(Volume {
            device: "/dev/x1".into(),
            bytes: 1000,
            inodes: 100,
            free_inodes: 10,
        })
    }

    fn events(&self) -> impl Stream<Item = Result<EventView, Missed>> + Send + 'static {
        let events = self.events.lock().expect("no test panics in here");
        futures::stream::iter(events.clone())
    }

    fn containers(&self) -> Vec<ContainerView> {
        let containers = self.containers.lock().expect("no test panics in here");
        containers
            .iter()
            .map(|detail| detail.view.clone())
            .collect()
    }

    fn image(&self, name: &str) -> Result<Option<ImageView>, Error> {
        let has = |image: &&ImageView| image.id == name || image.tags.iter().any(|tag| tag == name);
        Ok(self.images.iter().find(has).cloned())
    }

    fn image_spec(&self, id: &str) -> Option<ImageConfiguration> {
        let known = self.images.iter().any(|image| image.id == id);
        known.then(ImageConfiguration::default)
    }

    fn artifact(&self, _: &str) -> Option<Artifact> {
        None
    }

    fn images(&self) -> Vec<ImageView> {
        self.images.clone()
    }

    async fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.note(format!("remove image {name}"));
        Ok(())
    }

    async fn image_usage(&self) -> Result<DiskUsages, Error> {
        let total = |bytes, inodes| DiskTotal { bytes, inodes };
        Ok(DiskUsages {
            images: total(10, 3),
            writable_layers: total(7, 2),
        })
    }

    async fn export(&self, images: Vec<String>, mut archive: Chunks) -> Result<(), Error> {
        self.note(format!("export {}", images.join(" ")));
        let write = move || {
            archive
                .write_all(&[7; 600_000])
                .and_then(|()| archive.flush())
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.expect("writing does not panic");
        written.map_err(|error| Error::wrap("write archive", error))
    }

    async fn verify(
        &self,
        images: Vec<String>,
        set_aside: bool,
        _: VerifySteps,
    ) -> Result<(), Error> {
        self.note(format!("verify {} {set_aside}", images.join(" ")));
        Ok(())
    }

    async fn tag_image(&self, name: &str, tags: Vec<Reference>) -> Result<ImageUse, Error> {
        let tags: Vec<_> = tags.iter().map(ToString::to_string).collect();
        self.note(format!("tag {name} {}", tags.join(" ")));
        self.image_use(name)
    }

    async fn pin_image(&self, name: &str, pinned: bool) -> Result<ImageUse, Error> {
        self.note(format!("pin {name} {pinned}"));
        self.image_use(name)
    }

    fn image_uses(&self) -> Vec<ImageUse> {
        let ids = self.images.iter().map(|image| image.id.as_str());
        ids.filter_map(|id| self.image_use(id).ok()).collect()
    }

    async fn prune_images(&self, which: Unused, dry_run: bool) -> Result<Pruned, Error> {
        self.note(format!("prune {which:?} {dry_run}"));
        Ok(Pruned {
            images: self.image_uses(),
            freed: 5,
        })
    }

    fn root(&self) -> &Path {
        Path::new("/var/lib/carpel")
    }

    /// The tag is what happens: "missing", "down", "denied"; else it is pulled, in one step.
    async fn pull(&self, wanted: Wanted, steps: Option<Steps>) -> Result<ImageView, Error> {
        let text = wanted.reference.to_string();
        match wanted.reference.tag().unwrap_or_default() {
            "missing" => return Err(Error::Absent(text)),
            "down" => return Err(Error::RegistryUnavailable(text)),
            "denied" => return Err(Error::Denied(text)),
            "slow" => {
                let _left = Left(self);
                return std::future::pending().await;
            }
            _ => {}
        }
        if let Some(mut steps) = steps {
            let layer = LayerProgress {
                digest: Digest::of(b""),
                phase: Phase::Unpacked,
                done: 5,
                total: 5,
            };
            let manifest = Some(PulledManifest {
                reference: text.clone(),
                digest: Digest::of(b""),
            });
            let layers = vec![layer];
            steps.tell(PullState { manifest, layers }).await;
        }
        Ok(ImageView {
            id: "sha256:ab".into(),
            tags: vec![text],
            digests: Vec::new(),
            size: 1,
            user: String::new(),
            pinned: false,
        })
    }

    /// The archive is the id of the image; "broken" is none.
    async fn import(
        &self,
        mut archive: Archive,
        platforms: Platforms,
        progress: Progress,
    ) -> Result<Vec<ImageView>, Error> {
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            archive.read_to_string(&mut text).map(|_| text)
        });
        let text = match read.await.expect("reading does not panic") {
            Ok(text) => text,
            Err(error) => {
                self.note(format!("import broke off: {error}"));
                return Err(Error::wrap("read archive", error));
            }
        };
        match text.as_str() {
            "broken" => return Err(Error::InvalidArgument("archive: not a tar file".into())),
            "panic" => panic!("boom"),
            _ => {}
        }
        self.note(format!("import for {platforms}"));
        progress.received(7);
        progress.layer("sha256:1".to_owned(), LayerState::Unpacked);
        Ok(vec![ImageView {
            id: text,
            ..image("sha256:1", "")
        }])
    }

    fn runtime_status(&self) -> Result<(), NotReady> {
        Ok(())
    }

    fn network_warnings(&self) -> Vec<String> {
        Vec::new()
    }

    fn network_status(&self) -> Result<(), NotReady> {
        match self.network_down {
            false => Ok(()),
            true => Err(NotReady {
                reason: "NoNetworkConfig".into(),
                message: "no network configuration in /etc/cni/net.d".into(),
            }),
        }
    }

    async fn check_network(&self, _: &SandboxId) -> Result<Option<Checked>, Error> {
        Ok(None)
    }

    fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        self.note(format!("pod cidr {cidr}"));
        Ok(())
    }

    fn stream_url(&self, request: streaming::Request) -> Result<String, Error> {
        self.note(format!("stream {request:?}"));
        Ok("http://127.0.0.1:1/x".into())
    }

    fn security_modules(&self) -> SecurityModules {
        SecurityModules {
            apparmor: true,
            selinux: SelinuxMode::Off,
        }
    }

    fn configuration(&self) -> serde_json::Value {
        serde_json::json!({ "stateDir": "/run/carpel" })
    }

    fn user_namespaces(&self) -> bool {
        true
    }
}

fn figures() -> Figures {
    Figures {
        at: 11,
        usage: Usage {
            cpu: Some(CpuUsage {
                total: 5,
                pressure: None,
            }),
            memory: Some(MemoryUsage {
                usage: 100,
                working_set: 60,
                limit: Some(1000),
                ..MemoryUsage::default()
            }),
            pids: Some(3),
            ..Usage::default()
        },
        nano_cores: Some(2),
    }
}

pub fn image(id: &str, user: &str) -> ImageView {
    ImageView {
        id: id.into(),
        tags: vec!["busybox:latest".into()],
        digests: vec!["busybox@sha256:5678".into()],
        size: 0,
        user: user.into(),
        pinned: false,
    }
}
