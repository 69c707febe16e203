//! supervisord, asked over its XML-RPC interface: what its programs are doing, to start one and to restart one.
//!
//! One exchange a connection, over TCP or a unix socket, with HTTP Basic authentication where supervisord wants it
//! (`[inet_http_server]`, `username` and `password`). An answer has [`MOST`] bytes and [`LONGEST`] at most, a
//! restart [`RESTARTED_WITHIN`].

use std::{
    fmt::{self, Write as _},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::config::{EndpointAddress, SupervisorPlan};

/// A supervisord that may be asked.
#[derive(Clone, Copy, Debug)]
pub struct Supervisord<'a>(pub &'a SupervisorPlan);

/// What a program of supervisord is doing (its documentation, "Process States").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramState {
    Stopped,
    Starting,
    Running,
    /// It has ended too soon, and is started again in a moment.
    Backoff,
    Stopping,
    /// It has ended by itself.
    Exited,
    /// It could not be started, and is not tried again.
    Fatal,
    /// None of supervisord's words for it.
    Unknown,
}

impl ProgramState {
    fn read(name: &str) -> Self {
        let is = |state: &&Self| state.name() == name;
        let all =
            [Self::Stopped, Self::Starting, Self::Running, Self::Backoff, Self::Stopping, Self::Exited, Self::Fatal];
        all.iter().find(is).copied().unwrap_or(Self::Unknown)
    }

    /// supervisord's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// It is there, or on its way.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping | Self::Backoff)
    }
}

/// A program, as supervisord sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// `name`, or `group:name` where these are two.
    pub name: String,
    pub state: ProgramState,
    /// When it was last started, in seconds on the clock of that machine: another number is another start, 0 is never.
    pub started: i64,
    /// For how long it has been so; `None` where that is not said.
    pub since: Option<Duration>,
    /// 0 while there is no process.
    pub pid: u32,
    /// What supervisord says of a start that failed, or how the last process ended.
    pub why: Option<String>,
}

/// supervisord could not be asked, or refused.
#[derive(Debug, Error)]
pub enum SupervisordError {
    #[error("supervisord at {0} cannot be connected to{door}", door = door(.1))]
    Connect(EndpointAddress, #[source] io::Error),
    #[error("supervisord at {0} wants a username and a password, or other ones")]
    Unauthorized(EndpointAddress),
    #[error("supervisord at {0} did not answer as it should: {1}")]
    Answer(EndpointAddress, String),
    /// `code` is one of supervisord's, such as 10 (`BAD_NAME`) or 60 (`ALREADY_STARTED`).
    #[error("supervisord refuses: {text} ({code})")]
    Fault { code: i64, text: String },
}

/// What to do where it is there, and its socket is not for us.
fn door(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; `chown` or `chmod` in its [unix_http_server] has to let the user of the workers in"
    } else {
        ""
    }
}

impl Supervisord<'_> {
    /// Starts `program`; answers once supervisord has begun to.
    ///
    /// # Errors
    ///
    /// Also where it runs already: fault 60.
    pub async fn start(&self, program: &str) -> Result<(), SupervisordError> {
        self.call("supervisor.startProcess", &[Value::Text(program), Value::Truth(false)]).await.map(drop)
    }

    /// What `program` is doing.
    pub async fn program(&self, program: &str) -> Result<ProgramInfo, SupervisordError> {
        let answer = self.call("supervisor.getProcessInfo", &[Value::Text(program)]).await?;
        let unclear = || SupervisordError::Answer(self.0.address.clone(), "it names no program".to_owned());
        programs(&answer).into_iter().next().ok_or_else(unclear)
    }

    /// What all of its programs are doing.
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, SupervisordError> {
        Ok(programs(&self.call("supervisor.getAllProcessInfo", &[]).await?))
    }

    /// Stops `program`, by force if it takes too long (its `stopwaitsecs`), and starts it. One call, so that nothing of ours
    /// is between the two.
    ///
    /// # Errors
    ///
    /// Where it was stopped already or is started by somebody else meanwhile there is none.
    pub async fn restart(&self, program: &str) -> Result<(), SupervisordError> {
        let step = |method, wait| {
            let values = Value::List(vec![Value::Text(program), Value::Truth(wait)]);
            Value::Members(vec![("methodName", Value::Text(method)), ("params", values)])
        };
        let steps = Value::List(vec![step("supervisor.stopProcess", true), step("supervisor.startProcess", false)]);
        let answer = self.call_within(RESTARTED_WITHIN, "system.multicall", &[steps]).await?;
        let harmless = |(code, _): &(i64, String)| matches!(*code, NOT_RUNNING | ALREADY_STARTED);
        match faults(&answer).into_iter().find(|fault| !harmless(fault)) {
            Some((code, text)) => Err(SupervisordError::Fault { code, text }),
            None => Ok(()),
        }
    }

    /// Whether it answers at all without being told a username.
    pub async fn is_open(&self) -> bool {
        let open = SupervisorPlan { username: None, password: None, ..self.0.clone() };
        Supervisord(&open).call("supervisor.getState", &[]).await.is_ok()
    }

    /// Calls `method`; answers the XML-RPC document, which is no fault.
    async fn call(&self, method: &str, values: &[Value<'_>]) -> Result<String, SupervisordError> {
        self.call_within(LONGEST, method, values).await
    }

    async fn call_within(
        &self,
        longest: Duration,
        method: &str,
        values: &[Value<'_>],
    ) -> Result<String, SupervisordError> {
        let address = &self.0.address;
        let answer = |why: String| SupervisordError::Answer(address.clone(), why);
        let asked = timeout(longest, self.exchange(call(method, values)));
        let (status, body) = asked.await.map_err(|_| answer(format!("nothing within {longest:?}")))??;
        if status == StatusCode::UNAUTHORIZED {
            return Err(SupervisordError::Unauthorized(address.clone()));
        }
        if status != StatusCode::OK {
            return Err(answer(status.to_string()));
        }
        let text = String::from_utf8(body.into()).map_err(|error| answer(error.to_string()))?;
        match fault(&text).map_err(answer)? {
            None => Ok(text),
            Some((code, text)) => Err(SupervisordError::Fault { code, text }),
        }
    }

    async fn exchange(&self, body: String) -> Result<(StatusCode, Bytes), SupervisordError> {
        let SupervisorPlan { address, username, password, .. } = self.0;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            SupervisordError::Answer(address.clone(), error.to_string())
        };
        let stream = connect(address).await.map_err(|error| SupervisordError::Connect(address.clone(), error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.into()))?;
        let host = match address {
            EndpointAddress::Tcp { .. } => address.to_string(),
            EndpointAddress::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::post("/RPC2").header(header::HOST, host).header(header::CONTENT_TYPE, "text/xml");
        if let (Some(username), Some(password)) = (username, password) {
            let mut value = basic(username, password.expose()).map_err(|error| failed(error.into()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| failed(error.into()))?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST).collect().await.map_err(failed)?;
            Ok((status, body.to_bytes()))
        };
        // The connection moves only while it is polled.
        tokio::pin!(asked);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            answer = &mut asked => answer,
            ended = &mut connection => {
                ended.map_err(|error| failed(error.into()))?;
                asked.await
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(address: &EndpointAddress) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        EndpointAddress::Tcp { host, port } => {
            if host.eq_ignore_ascii_case("localhost") {
                // As for any endpoint: no resolver is asked.
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                Box::new(TcpStream::connect(&loopback.map(|address| SocketAddr::new(address, *port))[..]).await?)
            } else {
                Box::new(TcpStream::connect((host.trim_matches(['[', ']']), *port)).await?)
            }
        }
        EndpointAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// RFC 7617.
fn basic(username: &str, password: &str) -> Result<HeaderValue, header::InvalidHeaderValue> {
    HeaderValue::from_str(&format!("Basic {}", BASE64.encode(format!("{username}:{password}").as_bytes())))
}

enum Value<'a> {
    Text(&'a str),
    Truth(bool),
    List(Vec<Self>),
    Members(Vec<(&'static str, Self)>),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<value>")?;
        match self {
            Self::Text(text) => {
                write!(f, "<string>{}</string>", text.replace('&', "&amp;").replace('<', "&lt;"))?;
            }
            Self::Truth(truth) => write!(f, "<boolean>{}</boolean>", u8::from(*truth))?,
            Self::List(values) => {
                f.write_str("<array><data>")?;
                values.iter().try_for_each(|value| value.fmt(f))?;
                f.write_str("</data></array>")?;
            }
            Self::Members(members) => {
                f.write_str("<struct>")?;
                for (name, value) in members {
                    write!(f, "<member><name>{name}</name>{value}</member>")?;
                }
                f.write_str("</struct>")?;
            }
        }
        f.write_str("</value>")
    }
}

/// An XML-RPC call.
fn call(method: &str, values: &[Value<'_>]) -> String {
    let mut xml = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>");
    for value in values {
        // A string takes every write.
        write!(xml, "<param>{value}</param>").ok();
    }
    xml + "</params></methodCall>"
}

/// The fault that an answer is; `None` for a result.
///
/// # Errors
///
/// It is neither.
fn fault(text: &str) -> Result<Option<(i64, String)>, String> {
    let document = roxmltree::Document::parse(text).map_err(|error| error.to_string())?;
    let root = document.root_element();
    if !root.has_tag_name("methodResponse") {
        return Err("this is no answer of XML-RPC".to_owned());
    }
    if root.children().any(|child| child.has_tag_name("params")) {
        return Ok(None);
    }
    faults(text).into_iter().next().map(Some).ok_or_else(|| "this is no answer of XML-RPC".to_owned())
}

/// Every fault in an answer, which may be to several calls.
fn faults(text: &str) -> Vec<(i64, String)> {
    let fault = |members: Members<'_, '_>| {
        let code = members.text("faultCode")?.parse().ok()?;
        Some((code, members.text("faultString").unwrap_or_default()))
    };
    structs(text, fault)
}

/// The programs that an answer describes.
fn programs(text: &str) -> Vec<ProgramInfo> {
    let program = |members: Members<'_, '_>| {
        let (name, group) = (members.text("name")?, members.text("group")?);
        let number = |name| members.text(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let state = ProgramState::read(&members.text("statename")?);
        let (now, started, stopped) = (number("now"), number("start"), number("stop"));
        let begun = match state {
            ProgramState::Starting | ProgramState::Running => started,
            // Its `stop` is the one before.
            ProgramState::Stopping | ProgramState::Unknown => 0,
            _ => stopped,
        };
        let since = u64::try_from(now.saturating_sub(begun)).ok().filter(|_| begun > 0).map(Duration::from_secs);
        let said = members.text("spawnerr").filter(|said| !said.is_empty());
        let ended = || (stopped > 0 && !state.is_running()).then(|| format!("exit status {}", number("exitstatus")));
        Some(ProgramInfo {
            name: if name == group { name } else { format!("{group}:{name}") },
            state,
            started,
            since,
            pid: u32::try_from(number("pid")).unwrap_or(0),
            why: said.or_else(ended),
        })
    };
    structs(text, program)
}

/// What `read` makes of each struct in an answer, in order.
fn structs<T>(text: &str, read: impl Fn(Members<'_, '_>) -> Option<T>) -> Vec<T> {
    let Ok(document) = roxmltree::Document::parse(text) else { return Vec::new() };
    let structs = document.descendants().filter(|node| node.has_tag_name("struct"));
    structs.filter_map(|node| read(Members(node))).collect()
}

/// The members of a struct.
struct Members<'d, 'i>(roxmltree::Node<'d, 'i>);

impl Members<'_, '_> {
    fn text(&self, name: &str) -> Option<String> {
        let member = self
            .0
            .children()
            .filter(|node| node.has_tag_name("member"))
            .find(|node| node.children().any(|child| child.has_tag_name("name") && child.text() == Some(name)))?;
        let value = member.children().find(|child| child.has_tag_name("value"))?;
        let text: String =
            value.descendants().filter(roxmltree::Node::is_text).filter_map(|node| node.text()).collect();
        Some(text.trim().replace(char::is_control, " ").chars().take(LONGEST_TEXT).collect())
    }
}

/// supervisord's fault for a program that runs.
pub const ALREADY_STARTED: i64 = 60;
/// The one for a program that does not.
const NOT_RUNNING: i64 = 70;
/// Longer than most `stopwaitsecs`.
const RESTARTED_WITHIN: Duration = Duration::from_secs(180);
/// What is kept of a text, in characters.
const LONGEST_TEXT: usize = 500;
const LONGEST: Duration = Duration::from_secs(5);
const MOST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_what_xml_rpc_says_and_text_stays_text() {
        assert_eq!(
            call("supervisor.startProcess", &[Value::Text("a<b&c"), Value::Truth(false)]),
            "<?xml version=\"1.0\"?><methodCall><methodName>supervisor.startProcess</methodName><params>\
             <param><value><string>a&lt;b&amp;c</string></value></param>\
             <param><value><boolean>0</boolean></value></param></params></methodCall>"
        );
    }

    #[test]
    fn answers_are_results_faults_or_nothing_at_all() {
        let result = "<?xml version='1.0'?><methodResponse><params><param><value><struct><member><name>statename</name>\
                      <value><string>RUNNING</string></value></member></struct></value></param></params></methodResponse>";
        assert_eq!(fault(result), Ok(None));
        assert_eq!(structs(result, |members| members.text("statename")), ["RUNNING"]);
        assert_eq!(programs(result), [], "it has no name");
        let refused = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>10</int></value>\
                       </member><member><name>faultString</name><value><string>BAD_NAME: x</string></value></member>\
                       </struct></value></fault></methodResponse>";
        assert_eq!(fault(refused), Ok(Some((10, "BAD_NAME: x".to_owned()))));
        for nothing in
            ["", "<html/>", "<methodResponse/>", "<methodResponse><fault/></methodResponse>", "<!DOCTYPE x []><x/>"]
        {
            assert!(fault(nothing).is_err(), "{nothing}");
        }
    }
    fn described(members: &[(&'static str, &str)]) -> ProgramInfo {
        let members = members.iter().map(|(name, text)| (*name, Value::Text(text))).collect();
        let text =
            format!("<methodResponse><params><param>{}</param></params></methodResponse>", Value::Members(members));
        programs(&text).pop().unwrap()
    }

    #[test]
    fn a_program_is_what_supervisord_says_of_it() {
        let running = described(&[
            ("name", "uwsgi"),
            ("group", "uwsgi"),
            ("statename", "RUNNING"),
            ("now", "1000"),
            ("start", "990"),
            ("stop", "980"),
            ("spawnerr", ""),
            ("exitstatus", "0"),
            ("pid", "17"),
        ]);
        let expected = ProgramInfo {
            name: "uwsgi".to_owned(),
            state: ProgramState::Running,
            started: 990,
            since: Some(Duration::from_secs(10)),
            pid: 17,
            why: None,
        };
        assert_eq!(running, expected);
        let failed = described(&[
            ("name", "a"),
            ("group", "web"),
            ("statename", "FATAL"),
            ("now", "1000"),
            ("start", "980"),
            ("stop", "981"),
            ("spawnerr", "Exited too quickly"),
        ]);
        assert_eq!((failed.name.as_str(), failed.since), ("web:a", Some(Duration::from_secs(19))));
        assert_eq!(failed.why.as_deref(), Some("Exited too quickly"));
        let never = described(&[("name", "a"), ("group", "a"), ("statename", "STOPPED"), ("now", "9"), ("stop", "0")]);
        assert_eq!((never.since, never.why), (None, None));
        assert_eq!(described(&[("name", "a"), ("group", "a"), ("statename", "ODD")]).state, ProgramState::Unknown);
    }

    #[test]
    fn of_several_calls_each_fault_is_found() {
        let steps = Value::List(vec![
            Value::Members(vec![("faultCode", Value::Text("70")), ("faultString", Value::Text("NOT_RUNNING: a"))]),
            Value::Truth(true),
            Value::Members(vec![("faultCode", Value::Text("10")), ("faultString", Value::Text("BAD_NAME: a"))]),
        ]);
        let text = format!("<methodResponse><params><param>{steps}</param></params></methodResponse>");
        assert_eq!(fault(&text), Ok(None));
        assert_eq!(faults(&text), [(70, "NOT_RUNNING: a".to_owned()), (10, "BAD_NAME: a".to_owned())]);
    }
}
