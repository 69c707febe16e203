//! Where the admin endpoint listens, and what of that can be told from a text that is no configuration.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    address::socket_path,
    plan::{CertificatePlan, ListenAddress},
    read::{Scalar, unexpected},
};

/// Where the admin endpoint listens: at one of the two, or both.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdminPlan {
    /// A unix socket of mode 0600: whoever may connect may administer.
    pub socket: Option<PathBuf>,
    pub listen: Option<AdminListenPlan>,
}

impl AdminPlan {
    /// All that is listened on.
    pub fn addresses(&self) -> impl Iterator<Item = AdminAddress> {
        let socket = self.socket.iter().cloned().map(AdminAddress::Unix);
        socket.chain(self.listen.iter().map(|listen| AdminAddress::Tcp(listen.address)))
    }
}

/// One of the places of the admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// The admin endpoint over TCP: whoever has the token may administer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct AdminListenPlan {
    pub address: SocketAddr,
    /// PEM, alone or followed by its chain: it speaks nothing but TLS.
    pub certificate: PathBuf,
    /// PEM, not encrypted.
    pub key: PathBuf,
    pub token_file: PathBuf,
}

impl AdminListenPlan {
    pub fn certificate(&self) -> CertificatePlan {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        CertificatePlan { certificate, key, chain: None, at: "admin".to_owned() }
    }
}

/// The socket that commands go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AdminSocket(pub(super) PathBuf);

impl Scalar for AdminSocket {
    const EXPECTED: &'static str = "a unix socket such as `unix:/run/vestibule/admin.sock`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        if text.parse::<SocketAddr>().is_ok() {
            return Err(format!(
                "over TCP it takes a certificate and a token; write `admin: {{ listen: '{text}', certificate: FILE, key: FILE, \
                 token_file: FILE }}`"
            ));
        }
        match text.strip_prefix("unix:") {
            Some(path) => socket_path(path, base).map(Self),
            None if text.starts_with('/') => Err(format!("a socket begins with `unix:`; write `unix:{text}`")),
            None => Err(unexpected::<Self>(text)),
        }
    }
}

/// The address for other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdminListen(pub(super) SocketAddr);

impl Scalar for AdminListen {
    const EXPECTED: &'static str = "an address such as `10.0.0.5:9443` or `[::1]:9443`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        match <ListenAddress as Scalar>::parse(text, base) {
            Ok(ListenAddress::Tcp(address)) => Ok(Self(address)),
            Ok(ListenAddress::Unix(_)) => Err(format!("this is for TCP; write `socket: {text}`")),
            Err(problem) if !problem.starts_with("expected ") => Err(problem),
            Ok(ListenAddress::Inherited(_)) | Err(_) => Err(unexpected::<Self>(text)),
        }
    }
}

/// The socket that `text` names, which may be no configuration at all; only where it is a whole path and nothing else.
pub(super) fn socket_in(text: &str) -> Option<&str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("admin:"));
    let said = value(lines.next()?.strip_prefix("admin:")?);
    let socket = if said.is_empty() {
        let mut below = lines.take_while(|line| line.trim().is_empty() || line.starts_with([' ', '#']));
        below.find_map(socket_of)
    } else if let Some(keys) = said.strip_prefix('{') {
        keys.split([',', '}']).find_map(socket_of)
    } else {
        Some(said)
    };
    let Some(socket) = socket else { return Some(DEFAULT_SOCKET) };
    let path = socket.trim_matches(['\'', '"']).strip_prefix("unix:").map(str::trim)?;
    (path.starts_with('/') && !path.contains(['$', '#', ' '])).then_some(path)
}

fn socket_of(part: &str) -> Option<&str> {
    part.trim().strip_prefix("socket:").map(value)
}

/// What is written after a key on its line, without what is said of it.
fn value(rest: &str) -> &str {
    rest.trim().split(" #").next().filter(|value| !value.starts_with('#')).unwrap_or_default().trim()
}

/// Where commands go unless a mapping, or what is laid on docassemble's configuration, says otherwise.
pub(super) const DEFAULT_SOCKET: &str = "/run/vestibule/admin.sock";

/// What makes the file of a token.
pub const TOKEN_COMMAND: &str = "openssl rand -base64 -out FILE 48";

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Result<AdminListen, String> {
        <AdminListen as Scalar>::parse(text, Path::new("/etc/vestibule"))
    }

    #[test]
    fn other_machines_are_listened_to_on_tcp_alone() {
        assert_eq!(listen("10.0.0.5:9443"), Ok(AdminListen("10.0.0.5:9443".parse().unwrap())));
        for (text, problem) in [
            ("unix:/run/a.sock", "this is for TCP; write `socket: unix:/run/a.sock`"),
            ("9443", "write `[::]:9443` for port 9443 on every address"),
            ("fd:admin", "expected an address such as `10.0.0.5:9443` or `[::1]:9443`, found `fd:admin`"),
            ("here", "expected an address such as `10.0.0.5:9443` or `[::1]:9443`, found `here`"),
        ] {
            assert_eq!(listen(text).unwrap_err(), problem);
        }
    }

    #[test]
    fn the_socket_is_found_in_a_text_that_is_no_configuration() {
        for (text, expected) in [
            ("admin: unix:/run/a.sock\nlisteners: [", Some("/run/a.sock")),
            ("nothing: [\nadmin: unix:/run/a.sock  # for us\n", Some("/run/a.sock")),
            ("admin:\n  # who\n\n  listen: '[::]:9443'\n  socket: unix:/run/b.sock\nroutes: [", Some("/run/b.sock")),
            (
                "admin:  # over TCP\n  listen: '[::]:9443'\nother: {\n  socket: unix:/c",
                Some("/run/vestibule/admin.sock"),
            ),
            ("admin: { listen: '[::]:9443', socket: 'unix:/run/d.sock' }\n", Some("/run/d.sock")),
            ("admin: { listen: '[::]:9443' }\n", Some("/run/vestibule/admin.sock")),
            ("admin:\n  socket: null\n", None),
            ("admin: null\n", None),
            ("admin: unix:${PLACE}\n", None),
            ("# admin: unix:/run/a.sock\n", None),
            ("", None),
        ] {
            assert_eq!(socket_in(text), expected, "{text}");
        }
    }
}
