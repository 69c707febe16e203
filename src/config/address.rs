//! Where things listen, where they are reached, and which networks are believed.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::{
    plan::{EndpointAddress, EndpointPlace, HostName, ListenAddress},
    read::{Scalar, suggestion, unexpected},
};

impl Scalar for ListenAddress {
    const EXPECTED: &'static str = "an address such as `[::]:443`, `127.0.0.1:8080` or `unix:/run/vestibule.sock`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("fd:") {
            // What systemd takes as `FileDescriptorName=`.
            let fits =
                (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
            return if fits {
                Ok(Self::Inherited(name.to_owned()))
            } else {
                Err("`fd:` is followed by the name of a socket that a service manager passes on, as in `fd:https`"
                    .to_owned())
            };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path, base).map(Self::Unix);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        if text.starts_with('/') {
            return Err(format!("a socket begins with `unix:`; write `unix:{text}`"));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(format!("`{text}` has no port; write it as in `[::]:443` or `127.0.0.1:8080`"));
        }
        let port = text.rsplit_once(':').map_or(text, |(_, port)| port);
        match (port.parse::<u16>(), text.split_once(':')) {
            (Ok(port), None | Some(("" | "*", _))) => {
                Err(format!("write `[::]:{port}` for port {port} on every address"))
            }
            (Ok(port), Some(("localhost", _))) => {
                Err(format!("a listener needs an address, not a name; write `127.0.0.1:{port}` or `[::1]:{port}`"))
            }
            (Ok(port), Some((name, _))) if HostName::parse(name).is_some() && name.parse::<IpAddr>().is_err() => {
                Err(format!("a listener needs an address, not a name; write `[::]:{port}` for every address"))
            }
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

impl Scalar for EndpointAddress {
    const EXPECTED: &'static str = "an endpoint such as `127.0.0.1:8000`, `app:8000` or `unix:/run/app.sock`";

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!("`{scheme}://` is not part of an endpoint; write `{}`", rest.trim_end_matches('/')));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path, base).map(Self::Unix);
        }
        if text.starts_with('/') {
            return Err(format!("a socket begins with `unix:`; write `unix:{text}`"));
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
            return Err(unexpected::<Self>(text));
        };
        let port: u16 = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                return Err(format!(
                    "`{port}` is not a port; an endpoint is {}",
                    &Self::EXPECTED["an endpoint ".len()..]
                ));
            }
        };
        if text.parse::<std::net::Ipv6Addr>().is_ok() || host.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(format!("write an IPv6 address in brackets, as in `[::1]:{port}`"));
        }
        let host = HostName::parse(host).ok_or_else(|| format!("`{host}` is not a host name"))?;
        Ok(Self::Tcp { host: host.as_str().to_owned(), port })
    }
}

impl Scalar for EndpointPlace {
    const EXPECTED: &'static str = <EndpointAddress as Scalar>::EXPECTED;

    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let Some(name) = text.strip_prefix("srv:") else {
            return <EndpointAddress as Scalar>::parse(text, base).map(Self::At);
        };
        match HostName::parse(name) {
            Some(name) if name.as_str().starts_with('_') => Ok(Self::Srv(name.as_str().to_owned())),
            _ => Err(format!("`{name}` is not a name of SRV records, such as `srv:_app._tcp.example.com`")),
        }
    }
}

/// An entry of `resolver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerAddress(pub(super) SocketAddr);

impl Scalar for ServerAddress {
    const EXPECTED: &'static str = "a name server such as `10.0.0.53:53` or `[::1]:53`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        match (text.parse(), text.parse::<IpAddr>()) {
            (Ok(address), _) => Ok(Self(address)),
            (_, Ok(address)) => Err(format!("`{text}` has no port; write `{}`", SocketAddr::new(address, 53))),
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

/// A unix socket: a path in the file system that fits in an address.
pub(super) fn socket_path(path: &str, base: &Path) -> Result<PathBuf, String> {
    if path.is_empty() {
        return Err("`unix:` is followed by the path of a socket, as in `unix:/run/vestibule.sock`".to_owned());
    }
    let path = base.join(path);
    // sockaddr_un holds 108 bytes, the last of them zero.
    if path.as_os_str().len() > 107 {
        return Err(format!("the path of a socket is at most 107 bytes long; {} has more", path.display()));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err("a path holds no NUL".to_owned());
    }
    Ok(path)
}

impl Scalar for HostName {
    const EXPECTED: &'static str = "a host name such as `justice.example.com`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        if let Some(name) = Self::parse(text) {
            return Ok(name);
        }
        if let Some((_, name)) = text.split_once("://") {
            let name = name.split(['/', ':']).next().unwrap_or(name);
            return Err(format!("write the host name alone, without a scheme: `{name}`"));
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(format!("write an IPv6 address in brackets: `[{text}]`"));
        }
        if text.starts_with('*') {
            return Err(format!("`{text}`: wildcards are not supported; write each name"));
        }
        if let Some((name, _)) = text.split_once('/') {
            return Err(format!("write the host name alone, without a path: `{name}`"));
        }
        match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(format!("write the host name alone, without a port: `{name}`"))
            }
            _ => Err(unexpected::<Self>(text)),
        }
    }
}

/// An entry of `trusted_proxies`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trusted {
    Networks(Vec<IpNet>),
    /// Peers on unix sockets.
    Unix,
}

impl Scalar for Trusted {
    const EXPECTED: &'static str = "a network such as `10.0.0.0/8`, an address, `loopback`, `private` or `unix`";

    fn parse(text: &str, _: &Path) -> Result<Self, String> {
        let networks =
            |list: &[&str]| list.iter().map(|text| text.parse().expect("these are networks")).collect::<Vec<IpNet>>();
        match text {
            "unix" => return Ok(Self::Unix),
            "loopback" => return Ok(Self::Networks(networks(&["127.0.0.0/8", "::1/128"]))),
            "private" => {
                return Ok(Self::Networks(networks(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"])));
            }
            _ => {}
        }
        let network = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(network), _) => network,
            (_, Ok(address)) => address.into(),
            _ => {
                let near = suggestion(text, ["unix", "loopback", "private"]);
                return Err(format!("{}{near}", unexpected::<Self>(text)));
            }
        };
        if network.addr() != network.network() {
            return Err(format!("`{text}` is an address within a network; write the network, `{}`", network.trunc()));
        }
        // A peer is compared by its IPv4 address where it has one; such a network would match nobody.
        if let IpNet::V6(v6) = network
            && let (Some(v4), 96..) = (v6.addr().to_ipv4_mapped(), v6.prefix_len())
        {
            return Err(format!("write the IPv4 network itself, `{v4}/{}`", v6.prefix_len() - 96));
        }
        Ok(Self::Networks(vec![network]))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["loopback", "private", "unix", "10.0.0.0/8"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: Scalar>(text: &str) -> Result<T, String> {
        T::parse(text, Path::new("/etc/vestibule"))
    }

    #[test]
    fn listeners_are_addresses_or_sockets() {
        assert_eq!(parse("[::]:443"), Ok(ListenAddress::Tcp("[::]:443".parse().unwrap())));
        assert_eq!(parse("0.0.0.0:80"), Ok(ListenAddress::Tcp("0.0.0.0:80".parse().unwrap())));
        assert_eq!(parse("unix:/run/v.sock"), Ok(ListenAddress::Unix("/run/v.sock".into())));
        assert_eq!(parse("unix:v.sock"), Ok(ListenAddress::Unix("/etc/vestibule/v.sock".into())));
    }

    #[test]
    fn a_listener_that_cannot_be_bound_says_what_to_write() {
        let plain = "expected an address such as `[::]:443`, `127.0.0.1:8080` or `unix:/run/vestibule.sock`, found ";
        for (text, problem) in [
            ("80", "write `[::]:80` for port 80 on every address"),
            (":80", "write `[::]:80` for port 80 on every address"),
            ("*:80", "write `[::]:80` for port 80 on every address"),
            ("::1", "`::1` has no port; write it as in `[::]:443` or `127.0.0.1:8080`"),
            ("localhost:80", "a listener needs an address, not a name; write `127.0.0.1:80` or `[::1]:80`"),
            ("example.com:80", "a listener needs an address, not a name; write `[::]:80` for every address"),
            ("fd:", "`fd:` is followed by the name of a socket that a service manager passes on, as in `fd:https`"),
            ("unix:", "`unix:` is followed by the path of a socket, as in `unix:/run/vestibule.sock`"),
        ] {
            assert_eq!(parse::<ListenAddress>(text).unwrap_err(), problem, "{text}");
        }
        for text in ["127.0.0.1", "127.0.0.1:99999", "here", "[::1:80", ""] {
            let problem = parse::<ListenAddress>(text).unwrap_err();
            assert!(problem == format!("{plain}`{text}`") || problem.contains("has no port"), "{text}: {problem}");
        }
        let long = format!("unix:/{}", "s".repeat(107));
        assert!(
            parse::<ListenAddress>(&long).unwrap_err().starts_with("the path of a socket is at most 107 bytes long")
        );
    }

    #[test]
    fn endpoints_are_hosts_with_ports_or_sockets() {
        let tcp = |host: &str, port| Ok(EndpointAddress::Tcp { host: host.to_owned(), port });
        assert_eq!(parse("127.0.0.1:8000"), tcp("127.0.0.1", 8000));
        assert_eq!(parse("[::1]:80"), tcp("[::1]", 80));
        assert_eq!(parse("App:5000"), tcp("app", 5000));
        assert_eq!(parse("unix:/run/app.sock"), Ok(EndpointAddress::Unix("/run/app.sock".into())));
    }

    #[test]
    fn an_endpoint_that_cannot_be_reached_says_what_to_write() {
        for (text, problem) in [
            ("http://127.0.0.1:8000/", "`http://` is not part of an endpoint; write `127.0.0.1:8000`"),
            ("::1:80", "write an IPv6 address in brackets, as in `[::1]:80`"),
            ("app:0", "`0` is not a port; an endpoint is such as `127.0.0.1:8000`, `app:8000` or `unix:/run/app.sock`"),
            ("a b:80", "`a b` is not a host name"),
            ("app", "expected an endpoint such as `127.0.0.1:8000`, `app:8000` or `unix:/run/app.sock`, found `app`"),
        ] {
            assert_eq!(parse::<EndpointAddress>(text).unwrap_err(), problem, "{text}");
        }
    }

    #[test]
    fn a_host_name_stands_alone() {
        assert_eq!(parse::<HostName>("Justice.Example.com.").unwrap().as_str(), "justice.example.com");
        for (text, problem) in [
            ("https://example.com/da", "write the host name alone, without a scheme: `example.com`"),
            ("example.com:443", "write the host name alone, without a port: `example.com`"),
            ("example.com/da", "write the host name alone, without a path: `example.com`"),
            ("*.example.com", "`*.example.com`: wildcards are not supported; write each name"),
            ("::1", "write an IPv6 address in brackets: `[::1]`"),
            ("a b", "expected a host name such as `justice.example.com`, found `a b`"),
        ] {
            assert_eq!(parse::<HostName>(text).unwrap_err(), problem, "{text}");
        }
    }

    #[test]
    fn trust_is_given_to_networks_addresses_and_words() {
        let networks = |list: &[&str]| Ok(Trusted::Networks(list.iter().map(|text| text.parse().unwrap()).collect()));
        assert_eq!(parse("10.0.0.0/8"), networks(&["10.0.0.0/8"]));
        assert_eq!(parse("192.0.2.7"), networks(&["192.0.2.7/32"]));
        assert_eq!(parse("2001:db8::1"), networks(&["2001:db8::1/128"]));
        assert_eq!(parse("loopback"), networks(&["127.0.0.0/8", "::1/128"]));
        assert_eq!(parse("unix"), Ok(Trusted::Unix));
    }

    #[test]
    fn trust_that_is_not_what_it_looks_like_is_refused() {
        let expected = "expected a network such as `10.0.0.0/8`, an address, `loopback`, `private` or `unix`, found ";
        for (text, problem) in [
            ("10.1.2.3/8", "`10.1.2.3/8` is an address within a network; write the network, `10.0.0.0/8`".to_owned()),
            ("::ffff:10.0.0.0/104", "write the IPv4 network itself, `10.0.0.0/8`".to_owned()),
            ("loopbak", format!("{expected}`loopbak`; did you mean `loopback`?")),
            ("10.0.0.0/33", format!("{expected}`10.0.0.0/33`")),
            ("any", format!("{expected}`any`")),
        ] {
            assert_eq!(parse::<Trusted>(text).unwrap_err(), problem, "{text}");
        }
    }
}
