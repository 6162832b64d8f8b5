//! The values of `carpel run`'s flags, each read by one function.

use std::path::Path;

use carpel_api::cri::{Device, KeyValue, Mount, MountPropagation, PortMapping, Protocol};

/// `HOST:CONTAINER[:OPTIONS]`; the options are `ro`, `rro`, `rw`, `rprivate`, `rslave` and `rshared`.
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let (host, container, options) = match (parts.next(), parts.next(), parts.next(), parts.next())
    {
        (Some(host), Some(container), options, None) => (host, container, options),
        _ => {
            return Err(format!(
                "{text:?} is not of the form HOST:CONTAINER[:OPTIONS]"
            ));
        }
    };
    for path in [host, container] {
        if !Path::new(path).is_absolute() {
            return Err(format!("{path:?} is not an absolute path"));
        }
    }
    let mut mount = Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        ..Mount::default()
    };
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "rw" => {}
            "ro" => mount.readonly = true,
            "rro" => (mount.readonly, mount.recursive_read_only) = (true, true),
            "rprivate" => mount.set_propagation(MountPropagation::PropagationPrivate),
            "rslave" => mount.set_propagation(MountPropagation::PropagationHostToContainer),
            "rshared" => mount.set_propagation(MountPropagation::PropagationBidirectional),
            _ => {
                return Err(format!(
                    "{option:?} is no mount option: there are ro, rro, rw, rprivate, rslave and rshared"
                ));
            }
        }
    }
    Ok(mount)
}

/// `[[IP:]HOST:]CONTAINER[/PROTOCOL]`. Without a host port the pod's address is the only way in.
pub fn port(text: &str) -> Result<PortMapping, String> {
    let wrong = || format!("{text:?} is not of the form [[IP:]HOST:]CONTAINER[/tcp|udp|sctp]");
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((ports, "sctp")) => (ports, Protocol::Sctp),
        Some(_) => return Err(wrong()),
    };
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(i32::from(port)),
        _ => Err(wrong()),
    };
    let (rest, container_port) = match ports.rsplit_once(':') {
        None => (None, number(ports)?),
        Some((rest, port)) => (Some(rest), number(port)?),
    };
    let (ip, host_port) = match rest {
        None => ("", 0),
        Some(rest) => match rest.rsplit_once(':') {
            None => ("", number(rest)?),
            Some((ip, port)) => (ip, number(port)?),
        },
    };
    // An IPv6 address stands in brackets, as its colons would be taken for ours.
    let ip = ip
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(ip);
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong());
    }
    Ok(PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: ip.to_owned(),
    })
}

/// `KEY=VALUE`, or `KEY` for the value that it has here.
pub fn env(text: &str) -> Result<KeyValue, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => match std::env::var(text) {
            Ok(value) => (text, value),
            Err(_) => return Err(format!("{text} is not set here: give {text}=VALUE")),
        },
    };
    if key.is_empty() {
        return Err(format!("{text:?} is not of the form KEY=VALUE"));
    }
    Ok(KeyValue {
        key: key.to_owned(),
        value: value.into_bytes(),
    })
}

/// `HOST[:CONTAINER[:rwm]]`.
pub fn device(text: &str) -> Result<Device, String> {
    let wrong = || format!("{text:?} is not of the form HOST[:CONTAINER[:rwm]]");
    let parts: Vec<_> = text.split(':').collect();
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] => (host, container, permissions),
        _ => return Err(wrong()),
    };
    let known = permissions.chars().all(|c| "rwm".contains(c));
    if !host.starts_with('/') || !container.starts_with('/') || permissions.is_empty() || !known {
        return Err(wrong());
    }
    Ok(Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    })
}

/// A number of processors, as in 0.5 or 2, in thousandths.
pub fn cpus(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.001..=100_000.0).contains(&cpus) => Ok((cpus * 1000.0).round() as u32),
        _ => Err(format!(
            "{text:?} is no number of processors: give one such as 0.5 or 2"
        )),
    }
}

/// Who the container's first process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    Id { uid: i64, gid: Option<i64> },
    Name { name: String, gid: Option<i64> },
}

/// `UID[:GID]` or `NAME[:GID]`.
pub fn user(text: &str) -> Result<User, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let gid = match group {
        None => None,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => Some(gid.into()),
            Err(_) => return Err(format!("{group:?} is no number of a group")),
        },
    };
    match user.parse::<u32>() {
        Ok(uid) => Ok(User::Id {
            uid: uid.into(),
            gid,
        }),
        Err(_) if user.is_empty() || user.starts_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("{user:?} is neither a user's number nor its name"))
        }
        Err(_) => Ok(User::Name {
            name: user.to_owned(),
            gid,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let one = mount("/a:/b").unwrap();
        assert_eq!(
            (one.host_path.as_str(), one.container_path.as_str()),
            ("/a", "/b")
        );
        assert!(!one.readonly);
        let one = mount("/a:/b:rro,rslave").unwrap();
        assert!(one.readonly && one.recursive_read_only);
        assert_eq!(
            one.propagation(),
            MountPropagation::PropagationHostToContainer
        );
        for bad in [
            "/a",
            "a:/b",
            "/a:b",
            "/a:/b:ro:x",
            "/a:/b:fast",
            "",
            ":",
            "/a:/b:",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let parts = |text: &str| {
            port(text).map(|p| {
                (
                    p.host_ip.clone(),
                    p.host_port,
                    p.container_port,
                    p.protocol(),
                )
            })
        };
        assert_eq!(parts("80"), Ok((String::new(), 0, 80, Protocol::Tcp)));
        assert_eq!(
            parts("8080:80/udp"),
            Ok((String::new(), 8080, 80, Protocol::Udp))
        );
        assert_eq!(
            parts("127.0.0.1:8080:80"),
            Ok(("127.0.0.1".into(), 8080, 80, Protocol::Tcp))
        );
        assert_eq!(
            parts("[::1]:8080:80"),
            Ok(("::1".into(), 8080, 80, Protocol::Tcp))
        );
        for bad in [
            "",
            "0",
            "65536",
            "a:80",
            "80:",
            "1.2.3:1:1",
            "80/icmp",
            "x:1:1",
            ":80",
            "-1",
        ] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_rest() {
        assert_eq!(env("A=b=c").unwrap().value, b"b=c");
        assert_eq!(env("A=").unwrap().value, b"");
        assert!(env("=x").is_err());
        assert!(
            env("NO_SUCH_VARIABLE_HERE")
                .unwrap_err()
                .contains("not set")
        );
        assert_eq!(cpus("1.5"), Ok(1500));
        assert_eq!(cpus("2"), Ok(2000));
        for bad in ["", "0", "-1", "x", "inf", "NaN", "1e9"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(
            user("1000:7"),
            Ok(User::Id {
                uid: 1000,
                gid: Some(7)
            })
        );
        assert_eq!(
            user("www-data"),
            Ok(User::Name {
                name: "www-data".into(),
                gid: None
            })
        );
        for bad in ["", ":1", "1000:x", "99999999999", "1x"] {
            assert!(user(bad).is_err(), "{bad}");
        }
        assert_eq!(device("/dev/fuse").unwrap().permissions, "rwm");
        assert_eq!(device("/dev/a:/dev/b:r").unwrap().container_path, "/dev/b");
        for bad in [
            "fuse",
            "/dev/a:b",
            "/dev/a:/dev/b:x",
            "/dev/a:/dev/b:",
            "/a:/b:r:w",
        ] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }
}
