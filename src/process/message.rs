//! What keeper and worker say to each other.
//!
//! The keeper hands over what the worker cannot get itself ([`ToWorker`]). The worker says one of a few words of
//! sixteen bytes ([`Word`]): it can name no path, no command and no text, so that one that has been taken over can ask
//! for nothing but what any worker may ask for.
//!
//! After an upgrade the keeper is of another version than the workers that leave: variants of both are only added, at
//! the end.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    admin::{AdminSecrets, LONGEST_WAIT, Outcome, Report},
    backends::{Instance, Used},
    config::{ListenAddress, ListenerPlan, LogSink, Plan, Secret},
    files::{Denied, Roots},
    keeper::{
        Provisions,
        output::LogOutput,
        roots,
        secrets::UserFiles,
        sockets::{AdminSockets, BoundListener, BoundSockets},
        user::User,
    },
    tls::{CertificateMaterial, ClientAuthorities, HandedCertificate, PendingChallenge, TicketKeys},
    upstream::StickKey,
};

/// What a worker is told.
#[derive(Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// Begin. With the descriptors of [`Handover`].
    Start(Box<Handover>),
    /// Put another plan in force. Likewise.
    Apply(Box<Handover>),
    /// Go on with another file for the access log, which comes along.
    Reopen,
    /// How the keeper is, for `/status`.
    Report(Box<Report>),
    /// What came of an order.
    Reply { id: u32, outcome: Outcome },
    /// Accept no more, and end what was begun.
    Retire,
    /// Take places that another worker had.
    Places { upstream: String, count: u32 },
    /// Give one place up, for a worker that leaves and has a request left.
    Recall { upstream: String },
    /// Say "not ready".
    Unready,
    /// End: what is inside has this long.
    Stop { deadline: Duration },
    /// Seal session tickets with these.
    Tickets(TicketKeys),
    /// Answer, if alive.
    Beat(u64),
    /// Go on with another file for warnings and errors, which comes along.
    ReopenErrors,
    /// Answer exactly these, and say so.
    Challenges { version: u64, pending: Vec<PendingChallenge> },
    /// Serve these in place of those that came with the plan.
    Certificates(Vec<CertificateMaterial>),
    /// These are the instances of programs of ours.
    Instances(Vec<Instance>),
    /// What a process that is watched uses.
    Used { pid: u32, used: Option<Used> },
    /// It is another process than that which was asked about.
    Another { pid: u32 },
}

/// A plan and what goes with it. Descriptors come in the order of the fields.
#[derive(Serialize, Deserialize)]
pub(super) struct Handover {
    pub(super) generation: u64,
    pub(super) plan: Plan,
    listeners: Vec<HandedListener>,
    certificates: Vec<HandedCertificate>,
    client_authorities: ClientAuthorities,
    users: UserFiles,
    denied: Denied,
    /// Whether there is the descriptor of a file. Standard output is inherited.
    access_log: bool,
    error_log: bool,
    /// Likewise of the unix socket and of the one on TCP.
    admin: [bool; 2],
    admin_secrets: Option<AdminSecrets>,
    /// To become this user before anything else.
    pub(super) user: Option<User>,
    /// Places that workers before this one still have, by upstream.
    pub(super) held: BTreeMap<String, u32>,
    pub(super) tickets: TicketKeys,
    stick: Option<StickKey>,
    pub(super) instances: Vec<Instance>,
}

#[derive(Serialize, Deserialize)]
struct HandedListener {
    plan: ListenerPlan,
    address: ListenAddress,
    sockets: HandedSockets,
}

/// How many descriptors of which kind.
#[derive(Serialize, Deserialize)]
enum HandedSockets {
    Tcp(u32),
    Unix(u32),
    Kept,
}

impl Handover {
    pub(super) fn new(
        generation: u64,
        plan: &Plan,
        provisions: Provisions,
        user: Option<User>,
        held: BTreeMap<String, u32>,
        tickets: TicketKeys,
        instances: Vec<Instance>,
    ) -> (Self, Vec<OwnedFd>) {
        let mut descriptors = Vec::new();
        let mut listeners = Vec::new();
        for BoundListener { plan, address, sockets } in provisions.listeners {
            let count = |sockets: usize| u32::try_from(sockets).unwrap_or(u32::MAX);
            let sockets = match sockets {
                BoundSockets::Tcp(sockets) => {
                    let handed = HandedSockets::Tcp(count(sockets.len()));
                    descriptors.extend(sockets.into_iter().map(OwnedFd::from));
                    handed
                }
                BoundSockets::Unix(sockets) => {
                    let handed = HandedSockets::Unix(count(sockets.len()));
                    descriptors.extend(sockets.into_iter().map(OwnedFd::from));
                    handed
                }
                BoundSockets::Kept => HandedSockets::Kept,
            };
            listeners.push(HandedListener { plan, address, sockets });
        }
        let file = |log| match log {
            Some(LogOutput::File { file, .. }) => Some(OwnedFd::from(file)),
            Some(LogOutput::Stdout) | None => None,
        };
        let logs = [provisions.access_log, provisions.error_log].map(file);
        let [access_log, error_log] = [0, 1].map(|log: usize| logs[log].is_some());
        descriptors.extend(logs.into_iter().flatten());
        descriptors.push(provisions.spool);
        let AdminSockets { unix, tcp } = provisions.admin;
        let admin = [unix.is_some(), tcp.is_some()];
        descriptors.extend(unix.map(OwnedFd::from).into_iter().chain(tcp.map(OwnedFd::from)));
        let (mut plan, certificates) = (plan.clone(), provisions.certificates);
        // The programs are the keeper's. Names and commands stay for `/config`, which tells no value.
        for value in plan.backends.values_mut().flat_map(|backend| backend.environment.values_mut()) {
            *value = Secret::new(String::new());
        }
        let (client_authorities, users, stick) = (provisions.client_authorities, provisions.users, provisions.stick);
        let denied = Arc::unwrap_or_clone(provisions.denied);
        (
            Self {
                generation,
                plan,
                listeners,
                certificates,
                client_authorities,
                users,
                denied,
                access_log,
                error_log,
                admin,
                admin_secrets: provisions.admin_secrets,
                user,
                held,
                tickets,
                stick,
                instances,
            },
            descriptors,
        )
    }

    /// What was handed over, as the gateway takes it; opens the folders of `files` as the user that we are.
    pub(super) fn provisions(&mut self, descriptors: Vec<OwnedFd>) -> Result<Provisions, String> {
        let mut descriptors = descriptors.into_iter();
        let missing = || "fewer descriptors came than were announced".to_owned();
        let mut next = || descriptors.next().ok_or_else(missing);
        let mut listeners = Vec::new();
        for HandedListener { plan, address, sockets } in self.listeners.drain(..) {
            let sockets = match sockets {
                HandedSockets::Tcp(count) => {
                    BoundSockets::Tcp((0..count).map(|_| next().map(Into::into)).collect::<Result<_, _>>()?)
                }
                HandedSockets::Unix(count) => {
                    BoundSockets::Unix((0..count).map(|_| next().map(Into::into)).collect::<Result<_, _>>()?)
                }
                HandedSockets::Kept => BoundSockets::Kept,
            };
            listeners.push(BoundListener { plan, address, sockets });
        }
        let access_log = match self.plan.access_log.as_ref().map(|log| &log.sink) {
            Some(LogSink::File(path)) if self.access_log => {
                Some(LogOutput::File { path: path.clone(), file: next()?.into() })
            }
            Some(LogSink::Stdout) => Some(LogOutput::Stdout),
            _ => None,
        };
        let error_log = match &self.plan.error_log {
            Some(log) if self.error_log => Some(LogOutput::File { path: log.path.clone(), file: next()?.into() }),
            _ => None,
        };
        let spool = next()?;
        let admin = AdminSockets {
            unix: if self.admin[0] { Some(next()?.into()) } else { None },
            tcp: if self.admin[1] { Some(next()?.into()) } else { None },
        };
        let denied = Arc::new(std::mem::take(&mut self.denied));
        let files: Vec<Roots> = roots(&self.plan, &denied).map_err(|faults| faults.to_string())?;
        let certificates = std::mem::take(&mut self.certificates);
        let client_authorities = std::mem::take(&mut self.client_authorities);
        let users = std::mem::take(&mut self.users);
        Ok(Provisions {
            listeners,
            certificates,
            materials: Vec::new(),
            client_authorities,
            users,
            access_log,
            error_log,
            spool,
            admin,
            admin_secrets: self.admin_secrets.take(),
            denied,
            files,
            stick: self.stick.take(),
        })
    }
}

/// All that a worker can say. Upstreams are said by their [`crate::admin::tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It accepts connections.
    Ready,
    /// The plan it was told to apply is in force.
    Applied,
    /// It is not, and nothing has changed.
    Failed,
    Reload {
        id: u32,
        dry_run: bool,
    },
    Rollback {
        id: u32,
        steps: u32,
    },
    /// `wait`: whole milliseconds.
    Drain {
        id: u32,
        wait: Duration,
    },
    Upgrade {
        id: u32,
    },
    /// Places that are free for another worker.
    Place {
        upstream: u32,
        count: u32,
    },
    /// A place for a request that has none.
    Want {
        upstream: u32,
    },
    /// All its threads have turned since that beat.
    Alive {
        beat: u64,
    },
    /// It has come to its end, which these had to be cut off for.
    Ended {
        requests: u32,
        tunnels: u32,
    },
    Reopen {
        id: u32,
    },
    /// It answers the challenges of that version.
    Answers {
        version: u64,
    },
    /// Order certificates anew.
    Renew {
        id: u32,
    },
    /// Look what is in the way of certificates.
    Check {
        id: u32,
    },
    /// Look for what other machines order: somebody asks for a challenge that is none of ours. Which one is not said; all
    /// there are come back.
    Seek,
    /// Bring certificates to other programs.
    Export {
        id: u32,
    },
    /// As many places there are of an upstream whose bound follows its workers; of one that leaves: as many as it has.
    Bound {
        upstream: u32,
        count: u32,
    },
    /// Replace the instances of a backend, which is said likewise.
    Restart {
        id: u32,
        backend: u32,
    },
    /// An instance answers.
    Up {
        instance: u32,
    },
    /// It does not any more, and should.
    Hung {
        instance: u32,
    },
    /// It is sent nothing any more and has nothing left.
    Drained {
        instance: u32,
    },
    /// So many requests of this worker have been sent there.
    Served {
        instance: u32,
        count: u32,
    },
    /// Look what a process uses, with all that it began, if it is the one that was begun then, in seconds since 1970; 0: at
    /// whatever time. Nothing else comes of it.
    Watch {
        pid: u32,
        started: u64,
    },
}

/// Bytes of a word: kind, id, argument; little endian.
pub(super) const WORD: usize = 16;

/// Why what came is no word.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NoWord {
    #[error("a message of another length than {WORD} bytes")]
    Length,
    #[error("a message of the unknown kind {0}")]
    Kind(u32),
    #[error("a message with an argument that is out of bounds")]
    Argument,
    #[error("a message with descriptors")]
    Descriptors,
}

impl Word {
    pub(super) fn encode(self) -> [u8; WORD] {
        let (kind, id, argument) = match self {
            Self::Ready => (1, 0, 0),
            Self::Applied => (2, 0, 0),
            Self::Failed => (3, 0, 0),
            Self::Reload { id, dry_run } => (4, id, u64::from(dry_run)),
            Self::Rollback { id, steps } => (5, id, u64::from(steps)),
            Self::Drain { id, wait } => (6, id, u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            Self::Upgrade { id } => (7, id, 0),
            Self::Place { upstream, count } => (8, upstream, u64::from(count)),
            Self::Want { upstream } => (9, upstream, 0),
            Self::Alive { beat } => (10, 0, beat),
            Self::Ended { requests, tunnels } => (11, requests, u64::from(tunnels)),
            Self::Reopen { id } => (12, id, 0),
            Self::Answers { version } => (13, 0, version),
            Self::Renew { id } => (14, id, 0),
            Self::Check { id } => (15, id, 0),
            Self::Seek => (16, 0, 0),
            Self::Export { id } => (17, id, 0),
            Self::Bound { upstream, count } => (18, upstream, u64::from(count)),
            Self::Restart { id, backend } => (19, id, u64::from(backend)),
            Self::Up { instance } => (20, instance, 0),
            Self::Hung { instance } => (21, instance, 0),
            Self::Drained { instance } => (22, instance, 0),
            Self::Served { instance, count } => (23, instance, u64::from(count)),
            Self::Watch { pid, started } => (24, pid, started),
        };
        let mut bytes = [0; WORD];
        bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(id));
        bytes[8..].copy_from_slice(&u64::to_le_bytes(argument));
        bytes
    }

    /// The one word that `bytes` are.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, NoWord> {
        let bytes: &[u8; WORD] = bytes.try_into().map_err(|_| NoWord::Length)?;
        let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let mut argument = [0; 8];
        argument.copy_from_slice(&bytes[8..]);
        let argument = u64::from_le_bytes(argument);
        let small = || u32::try_from(argument).map_err(|_| NoWord::Argument);
        let word = match kind {
            1 => Self::Ready,
            2 => Self::Applied,
            3 => Self::Failed,
            4 => Self::Reload { id, dry_run: argument == 1 },
            5 => Self::Rollback { id, steps: small()? },
            6 => match Duration::from_millis(argument) {
                wait if wait <= LONGEST_WAIT => Self::Drain { id, wait },
                _ => return Err(NoWord::Argument),
            },
            7 => Self::Upgrade { id },
            8 => Self::Place { upstream: id, count: small()? },
            9 => Self::Want { upstream: id },
            10 => Self::Alive { beat: argument },
            11 => Self::Ended { requests: id, tunnels: small()? },
            12 => Self::Reopen { id },
            13 => Self::Answers { version: argument },
            14 => Self::Renew { id },
            15 => Self::Check { id },
            16 => Self::Seek,
            17 => Self::Export { id },
            18 => Self::Bound { upstream: id, count: small()? },
            19 => Self::Restart { id, backend: small()? },
            20 => Self::Up { instance: id },
            21 => Self::Hung { instance: id },
            22 => Self::Drained { instance: id },
            23 => Self::Served { instance: id, count: small()? },
            24 => Self::Watch { pid: id, started: argument },
            kind => return Err(NoWord::Kind(kind)),
        };
        // What a word does not use is zero.
        if word.encode() == *bytes { Ok(word) } else { Err(NoWord::Argument) }
    }
}

/// The descriptors of `owned`, to be sent.
pub(super) fn borrowed(owned: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    owned.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;

    #[test]
    fn every_word_is_read_as_it_was_said() {
        for word in [
            Word::Ready,
            Word::Applied,
            Word::Failed,
            Word::Reload { id: 7, dry_run: true },
            Word::Reload { id: u32::MAX, dry_run: false },
            Word::Rollback { id: 1, steps: 19 },
            Word::Drain { id: 1, wait: Duration::from_secs(10) },
            Word::Upgrade { id: 3 },
            Word::Place { upstream: 2, count: 6 },
            Word::Want { upstream: 2 },
            Word::Alive { beat: u64::MAX },
            Word::Ended { requests: 3, tunnels: u32::MAX },
            Word::Reopen { id: 4 },
            Word::Answers { version: u64::MAX },
            Word::Renew { id: 9 },
            Word::Check { id: 9 },
            Word::Seek,
            Word::Export { id: 9 },
            Word::Bound { upstream: 2, count: 6 },
            Word::Restart { id: 9, backend: u32::MAX },
            Word::Up { instance: 7 },
            Word::Hung { instance: 7 },
            Word::Drained { instance: 7 },
            Word::Served { instance: 7, count: 1 },
            Word::Watch { pid: u32::MAX, started: 0 },
            Word::Watch { pid: 7, started: u64::MAX },
        ] {
            assert_eq!(Word::decode(&word.encode()), Ok(word));
        }
    }

    #[test]
    fn a_worker_is_not_told_what_is_in_the_environment_of_a_program() {
        let text = "listeners: [{ address: '127.0.0.1:0' }]\n\
                    backends: { app: { command: [app], environment: { DATABASE: 'db:hush' } } }\n\
                    upstreams: { app: { backend: app } }\n\
                    routes: [{ prefix: /, upstream: app }]\n";
        let plan = config::parse("/etc/v.yml", text, &|_| None).unwrap();
        let provisions = Provisions {
            listeners: Vec::new(),
            certificates: Vec::new(),
            materials: Vec::new(),
            client_authorities: ClientAuthorities::new(),
            users: UserFiles::new(),
            access_log: None,
            error_log: None,
            spool: tempfile::tempfile().unwrap().into(),
            admin: AdminSockets::default(),
            admin_secrets: None,
            denied: Arc::default(),
            files: Vec::new(),
            stick: None,
        };

        let tickets = TicketKeys::generate().unwrap();
        let (handover, _) = Handover::new(1, &plan, provisions, None, BTreeMap::new(), tickets, Vec::new());

        assert!(!serde_json::to_string(&handover.plan).unwrap().contains("hush"));
        assert_eq!(config::without_passwords(&handover.plan), config::without_passwords(&plan), "as `/config` has it");
    }

    #[test]
    fn what_is_no_word_is_refused_by_what_is_wrong_with_it() {
        assert_eq!(Word::decode(b"/etc/shadow"), Err(NoWord::Length));
        assert_eq!(Word::decode(&[1; 4096]), Err(NoWord::Length));
        assert_eq!(Word::decode(&[0; WORD]), Err(NoWord::Kind(0)));
        let mut ready = Word::Ready.encode();
        ready[9] = 1;
        assert_eq!(Word::decode(&ready), Err(NoWord::Argument), "a word with a stowaway");
        let mut drain = Word::Drain { id: 1, wait: Duration::ZERO }.encode();
        drain[15] = 1;
        assert_eq!(Word::decode(&drain), Err(NoWord::Argument));
    }

    proptest! {
        #[test]
        fn whatever_is_read_as_a_word_is_said_in_the_same_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(word) = Word::decode(&bytes) {
                prop_assert_eq!(&word.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn near_words_are_words_or_refused(kind in 0u32..25, id in any::<u32>(), argument in any::<u64>()) {
            let mut bytes = [0; WORD];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[4..8].copy_from_slice(&id.to_le_bytes());
            bytes[8..].copy_from_slice(&argument.to_le_bytes());
            if let Ok(word) = Word::decode(&bytes) {
                prop_assert_eq!(word.encode(), bytes);
            }
        }
    }
}
