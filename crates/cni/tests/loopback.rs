//! loopback, and how the binary finds out which plugin it is.

mod common;

use common::{BINARY, Call, Netns, run_as, said, sh};
use serde_json::json;

#[test]
fn lo_goes_up_and_down() {
    let (host, pod) = (Netns::new("host"), Netns::new("pod"));
    let config = json!({ "cniVersion": "0.4.0", "name": "lo", "type": "loopback" });
    let run = |command| Call::new(&host, "loopback", command, "one", &pod).run(&config);
    run("CHECK").fails(999, "lo is down");
    let result = run("ADD").ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["interfaces"][0]["mac"], "00:00:00:00:00:00");
    assert_eq!(result["interfaces"][0]["sandbox"], pod.path());
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["ips"][0]["version"], "4");
    assert_eq!(result["ips"][1]["address"], "::1/128");
    assert!(pod.pings("127.0.0.1") && pod.pings("::1"));
    run("CHECK").ok();
    run("DEL").ok();
    run("CHECK").fails(999, "lo is down");
    let mut call = Call::new(&host, "loopback", "DEL", "one", &pod);
    for gone in ["", "/run/netns/carpel-cni-none"] {
        call.netns = gone.into();
        call.run(&config).ok();
    }
    call.command = "ADD";
    call.run(&config).fails(8, "carpel-cni-none");
}

#[test]
fn a_previous_result_is_passed_on() {
    let (host, pod) = (Netns::new("host"), Netns::new("pod"));
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "mtu": 1400 }],
        "ips": [{ "address": "10.0.0.2/24", "interface": 0 }],
    });
    let config = json!({ "cniVersion": "1.0.0", "name": "lo", "prevResult": previous });
    let result = Call::new(&host, "loopback", "ADD", "one", &pod)
        .run(&config)
        .ok();
    assert_eq!(result, previous);
}

#[test]
fn the_name_decides_which_plugin_it_is() {
    let version = [("CNI_COMMAND", "VERSION")];
    for (name, args) in [
        ("bridge", &[][..]),
        ("/x/host-local", &[]),
        ("carpel-cni", &["loopback"]),
    ] {
        let spoken = said(run_as(name, &version, args, "")).ok();
        assert_eq!(spoken["cniVersion"], "1.1.0");
        assert_eq!(
            spoken["supportedVersions"],
            json!([
                "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"
            ])
        );
    }
    let add = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_PATH", "/x"),
    ];
    said(run_as("loopback", &add, &[], "{}")).fails(4, "CNI_IFNAME");
    said(run_as("carpel-cni", &add, &[], "{}")).fails(4, "one of loopback, bridge");
    let output = run_as("bridge", &[], &[], "");
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("CNI versions"));

    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("host-local");
    sh(&format!("ln -s {BINARY} {}", link.display()));
    let (host, pod) = (Netns::new("host"), Netns::new("pod"));
    let mut call = Call::new(&host, "", "ADD", "one", &pod);
    call.program = link;
    let ipam = json!({ "subnet": "10.1.0.0/24", "dataDir": folder.path() });
    let config = json!({ "cniVersion": "1.0.0", "name": "net", "ipam": ipam });
    assert_eq!(call.run(&config).ok()["ips"][0]["address"], "10.1.0.2/24");
}
