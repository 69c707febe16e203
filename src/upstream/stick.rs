//! The cookie that names an endpoint: nothing is kept of who is where, so that every front door with the key knows.

use std::{fmt, sync::Arc};

use aws_lc_rs::{hmac, rand};
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{Endpoint, Upstream};

/// The key that cookies are made with.
#[derive(Clone, Deserialize, Serialize)]
pub struct StickKey([u8; Self::LENGTH]);

impl StickKey {
    pub const LENGTH: usize = 32;

    /// One that nobody else has.
    ///
    /// # Errors
    ///
    /// The system has no randomness.
    pub fn generate() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = Self([0; Self::LENGTH]);
        rand::fill(&mut key.0)?;
        Ok(key)
    }

    /// The key in `bytes`; `None` where those have another length.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes themselves; whoever copies them must wipe the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for StickKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for StickKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StickKey")
    }
}

/// The cookies of one route.
#[derive(Debug)]
pub struct Cookies {
    key: hmac::Key,
    name: String,
    path: String,
}

impl Cookies {
    /// Those of `upstream` for what is below `prefix`, which has no slash at its end.
    pub fn new(key: &StickKey, upstream: &str, prefix: &str) -> Self {
        // What would end the attribute cannot be in it.
        let path = if prefix.is_empty() || prefix.contains(';') { "/" } else { prefix };
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()),
            // By the upstream, so that the cookies of two routes of which one lies within the other are two.
            name: format!("vestibule_{upstream}"),
            path: path.to_owned(),
        }
    }

    /// The endpoint of `upstream` that a cookie in `headers` names.
    ///
    /// A cookie that was made up, or is that of an endpoint which has gone, names none.
    pub fn read(&self, headers: &HeaderMap, upstream: &Upstream) -> Option<Arc<Endpoint>> {
        let mut tokens = self.tokens(headers).peekable();
        tokens.peek()?;
        let endpoints = upstream.endpoints();
        tokens.find_map(|token| endpoints.iter().find(|endpoint| self.token(endpoint) == token).cloned())
    }

    /// The cookie that names `endpoint`, for a client that came by https or not.
    pub fn naming(&self, endpoint: &Endpoint, https: bool) -> HeaderValue {
        // Without an end: it goes with the browser's session, as what the application remembers of it does.
        let secure = if https { "; Secure" } else { "" };
        let (name, path, token) = (&self.name, &self.path, self.token(endpoint));
        HeaderValue::try_from(format!("{name}={token:032x}; Path={path}; HttpOnly; SameSite=Lax{secure}"))
            .expect("names of upstreams and prefixes are plain ASCII")
    }

    /// Half of an HMAC: it tells nothing of addresses within, and nobody makes one up.
    fn token(&self, endpoint: &Endpoint) -> u128 {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(self.name.as_bytes());
        context.update(b"\0");
        context.update(endpoint.identity.as_bytes());
        let signed = context.sign();
        u128::from_be_bytes(*signed.as_ref().first_chunk().expect("a digest has 32 bytes"))
    }

    /// What cookies of ours say.
    fn tokens(&self, headers: &HeaderMap) -> impl Iterator<Item = u128> {
        let fields = headers.get_all(header::COOKIE).into_iter();
        let pairs = fields.filter_map(|field| field.to_str().ok()).flat_map(|field| field.split(';'));
        let values = pairs.filter_map(|pair| pair.trim().strip_prefix(self.name.as_str())?.strip_prefix('='));
        values.take(MOST).filter(|value| value.len() == 32).filter_map(|value| u128::from_str_radix(value, 16).ok())
    }
}

/// As many cookies of one name are looked at: those of routes within routes.
const MOST: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::upstream;

    fn headers(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(cookie).unwrap())])
    }

    fn value(cookie: &HeaderValue) -> String {
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn every_front_door_with_the_key_knows_the_endpoint_and_nobody_else_makes_it_up() {
        let (one, other) = (upstream(&["10.0.0.1", "10.0.0.2"]), upstream(&["10.0.0.2", "10.0.0.1"]));
        let key = StickKey::generate().unwrap();
        let cookies = Cookies::new(&key, "app", "/da");
        let endpoint = &one.endpoints()[1];

        let cookie = cookies.naming(endpoint, true);

        let text = cookie.to_str().unwrap();
        assert!(text.ends_with("; Path=/da; HttpOnly; SameSite=Lax; Secure"), "{text}");
        let elsewhere = Cookies::new(&StickKey::new(key.expose()).unwrap(), "app", "");
        let sent = headers(&format!("a=b; {}; c", value(&cookie)));
        assert_eq!(&*elsewhere.read(&sent, &other).unwrap().label, "10.0.0.2:1");
        let stranger = Cookies::new(&StickKey::generate().unwrap(), "app", "/da");
        assert!(stranger.read(&sent, &other).is_none());
        assert!(cookies.read(&sent, &upstream(&["10.0.0.1"])).is_none(), "its endpoint has gone");
    }

    #[test]
    fn what_is_no_cookie_of_ours_is_none() {
        let upstream = upstream(&["10.0.0.1", "10.0.0.2"]);
        let cookies = Cookies::new(&StickKey::generate().unwrap(), "app", "");
        let good = value(&cookies.naming(&upstream.endpoints()[0], false));
        for bad in [
            "",
            "vestibule_app",
            "vestibule_app=",
            "vestibule_app=+1",
            &good[..good.len() - 1],
            &good.replace("app", "web"),
        ] {
            assert!(cookies.read(&headers(bad), &upstream).is_none(), "{bad}");
        }
        // Of two the one that is good.
        assert!(cookies.read(&headers(&format!("vestibule_app={:032x}; {good}", 1)), &upstream).is_some());
    }
}
