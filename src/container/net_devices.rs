//! Interfaces of the host that a container is given: in its pod's network namespace from its start to its end.
//!
//! What must always hold: an interface is with one running container at most. When that has ended, in whatever way, the
//! interface goes back to the host before anybody can learn of the end, so that the next container finds it there.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::Container;
use crate::error::Error;
use crate::failpoint;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::spec::config::ContainerConfig;
use crate::spec::net_devices::{self, NetDevice};
use crate::spec::oci::Source;

/// Looks for the interfaces that a spec wants.
pub(super) fn find(
    sandbox: &Sandbox,
    config: &ContainerConfig,
    source: &Source,
) -> Result<Vec<NetDevice>, Error> {
    let wanted = net_devices::of(&source.spec);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let refuse = |host: &str, why: &str| {
        let name = &config.name.name;
        Err(Error::InvalidArgument(format!(
            "container {name:?}: network device {host}: {why}"
        )))
    };
    let there = getifaddrs().map_err(Error::at("list the host's interfaces"))?;
    let there: Vec<_> = there.collect();
    let mut devices = Vec::new();
    for (host, name) in wanted {
        if sandbox.netns.is_none() {
            return refuse(&host, "the pod has the host's network");
        }
        let Some(found) = there.iter().find(|found| found.interface_name == host) else {
            return refuse(&host, "the host has no interface of that name");
        };
        if found.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            return refuse(&host, "it is the host's loopback interface");
        }
        let up = found.flags.contains(InterfaceFlags::IFF_UP);
        devices.push(NetDevice { host, name, up });
    }
    Ok(devices)
}

impl Node {
    /// Brings a container's interfaces to its pod. When one cannot be had, none is there.
    pub(super) async fn take_net_devices(&self, container: &Container) -> Result<(), Error> {
        let devices = &container.source.net_devices;
        let Some(netns) = self.netns_for_devices(container) else {
            return Ok(());
        };
        let at = |device: &NetDevice| {
            format!(
                "container {:?} ({}): network device {}",
                container.config.name.name, container.id, device.host
            )
        };
        let mut taken = Ok(());
        for device in devices {
            taken = match self.other_user(container, device) {
                Some(other) => Err(Error::FailedPrecondition(format!(
                    "{}: container {other} of the pod has it",
                    at(device)
                ))),
                None => {
                    let taken = self.network.take_device(&netns, &container.id, device);
                    taken.await.map_err(Error::at(at(device)))
                }
            };
            if taken.is_err() {
                break;
            }
        }
        let taken = taken.and_then(|()| failpoint::hit("start:net-devices"));
        if taken.is_err() {
            self.return_net_devices(container).await;
        }
        taken
    }

    /// Brings a container's interfaces back to the host. None that are in use, or back already, is fine.
    pub(crate) async fn return_net_devices(&self, container: &Container) {
        let Some(netns) = self.netns_for_devices(container) else {
            return;
        };
        for device in &container.source.net_devices {
            if self.other_user(container, device).is_some() {
                continue;
            }
            let returned = self.network.return_device(&netns, &container.id, device);
            if let Err(error) = returned.await {
                let (id, device) = (container.id, &device.host);
                tracing::warn!(container.id = %id, device, %error, "network device is not back on the host");
            }
        }
    }

    /// Where they go; `None` if there are none.
    fn netns_for_devices(&self, container: &Container) -> Option<std::path::PathBuf> {
        if container.source.net_devices.is_empty() {
            return None;
        }
        self.sandbox(&container.sandbox)?.netns.clone()
    }

    /// Another container of the pod that runs with this interface.
    fn other_user(
        &self,
        container: &Container,
        device: &NetDevice,
    ) -> Option<crate::ids::ContainerId> {
        let has = |other: &Container| {
            let mut devices = other.source.net_devices.iter();
            devices.any(|known| known.name == device.name) && other.running().is_some()
        };
        let others = self.containers_of(&container.sandbox).into_iter();
        let mut others = others.filter(|other| other.id != container.id);
        others.find(|other| has(other)).map(|other| other.id)
    }
}
