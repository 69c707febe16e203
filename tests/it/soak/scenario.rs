//! The run: load from beginning to end, and meanwhile everything that is done to a front door in its life.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::time::{sleep, sleep_until};

use super::{
    backends::{Echo, Gunicorn},
    h1,
    job::{Job, Large},
    ledger::{Act, Blame, Entries, Event, Kind, Ledger, Outcome},
    load::{Load, Mix},
    peers::{Change, Peer, Site, family, is_gone, memory, open_folder, send_signal, until},
};

/// What is done, how often, in how long.
pub(super) struct Plan {
    /// Acts are spread over this; one that is late is done as soon as those before it are.
    pub(super) over: Duration,
    pub(super) mix: Mix,
}

impl Plan {
    /// When each act is due.
    fn schedule(&self) -> Vec<(Duration, Act)> {
        let mut schedule = Vec::new();
        for (phase, act) in (1..).zip(Act::ALL) {
            // Not all kinds at the same moments.
            let due = |number| self.over * (number * 7 + phase) / (count(act) * 7);
            schedule.extend((0..count(act)).map(|number| (due(number), act)));
        }
        schedule.sort();
        schedule
    }
}

/// How often each is done in one run.
pub(super) fn count(act: Act) -> u32 {
    match act {
        Act::Reload => 50,
        Act::Certificate | Act::Rotation => 20,
        Act::Kill => 10,
        Act::Upgrade | Act::BackendRestart => 5,
    }
}

/// What came of a run.
pub(super) struct Run {
    pub(super) name: &'static str,
    pub(super) begun: Instant,
    pub(super) lasted: Duration,
    pub(super) entries: Entries,
    pub(super) stop: Result<(), String>,
    pub(super) log: Vec<String>,
}

/// A peer with its backends, and load on it.
pub(super) struct Scene<P> {
    pub(super) peer: P,
    pub(super) ledger: Arc<Ledger>,
    pub(super) site: Site,
    load: Load,
    gunicorn: Gunicorn,
    _echo: Echo,
    changes: usize,
    rotations: usize,
}

impl<P: Peer> Scene<P> {
    /// `None` where something is not installed.
    pub(super) async fn begin(mix: Mix) -> Option<Self> {
        let folder = open_folder();
        let large = Large::new(BLOCKS);
        let gunicorn = Gunicorn::start(folder.path(), &large).await?;
        let echo = Echo::start().await;
        let site = Site::new(folder, gunicorn.socket.clone(), echo.address);
        let peer = P::start(&site).await?;
        let ledger = Arc::new(Ledger::new());
        let load = Load::start(&ledger, &site.target(), mix, &large);
        let mut scene = Self { peer, ledger, site, load, gunicorn, _echo: echo, changes: 0, rotations: 0 };
        scene.answers(500).await;
        Some(scene)
    }

    /// Waits for this many more answers.
    pub(super) async fn answers(&mut self, more: usize) {
        let ledger = Arc::clone(&self.ledger);
        let answered = || ledger.entries().exchanges.iter().filter(|exchange| exchange.error.is_none()).count();
        let enough = answered() + more;
        let waited = until("more answers", Duration::from_secs(60), async || answered() >= enough).await;
        waited.unwrap_or_else(|error| panic!("{}: {error}", P::NAME));
    }

    /// Does `act` and enters it.
    pub(super) async fn act(&mut self, act: Act) {
        let begun = Instant::now();
        let mut event = Event { act, begun, ended: begun, recovery: None, outcome: Outcome::Done };
        event.outcome = match act {
            Act::Kill => match self.kill(&mut event).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(error),
            },
            act => {
                let outcome = self.on_purpose(act).await;
                event.ended = Instant::now();
                outcome
            }
        };
        self.ledger.entries().events.push(event);
    }

    async fn on_purpose(&mut self, act: Act) -> Outcome {
        match act {
            Act::Reload => {
                self.changes += 1;
                let change = Change::number(self.changes);
                match self.peer.reload(&self.site, change).await {
                    Outcome::Done => self.has_changed(change).await.map_or_else(Outcome::Failed, |()| Outcome::Done),
                    other => other,
                }
            }
            Act::Certificate => {
                let new = self.site.renew();
                match self.peer.take_certificate().await {
                    Outcome::Done => {
                        let site = &self.site;
                        let shown = async || site.shown().await.as_ref() == Some(&new);
                        let shown = until("the new certificate", PATIENCE, shown).await;
                        shown.map_or_else(Outcome::Failed, |()| Outcome::Done)
                    }
                    other => other,
                }
            }
            Act::Rotation => {
                self.rotations += 1;
                let old = self.site.path(&format!("access.log.old-{}", self.rotations));
                self.peer.rotate(&old).await
            }
            Act::Upgrade => self.peer.upgrade().await,
            Act::BackendRestart => self.gunicorn.restart().await.map_or_else(Outcome::Failed, |()| Outcome::Done),
            Act::Kill => unreachable!("a kill is nothing that is done on purpose"),
        }
    }

    /// Whether what is new in the configuration is there.
    async fn has_changed(&self, change: Change) -> Result<(), String> {
        let asked = |address: SocketAddr, prefix: String| async move {
            let asked = h1::Client::new(address).exchange(&Job::probe(&prefix)).await;
            asked.error.map_or(Ok(()), |error| Err(format!("{prefix} at {address}: {error}")))
        };
        if let Some(listener) = change.listener {
            asked(listener, "/".to_owned()).await?;
        }
        if let Some(prefix) = change.route() {
            asked(self.site.plain, prefix).await?;
        }
        Ok(())
    }

    async fn kill(&mut self, event: &mut Event) -> Result<(), String> {
        let worker = self.peer.worker().await?;
        let address = self.site.plain;
        event.begun = Instant::now();
        send_signal(worker, Signal::KILL);
        let (answered, (gone, again)) = tokio::join!(answering(address), async {
            let gone = until("the killed worker to go", PATIENCE, async || is_gone(worker)).await;
            event.ended = Instant::now();
            (gone, self.peer.after_kill().await)
        });
        event.recovery = Some(answered - event.begun);
        gone.and(again)
    }

    fn remember(&self) {
        let bytes = self.memory();
        self.ledger.entries().memory.push(bytes);
    }

    /// What all processes of the peer have, in bytes.
    pub(super) fn memory(&self) -> u64 {
        memory(&family(&self.peer.roots()))
    }

    /// Ends the load, then the peer with the websockets still open.
    pub(super) async fn end(mut self) -> Run {
        self.load.stop_asking().await;
        self.ledger.entries().stopped = Some(Instant::now());
        let lasted = self.ledger.begun.elapsed();
        let stop = self.peer.stop().await;
        self.load.stop_talking(Duration::from_secs(2)).await;
        let entries = self.ledger.entries().clone();
        Run { name: P::NAME, begun: self.ledger.begun, lasted, entries, stop, log: self.site.log() }
    }
}

/// The whole scenario. `None` where something is not installed.
pub(super) async fn run<P: Peer>(plan: &Plan) -> Option<Run> {
    let mut scene = Scene::<P>::begin(plan.mix).await?;
    scene.remember();
    let begun = tokio::time::Instant::now();
    for (at, act) in plan.schedule() {
        sleep_until(begun + at).await;
        scene.act(act).await;
        scene.remember();
    }
    sleep_until(begun + plan.over).await;
    scene.answers(500).await;
    scene.remember();
    Some(scene.end().await)
}

/// Connects anew until there is an answer.
async fn answering(address: SocketAddr) -> Instant {
    loop {
        let exchange = h1::Client::new(address).exchange(&Job::probe("/")).await;
        if exchange.error.is_none() {
            return exchange.ended;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

impl Run {
    /// What the access log does not say, or says too often.
    pub(super) fn log_faults(&self) -> Vec<String> {
        let mut lines: HashMap<u64, u32> = HashMap::new();
        for id in self.log.iter().filter_map(|line| id(line)) {
            *lines.entry(id).or_default() += 1;
        }
        let mut faults = Vec::new();
        let at = |moment: Instant| moment.saturating_duration_since(self.begun).as_secs_f64();
        let around = |moment: Instant| {
            let near = self.entries.events.iter().filter(|event| moment + PATIENCE / 8 >= event.begun);
            let near = near.filter(|event| moment <= event.ended + PATIENCE / 8);
            let told: Vec<_> =
                near.map(|event| format!("{} {:.3}-{:.3}", event.act, at(event.begun), at(event.ended))).collect();
            format!("at {:.3}, with {}", at(moment), told.join(", "))
        };
        let mut hold = |id: u64, most: u32, least: u32, what: Kind, ended: Option<Instant>| {
            let found = lines.get(&id).copied().unwrap_or(0);
            if !(least..=most).contains(&found) {
                let around = ended.map(around).unwrap_or_default();
                faults.push(format!("{what:?} {id} has {found} lines {around}"));
            }
        };
        for exchange in &self.entries.exchanges {
            let whole = exchange.error.is_none() && exchange.kind != Kind::Websocket && !self.lost(exchange.ended);
            hold(
                exchange.id,
                1 + exchange.retried + exchange.resent,
                u32::from(whole),
                exchange.kind,
                Some(exchange.ended),
            );
        }
        let cuts: HashMap<_, _> = self.entries.cuts(DRAIN).map(|(session, blame)| (session.id, blame)).collect();
        for session in &self.entries.sessions {
            let least = u32::from(cuts.get(&session.id) != Some(&Blame::Kill));
            hold(session.id, 1, least, Kind::Websocket, None);
        }
        faults
    }

    /// Whether a line of this moment may have been lost in a worker that was killed.
    fn lost(&self, moment: Instant) -> bool {
        self.entries.kills().any(|kill| moment + WRITTEN >= kill.begun && moment <= kill.ended)
    }
}

/// The number of the request in a line of the log.
fn id(line: &str) -> Option<u64> {
    let (_, after) = line.split_once("n=")?;
    let digits = after.find(|next: char| !next.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok()
}

/// What a leaving process gives its requests and websockets, with every peer.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// Of a large body, which has 100 MiB.
const BLOCKS: u64 = 1600;

/// The longest wait for an act to be felt.
const PATIENCE: Duration = Duration::from_secs(20);

/// A line is in the file within this.
const WRITTEN: Duration = Duration::from_secs(1);
