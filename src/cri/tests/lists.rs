//! Lists, statuses and their filters.

use std::sync::Arc;

use carpel_api::cri;

use super::fake::{self, Fake};
use crate::cri::domain::ContainerState;

#[tokio::test]
async fn a_sandbox_comes_back_as_it_was_sent() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let options = cri::NamespaceOption {
        pid: cri::NamespaceMode::Container.into(),
        userns_options: Some(cri::UserNamespace {
            mode: cri::NamespaceMode::Node.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = cri::PodSandboxConfig {
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..fake::sandbox_config("pod")
    };
    let id = fake::run(&mut client, config.clone()).await;
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id[..8].into(),
        verbose: true,
    };
    let response = client
        .pod_sandbox_status(request)
        .await
        .expect("it is there")
        .into_inner();
    let status = response.status.expect("a status");
    assert_eq!((status.id, status.created_at), (id.clone(), 7));
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(
        (status.labels, status.annotations),
        (config.labels, config.annotations)
    );
    let namespaces = status.linux.and_then(|linux| linux.namespaces);
    assert_eq!(
        namespaces.and_then(|namespaces| namespaces.options),
        Some(options)
    );
    let network = status.network.expect("a network");
    assert_eq!(network.ip, "10.1.0.2");
    assert_eq!(network.additional_ips[0].ip, "fd00::2");
    assert!(response.timestamp > 0);
    let info: serde_json::Value = serde_json::from_str(&response.info["info"]).expect("JSON");
    assert_eq!(info["pid"], 42);
    assert_eq!(info["timeline"][0]["name"], "network");
}

#[tokio::test]
async fn a_container_comes_back_as_it_was_sent() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
    let config = fake::container_config("web");
    let id = fake::create(&mut client, &sandbox, config.clone()).await;
    fake.change_container(|detail| {
        detail.view.state = ContainerState::Exited {
            started_at: 9,
            finished_at: 10,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: "out of memory".into(),
        };
    });
    let request = cri::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let response = client
        .container_status(request)
        .await
        .expect("it is there")
        .into_inner();
    let info: serde_json::Value = serde_json::from_str(&response.info["info"]).expect("JSON");
    assert_eq!(
        (&info["pid"], &info["sandboxId"]),
        (&43.into(), &sandbox.clone().into())
    );
    assert!(info["runtimeSpec"].is_object());
    let status = response.status.expect("a status");
    assert_eq!(status.id, id);
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert_eq!(
        (status.created_at, status.started_at, status.finished_at),
        (8, 9, 10)
    );
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert_eq!(status.message, "out of memory");
    assert_eq!(
        status.image.as_ref().map(|image| image.image.as_str()),
        Some("busybox")
    );
    assert_eq!(
        (status.image_id.as_str(), status.image_ref.as_str()),
        ("sha256:1234", "busybox@sha256:5678")
    );
    assert_eq!(status.mounts, config.mounts);
    assert_eq!(
        status.resources.and_then(|all| all.linux),
        config.linux.and_then(|linux| linux.resources)
    );
    assert_eq!(status.log_path, "/var/log/pods/x/web/0.log");
    let user = status.user.and_then(|user| user.linux).expect("a user");
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (1000, 1001, vec![1001, 5])
    );
    assert_eq!(status.stop_signal, cri::Signal::Sigusr1 as i32);
}

#[tokio::test]
async fn filters_narrow_sandboxes() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let one = fake::run(&mut client, fake::sandbox_config("one")).await;
    let two = fake::run(&mut client, fake::sandbox_config("two")).await;
    fake.sandboxes.lock().expect("no test panics in here")[1]
        .view
        .ready = false;
    let not_ready = cri::PodSandboxStateValue {
        state: cri::PodSandboxState::SandboxNotready.into(),
    };
    let label = |app: &str| [("app".to_owned(), app.to_owned())].into();
    for (filter, expected) in [
        (cri::PodSandboxFilter::default(), vec![&one, &two]),
        (
            cri::PodSandboxFilter {
                id: two.clone(),
                ..Default::default()
            },
            vec![&two],
        ),
        (
            cri::PodSandboxFilter {
                id: one[..4].into(),
                ..Default::default()
            },
            vec![&one, &two],
        ),
        (
            cri::PodSandboxFilter {
                state: Some(not_ready),
                ..Default::default()
            },
            vec![&two],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: label("one"),
                ..Default::default()
            },
            vec![&one],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: label("one"),
                state: Some(not_ready),
                ..Default::default()
            },
            vec![],
        ),
    ] {
        let request = cri::ListPodSandboxRequest {
            filter: Some(filter.clone()),
        };
        let items = client
            .list_pod_sandbox(request)
            .await
            .expect("a good filter")
            .into_inner()
            .items;
        let ids: Vec<&String> = items.iter().map(|item| &item.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn filters_narrow_containers() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let one = fake::run(&mut client, fake::sandbox_config("one")).await;
    let two = fake::run(&mut client, fake::sandbox_config("two")).await;
    let web = fake::create(&mut client, &one, fake::container_config("web")).await;
    let sql = fake::create(&mut client, &two, fake::container_config("sql")).await;
    fake.change_container(|detail| detail.view.state = ContainerState::Running { started_at: 9 });
    let running = cri::ContainerStateValue {
        state: cri::ContainerState::ContainerRunning.into(),
    };
    for (filter, expected) in [
        (cri::ContainerFilter::default(), vec![&web, &sql]),
        (
            cri::ContainerFilter {
                id: web.clone(),
                ..Default::default()
            },
            vec![&web],
        ),
        (
            cri::ContainerFilter {
                pod_sandbox_id: two.clone(),
                ..Default::default()
            },
            vec![&sql],
        ),
        (
            cri::ContainerFilter {
                state: Some(running),
                ..Default::default()
            },
            vec![&sql],
        ),
        (
            cri::ContainerFilter {
                label_selector: [("app".into(), "web".into())].into(),
                ..Default::default()
            },
            vec![&web],
        ),
        (
            cri::ContainerFilter {
                id: web.clone(),
                pod_sandbox_id: two.clone(),
                ..Default::default()
            },
            vec![],
        ),
    ] {
        let request = cri::ListContainersRequest {
            filter: Some(filter.clone()),
        };
        let items = client
            .list_containers(request)
            .await
            .expect("a good filter")
            .into_inner()
            .containers;
        let ids: Vec<&String> = items.iter().map(|item| &item.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn images_show_their_user() {
    let fake = Arc::new(Fake {
        images: vec![
            fake::image("sha256:a", "1000:5"),
            fake::image("sha256:b", "bob:staff"),
            fake::image("sha256:c", ""),
        ],
        ..Fake::default()
    });
    let mut client = fake::images(&fake).await;
    let listed = client
        .list_images(cri::ListImagesRequest::default())
        .await
        .expect("a list")
        .into_inner()
        .images;
    let users: Vec<_> = listed
        .iter()
        .map(|image| (image.uid.map(|uid| uid.value), image.username.as_str()))
        .collect();
    assert_eq!(users, [(Some(1000), ""), (None, "bob"), (None, "")]);
    assert!(
        listed.iter().all(|image| image.size > 0),
        "a size of 0 is no image to the kubelet"
    );
    let spec = |image: &str| {
        Some(cri::ImageSpec {
            image: image.into(),
            ..Default::default()
        })
    };
    let filtered = cri::ListImagesRequest {
        filter: Some(cri::ImageFilter {
            image: spec("sha256:b"),
        }),
    };
    assert_eq!(
        client
            .list_images(filtered)
            .await
            .expect("a list")
            .into_inner()
            .images
            .len(),
        1
    );
    let absent = cri::ImageStatusRequest {
        image: spec("nosuch"),
        verbose: true,
    };
    assert_eq!(
        client
            .image_status(absent)
            .await
            .expect("no error")
            .into_inner(),
        cri::ImageStatusResponse::default()
    );
    let removal = cri::RemoveImageRequest {
        image: spec("nosuch"),
    };
    client
        .remove_image(removal)
        .await
        .expect("an absent image is removed");
    let usage = client
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await
        .expect("usage")
        .into_inner();
    let bytes = |of: &[cri::FilesystemUsage]| of[0].used_bytes.map(|bytes| bytes.value);
    assert_eq!(
        (
            bytes(&usage.image_filesystems),
            bytes(&usage.container_filesystems)
        ),
        (Some(10), Some(7))
    );
    assert_eq!(
        usage.image_filesystems[0]
            .fs_id
            .as_ref()
            .map(|id| id.mountpoint.as_str()),
        Some("/var/lib/carpel")
    );
}
