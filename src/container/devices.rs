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
    if rules.iter().any(is_everything) {
        return Ok(DevicePolicy::AllowAll);
    }
    // The cgroup denies everything else by itself.
    let allowed = rules.iter().filter(|rule| rule.allow());
    allowed
        .map(convert)
        .collect::<Result<Vec<_>, _>>()
        .map(DevicePolicy::Rules)
}

/// Whether a rule allows all that can be done, with all devices: one of some kind, or to read only, does not.
fn is_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any = matches!(rule.typ(), None | Some(LinuxDeviceType::A))
        && rule.major().is_none()
        && rule.minor().is_none();
    let access = rule.access().as_deref().unwrap_or_default().parse();
    rule.allow() && any && access == Ok(Access::ALL)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(typ: Option<LinuxDeviceType>, major: Option<i64>, access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(typ)
            .set_major(major)
            .set_minor(None)
            .set_access(Some(access.to_owned()));
        rule
    }

    fn of(rules: Vec<LinuxDeviceCgroup>) -> Result<DevicePolicy, Error> {
        let mut spec = Spec::default();
        rules
            .into_iter()
            .for_each(|rule| crate::spec::devices::add_rule(&mut spec, rule));
        policy(&spec)
    }

    #[test]
    fn only_what_allows_everything_is_no_restriction() {
        use LinuxDeviceType::{A, B, C, P};
        for typ in [None, Some(A)] {
            let all = of(vec![rule(typ, None, "rwm")]).unwrap();
            assert_eq!(all, DevicePolicy::AllowAll);
        }
        for (typ, major, access) in [
            (None, None, "r"),
            (Some(A), None, "rw"),
            (Some(A), Some(1), "rwm"),
            (Some(P), None, "rwm"),
        ] {
            let error = of(vec![rule(typ, major, access)]).unwrap_err().to_string();
            assert!(error.contains("cannot be applied"), "{error}");
        }
        for typ in [B, C] {
            let policy = of(vec![rule(Some(typ), None, "rwm")]).unwrap();
            assert!(matches!(policy, DevicePolicy::Rules(rules) if rules.len() == 1));
        }
    }
}
