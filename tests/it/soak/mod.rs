//! Nothing is ever dropped: load of every kind, and everything that is done to a front door in its life meanwhile.
//!
//! The built program runs as it does in production: keeper and worker, on fixed addresses, with its own commands. A
//! request may fail only inside of a worker that was killed, a websocket end only there or when a drain is over. What
//! is told as a failure, what as a retry, is in [`ledger`]; who does what to whom, in [`scenario`] and [`peers`].

mod backends;
mod h1;
mod h2;
mod job;
mod ledger;
mod load;
mod peers;
mod report;
mod scenario;
mod websocket;

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use self::{
    ledger::{Act, Blame, End, Kind, Outcome, quantile},
    load::Mix,
    peers::{Caddy, Nginx, Peer, Vestibule},
    scenario::{DRAIN, Plan, Run, Scene},
};

#[test]
fn nothing_on_purpose_drops_a_request_and_a_kill_only_what_was_inside() {
    let plan = Plan { over: Duration::from_secs(50), mix: Mix::WHOLE };
    let Some(run) = in_a_runtime(scenario::run::<Vestibule>(&plan)) else { return };

    let story = story(&run);

    assert_nothing_dropped(&run, &story);
}

#[test]
fn p99_during_reloads_is_at_most_twice_that_without() {
    in_a_runtime(async {
        let Some(mut scene) = Scene::<Vestibule>::begin(Mix::SMALL).await else { return };
        let mut attempts = Vec::new();
        for _ in 0..3 {
            let (quiet, busy) = compare(&mut scene).await;
            attempts.push(format!("{quiet:?} without, {busy:?} during reloads"));
            eprintln!("p99: {}", attempts.last().unwrap());
            if busy <= 2 * quiet {
                return;
            }
        }
        panic!("more than twice in each attempt: {attempts:#?}");
    });
}

/// The p99 of windows without reloads and of windows full of them, which take turns so that noise meets both.
async fn compare<P: Peer>(scene: &mut Scene<P>) -> (Duration, Duration) {
    let mut windows = Vec::new();
    for number in 0..12 {
        let reloading = number % 2 == 1;
        let begun = Instant::now();
        let mut next = tokio::time::Instant::now();
        for _ in 0..8 {
            if reloading {
                scene.act(Act::Reload).await;
            }
            next += Duration::from_millis(250);
            tokio::time::sleep_until(next).await;
        }
        windows.push((begun, Instant::now(), reloading));
    }
    let entries = scene.ledger.entries();
    assert_all_done(&entries.events);
    let p99 = |wanted: bool| {
        let within = |moment: Instant| {
            windows.iter().any(|(begun, ended, reloading)| *reloading == wanted && (*begun..*ended).contains(&moment))
        };
        quantile(&entries.latencies(|exchange| within(exchange.begun)), 0.99)
    };
    (p99(false), p99(true))
}

#[test]
fn memory_after_500_reloads_is_as_after_5() {
    in_a_runtime(async {
        let Some(mut scene) = Scene::<Vestibule>::begin(Mix::SMALL).await else { return };
        let mut after_5 = 0;
        for number in 1..=500 {
            scene.act(Act::Reload).await;
            if number == 5 {
                after_5 = settled(&mut scene).await;
            }
        }
        let after_500 = settled(&mut scene).await;
        assert_all_done(&scene.ledger.entries().events);

        eprintln!("{after_5} bytes after 5 reloads, {after_500} after 500");
        let most = after_5 + after_5 / 10 + (4 << 20);
        assert!(after_500 <= most, "{after_5} bytes after 5 reloads, {after_500} after 500");
    });
}

/// The least that it has over some hundred requests: what they hold themselves is not what stays.
async fn settled<P: Peer>(scene: &mut Scene<P>) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..15 {
        scene.answers(100).await;
        least = least.min(scene.memory());
    }
    least
}

/// `make soak`: as long as it says, with everybody it names, and a table at the end.
#[test]
fn soak() {
    let Some(seconds) = std::env::var("SOAK_SECONDS").ok() else { return };
    let plan = Plan { over: Duration::from_secs(seconds.parse().expect("SOAK_SECONDS is a number")), mix: Mix::WHOLE };
    let peers = std::env::var("SOAK_PEERS").unwrap_or_else(|_| "vestibule nginx caddy".to_owned());
    let mut runs = Vec::new();
    for peer in peers.split_whitespace() {
        eprintln!("{peer}: {seconds} s");
        let run = match peer {
            "vestibule" => in_a_runtime(scenario::run::<Vestibule>(&plan)),
            "nginx" => in_a_runtime(scenario::run::<Nginx>(&plan)),
            "caddy" => in_a_runtime(scenario::run::<Caddy>(&plan)),
            other => panic!("SOAK_PEERS: there are vestibule, nginx and caddy, and no `{other}`"),
        };
        if let Some(run) = run {
            eprintln!("{}", story(&run));
            runs.push(run);
        }
    }
    assert!(!runs.is_empty(), "nobody to put to the test is installed");
    eprintln!("{}", report::summary(&runs));
    for run in runs.iter().filter(|run| run.name == Vestibule::NAME) {
        assert_nothing_dropped(run, "see above");
    }
}

/// What was done in a run, and what should not have happened.
fn story(run: &Run) -> String {
    let faults = report::faults(run);
    let faults = if faults.is_empty() { "nothing failed that is not excused\n" } else { &faults };
    format!("{faults}\n{}\n{}", report::summary(std::slice::from_ref(run)), report::acts(run))
}

/// The claim of this module.
fn assert_nothing_dropped(run: &Run, story: &str) {
    let entries = &run.entries;
    let dropped = entries.failures().filter(|(_, blame)| *blame == Blame::Nobody).count();
    assert_eq!(dropped, 0, "requests that failed without an excuse\n{story}");
    for (session, blame) in entries.cuts(DRAIN) {
        let excused = match blame {
            Blame::Kill => true,
            Blame::Drain => matches!(session.end, End::Closed(Some(1001), _)),
            Blame::Nobody => false,
        };
        assert!(excused, "a websocket: {}\n{story}", session.end);
    }
    assert_all_done(&entries.events);
    for act in Act::ALL {
        let done = entries.events.iter().filter(|event| event.act == act).count();
        assert_eq!(done, scenario::count(act) as usize, "{act}\n{story}");
    }
    for kind in [Kind::Get, Kind::Slow, Kind::Post, Kind::Upload, Kind::Download, Kind::Websocket] {
        let answered = entries.exchanges.iter().any(|exchange| exchange.kind == kind && exchange.error.is_none());
        assert!(answered, "no {kind:?} at all\n{story}");
    }
    let retried =
        entries.exchanges.iter().filter(|exchange| exchange.retried > 0 && !entries.is_after_a_kill(exchange));
    assert_eq!(retried.count(), 0, "kept connections that were closed under a request, not by a kill\n{story}");
    for session in entries.goodbyes() {
        assert!(matches!(session.end, End::Closed(Some(1001), _)), "at the stop: {}\n{story}", session.end);
    }
    assert_eq!(run.stop, Ok(()), "{story}");
    let log = run.log_faults();
    assert!(log.is_empty(), "{} faults in the log, such as {:?}\n{story}", log.len(), &log[..log.len().min(5)]);
}

fn assert_all_done(events: &[ledger::Event]) {
    for event in events {
        assert_eq!(event.outcome, Outcome::Done, "{}", event.act);
    }
}

/// One at a time: each has load enough for a machine of two processors.
fn in_a_runtime<T>(future: impl Future<Output = T>) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    // Whoever has failed before has had its turn too.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}
