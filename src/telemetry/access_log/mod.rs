//! The access log: one line for each request, whatever became of it.
//!
//! The request path fills a [`Record`]; a [`Format`] makes a line of it; a [`LogWriter`] takes the line in memory and
//! one thread of the [`AccessLog`] writes it, so that a slow disk never holds up traffic.
//!
//! A line never contains a control character, a line break or half of another line, whatever a client sent. Credentials
//! are not in a [`Record`], so no format can log them; the query string is part of the target and is logged.

mod clock;
mod escape;
mod format;
mod record;
mod writer;

pub use format::{Field, Format, FormatError, fields};
pub use record::{Record, RequestId, Started, Tls};
pub use writer::{AccessLog, BUFFER_LIMIT, FLUSH_INTERVAL, LogWriter, Unwritten, stdout};

use crate::config::{Plan, Problem};

/// A format of the access log that is none.
pub fn faults(plan: &Plan) -> Vec<Problem> {
    let Some(Err(error)) = plan.access_log.as_ref().map(|log| Format::compile(&log.format)) else {
        return Vec::new();
    };
    let mut problem = error.to_string();
    if matches!(error, FormatError::UnknownField { nearest: None, .. }) {
        let known: Vec<_> = fields().iter().map(|field| field.name).collect();
        problem.push_str("; there are ");
        problem.push_str(&known.join(", "));
    }
    vec![Problem { at: "access_log.format".to_owned(), problem }]
}
