//! Tokens: what a request may do, kept until the client comes for it, once.

use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Request;
use crate::error::Error;

/// How long a client may take to come.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens in flight, and most bytes of what they are for.
const MOST: usize = 1000;
const MOST_BYTES: usize = 16 << 20;

/// 128 bits of the operating system's randomness: nobody guesses one.
type Token = u128;

#[derive(Default)]
pub struct Tokens(Mutex<State>);

#[derive(Default)]
struct State {
    requests: HashMap<Token, Request>,
    /// In the order in which they were made; some may be used.
    order: VecDeque<(Instant, Token)>,
    bytes: usize,
}

impl Tokens {
    /// Keeps a request, and gives the token for it.
    ///
    /// # Errors
    /// [`Error::ResourceExhausted`] if too many clients are yet to come.
    pub fn keep(&self, request: Request) -> Result<String, Error> {
        self.keep_at(request, Instant::now())
    }

    fn keep_at(&self, request: Request, now: Instant) -> Result<String, Error> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(now);
        let size = size(&request);
        if state.requests.len() >= MOST || state.bytes + size > MOST_BYTES {
            return Err(Error::ResourceExhausted(format!(
                "{} streaming requests wait for their clients already",
                state.requests.len()
            )));
        }
        let token: Token = rand::random();
        state.bytes += size;
        state.requests.insert(token, request);
        state.order.push_back((now, token));
        Ok(URL_SAFE_NO_PAD.encode(token.to_be_bytes()))
    }

    /// Takes what a token is for. `None`: it is unknown, used or too old.
    pub fn take(&self, token: &str) -> Option<Request> {
        self.take_at(token, Instant::now())
    }

    fn take_at(&self, token: &str, now: Instant) -> Option<Request> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let token = Token::from_be_bytes(bytes.try_into().ok()?);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(now);
        state.remove(token)
    }
}

impl State {
    fn expire(&mut self, now: Instant) {
        while let Some(&(made, token)) = self.order.front() {
            let used = !self.requests.contains_key(&token);
            if !used && now.saturating_duration_since(made) < LIFE {
                return;
            }
            self.order.pop_front();
            self.remove(token);
        }
    }

    fn remove(&mut self, token: Token) -> Option<Request> {
        let request = self.requests.remove(&token)?;
        self.bytes -= size(&request);
        // Used ones behind one that nobody comes for are forgotten before they are many.
        if self.order.len() > 2 * MOST {
            let requests = &self.requests;
            self.order.retain(|(_, token)| requests.contains_key(token));
        }
        Some(request)
    }
}

fn size(request: &Request) -> usize {
    let own = match request {
        Request::Exec { command, .. } => command
            .iter()
            .map(|word| word.len() + size_of::<String>())
            .sum(),
        Request::Attach { .. } => 0,
        Request::PortForward { ports, .. } => ports.len() * size_of::<u16>(),
    };
    size_of::<Request>() + own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;

    fn request(port: u16) -> Request {
        Request::PortForward {
            sandbox: SandboxId::random(),
            ports: vec![port],
        }
    }

    fn port(request: Option<Request>) -> Option<u16> {
        match request? {
            Request::PortForward { ports, .. } => ports.first().copied(),
            _ => None,
        }
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let (one, two) = (
            tokens.keep(request(1)).unwrap(),
            tokens.keep(request(2)).unwrap(),
        );
        assert_eq!(one.len(), 22);
        assert_ne!(one, two);
        assert_eq!(port(tokens.take(&two)), Some(2));
        assert_eq!(port(tokens.take(&two)), None);
        assert_eq!(port(tokens.take(&one)), Some(1));
        for noise in ["", "x", "..", &"A".repeat(22), &"A".repeat(1 << 16)] {
            assert!(tokens.take(noise).is_none(), "{noise}");
        }
    }

    #[test]
    fn a_token_is_good_for_a_minute() {
        let tokens = Tokens::default();
        let begin = Instant::now();
        let token = tokens.keep_at(request(1), begin).unwrap();
        let late = tokens.keep_at(request(2), begin + LIFE / 2).unwrap();
        assert!(tokens.take_at(&token, begin + LIFE).is_none());
        let in_time = tokens.take_at(&late, begin + LIFE);
        assert_eq!(port(in_time), Some(2));
        assert_eq!(tokens.0.lock().unwrap().bytes, 0);
    }

    #[test]
    fn tokens_are_bounded() {
        let tokens = Tokens::default();
        let begin = Instant::now();
        let mut first = None;
        for _ in 0..MOST {
            let token = tokens.keep_at(request(1), begin).unwrap();
            first.get_or_insert(token);
        }
        let refused = tokens.keep_at(request(1), begin).err();
        assert!(matches!(refused, Some(Error::ResourceExhausted(_))));
        tokens.take_at(&first.unwrap(), begin).unwrap();
        tokens.keep_at(request(1), begin).unwrap();
        assert!(tokens.keep_at(request(1), begin).is_err());
        tokens.keep_at(request(1), begin + LIFE).unwrap();
        assert_eq!(tokens.0.lock().unwrap().requests.len(), 1);
    }

    #[test]
    fn used_tokens_are_not_remembered() {
        let tokens = Tokens::default();
        let begin = Instant::now();
        // One that nobody comes for, and many that are used at once.
        tokens.keep_at(request(1), begin).unwrap();
        for _ in 0..5 * MOST {
            let token = tokens.keep_at(request(2), begin).unwrap();
            tokens.take_at(&token, begin).unwrap();
        }
        assert!(tokens.0.lock().unwrap().order.len() <= 2 * MOST + 1);
    }
}
