//! Security contexts: namespaces, users, capabilities, profiles.

use carpel_api::cri;
use carpel_api::cri::security_profile::ProfileType;

use super::mounts::unknown;
use super::{Field, Platform, Rejected, Shown, text};
use crate::ids::ContainerId;
use crate::spec::capability;
use crate::spec::config::{
    AppArmorProfile, GroupsPolicy, IdMap, PidScope, Scope, SeccompProfile, Security,
    SelinuxOptions, UserNamespace, UserSpec,
};

/// The kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;
const MAX_PATHS: usize = 16_384;
const MAX_CAPABILITIES: usize = 128;

/// Whose namespaces are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    pub network: Scope,
    pub ipc: Scope,
    pub pid: PidScope,
    pub user: Option<UserNamespace>,
}

/// Checks namespace options. Absent ones are all POD, as the interface says.
pub fn namespaces(
    field: &Field<'_>,
    raw: Option<cri::NamespaceOption>,
) -> Result<Namespaces, Rejected> {
    let raw = raw.unwrap_or_default();
    let target_field = field.member("target_id");
    let pid = match mode(&field.member("pid"), raw.pid)? {
        cri::NamespaceMode::Pod => PidScope::Pod,
        cri::NamespaceMode::Container => PidScope::Container,
        cri::NamespaceMode::Node => PidScope::Node,
        cri::NamespaceMode::Target => {
            let target: ContainerId = raw
                .target_id
                .parse()
                .map_err(|_| target_field.invalid("must be the id of a container of the pod"))?;
            PidScope::Target(target)
        }
    };
    if !raw.target_id.is_empty() && !matches!(pid, PidScope::Target(_)) {
        return Err(target_field.invalid("needs pid TARGET"));
    }
    let namespaces = Namespaces {
        network: scope(&field.member("network"), raw.network)?,
        ipc: scope(&field.member("ipc"), raw.ipc)?,
        pid,
        user: user_namespace(&field.member("userns_options"), raw.userns_options)?,
    };
    if namespaces.user.is_some() {
        // Nobody in the user namespace has a right to mount what belongs to these. Kubernetes knows no such
        // pods either.
        let refused = "NODE cannot be had in a user namespace";
        if namespaces.pid == PidScope::Node {
            return Err(field.member("pid").invalid(refused));
        }
        if namespaces.ipc == Scope::Node {
            return Err(field.member("ipc").invalid(refused));
        }
    }
    Ok(namespaces)
}

fn mode(field: &Field<'_>, raw: i32) -> Result<cri::NamespaceMode, Rejected> {
    cri::NamespaceMode::try_from(raw).map_err(|_| unknown(field, raw))
}

fn scope(field: &Field<'_>, raw: i32) -> Result<Scope, Rejected> {
    match mode(field, raw)? {
        cri::NamespaceMode::Pod => Ok(Scope::Pod),
        cri::NamespaceMode::Node => Ok(Scope::Node),
        cri::NamespaceMode::Container | cri::NamespaceMode::Target => {
            Err(field.invalid("must be POD or NODE"))
        }
    }
}

fn user_namespace(
    field: &Field<'_>,
    raw: Option<cri::UserNamespace>,
) -> Result<Option<UserNamespace>, Rejected> {
    let Some(raw) = raw else { return Ok(None) };
    match scope(&field.member("mode"), raw.mode)? {
        Scope::Pod => Ok(Some(UserNamespace {
            uids: id_map(&field.member("uids"), &raw.uids)?,
            gids: id_map(&field.member("gids"), &raw.gids)?,
        })),
        Scope::Node if !raw.uids.is_empty() || !raw.gids.is_empty() => {
            Err(field.invalid("mode NODE takes no id mappings"))
        }
        Scope::Node => Ok(None),
    }
}

/// One mapping, of id 0 and those that follow, to ids that exist.
fn id_map(field: &Field<'_>, raw: &[cri::IdMapping]) -> Result<IdMap, Rejected> {
    let [raw] = raw else {
        let count = raw.len();
        return Err(field.invalid(format_args!("must be one mapping, not {count}")));
    };
    let field = field.index(0);
    if raw.container_id != 0 {
        let why = format_args!("must be 0, not {}: id 0 has to be mapped", raw.container_id);
        return Err(field.member("container_id").invalid(why));
    }
    if raw.length == 0 {
        return Err(field.member("length").invalid("must not be 0"));
    }
    // The last id stands for "none".
    match raw.host_id.checked_add(raw.length) {
        Some(_) => Ok(IdMap {
            host: raw.host_id,
            count: raw.length,
        }),
        None => Err(field.invalid(format_args!(
            "{} ids from {} on are more than there are",
            raw.length, raw.host_id
        ))),
    }
}

/// Checks the mappings that mounts are sent with: all mounts of a pod with a user namespace have its ids, and
/// no others do.
pub(super) fn mount_mappings(
    field: &Field<'_>,
    mounts: &[cri::Mount],
    user: Option<UserNamespace>,
) -> Result<(), Rejected> {
    for (index, mount) in mounts.iter().enumerate() {
        let field = field.index(index);
        let maps = [
            (
                "uidMappings",
                &mount.uid_mappings,
                user.map(|user| user.uids),
            ),
            (
                "gidMappings",
                &mount.gid_mappings,
                user.map(|user| user.gids),
            ),
        ];
        for (name, raw, pods) in maps {
            let field = field.member(name);
            if !raw.is_empty() && Some(id_map(&field, raw)?) != pods {
                let why = "must be as those of the pod's user namespace, or none";
                return Err(field.invalid(why));
            }
        }
    }
    Ok(())
}

/// What counts of a sandbox's security context.
#[derive(Debug)]
pub struct SandboxSecurity {
    pub namespaces: Namespaces,
    pub privileged: bool,
    pub selinux: SelinuxOptions,
}

/// Checks a sandbox's security context. Its user and profiles are for a process that carpel's sandboxes
/// do not have, so they are checked and lead to nothing.
pub fn sandbox(
    field: &Field<'_>,
    raw: Option<cri::LinuxSandboxSecurityContext>,
    platform: Platform,
) -> Result<SandboxSecurity, Rejected> {
    let raw = raw.unwrap_or_default();
    let namespaces_field = field.member("namespace_options");
    let namespaces = namespaces(&namespaces_field, raw.namespace_options)?;
    if matches!(namespaces.pid, PidScope::Target(_)) {
        return Err(namespaces_field
            .member("pid")
            .invalid("TARGET is for containers"));
    }
    user(field, raw.run_as_user, "")?;
    group(field, raw.run_as_group, raw.run_as_user.is_some())?;
    groups(
        &field.member("supplemental_groups"),
        &raw.supplemental_groups,
    )?;
    groups_policy(
        &field.member("supplemental_groups_policy"),
        raw.supplemental_groups_policy,
    )?;
    let selinux = selinux(&field.member("selinux_options"), raw.selinux_options)?;
    apparmor(field, raw.apparmor, "", platform)?;
    #[expect(deprecated, reason = "older clients send it")]
    seccomp(field, raw.seccomp, &raw.seccomp_profile_path)?;
    Ok(SandboxSecurity {
        namespaces,
        privileged: raw.privileged,
        selinux,
    })
}

/// A container's security and whose namespaces it asks for.
pub struct ContainerSecurity {
    pub security: Security,
    pub namespaces: Namespaces,
}

/// Checks a container's security context.
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
pub fn container(
    field: &Field<'_>,
    raw: Option<cri::LinuxContainerSecurityContext>,
    platform: Platform,
) -> Result<ContainerSecurity, Rejected> {
    let raw = raw.unwrap_or_default();
    let privileged = raw.privileged;
    let namespaces = namespaces(&field.member("namespace_options"), raw.namespace_options)?;
    let capabilities = raw.capabilities.unwrap_or_default();
    let capabilities_field = field.member("capabilities");
    let selinux = selinux(&field.member("selinux_options"), raw.selinux_options)?;
    let apparmor = apparmor(field, raw.apparmor, &raw.apparmor_profile, platform)?;
    let user = user(field, raw.run_as_user, &raw.run_as_username)?;
    let seccomp = seccomp(field, raw.seccomp, &raw.seccomp_profile_path)?;
    let masked_paths = paths(&field.member("masked_paths"), &raw.masked_paths)?;
    let readonly_paths = paths(&field.member("readonly_paths"), &raw.readonly_paths)?;
    let security = Security {
        privileged,
        add_capabilities: capability_names(
            &capabilities_field.member("add_capabilities"),
            &capabilities.add_capabilities,
        )?,
        drop_capabilities: capability_names(
            &capabilities_field.member("drop_capabilities"),
            &capabilities.drop_capabilities,
        )?,
        add_ambient_capabilities: capability_names(
            &capabilities_field.member("add_ambient_capabilities"),
            &capabilities.add_ambient_capabilities,
        )?,
        pid: namespaces.pid,
        run_as_group: group(field, raw.run_as_group, user.is_some())?,
        user,
        supplemental_groups: groups(
            &field.member("supplemental_groups"),
            &raw.supplemental_groups,
        )?,
        supplemental_groups_policy: groups_policy(
            &field.member("supplemental_groups_policy"),
            raw.supplemental_groups_policy,
        )?,
        readonly_rootfs: raw.readonly_rootfs,
        no_new_privs: raw.no_new_privs,
        // The kubelet sends these to privileged containers too; they get none, as with the peers.
        masked_paths: if privileged { Vec::new() } else { masked_paths },
        readonly_paths: if privileged {
            Vec::new()
        } else {
            readonly_paths
        },
        seccomp: if privileged {
            SeccompProfile::Unconfined
        } else {
            seccomp
        },
        // A profile that is named is applied all the same.
        apparmor: match apparmor {
            AppArmorProfile::Default { .. } if privileged => AppArmorProfile::Unconfined,
            apparmor => apparmor,
        },
        selinux,
    };
    Ok(ContainerSecurity {
        security,
        namespaces,
    })
}

fn user(
    field: &Field<'_>,
    id: Option<cri::Int64Value>,
    name: &str,
) -> Result<Option<UserSpec>, Rejected> {
    let name_field = field.member("run_as_username");
    match (id, name) {
        (None, "") => Ok(None),
        (Some(id), "") => {
            let id = text::id(&field.member("run_as_user"), id.value)?;
            Ok(Some(UserSpec::Id(id)))
        }
        (Some(_), _) => Err(name_field.invalid("must not be set together with run_as_user")),
        (None, name) => user_name(&name_field, name).map(Some),
    }
}

/// A name of the image's /etc/passwd. Digits are a number and never a name, whatever the image says.
fn user_name(field: &Field<'_>, name: &str) -> Result<UserSpec, Rejected> {
    const MAX_USER_NAME: usize = 256;
    text::word(field, name)?;
    text::at_most(field, name.len(), MAX_USER_NAME)?;
    if name.contains([':', '/']) {
        return Err(field.invalid(format_args!(
            "{} must not contain \":\" or \"/\"",
            Shown(name)
        )));
    }
    let digits = name.strip_prefix(['-', '+']).unwrap_or(name);
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let id = name.parse().unwrap_or(i64::MAX);
        return text::id(field, id).map(UserSpec::Id);
    }
    Ok(UserSpec::Name(name.to_owned()))
}

fn group(
    field: &Field<'_>,
    id: Option<cri::Int64Value>,
    has_user: bool,
) -> Result<Option<u32>, Rejected> {
    let Some(id) = id else { return Ok(None) };
    let field = field.member("run_as_group");
    if !has_user {
        return Err(field.invalid("needs run_as_user or run_as_username"));
    }
    text::id(&field, id.value).map(Some)
}

fn groups(field: &Field<'_>, raw: &[i64]) -> Result<Vec<u32>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_GROUPS)?;
    raw.iter()
        .enumerate()
        .map(|(index, &id)| text::id(&field.index(index), id))
        .collect()
}

fn groups_policy(field: &Field<'_>, raw: i32) -> Result<GroupsPolicy, Rejected> {
    match cri::SupplementalGroupsPolicy::try_from(raw) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => Ok(GroupsPolicy::Merge),
        Ok(cri::SupplementalGroupsPolicy::Strict) => Ok(GroupsPolicy::Strict),
        Err(_) => Err(unknown(field, raw)),
    }
}

fn capability_names(field: &Field<'_>, raw: &[String]) -> Result<Vec<String>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_CAPABILITIES)?;
    raw.iter()
        .enumerate()
        .map(|(index, raw)| {
            let upper = raw.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if name == "ALL" || capability::bit(name).is_some() {
                return Ok(name.to_owned());
            }
            Err(field
                .index(index)
                .invalid(format_args!("{} is no capability", Shown(raw))))
        })
        .collect()
}

fn paths(field: &Field<'_>, raw: &[String]) -> Result<Vec<String>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_PATHS)?;
    raw.iter()
        .enumerate()
        .map(|(index, path)| text::absolute_path(&field.index(index), path))
        .collect()
}

/// Whether the kernel has such a label is asked where it has labels at all.
fn selinux(field: &Field<'_>, raw: Option<cri::SeLinuxOption>) -> Result<SelinuxOptions, Rejected> {
    let raw = raw.unwrap_or_default();
    let part = |name, part, separators| label_part(&field.member(name), part, separators);
    Ok(SelinuxOptions {
        user: part("user", raw.user, "")?,
        role: part("role", raw.role, "")?,
        kind: part("type", raw.r#type, "")?,
        level: part("level", raw.level, ":,")?,
    })
}

/// A part of a label, which others are joined to with ":". Only a level ("s0:c1,c5") has some in itself.
fn label_part(
    field: &Field<'_>,
    part: String,
    separators: &str,
) -> Result<Option<String>, Rejected> {
    const MAX_PART: usize = 1024;
    text::at_most(field, part.len(), MAX_PART)?;
    let allowed = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || separators.contains(c)
    };
    match part.chars().find(|&c| !allowed(c)) {
        None => Ok((!part.is_empty()).then_some(part)),
        Some(bad) => Err(field.invalid(format_args!("{} must not contain {bad:?}", Shown(&part)))),
    }
}

/// The profile, or what its former field says. Neither is the default, as with the peers. Where the kernel has
/// no AppArmor the default is no profile, and another cannot be had.
fn apparmor(
    field: &Field<'_>,
    raw: Option<cri::SecurityProfile>,
    former: &str,
    platform: Platform,
) -> Result<AppArmorProfile, Rejected> {
    let former_field = field.member("apparmor_profile");
    let former = former_apparmor(&former_field, former)?;
    let field = field.member("apparmor");
    let (profile, named_by) = match raw {
        None => (former, former_field),
        Some(raw) => {
            let reference = field.member("localhost_ref");
            let profile = match profile_type(&field, &raw)? {
                ProfileType::Unconfined => AppArmorProfile::Unconfined,
                ProfileType::RuntimeDefault => AppArmorProfile::Default { asked_for: true },
                ProfileType::Localhost => apparmor_name(&reference, &raw.localhost_ref)?,
            };
            (profile, field)
        }
    };
    match profile {
        profile if platform.apparmor => Ok(profile),
        AppArmorProfile::Localhost(name) => Err(named_by.unsupported(format_args!(
            "profile {} cannot be had: the node has no AppArmor",
            Shown(&name)
        ))),
        _ => Ok(AppArmorProfile::Unconfined),
    }
}

fn former_apparmor(field: &Field<'_>, raw: &str) -> Result<AppArmorProfile, Rejected> {
    match raw {
        "" => Ok(AppArmorProfile::Default { asked_for: false }),
        "runtime/default" | "docker/default" => Ok(AppArmorProfile::Default { asked_for: true }),
        "unconfined" => Ok(AppArmorProfile::Unconfined),
        name if name.starts_with("localhost/") => apparmor_name(field, name),
        other => Err(field.invalid(format_args!("{} is no AppArmor profile", Shown(other)))),
    }
}

/// The name of a profile, with or without "localhost/" before it.
fn apparmor_name(field: &Field<'_>, raw: &str) -> Result<AppArmorProfile, Rejected> {
    /// What a supervisor has room for.
    const MAX_NAME: usize = 512;
    let name = raw.strip_prefix("localhost/").unwrap_or(raw);
    if name.is_empty() {
        return Err(field.invalid("must name a profile"));
    }
    text::at_most(field, name.len(), MAX_NAME)?;
    if name.contains(char::is_control) {
        return Err(field.invalid("must not contain control characters"));
    }
    Ok(AppArmorProfile::Localhost(name.to_owned()))
}

/// The profile, or what its former field says. Neither is no profile.
fn seccomp(
    field: &Field<'_>,
    raw: Option<cri::SecurityProfile>,
    former: &str,
) -> Result<SeccompProfile, Rejected> {
    let Some(raw) = raw else {
        return former_seccomp(&field.member("seccomp_profile_path"), former);
    };
    let field = field.member("seccomp");
    match profile_type(&field, &raw)? {
        ProfileType::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
        ProfileType::Localhost => {
            let path = text::absolute_path(&field.member("localhost_ref"), &raw.localhost_ref)?;
            Ok(SeccompProfile::Localhost(path.into()))
        }
    }
}

fn former_seccomp(field: &Field<'_>, raw: &str) -> Result<SeccompProfile, Rejected> {
    match raw {
        "" | "unconfined" => Ok(SeccompProfile::Unconfined),
        "runtime/default" | "docker/default" => Ok(SeccompProfile::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => {
                let path = text::absolute_path(field, path)?;
                Ok(SeccompProfile::Localhost(path.into()))
            }
            None => Err(field.invalid(format_args!("{} is no seccomp profile", Shown(other)))),
        },
    }
}

fn profile_type(field: &Field<'_>, raw: &cri::SecurityProfile) -> Result<ProfileType, Rejected> {
    let profile = ProfileType::try_from(raw.profile_type)
        .map_err(|_| unknown(&field.member("profile_type"), raw.profile_type))?;
    let reference = field.member("localhost_ref");
    match (profile, raw.localhost_ref.is_empty()) {
        (ProfileType::Localhost, true) => Err(reference.invalid("must not be empty")),
        (ProfileType::Localhost, false) | (_, true) => Ok(profile),
        (_, false) => Err(reference.invalid("needs profile_type Localhost")),
    }
}
