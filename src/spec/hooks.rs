//! Programs that run at points of a container's life: the hooks of its OCI spec.

use oci_spec::runtime::{Hook, Hooks, Spec};

/// When a hook runs. Old specs say "prestart" for what is "createRuntime" now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// As the OCI spec writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// Adds a hook behind the others of its point, which is named as in the OCI spec. An unknown name adds nothing.
#[allow(deprecated)] // Prestart hooks are still in use.
pub fn push(spec: &mut Spec, point: &str, hook: Hook) {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let list = match point {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        _ => return,
    };
    list.get_or_insert_default().push(hook);
    spec.set_hooks(Some(hooks));
}

/// The hooks of a point, in the order in which they run.
#[must_use]
pub fn of(spec: &Spec, point: Point) -> Vec<&Hook> {
    spec.hooks()
        .as_ref()
        .map(|hooks| {
            lists(hooks, point)
                .into_iter()
                .flatten()
                .flatten()
                .collect()
        })
        .unwrap_or_default()
}

#[allow(deprecated)] // Prestart hooks are still in use.
fn lists(hooks: &Hooks, point: Point) -> [Option<&Vec<Hook>>; 2] {
    let (first, list) = match point {
        Point::CreateRuntime => (hooks.prestart(), hooks.create_runtime()),
        Point::CreateContainer => (&None, hooks.create_container()),
        Point::StartContainer => (&None, hooks.start_container()),
        Point::Poststart => (&None, hooks.poststart()),
        Point::Poststop => (&None, hooks.poststop()),
    };
    [first.as_ref(), list.as_ref()]
}

/// How long a hook may run that does not say it.
const SECONDS: u32 = 60;

/// How long any hook may run.
const MOST_SECONDS: u32 = 600;

/// How long a hook may run.
#[must_use]
pub fn seconds(hook: &Hook) -> u32 {
    hook.timeout()
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|&seconds| seconds > 0)
        .map_or(SECONDS, |seconds| seconds.min(MOST_SECONDS))
}

/// What errors call a hook.
#[must_use]
pub fn describe(point: Point, hook: &Hook) -> String {
    format!("{} hook {:?}", point.name(), hook.path())
}

/// Whether a spec has any hooks at all.
#[must_use]
pub fn any(spec: &Spec) -> bool {
    POINTS.iter().any(|&point| !of(spec, point).is_empty())
}

/// Whether a container is made in the sight of the host, as hooks before its start expect it.
#[must_use]
pub fn in_sight(spec: &Spec) -> bool {
    [Point::CreateRuntime, Point::CreateContainer]
        .iter()
        .any(|&point| !of(spec, point).is_empty())
}

/// Where the root file system is, in the bundle.
pub const ROOTFS: &str = "rootfs";

/// In the order in which a container passes them.
pub const POINTS: [Point; 5] = [
    Point::CreateRuntime,
    Point::CreateContainer,
    Point::StartContainer,
    Point::Poststart,
    Point::Poststop,
];
