//! One pod's life, and many of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carpel_api::cri::image_service_client::ImageServiceClient;
use carpel_api::cri::runtime_service_client::RuntimeServiceClient;
use carpel_api::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, security_profile::ProfileType,
};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::usage::{self, Weight};

/// Every sample of each step, in the order in which they were taken.
#[derive(Default)]
pub struct Samples(pub BTreeMap<&'static str, Vec<Duration>>);

/// A runtime to measure.
pub struct Peer {
    pub name: String,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    image: String,
    handler: String,
    processes: Vec<String>,
    serial: Arc<AtomicU32>,
}

/// The largest answer that a kubelet takes.
const LARGEST: usize = 16 << 20;

/// A pod that runs.
struct Pod {
    sandbox: String,
    container: String,
}

/// A pod whose containers are made by whoever asked for it.
pub struct EmptyPod {
    sandbox: String,
    config: PodSandboxConfig,
}

impl Peer {
    pub async fn connect(
        name: &str,
        endpoint: &str,
        image: &str,
        handler: &str,
        processes: Vec<String>,
    ) -> Result<Self> {
        let path = endpoint
            .strip_prefix("unix://")
            .context("an endpoint begins with unix://")?
            .to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        });
        // The address is a placeholder: the connector knows the socket.
        let channel = Endpoint::from_static("http://[::1]")
            .connect_with_connector(connector)
            .await?;
        Ok(Self {
            name: name.to_owned(),
            client: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST),
            images: ImageServiceClient::new(channel),
            image: image.to_owned(),
            handler: handler.to_owned(),
            processes,
            serial: Arc::new(AtomicU32::new(std::process::id() << 12)),
        })
    }

    /// Takes `count` pods through their lives, `parallel` at a time. Returns how long that took.
    pub async fn series(
        &self,
        count: u32,
        parallel: u32,
        samples: &mut Samples,
    ) -> Result<Duration> {
        let start = Instant::now();
        let lives = self.spread(count, parallel, |peer| async move {
            let mut samples = Samples::default();
            let pod = peer.start(&mut samples).await?;
            peer.exec(&pod, &mut samples).await?;
            peer.end(&pod, &mut samples).await?;
            Ok(samples)
        });
        for life in lives.await? {
            for (step, mut times) in life.0 {
                samples.0.entry(step).or_default().append(&mut times);
            }
        }
        Ok(start.elapsed())
    }

    /// Pods started per second, `parallel` at a time, while they stay. They are removed afterwards.
    pub async fn pods_per_second(&self, count: u32, parallel: u32) -> Result<f64> {
        let start = Instant::now();
        let started = self.spread(count, parallel, |peer| async move {
            peer.start(&mut Samples::default()).await
        });
        let pods = started.await?;
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        self.end_all(&pods).await?;
        Ok(rate)
    }

    /// Does a piece of work `count` times, `parallel` at a time.
    async fn spread<T, F>(
        &self,
        count: u32,
        parallel: u32,
        work: impl Fn(Self) -> F + Copy + Send + 'static,
    ) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let left = Arc::new(AtomicU32::new(count));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..parallel {
            let (peer, left) = (self.clone(), Arc::clone(&left));
            workers.spawn(async move {
                let mut done = Vec::new();
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    done.push(work(peer.clone()).await?);
                }
                anyhow::Ok(done)
            });
        }
        let mut all = Vec::new();
        while let Some(done) = workers.join_next().await {
            all.extend(done??);
        }
        Ok(all)
    }

    /// Holds `count` idle pods and weighs what the runtime takes for them.
    pub async fn hold(&self, count: u32) -> Result<Weight> {
        let before = usage::read(&self.processes)?;
        let pods = self.start_all(count).await?;
        // Allocators and page caches settle.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let held = usage::read(&self.processes);
        self.end_all(&pods).await?;
        Ok(held?.since(&before, count))
    }

    /// Holds `count` idle pods, and tells how much of one processor the runtime takes meanwhile, in percent.
    pub async fn idle(&self, count: u32, time: Duration) -> Result<f64> {
        let pods = self.start_all(count).await?;
        // What the starts have left to do is done.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = usage::processor_time(&self.processes)?;
        tokio::time::sleep(time).await;
        let used = usage::processor_time(&self.processes)?.saturating_sub(before);
        self.end_all(&pods).await?;
        Ok(100.0 * used.as_secs_f64() / time.as_secs_f64())
    }

    /// Starts pods one after the other.
    async fn start_all(&self, count: u32) -> Result<Vec<Pod>> {
        self.spread(count, 1, |peer| async move {
            peer.start(&mut Samples::default()).await
        })
        .await
    }

    async fn end_all(&self, pods: &[Pod]) -> Result<()> {
        for pod in pods {
            self.end(pod, &mut Samples::default()).await?;
        }
        Ok(())
    }

    /// Runs `count` containers, `per_pod` in each pod.
    pub async fn fill(&self, count: u32, per_pod: u32) -> Result<Vec<EmptyPod>> {
        let mut pods = Vec::new();
        let mut left = count;
        while left > 0 {
            let pod = self.empty_pod(|_| {}).await?;
            for number in 0..left.min(per_pod) {
                let config = self.container_config(&format!("c{number}"));
                let id = self.create(&pod, config).await?;
                self.start_container(&id).await?;
            }
            left -= left.min(per_pod);
            pods.push(pod);
        }
        Ok(pods)
    }

    /// A pod without containers, changed by `adjust`.
    pub async fn empty_pod(&self, adjust: impl FnOnce(&mut PodSandboxConfig)) -> Result<EmptyPod> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut config = sandbox_config(serial);
        adjust(&mut config);
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let answer = self.runtime().run_pod_sandbox(run).await?;
        let sandbox = answer.into_inner().pod_sandbox_id;
        Ok(EmptyPod { sandbox, config })
    }

    pub async fn create(&self, pod: &EmptyPod, config: ContainerConfig) -> Result<String> {
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.runtime().create_container(create).await?;
        Ok(answer.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let start = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime().start_container(start).await?;
        Ok(())
    }

    /// Stops and removes a pod with its containers.
    pub async fn remove(&self, pod: &EmptyPod) -> Result<()> {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod.sandbox.clone(),
        };
        self.runtime().stop_pod_sandbox(stop).await?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: pod.sandbox.clone(),
        };
        self.runtime().remove_pod_sandbox(remove).await?;
        Ok(())
    }

    /// The configuration that all pods' containers have.
    pub fn container_config(&self, name: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            ..container_config(&self.image)
        }
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.client.clone()
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// The beginnings of the names of the runtime's processes.
    pub fn processes(&self) -> &[String] {
        &self.processes
    }

    async fn start(&self, samples: &mut Samples) -> Result<Pod> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        let config = sandbox_config(serial);
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let mut client = self.client.clone();
        let answer = timed(samples, "RunPodSandbox", client.run_pod_sandbox(run)).await?;
        let sandbox = answer.into_inner().pod_sandbox_id;
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container_config(&self.image)),
            sandbox_config: Some(config),
        };
        let answer = timed(samples, "CreateContainer", client.create_container(create)).await?;
        let container = answer.into_inner().container_id;
        let start = StartContainerRequest {
            container_id: container.clone(),
        };
        timed(samples, "StartContainer", client.start_container(start)).await?;
        samples.note("pod ready", begin.elapsed());
        Ok(Pod { sandbox, container })
    }

    async fn exec(&self, pod: &Pod, samples: &mut Samples) -> Result<()> {
        let exec = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: vec!["/bin/busybox".into(), "true".into()],
            timeout: 30,
        };
        let mut client = self.client.clone();
        let answer = timed(samples, "ExecSync", client.exec_sync(exec))
            .await?
            .into_inner();
        anyhow::ensure!(
            answer.exit_code == 0,
            "ExecSync: exit code {}",
            answer.exit_code
        );
        Ok(())
    }

    async fn end(&self, pod: &Pod, samples: &mut Samples) -> Result<()> {
        let mut client = self.client.clone();
        let begin = Instant::now();
        let stop = StopContainerRequest {
            container_id: pod.container.clone(),
            timeout: 0,
        };
        timed(samples, "StopContainer", client.stop_container(stop)).await?;
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod.sandbox.clone(),
        };
        timed(samples, "StopPodSandbox", client.stop_pod_sandbox(stop)).await?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: pod.sandbox.clone(),
        };
        timed(
            samples,
            "RemovePodSandbox",
            client.remove_pod_sandbox(remove),
        )
        .await?;
        samples.note("stop and remove", begin.elapsed());
        Ok(())
    }
}

impl EmptyPod {
    pub fn id(&self) -> &str {
        &self.sandbox
    }
}

impl Clone for Peer {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            client: self.client.clone(),
            images: self.images.clone(),
            image: self.image.clone(),
            handler: self.handler.clone(),
            processes: self.processes.clone(),
            serial: Arc::clone(&self.serial),
        }
    }
}

impl Samples {
    fn note(&mut self, step: &'static str, time: Duration) {
        self.0.entry(step).or_default().push(time);
    }
}

/// Takes the time of one call.
pub async fn timed<T>(
    samples: &mut Samples,
    step: &'static str,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T> {
    let begin = Instant::now();
    let answer = call
        .await
        .map_err(|status| anyhow::anyhow!("{step}: {}: {}", status.code(), status.message()))?;
    samples.note(step, begin.elapsed());
    Ok(answer)
}

fn sandbox_config(serial: u32) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: format!("bench-{serial}"),
            uid: format!("bench-uid-{serial}"),
            namespace: "bench".to_owned(),
            attempt: 0,
        }),
        hostname: format!("bench-{serial}"),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    }
}

fn container_config(image: &str) -> ContainerConfig {
    let runtime_default = SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..SecurityProfile::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "main".to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        }),
        command: vec!["/bin/busybox".into(), "sleep".into(), "100000".into()],
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_shares: 102,
                memory_limit_in_bytes: 64 << 20,
                ..LinuxContainerResources::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                seccomp: Some(runtime_default),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}
