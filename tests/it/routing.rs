//! Which requests go where, and which are ours to refuse.

use crate::support::{Backend, TestGateway, proxying, status};

#[test]
fn a_request_is_answered_by_the_backend_of_its_route() {
    let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    let gateway = TestGateway::start(&proxying(backend.address, "", ""));

    assert_eq!(gateway.get("/x"), (200, "one".to_owned()));
}

#[test]
fn outside_every_route_is_a_404_of_our_own() {
    let backend = Backend::echoing();
    let gateway = TestGateway::start(&proxying(backend.address, "", "").replace("prefix: /,", "prefix: /da/,"));

    let answer = gateway.raw("GET /dashboard HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");

    assert_eq!(status(&answer), 404);
    assert_eq!(backend.connections(), 0, "the backend was asked");
}
