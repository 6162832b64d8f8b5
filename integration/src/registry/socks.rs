//! A SOCKS 5 proxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use super::proxy::{listen, pump};
use crate::host::HostNet;

/// A proxy that listens in the namespace of a node. Its threads end with the test's process.
#[derive(Debug)]
pub struct Socks {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

type Login = Option<(&'static str, &'static str)>;

impl Socks {
    /// Listens on the loopback address. With a name and a password, only who shows them is served.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn start(net: &HostNet, login: Login) -> Self {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let address = listen(net, move |client| serve(client, &noted, login));
        Self { address, seen }
    }

    /// `ADDRESS:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where clients have wanted to be connected to so far, as `HOST:PORT`.
    ///
    /// # Panics
    /// If a thread panicked.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve(mut client: TcpStream, seen: &Mutex<Vec<String>>, login: Login) -> std::io::Result<()> {
    let greeting = bytes(&mut client, 2)?;
    let methods = bytes(&mut client, usize::from(greeting[1]))?;
    let method = if login.is_some() { 2 } else { 0 };
    if greeting[0] != 5 || !methods.contains(&method) {
        return client.write_all(&[5, 0xff]);
    }
    client.write_all(&[5, method])?;
    if let Some((name, password)) = login {
        bytes(&mut client, 1)?;
        let shown = [text(&mut client)?, text(&mut client)?];
        let good = shown == [name, password];
        client.write_all(&[1, u8::from(!good)])?;
        if !good {
            return Ok(());
        }
    }
    let request = bytes(&mut client, 4)?;
    let host = match request[3] {
        1 => {
            let address: [u8; 4] = bytes(&mut client, 4)?.try_into().expect("four");
            Ipv4Addr::from(address).to_string()
        }
        _ => text(&mut client)?,
    };
    let port = bytes(&mut client, 2)?;
    let to = format!("{host}:{}", u16::from_be_bytes([port[0], port[1]]));
    seen.lock().expect("no panic").push(to.clone());
    let server = TcpStream::connect(to)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (back, forth) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || pump(back, forth));
    pump(client, server)
}

fn bytes(client: &mut TcpStream, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A text after its length.
fn text(client: &mut TcpStream) -> std::io::Result<String> {
    let length = bytes(client, 1)?[0];
    let text = bytes(client, usize::from(length))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
