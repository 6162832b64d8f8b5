//! A plugin that is registered: what it is called, what it wants to hear of, and how it is asked.

use std::cmp::Ordering;
use std::sync::atomic::{AtomicU32, Ordering as Memory};
use std::time::Duration;

use carpel_api::nri::{
    ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, Event, PodSandbox,
    StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
};
use prost::Message;
use tokio::process::Child;
use tonic::Code;

use super::connection::{Connection, Failure};
use super::frame::MAX_DATA;
use super::{Subject, VERSION};

/// Every event that there is.
const ALL: u32 = (1 << (Event::Last as u32 - 1)) - 1;

/// How much of a message pods and containers may take: the rest is for what a call adds to them.
const MAX_STATE: usize = MAX_DATA - (64 << 10);

/// The longest name.
const MAX_NAME: usize = 128;

/// How plugins are known: an index, by which they are called in order, and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub index: String,
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

impl Identity {
    /// Checks what a plugin calls itself.
    pub(super) fn checked(index: &str, name: &str) -> Result<Self, String> {
        let digits = index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit());
        if !digits {
            return Err(format!("index {index:?} must be two digits"));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
            return Err(format!(
                "name {name:?} must be 1 to {MAX_NAME} letters, digits, -, _, . and +"
            ));
        }
        Ok(Self {
            index: index.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Reads the name of a file: "NN-name".
    pub(super) fn of_file(file: &str) -> Result<Self, String> {
        let (index, name) = file
            .split_once('-')
            .ok_or_else(|| format!("{file:?} is not of the form NN-name"))?;
        Self::checked(index, name)
    }
}

/// Why a plugin did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It says no.
    Said(String),
    /// It does not work any more, and is not asked again.
    Broken(String),
}

/// A plugin.
pub(super) struct Plugin {
    pub identity: Identity,
    events: u32,
    /// Those that it knows by StateChange only, as plugins of old do.
    old: AtomicU32,
    connection: Connection,
    time: Duration,
    /// For the state: a plugin that comes in may have much to do with it.
    time_to_start: Duration,
    /// Of one that we have started.
    _process: Option<Child>,
}

impl Plugin {
    /// Configures a plugin that has registered, and learns what it wants to hear of.
    pub(super) async fn configure(
        identity: Identity,
        connection: Connection,
        process: Option<Child>,
        config: String,
        times: super::Times,
    ) -> Result<Self, String> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config,
            runtime_name: "carpel".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            registration_timeout: millis(times.registration),
            request_timeout: millis(times.request),
            nri_version: VERSION.to_owned(),
        };
        let mut plugin = Self {
            identity,
            events: 0,
            old: AtomicU32::new(0),
            connection,
            time: times.request,
            time_to_start: times.request.max(times.registration),
            _process: process,
        };
        let response: ConfigureResponse = plugin
            .ask("Configure", request.encode_to_vec())
            .await
            .map_err(Refusal::into_text)?;
        plugin.events = match response.events.cast_unsigned() {
            0 => ALL,
            events if events & !ALL == 0 => events,
            events => {
                return Err(format!(
                    "it subscribes to events that are none: {events:#x}"
                ));
            }
        };
        Ok(plugin)
    }

    /// Tells the plugin of all that is there. What it wants changed comes back.
    pub(super) async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, String> {
        let mut requests = parts(pods, containers).into_iter().peekable();
        while let Some(mut request) = requests.next() {
            request.more = requests.peek().is_some();
            let more = request.more;
            let response: SynchronizeResponse = self
                .ask("Synchronize", request.encode_to_vec())
                .await
                .map_err(Refusal::into_text)?;
            if !more {
                return Ok(response.update);
            }
            if !response.more || !response.update.is_empty() {
                return Err("it does not take the state in several parts".to_owned());
            }
        }
        Ok(Vec::new())
    }

    pub(super) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0
    }

    /// Whether it takes part in whether containers are acceptable.
    pub(super) fn validates(&self) -> bool {
        self.wants(Event::ValidateContainerAdjustment)
    }

    /// Tells of an event: `request` is what its call takes.
    pub(super) async fn tell(
        &self,
        event: Event,
        request: &[u8],
        subject: &Subject,
    ) -> Result<(), Refusal> {
        if self.old.load(Memory::Relaxed) & bit(event) == 0 {
            let told = self.call(method(event), request.to_vec()).await;
            match told {
                Err(Failure::Refused(Code::Unimplemented, _)) if has_state_change(event) => {
                    self.old.fetch_or(bit(event), Memory::Relaxed);
                }
                other => return other.map(drop).map_err(refusal),
            }
        }
        let change = StateChangeEvent {
            event: event.into(),
            pod: Some(subject.pod.clone()),
            container: subject.container.clone(),
        };
        let _: Empty = self.ask("StateChange", change.encode_to_vec()).await?;
        Ok(())
    }

    /// Calls the plugin for an answer.
    pub(super) async fn ask<R: Message + Default>(
        &self,
        method: &str,
        request: Vec<u8>,
    ) -> Result<R, Refusal> {
        let payload = self.call(method, request).await.map_err(refusal)?;
        R::decode(&*payload).map_err(|error| {
            let why = format!("its answer to {method}: {error}");
            self.connection.close(&why);
            Refusal::Broken(why)
        })
    }

    async fn call(&self, method: &str, request: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let time = match method {
            "Synchronize" => self.time_to_start,
            _ => self.time,
        };
        self.connection.call(method, request, time).await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    pub(super) fn close(&self, why: &str) {
        self.connection.close(why);
    }

    /// Waits for its end: why it came.
    pub(super) fn closed(&self) -> impl Future<Output = String> + Send + use<> {
        self.connection.closed()
    }

    pub(super) fn order(&self, other: &Self) -> Ordering {
        self.identity.index.cmp(&other.identity.index)
    }
}

impl Refusal {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Said(text) | Self::Broken(text) => text,
        }
    }
}

fn refusal(failure: Failure) -> Refusal {
    match failure {
        Failure::Refused(_, text) => Refusal::Said(text),
        Failure::TooLong(length) => Refusal::Said(format!(
            "it cannot be asked: a request of {length} bytes is longer than {MAX_DATA}"
        )),
        Failure::Closed(why) => Refusal::Broken(why),
    }
}

fn bit(event: Event) -> u32 {
    match event {
        Event::Unknown | Event::Last => 0,
        event => 1 << (event as u32 - 1),
    }
}

/// What the call for an event is named.
pub(super) fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// Whether plugins of old were told of it by StateChange.
fn has_state_change(event: Event) -> bool {
    matches!(
        event,
        Event::RunPodSandbox
            | Event::PostUpdatePodSandbox
            | Event::StopPodSandbox
            | Event::RemovePodSandbox
            | Event::PostCreateContainer
            | Event::StartContainer
            | Event::PostStartContainer
            | Event::PostUpdateContainer
            | Event::RemoveContainer
    )
}

/// What is there, in as many requests as it needs: at least one.
fn parts(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut parts = vec![SynchronizeRequest::default()];
    let mut length = 0;
    let mut place = |size: usize| {
        // A key and a length come with each.
        let size = size + 8;
        let new = length > 0 && length + size > MAX_STATE;
        length = if new { size } else { length + size };
        new
    };
    for pod in pods {
        if place(pod.encoded_len()) {
            parts.push(SynchronizeRequest::default());
        }
        if let Some(part) = parts.last_mut() {
            part.pods.push(pod);
        }
    }
    for container in containers {
        if place(container.encoded_len()) {
            parts.push(SynchronizeRequest::default());
        }
        if let Some(part) = parts.last_mut() {
            part.containers.push(container);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indexes_are_checked() {
        let good = Identity::of_file("05-my.plugin+x-1").unwrap();
        assert_eq!((&*good.index, &*good.name), ("05", "my.plugin+x-1"));
        assert_eq!(good.to_string(), "05-my.plugin+x-1");
        for bad in [
            "plugin", "5-x", "005-x", "ab-x", "05-", "05-a/b", "05-a b", "٠٥-x",
        ] {
            Identity::of_file(bad).unwrap_err();
        }
        Identity::checked("00", &"x".repeat(129)).unwrap_err();
    }

    #[test]
    fn bits_are_events() {
        assert_eq!(bit(Event::RunPodSandbox), 1);
        assert_eq!(bit(Event::ValidateContainerAdjustment), 1 << 13);
        assert_eq!(ALL, (1 << 14) - 1);
    }

    #[test]
    fn much_state_goes_in_parts() {
        let empty = parts(Vec::new(), Vec::new());
        assert_eq!(empty, [SynchronizeRequest::default()]);
        let pod = |size: usize| PodSandbox {
            id: "x".repeat(size),
            ..PodSandbox::default()
        };
        let container = |size: usize| Container {
            id: "x".repeat(size),
            ..Container::default()
        };
        let made = parts(
            vec![pod(3 << 20), pod(1 << 19)],
            vec![container(1 << 19), container(3 << 20), container(1)],
        );
        let shape: Vec<_> = made
            .iter()
            .map(|part| (part.pods.len(), part.containers.len()))
            .collect();
        assert_eq!(shape, [(2, 0), (0, 3)]);
        assert!(made.iter().all(|part| part.encoded_len() < MAX_DATA));
    }
}
