//! Where a span belongs: the W3C's trace context, read from a call's headers, or made here.

use http::HeaderMap;

/// The longest `tracestate` that is passed on, in bytes.
const MOST_STATE: usize = 512;

pub type TraceId = [u8; 16];
pub type SpanId = [u8; 8];

/// A span of another process that is the parent of one here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
    /// What the tracing systems on the way know about it.
    pub state: String,
}

impl Remote {
    /// The context that the headers carry. `None` if there is none, or none that is valid: the trace then begins here.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all("traceparent").iter();
        let parent = parents.next().filter(|_| parents.next().is_none())?;
        let mut remote = Self::parse(parent.to_str().ok()?.trim())?;
        let states = headers.get_all("tracestate").iter();
        let states: Option<Vec<_>> = states.map(|state| state.to_str().ok()).collect();
        let state = states.unwrap_or_default().join(",");
        if state.len() <= MOST_STATE {
            remote.state = state;
        }
        Some(remote)
    }

    /// Reads `version-trace-span-flags`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let remote = Self {
            trace: hex(parts.next()?)?,
            span: hex(parts.next()?)?,
            sampled: hex::<1>(parts.next()?)?[0] & 1 != 0,
            state: String::new(),
        };
        // Later versions may say more.
        let known = match version[0] {
            0 => parts.next().is_none(),
            0xff => false,
            _ => true,
        };
        (known && remote.trace != TraceId::default() && remote.span != SpanId::default())
            .then_some(remote)
    }
}

/// Lower-case digits, and just as many as are wanted.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// An id that is not 0.
pub fn random<const N: usize>() -> [u8; N]
where
    [u8; N]: Default + PartialEq,
    rand::distr::StandardUniform: rand::distr::Distribution<[u8; N]>,
{
    loop {
        let id: [u8; N] = rand::random();
        if id != <[u8; N]>::default() {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn parse(headers: &[(&'static str, &str)]) -> Option<Remote> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Remote::from_headers(&map)
    }

    #[test]
    fn a_parent_is_read() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let remote = parse(&[
            ("traceparent", &parent),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
        ]);
        let remote = remote.unwrap();
        assert_eq!(hex::encode(remote.trace), TRACE);
        assert_eq!(hex::encode(remote.span), SPAN);
        assert!(remote.sampled);
        assert_eq!(remote.state, "a=1,b=2");
        let unsampled = parse(&[("traceparent", &format!("00-{TRACE}-{SPAN}-02"))]);
        assert!(!unsampled.unwrap().sampled);
        let later = parse(&[("traceparent", &format!("cc-{TRACE}-{SPAN}-01-more"))]);
        assert!(later.unwrap().sampled);
        let long = "x".repeat(MOST_STATE + 1);
        let remote = parse(&[("traceparent", &parent), ("tracestate", &long)]);
        assert_eq!(remote.unwrap().state, "");
    }

    #[test]
    fn what_is_no_parent_is_none() {
        let zero = |n: usize| "0".repeat(n);
        let upper = TRACE.to_uppercase();
        for text in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", zero(32)),
            format!("00-{TRACE}-{}-01", zero(16)),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}é-01"),
        ] {
            assert_eq!(parse(&[("traceparent", &text)]), None, "{text}");
        }
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let twice = parse(&[("traceparent", &parent), ("traceparent", &parent)]);
        assert_eq!(twice, None);
        assert_eq!(parse(&[]), None);
    }
}
