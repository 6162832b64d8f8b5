//! The Plan by which the reaper of a pod with SELinux labels gets the pod's.
//!
//! Containers may then look at process 1 of the PID namespace that they share, as they may where that is another
//! runtime's pause: it is one of theirs to the policy, and its root has the label of their files.

use carpel_wire::{BE_REAPER, FdIndex, NulList, PidNamespace, Step, encode_nul_list};

use super::compose::{Composer, terminated};
use super::{Compiled, Error, FdSource};
use crate::selinux::Labels;
use crate::spec::config::UserNamespace;

/// Who the reaper is, as the pause processes of other runtimes are.
const NOBODY: u32 = 65535;

/// The program, by the name that every process of the supervisor's has.
const PROGRAM: &[u8] = b"/carpel-supervisor\0";

/// Compiles the Plan of a reaper: no file but its program, which it executes with no right left. `user` is the pod's user
/// namespace, in which it is cloned.
///
/// # Errors
/// None that has to do with its arguments: a label holds no NUL byte.
pub fn compile_reaper(labels: &Labels, user: Option<UserNamespace>) -> Result<Compiled, Error> {
    let mut composer = Composer::new();
    if user.is_some() {
        let step = Step::Ids { uid: 0, gid: 0 };
        composer.step("become root of the user namespace", &step);
    }
    root(&mut composer, labels)?;
    let step = Step::BoundingSet { keep: 0 };
    composer.step("limit the capabilities", &step);
    let step = Step::Groups { gids: &[] };
    composer.step("set the supplementary groups", &step);
    let is_nobody = |user: UserNamespace| user.uids.count.min(user.gids.count) > NOBODY;
    // A pod's user namespace may have fewer ids. Root has no capabilities either, then.
    if user.is_none_or(is_nobody) {
        let step = Step::Ids {
            uid: NOBODY,
            gid: NOBODY,
        };
        composer.step(format!("set user {NOBODY}:{NOBODY}"), &step);
    }
    let step = Step::Capabilities {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    composer.step("reduce the capabilities", &step);
    let label = labels.process.to_string();
    let step = Step::ExecLabel {
        label: label.as_bytes(),
    };
    composer.step(format!("set SELinux label {label}"), &step);
    let arguments = [&PROGRAM[1..], BE_REAPER].concat();
    let list = |bytes| NulList::new(bytes).expect("each ends with a NUL");
    let step = Step::Exec {
        candidates: list(PROGRAM),
        arguments: list(&arguments),
        environment: NulList::default(),
    };
    composer.step("exec: the reaper's program", &step);
    composer.finish(0, PidNamespace::New)
}

/// A tmpfs that is full with the program in it. Who may not read that may not trace the process either. A policy need not
/// let anybody change labels on a mount without set-user-id, so it is not one; no_new_privs comes after the exec for
/// the same reason.
fn root(composer: &mut Composer, labels: &Labels) -> Result<(), Error> {
    let slot = FdIndex(FdIndex::FIRST_SLOT);
    let context = labels.mount.to_string();
    let options = ["nr_inodes", "2", "mode", "0755", "context", &context];
    let options = encode_nul_list(options).map_err(|option| Error::Nul(option.to_owned()))?;
    let step = Step::NewFs {
        fstype: &terminated("tmpfs")?,
        options: NulList::new(&options).expect("an encoded list ends with a NUL"),
        attrs: libc::MOUNT_ATTR_NODEV,
        slot,
    };
    composer.step("make a tmpfs for the reaper", &step);
    composer.step("enter the new root", &Step::PivotRoot { root: slot });
    let step = Step::File {
        content: composer.fd(FdSource::Program),
        path: PROGRAM,
        mode: 0o111,
    };
    composer.step("write the reaper's program", &step);
    let step = Step::SetAttr {
        path: b"/\0",
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
        recursive: false,
    };
    composer.step("make the root read-only", &step);
    Ok(())
}
