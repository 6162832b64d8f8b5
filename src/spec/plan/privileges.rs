//! From root to the user of a process, one right after the other.
//!
//! A seccomp filter can be loaded by who has CAP_SYS_ADMIN, or no_new_privs. So without no_new_privs that
//! capability is kept a little longer than the rest; with it the filter comes last and need not allow
//! what comes before.

use carpel_wire::Step;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use super::compose::{Composer, terminated};
use super::{Error, HostFacts, Source, process};
use crate::seccomp;
use crate::spec::capability;
use crate::spec::oci::Filter;

/// What a process keeps while it becomes its user: to load a filter, and to enter a working directory that
/// either root or the user may enter.
const WHILE_CHANGING: u64 =
    capability::SYS_ADMIN | capability::DAC_OVERRIDE | capability::DAC_READ_SEARCH;

pub(super) fn compose(
    composer: &mut Composer,
    source: &Source,
    host: &HostFacts,
) -> Result<(), Error> {
    let process = process(source)?;
    let none = LinuxCapabilities::default();
    let sets = process.capabilities().as_ref().unwrap_or(&none);
    // In a user namespace the bounding set is full again.
    let possible = match source.in_user_namespace() {
        true => capability::ALL,
        false => host.bounding_set,
    };
    let bits = |set: &Option<Capabilities>| set.as_ref().map_or(0, capability::from_oci) & possible;
    let permitted = bits(sets.permitted());
    let effective = bits(sets.effective()) & permitted;
    let inheritable = bits(sets.inheritable());
    let ambient = bits(sets.ambient()) & permitted & inheritable;
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    let gids: Vec<u8> = groups.iter().flat_map(|gid| gid.to_le_bytes()).collect();

    composer.step(
        "limit the capabilities",
        &Step::BoundingSet {
            keep: bits(sets.bounding()),
        },
    );
    composer.step("keep capabilities over the change of user", &Step::KeepCaps);
    composer.step(
        "set the supplementary groups",
        &Step::Groups { gids: &gids },
    );
    composer.step(format!("set user {uid}:{gid}"), &Step::Ids { uid, gid });
    let meanwhile = (permitted | WHILE_CHANGING) & possible;
    composer.step(
        "reduce the capabilities",
        &Step::Capabilities {
            effective: meanwhile,
            permitted: meanwhile,
            inheritable,
        },
    );
    let cwd = process.cwd();
    let path = terminated(cwd)?;
    composer.step(
        format!("chdir to working directory {cwd:?}"),
        &Step::Chdir { path: &path },
    );
    if let Some(profile) = process.apparmor_profile() {
        let text = format!("set AppArmor profile {profile:?}");
        composer.step(
            text,
            &Step::AppArmor {
                profile: profile.as_bytes(),
            },
        );
    }
    if let Some(label) = process.selinux_label() {
        composer.step(
            format!("set SELinux label {label:?}"),
            &Step::ExecLabel {
                label: label.as_bytes(),
            },
        );
    }
    let no_new_privs = process.no_new_privileges().unwrap_or(false);
    if !no_new_privs {
        load(composer, &source.seccomp)?;
    }
    composer.step(
        "set the capabilities",
        &Step::Capabilities {
            effective,
            permitted,
            inheritable,
        },
    );
    composer.step(
        "set the ambient capabilities",
        &Step::Ambient { raise: ambient },
    );
    if no_new_privs {
        composer.step("set no_new_privs", &Step::NoNewPrivs);
        load(composer, &source.seccomp)?;
    }
    Ok(())
}

fn load(composer: &mut Composer, filter: &Filter) -> Result<(), Error> {
    let program = match filter {
        Filter::Unconfined => return Ok(()),
        Filter::Default { capabilities } => seccomp::compile_default(*capabilities)?,
        Filter::Profile(profile) => seccomp::compile(profile)?,
    };
    let step = Step::Seccomp {
        program: &program.instructions,
        flags: program.flags,
    };
    composer.step("load the seccomp profile", &step);
    Ok(())
}
