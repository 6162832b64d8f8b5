//! `carpel net`: the way that a pod's packets take, as a drawing; or one packet followed, hop by hop, to where it
//! arrives or stops.
//!
//! The command looks for itself, as root on the node: it enters the pods' network namespaces in threads of its own and
//! reads what the kernel has. Of the runtime it only asks which pods there are and where their namespaces are, so that
//! it shows the pods of other runtimes, too.

mod diagram;
mod dot;
mod journey;
mod subject;
mod svg;
mod text;
mod view;

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, bail};
use carpel_api::carpel::CheckNetworkRequest;
use carpel_api::cri::{PodSandbox, PodSandboxState, PodSandboxStatusRequest};
use carpel_netpath::gather::Gathered;
use carpel_netpath::packet::Protocol;
use carpel_netpath::place::{PlaceId, World};
use carpel_netpath::walk::{End, Errand, Journey};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Client, Connection, QUERY};
use super::output::{self, Screen};
use super::resolve::{Among, Catalogue};
use super::{FAILURE, Outcome, SUCCESS};
use diagram::Diagram;
use subject::Subject;

#[derive(Debug, Args)]
pub struct NetArgs {
    /// A pod
    #[arg(value_name = "POD")]
    pod: String,
    /// Another pod or an address: follow a packet there, and the answer back
    #[arg(value_name = "POD|IP")]
    to: Option<String>,
    /// The port that the packet is for, as 80 or 53/udp [default: any, tcp]
    #[arg(short, long, value_name = "PORT", requires = "to")]
    port: Option<Port>,
    /// Follow a ping
    #[arg(long, requires = "to", conflicts_with = "port")]
    icmp: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Boxes for a terminal
    Text,
    /// For programs
    Json,
    /// For Graphviz
    Dot,
    /// A picture
    Svg,
}

/// A port of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Port {
    number: u16,
    protocol: Protocol,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let wrong =
            || format!("{text:?} is no port: give a number, or one with a protocol, as in 53/udp");
        let protocol = Protocol::parse(protocol).filter(|protocol| *protocol != Protocol::Icmp);
        let number = number.parse().ok().filter(|number| *number != 0);
        Ok(Self {
            number: number.ok_or_else(wrong)?,
            protocol: protocol.ok_or_else(wrong)?,
        })
    }
}

/// Where a packet is to go.
struct Target {
    /// As it is shown.
    name: String,
    addr: IpAddr,
}

impl NetArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let pod = all.pod(&self.pod, Among::Living)?;
        let subject = Subject::ask(&client, pod).await?;
        let mut looking = Looking::new(&client)?;
        let from = looking.at(&subject)?;
        let Some(to) = &self.to else {
            let check = check(&client, &subject).await;
            let view = view::View::new(&looking.gathered, &subject, from, check);
            self.print(|| view.json(), || view.diagram())?;
            return Ok(SUCCESS);
        };
        let target = self.target(&mut looking, &all, &subject, to).await?;
        let errand = Errand {
            from,
            to: target.addr,
            protocol: match self.port {
                Some(port) => port.protocol,
                None if self.icmp => Protocol::Icmp,
                None => Protocol::Tcp,
            },
            port: self.port.map(|port| port.number),
        };
        let journey = looking.follow(&all, errand).await?;
        let world = &looking.gathered.world;
        self.print(
            || journey::json(world, &journey, &subject.name, &target.name),
            || journey::diagram(world, &journey, &subject.name, &target.name),
        )?;
        Ok(if journey.arrives() { SUCCESS } else { FAILURE })
    }

    fn print(
        &self,
        json: impl FnOnce() -> Value,
        diagram: impl FnOnce() -> Diagram,
    ) -> anyhow::Result<()> {
        match self.output {
            Format::Json => output::print_json(&json())?,
            Format::Text => output::print(text::draw(&diagram(), &Screen::detect()))?,
            Format::Dot => output::print(dot::draw(&diagram()))?,
            Format::Svg => output::print(svg::draw(&diagram()))?,
        }
        Ok(())
    }

    /// Who is meant by the second name: an address, or a pod with one of a family that the first pod has, too.
    async fn target(
        &self,
        looking: &mut Looking<'_>,
        all: &Catalogue,
        from: &Subject,
        to: &str,
    ) -> anyhow::Result<Target> {
        if let Ok(addr) = to.parse::<IpAddr>() {
            looking.find(all, addr).await?;
            let name = match looking.gathered.world.owner(addr) {
                Some(owner) => format!("{addr} ({})", looking.gathered.world.place(owner).name),
                None => addr.to_string(),
            };
            return Ok(Target { name, addr });
        }
        let pod = all.pod(to, Among::Living)?;
        let subject = Subject::ask(looking.client, pod).await?;
        let id = looking.at(&subject)?;
        let mut ips = subject.ips.clone();
        if ips.is_empty() {
            // A runtime need not tell those of the node.
            let place = looking.gathered.world.place(id);
            let own = place.addresses.iter().map(|one| one.net.addr());
            ips = own
                .filter(|addr| !addr.is_loopback() && !carpel_netpath::place::is_link_local(*addr))
                .collect();
        }
        let families: Vec<bool> = from.ips.iter().map(IpAddr::is_ipv4).collect();
        let fits = |addr: &&IpAddr| families.is_empty() || families.contains(&addr.is_ipv4());
        let addr = ips.iter().find(fits).or(ips.first());
        let addr = *addr.with_context(|| format!("pod {} has no address", subject.name))?;
        Ok(Target {
            name: subject.name,
            addr,
        })
    }
}

/// What carpel's plugins say of the pod's network. `None`: another runtime's pod, or nobody was asked.
async fn check(client: &Client, subject: &Subject) -> Option<String> {
    let request = CheckNetworkRequest {
        pod_sandbox_id: subject.id.clone(),
    };
    let mut stub = client.network();
    let answer = client
        .within("Check", QUERY, stub.check(request))
        .await
        .ok()?;
    if !answer.problem.is_empty() {
        return Some(answer.problem);
    }
    answer.not_checked.is_empty().then(String::new)
}

/// The namespaces that are looked at.
struct Looking<'a> {
    client: &'a Client,
    gathered: Gathered,
    has_all: bool,
}

impl<'a> Looking<'a> {
    fn new(client: &'a Client) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("only root may look into network namespaces: use sudo");
        }
        let mut gathered = Gathered::default();
        gathered.add("node", subject::node(client.peer())?)?;
        Ok(Self {
            client,
            gathered,
            has_all: false,
        })
    }

    /// Looks at a pod's namespace; with the network of the node that is the node's.
    fn at(&mut self, subject: &Subject) -> anyhow::Result<PlaceId> {
        if subject.is_host {
            return Ok(World::NODE);
        }
        let namespace = subject.open(self.client.peer())?;
        Ok(self.gathered.add(&subject.name, namespace)?)
    }

    /// Looks at the pod that has an address, if there is one.
    async fn find(&mut self, all: &Catalogue, addr: IpAddr) -> anyhow::Result<()> {
        if self.gathered.world.owner(addr).is_some() {
            return Ok(());
        }
        let text = addr.to_string();
        for pod in living(all) {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: pod.id.clone(),
                verbose: false,
            };
            let Ok(answer) = self.client.pod_sandbox_status(request).await else {
                continue;
            };
            let network = answer.status.and_then(|status| status.network);
            let has = network.is_some_and(|network| {
                network.ip == text || network.additional_ips.iter().any(|one| one.ip == text)
            });
            if has {
                let subject = Subject::ask(self.client, pod).await?;
                self.at(&subject)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Follows a packet; if it goes where nobody has looked yet, looks at all pods and follows it again.
    async fn follow(&mut self, all: &Catalogue, errand: Errand) -> anyhow::Result<Journey> {
        let follow =
            |gathered: &Gathered| carpel_netpath::walk::journey(&gathered.world, gathered, errand);
        let journey = follow(&self.gathered);
        let walks = std::iter::once(&journey.there).chain(&journey.back);
        let leads_on = walks
            .map(|walk| &walk.end)
            .any(|end| matches!(end, End::Unknown { .. }));
        if !leads_on || self.has_all {
            return Ok(journey);
        }
        self.has_all = true;
        for pod in living(all) {
            // One that goes meanwhile is none.
            if let Ok(subject) = Subject::ask(self.client, pod).await {
                let _ = self.at(&subject);
            }
        }
        Ok(follow(&self.gathered))
    }
}

fn living(all: &Catalogue) -> impl Iterator<Item = &PodSandbox> {
    let pods = all.pods.iter();
    pods.filter(|pod| pod.state() == PodSandboxState::SandboxReady)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let read = |text: &str| {
            text.parse::<Port>()
                .map(|port| (port.number, port.protocol))
        };
        assert_eq!(read("80"), Ok((80, Protocol::Tcp)));
        assert_eq!(read("53/udp"), Ok((53, Protocol::Udp)));
        for bad in ["", "0", "65536", "80/icmp", "80/x", "x/tcp"] {
            assert!(read(bad).unwrap_err().contains("is no port"), "{bad}");
        }
    }
}
