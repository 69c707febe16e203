//! What an operator can act on, in a file of its own: one line an event, as readers of nginx's error log know it.
//!
//! `2026/11/26 09:00:00 [warn] 4711#0: endpoint cannot be connected to, upstream: "app"`. Each line is one write to a file
//! that was opened to append, so that the lines of several processes stay whole. It is written whatever `VESTIBULE_LOG` leaves out
//! on standard error.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::Write as _,
    process,
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use jiff::Zoned;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Where lines of this process go; nowhere until it is said.
static FILE: ArcSwapOption<File> = ArcSwapOption::const_empty();

/// Writes lines to `file` from now on; `None`: to none.
pub fn write_to(file: Option<File>) {
    FILE.store(file.map(Arc::new));
}

/// Writes events of `warn` and `error`.
pub(super) struct ErrorLog;

impl<S: Subscriber> Layer<S> for ErrorLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let file = FILE.load();
        if let Some(file) = &*file {
            // There is nobody to tell.
            (&**file).write_all(line(event).as_bytes()).ok();
        }
    }
}

fn line(event: &Event<'_>) -> String {
    let level = if *event.metadata().level() == Level::ERROR { "error" } else { "warn" };
    let mut text = Text::default();
    event.record(&mut text);
    let now = Zoned::now().strftime("%Y/%m/%d %H:%M:%S").to_string();
    let Text { message, fields } = text;
    let mut line =
        format!("{now} [{level}] {}#0: {message}{fields}", process::id()).replace(char::is_control, "\u{fffd}");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
    }
    line.push('\n');
    line
}

/// The message of an event, and its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A string takes every write.
        match field.name() {
            "message" => write!(self.message, "{value:?}").ok(),
            name => write!(self.fields, ", {name}: {value:?}").ok(),
        };
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        write!(self.fields, ", {}: {}", field.name(), super::chain(value)).ok();
    }
}

/// Characters of one line.
const LONGEST: usize = 4000;

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use tracing::{error, info, subscriber::with_default, warn};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_line_is_what_readers_of_nginx_know_and_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("error.log");
        write_to(Some(File::options().append(true).create(true).open(&path).unwrap()));
        with_default(tracing_subscriber::registry().with(ErrorLog), || {
            info!("not for this log");
            warn!(upstream = "app", places = 6, "two\nlines");
            let cause = io::Error::other("no room");
            error!(error = &cause as &dyn std::error::Error, "cannot write");
            error!("{}", "x".repeat(9000));
        });
        write_to(None);
        with_default(tracing_subscriber::registry().with(ErrorLog), || error!("after"));

        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let pid = process::id();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].ends_with(&format!(" [warn] {pid}#0: two\u{fffd}lines, upstream: \"app\", places: 6")),
            "{text}"
        );
        assert!(lines[1].ends_with(&format!(" [error] {pid}#0: cannot write, error: no room")), "{text}");
        let (date, rest) = lines[0].split_at(19);
        assert!(rest.starts_with(" [") && date.as_bytes()[4] == b'/' && date.as_bytes()[13] == b':', "{date}");
        assert!(lines[2].chars().count() <= LONGEST, "bounded");
    }
}
