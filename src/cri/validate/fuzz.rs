//! Whatever bytes arrive, a validator answers and does not panic; and what it lets through keeps the
//! promises of the checked types.

use std::path::{Component, Path};

use carpel_api::cri;
use proptest::prelude::*;
use prost::Message;

use super::tests::{container_request, sandbox_request};
use super::*;
use crate::spec::config::MountSource;

const PLATFORM: Platform = Platform {
    apparmor: true,
    recursive_read_only: true,
    unified: true,
};

/// A good request's bytes with some of them changed, so that most of it still parses.
fn spoilt(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    proptest::collection::vec((0..length, any::<u8>()), 0..6).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        bytes
    })
}

fn normal(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn run(bytes: &[u8]) {
    let Ok(request) = cri::RunPodSandboxRequest::decode(bytes) else {
        return;
    };
    let Ok(config) = run_pod_sandbox(request, PLATFORM) else {
        return;
    };
    for name in [&config.name.name, &config.name.namespace, &config.name.uid] {
        assert!(!name.is_empty() && !name.contains(['/', '\0']) && !name.contains(".."));
    }
    let directory = config.log_directory.as_deref().unwrap_or(Path::new("/"));
    assert!(directory.is_absolute() && normal(directory));
    assert!(
        config
            .sysctls
            .values()
            .all(|value| !value.contains(['+', '\n', '\0']))
    );
}

fn create(bytes: &[u8]) {
    let Ok(request) = cri::CreateContainerRequest::decode(bytes) else {
        return;
    };
    let Ok(created) = create_container(request, PLATFORM) else {
        return;
    };
    let config = created.config;
    if let Some(log) = &config.log_path {
        assert!(log.is_relative() && normal(log));
    }
    for mount in &config.mounts {
        assert!(normal(Path::new(&mount.container_path)) && mount.container_path != "/");
        match &mount.source {
            MountSource::Host(path) => assert!(path.is_absolute() && normal(path)),
            MountSource::Image { sub_path, .. } => {
                assert!(mount.readonly);
                let path = sub_path.as_deref().unwrap_or(Path::new("a"));
                assert!(path.is_relative() && normal(path));
            }
        }
    }
    assert!((-1000..=1000).contains(&config.resources.oom_score_adj));
    assert!(
        config
            .env
            .iter()
            .all(|(key, _)| !key.is_empty() && !key.contains(['=', '\0']))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        run(&bytes);
        create(&bytes);
        if let Ok(request) = cri::ExecSyncRequest::decode(&*bytes) {
            let _ = exec_sync(request);
        }
        if let Ok(request) = cri::StopContainerRequest::decode(&*bytes) {
            let _ = (container_id(&request.container_id), stop_timeout(request.timeout));
        }
        if let Ok(request) = cri::ListContainersRequest::decode(&*bytes) {
            let _ = container_query(request.filter);
        }
        if let Ok(request) = cri::ListPodSandboxRequest::decode(&*bytes) {
            let _ = sandbox_query(request.filter);
        }
        if let Ok(request) = cri::ListImagesRequest::decode(&*bytes) {
            let _ = image_filter(request.filter);
        }
        if let Ok(request) = cri::ImageStatusRequest::decode(&*bytes) {
            let _ = image_name(request.image);
        }
        if let Ok(request) = cri::ExecRequest::decode(&*bytes) {
            let _ = exec(request);
        }
        if let Ok(request) = cri::AttachRequest::decode(&*bytes) {
            let _ = attach(&request);
        }
        if let Ok(request) = cri::PortForwardRequest::decode(&*bytes) {
            let _ = port_forward(&request);
        }
        if let Ok(request) = cri::UpdateRuntimeConfigRequest::decode(&*bytes) {
            let _ = pod_cidr(request);
        }
    }

    #[test]
    fn almost_good_sandboxes_keep_their_promises(
        bytes in spoilt(sandbox_request().encode_to_vec())
    ) {
        run(&bytes);
    }

    #[test]
    fn almost_good_containers_keep_their_promises(
        bytes in spoilt(container_request().encode_to_vec())
    ) {
        create(&bytes);
    }

    #[test]
    fn any_text_in_any_path_is_refused_or_made_safe(text in "\\PC{0,40}|[./a\\x00]{0,12}") {
        let mut sandbox = sandbox_request();
        let config = sandbox.config.get_or_insert_default();
        config.log_directory.clone_from(&text);
        run(&sandbox.encode_to_vec());
        let mut container = container_request();
        let config = container.config.get_or_insert_default();
        config.log_path.clone_from(&text);
        create(&container.encode_to_vec());
        let config = container.config.get_or_insert_default();
        config.log_path = "a".into();
        config.mounts = vec![cri::Mount {
            container_path: text.clone(),
            host_path: text,
            ..Default::default()
        }];
        create(&container.encode_to_vec());
    }
}
