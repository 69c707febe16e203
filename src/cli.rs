//! The command line: which configuration, what to do with it, and the exit code that says how it went.
//!
//! 0: a clean stop, or nothing to complain of · 1: could not start or go on, or had to cut something off at a stop · 2: bad
//! command line (clap's own) · 78 (`EX_CONFIG`): the configuration is refused, and trying again will not help.

use std::{
    env,
    error::Error,
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    admin::{self, Order},
    backends::guard,
    config::{self, ConfigError, Outer, Problem, Source},
    demo,
    keeper::{secrets, user},
    process::{self, Ended, ServeError},
    shim,
    telemetry::{access_log, chain, events},
    tls,
};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(ended) = shim::main_if_called() {
        return ended;
    }
    events::init();
    // clap ends a bad command line with its own message and 2.
    run(Command::parse())
}

/// `vestibule check` of what is installed on this machine: docassemble's configuration where there is no other.
pub(crate) fn check_installed() -> ExitCode {
    let installed = |file: &str| Path::new(file).exists();
    let mut arguments = vec!["vestibule", "check"];
    if installed(DOCASSEMBLE) && !installed(CONFIGURATION) {
        arguments.push("--docassemble");
        if installed(OVERLAY) {
            arguments.extend(["--config", OVERLAY]);
        }
    }
    run(Command::parse_from(arguments))
}

fn run(command: Command) -> ExitCode {
    match command.verb {
        Verb::Serve { options, serve: how } => with_source(&options, |source| serve(source, how)),
        Verb::Worker => exit_code(process::work()),
        Verb::Agent => exit_code(process::order_certificates()),
        Verb::BackendGuard { guarded, command } => exit_code(guard::guard(&guarded, &command).map_err(Into::into)),
        Verb::BackendProgram { guard: own, guarded, command } => match guard::become_program(own, &guarded, &command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error.to_string());
                ExitCode::from(guard::CANNOT_RUN)
            }
        },
        Verb::DocassembleSettings { file, fetch } => {
            exit_code(config::read_docassemble(&file, fetch).map_err(Into::into))
        }
        Verb::Demo => exit_code(demo::run()),
        Verb::Status(options) => with_source(&options, status),
        Verb::Reload { options, dry_run: true } => with_source(&options, rehearse),
        Verb::Reload { options, dry_run: false } => {
            with_source(&options, |source| order(source, Order::Reload { dry_run: false }))
        }
        Verb::Rollback { options, steps } => with_source(&options, |source| order(source, Order::Rollback { steps })),
        Verb::Drain { options, wait } => with_source(&options, |source| order(source, Order::Drain { wait })),
        Verb::Restart { options, name } => with_source(&options, |source| restart(source, &name)),
        Verb::Upgrade(options) => with_source(&options, |source| order(source, Order::Upgrade)),
        Verb::Certificates(CertificateVerb::List(options)) => with_source(&options, certificates),
        Verb::Certificates(CertificateVerb::Check(options)) => {
            with_source(&options, |source| order(source, Order::Check))
        }
        Verb::Certificates(CertificateVerb::Renew(options)) => {
            with_source(&options, |source| order(source, Order::Renew))
        }
        Verb::Certificates(CertificateVerb::Export(options)) => {
            with_source(&options, |source| order(source, Order::Export))
        }
        Verb::Check(options) => with_source(&options, check),
        Verb::Explain { options, outer } => with_source(&options, |source| explain(source, outer)),
    }
}

/// The front door for self-hosted Python web applications.
#[derive(Parser)]
#[command(name = "vestibule", version, about, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run in the foreground until SIGTERM, SIGINT or SIGQUIT; a second one cuts off what is in flight.
    ///
    /// SIGHUP reads the configuration anew, SIGUSR1 reopens the access log, SIGUSR2 lets the program file on the disk take
    /// over. The configuration and certificates are watched: their change needs no signal.
    #[command(after_help = ENVIRONMENT)]
    Serve {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        serve: ServeOptions,
    },
    /// What the keeper begins; not for people.
    #[command(hide = true)]
    Worker,
    /// What the keeper begins to order certificates; not for people.
    #[command(hide = true)]
    Agent,
    /// What the keeper begins to guard an instance of a backend; not for people.
    #[command(hide = true)]
    BackendGuard {
        guarded: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// What a guard begins to become that instance; not for people.
    #[command(hide = true)]
    BackendProgram {
        guard: i32,
        guarded: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// What reads docassemble's configuration for root, as another user; not for people.
    #[command(hide = true)]
    DocassembleSettings {
        file: PathBuf,
        #[arg(long)]
        fetch: bool,
    },
    /// Show a front door with a small application behind it, and print its addresses.
    Demo,
    /// Ask the running gateway how it is, through the `admin` socket of the configuration.
    Status(Options),
    /// Have the running gateway read its configuration anew.
    Reload {
        #[command(flatten)]
        options: Options,
        /// Only say what `--config` would change of what is in force. As the running one reads its own file by itself when
        /// it changes, name a copy of it.
        #[arg(long)]
        dry_run: bool,
    },
    /// Have the running gateway go back to a configuration that was applied before; the file is left as it is.
    Rollback {
        #[command(flatten)]
        options: Options,
        /// How many configurations to go back.
        #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        steps: u32,
    },
    /// Have the running gateway answer /ready with 503, wait for the load balancer to look elsewhere, and stop.
    Drain {
        #[command(flatten)]
        options: Options,
        /// How long to wait.
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = wait)]
        wait: Duration,
    },
    /// Have the program file that is on the disk now take over from the running gateway: same pid, nothing dropped.
    Upgrade(Options),
    /// Have the running gateway replace all instances of a backend, one after the other: a new one serves before an old one
    /// ends what it began. Or have Supervisor restart the program that is behind an upstream.
    Restart {
        #[command(flatten)]
        options: Options,
        /// The name of the backend, or of the program or its upstream.
        name: String,
    },
    /// Certificates of the running gateway: those of your own, and those that it orders.
    #[command(subcommand)]
    Certificates(CertificateVerb),
    /// Validate everything without listening; prints `file:line:column: key.path: problem`, one a line.
    Check(Options),
    /// Say in words what the configuration means.
    Explain {
        #[command(flatten)]
        options: Options,
        /// Print what a proxy in front of this one must contain instead.
        #[arg(long, value_name = "PROXY")]
        outer: Option<Outer>,
    },
}

#[derive(Subcommand)]
enum CertificateVerb {
    /// Which there are, until when, and how orders stand.
    List(Options),
    /// Look what is in the way of those that are ordered: names, addresses, port 80, CAA records, the clock.
    Check(Options),
    /// Order those anew that are ordered, whatever their age. Not to be done in a loop: authorities count.
    Renew(Options),
    /// Write those that are ordered to where `tls.export` says, and run the commands of `tls.deploy`, whether they have run
    /// or not.
    Export(Options),
}

#[derive(Args)]
struct ServeOptions {
    /// Keep everything in one process: nothing is confined, and a crash or an upgrade is a restart.
    #[arg(long)]
    single: bool,
    /// Write the process id here; it never changes, whatever is reloaded or upgraded.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// For an upgrade: with a number, say whether this program reads what is left in that form; without one (0, which is
    /// no form), take over what is left at standard input.
    #[arg(long, value_name = "FORM", hide = true, num_args = 0..=1, default_missing_value = "0")]
    takeover: Option<u32>,
}

#[derive(Args)]
struct Options {
    /// The configuration [default: /etc/vestibule/vestibule.yml, but with --docassemble none]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read docassemble's own configuration and environment; keys of `--config` win [default:
    /// /usr/share/docassemble/config/config.yml, or where `DA_CONFIG` or `DA_ROOT` say]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[allow(clippy::option_option, reason = "not asked for, asked for, and asked for with a file")]
    docassemble: Option<Option<PathBuf>>,
}

impl Options {
    fn source(&self) -> Source {
        match self.docassemble.clone() {
            Some(file) => {
                let variable = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
                let elsewhere =
                    || variable("DA_CONFIG").or_else(|| Some(variable("DA_ROOT")?.join("config/config.yml")));
                let file = file.or_else(elsewhere).unwrap_or_else(|| DOCASSEMBLE.into());
                Source::Docassemble { file, overlay: self.config.clone() }
            }
            None => Source::Native(self.config.clone().unwrap_or_else(|| CONFIGURATION.into())),
        }
    }
}

/// The configuration unless another one is named.
const CONFIGURATION: &str = "/etc/vestibule/vestibule.yml";
/// What the sample for supervisord adds to docassemble's.
const OVERLAY: &str = "/etc/vestibule/overlay.yml";
/// Where docassemble keeps its own configuration.
const DOCASSEMBLE: &str = "/usr/share/docassemble/config/config.yml";

/// What of the environment `serve` reads, besides the variables that a configuration names.
const ENVIRONMENT: &str = "\
Environment:
  VESTIBULE_LOG         What is told on standard error: `info` (the default), `debug`, `vestibule=debug,hyper=warn`
  RUST_LOG              The same, where VESTIBULE_LOG is not set
  VESTIBULE_LOG_FORMAT  `text` (the default), or `json`: one object a line";

/// What `check` holds a configuration against beyond its own text.
const INSPECTIONS: &[config::Inspection] = &[
    config::untrusted_sources,
    user::unusable,
    user::unusable_for_backends,
    access_log::faults,
    config::unusable_folders,
    tls::check,
    tls::storage::faults,
    secrets::faults,
];

/// `EX_CONFIG` of sysexits.h: a service manager can be told not to start again on it.
const REFUSED: u8 = 78;

fn with_source(options: &Options, act: impl FnOnce(&Source) -> ExitCode) -> ExitCode {
    act(&options.source())
}

fn serve(source: &Source, how: ServeOptions) -> ExitCode {
    let (source, options) = (source.clone(), process::Options { single: how.single, pid_file: how.pid_file });
    let ended = match how.takeover {
        None => process::serve(source, options),
        Some(0) => process::take_over(source, options),
        Some(form) => {
            return match process::would_take_over(&source, form) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            };
        }
    };
    match ended {
        Ok(Ended { cut, disorderly: 0 }) if cut.is_nothing() => ExitCode::SUCCESS,
        // The log has said what.
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &ServeError) -> ExitCode {
    complain(&chain(error));
    if error.is_refusal() { ExitCode::from(REFUSED) } else { ExitCode::FAILURE }
}

fn check(source: &Source) -> ExitCode {
    match config::check(source, INSPECTIONS) {
        Ok(plan) => {
            for warning in &plan.warnings {
                say(&format!("warning: {warning}\n"));
            }
            for Problem { at, problem } in tls::warnings(&plan) {
                say(&format!("warning: {at}: {problem}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{}\n", chain(&error)));
            ExitCode::from(REFUSED)
        }
    }
}

fn explain(source: &Source, outer: Option<Outer>) -> ExitCode {
    match (config::load(source), outer) {
        (Ok(plan), None) => {
            say(&config::explain(&plan));
            say(&proxies_as_seen(&plan));
        }
        (Ok(plan), Some(outer)) => say(&config::explain_outer(&plan, outer)),
        (Err(error), _) => return refused(&error),
    }
    ExitCode::SUCCESS
}

/// What requests have shown of the proxies in front, where a gateway with this configuration runs and we may ask it.
fn proxies_as_seen(plan: &config::Plan) -> String {
    let Some(socket) = plan.admin.as_ref().and_then(|admin| admin.socket.as_ref()) else { return String::new() };
    let asked = block_on(admin::client::get(socket, "/status"));
    let status: Option<admin::Status> =
        asked.ok().and_then(Result::ok).and_then(|answer| serde_json::from_slice(&answer.body).ok());
    status.map(|status| admin::render_hops(&status.hops)).unwrap_or_default()
}

/// The exit code of what has come to its end, or could not begin.
fn exit_code(ended: Result<(), Box<dyn Error>>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn refused(error: &ConfigError) -> ExitCode {
    complain(&chain(error));
    ExitCode::from(REFUSED)
}

fn status(source: &Source) -> ExitCode {
    with_admin(source, |socket| {
        let answer = block_on(admin::client::get(socket, "/status"))??;
        say(&admin::render_status(&serde_json::from_slice(&answer.body)?));
        Ok(ExitCode::SUCCESS)
    })
}

fn certificates(source: &Source) -> ExitCode {
    with_admin(source, |socket| {
        let answer = block_on(admin::client::get(socket, "/status"))??;
        say(&admin::render_certificates(&serde_json::from_slice(&answer.body)?));
        Ok(ExitCode::SUCCESS)
    })
}

/// Says what `source` would change of what the running gateway serves.
fn rehearse(source: &Source) -> ExitCode {
    with_admin(source, |socket| {
        let in_force = block_on(admin::client::get(socket, "/config"))??;
        let status = block_on(admin::client::get(socket, "/status"))??;
        let status: admin::Status = serde_json::from_slice(&status.body)?;
        let in_force = serde_json::from_slice(&in_force.body)
            .map_err(|error| format!("the running vestibule ({}) is of another version: {error}", status.version))?;
        Ok(match process::rehearse(source, &in_force, !status.processes.keeper) {
            Ok(words) => {
                say(&format!("{words}\n"));
                ExitCode::SUCCESS
            }
            Err(error) => refused(&error),
        })
    })
}

/// Has the running gateway carry out `order`, and says what came of it.
fn order(source: &Source, order: Order) -> ExitCode {
    post(source, &order.target())
}

/// Has it restart what is called `name`.
fn restart(source: &Source, name: &str) -> ExitCode {
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'));
    if !is_name {
        complain(&format!("`{name}` is not the name of a backend or of a program"));
        return ExitCode::FAILURE;
    }
    post(source, &format!("/restart/{name}"))
}

fn post(source: &Source, target: &str) -> ExitCode {
    with_admin(source, |socket| {
        Ok(match block_on(admin::client::order(socket, target))?? {
            Ok(done) => {
                say(&format!("{done}\n"));
                ExitCode::SUCCESS
            }
            Err(refused) => {
                complain(&refused);
                ExitCode::FAILURE
            }
        })
    })
}

fn with_admin(source: &Source, ask: impl FnOnce(&Path) -> Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    match config::admin_socket(source) {
        Ok(Some(socket)) => ask(&socket).unwrap_or_else(|error| {
            complain(&chain(error.as_ref()));
            ExitCode::FAILURE
        }),
        Ok(None) => {
            complain(
                "the configuration has no `admin` socket; add for example `admin: unix:/run/vestibule/admin.sock`",
            );
            ExitCode::FAILURE
        }
        Err(error) => refused(&error),
    }
}

fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = config::parse_wait(text).filter(|wait| *wait <= admin::LONGEST_WAIT);
    wait.ok_or_else(|| "expected a time such as `10s`, an hour at most".to_owned())
}

/// Who reads our output may have gone; that is nobody's fault.
fn say(text: &str) {
    drop(io::stdout().lock().write_all(text.as_bytes()));
}

fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
