//! supervisord, asked over its XML-RPC interface: what its programs are doing, and to start one.
//!
//! One exchange a connection, over TCP or a unix socket, with HTTP Basic authentication where supervisord wants it
//! (`[inet_http_server]`, `username` and `password`). An answer has [`MOST`] bytes and [`LONGEST`] at most.

use std::{
    fmt::Write as _,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramState {
    pub name: String,
    /// `RUNNING`, `STOPPED`, `EXITED`, `FATAL`, …
    pub state: String,
}

impl ProgramState {
    /// It is there, or on its way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "STARTING" | "RUNNING" | "STOPPING" | "BACKOFF")
    }
}

/// supervisord could not be asked, or refused.
#[derive(Debug, Error)]
pub enum SupervisordError {
    #[error("supervisord at {0} cannot be connected to")]
    Connect(EndpointAddress, #[source] io::Error),
    #[error("supervisord at {0} wants a username and a password, or other ones")]
    Unauthorized(EndpointAddress),
    #[error("supervisord at {0} did not answer as it should: {1}")]
    Answer(EndpointAddress, String),
    /// `code` is one of supervisord's, such as 10 (`BAD_NAME`) or 60 (`ALREADY_STARTED`).
    #[error("supervisord refuses: {text} ({code})")]
    Fault { code: i64, text: String },
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
    pub async fn state(&self, program: &str) -> Result<ProgramState, SupervisordError> {
        let answer = self.call("supervisor.getProcessInfo", &[Value::Text(program)]).await?;
        let state = member(&answer, "statename");
        let unclear = || SupervisordError::Answer(self.0.address.clone(), "it names no state".to_owned());
        Ok(ProgramState { name: program.to_owned(), state: state.ok_or_else(unclear)? })
    }

    /// Whether it answers at all without being told a username.
    pub async fn is_open(&self) -> bool {
        let open = SupervisorPlan { username: None, password: None, ..self.0.clone() };
        Supervisord(&open).call("supervisor.getState", &[]).await.is_ok()
    }

    /// Calls `method`; answers the XML-RPC document, which is no fault.
    async fn call(&self, method: &str, values: &[Value<'_>]) -> Result<String, SupervisordError> {
        let address = &self.0.address;
        let answer = |why: String| SupervisordError::Answer(address.clone(), why);
        let asked = timeout(LONGEST, self.exchange(call(method, values)));
        let (status, body) = asked.await.map_err(|_| answer(format!("nothing within {LONGEST:?}")))??;
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
}

/// An XML-RPC call.
fn call(method: &str, values: &[Value<'_>]) -> String {
    let mut xml = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>");
    for value in values {
        // A string takes every write.
        match value {
            Value::Text(text) => {
                let text = text.replace('&', "&amp;").replace('<', "&lt;");
                write!(xml, "<param><value><string>{text}</string></value></param>").ok();
            }
            Value::Truth(truth) => {
                write!(xml, "<param><value><boolean>{}</boolean></value></param>", u8::from(*truth)).ok();
            }
        }
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
    let code = member(text, "faultCode").and_then(|code| code.parse().ok());
    let said = member(text, "faultString").unwrap_or_default();
    code.map(|code| Some((code, said))).ok_or_else(|| "this is no answer of XML-RPC".to_owned())
}

/// The value of a member of the struct that an answer is.
fn member(text: &str, name: &str) -> Option<String> {
    let document = roxmltree::Document::parse(text).ok()?;
    let member = document
        .descendants()
        .filter(|node| node.has_tag_name("member"))
        .find(|node| node.children().any(|child| child.has_tag_name("name") && child.text() == Some(name)))?;
    let value = member.children().find(|child| child.has_tag_name("value"))?;
    let text: String = value.descendants().filter(roxmltree::Node::is_text).filter_map(|node| node.text()).collect();
    Some(text.trim().replace(char::is_control, " "))
}

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
        assert_eq!(member(result, "statename").as_deref(), Some("RUNNING"));
        assert_eq!(member(result, "name"), None);
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
}
