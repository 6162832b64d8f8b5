//! The requests that are little more than an id: stop, exec, filters, images, node configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use carpel_api::cri;

use super::mounts::unknown;
use super::{Field, Rejected, Shown, container, sandbox, text};

/// Longest reference of an image, and longest text that may be an id.
const MAX_REFERENCE: usize = 4096;
const MAX_ID: usize = 256;
/// The longest wait that is told from waiting for ever: ten years.
const MAX_WAIT: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A text that may be an object's id or the beginning of one: not empty, and safe to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdText(String);

impl IdText {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a `pod_sandbox_id`.
///
/// # Errors
/// If it is empty or holds what no id holds.
pub fn sandbox_id(raw: &str) -> Result<IdText, Rejected> {
    id(&Field::root("pod_sandbox_id"), raw)
}

/// Checks a `container_id`.
///
/// # Errors
/// If it is empty or holds what no id holds.
pub fn container_id(raw: &str) -> Result<IdText, Rejected> {
    id(&Field::root("container_id"), raw)
}

fn id(field: &Field<'_>, raw: &str) -> Result<IdText, Rejected> {
    if raw.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    text::at_most(field, raw.len(), MAX_ID)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !raw.chars().all(allowed) || raw.contains("..") {
        return Err(field.invalid(format_args!("{} is no id", Shown(raw))));
    }
    Ok(IdText(raw.to_owned()))
}

/// Checks StopContainer's `timeout`.
///
/// # Errors
/// If it is negative.
pub fn stop_timeout(seconds: i64) -> Result<Duration, Rejected> {
    timeout(seconds)
}

fn timeout(seconds: i64) -> Result<Duration, Rejected> {
    let seconds = u64::try_from(seconds).map_err(|_| {
        Field::root("timeout").invalid(format_args!("{seconds} must not be negative"))
    })?;
    Ok(Duration::from_secs(seconds).min(MAX_WAIT))
}

/// A checked ExecSync request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSync {
    pub container: IdText,
    /// Not empty, and neither is the first.
    pub arguments: Vec<String>,
    /// `None`: as long as it takes.
    pub timeout: Option<Duration>,
}

/// The container that a command is to be run in, and that there is a command.
pub(super) fn container_and_command(id: &str, command: &[String]) -> Result<IdText, Rejected> {
    let container = container_id(id)?;
    let about = |rejected: Rejected| rejected.about(&format_args!("container {container}"));
    let field = Field::root("cmd");
    if command.is_empty() {
        return Err(about(field.invalid("must not be empty")));
    }
    container::command(&field, command).map_err(about)?;
    Ok(container)
}

/// Checks an ExecSync request.
///
/// # Errors
/// The first field that is wrong.
pub fn exec_sync(request: cri::ExecSyncRequest) -> Result<ExecSync, Rejected> {
    let container = container_and_command(&request.container_id, &request.cmd)?;
    let about = |rejected: Rejected| rejected.about(&format_args!("container {container}"));
    let timeout = timeout(request.timeout).map_err(about)?;
    Ok(ExecSync {
        arguments: request.cmd,
        timeout: (!timeout.is_zero()).then_some(timeout),
        container,
    })
}

/// Which sandboxes are wanted. What is `None` or empty does not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxQuery {
    pub id: Option<IdText>,
    pub state: Option<cri::PodSandboxState>,
    pub labels: BTreeMap<String, String>,
}

/// Checks ListPodSandbox's filter.
///
/// # Errors
/// The first field that is wrong.
pub fn sandbox_query(filter: Option<cri::PodSandboxFilter>) -> Result<SandboxQuery, Rejected> {
    let Some(filter) = filter else {
        return Ok(SandboxQuery::default());
    };
    let field = Field::root("filter");
    let state = filter.state.map(|value| value.state);
    Ok(SandboxQuery {
        id: optional_id(&field.member("id"), &filter.id)?,
        state: state
            .map(|raw| {
                raw.try_into()
                    .map_err(|_| unknown(&field.member("state"), raw))
            })
            .transpose()?,
        labels: text::opaque_map(&field.member("label_selector"), filter.label_selector)?,
    })
}

/// Which containers are wanted. What is `None` or empty does not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerQuery {
    pub id: Option<IdText>,
    pub sandbox: Option<IdText>,
    pub state: Option<cri::ContainerState>,
    pub labels: BTreeMap<String, String>,
}

/// Checks ListContainers' filter.
///
/// # Errors
/// The first field that is wrong.
pub fn container_query(filter: Option<cri::ContainerFilter>) -> Result<ContainerQuery, Rejected> {
    let Some(filter) = filter else {
        return Ok(ContainerQuery::default());
    };
    let field = Field::root("filter");
    let state = filter.state.map(|value| value.state);
    Ok(ContainerQuery {
        id: optional_id(&field.member("id"), &filter.id)?,
        sandbox: optional_id(&field.member("pod_sandbox_id"), &filter.pod_sandbox_id)?,
        state: state
            .map(|raw| {
                raw.try_into()
                    .map_err(|_| unknown(&field.member("state"), raw))
            })
            .transpose()?,
        labels: text::opaque_map(&field.member("label_selector"), filter.label_selector)?,
    })
}

/// Checks ListContainerStats' filter.
///
/// # Errors
/// The first field that is wrong.
pub fn container_stats_query(
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<ContainerQuery, Rejected> {
    let filter = filter.unwrap_or_default();
    container_query(Some(cri::ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    }))
}

/// Checks ListPodSandboxStats' filter.
///
/// # Errors
/// The first field that is wrong.
pub fn sandbox_stats_query(
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<SandboxQuery, Rejected> {
    let filter = filter.unwrap_or_default();
    sandbox_query(Some(cri::PodSandboxFilter {
        id: filter.id,
        label_selector: filter.label_selector,
        state: None,
    }))
}

/// Checks UpdateContainerResources, but for the limits: those can only be judged together with the ones
/// that the container has.
///
/// # Errors
/// The first field that is wrong.
pub fn update_container(
    request: cri::UpdateContainerResourcesRequest,
) -> Result<(IdText, cri::LinuxContainerResources), Rejected> {
    let id = container_id(&request.container_id)?;
    let windows = request.windows.unwrap_or_default();
    if windows != Default::default() {
        return Err(Field::root("windows").unsupported("this node runs Linux"));
    }
    Ok((id, request.linux.unwrap_or_default()))
}

fn optional_id(field: &Field<'_>, raw: &str) -> Result<Option<IdText>, Rejected> {
    match raw {
        "" => Ok(None),
        raw => id(field, raw).map(Some),
    }
}

/// Checks the `image` of ImageStatus and RemoveImage.
///
/// # Errors
/// If it is missing or no name or id.
pub fn image_name(image: Option<cri::ImageSpec>) -> Result<String, Rejected> {
    let field = Field::root("image");
    let image = image.ok_or_else(|| field.must_be_set())?;
    sandbox::handler(&field.member("runtime_handler"), image.runtime_handler)?;
    image_reference(&field.member("image"), image.image)
}

/// Checks ListImages' filter. `None`: all images.
///
/// # Errors
/// If it is no name or id.
pub fn image_filter(filter: Option<cri::ImageFilter>) -> Result<Option<String>, Rejected> {
    let image = filter.and_then(|filter| filter.image).unwrap_or_default();
    if image.image.is_empty() {
        return Ok(None);
    }
    image_reference(
        &Field::root("filter").member("image").member("image"),
        image.image,
    )
    .map(Some)
}

/// The name or id of an image: one word. What it refers to is decided by those who know references.
pub(super) fn image_reference(field: &Field<'_>, raw: String) -> Result<String, Rejected> {
    text::word(field, &raw)?;
    text::at_most(field, raw.len(), MAX_REFERENCE)?;
    Ok(raw)
}

/// Checks UpdateRuntimeConfig: the node's range of pod addresses, or one of each family with a comma
/// between. `None`: nothing is said about them.
///
/// # Errors
/// If it is no range, or more than one of a family.
pub fn pod_cidr(request: cri::UpdateRuntimeConfigRequest) -> Result<Option<String>, Rejected> {
    let runtime = Field::root("runtime_config");
    let network = runtime.member("network_config");
    let field = network.member("pod_cidr");
    let raw = request
        .runtime_config
        .and_then(|config| config.network_config)
        .unwrap_or_default()
        .pod_cidr;
    if raw.is_empty() {
        return Ok(None);
    }
    text::at_most(&field, raw.len(), MAX_ID)?;
    let mut ranges: Vec<(IpAddr, u8)> = Vec::new();
    for part in raw.split(',') {
        let range = cidr(part.trim()).ok_or_else(|| {
            field.invalid(format_args!("{} is no range of addresses", Shown(part)))
        })?;
        if ranges
            .iter()
            .any(|other| other.0.is_ipv4() == range.0.is_ipv4())
        {
            return Err(field.invalid(format_args!("{} has two ranges of a family", Shown(&raw))));
        }
        ranges.push(range);
    }
    let texts: Vec<_> = ranges
        .iter()
        .map(|(address, length)| format!("{address}/{length}"))
        .collect();
    Ok(Some(texts.join(",")))
}

fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length = length
        .parse()
        .ok()
        .filter(|&length| digits && length <= longest)?;
    Some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: fmt::Debug>(result: Result<T, Rejected>) -> String {
        result.expect_err("must be refused").to_string()
    }

    #[test]
    fn ids_are_not_paths() {
        assert_eq!(text(sandbox_id("")), "pod_sandbox_id: must not be empty");
        assert_eq!(text(container_id("../")), "container_id: \"../\" is no id");
        assert_eq!(text(container_id("a\0")), "container_id: \"a\\0\" is no id");
        assert_eq!(
            text(container_id(&"a".repeat(1 << 16))),
            "container_id: is 65536 bytes long, more than 256"
        );
        assert!(container_id("no-such-container").is_ok());
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(stop_timeout(0), Ok(Duration::ZERO));
        assert_eq!(stop_timeout(i64::MAX), Ok(MAX_WAIT));
        assert_eq!(text(stop_timeout(-1)), "timeout: -1 must not be negative");
    }

    #[test]
    fn commands_need_a_program() {
        let request = |cmd: &[&str], timeout| cri::ExecSyncRequest {
            container_id: "ab".into(),
            cmd: cmd.iter().map(|&arg| arg.to_owned()).collect(),
            timeout,
        };
        let checked = exec_sync(request(&["ls"], 0)).expect("a good request");
        assert_eq!((checked.arguments.len(), checked.timeout), (1, None));
        assert_eq!(
            text(exec_sync(request(&[], 0))),
            "cmd: must not be empty (container ab)"
        );
        assert_eq!(
            text(exec_sync(request(&[""], 0))),
            "cmd[0]: must not be empty (container ab)"
        );
        assert_eq!(
            text(exec_sync(request(&["a", "b\0"], 0))),
            "cmd[1]: must not contain NUL (container ab)"
        );
        assert_eq!(
            text(exec_sync(request(&["a"], -1))),
            "timeout: -1 must not be negative (container ab)"
        );
        let long = "x".repeat(128 << 10);
        assert_eq!(
            text(exec_sync(request(&[&long], 0))),
            "cmd[0]: is 131073 bytes long, more than 131072 (container ab)"
        );
    }

    #[test]
    fn filters_know_their_states() {
        let filter = cri::ContainerFilter {
            state: Some(cri::ContainerStateValue { state: 9 }),
            ..Default::default()
        };
        assert_eq!(
            text(container_query(Some(filter))),
            "filter.state: 9 is no known value"
        );
        let filter = cri::PodSandboxFilter {
            id: "a/b".into(),
            ..Default::default()
        };
        assert_eq!(
            text(sandbox_query(Some(filter))),
            "filter.id: \"a/b\" is no id"
        );
        assert_eq!(sandbox_query(None), Ok(SandboxQuery::default()));
        assert_eq!(
            container_query(Some(cri::ContainerFilter::default())),
            Ok(ContainerQuery::default())
        );
    }

    #[test]
    fn images_have_names() {
        assert_eq!(text(image_name(None)), "image: must be set");
        assert_eq!(
            text(image_name(Some(cri::ImageSpec::default()))),
            "image.image: must not be empty"
        );
        let spec = |image: &str| cri::ImageSpec {
            image: image.into(),
            ..Default::default()
        };
        assert_eq!(
            text(image_name(Some(spec("a b")))),
            "image.image: \"a b\" must not contain ' '"
        );
        assert_eq!(image_filter(Some(cri::ImageFilter::default())), Ok(None));
    }

    #[test]
    fn pod_ranges_are_one_of_each_family() {
        let cidrs = |raw: &str| {
            pod_cidr(cri::UpdateRuntimeConfigRequest {
                runtime_config: Some(cri::RuntimeConfig {
                    network_config: Some(cri::NetworkConfig {
                        pod_cidr: raw.into(),
                    }),
                }),
            })
        };
        assert_eq!(cidrs(""), Ok(None));
        assert_eq!(
            cidrs("10.1.0.0/16, fd00::/64"),
            Ok(Some("10.1.0.0/16,fd00::/64".into()))
        );
        for bad in [
            "10.1.0.0",
            "10.1.0.0/33",
            "x/8",
            "10.1.0.0/+8",
            "fd00::/129",
            ",",
            "10.1.0.0/16,10.2.0.0/16",
        ] {
            assert!(
                text(cidrs(bad)).starts_with("runtime_config.network_config.pod_cidr: "),
                "{bad}"
            );
        }
    }
}
