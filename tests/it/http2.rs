//! HTTP/2, with hyper's client and curl.

use std::{
    io::{Read, Write},
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full, StreamBody};
use rustls_pki_types::CertificateDer;

use crate::support::{
    Backend, PATIENCE, TestGateway,
    clients::{self, H2, block_on},
    proxying, read_request, wait_for,
};

/// A gateway on TLS as `localhost`, with more of a configuration.
pub(crate) fn before(backend: &Backend, route: &str, more: &str) -> (TestGateway, CertificateDer<'static>) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = clients::certificate(folder.path(), "site", &["localhost"]);
    let configuration = proxying(backend.address, "", route).replace("0' }", "0', tls: true }");
    (TestGateway::start_in(folder, &(configuration + &clients::tls(&["site"]) + more)), certificate)
}

#[test]
fn streams_of_one_connection_are_served_side_by_side() {
    const STREAMS: usize = 50;
    // Answers only when all are there.
    let all = Arc::new(Barrier::new(STREAMS));
    let backend = Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            all.wait();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let (gateway, certificate) = before(&backend, "", "");

    let statuses = block_on(async {
        let h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let streams = (0..STREAMS).map(|number| {
            let request = h2.request("GET", &format!("/{number}")).body(Full::default()).unwrap();
            let mut sender = h2.sender.clone();
            async move { clients::whole(sender.send_request(request).await.unwrap()).await.status().as_u16() }
        });
        join_all(streams).await
    });

    assert_eq!(statuses, [200; STREAMS]);
}

#[test]
fn a_large_upload_and_a_large_download_are_whole() {
    let backend = Backend::echoing();
    let (gateway, certificate) = before(&backend, "body_limit: 32MiB", "");
    let upload: Bytes = (0..12_000_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>().into();

    let echoed = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let request = h2.request("POST", "/").body(Full::new(upload.clone())).unwrap();
        clients::whole(h2.send(request).await.unwrap()).await.into_body()
    });

    // Head and body of the request, as the backend saw it.
    assert!(echoed.ends_with(&upload), "{} bytes came back", echoed.len());
}

#[test]
fn a_stream_that_is_reset_drops_the_endpoint_and_is_logged_as_499() {
    for buffered in [true, false] {
        let (ends, ended) = mpsc::channel();
        let backend = Backend::start(move |mut stream| {
            if read_request(&mut stream).is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome").unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                ends.send(stream.read(&mut [0]).unwrap_or(0)).unwrap();
            }
        });
        let (gateway, certificate) = before(&backend, &format!("buffer: {{ response: {buffered} }}"), "");

        block_on(async {
            let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
            let request = h2.request("GET", "/").body(Full::default()).unwrap();
            let mut response = h2.send(request).await.unwrap();
            response.body_mut().frame().await.unwrap().unwrap();
            drop(response);
            // The connection stays open, so that nothing but the reset tells of it.
            let end = tokio::task::spawn_blocking(move || ended.recv_timeout(PATIENCE)).await.unwrap();
            assert_eq!(end, Ok(0), "the endpoint was not dropped; buffered: {buffered}");
        });
        let log = gateway.log(1);
        assert!(log[0].contains("\"GET / HTTP/2.0\" 499 "), "{log:?}");
    }
}

#[test]
fn a_head_has_a_length_and_no_body() {
    let backend = Backend::start(|mut stream| {
        while let Some(request) = read_request(&mut stream) {
            assert!(request.starts_with(b"HEAD / "));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").unwrap();
        }
    });
    let (gateway, certificate) = before(&backend, "", "");

    let answer = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let request = h2.request("HEAD", "/").body(Full::default()).unwrap();
        clients::whole(h2.send(request).await.unwrap()).await
    });

    assert_eq!((answer.status().as_u16(), answer.body().len()), (200, 0));
    assert_eq!(answer.headers()["content-length"], "1234");
    assert!(gateway.log(1)[0].contains("\"HEAD / HTTP/2.0\" 200 "));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a client's task is none of the gateway's")]
fn trailers_of_a_request_are_ignored() {
    let backend = Backend::echoing();
    let (gateway, certificate) = before(&backend, "", "");

    let seen = block_on(async {
        let stream = clients::tls_connect(gateway.address(0), "localhost", clients::client(&[&certificate], &["h2"]))
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        let trailers = http::HeaderMap::from_iter([(http::header::HOST, "evil".parse().unwrap())]);
        let frames = [
            Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(b"body"))),
            Ok(http_body::Frame::trailers(trailers)),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let request = http::Request::post("https://localhost/").body(body).unwrap();
        clients::whole(sender.send_request(request).await.unwrap()).await.into_body()
    });

    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.ends_with("\r\n\r\nbody"), "{seen}");
    assert!(seen.to_ascii_lowercase().contains("content-length: 4\r\n") && !seen.contains("evil"), "{seen}");
}

#[test]
fn a_host_of_another_certificate_is_misdirected_on_this_connection() {
    let folder = tempfile::tempdir().unwrap();
    let first = clients::certificate(folder.path(), "first", &["first.example", "also.example"]);
    clients::certificate(folder.path(), "second", &["second.example"]);
    let backend = Backend::echoing();
    let configuration = proxying(backend.address, "", "").replace("0' }", "0', tls: true }")
        + &clients::tls(&["first", "second"])
        + "aliases: [second.example, also.example]\nhost: first.example\n";
    let gateway = TestGateway::start_in(folder, &configuration);

    let statuses = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "first.example", &first).await;
        let mut statuses = Vec::new();
        for host in ["first.example", "also.example", "second.example"] {
            host.clone_into(&mut h2.authority);
            statuses.push(h2.get("/").await.status().as_u16());
        }
        statuses
    });

    assert_eq!(statuses, [200, 200, 421]);
}

#[test]
fn too_large_a_head_is_a_431_and_the_connection_stays() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (gateway, certificate) = before(&backend, "", "limits: { header_bytes: 8KiB }\n");

    let (refused, served) = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let request = h2.request("GET", "/").header("x-long", "a".repeat(12 * 1024)).body(Full::default()).unwrap();
        let refused = h2.send(request).await.unwrap().status().as_u16();
        (refused, h2.get("/").await.status().as_u16())
    });

    assert_eq!((refused, served), (431, 200));
}

#[test]
fn a_stop_finishes_the_stream_in_flight_and_begins_no_other() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let (arrive, arrivals) = mpsc::channel();
    let backend = Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            arrive.send(()).unwrap();
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").unwrap();
        }
    });
    let (gateway, certificate) = before(&backend, "", "drain: 5s\n");
    let address = gateway.address(0);

    block_on(async {
        let mut h2 = H2::connect(address, "localhost", &certificate).await;
        let request = h2.request("GET", "/").body(Full::default()).unwrap();
        let response = h2.sender.send_request(request);
        let stopping = thread::spawn(move || {
            arrivals.recv_timeout(PATIENCE).unwrap();
            let stopping = thread::spawn(move || gateway.stop(Duration::from_secs(5)));
            wait_for("the gateway to drain", || std::net::TcpStream::connect(address).is_err());
            go.send(()).unwrap();
            stopping.join().unwrap()
        });

        let answer = clients::whole(response.await.unwrap()).await;

        assert_eq!(answer.body(), "whole");
        let late = h2.request("GET", "/late").body(Full::default()).unwrap();
        assert!(h2.send(late).await.is_err(), "a stream after the GOAWAY");
        h2.connection.await.unwrap().unwrap();
        assert!(stopping.join().unwrap(), "the stop was not clean");
    });
}

#[test]
fn a_retirement_ends_an_idle_connection_at_once_and_one_with_a_stream_after_it() {
    let (go, gone) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let (arrive, arrivals) = mpsc::channel();
    let backend = Backend::start(move |mut stream| {
        if read_request(&mut stream).is_some() {
            arrive.send(()).unwrap();
            gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").unwrap();
        }
    });
    let (gateway, certificate) = before(&backend, "", "");
    let address = gateway.address(0);

    block_on(async {
        let idle = H2::connect(address, "localhost", &certificate).await;
        let mut busy = H2::connect(address, "localhost", &certificate).await;
        let request = busy.request("GET", "/").body(Full::default()).unwrap();
        let response = busy.sender.send_request(request);
        let retired = async {
            tokio::task::spawn_blocking(move || arrivals.recv_timeout(PATIENCE)).await.unwrap().unwrap();
            gateway.gateway().retire();
            idle.connection.await.unwrap().unwrap();
            go.send(()).unwrap();
        };

        let (answer, ()) = tokio::join!(response, retired);

        assert_eq!(clients::whole(answer.unwrap()).await.body(), "whole");
        busy.connection.await.unwrap().unwrap();
    });
}

#[test]
fn curl_speaks_h2_with_us() {
    let backend = Backend::echoing();
    let (gateway, _) = before(&backend, "", "");
    let certificate = gateway.folder.path().join("site.crt");
    let port = gateway.address(0).port();

    let Some(answer) = clients::curl(&[
        "--http2",
        "--cacert",
        certificate.to_str().unwrap(),
        "--resolve",
        &format!("localhost:{port}:127.0.0.1"),
        "--data",
        "from curl",
        "-w",
        "\n%{http_version} %{http_code}",
        &format!("https://localhost:{port}/x"),
    ]) else {
        return;
    };

    assert!(answer.starts_with("POST /x HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains(&format!("host: localhost:{port}\r\n")), "{answer}");
    assert!(answer.ends_with("from curl\n2 200"), "{answer}");
}

#[test]
fn no_header_of_http_1_connections_reaches_an_h2_client() {
    let backend = Backend::replying(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nServer: secret/1.0\r\n\r\nok",
    );
    let (gateway, certificate) = before(&backend, "", "");

    let answer = block_on(async { H2::connect(gateway.address(0), "localhost", &certificate).await.get("/").await });

    for name in ["connection", "keep-alive", "x-hop", "transfer-encoding", "server"] {
        assert!(!answer.headers().contains_key(name), "{name}: {:?}", answer.headers());
    }
}

#[test]
fn a_head_request_is_answered_without_a_body_also_by_a_page_of_our_own() {
    let backend = Backend::echoing();
    let (gateway, certificate) = before(&backend, "body_limit: 1KiB", "limits: { uri_bytes: 256B }\n");

    let answer = block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let too_long = format!("/{}", "a".repeat(300));
        let request = h2.request("HEAD", &too_long).body(Full::default()).unwrap();
        clients::whole(h2.send(request).await.expect("an answer, and not a stream that is reset")).await
    });

    assert_eq!((answer.status().as_u16(), answer.body().len()), (414, 0));
    assert!(answer.headers()["content-length"] != "0", "what a GET would have been told");
}

#[test]
fn a_stream_whose_client_takes_nothing_is_ended_and_the_others_go_on() {
    let backend = Backend::start(|mut stream| {
        while let Some(request) = read_request(&mut stream) {
            let length = if request.starts_with(b"GET /large") { 20_000_000 } else { 2 };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; length])).is_err() {
                return;
            }
        }
    });
    let (gateway, certificate) = before(&backend, "", "limits: { progress_timeout: 300ms }\n");

    block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let request = h2.request("GET", "/large").body(Full::default()).unwrap();
        let left_standing = h2.send(request).await.unwrap();
        let begun = std::time::Instant::now();
        while !gateway.log(0).iter().any(|line| line.contains("/large HTTP/2.0\" 499")) {
            assert!(begun.elapsed() < PATIENCE, "the stream is still there");
            assert_eq!(h2.get("/small").await.status().as_u16(), 200);
        }
        assert!(left_standing.into_body().collect().await.is_err(), "a part was taken for the whole");
    });
}

#[test]
fn a_stream_whose_client_trickles_is_ended() {
    let backend = Backend::replying(
        [b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n".to_vec(), vec![b'x'; 20_000_000]].concat(),
    );
    let (gateway, certificate) = before(
        &backend,
        "",
        "limits: { progress_timeout: 2s, minimum_rate: 4MiB }\naccess_log: { path: access.log, format: json }\n",
    );

    block_on(async {
        let mut h2 = H2::connect(gateway.address(0), "localhost", &certificate).await;
        let request = h2.request("GET", "/large").body(Full::default()).unwrap();
        let mut body = h2.send(request).await.unwrap().into_body();
        let ended = loop {
            match body.frame().await {
                Some(Ok(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                ended => break ended,
            }
        };
        assert!(matches!(ended, Some(Err(_))), "a part was taken for the whole");
    });
    assert!(gateway.log(1)[0].contains("client too slow"), "{:?}", gateway.log(1));
}
