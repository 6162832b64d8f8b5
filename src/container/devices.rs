//! The device rules of a container's spec, as its cgroup takes them.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::cgroup::{Access, DeviceKind, DevicePolicy, DeviceRule};
use crate::error::Error;

/// The rules in `spec`. One that allows everything (a privileged container) is no restriction at all.
///
/// # Errors
/// [`Error::InvalidArgument`] for permissions that are no such.
pub(crate) fn policy(spec: &Spec) -> Result<DevicePolicy, Error> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let rules = resources
        .and_then(|resources| resources.devices().as_deref())
        .unwrap_or_default();
    let everything = |rule: &&LinuxDeviceCgroup| {
        rule.allow() && rule.major().is_none() && rule.minor().is_none() && kind(rule).is_none()
    };
    if rules.iter().any(|rule| everything(&rule)) {
        return Ok(DevicePolicy::AllowAll);
    }
    // The cgroup denies everything else by itself.
    let allowed = rules.iter().filter(|rule| rule.allow());
    allowed
        .map(convert)
        .collect::<Result<Vec<_>, _>>()
        .map(DevicePolicy::Rules)
}

fn convert(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    let invalid = || Error::InvalidArgument(format!("device rule {rule:?} cannot be applied"));
    let access: Access = rule
        .access()
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(|_| invalid())?;
    let number = |n: Option<i64>| n.map(u32::try_from).transpose().map_err(|_| invalid());
    Ok(DeviceRule {
        kind: kind(rule).ok_or_else(invalid)?,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

fn kind(rule: &LinuxDeviceCgroup) -> Option<DeviceKind> {
    match rule.typ() {
        Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Char),
        _ => None,
    }
}
