//! From what a person types to a pod or a container: a name, `namespace/name`, `pod/container`, an id or the
//! beginning of one.
//!
//! An exact id goes before a name, a name before the beginning of an id. Among several of one name the one
//! that lives is meant, where the command is about living ones; everything else that fits more than one
//! thing is an error that lists them.

use std::collections::HashMap;

use carpel_api::cri::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxState,
};

use super::client::{CallError, Client};
use super::units::short;

/// A pod or a container, by its reference in a [`Catalogue`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Object<'a> {
    Pod(&'a PodSandbox),
    Container(&'a Container),
}

/// Which of several objects of one name is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// The living one; of dead ones the newest.
    Living,
    /// None: the name must be unique.
    All,
}

/// A name that does not lead to one thing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("no {kind} {name:?}; {list} shows what is there")]
    Nothing {
        kind: &'static str,
        name: String,
        list: &'static str,
    },
    #[error("{name:?} is more than one {kind}; say which:\n{}", .candidates.join("\n"))]
    Ambiguous {
        kind: &'static str,
        name: String,
        candidates: Vec<String>,
    },
    #[error("pod {pod:?} has no container")]
    Empty { pod: String },
}

/// Everything that a name can lead to.
#[derive(Debug, Default)]
pub struct Catalogue {
    pub pods: Vec<PodSandbox>,
    pub containers: Vec<Container>,
}

impl Catalogue {
    /// Asks the runtime.
    ///
    /// # Errors
    /// Its answer.
    pub async fn fetch(client: &Client) -> Result<Self, CallError> {
        let (pods, containers) = tokio::try_join!(
            client.list_pod_sandbox(ListPodSandboxRequest::default()),
            client.list_containers(ListContainersRequest::default()),
        )?;
        Ok(Self {
            pods: pods.items,
            containers: containers.containers,
        })
    }

    /// The pods by their ids.
    pub fn pods_by_id(&self) -> HashMap<&str, &PodSandbox> {
        let pods = self.pods.iter();
        pods.map(|pod| (pod.id.as_str(), pod)).collect()
    }

    /// A pod's containers.
    pub fn containers_of<'a>(&'a self, pod: &str) -> impl Iterator<Item = &'a Container> {
        let pod = pod.to_owned();
        let containers = self.containers.iter();
        containers.filter(move |container| container.pod_sandbox_id == pod)
    }

    /// The pod of this name.
    ///
    /// # Errors
    /// [`Unresolved`].
    pub fn pod(&self, name: &str, among: Among) -> Result<&PodSandbox, Unresolved> {
        let found = Level::ALL
            .iter()
            .map(|level| (*level, self.pods_at(name, *level)))
            .find(|(_, found)| !found.is_empty());
        let (level, found) = found.ok_or_else(|| nothing("pod", name, "`carpel pods`"))?;
        match self.choose(&found, level, among) {
            Some(Object::Pod(pod)) => Ok(pod),
            _ => Err(self.ambiguous("pod", name, &found)),
        }
    }

    /// The container of this name. A pod's name stands for its container if it has just one.
    ///
    /// # Errors
    /// [`Unresolved`].
    pub fn container(&self, name: &str, among: Among) -> Result<&Container, Unresolved> {
        let found = Level::ALL
            .iter()
            .map(|level| (*level, self.containers_at(name, *level)))
            .find(|(_, found)| !found.is_empty());
        let (level, found) = match found {
            Some(found) => found,
            None => {
                let pod = self.pod(name, among).map_err(|error| match error {
                    Unresolved::Nothing { .. } => nothing("container", name, "`carpel ps -a`"),
                    other => other,
                })?;
                let found: Vec<_> = self.containers_of(&pod.id).map(Object::Container).collect();
                if found.is_empty() {
                    return Err(Unresolved::Empty {
                        pod: name.to_owned(),
                    });
                }
                (Level::Name, found)
            }
        };
        match self.choose(&found, level, among) {
            Some(Object::Container(container)) => Ok(container),
            _ => Err(self.ambiguous("container", name, &found)),
        }
    }

    /// The pod or container of this name. Where it is that of a pod and of a container in it, the pod is meant.
    ///
    /// # Errors
    /// [`Unresolved`].
    pub fn object(&self, name: &str, among: Among) -> Result<Object<'_>, Unresolved> {
        for level in Level::ALL {
            let mut found = self.pods_at(name, level);
            let pods: Vec<&str> = found.iter().map(Object::id).collect();
            let inside = |container: &Object<'_>| match container {
                Object::Container(container) => pods.contains(&container.pod_sandbox_id.as_str()),
                Object::Pod(_) => false,
            };
            let mut containers = self.containers_at(name, level);
            if level == Level::Name {
                containers.retain(|container| !inside(container));
            }
            found.extend(containers);
            if !found.is_empty() {
                let chosen = self.choose(&found, level, among);
                return chosen.ok_or_else(|| self.ambiguous("pod or container", name, &found));
            }
        }
        let list = "`carpel pods` or `carpel ps -a`";
        Err(nothing("pod or container", name, list))
    }

    fn pods_at(&self, name: &str, level: Level) -> Vec<Object<'_>> {
        let pods = self.pods.iter();
        let fits = |pod: &&PodSandbox| match level {
            Level::Id => pod.id == name,
            Level::Name => pod_names(pod).iter().any(|known| known == name),
            Level::Prefix => !name.is_empty() && pod.id.starts_with(name),
        };
        pods.filter(fits).map(Object::Pod).collect()
    }

    fn containers_at(&self, name: &str, level: Level) -> Vec<Object<'_>> {
        let pods = self.pods_by_id();
        let containers = self.containers.iter();
        let named = |container: &Container| {
            let own = container_name(container);
            own == name
                || name
                    .strip_suffix(own)
                    .and_then(|rest| rest.strip_suffix('/'))
                    .is_some_and(|pod_part| {
                        pods.get(container.pod_sandbox_id.as_str())
                            .is_some_and(|pod| pod_names(pod).iter().any(|known| known == pod_part))
                    })
        };
        let fits = |container: &&Container| match level {
            Level::Id => container.id == name,
            Level::Name => named(container),
            Level::Prefix => !name.is_empty() && container.id.starts_with(name),
        };
        containers.filter(fits).map(Object::Container).collect()
    }

    /// The one that is meant, if that is clear.
    fn choose<'a>(&self, found: &[Object<'a>], level: Level, among: Among) -> Option<Object<'a>> {
        if let [one] = found {
            return Some(*one);
        }
        if level != Level::Name || among == Among::All {
            return None;
        }
        let living: Vec<_> = found.iter().filter(|object| object.lives()).collect();
        match living[..] {
            [one] => return Some(*one),
            [] => {}
            _ => return None,
        }
        // Attempts of one thing, all over: the last one is the one to look at.
        let first = self.identity(found.first()?);
        let same = found.iter().all(|object| self.identity(object) == first);
        let newest = found.iter().max_by_key(|object| object.created_at());
        newest.filter(|_| same).copied()
    }

    /// What stays the same from one attempt to the next.
    fn identity(&self, object: &Object<'_>) -> String {
        match object {
            Object::Pod(pod) => pod_name(pod),
            Object::Container(container) => self.container_path(container),
        }
    }

    /// "namespace/pod/container".
    pub fn container_path(&self, container: &Container) -> String {
        let pod = self
            .pods
            .iter()
            .find(|pod| pod.id == container.pod_sandbox_id);
        let pod = pod.map_or_else(|| short(&container.pod_sandbox_id).to_owned(), pod_name);
        format!("{pod}/{}", container_name(container))
    }

    fn ambiguous(&self, kind: &'static str, name: &str, found: &[Object<'_>]) -> Unresolved {
        let line = |object: &Object<'_>| {
            let (what, state) = match object {
                Object::Pod(pod) => ("pod", pod_state(pod.state())),
                Object::Container(container) => ("container", container_state(container.state())),
            };
            let (id, path) = (short(object.id()), self.identity(object));
            format!("  {id}  {what} {path} ({})", state.to_lowercase())
        };
        Unresolved::Ambiguous {
            kind,
            name: name.to_owned(),
            candidates: found.iter().map(line).collect(),
        }
    }
}

impl Object<'_> {
    pub fn id(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.id,
            Self::Container(container) => &container.id,
        }
    }

    fn created_at(&self) -> i64 {
        match self {
            Self::Pod(pod) => pod.created_at,
            Self::Container(container) => container.created_at,
        }
    }

    fn lives(&self) -> bool {
        match self {
            Self::Pod(pod) => pod.state() == PodSandboxState::SandboxReady,
            Self::Container(container) => container.state() == ContainerState::ContainerRunning,
        }
    }
}

/// How a name fits, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Id,
    Name,
    Prefix,
}

impl Level {
    const ALL: [Self; 3] = [Self::Id, Self::Name, Self::Prefix];
}

fn nothing(kind: &'static str, name: &str, list: &'static str) -> Unresolved {
    Unresolved::Nothing {
        kind,
        name: name.to_owned(),
        list,
    }
}

/// "namespace/name".
pub fn pod_name(pod: &PodSandbox) -> String {
    let metadata = pod.metadata.as_ref();
    metadata.map_or_else(
        || short(&pod.id).to_owned(),
        |metadata| format!("{}/{}", metadata.namespace, metadata.name),
    )
}

fn pod_names(pod: &PodSandbox) -> [String; 2] {
    let name = pod.metadata.as_ref().map(|metadata| metadata.name.clone());
    [name.unwrap_or_default(), pod_name(pod)]
}

/// A container's name; "" if it has none, which no request has.
pub fn container_name(container: &Container) -> &str {
    let metadata = container.metadata.as_ref();
    metadata.map_or("", |metadata| metadata.name.as_str())
}

/// A pod's state in a word.
pub fn pod_state(state: PodSandboxState) -> &'static str {
    match state {
        PodSandboxState::SandboxReady => "Ready",
        PodSandboxState::SandboxNotready => "NotReady",
    }
}

/// A container's state in a word.
pub fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{ContainerMetadata, PodSandboxMetadata};

    use super::*;

    fn pod(id: &str, namespace: &str, name: &str, ready: bool) -> PodSandbox {
        PodSandbox {
            id: id.repeat(8),
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..PodSandboxMetadata::default()
            }),
            state: i32::from(!ready),
            ..PodSandbox::default()
        }
    }

    fn container(id: &str, pod: &str, name: &str, state: ContainerState, at: i64) -> Container {
        Container {
            id: id.repeat(8),
            pod_sandbox_id: pod.repeat(8),
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            state: state.into(),
            created_at: at,
            ..Container::default()
        }
    }

    fn catalogue() -> Catalogue {
        use ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        Catalogue {
            pods: vec![
                pod("aa01", "default", "web", true),
                pod("aa02", "kube-system", "web", true),
                pod("bb03", "default", "db", false),
                pod("bb04", "default", "solo", true),
                pod("bb05", "default", "empty", true),
            ],
            containers: vec![
                container("cc01", "aa01", "server", Exited, 1),
                container("cc02", "aa01", "server", Running, 2),
                container("cc03", "aa02", "sidecar", Running, 3),
                container("cc04", "bb03", "db", Exited, 4),
                container("cc05", "bb03", "db", Exited, 5),
                container("cc06", "bb04", "main", Running, 6),
                container("aa07", "bb03", "init", Exited, 7),
            ],
        }
    }

    fn id<T>(found: Result<T, Unresolved>, of: impl Fn(T) -> String) -> Result<String, Unresolved> {
        found.map(|found| of(found)[..4].to_owned())
    }

    #[test]
    fn containers_are_found_by_name_path_and_prefix() {
        let all = catalogue();
        let find = |name: &str| id(all.container(name, Among::Living), |c| c.id.clone());
        for (name, expected) in [
            // Of two attempts the living one; of two dead ones the newest.
            ("server", "cc02"),
            ("web/server", "cc02"),
            ("default/web/server", "cc02"),
            ("db", "cc05"),
            ("default/db/db", "cc05"),
            ("cc03", "cc03"),
            ("cc04cc04", "cc04"),
            // A pod with one container, with two attempts of it.
            ("solo", "cc06"),
            ("default/solo", "cc06"),
            ("bb04", "cc06"),
            ("aa07", "aa07"),
        ] {
            assert_eq!(find(name).as_deref(), Ok(expected), "{name}");
        }
        for name in [
            "nothing",
            "",
            "/",
            "kube-system/web/server",
            "b/server",
            "x/main",
        ] {
            assert!(
                matches!(find(name), Err(Unresolved::Nothing { .. })),
                "{name}"
            );
        }
        assert!(matches!(find("empty"), Err(Unresolved::Empty { .. })));
    }

    #[test]
    fn what_fits_several_things_lists_them() {
        let all = catalogue();
        let error = all.container("cc0", Among::Living).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("cc01cc01cc01  container default/web/server (exited)"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 7, "{text}");
        let error = all.pod("web", Among::Living).unwrap_err().to_string();
        assert!(error.contains("default/web (ready)"), "{error}");
        assert!(error.contains("kube-system/web (ready)"), "{error}");
        // Removing is about exactly one.
        let strict = all.container("server", Among::All).unwrap_err();
        assert!(matches!(strict, Unresolved::Ambiguous { .. }));
        let error = all.container("bb03", Among::Living).unwrap_err();
        assert!(matches!(error, Unresolved::Ambiguous { .. }), "{error}");
    }

    #[test]
    fn a_pod_goes_before_a_container_in_it() {
        let all = catalogue();
        let find = |name: &str| id(all.object(name, Among::All), |o| o.id().to_owned());
        assert_eq!(find("db").as_deref(), Ok("bb03"));
        assert_eq!(find("solo").as_deref(), Ok("bb04"));
        assert_eq!(find("main").as_deref(), Ok("cc06"));
        assert_eq!(find("solo/main").as_deref(), Ok("cc06"));
        assert_eq!(find("default/web").as_deref(), Ok("aa01"));
        assert_eq!(find(&"aa07".repeat(8)).as_deref(), Ok("aa07"));
        let error = find("aa0").unwrap_err().to_string();
        assert!(
            error.contains("3 ") || error.lines().count() == 4,
            "{error}"
        );
        assert!(matches!(find("nothing"), Err(Unresolved::Nothing { .. })));
    }
}
