//! Cluster DNS: pods look short names up at a server that is a pod of another node, by a service's address.

use carpel_integration::image::{Image, Layer};
use carpel_integration::v1::DnsConfig;

use super::services::{Proxy, Service, virtual_ip};
use super::*;

const IMAGE: &str = "localhost/dnsmasq:test";
const DOMAIN: &str = "cluster.local";

/// Debian's dnsmasq, which answers for the cluster's domain and asks nobody else.
fn dns_server(records: &[String]) -> v1::ContainerConfig {
    let mut config = carpel_integration::container("dns", &["/usr/sbin/dnsmasq"]);
    config.image = Some(v1::ImageSpec {
        image: IMAGE.to_owned(),
        ..v1::ImageSpec::default()
    });
    let fixed = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        "--log-queries",
        "--user=root",
        "--pid-file=",
    ];
    config.args = fixed.map(str::to_owned).into();
    config.args.push(format!("--local=/{DOMAIN}/"));
    config.args.extend_from_slice(records);
    config
}

/// What the kubelet tells of DNS for a pod of the namespace `default`.
fn dns_config(servers: &[IpAddr]) -> DnsConfig {
    DnsConfig {
        servers: servers.iter().map(ToString::to_string).collect(),
        searches: ["default.svc.", "svc.", ""]
            .map(|prefix| format!("{prefix}{DOMAIN}"))
            .into(),
        options: vec!["ndots:5".to_owned()],
    }
}

#[tokio::test]
async fn short_names_are_found_by_search_domains() {
    let mut cluster = Cluster::start(Kind::routed(ROUTED, V4_V6), 2).await;
    cluster.route_all();
    let image = Image::busybox().layer(Layer::default().program("/usr/sbin/dnsmasq"));
    let node = &mut cluster.nodes[1];
    node.import(image.tagged(IMAGE).oci()).await;

    let web = cluster.peer(1, "web-0").await;
    let (dns_ips, web_ips) = (
        [Family::V4, Family::V6].map(|family| virtual_ip(family, 10)),
        [Family::V4, Family::V6].map(|family| virtual_ip(family, 80)),
    );
    let mut records = vec![format!(
        "--host-record=web.default.svc.{DOMAIN},{},{}",
        web_ips[0], web_ips[1]
    )];
    records.push(format!(
        "--host-record=web-0.web.default.svc.{DOMAIN},{},{}",
        web.ip(Family::V4),
        web.ip(Family::V6)
    ));
    let node = cluster.node(2);
    let server = node.run_pod(&node.pod("dns")).await;
    node.start_container(&server, &dns_server(&records)).await;
    node.wait_log(&server, "dns", |log| log.stderr().contains("started"))
        .await;
    let network = node.pod_status(&server).await.network.expect("a network");
    let server_ips = [&network.ip, &network.additional_ips[0].ip];
    for ((family, dns), (server_ip, web_ip)) in [Family::V4, Family::V6]
        .into_iter()
        .zip(dns_ips)
        .zip(server_ips.into_iter().zip(web_ips))
    {
        let server_ip: IpAddr = server_ip.parse().expect("an address");
        let service = |name, protocol, ip, port, endpoint| Service {
            name,
            protocol,
            ip,
            port,
            node_port: None,
            endpoints: vec![endpoint],
        };
        let services = [
            service("dns", "udp", dns, 53, (server_ip, 53)),
            service("dns-tcp", "tcp", dns, 53, (server_ip, 53)),
            service("web", "tcp", web_ip, 80, (web.ip(family), PORT)),
        ];
        for number in cluster.numbers() {
            Proxy::Nftables.load(&cluster.node(number).net, &services);
        }
    }

    // Each family's address of the server by itself, from both nodes.
    for number in cluster.numbers() {
        for (family, dns) in ["4", "6"].into_iter().zip(dns_ips) {
            let node = cluster.node(number);
            let mut config = node.pod(&format!("client-{family}"));
            config.dns_config = Some(dns_config(&[dns]));
            let client = node.run_pod(&config).await;
            let client = node
                .start_container(&client, &sh("client", "sleep 3600"))
                .await;
            names_are_found(node, &client, dns, web_ips).await;
        }
    }
    let log = node.log(&server, "dns").stderr();
    assert!(log.contains(&format!("web.default.svc.{DOMAIN}")), "{log}");
    for number in cluster.numbers() {
        for family in [Family::V4, Family::V6] {
            Proxy::Nftables.unload(&cluster.node(number).net, family);
        }
    }
    cluster.finish().await;
}

async fn names_are_found(node: &TestNode, client: &str, dns: IpAddr, web: [IpAddr; 2]) {
    let resolver = node.exec(client, "cat /etc/resolv.conf").await;
    assert_eq!(
        resolver,
        format!(
            "search default.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}\nnameserver {dns}\noptions ndots:5\n"
        )
    );
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
    ] {
        let page = node
            .exec(client, &format!("wget -qO- http://{name}/name"))
            .await;
        assert_eq!(page, "web-0\n", "{name}");
    }
    // A pod by its own name, not by a service.
    let page = node
        .exec(client, &format!("wget -qO- http://web-0.web:{PORT}/name"))
        .await;
    assert_eq!(page, "web-0\n");
    let found = node
        .exec(client, "nslookup web.default.svc.cluster.local")
        .await;
    for ip in web {
        assert!(found.contains(&ip.to_string()), "{found}");
    }
    let missing = node
        .try_exec(client, &["wget", "-qO-", "http://nowhere/"], 10)
        .await
        .expect("ExecSync");
    assert_ne!(missing.exit_code, 0);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("bad address"), "{said}");
}
