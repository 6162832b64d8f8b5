//! Interfaces of the host that a pod has for a while: moved there and back by carpel's own host-device plugin, which
//! knows how to undo a move that it could not finish.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::json;

use super::exec::{self, Deadline, Failure};
use super::{Error, Network};
use crate::ids::ContainerId;
use crate::spec::net_devices::NetDevice;

const PLUGIN: &str = "host-device";

/// What errors call the network that this is none of.
const NETWORK: &str = "network devices";

impl Network {
    /// Moves an interface to the namespace at `netns`, with its addresses, and raises it there. One that is there
    /// already is fine.
    ///
    /// # Errors
    /// It is not on the host, or its name is taken: then it is where it was.
    pub async fn take_device(
        &self,
        netns: &Path,
        container: &ContainerId,
        device: &NetDevice,
    ) -> Result<(), Error> {
        self.move_device("ADD", netns, container, device).await
    }

    /// Moves an interface back to the host, as it was there. One that is there already is fine.
    ///
    /// # Errors
    /// Something else has its name by now.
    pub async fn return_device(
        &self,
        netns: &Path,
        container: &ContainerId,
        device: &NetDevice,
    ) -> Result<(), Error> {
        self.move_device("DEL", netns, container, device).await
    }

    async fn move_device(
        &self,
        verb: &'static str,
        netns: &Path,
        container: &ContainerId,
        device: &NetDevice,
    ) -> Result<(), Error> {
        let failed = |failure: Failure| Error::Plugin {
            network: NETWORK.to_owned(),
            plugin: PLUGIN.to_owned(),
            verb,
            failure: Box::new(failure),
        };
        let program = self.0.bins.own(PLUGIN).map_err(failed)?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "carpel-net-devices",
            "type": PLUGIN,
            "device": device.host,
            "keepAddresses": true,
            "up": device.up,
        });
        // Nothing is looked for in it, but it must be there.
        let path = program.path().parent().unwrap_or(Path::new("/"));
        let env: [(&str, OsString); 5] = [
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", container.to_string().into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", device.name.clone().into()),
            ("CNI_PATH", path.into()),
        ];
        let env: Vec<(&str, &OsStr)> = env.iter().map(|(key, value)| (*key, &**value)).collect();
        let deadline = Deadline::after(self.0.timeout);
        let run = exec::run(&program, &env, config.to_string().into_bytes(), deadline);
        run.await.map(drop).map_err(failed)
    }
}
