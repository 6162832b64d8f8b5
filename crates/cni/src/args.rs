//! `CNI_ARGS`: pairs of key and value between semicolons.

use std::net::IpAddr;

use crate::{
    error::{Code, Error},
    ipnet::parse_ip,
    netlink::link::Mac,
};

/// The pairs that the plugins here know.
#[derive(Debug, Default, PartialEq)]
pub struct Args {
    /// Addresses to allocate.
    pub ips: Vec<IpAddr>,
    /// The same as they were written, with prefix lengths.
    pub static_ips: Vec<String>,
    /// Gateways of static addresses.
    pub gateways: Vec<IpAddr>,
    /// The hardware address of the container's interface.
    pub mac: Option<Mac>,
}

impl Args {
    /// Unknown keys are an error, unless `IgnoreUnknown` is true.
    pub fn parse(text: &str) -> Result<Args, Error> {
        let wrong =
            |says: String| Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {says}"));
        let mut args = Args::default();
        let (mut unknown, mut ignore) = (None, false);
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.contains('='))
                .ok_or_else(|| wrong(format!("{pair:?} is no pair")))?;
            match key {
                "IP" if value.is_empty() => {}
                "IP" => {
                    for text in value.split(',').map(str::trim) {
                        let addr = text.split_once('/').map_or(text, |(addr, _)| addr);
                        let ip = parse_ip(addr);
                        args.ips
                            .push(ip.ok_or_else(|| wrong(format!("{pair:?} is no address")))?);
                        args.static_ips.push(text.into());
                    }
                }
                "GATEWAY" if value.is_empty() => {}
                "GATEWAY" => {
                    for text in value.split(',').map(str::trim) {
                        let ip = parse_ip(text);
                        args.gateways
                            .push(ip.ok_or_else(|| wrong(format!("{pair:?} is no address")))?);
                    }
                }
                "MAC" if value.is_empty() => {}
                "MAC" => {
                    let mac = Mac::parse(value);
                    args.mac = Some(mac.ok_or_else(|| wrong(format!("{pair:?} is no address")))?);
                }
                "IgnoreUnknown" => match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => ignore = true,
                    "0" | "false" => ignore = false,
                    _ => return Err(wrong(format!("{pair:?} is neither true nor false"))),
                },
                _ => unknown = Some(pair),
            }
        }
        match unknown {
            Some(pair) if !ignore => Err(wrong(format!("unknown argument {pair:?}"))),
            _ => Ok(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_pairs_are_read() {
        let args =
            Args::parse("IgnoreUnknown=1;IP=10.0.0.9/24;K8S_POD_NAME=x;MAC=02:00:00:00:00:01");
        let args = args.unwrap();
        assert_eq!(args.ips[0].to_string(), "10.0.0.9");
        assert_eq!(args.static_ips, ["10.0.0.9/24"]);
        assert_eq!(args.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "x",
            "A=b",
            "IP=x",
            "IP=1.1.1.1=2",
            "MAC=1",
            "IgnoreUnknown=maybe",
            ";",
            "A=b;",
        ] {
            assert!(
                Args::parse(text).unwrap_err().is(Code::InvalidEnvironment),
                "{text}"
            );
        }
    }
}
