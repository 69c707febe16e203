//! The command line: which configuration, what to do with it, and the exit code that says how it went.
//!
//! 0: a clean stop, or nothing to complain of · 1: could not start or go on · 2: bad command line
//! (clap's own) · 78 (`EX_CONFIG`): the configuration is refused, and trying again will not help.

use std::{
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    admin,
    config::{self, AdminAddress, ConfigError, Outer, Plan, Problem, Source},
    demo,
    telemetry::{
        access_log::{self, Format, FormatError},
        events,
    },
    tls,
};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    events::init();
    // clap ends a bad command line with its own message and 2.
    match Command::parse().verb {
        Verb::Serve(options) => with_source(&options, serve),
        Verb::Demo => started(demo::run()),
        Verb::Status(options) => with_source(&options, status),
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
    /// Run in the foreground until SIGTERM or SIGINT.
    #[command(after_help = ENVIRONMENT)]
    Serve(Options),
    /// Show a front door with a small application behind it, and print its addresses.
    Demo,
    /// Ask the running gateway how it is, through the `admin` socket of the configuration.
    Status(Options),
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

#[derive(Args)]
struct Options {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/vestibule/vestibule.yml")]
    config: PathBuf,
    // Not in the help until it works; known, so that who tries it is told so.
    #[arg(long, value_name = "FILE", hide = true, num_args = 0..=1, default_missing_value = DOCASSEMBLE)]
    docassemble: Option<PathBuf>,
}

/// Where docassemble keeps its own configuration.
const DOCASSEMBLE: &str = "/usr/share/docassemble/config/config.yml";

/// What of the environment `serve` reads, besides the variables that a configuration names.
const ENVIRONMENT: &str = "\
Environment:
  VESTIBULE_LOG         What is told on standard error: `info` (the default), `debug`, `vestibule=debug,hyper=warn`
  RUST_LOG              The same, where VESTIBULE_LOG is not set
  VESTIBULE_LOG_FORMAT  `text` (the default), or `json`: one object a line";

/// What `check` holds a configuration against beyond its own text.
const INSPECTIONS: &[config::Inspection] = &[log_format, config::unusable_folders, tls::check];

/// What a start is refused for: no folder, which may come with the application, and no date of a certificate.
pub(crate) const AT_A_START: &[config::Inspection] = &[log_format, tls::faults];

/// `EX_CONFIG` of sysexits.h: a service manager can be told not to start again on it.
const REFUSED: u8 = 78;

fn with_source(options: &Options, act: impl FnOnce(&Source) -> ExitCode) -> ExitCode {
    if options.docassemble.is_some() {
        complain("--docassemble is not supported yet; write a configuration and name it with --config");
        return ExitCode::from(REFUSED);
    }
    act(&Source { file: options.config.clone() })
}

fn serve(source: &Source) -> ExitCode {
    // Before anything is begun: a refused configuration is not a failed start.
    match config::check(source, AT_A_START) {
        Ok(_) => todo!(),
        Err(error) => refused(&error),
    }
}

fn check(source: &Source) -> ExitCode {
    match config::check(source, INSPECTIONS) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{}\n", chain(&error)));
            ExitCode::from(REFUSED)
        }
    }
}

fn explain(source: &Source, outer: Option<Outer>) -> ExitCode {
    match (config::load(source), outer) {
        (Ok(plan), None) => say(&config::explain(&plan)),
        (Ok(plan), Some(outer)) => say(&config::explain_outer(&plan, outer)),
        (Err(error), _) => return refused(&error),
    }
    ExitCode::SUCCESS
}

fn started(ended: Result<(), Box<dyn Error>>) -> ExitCode {
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
    match config::load(source) {
        Ok(plan) => started(ask(&plan)),
        Err(error) => refused(&error),
    }
}

fn ask(plan: &Plan) -> Result<(), Box<dyn Error>> {
    let Some(AdminAddress::Unix(socket)) = &plan.admin else {
        return Err("the configuration has no `admin`; add for example `admin: unix:/run/vestibule/admin.sock`".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(admin::client::get(socket, "/status"))?;
    say(&admin::render_status(&serde_json::from_slice(&answer.body)?));
    Ok(())
}

/// A template of the access log that is not one.
fn log_format(plan: &Plan) -> Vec<Problem> {
    let Some(Err(error)) = plan.access_log.as_ref().map(|log| Format::compile(&log.format)) else {
        return Vec::new();
    };
    let mut problem = error.to_string();
    if matches!(error, FormatError::UnknownField { nearest: None, .. }) {
        let known: Vec<_> = access_log::fields().iter().map(|field| field.name).collect();
        problem.push_str("; there are ");
        problem.push_str(&known.join(", "));
    }
    vec![Problem { at: "access_log.format".to_owned(), problem }]
}

/// The error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Who reads our output may have gone; that is nobody's fault.
fn say(text: &str) {
    drop(io::stdout().lock().write_all(text.as_bytes()));
}

fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
