//! What an application is told of the certificate that a client has shown.

use http::{HeaderMap, HeaderName, HeaderValue};

/// What a certificate that was verified says of its holder, in visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 4514 writes it.
    pub subject: HeaderValue,
    /// Likewise.
    pub issuer: HeaderValue,
    /// In hexadecimal digits, upper case.
    pub serial: HeaderValue,
    /// SHA-256 of the certificate, in hexadecimal digits, lower case.
    pub fingerprint: HeaderValue,
}

/// Makes `headers` of a client that was asked for a certificate say what came of it, and nothing else.
///
/// Not what a trusted proxy says of it either: on such a connection the client that was asked is the proxy.
pub fn tell(certificate: Option<&ClientCertificate>, headers: &mut HeaderMap) {
    let others: Vec<HeaderName> = headers.keys().filter(|name| says_whose_it_is(name.as_str())).cloned().collect();
    for name in &others {
        headers.remove(name);
    }
    let verified = if certificate.is_some() { "SUCCESS" } else { "NONE" };
    headers.insert(&VERIFY, HeaderValue::from_static(verified));
    if let Some(ClientCertificate { subject, issuer, serial, fingerprint }) = certificate {
        for (name, value) in [(&SUBJECT, subject), (&ISSUER, issuer), (&SERIAL, serial), (&FINGERPRINT, fingerprint)] {
            headers.insert(name, value.clone());
        }
    }
}

/// Whether proxies tell of a client's certificate in a field of this name.
pub fn says_whose_it_is(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["x-ssl-", "ssl-client-", "x-client-cert", "x-amzn-mtls-"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "client-cert" | "client-cert-chain" | "x-arr-clientcert")
}

// The names that configurations of nginx, Apache and HAProxy have for them.
static VERIFY: HeaderName = HeaderName::from_static("x-ssl-client-verify");
static SUBJECT: HeaderName = HeaderName::from_static("x-ssl-client-s-dn");
static ISSUER: HeaderName = HeaderName::from_static("x-ssl-client-i-dn");
static SERIAL: HeaderName = HeaderName::from_static("x-ssl-client-serial");
static FINGERPRINT: HeaderName = HeaderName::from_static("x-ssl-client-fingerprint");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_is_told_of_once_and_by_us_alone() {
        let text = HeaderValue::from_static;
        let shown = ClientCertificate {
            subject: text("CN=a"),
            issuer: text("CN=b"),
            serial: text("01"),
            fingerprint: text("ff"),
        };
        let forged =
            ["x-ssl-client-verify", "x-ssl-client-s-dn", "x-ssl-client-cn", "ssl-client-verify", "client-cert"];
        for (certificate, expected) in [
            (None, vec![("x-ssl-client-verify", "NONE")]),
            (
                Some(&shown),
                vec![
                    ("x-ssl-client-fingerprint", "ff"),
                    ("x-ssl-client-i-dn", "CN=b"),
                    ("x-ssl-client-s-dn", "CN=a"),
                    ("x-ssl-client-serial", "01"),
                    ("x-ssl-client-verify", "SUCCESS"),
                ],
            ),
        ] {
            let mut headers = HeaderMap::new();
            for name in forged {
                headers.append(name, text("SUCCESS"));
                headers.append(name, text("SUCCESS"));
            }

            tell(certificate, &mut headers);

            let mut told: Vec<_> =
                headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            told.sort_unstable();
            assert_eq!(told, expected);
        }
    }
}
