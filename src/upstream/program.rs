//! The program of supervisord's behind an upstream, as it was last seen, and how often it was restarted for hanging.
//!
//! [`crate::gateway`] looks, in its own time; the path of a request asks only whether waiting is of any use.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::{
    backends::{ProgramInfo, ProgramState, Unmeasured, Used},
    config::ProgramPlan,
};

/// What is known of one program.
#[derive(Debug)]
pub struct Program {
    pub plan: ProgramPlan,
    /// Of `sight`, for the path of a request.
    down: AtomicBool,
    /// How many hold requests back from it.
    halts: AtomicUsize,
    sight: Mutex<Sight>,
}

/// Requests wait in front of a program until this is dropped.
#[derive(Debug)]
pub struct Halt(Arc<Program>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.halts.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A program as it was last seen.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// `None` while supervisord cannot be asked.
    pub info: Option<ProgramInfo>,
    /// When it came to be so, as far as that is known.
    pub since: Option<Instant>,
    /// Why supervisord cannot be asked.
    pub unasked: Option<String>,
    /// Restarts for hanging, or for what it used, that were ordered.
    pub restarts: u64,
    /// The last of them, and its cause.
    pub last_restart: Option<(SystemTime, String)>,
    /// What its process uses.
    pub used: Option<Used>,
    /// What it is beyond, once that has lasted.
    pub over: Option<String>,
    /// Since when it is beyond each limit: memory and processors.
    beyond: [Option<Instant>; 2],
    /// Looks in a row that have not found its process.
    unseen: u32,
    /// When the process that was seen last was started, on supervisord's clock: also while that cannot be asked.
    started: Option<i64>,
}

impl Program {
    pub(super) fn new(plan: ProgramPlan) -> Self {
        Self { plan, down: AtomicBool::new(false), halts: AtomicUsize::new(0), sight: Mutex::default() }
    }

    /// As `supervisorctl` calls it.
    pub fn name(&self) -> &str {
        &self.plan.supervisor.program
    }

    /// Takes note of what a look has found, or why there was none; answers whether it may be another process
    /// than before.
    pub fn found(&self, found: Result<&ProgramInfo, String>) -> bool {
        let mut sight = self.sight();
        let mut another = false;
        match found {
            Ok(info) => {
                let before = sight.info.as_ref();
                another = sight.started != Some(info.started);
                // To the second only: what is known is not moved to and fro.
                if another || before.is_none_or(|before| before.state != info.state) {
                    let begun = info.since.and_then(|since| Instant::now().checked_sub(since));
                    sight.since = Some(begun.unwrap_or_else(Instant::now));
                }
                if another {
                    sight.forget_used();
                }
                (sight.info, sight.started) = (Some(info.clone()), Some(info.started));
                sight.unasked = None;
            }
            Err(why) => {
                (sight.info, sight.since) = (None, None);
                sight.unasked = Some(why);
            }
        }
        self.down.store(sight.down().is_some(), Ordering::Relaxed);
        another
    }

    /// Takes note that it was restarted because of `cause`.
    pub fn restarted(&self, cause: &str) {
        let mut sight = self.sight();
        sight.restarts += 1;
        sight.last_restart = Some((SystemTime::now(), cause.to_owned()));
    }

    /// Takes note of what the process `pid` uses, and tells when that has been beyond a limit for long, or is not any more.
    pub fn note_used(&self, pid: u32, used: Result<Used, Unmeasured>) {
        let (Some(watch), mut sight) = (self.plan.watch, self.sight()) else { return };
        if sight.info.as_ref().is_none_or(|info| info.pid != pid) {
            return;
        }
        let used = match used {
            Ok(used) => used,
            Err(why) => {
                sight.unseen = sight.unseen.saturating_add(1);
                if sight.unseen == UNSEEN {
                    tracing::warn!(program = self.name(), pid, "{why}, so that `watch` does nothing");
                }
                (sight.used, sight.over, sight.beyond) = (None, None, [None; 2]);
                return;
            }
        };
        (sight.used, sight.unseen) = (Some(used), 0);
        let limits = [
            (watch.memory.filter(|most| used.memory > *most))
                .map(|most| format!("{} bytes of memory, and not {most}", used.memory)),
            (watch.cpu.filter(|most| used.cpu > *most))
                .map(|most| format!("{} % of a processor, and not {most} %", used.cpu)),
        ];
        let now = Instant::now();
        let mut over = None;
        for (limit, since) in limits.into_iter().zip(&mut sight.beyond) {
            let Some(limit) = limit else {
                *since = None;
                continue;
            };
            let lasted = now.duration_since(*since.get_or_insert(now));
            if lasted >= watch.time {
                over.get_or_insert_with(|| format!("{limit}, for {} s", lasted.as_secs()));
            }
        }
        match (&sight.over, &over) {
            (None, Some(over)) => {
                tracing::warn!(program = self.name(), pid, uses = over, "program uses more than its `watch` allows");
            }
            (Some(_), None) => {
                tracing::info!(program = self.name(), pid, "program uses no more than its `watch` allows again");
            }
            _ => {}
        }
        sight.over = over;
    }

    /// It is to be measured anew: something else is done about it.
    pub fn forget_used(&self) {
        self.sight().forget_used();
    }

    /// Waiting for a connection is of no use: it takes somebody to start it.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Holds requests back from it.
    pub fn halt(self: &Arc<Self>) -> Halt {
        self.halts.fetch_add(1, Ordering::SeqCst);
        Halt(Arc::clone(self))
    }

    /// Requests have to wait.
    pub fn is_halted(&self) -> bool {
        self.halts.load(Ordering::SeqCst) > 0
    }

    /// What it was last seen as.
    pub fn seen(&self) -> Sight {
        self.sight().clone()
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sight {
    fn forget_used(&mut self) {
        (self.used, self.over, self.beyond, self.unseen) = (None, None, [None; 2], 0);
    }

    /// The state, where it is one that only somebody ends. A restart passes through some of them in a moment.
    pub fn down(&self) -> Option<ProgramState> {
        let info = self.info.as_ref()?;
        let settled = self.since.is_some_and(|since| since.elapsed() >= SETTLED);
        let down = match info.state {
            ProgramState::Fatal => true,
            // One without `autostart` that waits for its turn, as docassemble's do, is on its way.
            ProgramState::Stopped => settled && info.started != 0,
            ProgramState::Exited => settled,
            _ => false,
        };
        down.then_some(info.state)
    }

    /// For whoever waits for it; `None` where it runs, or that is not known.
    pub(super) fn words(&self) -> Option<&'static str> {
        let info = self.info.as_ref()?;
        Some(match info.state {
            ProgramState::Starting => "is starting",
            ProgramState::Backoff => "has failed to start, and is tried again",
            ProgramState::Stopping => "is being stopped",
            ProgramState::Stopped if info.started == 0 => "has not been started yet",
            ProgramState::Stopped => "was stopped by an operator",
            ProgramState::Exited => "has ended by itself; the administrator has to look at it",
            ProgramState::Fatal => "has failed to start; the administrator has to look at it",
            ProgramState::Running | ProgramState::Unknown => return None,
        })
    }
}

/// How long a program has been stopped when that is taken for what was wanted: `supervisorctl restart`, and whoever stops
/// and starts it by a script, is faster.
const SETTLED: Duration = Duration::from_secs(3);
/// One look may come in the moment in which a process has just ended.
const UNSEEN: u32 = 3;

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;
    use crate::config::{EndpointAddress, SupervisorPlan, WatchPlan};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn program() -> Program {
        let supervisor = SupervisorPlan {
            address: EndpointAddress::Unix("/none".into()),
            program: "uwsgi".to_owned(),
            username: None,
            password: None,
        };
        Program::new(ProgramPlan { supervisor, restart: None, watch: None })
    }

    fn seen(state: ProgramState, seconds: u64) -> ProgramInfo {
        let since = Some(Duration::from_secs(seconds));
        ProgramInfo { name: "uwsgi".to_owned(), state, started: 1, since, pid: 0, why: None }
    }

    #[test]
    fn waiting_is_of_no_use_once_somebody_has_to_start_the_program() {
        for (state, seconds, down) in [
            (ProgramState::Running, 9, false),
            (ProgramState::Starting, 9, false),
            (ProgramState::Backoff, 9, false),
            (ProgramState::Stopping, 9, false),
            (ProgramState::Stopped, 1, false),
            (ProgramState::Stopped, 9, true),
            (ProgramState::Exited, 1, false),
            (ProgramState::Exited, 9, true),
            (ProgramState::Fatal, 0, true),
            (ProgramState::Unknown, 9, false),
        ] {
            let program = program();
            program.found(Ok(&seen(state, seconds)));
            assert_eq!(program.is_down(), down, "{state:?} for {seconds} s");
            program.found(Err("supervisord is gone".to_owned()));
            assert!(!program.is_down(), "nothing is known any more");
            assert_eq!(program.seen().words(), None);
        }
    }

    #[test]
    fn a_program_is_halted_until_everybody_who_has_halted_it_lets_go() {
        let program = Arc::new(program());
        let (first, second) = (program.halt(), program.halt());
        drop(first);
        assert!(program.is_halted());
        drop(second);
        assert!(!program.is_halted());
    }

    #[test]
    fn one_that_was_never_started_has_its_turn_still_to_come() {
        let program = program();
        program.found(Ok(&ProgramInfo { started: 0, ..seen(ProgramState::Stopped, 9) }));
        assert!(!program.is_down());
        assert_eq!(program.seen().words(), Some("has not been started yet"));
    }

    #[test]
    fn too_much_is_too_much_once_it_has_lasted_and_of_the_same_process() {
        let mut program = program();
        let watch = WatchPlan { memory: Some(10), cpu: Some(50), time: Duration::ZERO, restart: false };
        program.plan.watch = Some(watch);
        let over = |program: &Program| program.seen().over;
        program.found(Ok(&ProgramInfo { pid: 7, ..seen(ProgramState::Running, 9) }));

        program.note_used(8, Ok(Used { memory: 11, cpu: 0 }));
        assert_eq!(over(&program), None, "another process");
        program.note_used(7, Ok(Used { memory: 10, cpu: 50 }));
        assert_eq!(over(&program), None, "as much as it may");
        program.note_used(7, Ok(Used { memory: 11, cpu: 51 }));
        assert_eq!(over(&program).as_deref(), Some("11 bytes of memory, and not 10, for 0 s"));
        program.note_used(7, Ok(Used { memory: 9, cpu: 51 }));
        assert_eq!(over(&program).as_deref(), Some("51 % of a processor, and not 50 %, for 0 s"));
        program.found(Ok(&ProgramInfo { started: 2, pid: 9, ..seen(ProgramState::Running, 0) }));
        assert_eq!(over(&program), None, "it was restarted");

        program.plan.watch = Some(WatchPlan { time: Duration::from_secs(3600), ..watch });
        program.note_used(9, Ok(Used { memory: 11, cpu: 51 }));
        assert_eq!(over(&program), None, "not for long yet");
    }

    #[test]
    fn what_cannot_be_measured_is_no_measure_and_is_told_of_once() {
        let mut program = program();
        program.plan.watch = Some(WatchPlan { memory: Some(10), cpu: None, time: Duration::ZERO, restart: false });
        program.found(Ok(&ProgramInfo { pid: 7, ..seen(ProgramState::Running, 9) }));
        program.note_used(7, Ok(Used { memory: 11, cpu: 0 }));
        assert!(program.seen().over.is_some());
        for (why, words) in [(Unmeasured::Hidden, "ProtectProc"), (Unmeasured::Another, "another container")] {
            let log = Log::default();
            let kept = log.clone();
            let writing = tracing_subscriber::fmt().with_writer(move || kept.clone()).finish();
            tracing::subscriber::with_default(writing, || (0..9).for_each(|_| program.note_used(7, Err(why))));

            let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert_eq!((program.seen().used, program.seen().over), (None, None), "{why:?}");
            assert_eq!(told.matches("`watch` does nothing").count(), 1, "{told}");
            assert!(told.contains(words), "{told}");
            program.forget_used();
        }
    }

    #[test]
    fn it_is_the_same_process_after_supervisord_could_not_be_asked_for_a_while() {
        let program = program();
        assert!(program.found(Ok(&seen(ProgramState::Running, 10))), "nothing is known of one before");
        assert!(!program.found(Err("no answer in time".to_owned())));

        assert!(!program.found(Ok(&seen(ProgramState::Running, 20))));
        program.found(Err("no answer in time".to_owned()));
        assert!(program.found(Ok(&ProgramInfo { started: 2, ..seen(ProgramState::Running, 0) })));
    }

    #[test]
    fn since_when_it_is_so_does_not_move_with_each_look() {
        let program = program();
        program.found(Ok(&seen(ProgramState::Running, 10)));
        let since = program.seen().since;
        program.found(Ok(&seen(ProgramState::Running, 11)));
        assert_eq!(program.seen().since, since);
        program.found(Ok(&ProgramInfo { started: 2, ..seen(ProgramState::Running, 0) }));
        assert!(program.seen().since > since, "it was started anew between two looks");
    }
}
