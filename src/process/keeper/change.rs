//! Another configuration: read, refused or put in force, remembered, gone back to.

use std::{collections::BTreeMap, io, sync::Arc, thread, time::SystemTime};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        inspections,
        message::{Handover, ToWorker, Word},
        sandbox, signal_mask,
    },
    Deed, Keeper, Missed, START, STOPPING, State, WorkerId, joined, shares_tickets, watched, worker_user,
    workers::sink,
};
use crate::{
    admin::{Outcome, Refusal, timestamp},
    config::{self, ConfigError, Plan, Takes},
    keeper::{Provisions, user::User},
    listener::LET_GO,
    tls::shelf::SHELF,
};

/// A configuration that could be put in force.
struct Candidate {
    plan: Plan,
    user: Option<User>,
    provisions: Provisions,
    takes: Takes,
}

impl Keeper {
    /// Reads the configuration anew and puts it in force, unless it is as it was; answers in words what came of it.
    pub(super) async fn reload(&mut self, cause: &str) -> Outcome {
        self.manager.reloading();
        let outcome = self.read_anew(cause).await;
        self.manager.ready(self.generation, self.refused.as_ref());
        outcome
    }

    async fn read_anew(&mut self, cause: &str) -> Outcome {
        // What is read now is no change that is still to come.
        self.watcher.take_for_known();
        let text = match self.text().await {
            Ok(text) => text,
            Err(faults) => return self.refuse(cause, faults),
        };
        match self.put_in_force(&text, cause).await {
            Ok(Some(generation)) => {
                self.history.push(generation, cause, &text);
                self.report();
                Ok(format!("configuration {generation} is in force"))
            }
            Ok(None) => Ok(format!("nothing has changed: configuration {} stays in force", self.generation)),
            Err(refused) => self.refuse(cause, refused.lines().map(str::to_owned).collect()),
        }
    }

    /// The configuration as it is written. docassemble's may have to be fetched, and meanwhile a worker may need us.
    async fn text(&mut self) -> Result<String, Vec<String>> {
        let source = self.source.clone();
        let (answer, answered) = oneshot::channel();
        // A thread of its own, which a stop does not wait for.
        let begun = thread::Builder::new().name("configuration".to_owned()).spawn(move || {
            signal_mask::hold();
            answer.send(config::text(&source)).ok();
        });
        begun.map_err(|error| vec![format!("no thread to read the configuration in: {error}")])?;
        match self.meanwhile(Instant::now() + config::LONGEST_READING, answered).await {
            Ok(Ok(Ok(text))) => Ok(text),
            Ok(Ok(Err(error))) => Err(faults(&error)),
            Ok(Err(_)) => Err(vec!["a fault of vestibule's own while it was read; the log tells of it".to_owned()]),
            Err(Missed::Late) => Err(vec!["it took too long to read".to_owned()]),
            Err(Missed::Stopping) => Err(vec![STOPPING.to_owned()]),
        }
    }

    /// Goes back to the configuration that was in force `steps` before the present one.
    pub(super) async fn roll_back(&mut self, steps: u32) -> Outcome {
        self.manager.reloading();
        let outcome = self.go_back(steps).await;
        self.manager.ready(self.generation, self.refused.as_ref());
        outcome
    }

    async fn go_back(&mut self, steps: u32) -> Outcome {
        let entry = self.history.before(steps).map_err(|error| error.to_string())?.clone();
        let cause = format!("rollback to the configuration of {}", entry.at);
        let file = self.source.file().display().to_string();
        match self.put_in_force(&entry.text, &cause).await? {
            Some(generation) => {
                self.history.push_rollback(generation, &entry);
                self.report();
                Ok(format!(
                    "configuration {generation} is in force, the one of {}\n{file} was not touched: mend it before the next \
                     reload or start reads it again",
                    entry.at
                ))
            }
            None => Ok(format!("configuration {} says the same and stays in force", self.generation)),
        }
    }

    /// What a reload would do, in words. Binds nothing.
    pub(super) async fn dry_run(&mut self) -> Outcome {
        let text = self.text().await.map_err(|faults| faults.join("\n"))?;
        SHELF.begin_reading();
        let checked = config::check_text(&self.source, &text, inspections());
        // Keys that only this text names were read for it.
        self.tidy();
        let plan = checked.map_err(|error| faults(&error).join("\n"))?;
        Ok(rehearsal(&self.plan, &plan, self.takes(&plan)))
    }

    /// Puts `text` in force and answers its generation; `None` where that is what is in force already.
    ///
    /// # Errors
    ///
    /// Why not, a line for each fault; nothing has changed then.
    async fn put_in_force(&mut self, text: &str, cause: &str) -> Result<Option<u64>, String> {
        self.orders.is_held = true;
        SHELF.begin_reading();
        let done = Box::pin(self.try_to_put_in_force(text, cause)).await;
        self.orders.is_held = false;
        self.tidy();
        done
    }

    async fn try_to_put_in_force(&mut self, text: &str, cause: &str) -> Result<Option<u64>, String> {
        let mut candidate = self.candidate(text);
        // Where it was told to close, a worker accepts for a moment still.
        if candidate.is_err()
            && let Some(let_go) = self.let_go.take().filter(|let_go| *let_go > Instant::now())
        {
            self.meanwhile(let_go + START, sleep_until(let_go)).await.map_err(|_| STOPPING.to_owned())?;
            candidate = self.candidate(text);
        }
        let candidate = candidate?;
        let certificates = candidate.provisions.materials.clone();
        let is_same = certificates.len() == self.certificates.len()
            && certificates
                .iter()
                .zip(&self.certificates)
                .all(|(new, old)| Arc::ptr_eq(new, old) || new.content() == old.content())
            && candidate.provisions.client_authorities == self.client_authorities
            && candidate.provisions.users == self.users
            && candidate.provisions.admin_secrets == self.admin;
        if candidate.plan == self.plan && is_same {
            // Files may have been exchanged for others with the same content, which are watched from now on.
            self.watcher.watch(config::dependencies(&self.plan));
            // Of files that only the agent has a use for, or tickets.
            self.assign();
            if shares_tickets(&self.plan) {
                self.rotate_tickets = Instant::now();
            }
            if self.refused.take().is_some() {
                self.report();
            }
            return Ok(None);
        }
        let generation = self.generation + 1;
        let (plan, (log, errors)) =
            (candidate.plan.clone(), watched(&candidate.plan, &candidate.provisions, candidate.user.as_ref()));
        let client_authorities = candidate.provisions.client_authorities.clone();
        let (users, admin) = (candidate.provisions.users.clone(), candidate.provisions.admin_secrets.clone());
        let user = candidate.user.clone();
        let applied = match candidate.takes.clone() {
            Takes::Effect => self.apply(generation, candidate).await,
            // What takes a restart was no candidate.
            Takes::NewWorker(why) | Takes::Restart(why) => {
                tracing::info!("a new worker takes over: {}", why.join("; "));
                self.replace_worker(generation, candidate).await
            }
        };
        if let Err(why) = applied {
            self.sockets.keep(&self.plan);
            return Err(why);
        }
        let words = config::difference(&self.plan, &plan);
        if self.sockets.keep(&plan) {
            self.let_go = Some(Instant::now() + 2 * LET_GO);
        }
        self.watcher.watch(config::dependencies(&plan));
        if self.plan.tls.shared != plan.tls.shared && (shares_tickets(&self.plan) || shares_tickets(&plan)) {
            self.rotate_tickets = Instant::now();
        }
        (self.generation, self.plan, self.certificates, self.user) = (generation, plan, certificates, user);
        (self.client_authorities, self.users, self.admin) = (client_authorities, users, admin);
        (self.log, self.errors) = (log, errors);
        self.write_errors();
        self.assign();
        self.run_backends();
        self.refused = None;
        self.restart = None;
        self.quick_crashes = 0;
        self.warn();
        let changed = match (words.is_empty(), is_same) {
            (false, _) => joined(&words, "; "),
            (true, false) => "the content of certificates, users, or the token of `admin`".to_owned(),
            (true, true) => "a password, or where it was read".to_owned(),
        };
        tracing::info!(generation, cause, %changed, "configuration in force");
        Ok(Some(generation))
    }

    /// Reads `text` and opens all that it asks for.
    fn candidate(&mut self, text: &str) -> Result<Candidate, String> {
        let lines = |error: &ConfigError| faults(error).join("\n");
        let plan = config::check_text(&self.source, text, inspections()).map_err(|error| lines(&error))?;
        let user = worker_user(&plan, &self.options).map_err(|error| error.to_string())?;
        let takes = self.takes(&plan);
        if let Takes::Restart(why) = takes {
            return Err(format!("this needs a restart: {}", why.join("; ")));
        }
        // Before they are read: what changes while it is put in force is not lost. Where it is refused, what was wrong with
        // them may be mended.
        let files = [config::dependencies(&self.plan), config::dependencies(&plan)].concat();
        self.watcher.watch(config::in_order(files));
        SHELF.begin_reading();
        // A new worker has nothing yet; neither has one that is about to be begun.
        let held = (takes == Takes::Effect).then_some(&self.plan);
        let gathered = Provisions::gather_beside(&plan, &mut self.sockets, held, user.as_ref());
        let provisions = gathered.map_err(|faults| {
            self.sockets.keep(&self.plan);
            faults.to_string()
        })?;
        Ok(Candidate { plan, user, provisions, takes })
    }

    /// What it takes to serve `plan`: of the plan in force, and of the worker that there is.
    fn takes(&self, plan: &Plan) -> Takes {
        let single = self.options.single;
        let takes = config::takes(&self.plan, plan, single);
        let Takes::Effect = takes else { return takes };
        let Some(worker) = self.serving_worker() else {
            return if single {
                Takes::Restart(vec!["there is no worker".to_owned()])
            } else {
                Takes::NewWorker(vec!["there is none at present".to_owned()])
            };
        };
        let lacks = match &worker.begun_with {
            _ if single => Vec::new(),
            Some(begun_with) => sandbox::covers(begun_with, plan),
            None => vec!["what the present one is confined to is not known".to_owned()],
        };
        if lacks.is_empty() { Takes::Effect } else { Takes::NewWorker(lacks) }
    }

    /// Has the worker that serves go on with another plan.
    async fn apply(&mut self, generation: u64, candidate: Candidate) -> Result<(), String> {
        let Some(serving) = self.serving_worker().map(|worker| worker.id) else {
            return Err("the worker has just ended; try again".to_owned());
        };
        let Candidate { plan, user, mut provisions, .. } = candidate;
        let log = sink(&plan);
        if let Some(worker) = self.worker_mut(serving) {
            worker.hand(&mut provisions);
        }
        let (handover, descriptors) = Handover::new(
            generation,
            &plan,
            provisions,
            user,
            BTreeMap::new(),
            self.tickets.clone(),
            self.backends.known(),
        );
        if let Some(worker) = self.worker(serving) {
            worker.tell_with(ToWorker::Apply(Box::new(handover)), descriptors);
        }
        let answered = |worker: WorkerId, deed: &Deed| match deed {
            Deed::Said(Word::Applied) if worker == serving => Some(Ok(())),
            Deed::Said(Word::Failed) if worker == serving => Some(Err(FAILED.to_owned())),
            Deed::Ended(ending) if worker == serving => Some(Err(format!("the worker ended over it ({ending})"))),
            _ => None,
        };
        let applied = match self.until(Instant::now() + START, answered).await {
            Ok(applied) => applied,
            Err(Missed::Stopping) => Err(STOPPING.to_owned()),
            Err(Missed::Late) => {
                // It may yet put it in force; nobody would know which one it serves.
                if let Some(worker) = self.worker(serving) {
                    worker.kill();
                }
                Err(format!("the worker did not put it in force within {START:?} and is replaced"))
            }
        };
        if let Some(worker) = self.worker_mut(serving) {
            match applied {
                Ok(()) => worker.log = log,
                Err(_) => worker.has_been_told(&[]),
            }
        }
        applied
    }

    /// Has a new worker take over from the one that serves, which ends what it began.
    async fn replace_worker(&mut self, generation: u64, candidate: Candidate) -> Result<(), String> {
        let Candidate { plan, user, provisions, .. } = candidate;
        let before = std::mem::replace(&mut self.user, user);
        let replaced = self.start_successor(generation, &plan, provisions).await;
        if replaced.is_err() {
            self.user = before;
        }
        replaced
    }

    /// Begins a worker beside those there are; once it serves, the others are to leave.
    pub(super) async fn start_successor(
        &mut self,
        generation: u64,
        plan: &Plan,
        provisions: Provisions,
    ) -> Result<(), String> {
        // One that is starting is of the plan before, and may be what the new one is to mend.
        for worker in self.workers.iter_mut().filter(|worker| worker.state == State::Starting) {
            worker.give_up();
        }
        let all = self.places();
        let elsewhere = if self.serving_worker().is_some() { all.clone() } else { self.held_by_leaving() };
        let begun = self.begin_worker(generation, plan, provisions, elsewhere);
        let successor = begun.map_err(|error: io::Error| format!("no worker can be begun: {error}"))?;
        if let Err(why) = self.until_ready(successor).await {
            if let Some(worker) = self.worker_mut(successor) {
                worker.give_up();
            }
            return Err(format!("the new worker does not serve: {why}; its last words are in the log"));
        }
        let others = self.workers.iter().filter(|worker| worker.id != successor && worker.is_current());
        self.superseded.extend(others.map(|worker| (worker.id, all.clone())));
        Ok(())
    }

    /// Has those leave that a successor serves in the place of. Until then both accept connections.
    pub(super) fn retire_superseded(&mut self) {
        for (id, places) in std::mem::take(&mut self.superseded) {
            self.retire(id, places);
        }
        // They are not waited for any more.
        self.challenges_answered();
        self.recall_wanted();
        self.report();
    }

    /// Remembers and tells that a configuration was refused.
    fn refuse(&mut self, cause: &str, faults: Vec<String>) -> Outcome {
        tracing::error!(cause, "configuration refused; the one before stays in force");
        for fault in &faults {
            tracing::error!("{fault}");
        }
        let said = faults.join("\n");
        self.refused = Some(Refusal { at: timestamp(SystemTime::now()), cause: cause.to_owned(), faults });
        self.report();
        Err(said)
    }
}

/// What it would be to go from one plan to the other, in words.
pub(in super::super) fn rehearsal(old: &Plan, new: &Plan, takes: Takes) -> String {
    let mut lines = config::difference(old, new);
    if lines.is_empty() {
        lines.push("nothing would change".to_owned());
    }
    let (what, why) = match takes {
        Takes::Effect => return lines.join("\n"),
        Takes::NewWorker(why) => ("a new worker would take over, and the one of now end what it began:", why),
        Takes::Restart(why) => ("it would be refused, since this needs a restart:", why),
    };
    lines.push(what.to_owned());
    lines.extend(why.into_iter().map(|why| format!("  {why}")));
    lines.join("\n")
}

/// A line for each fault.
fn faults(error: &ConfigError) -> Vec<String> {
    match error {
        ConfigError::Unreadable { source, .. } => vec![format!("{error}: {source}")],
        ConfigError::Refused { .. } => error.to_string().lines().map(str::to_owned).collect(),
    }
}

const FAILED: &str = "the worker could not put it in force; its log says why";
