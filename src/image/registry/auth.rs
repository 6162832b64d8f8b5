//! Proving to a registry who asks.
//!
//! What must always hold: a secret is in a header that goes to the origin it is bound to, and nowhere else.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::challenge::Challenge;
use super::origin::Target;
use super::transport::Transport;
use super::{Error, Inner, Origin};

/// What is known to a registry. Its `Debug` shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials(Kind);

#[derive(Clone, Default, PartialEq, Eq, Hash)]
enum Kind {
    #[default]
    None,
    Password {
        username: String,
        password: String,
    },
    /// A refresh token for the token service.
    Identity(String),
    /// A token for the registry itself.
    Token(String),
}

/// Credentials that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("credentials with control characters, or a user name with a colon")]
pub struct InvalidCredentials;

impl Credentials {
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn password(username: String, password: String) -> Result<Self, InvalidCredentials> {
        sendable(&username)?;
        sendable(&password)?;
        match username.contains(':') {
            true => Err(InvalidCredentials),
            false => Ok(Self(Kind::Password { username, password })),
        }
    }

    /// A refresh token, to be changed for a token at the registry's token service.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn identity(token: String) -> Result<Self, InvalidCredentials> {
        sendable(&token)?;
        Ok(Self(Kind::Identity(token)))
    }

    /// A token that the registry takes as it is.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn token(token: String) -> Result<Self, InvalidCredentials> {
        bearer(&token)?;
        Ok(Self(Kind::Token(token)))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self.0, Kind::None)
    }

    fn secret(&self) -> Option<&str> {
        match &self.0 {
            Kind::None => None,
            Kind::Password { password, .. } => Some(password),
            Kind::Identity(token) | Kind::Token(token) => Some(token),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::None => "none",
            Kind::Password { .. } => "a password",
            Kind::Identity(_) => "an identity token",
            Kind::Token(_) => "a registry token",
        })
    }
}

fn sendable(text: &str) -> Result<(), InvalidCredentials> {
    match text.chars().any(char::is_control) {
        true => Err(InvalidCredentials),
        false => Ok(()),
    }
}

/// How one pull proves to one registry who it is: found out when the registry asks, kept until it is refused.
#[derive(Debug)]
pub(super) struct Auth {
    credentials: Credentials,
    held: Mutex<Held>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub header: Option<HeaderValue>,
    /// How often it was made anew.
    turn: u64,
}

/// Bytes of a token service's answer.
const MOST_BYTES: u64 = 256 << 10;
/// Shorter secrets are words that may well appear in a text.
const SHORTEST_SECRET: usize = 4;

impl Auth {
    pub(super) fn new(credentials: Credentials) -> Self {
        let header = match &credentials.0 {
            Kind::Token(token) => bearer(token).ok(),
            _ => None,
        };
        let held = Mutex::new(Held { header, turn: 0 });
        Self { credentials, held }
    }

    pub(super) fn current(&self) -> Held {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers a challenge that came in spite of what was sent, `used`.
    pub(super) async fn renew(
        &self,
        inner: (&Inner, &Transport),
        registry: &Origin,
        scope: &str,
        challenges: &[Challenge],
        used: &Held,
    ) -> Result<(), Error> {
        if self.current().turn != used.turn {
            // Another transfer of this pull was told the same before.
            return Ok(());
        }
        let is_bearer = |challenge: &&Challenge| matches!(challenge, Challenge::Bearer { .. });
        let asked = challenges.iter().find(is_bearer).or(challenges.first());
        let header = match (asked, &self.credentials.0) {
            (_, Kind::Token(_)) => return Err(refused()),
            (Some(Challenge::Bearer { .. }), _) => {
                let asked = asked.expect("just matched");
                self.fetch(inner, registry, scope, asked).await?
            }
            (Some(Challenge::Basic), Kind::Password { username, password }) => {
                if used.header.is_some() {
                    return Err(refused());
                }
                basic(username, password)?
            }
            (Some(Challenge::Basic), Kind::None) => return Err(wanted()),
            (Some(Challenge::Basic), Kind::Identity(_)) => {
                let text = "it takes a name and a password only, and an identity token was given";
                return Err(Error::Denied(text.into()));
            }
            (None, _) => {
                let text = "it asks for a proof of identity in a way that is not known";
                return Err(Error::Denied(text.into()));
            }
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.header = Some(header);
        held.turn += 1;
        Ok(())
    }

    /// Gets a token from the registry's token service.
    async fn fetch(
        &self,
        (inner, transport): (&Inner, &Transport),
        registry: &Origin,
        scope: &str,
        challenge: &Challenge,
    ) -> Result<HeaderValue, Error> {
        let Challenge::Bearer {
            realm,
            service,
            scope: asked,
        } = challenge
        else {
            return Err(refused());
        };
        let target = Origin::parse(realm)
            .map_err(|why| Error::Protocol(format!("it names as its token service {why}")))?;
        self.permit(inner, registry, &target.origin)?;
        let mut fields = Vec::new();
        fields.extend(service.iter().map(|service| ("service", service.as_str())));
        fields.push(("scope", asked.as_deref().unwrap_or(scope)));
        let request = self.request(&target, &fields)?;
        let answer = transport.send(request).await?;
        let status = answer.status();
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(match self.credentials.is_none() {
                    true => wanted(),
                    false => Error::Denied("its token service refuses the credentials".into()),
                });
            }
            status => {
                let detail = format!(" (its token service {})", target.origin);
                return Err(Error::of_status(status, detail, None));
            }
        }
        let bytes = answer.into_body().read(MOST_BYTES, "a token").await?;
        let malformed = || Error::Protocol("its token service gives no token".into());
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let token = [answer.token, answer.access_token].into_iter().flatten();
        let token = token.into_iter().find(|token| !token.is_empty());
        bearer(&token.ok_or_else(malformed)?).map_err(|_| malformed())
    }

    /// Whether `realm` may be asked for tokens of `registry`.
    fn permit(&self, inner: &Inner, registry: &Origin, realm: &Origin) -> Result<(), Error> {
        let deny = |what: String| Err(Error::Denied(format!("its token service {realm} {what}")));
        if registry.is_tls() && !realm.is_tls() {
            return deny("is not asked, because it speaks http".into());
        }
        if realm.is_local() && !registry.is_local() {
            return deny("is not asked, because it is on this machine".into());
        }
        let allowed = inner.token_hosts.contains(realm.host());
        if !self.credentials.is_none() && !registry.is_same_site(realm) && !allowed {
            let host = realm.host();
            return deny(format!(
                "is of another site, so it gets no credentials; allow it with registry.token_hosts = [\"{host}\"]"
            ));
        }
        Ok(())
    }

    fn request(
        &self,
        target: &Target,
        fields: &[(&str, &str)],
    ) -> Result<Request<Full<Bytes>>, Error> {
        let malformed = |_| Error::Protocol("it names a malformed token service".into());
        let request = match &self.credentials.0 {
            Kind::Identity(token) => {
                let mut fields = fields.to_vec();
                fields.push(("grant_type", "refresh_token"));
                fields.push(("client_id", "carpel"));
                fields.push(("refresh_token", token));
                Request::post(target.uri().map_err(malformed)?)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Full::from(form(&fields)))
            }
            credentials => {
                let mark = if target.path.query().is_some() {
                    '&'
                } else {
                    '?'
                };
                let path = format!("{}{mark}{}", target.path, form(fields));
                let target = target.origin.target(&path);
                let target = target
                    .map_err(|_| Error::Protocol("it names a malformed token service".into()))?;
                let mut request = Request::get(target.uri().map_err(malformed)?);
                if let Kind::Password { username, password } = credentials {
                    request = request.header(AUTHORIZATION, basic(username, password)?);
                }
                request.body(Full::default())
            }
        };
        request.map_err(malformed)
    }

    /// Whether a text from outside has something in it that must not be shown.
    pub(super) fn is_leaked_by(&self, text: &str) -> bool {
        let header = self.current().header;
        let header = header.as_ref().and_then(|header| header.to_str().ok());
        let token = header.and_then(|header| header.split(' ').nth(1));
        let secrets = [self.credentials.secret(), token].into_iter().flatten();
        secrets
            .filter(|secret| secret.len() >= SHORTEST_SECRET)
            .any(|secret| text.contains(secret))
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

fn wanted() -> Error {
    Error::Denied("it asks for credentials, or has no such image; none were given".into())
}

fn refused() -> Error {
    Error::Denied("it refuses the credentials".into())
}

fn bearer(token: &str) -> Result<HeaderValue, InvalidCredentials> {
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut header = header.map_err(|_| InvalidCredentials)?;
    header.set_sensitive(true);
    Ok(header)
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    let text = format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    );
    let header = HeaderValue::from_str(&text);
    let mut header = header.map_err(|_| refused())?;
    header.set_sensitive(true);
    Ok(header)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A text as it is written in a query.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

fn form(fields: &[(&str, &str)]) -> String {
    let fields = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)));
    fields.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_show_nothing_of_themselves() {
        let password = Credentials::password("user".into(), "SECRET".into()).unwrap();
        let all = [
            password,
            Credentials::identity("SECRET".into()).unwrap(),
            Credentials::token("SECRET".into()).unwrap(),
        ];
        for credentials in all {
            let auth = Auth::new(credentials.clone());
            let printed = format!("{credentials:?} {auth:?}");
            assert!(!printed.contains("SECRET"), "{printed}");
            assert!(auth.is_leaked_by("not SECRET enough"));
            assert!(!auth.is_leaked_by("good"));
        }
    }

    #[test]
    fn what_would_be_a_header_of_its_own_is_refused() {
        assert!(Credentials::token("a\r\nHost: b".into()).is_err());
        assert!(Credentials::password("a".into(), "b\n".into()).is_err());
        assert!(Credentials::password("a:b".into(), "c".into()).is_err());
    }

    #[test]
    fn forms_are_encoded() {
        let fields = [("scope", "repository:a/b:pull"), ("x", "é &=")];
        assert_eq!(
            form(&fields),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%A9%20%26%3D"
        );
    }
}
