//! CreateContainer.

use std::fmt;

use carpel_api::cri;

use super::mounts::unknown;
use super::{Field, Platform, Rejected, Shown, calls, limits, mounts, sandbox, security, text};
use crate::cri::signal;
use crate::spec::config::{
    ContainerConfig, ContainerName, PidScope, SandboxConfig, Scope, UserNamespace,
};

/// The kernel's bounds: one string of execve(2), and all of them together (three quarters of the stack
/// that it starts from).
const MAX_STRING: usize = 128 << 10;
const MAX_STRINGS: usize = 6 << 20;
const MAX_ENTRIES: usize = 65_536;

/// How messages name the container of a request.
struct Subject(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", Shown(&self.0))
    }
}

/// A checked CreateContainer request.
#[derive(Debug)]
pub struct CreateContainer {
    pub sandbox: calls::IdText,
    pub config: ContainerConfig,
    /// What the request's namespace options say of the namespaces that a container does not choose.
    network: Scope,
    ipc: Scope,
    user: Option<UserNamespace>,
    /// Whether the pod may have privileged containers by now, whatever was said of it when its sandbox was made.
    privileged_pod: bool,
}

/// Checks a CreateContainer request. Of the sandbox's configuration in it nothing counts but that the pod may have
/// privileged containers: it may have got its first one, an ephemeral one, only now. For all else the
/// configuration counts that the sandbox was made from.
///
/// # Errors
/// The first field that is wrong or asks for what carpel cannot do.
pub fn create_container(
    request: cri::CreateContainerRequest,
    platform: Platform,
) -> Result<CreateContainer, Rejected> {
    let sandbox = calls::sandbox_id(&request.pod_sandbox_id)?;
    let config = request
        .config
        .ok_or_else(|| Field::root("config").must_be_set())?;
    let (config, namespaces) = config_and_namespaces(config, platform)?;
    let pod = request.sandbox_config.and_then(|pod| pod.linux);
    let pod = pod.and_then(|linux| linux.security_context);
    Ok(CreateContainer {
        sandbox,
        config,
        network: namespaces.network,
        ipc: namespaces.ipc,
        user: namespaces.user,
        privileged_pod: pod.is_some_and(|context| context.privileged),
    })
}

/// Checks the configuration of a container.
///
/// # Errors
/// The first field that is wrong or asks for what carpel cannot do.
pub fn container_config(
    raw: cri::ContainerConfig,
    platform: Platform,
) -> Result<ContainerConfig, Rejected> {
    config_and_namespaces(raw, platform).map(|(config, _)| config)
}

fn config_and_namespaces(
    raw: cri::ContainerConfig,
    platform: Platform,
) -> Result<(ContainerConfig, security::Namespaces), Rejected> {
    let name = raw.metadata.clone().unwrap_or_default().name;
    check(&Field::root("config"), raw, platform).map_err(|rejected| rejected.about(&Subject(name)))
}

/// Checks what only the sandbox can tell: that a container asks for no more than its pod has.
///
/// # Errors
/// The field that asks for more.
pub fn fits_sandbox(container: &CreateContainer, sandbox: &SandboxConfig) -> Result<(), Rejected> {
    let config = Field::root("config");
    let linux = config.member("linux");
    let context = linux.member("security_context");
    let options = context.member("namespace_options");
    let wants_node = |field: &str, wanted: bool, pod_has: bool| match wanted && !pod_has {
        true => Err(options.invalid(format_args!("{field} NODE needs a pod with {field} NODE"))),
        false => Ok(()),
    };
    let check = || {
        let may = sandbox.privileged || container.privileged_pod;
        if container.config.security.privileged && !may {
            return Err(context
                .member("privileged")
                .invalid("needs a privileged sandbox"));
        }
        if container.user != sandbox.user_namespace {
            let field = options.member("userns_options");
            return Err(match &sandbox.user_namespace {
                Some(pod) => field.invalid(format_args!(
                    "must be as the pod's: mode POD, {} uids from {} on, {} gids from {} on",
                    pod.uids.count, pod.uids.host, pod.gids.count, pod.gids.host
                )),
                None => field.invalid("the pod has no user namespace"),
            });
        }
        let node = |scope: Scope| scope == Scope::Node;
        wants_node("network", node(container.network), node(sandbox.network))?;
        wants_node("ipc", node(container.ipc), node(sandbox.ipc))?;
        let node = |scope: PidScope| scope == PidScope::Node;
        wants_node(
            "pid",
            node(container.config.security.pid),
            node(sandbox.pid),
        )
    };
    check().map_err(|rejected| rejected.about(&Subject(container.config.name.name.clone())))
}

fn check(
    field: &Field<'_>,
    raw: cri::ContainerConfig,
    platform: Platform,
) -> Result<(ContainerConfig, security::Namespaces), Rejected> {
    if raw
        .windows
        .as_ref()
        .is_some_and(|windows| *windows != Default::default())
    {
        return Err(field.member("windows").unsupported("this node runs Linux"));
    }
    strings(field, &raw)?;
    let image = raw.image.unwrap_or_default();
    let image_field = field.member("image");
    text::at_most(
        &image_field.member("user_specified_image"),
        image.user_specified_image.len(),
        text::MAX_TEXT,
    )?;
    sandbox::handler(
        &image_field.member("runtime_handler"),
        image.runtime_handler,
    )?;
    let linux = raw.linux.unwrap_or_default();
    let linux_field = field.member("linux");
    let security = security::container(
        &linux_field.member("security_context"),
        linux.security_context,
        platform,
    )?;
    let user = security.namespaces.user;
    security::mount_mappings(&field.member("mounts"), &raw.mounts, user)?;
    let config = ContainerConfig {
        name: metadata(&field.member("metadata"), raw.metadata)?,
        image: calls::image_reference(&image_field.member("image"), image.image)?,
        user_specified_image: image.user_specified_image,
        command: raw.command,
        args: raw.args,
        working_dir: match raw.working_dir.as_str() {
            "" => None,
            path => Some(text::raw_absolute_path(&field.member("working_dir"), path)?),
        },
        env: raw
            .envs
            .into_iter()
            .map(|env| (env.key, env.value))
            .collect(),
        mounts: mounts::mounts(&field.member("mounts"), raw.mounts, platform)?,
        cdi_devices: mounts::cdi_devices(&field.member("CDI_devices"), &raw.cdi_devices)?,
        devices: mounts::devices(&field.member("devices"), raw.devices)?,
        labels: text::opaque_map(&field.member("labels"), raw.labels)?,
        annotations: text::opaque_map(&field.member("annotations"), raw.annotations)?,
        log_path: match raw.log_path.as_str() {
            "" => None,
            path => Some(text::relative_path(&field.member("log_path"), path)?.into()),
        },
        stdin: raw.stdin,
        stdin_once: raw.stdin_once,
        tty: raw.tty,
        resources: limits::resources(
            &linux_field.member("resources"),
            linux.resources.unwrap_or_default(),
            platform,
        )?,
        security: security.security,
        stop_signal: stop_signal(&field.member("stop_signal"), raw.stop_signal)?,
    };
    Ok((config, security.namespaces))
}

fn metadata(
    field: &Field<'_>,
    raw: Option<cri::ContainerMetadata>,
) -> Result<ContainerName, Rejected> {
    let raw = raw.ok_or_else(|| field.must_be_set())?;
    text::name(&field.member("name"), &raw.name)?;
    Ok(ContainerName {
        name: raw.name,
        attempt: raw.attempt,
    })
}

/// Command, arguments and environment: what execve(2) will get.
fn strings(field: &Field<'_>, raw: &cri::ContainerConfig) -> Result<(), Rejected> {
    let mut total = command(&field.member("command"), &raw.command)?;
    total += argument_list(&field.member("args"), &raw.args)?;
    let envs = field.member("envs");
    text::no_more_than(&envs, raw.envs.len(), MAX_ENTRIES)?;
    for (index, env) in raw.envs.iter().enumerate() {
        let entry = envs.index(index);
        environment_key(&entry.member("key"), &env.key)?;
        let value = entry.member("value");
        text::no_nul(&value, &env.value)?;
        // With "=" and NUL.
        let length = env.key.len() + env.value.len() + 2;
        text::at_most(&value, length, MAX_STRING)?;
        total += length;
    }
    text::at_most(&envs, total, MAX_STRINGS)
}

fn environment_key(field: &Field<'_>, key: &str) -> Result<(), Rejected> {
    if key.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    text::no_nul(field, key.as_bytes())?;
    if key.contains('=') {
        return Err(field.invalid(format_args!("{} must not contain '='", Shown(key))));
    }
    Ok(())
}

/// A list that begins with a program's name, or is empty. Returns its length in bytes.
pub fn command(field: &Field<'_>, list: &[String]) -> Result<usize, Rejected> {
    if list.first().is_some_and(String::is_empty) {
        return Err(field.index(0).invalid("must not be empty"));
    }
    argument_list(field, list)
}

fn argument_list(field: &Field<'_>, list: &[String]) -> Result<usize, Rejected> {
    text::no_more_than(field, list.len(), MAX_ENTRIES)?;
    let mut total = 0;
    for (index, argument) in list.iter().enumerate() {
        let entry = field.index(index);
        text::no_nul(&entry, argument.as_bytes())?;
        let length = argument.len() + 1;
        text::at_most(&entry, length, MAX_STRING)?;
        total += length;
    }
    text::at_most(field, total, MAX_STRINGS)?;
    Ok(total)
}

fn stop_signal(field: &Field<'_>, raw: i32) -> Result<Option<i32>, Rejected> {
    let signal = cri::Signal::try_from(raw).map_err(|_| unknown(field, raw))?;
    Ok(signal::number(signal))
}
