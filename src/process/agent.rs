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

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{mpsc, oneshot},
    task::{JoinHandle, LocalSet, spawn_local},
    time::sleep,
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
        acme::{self, Asked, Care, Favour, Finding, OrderReport, Told, Turns, TxtRecord},
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
    /// Order all certificates anew, or those for a name, whatever their age; without a name, those that are fetched are looked at.
    Renew { host: Option<String> },
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
    /// How they stand, in the order of the configuration; those that are fetched last.
    Stands(Vec<OrderReport>),
}

/// Why an agent could not begin.
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
/// It could not begin; the keeper sees the end of the link.
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
    local.block_on(&runtime, async {
        let (messages_sender, mut messages) = mpsc::channel(MESSAGES);
        spawn_local(receive(Rc::clone(&link), messages_sender));
        let (favours_sender, mut favours) = mpsc::channel(MESSAGES);
        let (told_sender, mut told) = mpsc::channel(MESSAGES);
        let (checked_sender, mut checked) = mpsc::channel(MESSAGES);
        let (shown_sender, mut shown) = mpsc::channel(1);
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
            unanswered: Vec::new(),
            records: HashMap::new(),
            next_record: 0,
            reports: BTreeMap::new(),
            checked: checked_sender,
        };
        agent.serve(assignment);
        loop {
            let said = tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => agent.obey(message),
                    None => return,
                },
                Some(favour) = favours.recv() => Some(agent.ask(favour)),
                Some(told) = told.recv() => Some(agent.tell(told)),
                Some(checked) = checked.recv() => Some(checked),
                Some(shown) = shown.recv() => Some(agent.answer_for_others(shown)),
            };
            if let Some(said) = said
                && link.send(&said, &[]).await.is_err()
            {
                return;
            }
        }
    });
    Ok(())
}

async fn receive(link: Rc<Link>, messages: mpsc::Sender<ToAgent>) {
    // An end, or what cannot be understood: as good as one.
    while let Ok(Some((message, _))) = link.receive::<ToAgent>().await {
        if messages.send(message).await.is_err() {
            return;
        }
    }
}

/// Asks all at once what is in their way.
async fn check(number: u64, cares: Vec<mpsc::Sender<Asked>>, checked: mpsc::Sender<FromAgent>) {
    let answers = cares.into_iter().map(|care| async move {
        let (found, findings) = oneshot::channel();
        care.send(Asked::Check(found)).await.ok()?;
        findings.await.ok()
    });
    let findings = join_all(answers).await.into_iter().flatten().flatten().collect();
    checked.send(FromAgent::Checked { number, findings }).await.ok();
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
    cares: BTreeMap<String, (Assigned, JoinHandle<()>, mpsc::Sender<Asked>)>,
    fetchers: BTreeMap<String, (Fetched, JoinHandle<()>, mpsc::Sender<Asked>)>,
    pending: BTreeMap<String, Vec<PendingChallenge>>,
    version: u64,
    /// Who waits for which version.
    unanswered: Vec<(u64, oneshot::Sender<()>)>,
    records: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    next_record: u64,
    reports: BTreeMap<String, OrderReport>,
    checked: mpsc::Sender<FromAgent>,
}

impl Agent {
    fn obey(&mut self, message: ToAgent) -> Option<FromAgent> {
        match message {
            ToAgent::Serve(assignment) => return self.serve(*assignment),
            ToAgent::Answered { version } => {
                for (_, done) in self.unanswered.extract_if(.., |(waits_for, _)| *waits_for <= version) {
                    done.send(()).ok();
                }
            }
            ToAgent::Made { number, outcome } => {
                self.records.remove(&number).map(|done| done.send(outcome));
            }
            ToAgent::Renew { host } => {
                for (_, _, asked) in self.fetchers.values().filter(|_| host.is_none()) {
                    // One that has more to do already is about to look.
                    asked.try_send(Asked::Renew { roll: false }).ok();
                }
                let mut accounts = HashSet::new();
                for (assigned, _, asked) in self.cares.values() {
                    let is_meant = |host: &String| assigned.plan.hosts.iter().any(|known| known.as_str() == host);
                    if host.as_ref().is_none_or(is_meant) {
                        // Whoever asks wants new keys; that of an account once.
                        let roll = accounts.insert(acme::account_key(&assigned.plan, &assigned.plan.directories[0]));
                        // One that has not taken the last one yet is about to order.
                        asked.try_send(Asked::Renew { roll }).ok();
                    }
                }
            }
            ToAgent::Seek => {
                if let Some((_, asked)) = &self.seeker {
                    // Where one waits already it is looked for both.
                    asked.try_send(()).ok();
                }
            }
            ToAgent::Check { number } => {
                let cares = self.cares.values().map(|(_, _, asked)| asked);
                let asked = cares.chain(self.fetchers.values().map(|(_, _, asked)| asked));
                spawn_local(check(number, asked.cloned().collect(), self.checked.clone()));
            }
        }
        None
    }

    /// Goes on with what is assigned still, and begins with what is new.
    fn serve(&mut self, mut assignment: Assignment) -> Option<FromAgent> {
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
        self.reports.retain(|id, _| self.cares.contains_key(id) || self.fetchers.contains_key(id));
        let answered = self.pending.len();
        self.pending.retain(|id, _| self.cares.contains_key(id));
        (self.pending.len() != answered).then(|| self.challenges())
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
            let Fetched { plan, access } = fetched;
            let store = match Storage::shared(access, &self.roots) {
                Ok(store) => store,
                Err(problem) => {
                    tracing::error!("{}.fetch: {problem}; it is not fetched until then", plan.at);
                    continue;
                }
            };
            let (asked_sender, asked) = mpsc::channel(ASKED);
            let copies = Storage::in_folder(assignment.storage.clone());
            let fetcher = Fetcher::new(plan.clone(), store, copies, self.told.clone(), asked);
            self.fetchers.insert(id, (fetched.clone(), spawn_local(fetcher.go_on()), asked_sender));
        }
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
    ) -> Option<(Assigned, JoinHandle<()>, mpsc::Sender<Asked>)> {
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
        Some((assigned.clone(), spawn_local(care.go_on()), asked_sender))
    }

    fn ask(&mut self, favour: Favour) -> FromAgent {
        match favour {
            Favour::Answer { id, pending, done } => {
                if pending.is_empty() {
                    self.pending.remove(&id);
                } else {
                    self.pending.insert(id, pending);
                }
                let said = self.challenges();
                self.unanswered.push((self.version, done));
                said
            }
            Favour::Dns { id, record, done } => {
                self.next_record += 1;
                self.records.insert(self.next_record, done);
                FromAgent::Dns { number: self.next_record, id, record }
            }
        }
    }

    fn challenges(&mut self) -> FromAgent {
        self.version += 1;
        // Ours last: for one name they win over what we have read a while ago.
        let others = self.answered_for_others.iter().map(|(_, pending)| pending);
        let pending = others.chain(self.pending.values()).flatten().cloned().collect();
        FromAgent::Challenges { version: self.version, pending }
    }

    fn answer_for_others(&mut self, shown: Shown) -> FromAgent {
        self.answered_for_others = shown;
        self.challenges()
    }

    fn tell(&mut self, told: Told) -> FromAgent {
        match told {
            Told::Issued { id, bundle } => FromAgent::Issued { id, bundle },
            Told::Stands { id, report } => {
                self.reports.insert(id, report);
                let order = self.assigned.certificates.iter().map(|assigned| acme::id(&assigned.plan.hosts));
                let order = order.chain(self.assigned.fetched.iter().map(|fetched| fetch::id(&fetched.plan)));
                FromAgent::Stands(order.filter_map(|id| self.reports.get(&id).cloned()).collect())
            }
        }
    }
}

const MESSAGES: usize = 64;
/// Until it is looked whether an order of another machine is over.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks.
const BETWEEN: Duration = Duration::from_secs(1);
/// What may be asked of one certificate while it is busy.
const ASKED: usize = 4;
