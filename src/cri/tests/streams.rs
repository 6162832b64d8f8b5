//! Exec, attach and port-forward: URLs for what is there and runs.

use std::sync::Arc;

use carpel_api::cri;
use tonic::Code;

use super::fake::{self, Fake};
use crate::cri::domain::ContainerState;

fn refused<T: std::fmt::Debug>(
    result: Result<tonic::Response<T>, tonic::Status>,
) -> (Code, String) {
    let status = result.expect_err("must be refused");
    (status.code(), status.message().to_owned())
}

fn exec(container: &str) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: container.into(),
        cmd: vec!["ls".into()],
        stdout: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn streams_are_for_what_runs() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
    let id = fake::create(&mut client, &sandbox, fake::container_config("web")).await;
    let attach = cri::AttachRequest {
        container_id: id.clone(),
        stdin: true,
        ..Default::default()
    };
    let stopped = (
        Code::FailedPrecondition,
        format!("container {id} is not running"),
    );
    assert_eq!(refused(client.exec(exec(&id)).await), stopped);
    assert_eq!(refused(client.attach(attach.clone()).await), stopped);
    let unknown = (Code::NotFound, "container none not found".into());
    assert_eq!(refused(client.exec(exec("none")).await), unknown);
    let nothing = cri::ExecRequest {
        stdout: false,
        ..exec(&id)
    };
    assert_eq!(refused(client.exec(nothing).await).0, Code::InvalidArgument);

    fake.change_container(|detail| detail.view.state = ContainerState::Running { started_at: 1 });
    let url = client.exec(exec(&id[..13])).await.unwrap().into_inner().url;
    assert_eq!(url, "http://127.0.0.1:1/x");
    client.attach(attach).await.unwrap();
    let calls = fake.calls();
    let [.., exec, attach] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert!(exec.starts_with("stream Exec") && exec.contains(&id) && exec.contains("[\"ls\"]"));
    assert!(attach.starts_with("stream Attach") && attach.contains("stdin: true"));
}

#[tokio::test]
async fn ports_are_of_pods_that_are_ready() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::runtime(&fake).await;
    let sandbox = fake::run(&mut client, fake::sandbox_config("pod")).await;
    let request = |sandbox: &str, port: &[i32]| cri::PortForwardRequest {
        pod_sandbox_id: sandbox.into(),
        port: port.to_vec(),
    };
    client.port_forward(request(&sandbox, &[80])).await.unwrap();
    client.port_forward(request(&sandbox, &[])).await.unwrap();
    assert_eq!(
        refused(client.port_forward(request(&sandbox, &[0])).await).0,
        Code::InvalidArgument
    );
    assert_eq!(
        refused(client.port_forward(request("none", &[80])).await),
        (Code::NotFound, "sandbox none not found".into())
    );
    fake.sandboxes.lock().unwrap()[0].view.ready = false;
    assert_eq!(
        refused(client.port_forward(request(&sandbox, &[80])).await),
        (
            Code::FailedPrecondition,
            format!("sandbox {sandbox} is not ready")
        )
    );
}
