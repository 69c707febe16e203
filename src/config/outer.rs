//! What a proxy in front of us must contain: the other half of a configuration behind a proxy.
//!
//! The outer proxy decides nothing: it passes on paths, bodies and upgrades as they come, and says
//! who the client is. Everything else is decided once, here.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use super::plan::{ListenAddress, ListenerPlan, Plan};

/// A proxy that may stand in front of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Outer {
    Apache,
    Nginx,
    Caddy,
}

/// What the configuration of `outer` must contain to forward to us: text that ends with a newline.
///
/// Where no listener can take what it forwards, the text says so.
#[must_use]
pub fn explain_outer(plan: &Plan, outer: Outer) -> String {
    let Some(listener) = inner_listener(plan) else {
        return "# No listener can take requests from a proxy: each one redirects, or requires the PROXY protocol.\n\
                # Add one to the configuration, such as `- address: \"127.0.0.1:8000\"`.\n"
            .to_owned();
    };
    let forwarding = Forwarding { plan, listener };
    let snippet = match outer {
        Outer::Apache => Apache(&forwarding).to_string(),
        Outer::Nginx => Nginx(&forwarding).to_string(),
        Outer::Caddy => Caddy(&forwarding).to_string(),
    };
    format!("{snippet}{}", forwarding.trust())
}

/// The listener that a proxy forwards to: one without TLS where there is one.
fn inner_listener(plan: &Plan) -> Option<&ListenerPlan> {
    let open = plan.listeners.iter().filter(|listener| listener.redirect.is_none() && !listener.proxy_protocol);
    open.min_by_key(|listener| listener.tls)
}

struct Forwarding<'a> {
    plan: &'a Plan,
    listener: &'a ListenerPlan,
}

enum Reached<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

impl Forwarding<'_> {
    /// Where a proxy on this machine reaches the listener.
    fn reached(&self) -> Reached<'_> {
        match &self.listener.address {
            ListenAddress::Unix(path) => Reached::Unix(path),
            // Where it is bound is written in the unit of the service manager.
            ListenAddress::Inherited(_) => Reached::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 80))),
            ListenAddress::Tcp(address) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                // Dual-stack: reached by IPv4 as well, which every proxy speaks.
                Reached::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())))
            }
            ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
                Reached::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())))
            }
            ListenAddress::Tcp(address) => Reached::Tcp(*address),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.listener.tls { "https" } else { "http" }
    }

    /// The prefixes to forward, without those that lie below another; `[""]` is everything.
    fn prefixes(&self) -> Vec<&str> {
        let mut prefixes: Vec<_> = self.plan.routes.iter().map(|route| route.prefix.as_str()).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let all = prefixes.clone();
        prefixes.retain(|prefix| {
            !all.iter().any(|outer| prefix.strip_prefix(outer).is_some_and(|below| below.starts_with('/')))
        });
        prefixes
    }

    /// Longer than we take to answer, so that our answer is the one that the client sees.
    fn patience(&self) -> u64 {
        let longest = self.plan.routes.iter().map(|route| {
            let upstream = self.plan.upstreams.get(&route.upstream);
            route.timeout + upstream.map_or(Duration::ZERO, |upstream| upstream.queue.timeout + upstream.hold)
        });
        longest.max().unwrap_or_default().as_secs() + 5
    }

    /// How long a proxy may keep an idle connection, in seconds: less than we do, so that it never sends a request into
    /// one that we are closing.
    fn keep(&self) -> u64 {
        let ours = self.plan.limits.keep_alive.as_secs();
        ours.saturating_sub(5).max(ours / 2).max(1)
    }

    /// The largest body that any route takes; `None`: no limit.
    fn body_limit(&self) -> Option<u64> {
        let limits: Option<Vec<_>> = self.plan.routes.iter().map(|route| route.body_limit).collect();
        limits?.into_iter().max()
    }

    fn trust(&self) -> String {
        let (word, trusted) = match self.reached() {
            Reached::Unix(_) => ("unix", self.plan.trusted_proxies.unix),
            Reached::Tcp(address) => {
                ("loopback", address.ip().is_loopback() && self.plan.trusted_proxies.contains(address.ip()))
            }
        };
        let others = self.plan.trusted_proxies.networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut text = String::from("\n# vestibule.yml must trust the address that this proxy connects from.\n");
        match (trusted, others.as_str()) {
            (true, _) => text.push_str("# For a proxy on the same machine it does.\n"),
            (false, "") => {
                text.push_str("# MISSING there; without it the application sees this proxy as the client:\n");
                text.push_str("#   trusted_proxies: [");
                text.push_str(word);
                text.push_str(
                    "]\n# From a container's network, or another machine, name its address or network instead.\n",
                );
            }
            (false, others) => {
                text.push_str("# It trusts ");
                text.push_str(others);
                text.push_str("; add `");
                text.push_str(word);
                text.push_str("` for a proxy on the same machine.\n");
            }
        }
        text
    }
}

struct Apache<'a>(&'a Forwarding<'a>);

impl fmt::Display for Apache<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(forwarding) = self;
        let base = match forwarding.reached() {
            Reached::Tcp(address) => format!("{}://{address}", forwarding.scheme()),
            Reached::Unix(path) => format!("unix:{}|{}://localhost", path.display(), forwarding.scheme()),
        };
        writeln!(f, "# Apache 2.4.47 or later, in the <VirtualHost> of the site.")?;
        writeln!(
            f,
            "# a2enmod proxy proxy_http proxy_wstunnel headers{}",
            if forwarding.listener.tls { " ssl" } else { "" }
        )?;
        if forwarding.listener.tls {
            writeln!(f, "SSLProxyEngine On")?;
        }
        writeln!(
            f,
            "# Of the whole site, because Apache knows it nowhere else: without it a path with %2F is answered 404."
        )?;
        writeln!(f, "AllowEncodedSlashes NoDecode")?;
        for prefix in forwarding.prefixes() {
            let path = if prefix.is_empty() { "/" } else { prefix };
            writeln!(f, "<Location \"{path}\">")?;
            writeln!(
                f,
                "    # Websockets go the same way. Paths are passed on as they came. Idle connections are closed"
            )?;
            writeln!(f, "    # before vestibule does it (`limits.keep_alive`).")?;
            writeln!(
                f,
                "    ProxyPass \"{base}{path}\" nocanon upgrade=websocket timeout={} ttl={}",
                forwarding.patience(),
                forwarding.keep()
            )?;
            writeln!(f, "    # The host that the browser asked for, so that links and cookies are right.")?;
            writeln!(f, "    ProxyPreserveHost On")?;
            writeln!(
                f,
                "    # Apache adds the client's address and host to what the client sent: only ours may remain."
            )?;
            writeln!(f, "    RequestHeader unset Forwarded")?;
            writeln!(f, "    RequestHeader unset X-Forwarded-Host")?;
            writeln!(f, "    RequestHeader unset X-Forwarded-Port")?;
            writeln!(f, "    RequestHeader set X-Forwarded-Proto expr=%{{REQUEST_SCHEME}}")?;
            writeln!(f, "    LimitRequestBody {}", forwarding.body_limit().unwrap_or(0))?;
            writeln!(f, "</Location>")?;
        }
        Ok(())
    }
}

struct Nginx<'a>(&'a Forwarding<'a>);

impl fmt::Display for Nginx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(forwarding) = self;
        let server = match forwarding.reached() {
            Reached::Tcp(address) => address.to_string(),
            Reached::Unix(path) => format!("unix:{}", path.display()),
        };
        writeln!(f, "# nginx, in http {{ }}:")?;
        writeln!(f, "map $http_upgrade $vestibule_connection {{\n    default upgrade;\n    ''      '';\n}}")?;
        writeln!(f, "upstream vestibule {{\n    server {server};\n    keepalive 32;")?;
        writeln!(f, "    keepalive_timeout {}s;  # less than our `limits.keep_alive`\n}}", forwarding.keep())?;
        writeln!(f, "\n# and in the server {{ }} of the site:")?;
        for prefix in forwarding.prefixes() {
            // A location without its slash would take /dashboard for /da.
            writeln!(f, "location {prefix}/ {{")?;
            self.location(f)?;
            writeln!(f, "}}")?;
            if !prefix.is_empty() {
                writeln!(f, "location = {prefix} {{")?;
                self.location(f)?;
                writeln!(f, "}}")?;
            }
        }
        Ok(())
    }
}

impl Nginx<'_> {
    fn location(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(forwarding) = self;
        writeln!(f, "    proxy_pass {}://vestibule;  # without a path: the path as it came", forwarding.scheme())?;
        writeln!(f, "    proxy_http_version 1.1;")?;
        writeln!(f, "    proxy_set_header Upgrade $http_upgrade;  # websockets")?;
        writeln!(f, "    proxy_set_header Connection $vestibule_connection;")?;
        writeln!(f, "    proxy_set_header Host $http_host;")?;
        writeln!(f, "    proxy_set_header X-Forwarded-Host $http_host;")?;
        writeln!(f, "    proxy_set_header X-Forwarded-Proto $scheme;")?;
        writeln!(f, "    proxy_set_header X-Forwarded-Port $server_port;")?;
        writeln!(f, "    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;")?;
        writeln!(f, "    proxy_set_header Forwarded \"\";")?;
        writeln!(f, "    proxy_request_buffering off;  # collected once, by vestibule")?;
        writeln!(f, "    proxy_buffering off;")?;
        writeln!(f, "    client_max_body_size {};", forwarding.body_limit().unwrap_or(0))?;
        writeln!(f, "    proxy_read_timeout {}s;", forwarding.patience())
    }
}

struct Caddy<'a>(&'a Forwarding<'a>);

impl fmt::Display for Caddy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(forwarding) = self;
        let server = match forwarding.reached() {
            Reached::Tcp(address) => format!("{}://{address}", forwarding.scheme()),
            Reached::Unix(path) => format!("unix/{}", path.display()),
        };
        let paths: Vec<_> = forwarding
            .prefixes()
            .iter()
            .map(|prefix| match *prefix {
                "" => "/*".to_owned(),
                prefix => format!("{prefix} {prefix}/*"),
            })
            .collect();
        writeln!(f, "# Caddy, in the block of the site. It passes on websockets, and sets X-Forwarded-For,")?;
        writeln!(f, "# X-Forwarded-Proto and X-Forwarded-Host itself; it does not collect bodies.")?;
        writeln!(f, "@vestibule path {}", paths.join(" "))?;
        writeln!(f, "handle @vestibule {{")?;
        if let Some(limit) = forwarding.body_limit() {
            writeln!(f, "    request_body {{\n        max_size {limit}\n    }}")?;
        }
        writeln!(f, "    reverse_proxy {server} {{")?;
        writeln!(f, "        header_up -Forwarded")?;
        writeln!(f, "        header_up X-Forwarded-Port {{http.request.port}}")?;
        writeln!(f, "        flush_interval -1")?;
        writeln!(f, "        transport http {{")?;
        writeln!(f, "            response_header_timeout {}s", forwarding.patience())?;
        writeln!(f, "            keepalive {}s  # less than our `limits.keep_alive`", forwarding.keep())?;
        if forwarding.listener.tls {
            writeln!(f, "            tls_insecure_skip_verify  # or tls_trust_pool, with our certificate")?;
        }
        writeln!(f, "        }}\n    }}\n}}")
    }
}
