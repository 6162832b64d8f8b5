//! `conditionsV4` and `conditionsV6`: which connections the mappings are for.
//!
//! They are written as arguments of iptables or as words of nft. Known is what can be meant of a new
//! connection: its addresses and the interface by which it comes in.

use crate::{
    error::{Code, Error},
    ipnet::{IpNet, parse_ip},
    netfilter::{
        Family,
        expression::{Expression, in_network, interface_is},
    },
    request::check_interface_name,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Network {
        source: bool,
        network: IpNet,
        equal: bool,
    },
    Interface {
        name: String,
        equal: bool,
    },
}

impl Condition {
    pub fn expressions(&self) -> Vec<Expression> {
        match self {
            Condition::Network {
                source,
                network,
                equal,
            } => in_network(*source, network, *equal).into(),
            Condition::Interface { name, equal } => interface_is(true, name, *equal).into(),
        }
    }
}

/// The subject of a condition.
#[derive(Clone, Copy)]
enum Subject {
    Source,
    Destination,
    Interface,
}

/// Reads the conditions under `key`.
///
/// Errors: `UnsupportedField` for what is not known here, as a mapping must not be wider than meant.
pub fn parse(key: &str, list: &[String], family: Family) -> Result<Vec<Condition>, Error> {
    let mut words = list.iter().flat_map(|text| text.split_whitespace());
    let mut conditions = Vec::new();
    let unsupported = |word: &str| {
        Error::new(
            Code::UnsupportedField,
            format!("{key}: {word:?} is not supported"),
        )
    };
    while let Some(word) = words.next() {
        let mut equal = true;
        let mut take = || {
            let next = words.next();
            next.ok_or_else(|| Error::config(format!("{key}: something is missing after {word:?}")))
        };
        let option = match word {
            "!" => {
                equal = false;
                take()?
            }
            other => other,
        };
        let is_ip = |word: &str| word == if family == Family::V4 { "ip" } else { "ip6" };
        let (subject, nft) = match option {
            "-s" | "--source" | "--src" => (Subject::Source, false),
            "-d" | "--destination" | "--dst" => (Subject::Destination, false),
            "-i" | "--in-interface" => (Subject::Interface, false),
            "iifname" if equal => (Subject::Interface, true),
            first if equal && is_ip(first) => match take()? {
                "saddr" => (Subject::Source, true),
                "daddr" => (Subject::Destination, true),
                other => return Err(unsupported(other)),
            },
            other => return Err(unsupported(other)),
        };
        let mut value = take()?;
        if nft && ["==", "!="].contains(&value) {
            equal = value == "==";
            value = take()?;
        }
        conditions.push(condition(key, subject, value, equal, family)?);
    }
    Ok(conditions)
}

fn condition(
    key: &str,
    subject: Subject,
    value: &str,
    equal: bool,
    family: Family,
) -> Result<Condition, Error> {
    if let Subject::Interface = subject {
        let name = value.trim_matches('"');
        check_interface_name(name).map_err(|says| Error::config(format!("{key}: {says}")))?;
        if name.ends_with(['+', '*']) {
            let msg = format!("{key}: a pattern of interface names is not supported");
            return Err(Error::new(Code::UnsupportedField, msg));
        }
        return Ok(Condition::Interface {
            name: name.into(),
            equal,
        });
    }
    let whole = |addr| IpNet::new(addr, if family == Family::V4 { 32 } else { 128 });
    value
        .parse::<IpNet>()
        .ok()
        .or_else(|| whole(parse_ip(value)?))
        .filter(|network| Family::of(network.addr()) == family)
        .map(|network| Condition::Network {
            source: matches!(subject, Subject::Source),
            network: network.network(),
            equal,
        })
        .ok_or_else(|| {
            Error::config(format!(
                "{key}: {value:?} is no address or network of the family"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Vec<Condition>, Error> {
        let list: Vec<_> = words.iter().map(ToString::to_string).collect();
        parse("conditionsV4", &list, Family::V4)
    }

    #[test]
    fn both_languages_are_understood() {
        let iptables = read(&["!", "-d", "192.0.2.0/24", "-s", "10.0.0.1", "-i", "eth0"]).unwrap();
        let nft = read(&[
            "ip daddr != 192.0.2.0/24 ip saddr 10.0.0.1",
            "iifname",
            "\"eth0\"",
        ]);
        assert_eq!(iptables, nft.unwrap());
        assert_eq!(iptables.len(), 3);
        assert_eq!(read(&["", ""]).unwrap(), []);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (words, code) in [
            (&["-m", "physdev"] as &[&str], Code::UnsupportedField),
            (&["ip ttl 1"], Code::UnsupportedField),
            (&["-i", "eth+"], Code::UnsupportedField),
            (&["-d"], Code::InvalidConfig),
            (&["-d", "fd00::/64"], Code::InvalidConfig),
            (&["-d", "x"], Code::InvalidConfig),
        ] {
            let error = read(words).unwrap_err();
            assert!(
                error.is(code) && error.msg.starts_with("conditionsV4"),
                "{error}"
            );
        }
    }
}
