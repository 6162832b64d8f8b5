//! Hundreds of pods at a time: no address, link, rule or namespace is lost or stays.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use carpel_integration::lan::Family;
use carpel_integration::v1::{PortMapping, Protocol};
use carpel_integration::{Pod, TestNode};
use futures::StreamExt;
use serde_json::json;

const PODS: u16 = 500;
const AT_A_TIME: usize = 16;
/// One pod of so many has a host port.
const WITH_PORT: u16 = 4;

async fn run(node: &TestNode, number: u16) -> (Pod, Vec<IpAddr>) {
    let mut config = node.pod(&format!("pod-{number}"));
    if number.is_multiple_of(WITH_PORT) {
        config.port_mappings = vec![PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: 80,
            host_port: i32::from(20_000 + number),
            host_ip: String::new(),
        }];
    }
    let pod = node.run_pod(&config).await;
    let network = node.pod_status(&pod).await.network.expect("a network");
    let more = network.additional_ips.iter().map(|more| &more.ip);
    let ips = std::iter::once(&network.ip).chain(more);
    let ips = ips.map(|ip| ip.parse().expect("an address"));
    (pod, ips.collect())
}

#[tokio::test]
async fn five_hundred_pods_come_and_go_sixteen_at_a_time() {
    let ipam = |node: &TestNode| {
        json!({
            "type": "host-local", "dataDir": node.ipam_dir(),
            "ranges": [[{ "subnet": Family::V4.pods() }], [{ "subnet": Family::V6.pods_of(1) }]],
        })
    };
    let node = TestNode::builder().no_image().no_network().start().await;
    let chain = json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [
        { "type": "bridge", "bridge": "carpel0", "isDefaultGateway": true, "ipMasq": true, "ipam": ipam(&node) },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]});
    node.write_conflist("10-test.conflist", &chain);
    while !node.condition("NetworkReady").await.status {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let runs = futures::stream::iter((0..PODS).map(|number| run(&node, number)));
    let pods: Vec<_> = runs.buffer_unordered(AT_A_TIME).collect().await;

    let mut ips = BTreeSet::new();
    for (pod, of) in &pods {
        let families: Vec<_> = of.iter().map(|ip| Family::of(*ip)).collect();
        assert_eq!(
            families,
            [Family::V4, Family::V6],
            "{}",
            pod.config.hostname
        );
        ips.extend(of);
    }
    let count = usize::from(PODS);
    assert_eq!(ips.len(), 2 * count, "every address is one pod's");
    let files = fs::read_dir(node.ipam_dir().join("test")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<IpAddr> = files.filter_map(|name| name.parse().ok()).collect();
    assert_eq!(files, ips, "and is kept as such");
    assert_eq!(fs::read_dir(node.netns_dir()).unwrap().count(), count);
    let links = node
        .net
        .output(&["ip", "-o", "link", "show", "master", "carpel0"]);
    assert_eq!(links.lines().count(), count);

    let stops = pods.iter().map(async |(pod, _)| {
        node.try_stop_pod(&pod.id).await.expect("StopPodSandbox");
        node.try_remove_pod(&pod.id)
            .await
            .expect("RemovePodSandbox");
    });
    let stops = futures::stream::iter(stops).buffer_unordered(AT_A_TIME);
    stops.collect::<Vec<()>>().await;
    assert!(node.pods().await.is_empty());
    node.finish().await;
}
