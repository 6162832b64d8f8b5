//! A plugin that is installed on a node: it adds a variable, named after it, to every container.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use carpel_integration::api::nri::{
    ConfigureRequest, ConfigureResponse, ContainerAdjustment, CreateContainerResponse, KeyValue,
    RegisterPluginRequest,
};
use carpel_integration::nri::{Answer, Behaviour, Plugin};
use prost::Message;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let variable = |name: &str| std::env::var(name).expect(name);
    let (name, index) = (variable("NRI_PLUGIN_NAME"), variable("NRI_PLUGIN_IDX"));
    let socket: i32 = variable("NRI_PLUGIN_SOCKET").parse().expect("a number");
    // SAFETY: the runtime says that this is the socket, and nobody else here uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true).expect("a socket");
    let stream = tokio::net::UnixStream::from_std(stream).expect("a socket");

    let config = Arc::new(Mutex::new(String::new()));
    let configured = Arc::clone(&config);
    let (key, value) = (name.to_uppercase(), format!("{index}-{name}"));
    let behaviour = Behaviour::new(&index, &name)
        .on("Configure", move |request| {
            let request = ConfigureRequest::decode(request).expect("a request");
            *configured.lock().unwrap() = request.config;
            Answer::message(&ConfigureResponse { events: 1 << 3 })
        })
        .on("CreateContainer", move |_| {
            let adjust = ContainerAdjustment {
                env: vec![KeyValue {
                    key: key.clone(),
                    value: format!("{value} {}", config.lock().unwrap()),
                }],
                ..ContainerAdjustment::default()
            };
            Answer::message(&CreateContainerResponse {
                adjust: Some(adjust),
                ..CreateContainerResponse::default()
            })
        });
    let plugin = Plugin::on_stream(stream, behaviour);
    let registration = RegisterPluginRequest {
        plugin_name: name,
        plugin_idx: index,
        nri_version: String::new(),
    };
    let registered = plugin.call("RegisterPlugin", &registration).await;
    registered.expect("it is taken in");
    while !plugin.is_closed() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
