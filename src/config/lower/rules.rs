//! What keys of several parts must agree on.

use std::{collections::BTreeMap, net::IpAddr, net::Ipv4Addr};

use crate::config::{
    plan::{BackendPlan, EndpointAddress, EndpointPlace, ListenAddress, ListenerPlan, RoutePlan, Stick, UpstreamPlan},
    read::{Reading, Told},
};

/// supervisord starts and stops programs for whoever reaches it, which must be nobody who comes through us.
pub(super) fn refuse_supervisors_for_clients(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    let programs = upstreams.values().filter_map(|upstream| Some(&upstream.program.as_ref()?.supervisor));
    let logs = listeners.iter().filter_map(|listener| listener.log_server.as_ref()?.supervisor.as_ref());
    let mut supervisors: Vec<_> = programs.chain(logs).map(|supervisor| &supervisor.address).collect();
    if supervisors.is_empty() {
        return;
    }
    // Asked on its unix socket, it may listen where it does by habit as well.
    let habit = EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port: 9001 };
    supervisors.push(&habit);
    for (name, upstream) in upstreams {
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            if let EndpointPlace::At(address) = &endpoint.address
                && supervisors.iter().any(|supervisor| is_same_place(supervisor, address))
            {
                let problem = "supervisord listens here, and clients would command the programs of this machine";
                reading.refuse_at(&format!("upstreams.{name}.endpoints[{index}]"), problem);
            }
        }
    }
}

/// As far as can be told without resolving names; all of loopback is one.
fn is_same_place(one: &EndpointAddress, other: &EndpointAddress) -> bool {
    let loopback = |host: &str| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical());
        host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
    };
    match (one, other) {
        (EndpointAddress::Tcp { host: one, port: of_one }, EndpointAddress::Tcp { host: other, port: of_other }) => {
            of_one == of_other && (one.eq_ignore_ascii_case(other) || loopback(one) && loopback(other))
        }
        (one, other) => one == other,
    }
}

/// Without the cookie nobody is known to have been there before.
pub(super) fn refuse_sessions_without_cookies(
    backends: &Result<BTreeMap<String, BackendPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    routes: &Result<Vec<RoutePlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(backends), Ok(upstreams), Ok(routes)) = (backends, upstreams, routes) else { return };
    let of = |route: &RoutePlan| upstreams.get(&route.upstream)?.backend.as_ref();
    for (name, _) in backends.iter().filter(|(_, backend)| backend.drain_sessions.is_some()) {
        if !routes.iter().any(|route| route.stick == Some(Stick::Cookie) && of(route) == Some(name)) {
            let problem =
                "no route with `stick: cookie` leads to it, so that no client would stay; write that for its routes";
            reading.refuse_at(&format!("backends.{name}.drain_sessions"), problem);
        }
    }
}

/// Where an index cannot be had from its upstream it is made here, at once.
pub(super) fn refuse_indexes_that_hold(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    for (position, listener) in listeners.iter().enumerate() {
        let index = listener.log_server.as_ref().and_then(|server| server.index.as_ref());
        if let Some(upstream) = index.and_then(|name| upstreams.get(name))
            && !upstream.hold.is_zero()
        {
            let problem = format!(
                "`{}` is waited for where it cannot be connected to, and the index is made here then; write `hold: 0` for it",
                upstream.name
            );
            reading.refuse_at(&format!("listeners[{position}].log_server.index"), problem);
        }
    }
}

/// An upstream that is one of our own listeners would be sent its own requests for ever.
pub(super) fn refuse_circles(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    upstreams: &Result<BTreeMap<String, UpstreamPlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(upstreams)) = (listeners, upstreams) else { return };
    let is_ours = |host: &str, port: u16| {
        let address: Option<IpAddr> = if host == "localhost" {
            Some(Ipv4Addr::LOCALHOST.into())
        } else {
            host.trim_matches(['[', ']']).parse().ok()
        };
        address.is_some_and(|address| {
            listeners.iter().any(|listener| match &listener.address {
                ListenAddress::Tcp(own) => {
                    own.port() == port && (own.ip() == address || (own.ip().is_unspecified() && address.is_loopback()))
                }
                ListenAddress::Unix(_) | ListenAddress::Inherited(_) => false,
            })
        })
    };
    for (name, upstream) in upstreams {
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            let circular = match &endpoint.address {
                EndpointPlace::At(EndpointAddress::Tcp { host, port }) => is_ours(host, *port),
                EndpointPlace::At(EndpointAddress::Unix(path)) => {
                    listeners.iter().any(|listener| listener.address == ListenAddress::Unix(path.clone()))
                }
                EndpointPlace::Srv(_) => false,
            };
            if circular {
                let problem = format!(
                    "we listen on {} ourselves, so requests would go round in circles; listen elsewhere, or name \
                     where the application listens",
                    endpoint.address
                );
                reading.refuse_at(&format!("upstreams.{name}.endpoints[{index}]"), problem);
            }
        }
    }
}

/// Where no listener asks for a certificate, a route that demands one would answer everybody 403.
pub(super) fn refuse_routes_for_nobody(
    listeners: &Result<Vec<ListenerPlan>, Told>,
    routes: &Result<Vec<RoutePlan>, Told>,
    reading: &mut Reading<'_>,
) {
    let (Ok(listeners), Ok(routes)) = (listeners, routes) else { return };
    if listeners.iter().any(|listener| listener.client_ca.is_some()) {
        return;
    }
    for index in routes.iter().enumerate().filter(|(_, route)| route.client_certificate).map(|(index, _)| index) {
        let problem = "no listener asks for a certificate, so nobody could show one; name the authorities in `client_ca` of \
                       a listener with `tls: true`";
        reading.refuse_at(&format!("routes[{index}].client_certificate"), problem);
    }
}
