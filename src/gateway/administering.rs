//! Where the gateway is administered: what the admin endpoint answers on, and what it takes over TCP.

use std::{io, sync::Arc};

use arc_swap::ArcSwapOption;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Runtime,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::{
    admin::{self, AdminSecrets, Observer, Remote, Terms},
    config::{AdminPlan, Plan},
    drain::Drain,
    keeper::sockets::AdminSockets,
    metrics::Metrics,
    tls::Certificate,
};

/// The admin endpoint on its sockets.
pub(super) struct Administration {
    observer: Arc<Observer>,
    metrics: Arc<Metrics>,
    drain: Drain,
    unix: Option<Place>,
    tcp: Option<Place>,
    /// Since it was first wanted over TCP.
    remote: Option<Arc<Remote>>,
    /// Of TCP, where it is there.
    certificate: Arc<ArcSwapOption<Certificate>>,
}

/// A socket that is answered on.
struct Place {
    closed: CancellationToken,
    task: JoinHandle<()>,
}

/// What `plan` asks of clients over TCP.
///
/// # Errors
///
/// There is nothing to ask for it with.
pub(super) fn terms(plan: &Plan, secrets: Option<AdminSecrets>) -> Result<Option<(Terms, Certificate)>, StartError> {
    if plan.admin.as_ref().is_none_or(|admin| admin.listen.is_none()) {
        return Ok(None);
    }
    let AdminSecrets { certificate, token } = secrets.ok_or(StartError::NoAdminSecrets)?;
    let certificate = Certificate::from_material(&certificate)
        .map_err(|source| StartError::Certificate { at: certificate.at.clone(), source })?;
    Ok(Some((Terms::new(&plan.tls, &certificate, token)?, certificate)))
}

impl Administration {
    pub(super) fn new(observer: Arc<Observer>, metrics: Arc<Metrics>, drain: Drain) -> Self {
        Self { observer, metrics, drain, unix: None, tcp: None, remote: None, certificate: Arc::default() }
    }

    /// What clients are shown over TCP, whatever is put in force.
    pub(super) fn certificate(&self) -> Arc<ArcSwapOption<Certificate>> {
        Arc::clone(&self.certificate)
    }

    /// Goes on at new `sockets`, closes what `plan` does not have any more, and has clients over TCP meet `terms`.
    pub(super) fn apply(
        &mut self,
        plan: Option<&AdminPlan>,
        sockets: AdminSockets,
        terms: Option<(Terms, Certificate)>,
        control: &Runtime,
    ) {
        // Before anybody comes by a new socket.
        let (terms, certificate) = terms.unzip();
        self.certificate.store(certificate.map(Arc::new));
        if let Some(terms) = terms {
            if let Some(remote) = &self.remote {
                remote.replace(terms);
            } else {
                let observer = Arc::clone(&self.observer);
                self.remote = Some(Remote::new(terms, observer, &self.metrics));
            }
        }
        if sockets.unix.is_some() || plan.is_none_or(|plan| plan.socket.is_none()) {
            close(self.unix.take());
        }
        if sockets.tcp.is_some() || plan.is_none_or(|plan| plan.listen.is_none()) {
            close(self.tcp.take());
        }
        if let Some(socket) = sockets.unix {
            let (observer, drain, closed) = (Arc::clone(&self.observer), self.drain.clone(), CancellationToken::new());
            let shutdown = left(closed.clone(), drain.clone());
            let task = control.spawn(async move {
                match UnixListener::from_std(socket) {
                    Ok(socket) => admin::serve(socket, observer, shutdown, drain.stopping()).await,
                    Err(error) => unusable(&error),
                }
            });
            self.unix = Some(Place { closed, task });
        }
        if let (Some(socket), Some(remote)) = (sockets.tcp, &self.remote) {
            let (remote, drain, closed) = (Arc::clone(remote), self.drain.clone(), CancellationToken::new());
            let shutdown = left(closed.clone(), drain.clone());
            let task = control.spawn(async move {
                match TcpListener::from_std(socket) {
                    Ok(socket) => admin::serve_remote(socket, remote, shutdown, drain.stopping()).await,
                    Err(error) => unusable(&error),
                }
            });
            self.tcp = Some(Place { closed, task });
        }
    }

    /// Ends when all has been answered after a stop, which bounds that.
    pub(super) async fn ended(self) {
        for place in [self.unix, self.tcp].into_iter().flatten() {
            // One that has panicked has nothing more to answer.
            drop(place.task.await);
        }
    }
}

fn close(place: Option<Place>) {
    if let Some(place) = place {
        place.closed.cancel();
    }
}

/// Ends when a place is closed, or the gateway leaves.
async fn left(closed: CancellationToken, drain: Drain) {
    tokio::select! {
        () = closed.cancelled() => {}
        () = drain.started() => {}
    }
}

fn unusable(error: &io::Error) {
    tracing::error!(error = error as &dyn std::error::Error, "a socket of the admin endpoint cannot be used");
}
