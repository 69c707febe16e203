//! What the parts of a request cost: `cargo bench`, or one of them, `cargo bench -- routes`.
//!
//! Whole requests, next to other gateways, are measured by `make bench`; this says which part to look at.

#![allow(clippy::unwrap_used, reason = "what cannot be set up cannot be measured")]

use bytes::BytesMut;
use divan::{Bencher, black_box, counter::BytesCount};
use http::HeaderMap;
use vestibule::h1::{self, HeadLimits, RequestHead};

fn main() {
    divan::main();
}

/// What a browser sends, and what its front door at a load balancer adds.
const REQUEST: &[u8] = b"GET /app/interview?i=docassemble.base:data/questions/default.yml&json=1 HTTP/1.1\r\n\
    Host: app.example.org\r\n\
    Connection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Cookie: session=eyJfcGVybWFuZW50Ijp0cnVlfQ.Zx1c2Q.0123456789abcdefghij; secret=0123456789abcdef\r\n\
    Referer: https://app.example.org/app/\r\n\
    X-Forwarded-For: 192.0.2.17\r\n\
    X-Forwarded-Proto: https\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: uWSGI\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 200\r\n\
    Cache-Control: no-cache\r\n\
    Vary: Cookie\r\n\
    Connection: keep-alive\r\n\
    Set-Cookie: session=eyJfcGVybWFuZW50Ijp0cnVlfQ; HttpOnly; Path=/; SameSite=Lax\r\n\r\n";

const LIMITS: HeadLimits = HeadLimits { bytes: 32 << 10, fields: 100, target: 8 << 10 };

fn request() -> RequestHead {
    h1::decode_request(&mut BytesMut::from(REQUEST), LIMITS).unwrap().unwrap()
}

fn headers() -> HeaderMap {
    request().parts.headers
}

mod routes {
    use vestibule::{
        config::{HostName, PathPrefix},
        http::path::Path,
        route::RouteTable,
    };

    use super::{Bencher, black_box};

    /// The last of so many prefixes.
    #[divan::bench(args = [1, 100, 10_000])]
    fn by_prefix(bencher: Bencher<'_, '_>, count: usize) {
        let prefix = |number| PathPrefix::parse(&format!("/p{number}/")).unwrap();
        let table = RouteTable::new((0..count).map(|number| (None, prefix(number), number)));
        let path = format!("/p{}/interview/start", count - 1);

        bencher.bench(|| table.find(black_box("app.example.org"), &Path::read(black_box(&path)).unwrap()).is_some());
    }

    /// The last of so many hosts.
    #[divan::bench(args = [1, 100, 10_000])]
    fn by_host(bencher: Bencher<'_, '_>, count: usize) {
        let host = |number| HostName::parse(&format!("site-{number}.example.org"));
        let root = || PathPrefix::parse("/").unwrap();
        let table = RouteTable::new((0..count).map(|number| (host(number), root(), number)));
        let host = format!("site-{}.example.org", count - 1);

        bencher.bench(|| table.find(black_box(&host), &Path::read(black_box("/interview/start")).unwrap()).is_some());
    }

    /// With an escape in it, which has to be decoded.
    #[divan::bench]
    fn by_escaped_path(bencher: Bencher<'_, '_>) {
        let table = RouteTable::new([(None, PathPrefix::parse("/app/").unwrap(), ())]);

        bencher.bench(|| {
            table.find(black_box("app.example.org"), &Path::read(black_box("/%61pp/a%20b")).unwrap()).is_some()
        });
    }
}

mod header_rules {
    use std::net::SocketAddr;

    use vestibule::{
        config::TrustedProxies,
        http::{
            authority::Authority,
            forwarded::{Origin, Peer},
            headers as rules,
        },
    };

    use super::{Bencher, headers};

    #[divan::bench]
    fn hop_by_hop(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(headers).bench_local_refs(rules::strip_hop_by_hop);
    }

    #[divan::bench]
    fn sanitize(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(headers).bench_local_refs(rules::sanitize_request);
    }

    #[divan::bench]
    fn forwarded_of_a_client(bencher: Bencher<'_, '_>) {
        forwarded(bencher, &TrustedProxies::default());
    }

    #[divan::bench]
    fn forwarded_of_a_trusted_proxy(bencher: Bencher<'_, '_>) {
        forwarded(bencher, &TrustedProxies { networks: vec!["10.0.0.0/8".parse().unwrap()], unix: false });
    }

    /// Who the client is, and the five fields that say so.
    fn forwarded(bencher: Bencher<'_, '_>, trusted: &TrustedProxies) {
        let peer = Peer::Tcp(SocketAddr::from(([10, 1, 2, 3], 40_000)));
        let authority = Authority::parse("app.example.org").unwrap();

        bencher.with_inputs(headers).bench_local_refs(|headers| {
            Origin::of(&peer, true, 443, &authority, headers, trusted).apply(headers);
        });
    }
}

mod heads {
    use http::Method;
    use vestibule::h1::{
        decode_request, decode_response,
        encode::{self, Framing, Persistence},
    };

    use super::{Bencher, BytesCount, BytesMut, LIMITS, REQUEST, RESPONSE, request};

    #[divan::bench]
    fn decode_a_request(bencher: Bencher<'_, '_>) {
        bencher
            .counter(BytesCount::new(REQUEST.len()))
            .with_inputs(|| BytesMut::from(REQUEST))
            .bench_local_refs(|buffer| decode_request(buffer, LIMITS).unwrap());
    }

    #[divan::bench]
    fn decode_a_response(bencher: Bencher<'_, '_>) {
        bencher
            .counter(BytesCount::new(RESPONSE.len()))
            .with_inputs(|| BytesMut::from(RESPONSE))
            .bench_local_refs(|buffer| decode_response(buffer, LIMITS, &Method::GET).unwrap());
    }

    #[divan::bench]
    fn encode_a_request(bencher: Bencher<'_, '_>) {
        let (head, mut out) = (request().parts, BytesMut::with_capacity(4096));

        bencher.bench_local(|| {
            out.clear();
            encode::request_head(&mut out, &head.method, "/app/", &head.headers, Framing::Unsaid, None);
            out.len()
        });
    }

    #[divan::bench]
    fn encode_a_response(bencher: Bencher<'_, '_>) {
        let head = decode_response(&mut BytesMut::from(RESPONSE), LIMITS, &Method::GET).unwrap().unwrap().parts;
        let mut out = BytesMut::with_capacity(4096);

        bencher.bench_local(|| {
            out.clear();
            encode::response_head(&mut out, head.status, &head.headers, Framing::Length(200), Persistence::Stays);
            out.len()
        });
    }
}

mod uwsgi {
    use http::Version;
    use vestibule::proxy::uwsgi::{self, Environment};

    use super::{Bencher, BytesMut, request};

    #[divan::bench]
    fn packet(bencher: Bencher<'_, '_>) {
        let head = request().parts;
        let environment = Environment {
            method: &head.method,
            version: Version::HTTP_11,
            target: head.uri.path_and_query().unwrap().as_str(),
            query: head.uri.query().unwrap(),
            path_info: head.uri.path().as_bytes(),
            script_name: "",
            https: true,
            client: Some("192.0.2.17".parse().unwrap()),
            server_name: "app.example.org",
            server_port: 443,
            content_length: None,
            headers: &head.headers,
            user: None,
        };
        let mut out = BytesMut::with_capacity(4096);

        bencher.bench_local(|| {
            out.clear();
            uwsgi::encode(&mut out, &environment).unwrap();
            out.len()
        });
    }
}

mod configuration {
    use std::fmt::Write;

    use vestibule::config;

    use super::{Bencher, black_box};

    /// With so many routes, from the text to a plan.
    #[divan::bench(args = [1, 1000])]
    fn load(bencher: Bencher<'_, '_>, routes: usize) {
        let mut text = "listeners: [{ address: '127.0.0.1:8080' }]\n\
             upstreams: { app: { endpoints: ['127.0.0.1:8000'] } }\n\
             tls: { storage: storage }\nspool: { path: . }\nroutes:\n"
            .to_owned();
        for number in 0..routes {
            writeln!(text, "  - {{ prefix: /p{number}/, upstream: app }}").unwrap();
        }

        bencher.bench(|| config::parse("/etc/vestibule/vestibule.yml", black_box(&text), &|_| None).unwrap());
    }
}

mod access_log {
    use std::time::Duration;

    use vestibule::{
        config::LogFormat,
        telemetry::access_log::{Format, Record, Started},
    };

    use super::{Bencher, request};

    #[divan::bench(args = ["combined", "json"])]
    fn line(bencher: Bencher<'_, '_>, format: &str) {
        let format = if format == "json" { LogFormat::Json } else { LogFormat::Combined };
        let format = Format::compile(&format).unwrap();
        let mut head = request().parts;
        let mut record = Record::new(Started::now(), Some("192.0.2.17".parse().unwrap()));
        record.host = head.headers.remove("host");
        record.referer = head.headers.remove("referer");
        record.user_agent = head.headers.remove("user-agent");
        (record.method, record.target, record.version) = (Some(head.method), Some(head.uri), Some(head.version));
        (record.status, record.bytes_sent, record.total) = (200, 200, Some(Duration::from_micros(1234)));
        record.upstream = Some("app".into());
        let mut line = Vec::with_capacity(4096);

        bencher.bench_local(|| {
            line.clear();
            format.write(&record, &mut line);
            line.len()
        });
    }
}

mod certificates {
    use rcgen::{CertificateParams, KeyPair};
    use vestibule::tls::{Certificate, CertificateMaterial, CertificateStore, Checked, SecretBytes};

    use super::{Bencher, black_box};

    fn certificate(number: usize) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([format!("site-{number}.example.org")]).unwrap();
        Certificate::from_material(&CertificateMaterial {
            at: format!("tls.certificates[{number}]"),
            certificate: params.self_signed(&key).unwrap().pem().into_bytes(),
            key: SecretBytes::new(key.serialize_pem().into_bytes()),
            chain: None,
            certificate_file: "site.crt".into(),
            key_file: "site.key".into(),
            chain_file: None,
            checked: Checked::default(),
        })
        .unwrap()
    }

    /// The last of so many, by the name that a client asks for.
    #[divan::bench(args = [1, 100, 5000])]
    fn by_name(bencher: Bencher<'_, '_>, count: usize) {
        let store = CertificateStore::new((0..count).map(certificate).collect());
        let name = format!("site-{}.example.org", count - 1);

        bencher.bench(|| store.certificate_for(black_box(&name)).is_some());
    }
}
