//! `KEY=VALUE` as several commands take it, and as they show it.

use std::collections::BTreeMap;

/// Reads `KEY=VALUE`.
///
/// # Errors
/// There is no "=", or nothing before it.
pub fn parse(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    }
}

/// `a=b, c=d`.
pub fn line(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_a_key() {
        let pair = |k: &str, v: &str| Ok((k.to_owned(), v.to_owned()));
        assert_eq!(parse("a=b=c"), pair("a", "b=c"));
        assert_eq!(parse("a="), pair("a", ""));
        assert!(parse("=a").is_err());
        assert!(parse("a").is_err());
        let labels = BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]);
        assert_eq!(line(&labels), "a=1, b=2");
    }
}
