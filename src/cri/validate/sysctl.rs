//! Kernel settings of a pod: only those that belong to a namespace which is the pod's own.

use std::collections::BTreeMap;

use super::{Field, Rejected, Shown, text};
use crate::spec::config::Scope;

/// Longest value: what the kernel reads at once.
const MAX_VALUE: usize = 4096;
const MAX_SYSCTLS: usize = 1000;

/// Whose namespace a setting belongs to.
enum Owner {
    Network,
    Ipc,
}

/// Checks the names and values and brings the names into dotted form.
pub fn sysctls(
    field: &Field<'_>,
    raw: BTreeMap<String, String>,
    network: Scope,
    ipc: Scope,
) -> Result<BTreeMap<String, String>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_SYSCTLS)?;
    let mut checked = BTreeMap::new();
    for (key, value) in raw {
        let entry = field.key(&key);
        let dotted = dotted_name(&entry, &key)?;
        let (whose, scope) = match owner(&entry, &dotted)? {
            Owner::Network => ("network", network),
            Owner::Ipc => ("ipc", ipc),
        };
        if scope == Scope::Node {
            return Err(entry.invalid(format_args!(
                "would change the node, because the pod uses the node's {whose} namespace"
            )));
        }
        check_value(&entry, &value)?;
        if checked.insert(dotted, value).is_some() {
            return Err(entry.invalid("is set twice"));
        }
    }
    Ok(checked)
}

/// The name with dots between its components. As with sysctl(8) the first separator of a name is its
/// separator; the other character is then part of a component (`net/ipv4/conf/eth0.1/forwarding`), where
/// the dotted form writes "/" for ".".
fn dotted_name(field: &Field<'_>, key: &str) -> Result<String, Rejected> {
    const MAX_KEY: usize = 255;
    text::at_most(field, key.len(), MAX_KEY)?;
    let dotted = match key.find(['.', '/']) {
        Some(first) if key[first..].starts_with('/') => key
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    };
    let well_formed = dotted.split('.').all(|component| {
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '@' | ':');
        // "/" and "//" are "." and ".." of the path below /proc/sys.
        !component.is_empty() && component.chars().all(allowed) && !matches!(component, "/" | "//")
    });
    if !well_formed {
        return Err(field.invalid("is no name of a kernel setting"));
    }
    Ok(dotted)
}

fn owner(field: &Field<'_>, dotted: &str) -> Result<Owner, Rejected> {
    const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if dotted.starts_with("net.") {
        return Ok(Owner::Network);
    }
    if dotted == "kernel.sem" || IPC.iter().any(|prefix| dotted.starts_with(prefix)) {
        return Ok(Owner::Ipc);
    }
    Err(field.invalid(
        "belongs to the node, not to a pod's namespace; allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
    ))
}

fn check_value(field: &Field<'_>, value: &str) -> Result<(), Rejected> {
    text::at_most(field, value.len(), MAX_VALUE)?;
    let bad = |c: &char| *c == '+' || (c.is_control() && *c != '\t');
    match value.chars().find(bad) {
        Some(c) => Err(field.invalid(format_args!(
            "value {} must not contain {c:?}",
            Shown(value)
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, value: &str, network: Scope, ipc: Scope) -> Result<String, String> {
        let raw = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        sysctls(&Field::root("sysctls"), raw, network, ipc)
            .map(|checked| checked.into_keys().collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_come_out_dotted() {
        for (key, dotted) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net.ipv4.conf.eth0/1.forwarding",
            ),
            ("kernel.shm_rmid_forced", "kernel.shm_rmid_forced"),
            ("kernel.sem", "kernel.sem"),
            ("fs/mqueue/msg_max", "fs.mqueue.msg_max"),
        ] {
            assert_eq!(
                check(key, "1", Scope::Pod, Scope::Pod).as_deref(),
                Ok(dotted)
            );
        }
    }

    #[test]
    fn what_is_not_the_pods_own_is_refused() {
        let pod = (Scope::Pod, Scope::Pod);
        for (key, value, (network, ipc), why) in [
            (
                "kernel.core_pattern",
                "x",
                pod,
                "sysctls[\"kernel.core_pattern\"]: belongs to the node, not to a pod's namespace; allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
            ),
            (
                "vm.swappiness",
                "1",
                pod,
                "sysctls[\"vm.swappiness\"]: belongs to the node, not to a pod's namespace; allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
            ),
            (
                "net.ipv4.ip_forward",
                "1",
                (Scope::Node, Scope::Pod),
                "sysctls[\"net.ipv4.ip_forward\"]: would change the node, because the pod uses the node's network namespace",
            ),
            (
                "kernel.sem",
                "1",
                (Scope::Pod, Scope::Node),
                "sysctls[\"kernel.sem\"]: would change the node, because the pod uses the node's ipc namespace",
            ),
            (
                "kernel.shmmax",
                "1+kernel.core_pattern=x",
                pod,
                "sysctls[\"kernel.shmmax\"]: value \"1+kernel.core_pattern=x\" must not contain '+'",
            ),
            (
                "kernel.shmmax",
                "1\n2",
                pod,
                "sysctls[\"kernel.shmmax\"]: value \"1\\n2\" must not contain '\\n'",
            ),
            (
                "kernel.shmmax",
                "1\0",
                pod,
                "sysctls[\"kernel.shmmax\"]: value \"1\\0\" must not contain '\\0'",
            ),
            (
                "",
                "1",
                pod,
                "sysctls[\"\"]: is no name of a kernel setting",
            ),
            (
                "net..x",
                "1",
                pod,
                "sysctls[\"net..x\"]: is no name of a kernel setting",
            ),
            (
                "net/../kernel/core_pattern",
                "1",
                pod,
                "sysctls[\"net/../kernel/core_pattern\"]: is no name of a kernel setting",
            ),
            (
                "net.//.//.kernel.core_pattern",
                "1",
                pod,
                "sysctls[\"net.//.//.kernel.core_pattern\"]: is no name of a kernel setting",
            ),
            (
                "net.ipv4\0",
                "1",
                pod,
                "sysctls[\"net.ipv4\\0\"]: is no name of a kernel setting",
            ),
        ] {
            assert_eq!(check(key, value, network, ipc), Err(why.to_owned()));
        }
    }

    #[test]
    fn a_setting_under_two_names_is_refused() {
        let raw = ["net.ipv4.ip_forward", "net/ipv4/ip_forward"]
            .map(|key| (key.to_owned(), "1".to_owned()));
        let result = sysctls(&Field::root("s"), raw.into(), Scope::Pod, Scope::Pod);
        assert_eq!(
            result.map_err(|error| error.to_string()),
            Err("s[\"net/ipv4/ip_forward\"]: is set twice".into())
        );
    }
}
