//! The admin endpoint over TCP: TLS, and a token in each request.
//!
//! Whoever can send packets may come here, so the token (RFC 6750, 2.1) is the access control, and only in `Authorization`: what
//! a browser adds by itself (a cookie) or what is written down on the way (a query) is not looked at. So no web page can have
//! a browser ask anything here, by whatever name it has reached us; what says that it comes from a page is refused before that.
//!
//! [`CONNECTIONS`] there are at most, [`OF_ONE`] of one client, and none of them is taken from those of the unix socket. Who
//! has not shown the token yet has [`HANDSHAKE_TIMEOUT`] and the time for a head. Handshakes of one client are counted, too
//! ([`HANDSHAKES`]). Wrong tokens of one client are counted:
//! [`WRONG_AT_ONCE`], then one in [`FORGIVEN_IN`]; beyond that it is told to wait.

use std::{error::Error, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tracing::{debug, warn};

use super::{
    AdminState, CONNECTIONS, Token, answer_on,
    service::{problem, service},
};
use crate::{
    config::{Rate, TlsPlan},
    http::headers::{credentials, retry_after},
    limits::{Attempts, Client, Crowd, Handshakes, Notice},
    metrics::{AdminRefusal, Counter, Metrics},
    tls::{Certificate, CertificateMaterial, with_one_certificate},
};

/// What of the system it takes: read by the keeper, handed to whoever serves.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AdminSecrets {
    pub certificate: CertificateMaterial,
    pub token: Token,
}

/// By content.
impl PartialEq for AdminSecrets {
    fn eq(&self, other: &Self) -> bool {
        self.certificate.content() == other.certificate.content() && self.token == other.token
    }
}

/// What a client has to agree to and to know, by one configuration.
#[derive(Debug)]
pub struct Terms {
    tls: Arc<ServerConfig>,
    token: Token,
}

impl Terms {
    /// With the versions and ciphers of `plan`.
    ///
    /// # Errors
    ///
    /// `plan` has no protocol version.
    pub fn new(plan: &TlsPlan, certificate: &Certificate, token: Token) -> Result<Self, rustls::Error> {
        Ok(Self { tls: with_one_certificate(plan, certificate)?, token })
    }
}

/// The endpoint, through all configurations that this process serves.
pub struct Remote {
    terms: ArcSwap<Terms>,
    state: Arc<dyn AdminState>,
    inside: Crowd<Client>,
    handshakes: Handshakes,
    wrong: Attempts,
    refused: [Counter; AdminRefusal::ALL.len()],
    told: [Notice; AdminRefusal::ALL.len()],
}

impl Remote {
    pub fn new(terms: Terms, state: Arc<dyn AdminState>, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            terms: ArcSwap::from_pointee(terms),
            state,
            inside: Crowd::new(CONNECTIONS, OF_ONE),
            handshakes: Handshakes::of_each(HANDSHAKES),
            wrong: Attempts::new(WRONG_AT_ONCE, FORGIVEN_IN),
            refused: metrics.admin_refusals(),
            told: Default::default(),
        })
    }

    /// Has handshakes and requests that come from now on meet `terms`.
    pub fn replace(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
    }

    /// One connection of `peer`, from the handshake to the end.
    pub(super) async fn answer_on(self: Arc<Self>, (stream, peer): (TcpStream, SocketAddr)) {
        let client = Client::new(peer.ip());
        if !self.handshakes.count(Some(client)) {
            return self.refuse(AdminRefusal::Connections, client);
        }
        let Some(_place) = self.inside.enter(client) else { return self.refuse(AdminRefusal::Connections, client) };
        let tls = TlsAcceptor::from(Arc::clone(&self.terms.load().tls));
        let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return debug!(%client, error = &error as &dyn Error, "an admin connection failed in its TLS handshake");
            }
            Err(_) => return debug!(%client, "the TLS handshake of an admin connection took too long"),
        };
        let remote = Arc::clone(&self);
        let service = service(Arc::clone(&self.state), move |request| remote.refusal(client, request));
        answer_on(stream, service).await;
    }

    /// What a request of `client` is answered that does not get in; `None` where it shows the token.
    fn refusal(&self, client: Client, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let headers = request.headers();
        // First: a page must not be able to use up the tries of whoever looks at it.
        if is_of_a_page(headers) {
            self.refuse(AdminRefusal::Page, client);
            return Some(problem(StatusCode::FORBIDDEN, "web pages are answered nothing here"));
        }
        let said = credentials(headers, BEARER);
        // Nobody guesses it: whoever has it is not to wait because others at the same address are wrong.
        if said.is_some_and(|token| self.terms.load().token.matches(token)) {
            return None;
        }
        if let Some(wait) = said.and_then(|_| self.wrong.wait(client)) {
            self.refuse(AdminRefusal::Attempts, client);
            let mut refused = problem(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens came from this address");
            refused.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after(wait)));
            return Some(refused);
        }
        // Who shows none has not guessed.
        if said.is_some() {
            self.wrong.failed(client);
        }
        self.refuse(AdminRefusal::Token, client);
        let mut refused =
            problem(StatusCode::UNAUTHORIZED, "this takes `Authorization: Bearer TOKEN`, with the right token");
        refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge(said)));
        Some(refused)
    }

    /// Counts a refusal, and tells of it once a minute.
    fn refuse(&self, reason: AdminRefusal, client: Client) {
        self.refused[reason as usize].inc();
        let Some(times) = self.told[reason as usize].happened() else { return };
        match reason {
            AdminRefusal::Page => {
                warn!(%client, times, "requests to the admin endpoint are answered 403: a browser sent them for a web page");
            }
            AdminRefusal::Token => {
                warn!(%client, times, "requests to the admin endpoint are answered 401: they show no token, or a wrong one");
            }
            AdminRefusal::Attempts => {
                warn!(%client, times, "requests to the admin endpoint are answered 429: their client has shown too many wrong tokens");
            }
            AdminRefusal::Connections => {
                warn!(%client, times, "connections to the admin endpoint are closed at once: their client has {OF_ONE}, or makes too many handshakes");
            }
        }
    }
}

/// Whether a browser says that a page has it ask this (Fetch, 3.2; Fetch Metadata, 2.4). `none`: somebody has typed it in.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    let of_ours = |site: &HeaderValue| matches!(site.as_bytes(), b"none" | b"same-origin");
    headers.contains_key(ORIGIN) || !headers.get_all(SEC_FETCH_SITE).iter().all(of_ours)
}

/// RFC 6750, 3.1: no error is named to who has shown nothing.
fn challenge(said: Option<&[u8]>) -> &'static str {
    match said {
        None => "Bearer realm=\"vestibule\"",
        Some(_) => "Bearer realm=\"vestibule\", error=\"invalid_token\"",
    }
}

/// Connections at once of one client.
const OF_ONE: usize = 16;

/// Handshakes of one client: fifty at once, then ten a second. A signature is a millisecond at most, in which other orders wait.
const HANDSHAKES: Rate = Rate { count: NonZeroU32::new(50).unwrap(), per: Duration::from_secs(5) };

/// From accept to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Wrong tokens that one client may show at once.
const WRONG_AT_ONCE: u32 = 10;

/// After which time it may show one more.
const FORGIVEN_IN: Duration = Duration::from_secs(6);

const BEARER: &[u8] = b"Bearer ";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn what_a_browser_asks_for_a_page_is_known() {
        for (fields, expected) in [
            (&[][..], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], true),
            (&[("origin", "https://admin.example")], true),
            (&[("origin", "null")], true),
        ] {
            assert_eq!(is_of_a_page(&headers(fields)), expected, "{fields:?}");
        }
    }
}
