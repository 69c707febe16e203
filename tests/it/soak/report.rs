//! Tables of what happened.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use super::{
    ledger::{Act, Blame, End, Exchange, Kind, Outcome, Protocol, quantile},
    scenario::{DRAIN, Run},
};

/// All runs beside each other.
pub(super) fn summary(runs: &[Run]) -> String {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(runs.iter().map(|run| run.name.to_owned()));
    let columns: Vec<_> = runs.iter().map(column).collect();
    for (number, (name, _)) in columns[0].iter().enumerate() {
        let mut row = vec![(*name).to_owned()];
        row.extend(columns.iter().map(|column| column[number].1.clone()));
        rows.push(row);
    }
    table(&rows)
}

/// What there is to say of one run.
fn column(run: &Run) -> Vec<(&'static str, String)> {
    let entries = &run.entries;
    let failed = |chosen: &dyn Fn(&Exchange) -> bool| {
        let (mut on_purpose, mut by_kill) = (0, 0);
        for (_, blame) in entries.failures().filter(|(exchange, _)| chosen(exchange)) {
            *if blame == Blame::Nobody { &mut on_purpose } else { &mut by_kill } += 1;
        }
        format!("{on_purpose} + {by_kill}")
    };
    let is_small = |exchange: &Exchange| matches!(exchange.kind, Kind::Get | Kind::Slow | Kind::Post);
    let cut = |wanted: Blame| entries.cuts(DRAIN).filter(|(_, blame)| *blame == wanted).count();
    let answered = |kind: Kind| {
        entries
            .exchanges
            .iter()
            .filter(|exchange| exchange.kind == kind && exchange.error.is_none())
            .count()
            .to_string()
    };
    let all = entries.latencies(|_| true);
    let in_reloads = entries.latencies(|exchange| entries.in_a_reload(exchange));
    let outside = entries.latencies(|exchange| !entries.in_a_reload(exchange));
    let mut recoveries: Vec<_> = entries.kills().filter_map(|kill| kill.recovery).collect();
    recoveries.sort_unstable();
    let greeted = entries.goodbyes().filter(|session| matches!(session.end, End::Closed(Some(1001), _))).count();
    let mebibytes = |bytes: Option<&u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    vec![
        ("seconds", run.lasted.as_secs().to_string()),
        ("requests", entries.exchanges.len().to_string()),
        ("  uploads of 100 MiB answered", answered(Kind::Upload)),
        ("  downloads of 100 MiB whole", answered(Kind::Download)),
        ("failed (on purpose + by kills)", failed(&|_| true)),
        ("  h1", failed(&|exchange| is_small(exchange) && exchange.protocol == Protocol::H1)),
        ("  h2", failed(&|exchange| is_small(exchange) && exchange.protocol == Protocol::H2)),
        ("  uploads", failed(&|exchange| exchange.kind == Kind::Upload)),
        ("  downloads", failed(&|exchange| exchange.kind == Kind::Download)),
        ("  websocket handshakes", failed(&|exchange| exchange.kind == Kind::Websocket)),
        ("websocket messages", entries.sessions.iter().map(|session| session.messages).sum::<u64>().to_string()),
        ("websockets cut (on purpose)", cut(Blame::Nobody).to_string()),
        ("  at the end of a drain", cut(Blame::Drain).to_string()),
        ("  by a kill", cut(Blame::Kill).to_string()),
        ("closed with 1001 at the stop", format!("{greeted} of {}", entries.goodbyes().count())),
        ("retried on a new connection (h1 GET)", sum(run, |exchange| exchange.retried)),
        ("sent again, unprocessed (h2)", sum(run, |exchange| exchange.resent)),
        ("p50", milliseconds(quantile(&all, 0.5))),
        ("p99", milliseconds(quantile(&all, 0.99))),
        ("p99 in reloads", milliseconds(quantile(&in_reloads, 0.99))),
        ("p99 outside of them", milliseconds(quantile(&outside, 0.99))),
        ("answers again after a kill, median", milliseconds(quantile(&recoveries, 0.5))),
        ("answers again after a kill, longest", milliseconds(quantile(&recoveries, 1.0))),
        ("memory at first", mebibytes(entries.memory.first())),
        ("memory at last", mebibytes(entries.memory.last())),
        ("memory at most", mebibytes(entries.memory.iter().max())),
        ("lines of the log", run.log.len().to_string()),
        ("stop", run.stop.as_ref().map_or_else(|error| first_line(error), |()| "clean".to_owned())),
    ]
}

fn sum(run: &Run, of: impl Fn(&Exchange) -> u32) -> String {
    run.entries.exchanges.iter().map(of).sum::<u32>().to_string()
}

/// What was done in `run`, and what followed each kind.
pub(super) fn acts(run: &Run) -> String {
    let entries = &run.entries;
    let head = ["", "done", "not", "median", "longest", "failed since", "excused", "cut since", "retried since"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for act in Act::ALL {
        let events: Vec<_> = entries.events.iter().filter(|event| event.act == act).collect();
        let not_possible = events.iter().find_map(|event| match event.outcome {
            Outcome::NotPossible(why) => Some(why),
            _ => None,
        });
        if let Some(why) = not_possible {
            rows.push(vec![act.to_string(), format!("not possible: {why}")]);
            continue;
        }
        let done = events.iter().filter(|event| event.outcome == Outcome::Done).count();
        let mut times: Vec<_> = events.iter().map(|event| event.ended - event.begun).collect();
        times.sort_unstable();
        // Each failure is told where the last act before it is.
        let since = |moment| entries.last_before(moment).is_some_and(|event| event.act == act);
        let failures = || entries.failures().filter(|(exchange, _)| since(exchange.ended));
        let excused = failures().filter(|(_, blame)| *blame != Blame::Nobody).count();
        let cut = entries.cuts(DRAIN).filter(|(session, _)| since(session.ended)).count();
        let retried = entries.exchanges.iter().filter(|exchange| since(exchange.begun));
        rows.push(vec![
            act.to_string(),
            done.to_string(),
            (events.len() - done).to_string(),
            milliseconds(quantile(&times, 0.5)),
            milliseconds(quantile(&times, 1.0)),
            failures().count().to_string(),
            excused.to_string(),
            cut.to_string(),
            retried.map(|exchange| exchange.retried).sum::<u32>().to_string(),
        ]);
    }
    table(&rows)
}

/// The failures, cuts and failed acts that nothing excuses: how often each kind, and the first of them one by one. Empty
/// where there are none.
pub(super) fn faults(run: &Run) -> String {
    let mut faults = unexcused(run);
    faults.sort_by_key(|fault| fault.at);
    if faults.is_empty() {
        return String::new();
    }
    let mut kinds: BTreeMap<[&str; 3], u32> = BTreeMap::new();
    for fault in &faults {
        *kinds.entry([&fault.after, &fault.what, &fault.error]).or_default() += 1;
    }
    let kinds: Vec<_> = kinds
        .iter()
        .map(|([after, what, error], count)| {
            vec![count.to_string(), format!("after {after}"), (*what).to_owned(), (*error).to_owned()]
        })
        .collect();
    let at = |moment: Instant| format!("{:.3}", moment.saturating_duration_since(run.begun).as_secs_f64());
    let mut first = vec![["at", "begun", "connected", "after", "", ""].map(str::to_owned).to_vec()];
    first.extend(faults.iter().take(SHOWN).map(|fault| {
        let connected = fault.connected.map_or_else(|| "never".to_owned(), at);
        vec![at(fault.at), at(fault.begun), connected, fault.after.clone(), fault.what.clone(), fault.error.clone()]
    }));
    format!("{}\n{}", table(&kinds), table(&first))
}

/// Something that should not have happened.
struct Fault {
    at: Instant,
    begun: Instant,
    connected: Option<Instant>,
    /// The act before it.
    after: String,
    what: String,
    error: String,
}

fn unexcused(run: &Run) -> Vec<Fault> {
    let entries = &run.entries;
    let after =
        |moment| entries.last_before(moment).map_or_else(|| "the start".to_owned(), |event| event.act.to_string());
    let mut faults = Vec::new();
    for (exchange, _) in entries.failures().filter(|(_, blame)| *blame == Blame::Nobody) {
        faults.push(Fault {
            at: exchange.ended,
            begun: exchange.begun,
            connected: exchange.connected,
            after: after(exchange.ended),
            what: format!("{:?} over {:?}", exchange.kind, exchange.protocol),
            error: exchange.error.as_deref().map_or_else(String::new, first_line),
        });
    }
    for (session, _) in entries.cuts(DRAIN).filter(|(_, blame)| *blame == Blame::Nobody) {
        faults.push(Fault {
            at: session.ended,
            begun: session.opened,
            connected: Some(session.opened),
            after: after(session.ended),
            what: "open websocket".to_owned(),
            error: session.end.to_string(),
        });
    }
    for event in &entries.events {
        if let Outcome::Failed(error) = &event.outcome {
            faults.push(Fault {
                at: event.ended,
                begun: event.begun,
                connected: None,
                after: event.act.to_string(),
                what: "was not done".to_owned(),
                error: error.clone(),
            });
        }
    }
    faults
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        // A lone remark may be longer than its column.
        let cells = rows.iter().filter(|row| row.len() > column + 1 || columns == column + 1);
        cells.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).unwrap();
    }
    text
}

/// How many failures are told one by one.
const SHOWN: usize = 20;
