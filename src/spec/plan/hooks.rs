//! The steps of a container's hooks.
//!
//! A container with hooks before its start is made in the sight of the host, as hooks expect it: in a copy of the
//! host's mounts, with its root file system at `rootfs` in its bundle. When it is complete the child stops and the
//! daemon runs the hooks that run outside; then it runs those that run inside, and only then leaves the host behind.
//!
//! In a pod with a user namespace nobody may enter the host's mount namespace. There the copy comes from the daemon, as one
//! more mount whose flags are locked and that is never unmounted in parts; and as nobody inside may pass the daemon's
//! folders, a file system of the pod's root with the bundle in it covers them.

use std::os::unix::ffi::OsStrExt;

use carpel_wire::{FdIndex, NulList, Step, encode_nul_list};
use oci_spec::runtime::Hook;

use super::compose::{Composer, terminated};
use super::{CLONE_NEWNS, Error, FdSource, Source};
use crate::spec::env::DEFAULT_PATH;
use crate::spec::hooks::{self, Point, ROOTFS};

/// Gets the process to its root file system, whose hooks may want it to stay in sight of the host for now.
pub(super) fn enter(composer: &mut Composer, source: &Source, root: FdIndex) -> Result<(), Error> {
    if !hooks::in_sight(&source.spec) {
        if has(source, Point::StartContainer) {
            meet(composer);
        }
        composer.step("enter the root file system", &Step::PivotRoot { root });
        return Ok(());
    }
    let bundle = source.bundle.as_ref().ok_or(Error::Missing("bundle"))?;
    if source.in_user_namespace() {
        see_copy(composer, source)?;
    } else {
        let namespace = composer.fd(FdSource::Namespace("/proc/self/ns/mnt".into()));
        let flags = CLONE_NEWNS;
        let step = Step::SetNsFd { namespace, flags };
        composer.step("enter the host's mount namespace for hooks", &step);
        composer.step("copy the host's mounts for hooks", &Step::Unshare { flags });
        composer.step("keep mounts from the host", &Step::MakeSlave);
    }
    let target = bundle.join(ROOTFS);
    let path = terminated(&target)?;
    let step = Step::AttachRoot {
        root,
        target: &path,
    };
    composer.step(format!("mount the root file system on {target:?}"), &step);
    Ok(())
}

fn see_copy(composer: &mut Composer, source: &Source) -> Result<(), Error> {
    let cover = source.cover.as_ref().ok_or(Error::Missing("cover"))?;
    let root = composer.fd(FdSource::HostMounts);
    let step = Step::PivotRoot { root };
    composer.step("enter a copy of the host's mounts for hooks", &step);
    let mount = composer.fd(FdSource::BundleCover);
    let step = Step::Attach {
        mount,
        target: &terminated(cover)?,
        no_symlinks: false,
    };
    composer.step(format!("mount the bundle over {cover:?} for hooks"), &step);
    Ok(())
}

/// Runs what runs when the file system is there, and leaves the host behind.
pub(super) fn leave(composer: &mut Composer, source: &Source) -> Result<(), Error> {
    if !hooks::in_sight(&source.spec) {
        return Ok(());
    }
    meet(composer);
    run(composer, source, Point::CreateContainer)?;
    composer.step("enter the root file system", &Step::EnterRoot);
    Ok(())
}

/// Runs what runs inside, with the rights of the container's process and no others: an image may have put anything
/// at the path of such a hook.
pub(super) fn before_exec(composer: &mut Composer, source: &Source) -> Result<(), Error> {
    run(composer, source, Point::StartContainer)
}

fn has(source: &Source, point: Point) -> bool {
    !hooks::of(&source.spec, point).is_empty()
}

fn meet(composer: &mut Composer) {
    let channel = composer.fd(FdSource::HookChannel);
    composer.step("wait for hooks", &Step::Rendezvous { channel });
}

fn run(composer: &mut Composer, source: &Source, point: Point) -> Result<(), Error> {
    let list = hooks::of(&source.spec, point);
    if list.is_empty() {
        return Ok(());
    }
    let state = composer.fd(match point {
        Point::StartContainer => FdSource::HookState { created: true },
        _ => FdSource::HookState { created: false },
    });
    let output = composer.fd(FdSource::HookOutput);
    for hook in list {
        let path = terminated(hook.path())?;
        let arguments = encoded(&arguments(hook))?;
        let environment = encoded(&environment(hook))?;
        let list = |bytes| NulList::new(bytes).expect("an encoded list ends with a NUL");
        let step = Step::Hook {
            state,
            output,
            seconds: hooks::seconds(hook),
            path: &path,
            arguments: list(&arguments),
            environment: list(&environment),
        };
        composer.step(hooks::describe(point, hook), &step);
    }
    Ok(())
}

fn arguments(hook: &Hook) -> Vec<Vec<u8>> {
    match hook.args() {
        Some(args) if !args.is_empty() => args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        _ => vec![hook.path().as_os_str().as_bytes().to_vec()],
    }
}

fn environment(hook: &Hook) -> Vec<Vec<u8>> {
    match hook.env() {
        Some(env) => env
            .iter()
            .map(|variable| variable.clone().into_bytes())
            .collect(),
        None => vec![format!("PATH={DEFAULT_PATH}").into_bytes()],
    }
}

fn encoded(list: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    encode_nul_list(list.iter().map(Vec::as_slice))
        .map_err(|string| Error::Nul(String::from_utf8_lossy(string).into_owned()))
}
