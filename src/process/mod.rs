//! The processes: a keeper that holds what must not be lost, and workers that carry the traffic.
//!
//! | part | what it is |
//! |---|---|
//! | `keeper` | the process that a service manager knows: sockets, keys, configuration, crashes, upgrades |
//! | `worker` | the process that reads the network, as the user that the configuration names, in a `sandbox` |
//! | `agent` | the process that orders certificates, and speaks with nobody but their authorities |
//! | `link`, `message` | the sockets between them, and all that a worker can say |
//! | `watch`, `history` | files that change; the configurations that were applied |
//! | `signals`, `signal_mask` | what the system tells the keeper, and what is held meanwhile |
//! | `pid_file` | the file that says which process we are |
//!
//! With `--single` the worker is a thread of the keeper: the same two sides and the same link, and nothing between them.
//!
//! Words that mean one thing here and may mean another elsewhere:
//!
//! - *keeper*: the process, `keeper::Keeper`; [`crate::keeper`] is what it does with the system.
//! - *worker*: the process that carries the traffic: `worker` is what it does, `keeper::workers` what the keeper knows of
//!   it. It has as many traffic threads as `workers` in the configuration says, each with a [`crate::service::TrafficThread`].
//! - *place*: the right to be inside an application ([`crate::upstream::Place`]); workers pass places on to each other.
//! - *to leave*: to accept no more and to end what was begun (`Retire`, `State::Leaving`); what a program leaves to the
//!   next one at an upgrade is its *inheritance*.
//! - *to stop*: the end of all workers, with a deadline (`drain` in the configuration). `vestibule drain` stops after a
//!   while in which `/ready` says that it will.

mod agent;
mod history;
mod keeper;
mod link;
mod message;
pub(crate) mod pid_file;
mod sandbox;
mod signal_mask;
mod signals;
mod watch;
mod worker;

use std::{
    io::{self, Write},
    os::fd::AsFd,
    path::PathBuf,
};

use tokio::task::LocalSet;

pub(crate) use self::{
    keeper::Ended,
    signals::{Signal, Signals},
};
use self::{keeper::Keeper, worker::RunsAs};
use crate::{
    config::{self, ConfigError, Inspection, ListenAddress, Plan, Source, Takes},
    keeper::{
        ProvisionFaults, secrets,
        user::{self, UnknownUser},
    },
    telemetry::access_log,
    tls,
};

/// How `vestibule serve` was asked to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// One process for everything.
    pub(crate) single: bool,
    pub(crate) pid_file: Option<PathBuf>,
}

/// Why there is no front door.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    User(#[from] UnknownUser),
    #[error(transparent)]
    Provisions(#[from] ProvisionFaults),
    #[error("the system refuses what a start needs")]
    System(#[source] io::Error),
    #[error("the worker does not serve: {0}")]
    Worker(String),
    #[error("what the program before left cannot be read: {0}")]
    Inheritance(String),
}

impl ServeError {
    /// Whether trying again does not help: the configuration is at fault.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Config(_) | Self::User(_))
    }
}

/// Serves `source` until it is told to stop.
pub(crate) fn serve(source: Source, options: Options) -> Result<Ended, ServeError> {
    serve_and_tell(source, options, |_| {})
}

/// The same; `begun` is told the addresses once connections are accepted.
pub(crate) fn serve_and_tell(
    source: Source,
    options: Options,
    begun: impl FnOnce(&[ListenAddress]),
) -> Result<Ended, ServeError> {
    // Before anything is begun: a refused configuration is not a failed start.
    let text = config::text(&source)?;
    let plan = config::check_text(&source, &text, inspections())?;
    // Until we catch them; by default most of them would end us.
    signal_mask::hold();
    run(async {
        let keeper = Keeper::start(source, options, plan, text).await?;
        begun(&keeper.addresses());
        Ok(Box::pin(keeper.run()).await)
    })
}

/// Goes on with what the program before left at our standard input.
pub(crate) fn take_over(source: Source, options: Options) -> Result<Ended, ServeError> {
    run(async { Ok(Box::pin(Keeper::take_over(source, options).await?.run()).await) })
}

/// Says whether this program could take over from one that leaves things in this `form`.
pub(crate) fn would_take_over(source: &Source, form: u32) -> Result<(), ServeError> {
    if form != keeper::FORM {
        let said = format!("it is of form {form}, and this program reads form {}; restart instead", keeper::FORM);
        return Err(ServeError::Inheritance(said));
    }
    // As it is on the disk: the next reload is to succeed, too.
    config::check(source, inspections())?;
    io::stdout().write_all(keeper::TAKES_OVER).map_err(ServeError::System)
}

/// What it would be for a gateway that serves `in_force` to take `source` on, in words.
///
/// # Errors
///
/// It would be refused.
pub(crate) fn rehearse(source: &Source, in_force: &Plan, single: bool) -> Result<String, ConfigError> {
    let plan = config::check(source, inspections())?;
    let takes = match config::takes(in_force, &plan, single) {
        Takes::Effect if !single => match sandbox::covers(in_force, &plan) {
            lacks if lacks.is_empty() => Takes::Effect,
            lacks => Takes::NewWorker(lacks),
        },
        takes => takes,
    };
    Ok(keeper::rehearsal(in_force, &plan, takes))
}

/// Carries the traffic for the keeper at the other end of standard input.
pub(crate) fn work() -> Result<(), Box<dyn std::error::Error>> {
    let link = io::stdin().as_fd().try_clone_to_owned()?;
    // A name of its own in lists of processes, where the program is called after the link it was begun by.
    rustix::thread::set_name(c"vestibule").ok();
    Ok(worker::run(link, RunsAs::Process)?)
}

/// Keeps from this process, and from those that it begins, what is said to the keeper by signals.
pub(crate) fn hold_signals() {
    signal_mask::hold();
}

/// Takes signals as any program does.
pub(crate) fn release_signals() {
    signal_mask::release();
}

/// Orders certificates for the keeper at the other end of standard input.
pub(crate) fn order_certificates() -> Result<(), Box<dyn std::error::Error>> {
    let link = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::thread::set_name(c"vestibule").ok();
    agent::run(link, RunsAs::Process).inspect_err(|error| {
        tracing::error!(error = error as &dyn std::error::Error, "the agent ends");
    })?;
    Ok(())
}

fn run(keeper: impl Future<Output = Result<Ended, ServeError>>) -> Result<Ended, ServeError> {
    // Of the keeper, too, which has read the keys before anybody else.
    if let Err(error) = sandbox::hide_memory() {
        tracing::warn!(error = &error as &dyn std::error::Error, "keys may come to be in core dumps");
    }
    // One thread: what the keeper does is little, and it begins processes.
    // Signals are taken by the one thread: what another one caught just before an upgrade would be lost with it.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_start(signal_mask::hold).build().map_err(ServeError::System)?;
    LocalSet::new().block_on(&runtime, keeper)
}

/// What a configuration is held against before it is put in force: no folder, which may come with the application, and
/// no date of a certificate.
fn inspections() -> &'static [Inspection] {
    &[
        config::untrusted_sources,
        user::unusable_for_backends,
        access_log::faults,
        tls::faults,
        tls::storage::faults,
        secrets::faults,
    ]
}
