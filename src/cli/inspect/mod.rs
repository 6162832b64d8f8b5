//! `carpel inspect`: one object in full. For a person a summary; with `-o json` everything that the runtime
//! answered; with `--timeline` where the time of a start went, as text or as a picture.

mod summary;
mod svg;
mod timeline;

use anyhow::bail;
use carpel_api::cri::{
    ContainerStatusRequest, ContainerStatusResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, PodSandboxStatusRequest, PodSandboxStatusResponse,
};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::client::{Client, Connection};
use super::output::{self, Screen};
use super::resolve::{Among, Catalogue, Object, Unresolved, container_name, pod_name};
use super::{Outcome, SUCCESS};
use timeline::Timeline;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Pods, containers or images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What the names are of [default: whatever has such a name]
    #[arg(short = 't', long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// Show where the time of a pod's start went, and of its containers' (carpel only)
    #[arg(long)]
    timeline: bool,
    /// How to print the result; svg goes with --timeline
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

/// What `carpel image inspect` takes.
#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    format: output::FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl From<ImageInspectArgs> for InspectArgs {
    fn from(args: ImageInspectArgs) -> Self {
        Self {
            names: args.images,
            kind: Some(Kind::Image),
            timeline: false,
            output: match args.format.output {
                output::Format::Text => Format::Text,
                output::Format::Json => Format::Json,
            },
            connection: args.connection,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Pod,
    Container,
    Image,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A summary
    Text,
    /// Everything that the runtime answered
    Json,
    /// A picture
    Svg,
}

/// What the runtime said about one object.
enum Answer {
    Pod(Box<PodSandboxStatusResponse>),
    Container(Box<ContainerStatusResponse>),
    Image(Box<ImageStatusResponse>),
}

impl InspectArgs {
    pub async fn run(self) -> Outcome {
        if self.output == Format::Svg && !self.timeline {
            bail!("-o svg is a picture of a timeline: give --timeline, too");
        }
        if self.output == Format::Svg && self.names.len() > 1 {
            bail!("-o svg makes one picture: give one name");
        }
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        if self.timeline {
            return self.timelines(&client, &all).await;
        }
        let mut values = Vec::new();
        for (n, name) in self.names.iter().enumerate() {
            let answer = self.ask(&client, &all, name).await?;
            match self.output {
                Format::Json => values.push(answer.json()),
                _ => {
                    let blank = if n > 0 { "\n" } else { "" };
                    let text = answer.summary(&all, &Screen::detect());
                    output::print(format!("{blank}{text}"))?;
                }
            }
        }
        if self.output == Format::Json {
            // One object as it is, so that `jq .status` works; several as a list.
            let value = match values.len() {
                1 => values.remove(0),
                _ => Value::Array(values),
            };
            output::print_json(&value)?;
        }
        Ok(SUCCESS)
    }

    async fn ask(&self, client: &Client, all: &Catalogue, name: &str) -> anyhow::Result<Answer> {
        let object = match self.kind {
            Some(Kind::Pod) => Object::Pod(all.pod(name, Among::Living)?),
            Some(Kind::Container) => Object::Container(all.container(name, Among::Living)?),
            Some(Kind::Image) => return image(client, name).await,
            None => match all.object(name, Among::Living) {
                Ok(object) => object,
                Err(Unresolved::Nothing { .. }) => return image_or_nothing(client, name).await,
                Err(other) => return Err(other.into()),
            },
        };
        Ok(match object {
            Object::Pod(pod) => Answer::Pod(Box::new(pod_status(client, &pod.id).await?)),
            Object::Container(container) => {
                let status = container_status(client, &container.id).await?;
                Answer::Container(Box::new(status))
            }
        })
    }

    async fn timelines(&self, client: &Client, all: &Catalogue) -> Outcome {
        let mut found = Vec::new();
        for name in &self.names {
            let pod = match all.object(name, Among::Living)? {
                Object::Pod(pod) => pod,
                Object::Container(container) => {
                    let status = container_status(client, &container.id).await?;
                    found.push(Timeline::read(container_name(container), &status.info)?);
                    continue;
                }
            };
            let status = pod_status(client, &pod.id).await?;
            found.push(Timeline::read(&pod_name(pod), &status.info)?);
            let mut containers: Vec<_> = all.containers_of(&pod.id).collect();
            containers.sort_by_key(|container| container.created_at);
            for container in containers {
                let status = container_status(client, &container.id).await?;
                found.push(Timeline::read(container_name(container), &status.info)?);
            }
        }
        match self.output {
            Format::Text => output::print(timeline::text(&found, &Screen::detect()))?,
            Format::Json => output::print_json(&timeline::json(&found))?,
            Format::Svg => output::print(svg::draw(&found))?,
        }
        Ok(SUCCESS)
    }
}

async fn pod_status(client: &Client, id: &str) -> anyhow::Result<PodSandboxStatusResponse> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    Ok(client.pod_sandbox_status(request).await?)
}

async fn container_status(client: &Client, id: &str) -> anyhow::Result<ContainerStatusResponse> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    Ok(client.container_status(request).await?)
}

async fn image(client: &Client, name: &str) -> anyhow::Result<Answer> {
    match image_status(client, name).await? {
        Some(answer) => Ok(answer),
        None => bail!("no image {name:?}; `carpel images` shows what is there"),
    }
}

async fn image_or_nothing(client: &Client, name: &str) -> anyhow::Result<Answer> {
    // What is no image's name is an error of the runtime's that would only confuse here.
    if let Ok(Some(answer)) = image_status(client, name).await {
        return Ok(answer);
    }
    bail!(
        "no pod, container or image {name:?}; `carpel pods`, `carpel ps -a` and `carpel images` show \
         what is there"
    )
}

async fn image_status(client: &Client, name: &str) -> anyhow::Result<Option<Answer>> {
    let request = ImageStatusRequest {
        image: Some(ImageSpec {
            image: name.to_owned(),
            ..ImageSpec::default()
        }),
        verbose: true,
    };
    let answer = client.image_status(request).await?;
    let known = answer.image.is_some();
    Ok(known.then(|| Answer::Image(Box::new(answer))))
}

impl Answer {
    fn json(&self) -> Value {
        match self {
            Self::Pod(answer) => output::verbose_message("PodSandboxStatusResponse", &**answer),
            Self::Container(answer) => {
                output::verbose_message("ContainerStatusResponse", &**answer)
            }
            Self::Image(answer) => output::verbose_message("ImageStatusResponse", &**answer),
        }
    }

    fn summary(&self, all: &Catalogue, screen: &Screen) -> String {
        match self {
            Self::Pod(answer) => summary::pod(answer, all, screen),
            Self::Container(answer) => summary::container(answer, all, screen),
            Self::Image(answer) => summary::image(answer, screen),
        }
    }
}
