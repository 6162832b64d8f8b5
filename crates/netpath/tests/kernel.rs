//! What the walk says, against what the kernel does with a real connection: on namespaces of the test's own, with
//! routes, settings and rules of every kind. Needs root, and the programs ip, nft and iptables.

mod common;

use carpel_netpath::walk::{End, Journey, Mood};
use common::{Machine, PORT};

/// Something that is done to a machine, and how a connection from pod a ends then: in nothing if it arrives.
struct Case {
    name: &'static str,
    /// Shell lines, each in a namespace.
    done: &'static [(&'static str, &'static str)],
    stops: Option<&'static str>,
    /// What its hops or its end must say.
    says: &'static str,
}

const fn case(
    name: &'static str,
    done: &'static [(&'static str, &'static str)],
    stops: Option<&'static str>,
    says: &'static str,
) -> Case {
    Case {
        name,
        done,
        stops,
        says,
    }
}

fn told(journey: &Journey) -> String {
    let mut text = String::new();
    let walks = [Some(&journey.there), journey.back.as_ref()];
    for walk in walks.into_iter().flatten() {
        for hop in &walk.hops {
            text += &format!("{:?} {} {}\n", hop.mood, hop.about.word(), hop.text);
        }
        text += &format!("{:?}\n", walk.end);
    }
    text
}

fn reason(journey: &Journey) -> Option<&'static str> {
    let ends = [Some(&journey.there), journey.back.as_ref()];
    ends.into_iter().flatten().find_map(|walk| match &walk.end {
        End::Stopped { reason, .. } => Some(reason.word()),
        _ => None,
    })
}

/// Tries all cases, each on a machine of its own, with a connection to `to`. All that is wrong is told at once.
fn try_all(make: fn() -> Machine, to: &str, cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let machine = make();
        for (place, line) in case.done {
            machine.sh(place, line);
        }
        let journey = machine.walk("a", to, Some(PORT));
        let text = told(&journey);
        let connected = machine.connects("a", to, PORT);
        let agrees = journey.arrives() == connected.is_ok();
        if !agrees || reason(&journey) != case.stops || !text.contains(case.says) {
            let (name, says) = (case.name, case.says);
            let expected = case.stops;
            wrong.push(format!(
                "{name}: the kernel: {connected:?}; expected {expected:?} and {says:?}\n{text}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line that loads rules.
macro_rules! nft {
    ($rules:literal) => {
        concat!("nft -f - <<'X'\n", $rules, "\nX")
    };
}

/// The same in a chain of a table of IPv4 that sees what is forwarded.
macro_rules! forward {
    ($rules:literal) => {
        &[(
            "node",
            concat!(
                "nft -f - <<'X'\ntable ip t { chain f { type filter hook forward priority 0; ",
                $rules,
                " } }\nX"
            ),
        )]
    };
}

#[test]
fn routes_and_settings() {
    #[rustfmt::skip]
    let cases = [
        case("as it is", &[], None, "route 10.88.0.3 dev vethb"),
        case("no route in the pod", &[("a", "ip route del default")], Some("no-route"), "no route to 10.88.0.3 in a"),
        case("no route on the node", &[("node", "ip route del 10.88.0.3")], Some("no-route"), "no route to 10.88.0.3 in node"),
        case("no way back", &[("b", "ip route del default")], Some("no-route"), "no route to 10.88.0.2 in b"),
        case("blackhole", &[("node", "ip route replace blackhole 10.88.0.3")], Some("refused-by-route"), "10.88.0.3"),
        case("prohibited", &[("a", "ip route add prohibit 10.88.0.3")], Some("refused-by-route"), "prohibits"),
        case("forwarding off", &[("node", "sysctl -qw net.ipv4.ip_forward=0")], Some("forwarding-off"), "forwarding is off on vetha"),
        case("forwarding off on one link", &[("node", "sysctl -qw net.ipv4.conf.vetha.forwarding=0")], Some("forwarding-off"), "vetha"),
        case("strict rp_filter is fine", &[("node", "sysctl -qw net.ipv4.conf.all.rp_filter=1")], None, ""),
        case(
            "rp_filter, and answers by another link",
            &[
                ("node", "sysctl -qw net.ipv4.conf.vetha.rp_filter=1"),
                ("node", "ip link add other type veth peer name another; ip link set other up; ip route replace 10.88.0.2 dev other"),
            ],
            Some("rp-filter"),
            "answers to 10.88.0.2 would leave by other",
        ),
        case("link down", &[("node", "ip link set vethb down")], Some("no-route"), "no route to 10.88.0.3"),
        case("the pod's link down", &[("a", "ip link set eth0 down")], Some("no-route"), "no route to 10.88.0.3 in a"),
        case("its own address on the node", &[("node", "ip addr add 10.88.0.2/32 dev lo")], Some("martian"), "is an address of node itself"),
        case(
            "policy routing by the link",
            &[("node", "ip rule add iif vetha lookup 100; ip route add blackhole default table 100")],
            Some("refused-by-route"),
            "",
        ),
        case(
            "another neighbour",
            &[("node", "ip neigh replace 10.88.0.3 lladdr 02:09:09:09:09:09 dev vethb nud permanent")],
            Some("wrong-hardware-address"),
            "02:09:09:09:09:09",
        ),
    ];
    try_all(Machine::pairs, "10.88.0.3", &cases);
}

#[test]
fn bridges() {
    #[rustfmt::skip]
    let cases = [
        case("as it is", &[], None, "in by vetha, out by vethb"),
        case("strict rp_filter", &[("node", "sysctl -qw net.ipv4.conf.all.rp_filter=1")], None, ""),
        case(
            "isolated ports",
            &[("node", "bridge link set dev vetha isolated on; bridge link set dev vethb isolated on")],
            Some("ports-isolated"),
            "vetha and vethb",
        ),
        case("one isolated port", &[("node", "bridge link set dev vetha isolated on")], None, ""),
        case("bridge down", &[("node", "ip link set cni0 down")], Some("port-not-forwarding"), "as a port of cni0 it is disabled"),
        case(
            "a rule of forward that no bridged packet meets",
            &[
                ("node", nft!("table ip t { chain f { type filter hook forward priority 0; policy drop; } }")),
                ("node", "sysctl -qw net.bridge.bridge-nf-call-iptables=0"),
            ],
            None,
            "",
        ),
        case(
            "the same, with the bridge showing its packets",
            &[
                ("node", nft!("table ip t { chain f { type filter hook forward priority 0; policy drop; } }")),
                ("node", "sysctl -qw net.bridge.bridge-nf-call-iptables=1"),
            ],
            Some("dropped-by-rule"),
            "table ip t, chain f: policy drop",
        ),
        case(
            "a rule of the bridge",
            &[("node", nft!("table bridge t { chain f { type filter hook forward priority 0; iifname vetha ip daddr 10.88.0.3 drop; } }"))],
            Some("dropped-by-rule"),
            "table bridge t",
        ),
        case("nobody there", &[("b", "ip addr flush dev eth0")], Some("no-neighbour"), "nobody on eth0 has 10.88.0.3"),
    ];
    try_all(Machine::bridged, "10.88.0.3", &cases);
}

#[test]
fn rules_of_nf_tables() {
    #[rustfmt::skip]
    let cases = [
        case("by address and port", forward!("ip saddr 10.88.0.0/24 tcp dport 8080 counter drop;"), Some("dropped-by-rule"), "ip saddr 10.88.0.0/24 tcp dport 8080 drop"),
        case("another port", forward!("ip saddr 10.88.0.0/24 tcp dport 8081-8090 drop;"), None, ""),
        case("states", &[("node", nft!("table inet t { chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname \"veth*\" ct state new accept; } }"))], None, ""),
        case("answers are not let through", &[("node", nft!("table inet t { chain f { type filter hook forward priority 0; policy drop; ct state new accept; } }"))], Some("dropped-by-rule"), "policy drop"),
        case(
            "sets with intervals",
            &[("node", nft!("table ip t { set s { type ipv4_addr; flags interval; elements = { 10.87.0.0/16, 10.88.0.3-10.88.0.9 } }\n chain f { type filter hook forward priority 0; ip daddr @s drop; } }"))],
            Some("dropped-by-rule"),
            "ip daddr @s drop",
        ),
        case(
            "not in the set",
            &[("node", nft!("table ip t { set s { type ipv4_addr; flags interval; elements = { 10.87.0.0/16, 10.88.0.4-10.88.0.9 } }\n chain f { type filter hook forward priority 0; ip daddr @s drop; } }"))],
            None,
            "",
        ),
        case(
            "a map of verdicts",
            &[("node", nft!("table ip t { chain bad { drop; }\n chain f { type filter hook forward priority 0; iifname vmap { \"vethb\" : accept, \"vetha\" : jump bad }; } }"))],
            Some("dropped-by-rule"),
            "chain bad: drop",
        ),
        case("keys of several parts", forward!("ip daddr . tcp dport { 10.88.0.3 . 8080 } reject;"), Some("rejected-by-rule"), "10.88.0.3 . 8080"),
        case("parts with ranges", forward!("ip daddr . tcp dport { 10.88.0.0/24 . 8000-9000 } drop;"), Some("dropped-by-rule"), "ip daddr . tcp dport"),
        case(
            "return",
            &[("node", nft!("table ip t { chain c { tcp dport 8080 return; drop; }\n chain f { type filter hook forward priority 0; policy drop; ct state established accept; jump c; accept; } }"))],
            None,
            "",
        ),
        case(
            "goto",
            &[("node", nft!("table ip t { chain c { tcp dport 8080 return; }\n chain f { type filter hook forward priority 0; policy drop; goto c; accept; } }"))],
            Some("dropped-by-rule"),
            "chain f: policy drop",
        ),
        case(
            "marks",
            &[("node", nft!("table ip t { chain p { type filter hook prerouting priority -150; iifname vetha meta mark set mark or 0x10; }\n chain f { type filter hook forward priority 0; meta mark & 0x10 == 0x10 drop; } }"))],
            Some("dropped-by-rule"),
            "mark & 0x10 == 0x10 drop",
        ),
        case(
            "routes of a mark",
            &[
                ("node", nft!("table ip t { chain p { type filter hook prerouting priority -150; iifname vetha meta mark set 7; } }")),
                ("node", "ip rule add fwmark 7 lookup 107; ip route add unreachable default table 107"),
            ],
            Some("refused-by-route"),
            "unreachable",
        ),
        case(
            "reverse path by rule",
            &[
                ("node", nft!("table ip t { chain p { type filter hook prerouting priority -300; fib saddr . iif oif missing drop; } }")),
                ("node", "ip link add other type veth peer name another; ip link set other up; ip route replace 10.88.0.2 dev other"),
            ],
            Some("dropped-by-rule"),
            "fib saddr . iif oif",
        ),
        case("what is for the node", &[("node", nft!("table ip t { chain p { type filter hook prerouting priority -300; fib daddr type local drop; } }"))], None, ""),
        case(
            "at the link",
            &[("node", nft!("table netdev t { chain i { type filter hook ingress device vetha priority 0; ip daddr 10.88.0.3 drop; } }"))],
            Some("dropped-by-rule"),
            "table netdev t",
        ),
        case("output of the pod", &[("a", nft!("table ip t { chain o { type filter hook output priority 0; tcp dport 8080 drop; } }"))], Some("dropped-by-rule"), "chain o"),
        case(
            "input of the pod",
            &[("b", nft!("table ip t { chain i { type filter hook input priority 0; policy drop; tcp dport != 8080 accept; } }"))],
            Some("dropped-by-rule"),
            "policy drop",
        ),
        case(
            "priorities",
            &[("node", nft!("table ip t { chain late { type filter hook forward priority 10; drop; }\n chain early { type filter hook forward priority 0; accept; } }"))],
            Some("dropped-by-rule"),
            "chain late",
        ),
        case("flags of TCP", forward!("tcp flags & (syn|ack) == syn drop;"), Some("dropped-by-rule"), "tcp flags"),
        case("a table that is dormant", &[("node", nft!("table ip t { flags dormant; chain f { type filter hook forward priority 0; drop; } }"))], None, ""),
    ];
    try_all(Machine::pairs, "10.88.0.3", &cases);
}

#[test]
fn rules_of_iptables() {
    #[rustfmt::skip]
    let cases = [
        case("drop", &[("node", "$I -A FORWARD -s 10.88.0.2 -p tcp -m tcp --dport 8080 -m comment --comment 'no way' -j DROP")], Some("dropped-by-rule"), "FORWARD"),
        case(
            "several ports, states and links",
            &[("node", "$I -P FORWARD DROP; $I -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; $I -A FORWARD -i veth+ -o vethb -p tcp -m multiport --dports 80,8000:8090 -m conntrack --ctstate NEW -j ACCEPT")],
            None,
            "",
        ),
        case(
            "another link",
            &[("node", "$I -P FORWARD DROP; $I -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; $I -A FORWARD -i vethb -j ACCEPT")],
            Some("dropped-by-rule"),
            "policy drop",
        ),
        case("not", &[("node", "$I -A FORWARD ! -s 10.88.0.0/24 -j DROP; $I -A FORWARD -i vetha -p tcp ! --dport 8080 -j DROP")], None, ""),
        case(
            "marks and chains",
            &[("node", "$I -t mangle -A PREROUTING -i vetha -j MARK --set-xmark 0x4/0x4; $I -N X; $I -A X -m mark --mark 0x4/0x4 -j DROP; $I -A FORWARD -j X")],
            Some("dropped-by-rule"),
            "chain X",
        ),
        case("what is for the node", &[("node", "$I -A FORWARD -m addrtype --dst-type LOCAL -j DROP")], None, ""),
        case("reject", &[("node", "$I -A FORWARD -d 10.88.0.3/32 -j REJECT")], Some("rejected-by-rule"), "FORWARD"),
        case("a match that is not known", &[("node", "$I -A FORWARD -m length --length 1400:1500 -j DROP")], None, "may be dropped by"),
    ];
    for program in ["iptables-nft", "iptables-legacy"] {
        common::set_variable("I", program);
        try_all(Machine::pairs, "10.88.0.3", &cases);
    }
}

#[test]
fn translations() {
    #[rustfmt::skip]
    let cases = [
        case("nobody has it", &[], Some("no-route"), "no route to 10.96.0.10 in node"),
        case("to a pod", &[("node", nft!("table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 tcp dport 8080 dnat to 10.88.0.3; } }"))], None, "its source is put back to 10.96.0.10:8080"),
        case("to a pod's other port", &[("node", nft!("table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 tcp dport 8080 dnat to 10.88.0.3:8081; } }"))], Some("nobody-listens"), "8081"),
        case(
            "by a map",
            &[("node", nft!("table ip t { map m { type ipv4_addr . inet_service : ipv4_addr . inet_service; elements = { 10.96.0.10 . 8080 : 10.88.0.3 . 8080 } }\n chain p { type nat hook prerouting priority -100; dnat ip to ip daddr . tcp dport map @m; } }"))],
            None,
            "destination becomes 10.88.0.3:8080",
        ),
        case(
            "as kube-proxy with nf_tables does it",
            &[("node", nft!("table ip t { chain e1 { meta l4proto tcp dnat to 10.88.0.3:8080; }\n chain e2 { meta l4proto tcp dnat to 10.88.0.3:8080; }\n chain svc { numgen random mod 2 vmap { 0 : goto e1, 1 : goto e2 }; }\n map ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.10 . tcp . 8080 : goto svc } }\n chain p { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @ips; } }"))],
            None,
            "destination becomes 10.88.0.3:8080",
        ),
        case(
            "as kube-proxy with iptables does it",
            &[("node", "iptables-nft -t nat -N SVC; iptables-nft -t nat -N SEP1; iptables-nft -t nat -N SEP2; iptables-nft -t nat -A PREROUTING -d 10.96.0.10/32 -p tcp -m comment --comment 'default/web cluster IP' -m tcp --dport 8080 -j SVC; iptables-nft -t nat -A SVC -m statistic --mode random --probability 0.5 -j SEP1; iptables-nft -t nat -A SVC -j SEP2; iptables-nft -t nat -A SEP1 -p tcp -m tcp -j DNAT --to-destination 10.88.0.3:8080; iptables-nft -t nat -A SEP2 -p tcp -m tcp -j DNAT --to-destination 10.88.0.3:8080")],
            None,
            "destination becomes 10.88.0.3:8080",
        ),
        case("to the pod itself, without masquerading", &[("node", nft!("table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 dnat to 10.88.0.2; } }")), ("node", "bridge link set dev vetha hairpin on")], Some("martian"), ""),
        case("to the node", &[("node", nft!("table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 redirect; } }"))], None, "destination becomes 10.88.0.1:8080"),
        case(
            "what a service leads to is dropped",
            &[("node", nft!("table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 dnat to 10.88.0.3; }\n chain f { type filter hook forward priority 0; ct status dnat drop; } }"))],
            Some("dropped-by-rule"),
            "ct status",
        ),
    ];
    // The address of a service, which nobody has.
    try_all(Machine::bridged, "10.96.0.10", &cases);
}

/// To the pod itself, by the address of a service: what needs hairpin, and what does not.
#[test]
fn translations_that_lead_back_to_the_port() {
    const SERVICE: &str = nft!(
        "table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 dnat to 10.88.0.2; }\n chain q { type nat hook postrouting priority 100; ip saddr 10.88.0.2 ip daddr 10.88.0.2 masquerade; } }"
    );
    const SHOWN: &str = "sysctl -qw net.bridge.bridge-nf-call-iptables=1";
    const NOT_SHOWN: &str = "sysctl -qw net.bridge.bridge-nf-call-iptables=0";
    const TO_B: &str = nft!(
        "table ip t { chain p { type nat hook prerouting priority -100; ip daddr 10.96.0.10 dnat to 10.88.0.3; } }"
    );
    const ISOLATED: &str =
        "bridge link set dev vetha isolated on; bridge link set dev vethb isolated on";
    #[rustfmt::skip]
    let cases = [
        case("shown, without hairpin", &[("node", SERVICE), ("node", SHOWN)], Some("hairpin-off"), "hairpin is off on that port"),
        case("shown, with hairpin", &[("node", SERVICE), ("node", SHOWN), ("node", "bridge link set dev vetha hairpin on")], None, ""),
        case("not shown: the machine sends it", &[("node", SERVICE), ("node", NOT_SHOWN)], None, ""),
        case("shown, between isolated ports", &[("node", TO_B), ("node", SHOWN), ("node", ISOLATED)], Some("ports-isolated"), "vetha and vethb"),
    ];
    try_all(Machine::bridged, "10.96.0.10", &cases);
}

#[test]
fn the_other_family() {
    #[rustfmt::skip]
    let cases = [
        case("as it is", &[], None, "route fd88::3 dev vethb"),
        case("forwarding off", &[("node", "sysctl -qw net.ipv6.conf.all.forwarding=0")], Some("forwarding-off"), "net.ipv6.conf.all.forwarding is 0"),
        case("no route", &[("node", "ip -6 route del fd88::3")], Some("no-route"), "no route to fd88::3 in node"),
        case("no address", &[("a", "ip -6 addr flush dev eth0 scope global")], Some("no-address"), "no IPv6 address"),
        case("IPv6 off", &[("b", "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")], Some("no-neighbour"), "fd88::3"),
        case(
            "a rule",
            &[("node", nft!("table ip6 t { chain f { type filter hook forward priority 0; ip6 saddr fd88::/64 tcp dport 8080 drop; } }"))],
            Some("dropped-by-rule"),
            "ip6 saddr fd88::/64 tcp dport 8080 drop",
        ),
        case("a rule of ip6tables", &[("node", "ip6tables-nft -A FORWARD -d fd88::3/128 -p tcp -m tcp --dport 8080 -j DROP")], Some("dropped-by-rule"), "fd88::3"),
        case("a translation", &[("node", nft!("table ip6 t { chain q { type nat hook postrouting priority 100; ip6 saddr fd88::2 masquerade; } }"))], None, "source becomes fd88::1"),
    ];
    try_all(Machine::pairs, "fd88::3", &cases);
}

#[test]
fn what_is_not_known_is_told_and_does_not_stop_it() {
    let machine = Machine::pairs();
    let rules = nft!(
        "table ip t { chain f { type filter hook forward priority 0; tcp dport 8080 drop; limit rate over 5/second drop; } }"
    );
    machine.sh("node", rules);
    let journey = machine.walk("a", "10.88.0.3", None);
    let text = told(&journey);
    assert!(journey.arrives(), "{text}");
    let hops = journey.there.hops.iter();
    let maybe: Vec<_> = hops.filter(|hop| hop.mood == Mood::Maybe).collect();
    assert_eq!(maybe.len(), 2, "{text}");
    let expected = "may be dropped by table ip t, chain f: tcp dport 8080 drop";
    assert!(maybe[0].text.contains(expected), "{text}");
}
