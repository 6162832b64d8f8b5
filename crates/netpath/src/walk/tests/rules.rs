//! Rules that drop a packet, and those that send it elsewhere.

use super::*;

#[test]
fn rules_drop_and_may_drop() {
    let filter = |rule: &str| format!("*filter\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n");
    let with = |rule: &str| {
        let mut made = pairs();
        made.rules(NODE, &filter(rule));
        made.listen(B, 80);
        made
    };
    let made = with("-A FORWARD -s 10.88.0.2/32 -p tcp -m tcp --dport 80 -j DROP");
    stops(
        &made.go(A, "10.88.0.3", Some(80)).there,
        NODE,
        Reason::Dropped,
        "table ip filter (legacy), chain FORWARD: -s 10.88.0.2/32",
    );
    // Of a port that is not known it may or may not be one.
    let journey = made.go(A, "10.88.0.3", None);
    reaches(&journey, B);
    let maybe = journey
        .there
        .hops
        .iter()
        .find(|hop| hop.mood == Mood::Maybe)
        .expect("told");
    assert!(
        maybe.text.starts_with("may be dropped by table ip filter"),
        "{}",
        maybe.text
    );
    // The other way round it does not matter, but the answer is no new connection.
    reaches(&made.go(B, "10.88.0.2", None), A);
    let made = with("-A FORWARD -i vethb -m conntrack --ctstate NEW -j REJECT");
    reaches(&made.go(A, "10.88.0.3", None), B);
    stops(
        &made.go(B, "10.88.0.2", None).there,
        NODE,
        Reason::Rejected,
        "chain FORWARD",
    );
    let mut made = pairs();
    made.rules(NODE, "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::Dropped,
        "policy drop",
    );
    // Rules of the pod's own.
    let mut made = pairs();
    made.rules(B, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n");
    stops(
        &made.go(A, "10.88.0.3", None).there,
        B,
        Reason::Dropped,
        "chain INPUT: policy drop",
    );
}

#[test]
fn bridges_show_their_packets_to_the_filter_if_they_are_told_to() {
    let mut made = bridged();
    made.rules(NODE, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    reaches(&made.go(A, "10.88.0.3", None), B);
    made.place(NODE)
        .settings
        .0
        .insert("bridge/bridge-nf-call-iptables".into(), 1);
    stops(
        &made.go(A, "10.88.0.3", None).there,
        NODE,
        Reason::Dropped,
        "policy drop",
    );
}

/// Rules as kube-proxy writes them, with two endpoints.
const SERVICES: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -s 10.88.0.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.88.0.2:8080
-A KUBE-SEP-2 -s 10.88.0.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.88.0.3:8080
COMMIT
";

#[test]
fn services_lead_to_one_of_their_pods_and_answers_come_back() {
    let mut made = bridged();
    made.rules(NODE, SERVICES);
    made.listen(A, 8080);
    made.listen(B, 8080);
    let journey = made.go(A, "10.96.0.10", Some(80));
    let text = texts(&journey.there);
    assert!(
        text.contains("goes by chance to one of 10.88.0.2:8080, 10.88.0.3:8080"),
        "{text}"
    );
    // The first is the pod itself: it is masqueraded, and leaves by the port that it came from.
    assert!(
        text.contains("destination becomes 10.88.0.2:8080"),
        "{text}"
    );
    assert!(text.contains("source becomes 10.88.0.1"), "{text}");
    reaches(&journey, A);
    let back = texts(journey.back.as_ref().unwrap());
    assert!(
        back.contains("the answer's destination is put back to 10.88.0.2"),
        "{back}"
    );
    assert!(
        back.contains("its source is put back to 10.96.0.10:80"),
        "{back}"
    );
    // Another port of the service leads nowhere.
    let there = made.go(A, "10.96.0.10", Some(81)).there;
    assert!(matches!(there.end, End::Left { .. }), "{there:?}");
    // From the node itself.
    reaches(&made.go(NODE, "10.96.0.10", Some(80)), A);
}

#[test]
fn masquerading_is_undone_for_the_answer() {
    let mut made = bridged();
    made.rules(NODE, "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.88.0.0/16 ! -d 10.88.0.0/16 -j MASQUERADE\nCOMMIT\n");
    let journey = made.go(A, "198.51.100.7", None);
    let End::Left { text, .. } = &journey.there.end else {
        panic!("{journey:?}");
    };
    assert!(text.contains("from 192.0.2.5"), "{text}");
    reaches(&made.go(A, "10.88.0.3", None), B);
}
