//! Clients that speak TLS, HTTP/2 and websockets, and certificates that they believe.

use std::{
    fs,
    future::Future,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::CertificateDer;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{PATIENCE, program};

/// Runs `future` to its end, which is to come within the time a test has.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("done in time") })
}

/// Makes `<name>.crt` and `<name>.key` in `folder`, for `hosts`.
pub(crate) fn certificate(folder: &Path, name: &str, hosts: &[&str]) -> CertificateDer<'static> {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    fs::write(folder.join(format!("{name}.crt")), made.cert.pem()).unwrap();
    fs::write(folder.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// The `tls` key of a configuration, with the certificates of these names; see [`certificate`].
pub(crate) fn tls(names: &[&str]) -> String {
    let files: Vec<_> = names
        .iter()
        .map(|name| format!("{{ files: {{ certificate: '{{dir}}/{name}.crt', key: '{{dir}}/{name}.key' }} }}"))
        .collect();
    format!("tls: {{ storage: storage, certificates: [{}] }}\n", files.join(", "))
}

/// A client that believes `certificates` and offers `protocols` by ALPN.
pub(crate) fn client(certificates: &[&CertificateDer<'static>], protocols: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add((*certificate).clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

pub(crate) async fn tls_connect(
    address: SocketAddr,
    name: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    tls_over(stream, name, config).await
}

/// The same over a connection that is there.
pub(crate) async fn tls_over(
    stream: tokio::net::TcpStream,
    name: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(config.into()).connect(name, stream).await
}

/// One h2 connection.
pub(crate) struct H2 {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    /// Ends with the connection.
    pub(crate) connection: tokio::task::JoinHandle<hyper::Result<()>>,
    pub(crate) authority: String,
}

impl H2 {
    pub(crate) async fn connect(address: SocketAddr, name: &str, certificate: &CertificateDer<'static>) -> Self {
        Self::over(tls_connect(address, name, client(&[certificate], &["h2"])).await.unwrap(), name).await
    }

    #[allow(clippy::disallowed_methods, reason = "a client's task is none of the gateway's")]
    pub(crate) async fn over(stream: TlsStream<tokio::net::TcpStream>, name: &str) -> Self {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection), authority: name.to_owned() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://{}{path}", self.authority))
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// `GET path`: the head and the whole body.
    pub(crate) async fn get(&mut self, path: &str) -> Response<Bytes> {
        let request = self.request("GET", path).body(Full::default()).unwrap();
        whole(self.send(request).await.unwrap()).await
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

/// Runs curl; `None` where it is not installed.
pub(crate) fn curl(arguments: &[&str]) -> Option<String> {
    let output =
        run(Command::new(program("curl")?).args(["-sS", "--max-time", "10", "--noproxy", "*"]).args(arguments));
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(std::process::Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A connection to `address` from `own`, one of the addresses of this machine.
pub(crate) fn connect_from(own: &str, address: SocketAddr) -> TcpStream {
    let own: IpAddr = own.parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}
