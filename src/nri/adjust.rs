//! What plugins want of a container, laid over its OCI spec.
//!
//! What carpel cannot do is refused by the name of its field: a plugin whose wish was passed over in silence would believe
//! that it is fulfilled.

use std::collections::BTreeMap;
use std::path::Path;

use carpel_api::nri::{
    ContainerAdjustment, Hook, Hooks, KeyValue, LinuxContainerAdjustment, LinuxDevice,
    LinuxDeviceCgroup, LinuxNetDevice, LinuxResources, LinuxSeccomp, Mount, OptionalInt64,
    PosixRlimit,
};
use oci_spec::runtime::{
    Hook as OciHook, LinuxDevice as OciDevice, LinuxDeviceCgroup as OciRule, LinuxDeviceType,
    PosixRlimitBuilder, PosixRlimitType, Spec,
};
use serde_json::{Value, json};

use crate::cdi::{Cdi, QualifiedName};
use crate::cgroup::Access;
use crate::spec::config::Propagation;
use crate::spec::oci::{Filter, Source};
use crate::spec::{devices, hooks, mounts, net_devices};
use crate::store::bind;
use crate::{cdi, seccomp};

/// What is not the spec's alone to say.
#[derive(Debug, Default, PartialEq)]
pub struct Beside {
    pub resources: Option<LinuxResources>,
    pub oom_score_adj: Option<i64>,
    pub cgroups_path: Option<String>,
    pub sysctl: BTreeMap<String, String>,
}

/// Makes the changes.
///
/// # Errors
/// The first field that carpel cannot fulfil, and why.
pub fn apply(
    adjust: ContainerAdjustment,
    source: &mut Source,
    cdi: &Cdi,
) -> Result<Beside, String> {
    let spec = &mut source.spec;
    annotations(spec, adjust.annotations);
    env(spec, adjust.env)?;
    if !adjust.args.is_empty() {
        if adjust.args.iter().any(|argument| argument.contains('\0')) {
            return Err("args: holds a NUL byte".to_owned());
        }
        if let Some(process) = spec.process_mut() {
            process.set_args(Some(adjust.args));
        }
    }
    if let Some(hooks) = adjust.hooks {
        add_hooks(spec, hooks)?;
    }
    cdi_devices(spec, &adjust.cdi_devices, cdi)?;
    let beside = linux(source, adjust.linux.unwrap_or_default())?;
    add_mounts(&mut source.spec, &adjust.mounts)?;
    rlimits(&mut source.spec, &adjust.rlimits)?;
    Ok(beside)
}

fn cannot<T>(field: &str) -> Result<T, String> {
    Err(format!("{field}: carpel cannot do it"))
}

fn annotations(spec: &mut Spec, wanted: BTreeMap<String, String>) {
    let mut all = spec.annotations().clone().unwrap_or_default();
    for (key, value) in wanted {
        match key.strip_prefix('-') {
            Some(gone) => {
                all.remove(gone);
            }
            None => {
                all.insert(key, value);
            }
        }
    }
    spec.set_annotations(Some(all));
}

fn env(spec: &mut Spec, wanted: Vec<KeyValue>) -> Result<(), String> {
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let mut all = process.env().clone().unwrap_or_default();
    let is = |entry: &str, key: &str| {
        let rest = entry.strip_prefix(key);
        rest.is_some_and(|rest| rest.starts_with('=') || rest.is_empty())
    };
    for KeyValue { key, value } in wanted {
        if let Some(gone) = key.strip_prefix('-') {
            all.retain(|entry| !is(entry, gone));
            continue;
        }
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("env: {key:?} is no variable"));
        }
        let entry = format!("{key}={value}");
        match all.iter_mut().find(|known| is(known, &key)) {
            Some(known) => *known = entry,
            None => all.push(entry),
        }
    }
    process.set_env(Some(all));
    Ok(())
}

fn add_hooks(spec: &mut Spec, wanted: Hooks) -> Result<(), String> {
    for (point, list) in [
        ("prestart", wanted.prestart),
        ("createRuntime", wanted.create_runtime),
        ("createContainer", wanted.create_container),
        ("startContainer", wanted.start_container),
        ("poststart", wanted.poststart),
        ("poststop", wanted.poststop),
    ] {
        for (index, wanted) in list.into_iter().enumerate() {
            let hook = hook(wanted).map_err(|why| format!("hooks.{point}[{index}]: {why}"))?;
            hooks::push(spec, point, hook);
        }
    }
    Ok(())
}

fn hook(wanted: Hook) -> Result<OciHook, String> {
    let nul = |list: &[String]| list.iter().any(|text| text.contains('\0'));
    if !Path::new(&wanted.path).is_absolute() || wanted.path.contains('\0') {
        return Err(format!("path {:?} is not absolute", wanted.path));
    }
    if nul(&wanted.args) || nul(&wanted.env) {
        return Err("holds a NUL byte".to_owned());
    }
    let timeout = wanted.timeout.map(|timeout| timeout.value);
    if timeout.is_some_and(|seconds| seconds <= 0) {
        return Err("timeout must be greater than 0".to_owned());
    }
    let mut hook = OciHook::default();
    hook.set_path(wanted.path.into()).set_timeout(timeout);
    if !wanted.args.is_empty() {
        hook.set_args(Some(wanted.args));
    }
    if !wanted.env.is_empty() {
        hook.set_env(Some(wanted.env));
    }
    Ok(hook)
}

fn cdi_devices(
    spec: &mut Spec,
    wanted: &[carpel_api::nri::CdiDevice],
    cdi: &Cdi,
) -> Result<(), String> {
    let names: Result<Vec<QualifiedName>, String> = wanted
        .iter()
        .map(|device| {
            let name = &device.name;
            QualifiedName::parse(name).map_err(|why| format!("CDI_devices: {name:?} {why}"))
        })
        .collect();
    let found = cdi.find(&names?);
    let edits = found.map_err(|(name, error): (String, cdi::Error)| {
        format!("CDI_devices: {name}: {}", crate::error::chain(&error))
    })?;
    let applied = edits.apply(spec);
    applied.map_err(|error| format!("CDI_devices: {}", crate::error::chain(&error)))
}

fn linux(source: &mut Source, wanted: LinuxContainerAdjustment) -> Result<Beside, String> {
    if wanted.io_priority.is_some() {
        return cannot("linux.io_priority");
    }
    if wanted.scheduler.is_some() {
        return cannot("linux.scheduler");
    }
    if wanted.memory_policy.is_some() {
        return cannot("linux.memory_policy");
    }
    if !wanted.namespaces.is_empty() {
        return cannot("linux.namespaces");
    }
    // To be without is what every container is.
    if let Some(rdt) = &wanted.rdt
        && (rdt.clos_id.is_some() || rdt.schemata.is_some() || rdt.enable_monitoring.is_some())
    {
        return cannot("linux.rdt");
    }
    for (index, device) in wanted.devices.into_iter().enumerate() {
        add_device(&mut source.spec, device)
            .map_err(|why| format!("linux.devices[{index}]: {why}"))?;
    }
    net(&mut source.spec, wanted.net_devices)?;
    if let Some(policy) = wanted.seccomp_policy {
        source.seccomp = filter(policy).map_err(|why| format!("linux.seccomp_policy: {why}"))?;
    }
    if let Some(resources) = &wanted.resources {
        for (index, rule) in resources.devices.iter().enumerate() {
            add_rule(&mut source.spec, rule)
                .map_err(|why| format!("linux.resources.devices[{index}]: {why}"))?;
        }
    }
    let path = wanted.cgroups_path;
    Ok(Beside {
        resources: wanted.resources,
        oom_score_adj: wanted.oom_score_adj.map(|score| score.value),
        cgroups_path: Some(path).filter(|path| !path.is_empty()),
        sysctl: wanted.sysctl,
    })
}

fn device_type(typ: &str) -> Result<LinuxDeviceType, String> {
    match typ {
        "c" | "u" => Ok(LinuxDeviceType::C),
        "b" => Ok(LinuxDeviceType::B),
        "p" => Ok(LinuxDeviceType::P),
        other => Err(format!("type {other:?} is none of c, u, b, p")),
    }
}

fn add_device(spec: &mut Spec, wanted: LinuxDevice) -> Result<(), String> {
    if let Some(gone) = wanted.path.strip_prefix('-') {
        devices::remove(spec, Path::new(gone));
        return Ok(());
    }
    let path = mounts::normal(&wanted.path)
        .ok_or_else(|| format!("path {:?} is no path below the root", wanted.path))?;
    let mut node = OciDevice::default();
    node.set_path(path.clone().into())
        .set_typ(device_type(&wanted.r#type)?)
        .set_major(wanted.major)
        .set_minor(wanted.minor)
        .set_file_mode(wanted.file_mode.map(|mode| mode.value & 0o7777))
        .set_uid(wanted.uid.map(|uid| uid.value))
        .set_gid(wanted.gid.map(|gid| gid.value));
    devices::add(spec, node, Path::new(&path), "rwm")
}

/// Rules only add to each other, as they do in the cgroup.
fn add_rule(spec: &mut Spec, wanted: &LinuxDeviceCgroup) -> Result<(), String> {
    if !wanted.allow {
        return cannot("allow: false");
    }
    let access: Access = wanted
        .access
        .parse()
        .map_err(|_| format!("access {:?} is not of r, w, m", wanted.access))?;
    let number = |field: &str, number: Option<OptionalInt64>| match number.map(|n| n.value) {
        // As the OCI specification writes "any".
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(|value| Some(value.into()))
            .map_err(|_| format!("{field} {value} is no number of a device")),
    };
    let major: Option<i64> = number("major", wanted.major)?;
    let minor: Option<i64> = number("minor", wanted.minor)?;
    let everything = major.is_none() && minor.is_none() && access == Access::ALL;
    let kinds: &[_] = match wanted.r#type.as_str() {
        "" | "a" if everything => &[LinuxDeviceType::A],
        "" | "a" => &[LinuxDeviceType::B, LinuxDeviceType::C],
        "p" => return Err("type \"p\": a FIFO is no device, and needs no rule".to_owned()),
        typ => &[device_type(typ)?],
    };
    for kind in kinds {
        let mut rule = OciRule::default();
        rule.set_allow(true)
            .set_typ(Some(*kind))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(wanted.access.clone()));
        devices::add_rule(spec, rule);
    }
    Ok(())
}

fn net(spec: &mut Spec, wanted: BTreeMap<String, LinuxNetDevice>) -> Result<(), String> {
    // "-" is less than any letter: what is to go goes first.
    for (host, device) in wanted {
        if let Some(gone) = host.strip_prefix('-') {
            net_devices::remove(spec, gone);
            continue;
        }
        let at = |why: &str| format!("linux.net_devices[{host:?}]: {why}");
        let name = if device.name.is_empty() {
            &host
        } else {
            &device.name
        };
        for name in [&host, name] {
            net_devices::check_name(name).map_err(|why| at(&format!("{name:?} {why}")))?;
        }
        net_devices::add(spec, &host, name).map_err(|why| at(&why))?;
    }
    Ok(())
}

fn filter(wanted: LinuxSeccomp) -> Result<Filter, String> {
    if !wanted.listener_path.is_empty() || !wanted.listener_metadata.is_empty() {
        return cannot("listener_path");
    }
    let syscalls = wanted.syscalls.into_iter().map(|rule| {
        let args = rule.args.into_iter().map(|arg| {
            json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op})
        });
        let mut value = json!({"names": rule.names, "action": rule.action});
        value["args"] = args.collect::<Vec<_>>().into();
        if let Some(errno) = rule.errno_ret {
            value["errnoRet"] = errno.value.into();
        }
        value
    });
    let mut profile = json!({
        "defaultAction": wanted.default_action,
        "architectures": wanted.architectures,
        "flags": wanted.flags,
    });
    profile["syscalls"] = Value::Array(syscalls.collect());
    if let Some(errno) = wanted.default_errno {
        profile["defaultErrnoRet"] = errno.value.into();
    }
    let profile = serde_json::from_value(profile).map_err(|error| error.to_string())?;
    seccomp::compile(&profile).map_err(|error| error.to_string())?;
    Ok(Filter::Profile(profile))
}

fn add_mounts(spec: &mut Spec, wanted: &[Mount]) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    for (index, wanted) in wanted.iter().enumerate() {
        let at = |why: String| format!("mounts[{index}]: {why}");
        if let Some(gone) = wanted.destination.strip_prefix('-') {
            let path = mounts::normal(gone).unwrap_or_default();
            all.retain(|mount| mount.destination() != Path::new(&path));
            continue;
        }
        let (target, source) = (&wanted.destination, &wanted.source);
        let mount = mounts::extra(target, &wanted.r#type, source, &wanted.options).map_err(at)?;
        let is_bind = mount.typ().as_deref() == Some("bind");
        let propagation = wanted.options.iter().rev().find_map(|option| {
            Some(match option.as_str() {
                "rshared" | "shared" => Propagation::Bidirectional,
                "rslave" | "slave" => Propagation::HostToContainer,
                "rprivate" | "private" => Propagation::Private,
                _ => return None,
            })
        });
        if let (true, Some(propagation)) = (is_bind, propagation) {
            bind::check_propagation(Path::new(source), propagation)
                .map_err(|error| at(crate::error::chain(&error)))?;
        }
        mounts::replace(&mut all, mount);
    }
    spec.set_mounts(Some(all));
    Ok(())
}

fn rlimits(spec: &mut Spec, wanted: &[PosixRlimit]) -> Result<(), String> {
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let mut all = process.rlimits().clone().unwrap_or_default();
    for limit in wanted {
        let at = |why: &str| format!("rlimits: {:?}: {why}", limit.r#type);
        let name = limit.r#type.to_ascii_uppercase();
        let name = name.strip_prefix("RLIMIT_").unwrap_or(&name);
        let typ: PosixRlimitType = serde_json::from_value(json!(format!("RLIMIT_{name}")))
            .map_err(|_| at("there is no such limit"))?;
        if limit.soft > limit.hard {
            return Err(at("the soft limit is above the hard one"));
        }
        let made = PosixRlimitBuilder::default()
            .typ(typ)
            .soft(limit.soft)
            .hard(limit.hard)
            .build()
            .map_err(|error| at(&error.to_string()))?;
        all.retain(|known| known.typ() != typ);
        all.push(made);
    }
    process.set_rlimits(Some(all));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(typ: &str, major: Option<i64>, access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroup {
            allow: true,
            r#type: typ.to_owned(),
            major: major.map(|value| OptionalInt64 { value }),
            minor: None,
            access: access.to_owned(),
        }
    }

    #[test]
    fn rules_of_devices_are_as_wide_as_they_say() {
        use LinuxDeviceType::{A, B, C};
        for (wanted, expected) in [
            (rule("a", None, "rwm"), vec![(A, None)]),
            (rule("", Some(-1), "mwr"), vec![(A, None)]),
            (rule("a", None, "r"), vec![(B, None), (C, None)]),
            (rule("a", Some(7), "rwm"), vec![(B, Some(7)), (C, Some(7))]),
            (rule("c", Some(10), "rw"), vec![(C, Some(10))]),
            (rule("u", None, "rw"), vec![(C, None)]),
        ] {
            let mut spec = Spec::default();
            let before = spec.clone();
            add_rule(&mut spec, &wanted).unwrap();
            let rules = |spec: &Spec| {
                let linux = spec.linux().clone().unwrap_or_default();
                let resources = linux.resources().clone().unwrap_or_default();
                resources.devices().clone().unwrap_or_default()
            };
            let added = &rules(&spec)[rules(&before).len()..];
            let added: Vec<_> = added
                .iter()
                .map(|rule| (rule.typ().unwrap(), rule.major()))
                .collect();
            assert_eq!(added, expected, "{wanted:?}");
        }
    }

    #[test]
    fn rules_of_devices_that_cannot_be_are_refused() {
        let deny = LinuxDeviceCgroup {
            allow: false,
            ..rule("c", Some(10), "rwm")
        };
        for (wanted, why) in [
            (deny, "allow: false: carpel cannot do it"),
            (rule("p", None, "rwm"), "a FIFO is no device"),
            (rule("x", None, "rwm"), "is none of c, u, b, p"),
            (rule("c", Some(-2), "rwm"), "major -2 is no number"),
            (rule("c", Some(1 << 32), "r"), "major 4294967296 is no"),
            (rule("c", None, "rx"), "access \"rx\" is not of r, w, m"),
        ] {
            let error = add_rule(&mut Spec::default(), &wanted).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
