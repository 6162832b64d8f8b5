//! Resolver settings from a file in the form of resolv.conf.

use std::{io::Read, path::Path};

use crate::{
    error::{Code, Doing, Error},
    result::Dns,
};

/// A resolver reads no more either.
const MAX_FILE: u64 = 64 * 1024;

pub fn read(path: &Path) -> Result<Dns, Error> {
    let named = || path.display().to_string();
    let file = std::fs::File::open(path).doing(Code::Io, named)?;
    let mut text = String::new();
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .doing(Code::Io, named)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with(['#', ';']))
    {
        let mut words = line.split_whitespace().map(String::from);
        match (words.next().as_deref(), words.next()) {
            (Some("nameserver"), Some(first)) => dns.nameservers.push(first),
            (Some("domain"), Some(first)) => dns.domain = first,
            (Some("search"), Some(first)) => dns.search.extend([first].into_iter().chain(words)),
            (Some("options"), Some(first)) => dns.options.extend([first].into_iter().chain(words)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_counts() {
        let dns = parse(
            "# c\n;c\n\nnameserver 1.1.1.1 x\n nameserver\t::1\ndomain a.b\nsearch x y\noptions ndots:5\n\
             nameserver\nsortlist 1.1.1.1\n",
        );
        assert_eq!(dns.nameservers, ["1.1.1.1", "::1"]);
        assert_eq!(dns.domain, "a.b");
        assert_eq!(dns.search, ["x", "y"]);
        assert_eq!(dns.options, ["ndots:5"]);
    }
}
