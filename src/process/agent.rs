//! The agent: the process, or with `--single` the thread, that orders and fetches certificates.
//!
//! It speaks with certificate authorities and stores and keeps what comes of it in the storage, and does nothing else: it carries no
//! traffic, and reads nothing that a client has sent. What it takes from others (challenges to be answered, records to be
//! made at a DNS provider) it asks the keeper for. It may end at any moment: whatever it needs to go on is in the storage.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep, timeout_at},
};

use super::{
    link::{Link, LinkError},
    sandbox::{self, SandboxError},
    signals::Signals,
    worker::RunsAs,
};
use crate::{
    config::{AcmePlan, FetchPlan},
    tls::{
        PendingChallenge, Roots, SecretBytes,
        acme::{self, Asked, Care, Favour, Finding, OrderReport, Told, Turns, TxtRecord, flight::Severity},
        fetch::{self, Fetcher},
        storage::{Access, Storage},
    },
};

/// What the agent is told.
#[derive(Serialize, Deserialize)]
pub(super) enum ToAgent {
    /// Look after exactly these from now on.
    Serve(Box<Assignment>),
    /// The challenges of this version are answered.
    Answered { version: u64 },
    /// What came of a record that was to be made.
    Made { number: u64, outcome: Result<(), String> },
    /// Order all certificates anew, whatever their age, and look at those that are fetched.
    Renew,
    /// Say what is in the way of certificates.
    Check { number: u64 },
    /// Look for orders of other machines that have to be answered: somebody has asked for what is none of ours.
    Seek,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// The folder of this machine.
    pub(super) storage: PathBuf,
    pub(super) shared: Option<Access>,
    pub(super) certificates: Vec<Assigned>,
    pub(super) fetched: Vec<Fetched>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Fetched {
    pub(super) plan: FetchPlan,
    pub(super) access: Access,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Assigned {
    pub(super) plan: AcmePlan,
    /// What is in its `ca_file`.
    pub(super) roots: Option<Vec<u8>>,
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromAgent {
    /// Answer exactly these.
    Challenges { version: u64, pending: Vec<PendingChallenge> },
    /// This certificate has come, and is in the storage.
    Issued { id: String, bundle: SecretBytes },
    /// Make or remove a record with the command of this certificate.
    Dns { number: u64, id: String, record: TxtRecord },
    /// What is in the way, and whether a CA would refuse.
    Checked { number: u64, findings: Vec<Finding> },
    /// How this certificate stands.
    Stands { id: String, report: OrderReport },
}

/// Why an agent could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("the agent cannot make its runtime")]
    Runtime(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the agent cannot be confined")]
    Sandbox(#[from] SandboxError),
}

/// Looks after what the keeper at the other end of `link` assigns, until that has gone.
///
/// # Errors
///
/// It could not begin, or not speak with the keeper, which sees the end of the link.
pub(super) fn run(link: OwnedFd, runs_as: RunsAs) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let link = {
        let _entered = runtime.enter();
        Rc::new(Link::over(link)?)
    };
    // Signals are the keeper's business: its end is ours.
    let _caught = match runs_as {
        RunsAs::Process => Some(runtime.block_on(async { Signals::catch() })?),
        RunsAs::Thread => None,
    };
    let first = local.block_on(&runtime, link.receive::<ToAgent>())?;
    let Some((ToAgent::Serve(assignment), _)) = first else { return Ok(()) };
    let assignment = *assignment;
    // While the whole disk can be read.
    let roots = Roots::of_the_system();
    if runs_as == RunsAs::Process {
        // It reads no more of the network than the answers of those whom the configuration names, so that what the
        // sandbox does not keep it from is not worth a word of its own.
        sandbox::enter_agent(&assignment.storage)?;
    }
    local.block_on(&runtime, look_after(link, assignment, roots))
}

/// Orders and fetches what is assigned, from the first `assignment` on.
async fn look_after(link: Rc<Link>, assignment: Assignment, roots: Roots) -> Result<(), AgentError> {
    let (messages_sender, mut messages) = mpsc::channel(MESSAGES);
    spawn_local(receive(Rc::clone(&link), messages_sender));
    let (favours_sender, mut favours) = mpsc::channel(MESSAGES);
    let (told_sender, mut told) = mpsc::channel(MESSAGES);
    let (checked_sender, mut checked) = mpsc::channel(MESSAGES);
    let (shown_sender, mut shown) = mpsc::channel(1);
    let (ended_sender, mut ended) = mpsc::channel(MESSAGES);
    let mut agent = Agent {
        roots,
        storage: Storage::in_folder(assignment.storage.clone()),
        shown: shown_sender,
        seeker: None,
        answered_for_others: Vec::new(),
        favours: favours_sender,
        told: told_sender,
        turns: Arc::new(Turns::default()),
        assigned: Assignment::default(),
        cares: BTreeMap::new(),
        fetchers: BTreeMap::new(),
        pending: BTreeMap::new(),
        version: 0,
        answered: 0,
        has_changed: false,
        unanswered: Vec::new(),
        records: HashMap::new(),
        next_record: 0,
        checked: checked_sender,
        ended: ended_sender,
    };
    agent.serve(assignment);
    loop {
        let said = tokio::select! {
            message = messages.recv() => match message {
                Some(message) => {
                    agent.obey(message?);
                    None
                }
                None => return Ok(()),
            },
            Some(favour) = favours.recv() => agent.ask(favour),
            Some(told) = told.recv() => Some(told.into()),
            Some(checked) = checked.recv() => Some(checked),
            Some(shown) = shown.recv() => {
                agent.answer_for_others(shown);
                None
            }
            Some(id) = ended.recv() => {
                agent.begin_again(id);
                None
            }
        };
        for said in said.into_iter().chain(agent.challenges()) {
            match link.send(&said, &[]).await {
                // As good as nothing more to be told.
                Err(error) if error.is_end() => return Ok(()),
                sent => sent?,
            }
        }
    }
}

async fn receive(link: Rc<Link>, messages: mpsc::Sender<Result<ToAgent, LinkError>>) {
    while let Some(message) = link.receive::<ToAgent>().await.transpose() {
        let is_last = message.is_err();
        if messages.send(message.map(|(message, _)| message)).await.is_err() || is_last {
            return;
        }
    }
}

/// Asks what is in the way of certificates, a few at a time: all have their challenges answered meanwhile. Those who `care`
/// for them come with a name each.
async fn check(number: u64, cares: Vec<(String, mpsc::Sender<Asked>)>, checked: mpsc::Sender<FromAgent>) {
    let end = Instant::now() + PATIENCE;
    let answers = cares.into_iter().map(|(name, care)| async move {
        let (found, findings) = oneshot::channel();
        let asked = async {
            care.send(Asked::Check(found)).await.ok()?;
            findings.await.ok()
        };
        timeout_at(end, asked).await.unwrap_or_else(|_| Some(vec![not_looked_at(name)])).unwrap_or_default()
    });
    let answers: Vec<_> = stream::iter(answers).buffered(CHECKED_AT_ONCE).collect().await;
    let mut findings: Vec<_> = answers.into_iter().flatten().collect();
    if findings.len() > FINDINGS {
        // What a CA would refuse comes first.
        findings.sort_by_key(|finding| finding.severity != Severity::Fault);
        findings.truncate(FINDINGS);
    }
    checked.send(FromAgent::Checked { number, findings }).await.ok();
}

fn not_looked_at(name: String) -> Finding {
    Finding {
        what: format!("{name} has not been looked at: it is being ordered or fetched, or waits for that"),
        name: Some(name),
        severity: Severity::Warning,
        remedy: "ask again when `vestibule certificates list` says what came of it".to_owned(),
    }
}

/// Waits for the end of `task`, and, unless it was ended by us, says after a pause to `ended` that there is none for `id`
/// any more.
async fn watch(id: String, task: JoinHandle<()>, ended: mpsc::Sender<String>) {
    if task.await.is_err_and(|error| error.is_cancelled()) {
        return;
    }
    tracing::error!(
        id,
        again_in = ?BEGUN_AGAIN,
        "a fault of vestibule's own: this certificate is not looked after for the moment; it is served on"
    );
    sleep(BEGUN_AGAIN).await;
    ended.send(id).await.ok();
}

/// Looks for orders of other machines when it is `asked` to, and again while there are any, so that what is over is answered no
/// more.
async fn seek(storage: Storage, mut asked: mpsc::Receiver<()>, shown: mpsc::Sender<Shown>) {
    let (mut any, mut is_out) = (false, false);
    loop {
        select! {
            asked = asked.recv() => if asked.is_none() { return },
            () = sleep(LOOK_AGAIN), if any => {}
        }
        match acme::shown(&storage).await {
            Ok(found) => {
                (any, is_out) = (!found.is_empty(), false);
                if shown.send(found).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if !is_out {
                    tracing::warn!(error, "it cannot be seen whether another machine orders");
                }
                is_out = true;
            }
        }
        // Whoever asks for what is nobody's has it looked for no more often than that.
        sleep(BETWEEN).await;
    }
}

/// Challenges of other machines, by the id of the certificate.
type Shown = Vec<(String, Vec<PendingChallenge>)>;

struct Agent {
    /// Those of the system.
    roots: Roots,
    /// What is kept for all machines that share it.
    storage: Storage,
    shown: mpsc::Sender<Shown>,
    /// Looks for what others order, where there are others.
    seeker: Option<(JoinHandle<()>, mpsc::Sender<()>)>,
    answered_for_others: Shown,
    favours: mpsc::Sender<Favour>,
    told: mpsc::Sender<Told>,
    turns: Arc<Turns>,
    assigned: Assignment,
    /// By the id of the certificate.
    cares: BTreeMap<String, (Assigned, AbortHandle, mpsc::Sender<Asked>)>,
    fetchers: BTreeMap<String, (Fetched, AbortHandle, mpsc::Sender<Asked>)>,
    pending: BTreeMap<String, Vec<PendingChallenge>>,
    /// What was told last, and what is answered.
    version: u64,
    answered: u64,
    /// Whether what is to be answered is not what was told.
    has_changed: bool,
    /// Who waits for which version.
    unanswered: Vec<(u64, oneshot::Sender<()>)>,
    records: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    next_record: u64,
    checked: mpsc::Sender<FromAgent>,
    /// Has one begun again that has ended.
    ended: mpsc::Sender<String>,
}

impl Agent {
    fn obey(&mut self, message: ToAgent) {
        match message {
            ToAgent::Serve(assignment) => self.serve(*assignment),
            ToAgent::Answered { version } => {
                self.answered = version;
                for (_, done) in self.unanswered.extract_if(.., |(waits_for, _)| *waits_for <= version) {
                    done.send(()).ok();
                }
            }
            ToAgent::Made { number, outcome } => {
                self.records.remove(&number).map(|done| done.send(outcome));
            }
            ToAgent::Renew => {
                for (_, _, asked) in self.fetchers.values() {
                    // One that has more to do already is about to look.
                    asked.try_send(Asked::Renew { roll: false }).ok();
                }
                let mut accounts = HashSet::new();
                for (assigned, _, asked) in self.cares.values() {
                    // Whoever asks wants new keys; that of an account once.
                    let roll = accounts.insert(acme::account_key(&assigned.plan, &assigned.plan.directories[0]));
                    // One that has not taken the last one yet is about to order.
                    asked.try_send(Asked::Renew { roll }).ok();
                }
            }
            ToAgent::Seek => {
                if let Some((_, asked)) = &self.seeker {
                    // Where one waits already it is looked for both.
                    asked.try_send(()).ok();
                }
            }
            ToAgent::Check { number } => {
                let ordered = self.cares.values().map(|(assigned, _, asked)| {
                    let name = assigned.plan.hosts.first().map(ToString::to_string).unwrap_or_default();
                    (name, asked.clone())
                });
                let fetched = self.fetchers.values().map(|(Fetched { plan, .. }, _, asked)| {
                    let name = plan.store.to_string();
                    (name, asked.clone())
                });
                spawn_local(check(number, ordered.chain(fetched).collect(), self.checked.clone()));
            }
        }
    }

    /// Goes on with what is assigned still, and begins with what is new.
    fn serve(&mut self, mut assignment: Assignment) {
        self.fetch(&assignment);
        let mut before = std::mem::take(&mut self.cares);
        if self.assigned.shared != assignment.shared || self.assigned.storage != assignment.storage {
            for (_, (_, task, _)) in std::mem::take(&mut before) {
                task.abort();
            }
            if !self.use_storage(&assignment) {
                // Without it each machine would order for itself.
                assignment.certificates.clear();
            }
        }
        for assigned in &assignment.certificates {
            let id = acme::id(&assigned.plan.hosts);
            let kept = before.remove(&id);
            let care = match kept {
                Some(care) if care.0 == *assigned => care,
                changed => {
                    if let Some((_, task, _)) = changed {
                        task.abort();
                        self.has_changed |= self.pending.remove(&id).is_some();
                    }
                    let Some(care) = self.begin(assigned, &assignment) else { continue };
                    care
                }
            };
            self.cares.insert(id, care);
        }
        for (_, (_, task, _)) in before {
            task.abort();
        }
        self.assigned = assignment;
        let answered = self.pending.len();
        self.pending.retain(|id, _| self.cares.contains_key(id));
        self.has_changed |= self.pending.len() != answered;
    }

    /// Looks after the certificate `id` once more, unless that is done by now.
    fn begin_again(&mut self, id: String) {
        if let Some((fetched, ..)) = self.fetchers.get(&id).filter(|(_, task, _)| task.is_finished()) {
            let fetched = fetched.clone();
            if let Some(fetcher) = self.begin_to_fetch(&fetched, &self.assigned) {
                self.fetchers.insert(id, fetcher);
            }
            return;
        }
        let Some((assigned, _, _)) = self.cares.get(&id).filter(|(_, task, _)| task.is_finished()) else { return };
        let assigned = assigned.clone();
        self.has_changed |= self.pending.remove(&id).is_some();
        if let Some(care) = self.begin(&assigned, &self.assigned) {
            self.cares.insert(id, care);
        }
    }

    /// Goes on to fetch what is assigned still, and begins with what is new.
    fn fetch(&mut self, assignment: &Assignment) {
        let is_moved = self.assigned.storage != assignment.storage;
        self.fetchers.retain(|_, (fetched, task, _)| {
            let stays = !is_moved && assignment.fetched.contains(fetched);
            if !stays {
                task.abort();
            }
            stays
        });
        for fetched in &assignment.fetched {
            let id = fetch::id(&fetched.plan);
            if self.fetchers.contains_key(&id) {
                continue;
            }
            if let Some(fetcher) = self.begin_to_fetch(fetched, assignment) {
                self.fetchers.insert(id, fetcher);
            }
        }
    }

    fn begin_to_fetch(
        &self,
        fetched: &Fetched,
        assignment: &Assignment,
    ) -> Option<(Fetched, AbortHandle, mpsc::Sender<Asked>)> {
        let Fetched { plan, access } = fetched;
        let store = match Storage::shared(access, &self.roots) {
            Ok(store) => store,
            Err(problem) => {
                tracing::error!("{}.fetch: {problem}; it is not fetched until then", plan.at);
                return None;
            }
        };
        let (asked_sender, asked) = mpsc::channel(ASKED);
        let copies = Storage::in_folder(assignment.storage.clone());
        let care = Fetcher::new(plan.clone(), store, copies, self.told.clone(), asked);
        let handle = self.watched(fetch::id(plan), care.go_on());
        Some((fetched.clone(), handle, asked_sender))
    }

    /// Keeps what is ordered in the storage of `assignment`; answers whether that can be used.
    fn use_storage(&mut self, assignment: &Assignment) -> bool {
        if let Some((task, _)) = self.seeker.take() {
            task.abort();
        }
        self.answered_for_others.clear();
        self.storage = Storage::in_folder(assignment.storage.clone());
        let Some(access) = &assignment.shared else { return true };
        match Storage::shared(access, &self.roots) {
            Ok(shared) => {
                self.storage = shared.clone();
                let (asked_sender, asked) = mpsc::channel(1);
                self.seeker = Some((spawn_local(seek(shared, asked, self.shown.clone())), asked_sender));
                true
            }
            Err(problem) => {
                tracing::error!("tls.storage: {problem}; certificates are neither ordered nor renewed until then");
                false
            }
        }
    }

    fn begin(
        &self,
        assigned: &Assigned,
        assignment: &Assignment,
    ) -> Option<(Assigned, AbortHandle, mpsc::Sender<Asked>)> {
        let roots = match assigned.roots.as_deref().map(Roots::from_pem) {
            Some(Ok(roots)) => roots,
            Some(Err(why)) => {
                let at = &assigned.plan.at;
                tracing::error!(
                    "{at}.acme.ca_file: {why}; this certificate is not ordered until there is another file"
                );
                return None;
            }
            None => self.roots.clone(),
        };
        let (asked_sender, asked) = mpsc::channel(ASKED);
        let care = Care::new(
            assigned.plan.clone(),
            roots,
            self.storage.clone(),
            self.storage.is_shared().then(|| Storage::in_folder(assignment.storage.clone())),
            self.favours.clone(),
            self.told.clone(),
            Arc::clone(&self.turns),
            asked,
        );
        let handle = self.watched(acme::id(&assigned.plan.hosts), care.go_on());
        Some((assigned.clone(), handle, asked_sender))
    }

    /// Has `care` go on, and begun again where it ends.
    fn watched(&self, id: String, care: impl Future<Output = ()> + 'static) -> AbortHandle {
        let task = spawn_local(care);
        let handle = task.abort_handle();
        spawn_local(watch(id, task, self.ended.clone()));
        handle
    }

    fn ask(&mut self, favour: Favour) -> Option<FromAgent> {
        match favour {
            Favour::Answer { id, pending, done } => {
                if pending.is_empty() {
                    self.pending.remove(&id);
                } else {
                    self.pending.insert(id, pending);
                }
                self.has_changed = true;
                self.unanswered.push((self.version + 1, done));
                None
            }
            Favour::Dns { id, record, done } => {
                self.next_record += 1;
                self.records.insert(self.next_record, done);
                Some(FromAgent::Dns { number: self.next_record, id, record })
            }
        }
    }

    fn answer_for_others(&mut self, shown: Shown) {
        self.answered_for_others = shown;
        self.has_changed = true;
    }

    /// What is to be answered now, if that is not what was told. One version after the other, so that of many changes that come
    /// meanwhile one is made.
    fn challenges(&mut self) -> Option<FromAgent> {
        if !self.has_changed || self.answered != self.version {
            return None;
        }
        self.has_changed = false;
        self.version += 1;
        // Ours first, where there is not room for all; and last in what is said, since for one name they win over what we have
        // read a while ago.
        let others = self.answered_for_others.iter().flat_map(|(_, pending)| pending);
        let all: Vec<_> = self.pending.values().flatten().chain(others).collect();
        let mut room = ROOM;
        let fitting = all.iter().take_while(|challenge| {
            let PendingChallenge { host, token, key_authorization, .. } = challenge;
            let left = room.checked_sub(host.len() + token.len() + key_authorization.len() + BESIDE);
            room = left.unwrap_or(room);
            left.is_some()
        });
        let mut pending: Vec<PendingChallenge> = fitting.map(|challenge| (*challenge).clone()).collect();
        if pending.len() < all.len() {
            tracing::error!(answered = pending.len(), of = all.len(), "too many challenges to answer all at once");
        }
        pending.reverse();
        Some(FromAgent::Challenges { version: self.version, pending })
    }
}

impl From<Told> for FromAgent {
    fn from(told: Told) -> Self {
        match told {
            Told::Issued { id, bundle } => Self::Issued { id, bundle },
            Told::Stands { id, report } => Self::Stands { id, report },
        }
    }
}

const MESSAGES: usize = 64;
/// Bytes of challenges in one message, and what each has beside its texts: far more than orders that may be under way at
/// once have.
const ROOM: usize = 3 << 20;
const BESIDE: usize = 16;
/// Certificates that it is looked at the same time what is in their way.
const CHECKED_AT_ONCE: usize = 16;
/// For all of them.
const PATIENCE: Duration = Duration::from_secs(100);
/// As many as somebody reads, and as go into a message.
const FINDINGS: usize = 1000;
/// Until a certificate is looked after again when that has ended by a fault: it may have asked a CA just before.
const BEGUN_AGAIN: Duration = Duration::from_secs(60);
/// Until it is looked whether an order of another machine is over.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks.
const BETWEEN: Duration = Duration::from_secs(1);
/// What may be asked of one certificate while it is busy.
const ASKED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_ends_by_a_fault_is_begun_again_after_a_pause_and_who_was_ended_is_not() {
        let local = LocalSet::new();
        local
            .run_until(async {
                let (ended_sender, mut ended) = mpsc::channel(1);
                let begun = Instant::now();
                let faulty = spawn_local(async { panic!("a fault") });
                let working = spawn_local(std::future::pending());
                let handle = working.abort_handle();
                spawn_local(watch("working".to_owned(), working, ended_sender.clone()));
                spawn_local(watch("faulty".to_owned(), faulty, ended_sender));
                handle.abort();

                assert_eq!(ended.recv().await.as_deref(), Some("faulty"));
                assert!(begun.elapsed() >= BEGUN_AGAIN);
                assert_eq!(ended.recv().await, None);
            })
            .await;
    }
}
