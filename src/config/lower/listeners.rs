//! `listeners`: where connections come from, and what they are on.

use std::collections::BTreeSet;

use super::{Seen, trust, upstreams::lower_supervisor};
use crate::config::{
    plan::{ClientCaPlan, HostName, HttpsRedirect, ListenAddress, ListenerPlan, LogServerPlan, TrustedProxies},
    raw,
    read::{Reading, Told, suggestion},
    words::ClientCertificate,
};

pub(super) fn lower_listeners(
    listeners: Vec<raw::Listener>,
    host: &Result<Option<HostName>, Told>,
    trusted: &Result<TrustedProxies, Told>,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<Vec<ListenerPlan>, Told> {
    if listeners.is_empty() {
        return Err(reading.refuse_at("listeners", "at least one listener is needed, such as `- address: \"[::]:80\"`"));
    }
    let mut seen = Seen::default();
    let lower = |(index, listener)| {
        let at = format!("listeners[{index}]");
        if let Ok(address) = &listener_address(&listener)
            // Each port 0 becomes another port.
            && !matches!(address, ListenAddress::Tcp(address) if address.port() == 0)
            && let Some(first) = seen.note(address.clone(), &at)
        {
            reading.refuse_at(&format!("{at}.address"), format!("`{first}` listens on this address already"));
        }
        lower_listener(listener, &at, host, trusted, upstreams, reading)
    };
    listeners.into_iter().enumerate().map(lower).collect::<Vec<_>>().into_iter().collect()
}

fn listener_address(listener: &raw::Listener) -> Result<ListenAddress, Told> {
    listener.address.clone()
}

fn lower_listener(
    listener: raw::Listener,
    at: &str,
    host: &Result<Option<HostName>, Told>,
    trusted: &Result<TrustedProxies, Told>,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<ListenerPlan, Told> {
    let redirect = lower_redirect(&listener, at, host, reading);
    if listener.log_server.as_ref().is_ok_and(Option::is_some)
        && listener.redirect.is_ok_and(|redirect| redirect.is_some())
    {
        reading.refuse_at(&format!("{at}.log_server"), "this listener redirects everything; take one of the two out");
    }
    if let (Ok(Some(_)), Ok(address), Ok(trusted)) = (listener.proxy_protocol, &listener.address, trusted) {
        let (anybody, who) = match address {
            ListenAddress::Tcp(_) => (!trusted.networks.is_empty(), "the network of your load balancer"),
            ListenAddress::Unix(_) => (trusted.unix, "`unix`"),
            // Of which kind they are is known when they are there.
            ListenAddress::Inherited(_) => (!trusted.is_empty(), "the network of your load balancer, or `unix`"),
        };
        if !anybody {
            let problem = format!("nobody is trusted to send the PROXY header here; add {who} to `trusted_proxies`");
            reading.refuse_at(&format!("{at}.proxy_protocol"), problem);
        }
    }
    let client_ca = lower_client_ca(&listener, at, reading);
    Ok(ListenerPlan {
        address: listener.address.clone()?,
        tls: listener.tls?,
        redirect: redirect?,
        proxy_protocol: listener.proxy_protocol?.is_some(),
        log_server: match listener.log_server? {
            Some(server) => Some(lower_log_server(server, at, upstreams, reading)?),
            None => None,
        },
        client_ca: client_ca?,
    })
}

fn lower_client_ca(
    listener: &raw::Listener,
    at: &str,
    reading: &mut Reading<'_>,
) -> Result<Option<ClientCaPlan>, Told> {
    let wanted = listener.client_certificate?;
    let Some(file) = listener.client_ca.clone()? else {
        return match wanted {
            None => Ok(None),
            Some(_) => Err(reading.refuse_at(
                &format!("{at}.client_certificate"),
                "nobody is asked for a certificate here; name the file of the authorities in `client_ca`",
            )),
        };
    };
    if listener.tls == Ok(false) {
        let problem = "clients are asked for a certificate in the TLS handshake; write `tls: true` as well";
        return Err(reading.refuse_at(&format!("{at}.client_ca"), problem));
    }
    if wanted == Some(ClientCertificate::Optional) && listener.log_server.as_ref().is_ok_and(Option::is_some) {
        let problem =
            "a log server does not look at certificates: only the handshake keeps anybody out; write `required`";
        return Err(reading.refuse_at(&format!("{at}.client_certificate"), problem));
    }
    Ok(Some(ClientCaPlan { file: file.0, required: wanted != Some(ClientCertificate::Optional) }))
}

fn lower_log_server(
    server: raw::LogServer,
    at: &str,
    upstreams: &Result<BTreeSet<String>, Told>,
    reading: &mut Reading<'_>,
) -> Result<LogServerPlan, Told> {
    let at = format!("{at}.log_server");
    if let (Ok(Some(name)), Ok(upstreams)) = (&server.index, upstreams)
        && !upstreams.contains(name)
    {
        let near = suggestion(name, upstreams.iter().map(String::as_str));
        reading.refuse_at(&format!("{at}.index"), format!("no upstream is named `{name}`{near}"));
    }
    let supervisor = match server.supervisor? {
        Some(supervisor) => {
            let known = (supervisor.username, supervisor.password);
            let example = "name the program that collects the logs, such as `sync`";
            Some(lower_supervisor(supervisor.address, supervisor.program, known, &at, example, reading)?)
        }
        None => None,
    };
    Ok(LogServerPlan { folder: server.folder?.0, allow: trust(server.allow?), index: server.index?, supervisor })
}

fn lower_redirect(
    listener: &raw::Listener,
    at: &str,
    host: &Result<Option<HostName>, Told>,
    reading: &mut Reading<'_>,
) -> Result<Option<HttpsRedirect>, Told> {
    let port = listener.https_port?;
    if listener.redirect?.is_none() {
        return match port {
            None => Ok(None),
            Some(_) => {
                Err(reading.refuse_at(&format!("{at}.https_port"), "it only has a meaning beside `redirect: https`"))
            }
        };
    }
    let at = format!("{at}.redirect");
    if listener.tls == Ok(true) {
        return Err(
            reading.refuse_at(&at, "a listener with `tls: true` would redirect to itself; take one of the two out")
        );
    }
    let Some(host) = host.clone()? else {
        let problem = "`host` is missing: a redirect to whatever host the client names would be an open redirect";
        return Err(reading.refuse_at(&at, problem));
    };
    let port = match port {
        Some(port) => u16::try_from(port.0).expect("the key is bounded by the largest port"),
        None => 443,
    };
    Ok(Some(HttpsRedirect { host, port }))
}
