//! What a handshake settled, for the access log.

use rustls::{CipherSuite, CommonState, ProtocolVersion};

use super::client;
use crate::http::client_certificate::ClientCertificate;

/// The outcome of a handshake, in the words of OpenSSL and the registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The IANA name: `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The name the client asked for, lower case.
    pub server_name: Option<Box<str>>,
    /// `h2` or `http/1.1`; `None` if the client offered no protocol.
    pub alpn: Option<&'static str>,
    /// Of a client that was asked for a certificate, had one, and was believed.
    pub client: Option<ClientCertificate>,
}

impl TlsInfo {
    /// `-` stands for what is not known, as before the handshake is over.
    pub(super) fn of(connection: &CommonState, server_name: Option<Box<str>>) -> Self {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "-",
        };
        let alpn = match connection.alpn_protocol() {
            Some(b"h2") => Some("h2"),
            Some(b"http/1.1") => Some("http/1.1"),
            _ => None,
        };
        Self {
            version,
            cipher: connection.negotiated_cipher_suite().map_or("-", |suite| name(suite.suite())),
            server_name,
            alpn,
            client: connection.peer_certificates().and_then(|chain| client::read(chain.first()?)),
        }
    }
}

fn name(suite: CipherSuite) -> &'static str {
    match suite {
        // rustls marks the names of TLS 1.3; the registry does not.
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("-"),
    }
}
