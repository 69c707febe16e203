//! The worker: the process, or with `--single` the thread, that carries the traffic.
//!
//! It does what it is told by the keeper and says only [`Word`]s. Signals are the keeper's business: one that is sent to
//! the whole group does nothing here. When the keeper has gone, it drains and ends.

use std::{collections::HashMap, io, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    task::LocalSet,
};

use super::{
    link::{Link, LinkError},
    message::{Handover, ToWorker, Word},
    sandbox::{self, SandboxError},
    signals::Signals,
};
use crate::{
    admin::{Order, Outcome, tag},
    allocator,
    backends::Unmeasured,
    config::Plan,
    drain::Cut,
    gateway::{Gateway, InstanceNews, News, StartError},
    keeper::output::LogOutput,
    limits::memory,
    telemetry::error_log,
    tls::HandedCertificate,
};

/// What a worker runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunsAs {
    /// In a process of its own, in a sandbox.
    Process,
    /// In a thread of the keeper.
    Thread,
}

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    #[error("the worker cannot make its runtime")]
    Runtime(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the worker cannot be confined")]
    Sandbox(#[from] SandboxError),
    #[error("the worker was not handed what it needs: {0}")]
    Handover(String),
    #[error("the worker cannot put the configuration in force")]
    Start(#[from] StartError),
}

/// Carries the traffic on what the keeper at the other end of `link` hands over, until that says to end or has gone.
///
/// # Errors
///
/// It could not begin; the keeper sees the end of the link.
pub(super) fn run(link: OwnedFd, runs_as: RunsAs) -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let link = {
        let _entered = runtime.enter();
        Rc::new(Link::over(link)?)
    };
    link.keep_room();
    if runs_as == RunsAs::Process {
        // Buffers are of a few pages, of which most are never touched: a huge page would have them all in memory. Where the
        // system has it otherwise, that costs memory and nothing else.
        rustix::thread::disable_transparent_huge_pages(true).ok();
    }
    // Caught and never asked for: what a signal means is the keeper's to say.
    let _caught = match runs_as {
        RunsAs::Process => Some(runtime.block_on(async { Signals::catch() })?),
        RunsAs::Thread => None,
    };
    let (sender, mut messages) = unbounded_channel();
    local.spawn_local(receive(Rc::clone(&link), sender));

    let first = local.block_on(&runtime, messages.recv());
    let (mut handover, descriptors) = match first {
        Some((ToWorker::Start(handover), descriptors)) => (handover, descriptors),
        Some(_) => return Err(WorkerError::Handover("it was not told first to start".to_owned())),
        // The keeper has gone before it had anything for us.
        None => return Ok(()),
    };
    memory::open();
    let weaknesses = match runs_as {
        RunsAs::Process => sandbox::enter(handover.user.as_ref(), &handover.plan)?,
        RunsAs::Thread => Vec::new(),
    };
    let mut provisions = handover.provisions(descriptors).map_err(WorkerError::Handover)?;
    write_errors_to(provisions.error_log.take());
    let Handover { generation, plan, held, tickets, instances, .. } = *handover;
    let (drain, asks_others) = (plan.drain, asks_others(&plan));
    let (orders, mut ordered) = unbounded_channel();
    let gateway = Gateway::start_beside(plan, provisions, generation, &tickets, Some(orders), &held, instances)?;

    let (news, mut told) = unbounded_channel();
    let mut worker = Worker {
        gateway,
        news,
        weaknesses,
        waiting: HashMap::new(),
        next_order: 0,
        drain,
        stopping: false,
        orphaned: false,
    };
    worker.seek_challenges(asks_others);
    worker.gateway.tell_bounds(worker.news.clone());
    worker.gateway.look_after_instances(worker.news.clone());
    worker.gateway.watch_programs(worker.news.clone());
    let say = |word| local.block_on(&runtime, link.say(word));
    // Nobody hears it where the keeper has gone; that comes to be known by the next message.
    drop(say(Word::Ready));
    allocator::give_back();
    allocator::let_go_of_code();
    loop {
        let step = local.block_on(&runtime, worker.next(&mut messages, &mut ordered, &mut told));
        let word = match step {
            Step::Ended => break,
            Step::Told(message) => worker.obey(message),
            Step::Order(order, outcome) => worker.pass_on(order, outcome),
            Step::News(news) => Some(word(news)),
        };
        if let Some(word) = word {
            drop(say(word));
            if matches!(word, Word::Applied | Word::Failed) {
                allocator::give_back();
            }
        }
    }
    let Cut { requests, tunnels } = worker.gateway.finish();
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    drop(say(Word::Ended { requests: number(requests), tunnels: number(tunnels) }));
    Ok(())
}

fn write_errors_to(log: Option<LogOutput>) {
    error_log::write_to(log.and_then(LogOutput::into_file));
}

/// What there is to do next.
enum Step {
    /// `None`: the keeper has gone.
    Told(Option<Message>),
    Order(Order, oneshot::Sender<Outcome>),
    News(News),
    /// All traffic has come to its end.
    Ended,
}

type Message = (ToWorker, Vec<OwnedFd>);

/// Takes messages as they come: a message that has begun to come must be taken to its end.
async fn receive(link: Rc<Link>, messages: UnboundedSender<Message>) {
    loop {
        match link.receive().await {
            Ok(Some(message)) => {
                if messages.send(message).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                // As good as gone: what follows cannot be told apart.
                tracing::error!(error = &error as &dyn std::error::Error, "the keeper cannot be understood");
                return;
            }
        }
    }
}

/// A gateway, and who is to hear what of it.
struct Worker {
    gateway: Gateway,
    news: UnboundedSender<News>,
    /// What the sandbox does not keep us from.
    weaknesses: Vec<String>,
    /// Orders that the keeper has not answered yet.
    waiting: HashMap<u32, oneshot::Sender<Outcome>>,
    next_order: u32,
    /// What is left to what is under way when the keeper has gone.
    drain: Duration,
    /// Told to, or without a keeper.
    stopping: bool,
    orphaned: bool,
}

impl Worker {
    async fn next(
        &mut self,
        messages: &mut UnboundedReceiver<Message>,
        orders: &mut UnboundedReceiver<(Order, oneshot::Sender<Outcome>)>,
        news: &mut UnboundedReceiver<News>,
    ) -> Step {
        tokio::select! {
            // What we are told comes first: it may be to stop.
            biased;
            message = messages.recv(), if !self.orphaned => Step::Told(message),
            Some((order, outcome)) = orders.recv() => Step::Order(order, outcome),
            Some(news) = news.recv() => Step::News(news),
            // Whoever is answered by us is answered first, unless nobody does any more.
            () = self.gateway.ended(), if self.stopping || self.is_answered() => Step::Ended,
        }
    }

    /// Whether nobody waits for the outcome of an order.
    fn is_answered(&self) -> bool {
        self.waiting.values().all(oneshot::Sender::is_closed)
    }

    /// Does as it is told; answers what there is to say to it.
    fn obey(&mut self, message: Option<Message>) -> Option<Word> {
        let Some((message, descriptors)) = message else {
            tracing::error!(drain = ?self.drain, "the keeper has gone; this worker ends what it began");
            (self.orphaned, self.stopping) = (true, true);
            self.gateway.close(self.drain);
            return None;
        };
        match message {
            ToWorker::Start(_) => tracing::error!("told to start once more"),
            ToWorker::Apply(handover) => return Some(self.apply(*handover, descriptors)),
            ToWorker::ReopenErrors => {
                if let Some(file) = descriptors.into_iter().next() {
                    error_log::write_to(Some(file.into()));
                }
            }
            ToWorker::Reopen => {
                if let Some(file) = descriptors.into_iter().next() {
                    self.gateway.reopen(file.into());
                }
            }
            ToWorker::Report(mut report) => {
                report.weaknesses.extend(self.weaknesses.iter().cloned());
                self.gateway.report(*report);
            }
            ToWorker::Reply { id, outcome } => {
                // Whoever asked may have gone.
                self.waiting.remove(&id).map(|waiting| waiting.send(outcome));
            }
            ToWorker::Retire => {
                self.gateway.retire();
                self.gateway.give_places(self.news.clone());
            }
            ToWorker::Places { upstream, count } => self.gateway.grant_places(&upstream, count),
            ToWorker::Recall { upstream } => self.gateway.recall_place(&upstream, self.news.clone()),
            ToWorker::Unready => self.gateway.unready(),
            ToWorker::Stop { deadline } => {
                self.stopping = true;
                self.gateway.close(deadline);
            }
            ToWorker::Challenges { version, pending } => {
                self.gateway.answer_challenges(&pending);
                return Some(Word::Answers { version });
            }
            ToWorker::Certificates(materials) => {
                let all = materials.into_iter().map(|material| HandedCertificate::New(Arc::new(material)));
                self.gateway.serve_certificates(&all.collect::<Vec<_>>());
            }
            ToWorker::Instances(instances) => self.gateway.set_instances(instances),
            ToWorker::Used { pid, used } => self.gateway.note_used(pid, used.ok_or(Unmeasured::Hidden)),
            ToWorker::Another { pid } => self.gateway.note_used(pid, Err(Unmeasured::Another)),
            ToWorker::Tickets(keys) => self.gateway.set_tickets(&keys),
            ToWorker::Beat(beat) => self.gateway.beat(beat, self.news.clone()),
        }
        None
    }

    fn apply(&mut self, mut handover: Handover, descriptors: Vec<OwnedFd>) -> Word {
        let mut provisions = match handover.provisions(descriptors) {
            Ok(provisions) => provisions,
            Err(fault) => {
                tracing::error!(fault, "the configuration cannot be put in force");
                return Word::Failed;
            }
        };
        let (generation, drain) = (handover.generation, handover.plan.drain);
        let asks_others = asks_others(&handover.plan);
        let errors = provisions.error_log.take();
        self.gateway.set_instances(std::mem::take(&mut handover.instances));
        match self.gateway.apply(generation, handover.plan, provisions) {
            Ok(()) => {
                self.drain = drain;
                self.seek_challenges(asks_others);
                write_errors_to(errors);
                Word::Applied
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the configuration cannot be put in force");
                Word::Failed
            }
        }
    }

    fn seek_challenges(&self, asks_others: bool) {
        self.gateway.seek_challenges(asks_others.then(|| self.news.clone()));
    }

    /// The word for `order`, whose outcome the keeper answers.
    fn pass_on(&mut self, order: Order, outcome: oneshot::Sender<Outcome>) -> Option<Word> {
        if self.orphaned {
            // Nobody may be waiting.
            outcome.send(Err("the keeper has gone".to_owned())).ok();
            return None;
        }
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        self.next_order = self.next_order.wrapping_add(1);
        let id = self.next_order;
        self.waiting.insert(id, outcome);
        Some(match order {
            Order::Reload { dry_run } => Word::Reload { id, dry_run },
            Order::Rollback { steps } => Word::Rollback { id, steps },
            Order::Drain { wait } => Word::Drain { id, wait },
            Order::Upgrade => Word::Upgrade { id },
            Order::Reopen => Word::Reopen { id },
            Order::Renew => Word::Renew { id },
            Order::Check => Word::Check { id },
            Order::Export => Word::Export { id },
            Order::Restart { backend } => Word::Restart { id, backend },
        })
    }
}

/// Whether other machines may order what we are asked about.
fn asks_others(plan: &Plan) -> bool {
    plan.tls.shared.is_some() && !plan.tls.acme.is_empty()
}

fn word(news: News) -> Word {
    match news {
        News::Given { upstream, count } => Word::Place { upstream: tag(&upstream), count },
        News::Wanted { upstream } => Word::Want { upstream: tag(&upstream) },
        News::Bound { upstream, count } => Word::Bound { upstream: tag(&upstream), count },
        News::Alive { beat } => Word::Alive { beat },
        News::Sought => Word::Seek,
        News::Instance { id, found } => match found {
            InstanceNews::Up => Word::Up { instance: id },
            InstanceNews::Hung => Word::Hung { instance: id },
            InstanceNews::Drained => Word::Drained { instance: id },
            InstanceNews::Served(count) => Word::Served { instance: id, count },
        },
        News::Watched { pid, started } => Word::Watch { pid, started: u64::try_from(started).unwrap_or(0) },
    }
}
