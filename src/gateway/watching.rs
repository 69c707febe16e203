//! What programs of supervisord's use. Only the keeper sees other processes: it is told which, by number, and answers with sizes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::UnboundedSender,
    time::{MissedTickBehavior, interval},
};

use super::{Gateway, News};
use crate::backends::{ProgramState, Unmeasured, Used};

impl Gateway {
    /// Has programs with a `watch` measured, again and again until we leave: then it is another worker's business.
    pub fn watch_programs(&self, news: UnboundedSender<News>) {
        let (current, drain) = (Arc::clone(&self.current), self.drain.clone());
        self.control.spawn(async move {
            let mut tick = interval(BETWEEN_LOOKS);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    biased;
                    () = drain.started() => return,
                    _ = tick.tick() => {}
                }
                let runtime = current.load_full();
                let watched = runtime.upstreams.values().filter_map(|upstream| upstream.program.as_ref());
                for program in watched.filter(|program| program.plan.watch.is_some()) {
                    let info = program.seen().info.filter(|info| info.state == ProgramState::Running && info.pid != 0);
                    if let Some(info) = info {
                        news.send(News::Watched { pid: info.pid, started: info.started }).ok();
                    }
                }
            }
        });
    }

    /// Takes note of what the process `pid` of a program uses, or why that is not known.
    pub fn note_used(&self, pid: u32, used: Result<Used, Unmeasured>) {
        for upstream in self.current.load().upstreams.values() {
            if let Some(program) = &upstream.program {
                program.note_used(pid, used);
            }
        }
    }
}

/// Between two looks of the keeper's.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
