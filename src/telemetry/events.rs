//! The event log: what happens to the gateway, on standard error.
//!
//! `VESTIBULE_LOG`, or else `RUST_LOG`, says what is wanted (`info` by default; `vestibule=debug,hyper=warn`).
//! `VESTIBULE_LOG_FORMAT=json` writes one JSON object a line. Warnings and errors may go to a file as well ([`super::error_log`]).

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, IsTerminal},
    panic::{self, PanicHookInfo},
    thread,
};

use tracing::{Subscriber, error, warn};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::LevelFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
};

use super::error_log::ErrorLog;

/// Sends the events of this process to standard error, panics as well. The binary calls it first.
///
/// A filter that cannot be parsed is told of and `info` is used. Where events are already taken care of, in a test for
/// one, nothing changes.
pub fn init() {
    let wanted = env::var("VESTIBULE_LOG").or_else(|_| env::var("RUST_LOG")).ok();
    let (filter, refused) = filter(wanted.as_deref());
    let named = env::var("VESTIBULE_LOG_FORMAT").ok();
    let (shape, unknown) = Shape::named(named.as_deref());
    let installed = match shape {
        Shape::Text => {
            let colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            tracing::subscriber::set_global_default(text(filter, colours, io::stderr))
        }
        Shape::Json => tracing::subscriber::set_global_default(json(filter, io::stderr)),
    };
    if installed.is_ok() {
        panic::set_hook(Box::new(tell_panic));
        if let Some(refused) = refused {
            warn!(filter = refused, "VESTIBULE_LOG or RUST_LOG is not a filter; using `info`");
        }
        if let Some(unknown) = unknown {
            warn!(format = unknown, "VESTIBULE_LOG_FORMAT is neither `text` nor `json`; using `text`");
        }
    }
}

/// A panic as an event like any other: one line, at the place where it began.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let location = panic.location().map(tracing::field::display);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(backtrace));
    // What it says may quote what a client sent.
    let said = text.unwrap_or("nothing that is text");
    error!(location, said, thread = thread::current().name(), backtrace, "a panic: a fault of vestibule's own");
}

/// The filter `wanted` asks for, and `wanted` itself where it is not one.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<&str>) {
    let wanted = wanted.map(str::trim).filter(|wanted| !wanted.is_empty());
    match wanted.map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(_)) => (EnvFilter::new(DEFAULT), wanted),
        None => (EnvFilter::new(DEFAULT), None),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    Json,
}

impl Shape {
    /// The shape `wanted` names, and `wanted` itself where it names none.
    fn named(wanted: Option<&str>) -> (Self, Option<&str>) {
        match wanted {
            Some("json") => (Self::Json, None),
            None | Some("" | "text") => (Self::Text, None),
            Some(unknown) => (Self::Text, Some(unknown)),
        }
    }
}

fn text<W>(filter: EnvFilter, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::layer().compact().with_ansi(colours).with_writer(writer);
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(ErrorLog.with_filter(LevelFilter::WARN))
}

fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::layer().json().flatten_event(true).with_writer(writer);
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(ErrorLog.with_filter(LevelFilter::WARN))
}

const DEFAULT: &str = "info";

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use tracing::{debug, info, subscriber::with_default};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        fn writer(&self) -> impl Fn() -> Self + Send + Sync + use<> {
            let kept = self.clone();
            move || kept.clone()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_is_one_plain_line_an_event_at_info_and_above() {
        let kept = Kept::default();

        with_default(text(filter(None).0, false, kept.writer()), || {
            info!(upstream = "app", probes = 3, "endpoint is down");
            debug!("not asked for");
        });

        let text = kept.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("INFO") && text.contains("endpoint is down upstream=\"app\" probes=3"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn json_is_one_object_an_event_with_its_fields() {
        let kept = Kept::default();

        with_default(json(filter(Some("debug")).0, kept.writer()), || {
            debug!(peer = "a\n\"b\"", "connection is closed");
        });

        let object: serde_json::Value = serde_json::from_str(&kept.text()).unwrap();
        assert_eq!(object["message"], "connection is closed");
        assert_eq!(object["peer"], "a\n\"b\"");
        assert_eq!(object["level"], "DEBUG");
    }

    #[test]
    fn a_panic_is_one_event_with_its_place_and_nothing_beside_it() {
        // The hook is the whole process's: in one of its own.
        const CHILD: &str = "VESTIBULE_TEST_PANICS";
        if env::var_os(CHILD).is_some() {
            init();
            drop(panic::catch_unwind(|| panic!("two\nlines")));
            return;
        }
        let child = std::process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "telemetry::events::tests::a_panic_is_one_event_with_its_place_and_nothing_beside_it"])
            .args(["--nocapture", "--quiet"])
            .envs([(CHILD, "1"), ("VESTIBULE_LOG_FORMAT", "json"), ("RUST_BACKTRACE", "0")])
            .output()
            .unwrap();

        let told = String::from_utf8(child.stderr).unwrap();
        assert!(child.status.success(), "{told}");
        let object: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!(object["level"], "ERROR");
        assert_eq!(object["said"], "two\nlines");
        assert!(object["location"].as_str().unwrap().contains("events.rs:"), "{told}");
    }

    #[test]
    fn a_filter_that_is_none_falls_back_to_info_and_is_told_of() {
        for (wanted, expected, refused) in [
            (None, "info", None),
            (Some(" "), "info", None),
            (Some("vestibule=debug"), "vestibule=debug", None),
            (Some("vestibule=loud"), "info", Some("vestibule=loud")),
        ] {
            let (filter, told) = filter(wanted);
            assert_eq!((filter.to_string().as_str(), told), (expected, refused), "{wanted:?}");
        }
    }

    #[test]
    fn an_unknown_format_falls_back_to_text_and_is_told_of() {
        for (wanted, expected) in [
            (None, (Shape::Text, None)),
            (Some("text"), (Shape::Text, None)),
            (Some("json"), (Shape::Json, None)),
            (Some("xml"), (Shape::Text, Some("xml"))),
        ] {
            assert_eq!(Shape::named(wanted), expected);
        }
    }
}
