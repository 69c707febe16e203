//! What of docassemble's configuration concerns a front door, read by docassemble's own rules.
//!
//! Which spelling counts, what an absent key stands for and when the environment is asked are not ours to choose: the
//! application reads the same files, and the two have to come to the same. Where docassemble goes on with a default after
//! a complaint, so do we, with a warning; refused is what would leave us without a site, or with another one.

use std::{net::Ipv4Addr, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        ciphers::{Cipher, from_openssl},
        environment::Environment,
        error::{Fault, Origin, Position},
        plan::{HostName, PathPrefix},
        read::{Scalar, Told},
        tree::Node,
        words::{MailAddress, SiteOrigin},
    },
    lookup::{Found, Lookup, Variable, Word},
};

/// A value, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Placed<T> {
    pub(super) value: T,
    pub(super) position: Position,
}

/// What of docassemble's configuration concerns a front door.
///
/// It may have been made from what the application can write: no path in it is followed before it has been held against
/// the folders that are compiled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Settings {
    /// Whether there is a `config.yml` yet.
    pub(super) written: bool,
    pub(super) web_server: WebServer,
    pub(super) role: Role,
    pub(super) host: Option<Placed<String>>,
    /// With both slashes.
    pub(super) root: Placed<String>,
    pub(super) https: Placed<bool>,
    /// The port in `url root`, where that is an https address of `host`.
    pub(super) https_port: Option<Placed<u16>>,
    pub(super) lets_encrypt: Option<Placed<()>>,
    pub(super) lets_encrypt_email: Option<Placed<String>>,
    pub(super) behind_balancer: Placed<bool>,
    pub(super) http_port: Placed<u16>,
    /// Whether the application leaves sending files to its front door.
    pub(super) offload: Placed<bool>,
    /// Endpoints of the socket server; none with `enable monitor: False`.
    pub(super) websockets: Vec<Placed<String>>,
    /// The old spelling: the one origin that is allowed everything.
    pub(super) cross_site_domain: Option<Placed<String>>,
    pub(super) administrator: Option<Placed<String>>,
    /// Bytes; `None`: no limit.
    pub(super) body_limit: Placed<Option<u64>>,
    /// Seconds.
    pub(super) timeout: Placed<u32>,
    pub(super) protocols: Placed<Vec<String>>,
    pub(super) ciphers: Placed<Vec<Cipher>>,
    pub(super) certificate_folder: Option<Placed<String>>,
    pub(super) log_folder: Option<Placed<String>>,
    pub(super) supervisor: Option<Placed<Supervisor>>,
    /// Addresses of this machine that are of the internet.
    pub(super) public_addresses: Vec<Ipv4Addr>,
    pub(super) warnings: Vec<Fault>,
}

/// The web server that docassemble believes to be behind, which tells its release line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WebServer {
    /// Today's: the application sends `X-Accel-Redirect`.
    Nginx,
    /// That of 2018 and 2019: `X-Sendfile`.
    Apache,
    /// uWSGI speaks HTTP itself, on port 80.
    None,
}

/// What this machine does of what `CONTAINERROLE` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) web: bool,
    pub(super) log: bool,
    /// Whether this is the whole site.
    pub(super) all: bool,
}

/// How supervisord knows its friends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Supervisor {
    pub(super) username: String,
    pub(super) password: String,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What came of reading a `config.yml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) enum Answer {
    Settings(Box<Settings>),
    Refused(Vec<Fault>),
    /// A value is kept elsewhere, and only docassemble knows how to fetch it.
    Elsewhere(Fault),
    /// The file is there and cannot be read; why.
    Unreadable(String),
}

/// The variables that are read, besides those with the place of docassemble's Python.
pub(super) const VARIABLES: &[&str] = &[
    "ENVIRONMENT_TAKES_PRECEDENCE",
    "CONTAINERROLE",
    "DAHOSTNAME",
    "POSTURLROOT",
    "URLROOT",
    "USEHTTPS",
    "USELETSENCRYPT",
    "LETSENCRYPTEMAIL",
    "BEHINDHTTPSLOADBALANCER",
    "XSENDFILE",
    "USENGINXTOSERVEFILES",
    "DAEXPOSEWEBSOCKETS",
    "DAWEBSOCKETSIP",
    "DAWEBSOCKETSPORT",
    "SERVERADMIN",
    "PORT",
    "DASSLPROTOCOLS",
    "DASSLCIPHERS",
    "DAWEBSERVER",
    "DATIMEOUT",
    "ENABLEMONITOR",
    "LOGDIRECTORY",
    "EC2",
    "DASUPERVISORUSERNAME",
    "DASUPERVISORPASSWORD",
];

/// The keys of `config.yml` that are read.
pub(super) const KEYS: &[&str] = &[
    "external hostname",
    "root",
    "url root",
    "use https",
    "use lets encrypt",
    "lets encrypt email",
    "behind https load balancer",
    "xsendfile",
    "use nginx to serve files",
    "expose websockets",
    "websockets ip",
    "websockets port",
    "cross site domain",
    "cross site domains",
    "server administrator email",
    "http port",
    "maximum content length",
    "nginx ssl protocols",
    "nginx ssl ciphers",
    "web server",
    "web server timeout",
    "enable monitor",
    "checkin interval",
    "cert install directory",
    "log",
    "ec2",
    "supervisor",
];

/// What `tree`, a `config.yml` (`None`: there is none yet), and `environment` say.
///
/// # Errors
///
/// Every fault. A value that is kept elsewhere is one that has to be fetched first.
pub(super) fn read(tree: Option<&Node>, environment: Environment<'_>, machine: &Machine) -> Answer {
    let mut lookup = Lookup::new(tree, environment);
    if let Some(elsewhere) = lookup.elsewhere(KEYS) {
        return Answer::Elsewhere(elsewhere);
    }
    lookup.warn_of_near_misses(KEYS);
    let settings = Reader { lookup: &mut lookup, machine }.settings(tree.is_some());
    match (settings, lookup.faults.is_empty()) {
        (Ok(settings), true) => {
            Answer::Settings(Box::new(Settings { warnings: std::mem::take(&mut lookup.warnings), ..settings }))
        }
        _ => Answer::Refused(lookup.faults),
    }
}

/// What is asked of the machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// `hostname --fqdn`.
    pub(super) name: Option<String>,
    /// Its own addresses but those of loopback.
    pub(super) addresses: Vec<Ipv4Addr>,
}

struct Reader<'l, 'a> {
    lookup: &'l mut Lookup<'a>,
    machine: &'l Machine,
}

impl Reader<'_, '_> {
    fn settings(mut self, written: bool) -> Result<Settings, Told> {
        let web_server = self.web_server();
        let role = self.role();
        let https = self.flag("use https", Variable::initially("USEHTTPS"), false);
        let behind_balancer =
            self.flag("behind https load balancer", Variable::initially("BEHINDHTTPSLOADBALANCER"), false);
        let named = self.host();
        let root = self.root();
        let http = self.port();
        let (protocols, ciphers) = (self.protocols(), self.ciphers());
        let host = named?.or_else(|| self.machine_name(https.value || behind_balancer.value));
        let public_port = self.url_root(host.as_ref(), https.value || behind_balancer.value);
        let (websockets, offload) = (self.websockets()?, self.offload(written, web_server, behind_balancer.value));
        Ok(Settings {
            written,
            web_server,
            role,
            https_port: public_port,
            lets_encrypt: self.lets_encrypt(https.value),
            lets_encrypt_email: self.mail("lets encrypt email", "LETSENCRYPTEMAIL", "the authority is told none"),
            https,
            behind_balancer,
            http_port: http?,
            offload,
            websockets,
            cross_site_domain: self.cross_site_domain(),
            administrator: self.mail("server administrator email", "SERVERADMIN", "error pages name nobody"),
            body_limit: self.body_limit(),
            timeout: self.timeout(),
            protocols: protocols?,
            ciphers: ciphers?,
            certificate_folder: self.text("cert install directory", None),
            log_folder: self.text("log", Variable::always("LOGDIRECTORY")),
            supervisor: self.supervisor(),
            public_addresses: self.machine.addresses.iter().copied().filter(|address| is_public(*address)).collect(),
            host,
            root: root?,
            warnings: Vec::new(),
        })
    }

    fn web_server(&mut self) -> WebServer {
        let Some(found) = self.lookup.find("web server", Variable::initially("DAWEBSERVER")) else {
            return WebServer::Nginx;
        };
        match found.word.text().as_deref() {
            None | Some("" | "nginx") => WebServer::Nginx,
            Some("apache") => WebServer::Apache,
            Some("none") => WebServer::None,
            Some(_) => {
                self.lookup.warn(&found, "docassemble knows `nginx`, `apache` and `none`; taken for `nginx`");
                WebServer::Nginx
            }
        }
    }

    fn role(&self) -> Role {
        let roles = self.lookup.variable("CONTAINERROLE").unwrap_or_default();
        let has = |name: &str| roles.split(':').any(|role| role.trim() == name);
        let all = roles.trim().is_empty() || has("all");
        Role { web: all || has("web"), log: has("log"), all }
    }

    /// The outer `None` is a fault that has been told, the inner one no name.
    fn host(&mut self) -> Result<Option<Placed<String>>, Told> {
        let Some(found) = self.lookup.find("external hostname", Variable::always("DAHOSTNAME")) else {
            return Ok(None);
        };
        let Some(text) = found.word.text().filter(|text| !is_unset(text)) else { return Ok(None) };
        match <HostName as Scalar>::parse(&text, Path::new("/")) {
            Ok(name) => Ok(Some(found.placed(name.as_str().to_owned()))),
            Err(problem) => Err(self.lookup.refuse(&found, problem)),
        }
    }

    /// What docassemble does without a name: it takes the one of the machine.
    fn machine_name(&mut self, needed: bool) -> Option<Placed<String>> {
        if !needed {
            return None;
        }
        let ec2 = self.lookup.find("ec2", Variable::always("EC2")).is_some_and(|found| found.word.is_true());
        let position = Position::start(Origin::Docassemble);
        let name = self.machine.name.as_deref().and_then(HostName::parse)?;
        let ec2 = if ec2 { " (the metadata of EC2 is not asked)" } else { "" };
        self.lookup.warn_at(
            position,
            "external hostname",
            format!(
                "there is none, so the name of this machine is taken, {name}{ec2}; write the name that browsers use"
            ),
        );
        Some(Placed { value: name.as_str().to_owned(), position })
    }

    fn root(&mut self) -> Result<Placed<String>, Told> {
        let default = Placed { value: "/".to_owned(), position: Position::start(Origin::Docassemble) };
        let Some(found) = self.lookup.find("root", Variable::initially("POSTURLROOT")) else { return Ok(default) };
        let Some(text) = found.word.text().filter(|text| !text.is_empty()) else { return Ok(default) };
        let Some(prefix) = PathPrefix::parse(&text) else {
            let problem = format!("`{text}` is not a path that begins and ends with a slash, such as `/da/`");
            return Err(self.lookup.refuse(&found, problem));
        };
        if !text.ends_with('/') {
            self.lookup.warn(&found, format!("write `{prefix}`: docassemble needs the slash at the end"));
        }
        Ok(found.placed(prefix.to_string()))
    }

    /// The port of `url root`, and whether that goes with the rest.
    fn url_root(&mut self, host: Option<&Placed<String>>, https: bool) -> Option<Placed<u16>> {
        let found = self.lookup.find("url root", Variable::initially("URLROOT"))?;
        let text = found.word.text().filter(|text| !is_unset(text))?;
        let (scheme, authority) = text.trim_end_matches('/').split_once("://")?;
        let bracket = authority.rfind(']').unwrap_or(0);
        let (name, port) = match authority.rfind(':') {
            Some(colon) if colon > bracket => (&authority[..colon], authority[colon + 1..].parse().ok()),
            _ => (authority, None),
        };
        if https && scheme == "http" {
            self.lookup.warn(
                &found,
                "it begins with http although browsers come by https: websockets would be refused by docassemble; write https",
            );
        }
        let host = host?;
        if !name.eq_ignore_ascii_case(&host.value) {
            let problem = format!(
                "it is not the address of `external hostname` ({}): docassemble takes websockets from this one only",
                host.value
            );
            self.lookup.warn(&found, problem);
            return None;
        }
        port.filter(|port| scheme == "https" && *port > 0).map(|port| found.placed(port))
    }

    fn port(&mut self) -> Result<Placed<u16>, Told> {
        let default = Placed { value: 80, position: Position::start(Origin::Docassemble) };
        let Some(found) = self.lookup.find("http port", Variable::always("PORT")) else { return Ok(default) };
        match found.word.number() {
            _ if !found.word.is_true() => Ok(default),
            Some(number) if u16::try_from(number).is_ok_and(|port| port > 0) => {
                Ok(found.placed(u16::try_from(number).unwrap_or(80)))
            }
            _ => Err(self.lookup.refuse(&found, "a port is a whole number from 1 to 65535")),
        }
    }

    fn lets_encrypt(&mut self, https: bool) -> Option<Placed<()>> {
        let found = self.lookup.find("use lets encrypt", Variable::initially("USELETSENCRYPT"))?;
        if !self.truth(&found) {
            return None;
        }
        if !https {
            self.lookup.warn(&found, "it has no effect without `use https: True`");
        }
        Some(found.placed(()))
    }

    fn offload(&mut self, written: bool, web_server: WebServer, behind_balancer: bool) -> Placed<bool> {
        match web_server {
            // A new configuration is made with it, an old one is without.
            WebServer::Nginx => {
                self.flag("use nginx to serve files", Variable::initially("USENGINXTOSERVEFILES"), !written)
            }
            WebServer::Apache => self.flag("xsendfile", Variable::initially("XSENDFILE"), written || !behind_balancer),
            WebServer::None => Placed { value: false, position: Position::start(Origin::Docassemble) },
        }
    }

    fn websockets(&mut self) -> Result<Vec<Placed<String>>, Told> {
        let monitor = self.flag("enable monitor", Variable::initially("ENABLEMONITOR"), true).value;
        let checkin = self.lookup.find("checkin interval", None).is_some_and(|found| found.word.number() == Some(0));
        if !monitor || checkin {
            return Ok(Vec::new());
        }
        let position = Position::start(Origin::Docassemble);
        let port = match self.lookup.find("websockets port", Variable::always("DAWEBSOCKETSPORT")) {
            Some(found) if found.word.is_true() => match found.word.number().map(u16::try_from) {
                Some(Ok(port)) if port > 0 => found.placed(port),
                _ => {
                    self.lookup.warn(&found, "it has to be a port; taken for 5000, as docassemble does");
                    Placed { value: 5000, position }
                }
            },
            _ => Placed { value: 5000, position },
        };
        let ip = self.lookup.find("websockets ip", Variable::always("DAWEBSOCKETSIP"));
        let endpoint = |host: &str| match host.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("[{address}]:{}", port.value),
            Err(_) => format!("{host}:{}", port.value),
        };
        if let Some(found) = ip
            && let Some(text) = found.word.text().filter(|text| !is_unset(text))
        {
            let named = if text.parse::<std::net::IpAddr>().is_ok() {
                Some(text)
            } else {
                HostName::parse(&text).map(|name| name.as_str().to_owned())
            };
            let Some(named) = named else {
                return Err(self.lookup.refuse(&found, "it has to be an IP address, such as `127.0.0.1`"));
            };
            return Ok(vec![found.placed(endpoint(&named))]);
        }
        // Then the socket server listens on an address of the machine's alone, and on which is its own guess.
        let exposed = self.flag("expose websockets", Variable::always("DAEXPOSEWEBSOCKETS"), false);
        let addresses = self.machine.addresses.iter().filter(|_| exposed.value).map(ToString::to_string);
        let endpoints = addresses.chain(["127.0.0.1".to_owned()]).map(|host| endpoint(&host));
        Ok(endpoints.map(|value| Placed { value, position: port.position }).collect())
    }

    fn cross_site_domain(&mut self) -> Option<Placed<String>> {
        let found = self.lookup.find("cross site domain", None)?;
        if self.lookup.find("cross site domains", None).is_some() {
            return None;
        }
        let text = found.word.text().map(|text| text.trim().to_owned()).filter(|text| !is_unset(text))?;
        match SiteOrigin::parse(&text, Path::new("/")) {
            Ok(origin) => Some(found.placed(origin.0)),
            Err(problem) => {
                self.lookup.warn(&found, format!("{problem}; left out"));
                None
            }
        }
    }

    fn mail(&mut self, key: &'static str, variable: &'static str, without: &str) -> Option<Placed<String>> {
        let found = self.lookup.find(key, Variable::initially(variable))?;
        let text = found.word.text().filter(|text| !is_unset(text))?;
        match MailAddress::parse(&text, Path::new("/")) {
            // What docassemble takes for nobody's.
            Ok(_) if text == "webmaster@localhost" => None,
            Ok(_) => Some(found.placed(text)),
            Err(problem) => {
                self.lookup.warn(&found, format!("{problem}; {without}"));
                None
            }
        }
    }

    fn body_limit(&mut self) -> Placed<Option<u64>> {
        const DEFAULT: u64 = 16 << 20;
        let Some(found) = self.lookup.find("maximum content length", None) else {
            return Placed { value: Some(DEFAULT), position: Position::start(Origin::Docassemble) };
        };
        match &found.word {
            Word::Null => found.placed(None),
            Word::Number(number) => found.placed(u64::try_from(*number).ok().filter(|number| *number > 0)),
            _ => {
                self.lookup.warn(
                    &found,
                    "it has to be a whole number of bytes, or null; taken for 16777216, as docassemble does",
                );
                found.placed(Some(DEFAULT))
            }
        }
    }

    fn timeout(&mut self) -> Placed<u32> {
        const DEFAULT: u32 = 60;
        let default = Placed { value: DEFAULT, position: Position::start(Origin::Docassemble) };
        let Some(found) = self.lookup.find("web server timeout", Variable::always("DATIMEOUT")) else { return default };
        match found.word.number() {
            _ if matches!(found.word, Word::Null) => default,
            Some(seconds @ 1..=86_400) => found.placed(u32::try_from(seconds).unwrap_or(DEFAULT)),
            _ => {
                self.lookup.warn(&found, "it has to be a number of seconds, a day at most; taken for 60");
                found.placed(DEFAULT)
            }
        }
    }

    fn protocols(&mut self) -> Result<Placed<Vec<String>>, Told> {
        let found = self.lookup.find("nginx ssl protocols", Variable::always("DASSLPROTOCOLS"));
        let Some((found, text)) = found.and_then(|found| Some((found.clone(), found.word.text()?))) else {
            return Ok(Placed {
                value: vec!["TLSv1.2".to_owned(), "TLSv1.3".to_owned()],
                position: Position::start(Origin::Docassemble),
            });
        };
        let words = text.split([' ', '\t', ';', ',']).filter(|word| !word.is_empty());
        let (spoken, others): (Vec<_>, Vec<_>) =
            words.map(str::to_owned).partition(|word| word == "TLSv1.2" || word == "TLSv1.3");
        if spoken.is_empty() {
            return Err(self.lookup.refuse(&found, "none of these is spoken here; write `TLSv1.2 TLSv1.3`"));
        }
        if !others.is_empty() {
            self.lookup.warn(&found, format!("not spoken here, and left out: {}", others.join(" ")));
        }
        let mut spoken = spoken;
        spoken.sort();
        spoken.dedup();
        Ok(found.placed(spoken))
    }

    fn ciphers(&mut self) -> Result<Placed<Vec<Cipher>>, Told> {
        let found = self.lookup.find("nginx ssl ciphers", Variable::always("DASSLCIPHERS"));
        let Some((found, text)) = found.and_then(|found| Some((found.clone(), found.word.text()?))) else {
            return Ok(Placed { value: Vec::new(), position: Position::start(Origin::Docassemble) });
        };
        if text.trim_matches([' ', ';']).is_empty() {
            return Ok(found.placed(Vec::new()));
        }
        let (Some(ciphers), useless) = from_openssl(&text) else {
            let problem = "it leaves no cipher that is spoken here, where every one is forward secret and authenticated; \
                           write `HIGH`, or leave it out";
            return Err(self.lookup.refuse(&found, problem));
        };
        if !useless.is_empty() {
            self.lookup.warn(&found, format!("not spoken here, and left out: {}", useless.join(", ")));
        }
        Ok(found.placed(ciphers))
    }

    fn supervisor(&mut self) -> Option<Placed<Supervisor>> {
        let (username, password) =
            (self.lookup.variable("DASUPERVISORUSERNAME"), self.lookup.variable("DASUPERVISORPASSWORD"));
        let position = Position { origin: Origin::Environment, line: 1, column: 1 };
        let environment = username.zip(password).filter(|(username, _)| !is_unset(username));
        let environment =
            environment.map(|(username, password)| Placed { value: Supervisor { username, password }, position });
        if self.lookup.takes_precedence() && environment.is_some() {
            return environment;
        }
        let Some(node) = self.lookup.node("supervisor") else {
            return environment.filter(|_| !self.lookup.is_written());
        };
        let text = |key| node.get(key).and_then(|node| Word::of(node).text()).filter(|text| !text.is_empty());
        let (username, password) = text("username").zip(text("password"))?;
        Some(Placed { value: Supervisor { username, password }, position: node.position })
    }

    fn text(&mut self, key: &'static str, variable: Option<Variable>) -> Option<Placed<String>> {
        let found = self.lookup.find(key, variable)?;
        found.word.text().filter(|text| !is_unset(text)).map(|text| found.placed(text))
    }

    fn flag(&mut self, key: &'static str, variable: Option<Variable>, default: bool) -> Placed<bool> {
        match self.lookup.find(key, variable) {
            Some(found) => {
                let value = self.truth(&found);
                found.placed(value)
            }
            None => Placed { value: default, position: Position::start(Origin::Docassemble) },
        }
    }

    /// What docassemble takes it for, which for `True` in a variable depends on who reads it: here it is always true.
    fn truth(&mut self, found: &Found) -> bool {
        let text = match &found.word {
            Word::Text(text) => text.as_str(),
            word => return word.is_true(),
        };
        let (meant, right) = match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => (Some(true), "true"),
            "false" | "no" | "off" | "0" => (Some(false), "false"),
            _ => (None, "true` or `false"),
        };
        if found.position.origin == Origin::Environment {
            if text == right {
                return text == "true";
            }
            let value = match meant {
                Some(value) if text.eq_ignore_ascii_case(right) => value,
                // As a shell script of docassemble's, or its Python, takes any other word.
                _ => self.lookup.takes_precedence(),
            };
            self.lookup.warn(found, format!("`{text}` is taken for {value}; write `{right}`"));
            return value;
        }
        let value = !text.is_empty();
        if meant == Some(false) {
            self.lookup
                .warn(found, format!("in quotes `{text}` is text, which docassemble takes for true; write False"));
        }
        value
    }
}

/// An address of the internet, as far as that can be told from it.
fn is_public(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let shared = first == 100 && (64..128).contains(&second);
    !(address.is_private() || address.is_loopback() || address.is_link_local() || shared || first == 0 || first >= 224)
}

/// The words that docassemble and its scripts take for nothing.
fn is_unset(text: &str) -> bool {
    matches!(text, "" | "none" | "None" | "null" | "Null" | "undefined")
}
