//! What links, rules and set elements that belong to one attachment are marked with.
//!
//! A label names network, container and interface, so that garbage collection can tell which of them are
//! a network's and which of these are still wanted, without any state but the kernel's.

use crate::{hash::hash, request::Attachment};

const PREFIX: &str = "carpel-cni";

/// What the labels of a network start with, in the full and in the short form.
pub fn prefixes(network: &str) -> [String; 2] {
    [
        format!("{PREFIX} {network} "),
        format!("{PREFIX} #{:016x} ", hash(&[network])),
    ]
}

/// The label of an attachment, in the short form if the full one is longer than `max` bytes.
pub fn label(network: &str, attachment: &Attachment, max: usize) -> String {
    let Attachment {
        container,
        interface,
    } = attachment;
    let [full, short] = prefixes(network);
    let full = format!("{full}{container} {interface}");
    if full.len() <= max {
        return full;
    }
    format!("{short}#{:016x}", hash(&[container, interface]))
}

/// Whether a label is one of the network's.
pub fn is_of(label: &str, network: &str) -> bool {
    prefixes(network)
        .iter()
        .any(|prefix| label.starts_with(prefix))
}

/// Name of the host's end of an attachment's pair. Others may have the name; the label decides.
pub fn host_name(network: &str, attachment: &Attachment, attempt: u32) -> String {
    let Attachment {
        container,
        interface,
    } = attachment;
    format!(
        "veth{:08x}",
        hash(&[network, container, interface, &attempt.to_string()]) as u32
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_shortened_and_stay_the_networks() {
        let attachment = Attachment {
            container: "c".repeat(64),
            interface: "eth0".into(),
        };
        let full = label("net", &attachment, 126);
        assert_eq!(full, format!("carpel-cni net {} eth0", "c".repeat(64)));
        let short = label(&"n".repeat(80), &attachment, 126);
        assert!(
            short.len() < 50 && is_of(&short, &"n".repeat(80)),
            "{short}"
        );
        assert!(is_of(&full, "net") && !is_of(&full, "ne") && !is_of(&short, "net"));
    }
}
