//! What a client asks of a node.

use super::*;

impl TestNode {
    /// Imports an archive. What the images take on disk is no leak.
    ///
    /// # Panics
    /// If it fails.
    pub async fn import(&mut self, archive: Vec<u8>) -> Vec<crate::api::carpel::ImportedImage> {
        let images = self.cri.import(archive).await.expect("import");
        let before = std::mem::take(&mut self.baseline);
        self.baseline = self.place().keep_files(before);
        images
    }

    /// A pod's configuration: the name is its hostname, too, and names its folder of logs.
    #[must_use]
    pub fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        request::pod(name, &self.log_dir(name).display().to_string())
    }

    /// The folder of a pod's logs.
    #[must_use]
    pub fn log_dir(&self, pod: &str) -> PathBuf {
        self.dir.path().join("logs").join(pod)
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_run_pod(&self, config: &v1::PodSandboxConfig) -> Result<Pod, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..v1::RunPodSandboxRequest::default()
        };
        let response = self.cri.runtime().run_pod_sandbox(request).await?;
        Ok(Pod {
            id: response.into_inner().pod_sandbox_id,
            config: config.clone(),
        })
    }

    /// RunPodSandbox.
    ///
    /// # Panics
    /// If it fails.
    pub async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Pod {
        self.try_run_pod(config).await.expect("RunPodSandbox")
    }

    /// CreateContainer; the container's id.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_create(
        &self,
        pod: &Pod,
        config: &v1::ContainerConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        let response = self.cri.runtime().create_container(request).await?;
        Ok(response.into_inner().container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_start(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.cri.runtime().start_container(request).await.map(drop)
    }

    /// CreateContainer and StartContainer; the container's id.
    ///
    /// # Panics
    /// If one of them fails.
    pub async fn start_container(&self, pod: &Pod, config: &v1::ContainerConfig) -> String {
        let id = self.try_create(pod, config).await.expect("CreateContainer");
        self.try_start(&id).await.expect("StartContainer");
        id
    }

    /// Runs a container to its end and returns its log and its status.
    ///
    /// # Panics
    /// If it does not start or end.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        config: &v1::ContainerConfig,
    ) -> (Log, v1::ContainerStatus) {
        let id = self.start_container(pod, config).await;
        let status = self.wait_exit(&id).await;
        (Log::read(Path::new(&status.log_path)), status)
    }

    /// What a shell script in a new container of a new pod prints, with its exit code asserted to be 0.
    ///
    /// # Panics
    /// If anything fails.
    pub async fn output_of(&self, pod: &Pod, config: &v1::ContainerConfig) -> String {
        let (log, status) = self.run_to_end(pod, config).await;
        assert_eq!(status.exit_code, 0, "{log:?}");
        log.stdout()
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response = self.cri.runtime().container_status(request).await?;
        response
            .into_inner()
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// ContainerStatus.
    ///
    /// # Panics
    /// If it fails.
    pub async fn status(&self, id: &str) -> v1::ContainerStatus {
        self.try_status(id).await.expect("ContainerStatus")
    }

    /// Waits until a container has exited and returns its status.
    ///
    /// # Panics
    /// If it does not exit soon.
    pub async fn wait_exit(&self, id: &str) -> v1::ContainerStatus {
        let deadline = Instant::now() + host::soon();
        loop {
            let status = self.status(id).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} does not exit: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// PodSandboxStatus, verbose.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_pod_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let response = self.cri.runtime().pod_sandbox_status(request).await?;
        Ok(response.into_inner())
    }

    /// UpdatePodSandboxResources, with the overhead and the resources.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_update_pod(
        &self,
        id: &str,
        overhead: Option<v1::LinuxContainerResources>,
        resources: Option<v1::LinuxContainerResources>,
    ) -> Result<(), Status> {
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead,
            resources,
        };
        let mut runtime = self.cri.runtime();
        runtime
            .update_pod_sandbox_resources(request)
            .await
            .map(drop)
    }

    /// What a verbose PodSandboxStatus adds.
    ///
    /// # Panics
    /// If it fails.
    pub async fn pod_info(&self, pod: &Pod) -> Value {
        let response = self.try_pod_status(&pod.id).await;
        let info = &response.expect("PodSandboxStatus").info["info"];
        serde_json::from_str(info).expect("JSON")
    }

    /// Pid of a pod's supervisor.
    ///
    /// # Panics
    /// If the status does not tell it.
    pub async fn supervisor_pid(&self, pod: &Pod) -> i32 {
        let pid = self.pod_info(pod).await["pid"].as_i64().expect("a pid");
        i32::try_from(pid).expect("a pid")
    }

    /// PodSandboxStatus.
    ///
    /// # Panics
    /// If it fails.
    pub async fn pod_status(&self, pod: &Pod) -> v1::PodSandboxStatus {
        let response = self
            .try_pod_status(&pod.id)
            .await
            .expect("PodSandboxStatus");
        response.status.expect("a status")
    }

    /// The pod's address.
    ///
    /// # Panics
    /// If it has none.
    pub async fn pod_ip(&self, pod: &Pod) -> IpAddr {
        let network = self.pod_status(pod).await.network.expect("a network");
        network.ip.parse().expect("an address")
    }

    /// ExecSync with a timeout in seconds (0: none).
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        let response = self.cri.runtime().exec_sync(request).await?;
        Ok(response.into_inner())
    }

    /// What a shell script prints in a running container, with its exit code asserted to be 0.
    ///
    /// # Panics
    /// If it fails.
    pub async fn exec(&self, id: &str, script: &str) -> String {
        let timeout = host::soon().as_secs().cast_signed();
        let response = self
            .try_exec(id, &["/bin/sh", "-c", script], timeout)
            .await
            .expect("ExecSync");
        assert_eq!(response.exit_code, 0, "{script}: {response:?}");
        String::from_utf8_lossy(&response.stdout).into_owned()
    }

    /// StopContainer with a grace period in seconds.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.cri.runtime().stop_container(request).await.map(drop)
    }

    /// UpdateContainerResources.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_update(
        &self,
        id: &str,
        limits: &v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits.clone()),
            ..Default::default()
        };
        let mut runtime = self.cri.runtime();
        runtime.update_container_resources(request).await.map(drop)
    }

    /// The limits that a container is said to have.
    ///
    /// # Panics
    /// If its status has none.
    pub async fn limits(&self, id: &str) -> v1::LinuxContainerResources {
        let resources = self.status(id).await.resources;
        resources.and_then(|all| all.linux).expect("limits")
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_remove(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.cri.runtime().remove_container(request).await.map(drop)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.cri.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn try_remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.cri
            .runtime()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// The node's Status, without the verbose part.
    ///
    /// # Panics
    /// If it fails.
    pub async fn runtime_status(&self) -> v1::StatusResponse {
        let mut runtime = self.cri.runtime();
        let response = runtime.status(v1::StatusRequest::default()).await;
        response.expect("status").into_inner()
    }

    /// A condition of the node's Status.
    pub async fn condition(&self, kind: &str) -> v1::RuntimeCondition {
        let status = self.runtime_status().await.status;
        let mut conditions = status.expect("conditions").conditions.into_iter();
        conditions
            .find(|condition| condition.r#type == kind)
            .expect(kind)
    }

    /// ListPodSandbox without a filter.
    ///
    /// # Panics
    /// If it fails.
    pub async fn pods(&self) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest::default();
        let response = self.cri.runtime().list_pod_sandbox(request).await;
        response.expect("ListPodSandbox").into_inner().items
    }

    /// ListContainers without a filter.
    ///
    /// # Panics
    /// If it fails.
    pub async fn containers(&self) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest::default();
        let response = self.cri.runtime().list_containers(request).await;
        response.expect("ListContainers").into_inner().containers
    }

    /// The log of a container by its name.
    #[must_use]
    pub fn log(&self, pod: &Pod, container: &str) -> Log {
        Log::read(&Path::new(&pod.config.log_directory).join(format!("{container}.log")))
    }

    /// Waits until a container's log satisfies `enough` and returns it.
    ///
    /// # Panics
    /// If it does not soon.
    pub async fn wait_log(&self, pod: &Pod, container: &str, enough: impl Fn(&Log) -> bool) -> Log {
        let deadline = Instant::now() + host::soon();
        loop {
            let log = self.log(pod, container);
            if enough(&log) {
                return log;
            }
            assert!(Instant::now() < deadline, "the log stays so: {log:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Pid of a container's first process on the host, found by its cgroup.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn container_pid(&self, id: &str) -> i32 {
        let cgroup = host::cgroup_dirs(&self.cgroup_parent)
            .iter()
            .flat_map(|dir| host::tree(dir))
            .find(|dir| {
                dir.file_name()
                    .is_some_and(|name| name.to_string_lossy().contains(id))
            })
            .unwrap_or_else(|| panic!("no cgroup of {id}"));
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("cgroup.procs");
        procs
            .lines()
            .filter_map(|line| line.parse().ok())
            // A child may have gone meanwhile.
            .filter_map(|pid| Some((host::start_time(pid)?, pid)))
            .min()
            .unwrap_or_else(|| panic!("no process in {}", cgroup.display()))
            .1
    }
}
