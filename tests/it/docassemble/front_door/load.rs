//! F51 and F61 to F65: bodies, places in the application, and what is compressed.

use std::{fs, io::Write, net::TcpStream, path::Path};

use super::super::{
    super::support::{body, connect, header, network::in_network, raw, read_head, read_response, status, wait_for},
    installed::{HOST, Installed},
};

const EIGHTY: ([u8; 4], u16) = ([127, 0, 0, 1], 80);

fn on_site(config: &'static str, overlay: &'static str, row: impl FnOnce(Installed) + Send + 'static) {
    in_network(move || {
        let prepare = |root: &Path| fs::write(root.join("overlay.yml"), overlay).unwrap();
        if let Some(site) = Installed::start_with(config, &[], prepare) {
            row(site);
        }
    });
}

fn begin(request: &str) -> TcpStream {
    let mut stream = connect(EIGHTY.into());
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn inside(site: &Installed) -> u64 {
    site.served.status()["upstreams"][0]["in_flight"].as_u64().unwrap()
}

#[test]
fn f51_a_file_of_the_system_is_sent_by_x_sendfile() {
    on_site("web server: apache\n", "", |site| {
        let answer = site.get(80, "/file?X-Sendfile=/usr/lib/os-release&Content-Type=text/plain", HOST);
        assert_eq!((status(&answer), body(&answer)), (200, fs::read_to_string("/usr/lib/os-release").unwrap()));
        assert_eq!(header(&answer, "x-sendfile"), None);
    });
}

#[test]
fn f61_nothing_and_less_than_nothing_are_no_limit() {
    for value in ["null", "0", "-1"] {
        let config = format!("maximum content length: {value}\n");
        in_network(move || {
            let site = Installed::bare(&config, &[], |_| {});
            let routes = site.plan()["routes"].as_array().unwrap().clone();
            let found = routes.iter().find(|route| route["upstream"] == "app").unwrap();
            assert!(found["body_limit"].is_null(), "{value}: {found}");
        });
    }
    on_site("maximum content length: -1\n", "", |_site| {
        // Beyond what docassemble has where nothing is said.
        let length = (16 << 20) + 1;
        let mut stream = begin(&format!("POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        stream.write_all(&vec![b'x'; length]).unwrap();
        assert!(body(&read_response(&mut stream)).starts_with(&format!("{length} ")));
    });
}

#[test]
fn f62_uploads_that_pause_and_readers_that_do_not_read_hold_no_thread() {
    on_site("root: /\n", "", |site| {
        // More of each than there are threads.
        let mut uploads: Vec<_> =
            (0..7).map(|_| begin("POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\nbegun")).collect();
        let readers: Vec<_> = (0..7)
            .map(|_| {
                let mut reader = begin("GET /large?100 HTTP/1.1\r\nHost: a\r\n\r\n");
                assert_eq!(status(&read_head(&mut reader)), 200);
                reader
            })
            .collect();
        wait_for("the threads to be free", || inside(&site) == 0);
        assert_eq!(status(&site.get(80, "/x", HOST)), 200);

        // Beyond what is kept in memory: to a file, and whole.
        for upload in &mut uploads {
            upload.write_all(&vec![b'x'; 299_995]).unwrap();
            assert!(body(&read_response(upload)).starts_with("300000 "));
        }
        drop(readers);
    });
}

/// More come together than there are `places`.
fn inside_at_most(places: u64, config: &'static str) {
    on_site(config, "", move |site| {
        let mut asked: Vec<_> = (0..13).map(|_| begin("GET /slow?0.3 HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        wait_for("the rest to wait", || {
            let upstream = &site.served.status()["upstreams"][0];
            upstream["in_flight"] == places && upstream["queue_depth"] == 13 - places
        });
        // What the application counted: the highest of all answers.
        let peak = asked.iter_mut().map(|stream| body(&read_response(stream)).parse::<u64>().unwrap()).max();
        assert_eq!(peak, Some(places));
        assert_eq!(site.served.status()["upstreams"][0]["queue_limit"], 1024);
    });
}

#[test]
fn f63_six_are_inside_where_nginx_was() {
    inside_at_most(6, "root: /\n");
}

#[test]
fn f63_five_are_inside_where_apache_was() {
    inside_at_most(5, "web server: apache\n");
}

#[test]
fn f63_whoever_finds_the_queue_full_is_answered_503_with_a_time_to_come_back() {
    on_site("root: /\n", "upstreams: { app: { queue: { limit: 1 } } }\n", |site| {
        let mut slow: Vec<_> = (0..6).map(|_| begin("GET /slow?1 HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        wait_for("all places to be taken", || inside(&site) == 6);
        let mut waiting = begin("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_for("the queue", || site.served.status()["upstreams"][0]["queue_depth"] == 1);

        let refused = site.get(80, "/x", HOST);
        assert_eq!(status(&refused), 503);
        let seconds: u64 = header(&refused, "retry-after").expect("a time to come back").parse().unwrap();
        assert!(seconds > 0);
        assert_eq!(status(&read_response(&mut waiting)), 200, "who waits is served");
        for stream in &mut slow {
            assert_eq!(status(&read_response(stream)), 200);
        }
    });
}

#[test]
fn f64_text_is_compressed_for_those_who_take_it_and_says_so() {
    on_site("root: /\n", "", |_site| {
        let ask = |more: &str, fields: &str| {
            raw(EIGHTY.into(), format!("GET /page?{more} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n"))
        };
        let gzip = "Accept-Encoding: gzip\r\n";
        for kind in [
            "text/html",
            "text/html;%20charset=utf-8",
            "text/plain",
            "text/css",
            "text/javascript",
            "application/javascript",
            "application/xml",
            "image/vnd.microsoft.icon",
            "application/json",
            "image/svg%2Bxml",
        ] {
            let answer = ask(&format!("Content-Type={kind}&ETag=%22a%22"), gzip);
            assert_eq!(header(&answer, "content-encoding").as_deref(), Some("gzip"), "{kind}");
            assert!(header(&answer, "vary").is_some_and(|vary| vary.eq_ignore_ascii_case("accept-encoding")), "{kind}");
            assert_ne!(header(&answer, "content-length").as_deref(), Some("4000"), "{kind}");
            assert_eq!(header(&answer, "etag").as_deref(), Some("W/\"a\""), "it is not the same bytes any more");

            let plain = ask(&format!("Content-Type={kind}&ETag=%22a%22"), "");
            assert_eq!(header(&plain, "content-encoding"), None);
            assert_eq!(header(&plain, "content-length").as_deref(), Some("4000"));
            assert_eq!(body(&plain).len(), 4000);
        }
        for as_it_is in
            ["Content-Type=image/png", "Content-Type=application/pdf", "Content-Type=text/plain&Content-Encoding=br"]
        {
            let answer = ask(as_it_is, gzip);
            assert_ne!(header(&answer, "content-encoding").as_deref(), Some("gzip"), "{as_it_is}");
            assert_eq!(body(&answer).len(), 4000, "{as_it_is}");
        }
    });
}

#[test]
fn f65_what_uwsgi_takes_of_headers_is_taken_and_more_is_431_and_never_502() {
    on_site("root: /\n", "", |site| {
        let with = |length: usize| {
            status(&site.ask(80, &format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n", "x".repeat(length))))
        };
        assert_eq!(with(31_000), 200);
        // Around where the variables of uwsgi outgrow its buffer, and where we have enough ourselves.
        let answers: Vec<_> = (31_000..33_200).step_by(100).map(with).collect();
        let first_refused = answers.iter().position(|status| *status == 431).expect("a limit");
        assert!(answers[..first_refused].iter().all(|status| *status == 200), "{answers:?}");
        assert!(answers[first_refused..].iter().all(|status| *status == 431), "{answers:?}");
    });
}
