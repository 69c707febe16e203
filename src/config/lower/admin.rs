//! `admin`: where it is listened on, and what that takes over TCP.

use crate::config::{
    TOKEN_COMMAND,
    plan::{AdminListenPlan, AdminPlan, ListenAddress, ListenerPlan},
    raw,
    read::{Reading, Told},
};

pub(super) fn lower_admin(
    admin: raw::Admin,
    listeners: &Result<Vec<ListenerPlan>, Told>,
    reading: &mut Reading<'_>,
) -> Result<AdminPlan, Told> {
    let (socket, listen) = (admin.socket?, admin.listen?);
    let files = [("certificate", admin.certificate?), ("key", admin.key?), ("token_file", admin.token_file?)];
    let Some(listen) = listen else {
        if let Some((name, _)) = files.iter().find(|(_, file)| file.is_some()) {
            let problem = "this is for TCP; say where in `listen`, such as `10.0.0.5:9443`, or take it out";
            return Err(reading.refuse_at(&format!("admin.{name}"), problem));
        }
        return match socket {
            Some(socket) => Ok(AdminPlan { socket: Some(socket.0), listen: None }),
            None => Err(reading.refuse_at("admin", "nobody could reach it; name a `socket`, or write `admin: null`")),
        };
    };
    let missing: Vec<_> =
        files.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| format!("`{name}`")).collect();
    let [Some(certificate), Some(key), Some(token_file)] = files.map(|(_, file)| file.map(|file| file.0)) else {
        let problem = format!(
            "over TCP it takes TLS and a token, and there is no {}; a token is made by `{TOKEN_COMMAND}`",
            missing.join(", no ")
        );
        return Err(reading.refuse_at("admin.listen", problem));
    };
    let address = ListenAddress::Tcp(listen.0);
    if listen.0.port() != 0
        && let Ok(listeners) = listeners
        && let Some(same) = listeners.iter().position(|listener| listener.address == address)
    {
        let problem = format!("`listeners[{same}]` listens on this address already; choose another port");
        return Err(reading.refuse_at("admin.listen", problem));
    }
    let listen = AdminListenPlan { address: listen.0, certificate, key, token_file };
    Ok(AdminPlan { socket: socket.map(|socket| socket.0), listen: Some(listen) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    /// The plan of a configuration with this `admin`, or the first fault.
    fn lowered(admin: &str) -> Result<Option<AdminPlan>, String> {
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:80' }}]\nupstreams: {{ app: {{ endpoints: ['127.0.0.1:1'] }} }}\n\
             routes: [{{ prefix: /, upstream: app }}]\nadmin: {admin}\n"
        );
        let plan = parse("/etc/v.yml", &text, &|_| None);
        plan.map(|plan| plan.admin).map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_mapping_has_the_socket_beside_what_is_listened_on() {
        let files = "certificate: a.crt, key: a.key, token_file: /run/token";
        let listen = AdminListenPlan {
            address: "10.0.0.5:9443".parse().unwrap(),
            certificate: "/etc/a.crt".into(),
            key: "/etc/a.key".into(),
            token_file: "/run/token".into(),
        };
        let socket = |path: &str| Some(path.into());
        for (text, socket, listen) in [
            ("unix:/run/a.sock".to_owned(), socket("/run/a.sock"), None),
            ("{}".to_owned(), socket("/run/vestibule/admin.sock"), None),
            ("{ socket: unix:/run/a.sock }".to_owned(), socket("/run/a.sock"), None),
            (
                format!("{{ listen: '10.0.0.5:9443', {files} }}"),
                socket("/run/vestibule/admin.sock"),
                Some(listen.clone()),
            ),
            (format!("{{ socket: null, listen: '10.0.0.5:9443', {files} }}"), None, Some(listen)),
        ] {
            assert_eq!(lowered(&text), Ok(Some(AdminPlan { socket, listen })), "{text}");
        }
        assert_eq!(lowered("null"), Ok(None));
    }

    #[test]
    fn nobody_gets_in_over_tcp_without_tls_and_a_token() {
        for (text, fault) in [
            (
                "{ listen: '10.0.0.5:9443' }",
                "v.yml:4:18: admin.listen: over TCP it takes TLS and a token, and there is no `certificate`, no `key`, no \
                 `token_file`; a token is made by `openssl rand -base64 -out FILE 48`",
            ),
            (
                "{ listen: '10.0.0.5:9443', certificate: a, key: b }",
                "v.yml:4:18: admin.listen: over TCP it takes TLS and a token, and there is no `token_file`; a token is made by \
                 `openssl rand -base64 -out FILE 48`",
            ),
            (
                "{ token_file: a }",
                "v.yml:4:22: admin.token_file: this is for TCP; say where in `listen`, such as `10.0.0.5:9443`, or take it out",
            ),
            ("{ socket: null }", "v.yml:4:8: admin: nobody could reach it; name a `socket`, or write `admin: null`"),
            (
                "{ listen: '127.0.0.1:80', certificate: a, key: b, token_file: c }",
                "v.yml:4:18: admin.listen: `listeners[0]` listens on this address already; choose another port",
            ),
            (
                "{ listen: unix:/run/a.sock }",
                "v.yml:4:18: admin.listen: this is for TCP; write `socket: unix:/run/a.sock`",
            ),
            ("{ token: a }", "v.yml:4:10: admin.token: unknown key `token`"),
        ] {
            let told = lowered(text).unwrap_err();
            assert!(told.contains(fault), "expected {fault}\nfound    {told}");
        }
    }
}
