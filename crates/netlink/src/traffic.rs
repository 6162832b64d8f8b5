//! Queueing disciplines of links and filters before them.

use rustix::io::{self, Errno};

use super::{Answer, Batch, Socket, as_text, as_u32, attributes, message::Attributes};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// Size of `struct tcmsg`.
const HEADER: usize = 20;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

const ROOT: u32 = u32::MAX;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const FIRST_HANDLE: u32 = 0x1_0000;

const TBF: &str = "tbf";
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;

const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const U32_TERMINAL: u8 = 1;
const MIRRED_PARAMETERS: u16 = 2;
const STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;
/// ETH_P_ALL, big-endian in the lower half, under the filter's priority of 1.
const FIRST_ALL_PROTOCOLS: u32 = 1 << 16 | (3_u16.to_be() as u32);

/// How long packets may wait for their turn, in microseconds.
const LATENCY: u64 = 25_000;
/// The kernel's ticks of packet scheduling, of 64 nanoseconds each.
const TICKS_PER_64_MICROSECONDS: u64 = 1000;

/// A limit of the kind "token bucket", as the kernel keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    rate: u64,
    /// Bytes that may wait.
    limit: u32,
    /// The time, in ticks, that a full bucket lasts.
    buffer: u32,
}

impl Bucket {
    /// `rate` in bytes per second, not 0, and `burst` in bytes.
    pub fn new(rate: u64, burst: u32) -> Bucket {
        let clamp = |number: u128| u32::try_from(number).unwrap_or(u32::MAX);
        let micros = clamp(u128::from(burst) * 1_000_000 / u128::from(rate));
        let waiting = u128::from(rate) * u128::from(LATENCY) / 1_000_000;
        Bucket {
            rate,
            limit: clamp(waiting + u128::from(burst)),
            buffer: clamp(u128::from(
                u64::from(micros) * TICKS_PER_64_MICROSECONDS / 64,
            )),
        }
    }

    fn options(self) -> Attributes {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        // struct tc_tbf_qopt: rate, peak rate, limit, buffer, mtu; the first two end with the number.
        let mut bytes = vec![0; 36];
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        bytes[28..32].copy_from_slice(&self.buffer.to_ne_bytes());
        let options = Attributes::default().bytes(TBF_PARAMETERS, &bytes);
        if self.rate > u64::from(u32::MAX) {
            options.bytes(TBF_RATE64, &self.rate.to_ne_bytes())
        } else {
            options
        }
    }

    fn parse(options: &[u8]) -> Option<Bucket> {
        let mut rate64 = None;
        let mut found = None;
        for attribute in attributes(options, 0) {
            let value = attribute.value();
            match attribute.kind() {
                TBF_PARAMETERS if value.len() >= 32 => {
                    found = Some(Bucket {
                        rate: as_u32(&value[8..]).into(),
                        limit: as_u32(&value[24..]),
                        buffer: as_u32(&value[28..]),
                    });
                }
                TBF_RATE64 => rate64 = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        found.map(|found| Bucket {
            rate: rate64.unwrap_or(found.rate),
            ..found
        })
    }
}

fn message(index: u32, handle: u32, parent: u32, info: u32, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for number in [index, handle, parent, info] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(attributes.into_bytes());
    bytes
}

impl Socket {
    fn create(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.push(kind, NLM_F_CREATE | NLM_F_EXCL, payload);
        self.send(batch).map(drop).map_err(|refused| refused.errno)
    }

    /// Limits what leaves by a link.
    ///
    /// Errors: `NOENT` if the kernel does not know the discipline `tbf`.
    pub fn limit(&mut self, index: u32, bucket: Bucket) -> io::Result<()> {
        let attributes = Attributes::default()
            .text(KIND, TBF)
            .nest(OPTIONS, bucket.options());
        let payload = message(index, FIRST_HANDLE, ROOT, 0, attributes);
        self.create(RTM_NEWQDISC, &payload)
    }

    /// Makes a link take filters for what comes in by it.
    ///
    /// Errors: `NOENT` if the kernel does not know the discipline `ingress`.
    pub fn filter_incoming(&mut self, index: u32) -> io::Result<()> {
        let attributes = Attributes::default().text(KIND, "ingress");
        let payload = message(index, INGRESS_HANDLE, INGRESS, 0, attributes);
        self.create(RTM_NEWQDISC, &payload)
    }

    /// Sends what comes in by a link out by the link `to` before anything else happens to it.
    ///
    /// Errors: `NOENT` if the kernel does not know the filter `u32` or the action `mirred`.
    pub fn redirect_incoming(&mut self, index: u32, to: u32) -> io::Result<()> {
        // struct tc_u32_sel and one struct tc_u32_key that matches everything.
        let mut selector = vec![0; 32];
        selector[0] = U32_TERMINAL;
        selector[2] = 1;
        // struct tc_mirred: index, capabilities, action, two counts, what is done, to which link.
        let numbers = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to];
        let parameters: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
        let action = Attributes::default().text(1, "mirred").nest(
            2,
            Attributes::default().bytes(MIRRED_PARAMETERS, &parameters),
        );
        let options = Attributes::default()
            .bytes(U32_SELECTOR, &selector)
            .nest(U32_ACTIONS, Attributes::default().nest(1, action));
        let attributes = Attributes::default()
            .text(KIND, "u32")
            .nest(OPTIONS, options);
        let payload = message(index, 0, INGRESS_HANDLE, FIRST_ALL_PROTOCOLS, attributes);
        self.create(RTM_NEWTFILTER, &payload)
    }

    /// The limit of what leaves by a link, if it has one.
    pub fn limit_of(&mut self, index: u32) -> io::Result<Option<Bucket>> {
        let asked = message(index, 0, 0, 0, Attributes::default());
        let answers = self.dump_bytes(RTM_GETQDISC, &asked)?;
        let parse = |answer: &Answer| {
            let header = answer.payload.first_chunk::<HEADER>()?;
            let (mut is_tbf, mut options) = (false, Vec::new());
            for attribute in attributes(&answer.payload, HEADER) {
                match attribute.kind() {
                    KIND => is_tbf = as_text(attribute.value()) == TBF,
                    OPTIONS => options = attribute.value().to_vec(),
                    _ => {}
                }
            }
            let here = as_u32(&header[4..]) == index && as_u32(&header[12..]) == ROOT;
            (is_tbf && here).then(|| Bucket::parse(&options)).flatten()
        };
        Ok(answers.iter().find_map(parse))
    }

    /// The disciplines of all links, by the index of the link and with their names.
    pub fn disciplines(&mut self) -> io::Result<Vec<(u32, String)>> {
        let asked = message(0, 0, 0, 0, Attributes::default());
        let parse = |answer: &Answer| {
            let header = answer.payload.first_chunk::<HEADER>()?;
            let name = attributes(&answer.payload, HEADER).find(|one| one.kind() == KIND)?;
            Some((as_u32(&header[4..]), as_text(name.value())))
        };
        let answers = self.dump_bytes(RTM_GETQDISC, &asked)?;
        Ok(answers.iter().filter_map(parse).collect())
    }

    /// Takes all limits and filters from a link; fine if it has none.
    pub fn unlimit(&mut self, index: u32) -> io::Result<()> {
        for (handle, parent) in [(FIRST_HANDLE, ROOT), (INGRESS_HANDLE, INGRESS)] {
            let mut batch = Batch::default();
            let payload = message(index, handle, parent, 0, Attributes::default());
            batch.push(RTM_DELQDISC, 0, &payload);
            match self.send(batch) {
                Ok(_) => {}
                Err(refused) if [Errno::NOENT, Errno::INVAL].contains(&refused.errno) => {}
                Err(refused) => return Err(refused.errno),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_read_back() {
        for bucket in [
            Bucket::new(1_000_000, 65_536),
            Bucket::new(10_000_000_000, u32::MAX),
            Bucket::new(1, u32::MAX),
        ] {
            let options = bucket.options().into_bytes();
            assert_eq!(Bucket::parse(&options), Some(bucket));
        }
        let bucket = Bucket::new(1_000_000, 65_536);
        assert_eq!((bucket.limit, bucket.buffer), (90_536, 1_024_000));
    }
}
