//! The network chain: carpel's own plugins, Debian's, and what passes between the daemon and them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::node::bridge;
use carpel_integration::request::sleeper;
use carpel_integration::v1::{self, PodSandboxState, PortMapping, Protocol};
use carpel_integration::{Plugins, Pod, TestNode, container, host, sh};
use serde_json::{Value, json};

fn server(name: &str) -> v1::ContainerConfig {
    container(name, &["httpd", "-f", "-p", "8080", "-h", "/www"])
}

async fn network_ready(node: &TestNode) -> v1::RuntimeCondition {
    node.condition("NetworkReady").await
}

async fn wait_network_ready(node: &TestNode, ready: bool) {
    let deadline = Instant::now() + host::soon();
    while network_ready(node).await.status != ready {
        assert!(Instant::now() < deadline, "NetworkReady stays {}", !ready);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn two_pods_reach_each_other(plugins: Plugins) {
    let node = TestNode::builder().plugins(plugins).start().await;
    let (a, b) = (
        node.run_pod(&node.pod("a")).await,
        node.run_pod(&node.pod("b")).await,
    );
    node.start_container(&a, &server("server")).await;
    let client = node.start_container(&b, &sleeper("client")).await;
    let (ip, own) = (node.pod_ip(&a).await, node.pod_ip(&b).await);
    assert!(ip.to_string().starts_with("10.118.") && ip != own);
    let page = node
        .net
        .run(|| host::http_get(ip, 8080, "/"))
        .expect("the page over the pod's IP");
    assert_eq!(page, "hello from a pod\n");
    let fetch = format!("wget -qO- http://{ip}:8080/");
    assert_eq!(node.exec(&client, &fetch).await, "hello from a pod\n");
    let routes = node.exec(&client, "ip -o addr show eth0 | grep -o 'inet [0-9.]*/[0-9]*'; ip route; ip -o link show lo | grep -o 'LOOPBACK,UP'").await;
    let mut lines = routes.lines();
    assert_eq!(lines.next(), Some(format!("inet {own}/16").as_str()));
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("default via 10.118.0.1 dev eth0"),
        "{routes}"
    );
    assert_eq!(lines.last(), Some("LOOPBACK,UP"));
    let ours = fs::read_to_string(node.ipam_dir().join("test").join(ip.to_string()))
        .expect("host-local's file");
    assert!(ours.starts_with(&a.id), "{ours}");
    node.finish().await;
}

#[tokio::test]
async fn pods_and_the_host_reach_each_other_over_carpels_plugins() {
    two_pods_reach_each_other(Plugins::Carpel).await;
}

#[tokio::test]
async fn pods_and_the_host_reach_each_other_over_debians_plugins() {
    two_pods_reach_each_other(Plugins::Debian).await;
}

#[tokio::test]
async fn containers_talk_over_localhost() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &server("server")).await;
    let client = sh(
        "client",
        "until wget -qO- http://127.0.0.1:8080/; do usleep 10000; done",
    );
    assert_eq!(node.output_of(&pod, &client).await, "hello from a pod\n");
    node.finish().await;
}

#[tokio::test]
async fn the_two_host_locals_share_their_folder() {
    // A node that changes from Debian's plugins to carpel's, or back, gives no address twice.
    let ipam = tempfile::tempdir().unwrap();
    let mut chain = bridge(ipam.path(), &[]);
    // The two bridges keep their rules in different places, and neither knows the other's.
    chain["plugins"][0]["ipMasq"] = json!(false);
    let builder = TestNode::builder().plugins(Plugins::Debian);
    let mut node = builder.conflist(chain).start().await;
    let a = node.run_pod(&node.pod("a")).await;
    let first = node.pod_ip(&a).await;
    node.kill_daemon();
    node.set_plugins(Plugins::Carpel);
    node.start_daemon(None).await;
    let b = node.run_pod(&node.pod("b")).await;
    assert_ne!(node.pod_ip(&b).await, first);
    node.finish().await;
}

#[tokio::test]
async fn a_host_port_of_debians_portmap_leads_to_the_pod() {
    let ipam = tempfile::tempdir().unwrap();
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let chain = bridge(ipam.path(), &[portmap]);
    let node = TestNode::builder()
        .plugins(Plugins::Debian)
        .conflist(chain)
        .start()
        .await;
    let mut config = node.pod("one");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18_080,
        host_ip: String::new(),
    }];
    let pod = node.run_pod(&config).await;
    node.start_container(&pod, &server("server")).await;
    let gateway = "10.118.0.1".parse().unwrap();
    let page = node
        .net
        .run(|| host::http_get(gateway, 18_080, "/"))
        .expect("the page over the host port");
    assert_eq!(page, "hello from a pod\n");
    node.try_stop_pod(&pod.id).await.unwrap();
    let rules = node.net.output(&["iptables-save"]);
    assert!(!rules.contains("18080"), "{rules}");
    node.finish().await;
}

#[tokio::test]
async fn host_ports_that_nobody_opens_are_told() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.port_mappings = vec![PortMapping {
        container_port: 8080,
        host_port: 18_080,
        ..PortMapping::default()
    }];
    node.run_pod(&config).await;
    let other = node.run_pod(&node.pod("two")).await;
    let log = node.daemon_log();
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("capability portMappings"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(!told[0].contains(&other.id), "{told:?}");
    node.finish().await;
}

/// A plugin that writes down how it was called, and answers as the bridge would.
fn recording(dir: &Path, name: &str) -> String {
    format!(
        r#"input=$(cat)
[ "$CNI_COMMAND" = VERSION ] && {{ echo '{{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}}'; exit 0; }}
echo "{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS $CNI_PATH" >> {dir}/calls
echo "$input" > {dir}/{name}.$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"'$CNI_NETNS'"}}],"ips":[{{"address":"10.118.7.7/16","interface":0}}],"dns":{{}}}}'
exit 0"#,
        dir = dir.display()
    )
}

async fn node_with_recorder(chain: Value) -> TestNode {
    let node = TestNode::builder().conflist(chain).start().await;
    for name in ["first", "second"] {
        node.write_plugin(name, &recording(node.dir(), name));
    }
    node
}

fn recorded_chain() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "recorded",
        "plugins": [
            { "type": "first", "capabilities": { "portMappings": true }, "own": 1 },
            { "type": "second", "capabilities": { "bandwidth": true } },
        ],
    })
}

#[tokio::test]
async fn the_chain_is_run_as_the_cni_says() {
    let node = node_with_recorder(recorded_chain()).await;
    let mut config = node.pod("one");
    config.port_mappings = vec![PortMapping {
        container_port: 80,
        host_port: 8080,
        ..PortMapping::default()
    }];
    let pod = node.run_pod(&config).await;
    assert_eq!(node.pod_ip(&pod).await.to_string(), "10.118.7.7");
    node.try_stop_pod(&pod.id).await.unwrap();

    let calls = fs::read_to_string(node.dir().join("calls")).unwrap();
    let calls: Vec<Vec<&str>> = calls
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    let order: Vec<_> = calls.iter().map(|call| (call[0], call[1])).collect();
    assert_eq!(
        order,
        [
            ("first", "ADD"),
            ("second", "ADD"),
            ("second", "DEL"),
            ("first", "DEL")
        ]
    );
    for call in &calls {
        assert_eq!((call[2], call[3]), (pod.id.as_str(), "eth0"));
        assert!(
            Path::new(call[4]).starts_with(node.netns_dir()),
            "{}",
            call[4]
        );
        for part in [
            "IgnoreUnknown=1".to_owned(),
            "K8S_POD_NAMESPACE=default".to_owned(),
            "K8S_POD_NAME=one".to_owned(),
            format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
            "K8S_POD_UID=uid-of-one".to_owned(),
        ] {
            assert!(
                call[5].split(';').any(|arg| arg == part),
                "{part} in {}",
                call[5]
            );
        }
        assert!(
            call[6]
                .split(':')
                .any(|dir| Path::new(dir) == node.plugin_dir())
        );
    }
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(node.dir().join(name)).unwrap()).unwrap()
    };
    let first = read("first.ADD");
    assert_eq!(
        (&first["name"], &first["cniVersion"], &first["own"]),
        (&json!("recorded"), &json!("1.0.0"), &json!(1))
    );
    assert!(first.get("prevResult").is_none());
    let mapping = &first["runtimeConfig"]["portMappings"][0];
    assert_eq!(
        (
            &mapping["hostPort"],
            &mapping["containerPort"],
            &mapping["protocol"]
        ),
        (&json!(8080), &json!(80), &json!("tcp"))
    );
    let second = read("second.ADD");
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.118.7.7/16");
    assert!(second["runtimeConfig"].get("portMappings").is_none());
    assert_eq!(
        read("second.DEL")["prevResult"]["ips"][0]["address"],
        "10.118.7.7/16"
    );
    assert_eq!(
        read("first.DEL")["runtimeConfig"]["portMappings"][0]["hostPort"],
        8080
    );
    node.finish().await;
}

#[tokio::test]
async fn a_network_is_deleted_with_what_it_was_added_with() {
    // After a restart of the daemon, and with the configuration gone.
    let mut node = node_with_recorder(recorded_chain()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    fs::remove_file(node.conf_dir().join("10-test.conflist")).unwrap();
    node.crash().await;
    node.try_stop_pod(&pod.id).await.unwrap();
    let deleted: Value =
        serde_json::from_str(&fs::read_to_string(node.dir().join("first.DEL")).unwrap()).unwrap();
    assert_eq!(
        (&deleted["name"], &deleted["own"]),
        (&json!("recorded"), &json!(1))
    );
    assert_eq!(deleted["prevResult"]["ips"][0]["address"], "10.118.7.7/16");
    node.finish().await;
}

/// A network whose only plugin refuses DEL until the file `works` is there, and ADD if `adds` is false. It
/// writes the containers of its DELs to `dels`.
async fn node_with_stubborn_plugin(adds: bool) -> TestNode {
    let node = TestNode::builder()
        .config("[network]\nretry_seconds = 1\n")
        .conflist(json!({ "cniVersion": "1.0.0", "name": "stubborn", "plugins": [{ "type": "stubborn" }] }))
        .start()
        .await;
    let dir = node.dir().display().to_string();
    let add = if adds {
        r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.118.7.8/16"}]}'"#
    } else {
        r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no address"}'; exit 1"#
    };
    node.write_plugin(
        "stubborn",
        &format!(
            r#"cat > /dev/null
case $CNI_COMMAND in
ADD) {add};;
DEL) echo $CNI_CONTAINERID >> {dir}/dels; [ -e {dir}/works ] || {{ echo '{{"cniVersion":"1.0.0","code":11,"msg":"not now"}}'; exit 1; }};;
VERSION) echo '{{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}}';;
esac"#
        ),
    );
    node
}

/// The containers that the stubborn plugin was called to delete, one for each call.
fn deletions(node: &TestNode) -> Vec<String> {
    let dels = fs::read_to_string(node.dir().join("dels")).unwrap_or_default();
    dels.lines().map(str::to_owned).collect()
}

async fn wait_deletions(node: &TestNode, more_than: usize) {
    let deadline = Instant::now() + host::soon();
    while deletions(node).len() <= more_than {
        assert!(Instant::now() < deadline, "{:?}", deletions(node));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_deletion_that_fails_is_tried_again_until_it_works() {
    let node = node_with_stubborn_plugin(true).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let status = node
        .try_stop_pod(&pod.id)
        .await
        .expect_err("the plugin fails");
    assert!(
        status.message().contains("stubborn") && status.message().contains("not now"),
        "{status}"
    );
    assert_eq!(
        node.pod_status(&pod).await.state(),
        PodSandboxState::SandboxNotready
    );
    fs::write(node.dir().join("works"), "").unwrap();
    node.try_stop_pod(&pod.id).await.unwrap();
    let count = deletions(&node).len();
    assert!(count >= 2, "{count}");
    node.try_stop_pod(&pod.id).await.unwrap();
    let after = deletions(&node).len();
    assert_eq!(after, count, "a deletion that worked is not repeated");
    node.finish().await;
}

#[tokio::test]
async fn a_network_that_can_be_neither_added_nor_deleted_is_deleted_in_the_end() {
    let mut node = node_with_stubborn_plugin(false).await;
    let status = node
        .try_run_pod(&node.pod("one"))
        .await
        .expect_err("the plugin fails");
    assert!(status.message().contains("no address"), "{status}");
    assert!(node.pods().await.is_empty());
    let id = deletions(&node).pop().expect("the undoing DEL");
    // It goes on by itself, also in the next daemon.
    wait_deletions(&node, 2).await;
    node.crash().await;
    wait_deletions(&node, deletions(&node).len()).await;
    fs::write(node.dir().join("works"), "").unwrap();
    wait_deletions(&node, deletions(&node).len()).await;
    node.assert_no_leaks().await;
    let count = deletions(&node).len();
    // Longer than it waits between two tries.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(deletions(&node), vec![id; count]);
    node.finish().await;
}

#[tokio::test]
async fn the_folder_of_configurations_is_watched() {
    let node = TestNode::builder().no_network().start().await;
    let condition = network_ready(&node).await;
    assert!(!condition.status);
    assert!(
        condition
            .message
            .contains(&node.conf_dir().display().to_string()),
        "{condition:?}"
    );
    node.write_conflist("20-late.conflist", &bridge(&node.ipam_dir(), &[]));
    wait_network_ready(&node, true).await;
    let pod = node.run_pod(&node.pod("one")).await;
    assert!(node.pod_ip(&pod).await.is_ipv4());
    fs::remove_file(node.conf_dir().join("20-late.conflist")).unwrap();
    wait_network_ready(&node, false).await;
    // A bad file is passed over, or told of; it never counts.
    fs::write(node.conf_dir().join("10-bad.conflist"), "{ not json").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!network_ready(&node).await.status);
    node.finish().await;
}

/// What the kubelet says of the node's pod addresses.
async fn set_pod_cidr(node: &TestNode, cidr: &str) -> Result<(), tonic::Status> {
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: cidr.into(),
            }),
        }),
    };
    let mut runtime = node.cri.runtime();
    runtime.update_runtime_config(request).await.map(drop)
}

#[tokio::test]
async fn a_template_becomes_the_nodes_network_when_the_kubelet_says_its_addresses() {
    let files = tempfile::tempdir().unwrap();
    let template = files.path().join("cni.template");
    // As nodes of other runtimes have it.
    let text = r#"{ "cniVersion": "1.0.0", "name": "templated", "plugins": [{
        "type": "bridge", "bridge": "carpel0", "isGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local", "dataDir": "DIR",
          "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
          "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}] } }] }"#;
    fs::write(
        &template,
        text.replace("DIR", &files.path().display().to_string()),
    )
    .unwrap();
    let config = format!("[network]\nconf_template = \"{}\"\n", template.display());
    let node = TestNode::builder()
        .no_network()
        .config(&config)
        .start()
        .await;
    assert!(!network_ready(&node).await.status);
    set_pod_cidr(&node, "10.123.4.0/24,fd12:3::/64")
        .await
        .unwrap();
    wait_network_ready(&node, true).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let status = node.pod_status(&pod).await;
    let network = status.network.expect("a network");
    assert!(network.ip.starts_with("10.123.4."), "{network:?}");
    assert!(
        network.additional_ips[0].ip.starts_with("fd12:3::"),
        "{network:?}"
    );
    // A template that is none is not the kubelet's fault, and changes nothing.
    fs::write(&template, "{{.Nothing}}").unwrap();
    let status = set_pod_cidr(&node, "10.123.5.0/24").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert!(
        status.message().contains("line 1: there is no .Nothing"),
        "{status}"
    );
    node.remove_pods().await;
    fs::remove_file(node.conf_dir().join("10-carpel.conflist")).unwrap();
    wait_network_ready(&node, false).await;
    node.finish().await;
}

#[tokio::test]
async fn a_bad_file_is_passed_over_and_told() {
    let node = TestNode::start().await;
    fs::write(node.conf_dir().join("05-bad.conflist"), "{ not json").unwrap();
    let deadline = Instant::now() + host::soon();
    let condition = loop {
        let condition = network_ready(&node).await;
        if !condition.reason.is_empty() {
            break condition;
        }
        assert!(Instant::now() < deadline, "nobody tells of the bad file");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(condition.status, "{condition:?}");
    assert_eq!(condition.reason, "InvalidConfigPassedOver");
    assert!(
        condition.message.contains("05-bad.conflist: not JSON"),
        "{condition:?}"
    );
    node.run_pod(&node.pod("one")).await;
    fs::remove_file(node.conf_dir().join("05-bad.conflist")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn the_built_in_network_is_there_only_when_asked_for() {
    let node = TestNode::builder()
        .no_network()
        .arg("--default-network")
        .start()
        .await;
    wait_network_ready(&node, true).await;
    let mut config = node.pod("one");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18_080,
        host_ip: String::new(),
    }];
    let pod = node.run_pod(&config).await;
    let id = node.start_container(&pod, &server("server")).await;
    let ip = node.pod_ip(&pod).await;
    let gateway = "10.118.0.1".parse().unwrap();
    let loopback = "127.0.0.1".parse().unwrap();
    for (address, port) in [(ip, 8080), (gateway, 18_080), (loopback, 18_080)] {
        let page = node.net.run(|| host::http_get(address, port, "/"));
        let page = page.unwrap_or_else(|error| panic!("{address}:{port}: {error}"));
        assert_eq!(page, "hello from a pod\n", "{address}:{port}");
    }
    let own = node.exec(&id, "wget -qO- http://10.118.0.1:18080/").await;
    assert_eq!(own, "hello from a pod\n");
    node.try_stop_pod(&pod.id).await.unwrap();
    let gone = node.net.run(|| host::http_get(loopback, 18_080, "/"));
    assert!(gone.is_err(), "{gone:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_pods_network_goes_when_it_stops_and_its_pin_with_it() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    assert_eq!(fs::read_dir(node.netns_dir()).unwrap().count(), 1);
    let ip = node.pod_ip(&pod).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    assert_eq!(fs::read_dir(node.netns_dir()).unwrap().count(), 0);
    assert!(!node.ipam_dir().join("test").join(ip.to_string()).exists());
    node.finish().await;
}

#[tokio::test]
async fn eight_pods_at_a_time_get_eight_addresses() {
    let node = TestNode::start().await;
    let names: Vec<_> = (0..8).map(|n| format!("p{n}")).collect();
    let runs = names.iter().map(|name| node.try_run_pod_named(name));
    let pods: Vec<Pod> = futures::future::join_all(runs).await;
    let mut ips = Vec::new();
    for pod in &pods {
        ips.push(node.pod_ip(pod).await);
    }
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 8);
    let stops = pods.iter().map(|pod| node.try_stop_pod(&pod.id));
    assert!(
        futures::future::join_all(stops)
            .await
            .iter()
            .all(Result::is_ok)
    );
    node.finish().await;
}

/// Runs pods by name, owning what a joined future borrows.
trait RunNamed {
    async fn try_run_pod_named(&self, name: &str) -> Pod;
}

impl RunNamed for TestNode {
    async fn try_run_pod_named(&self, name: &str) -> Pod {
        self.run_pod(&self.pod(name)).await
    }
}
