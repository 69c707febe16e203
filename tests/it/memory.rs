//! What is left of a configuration that is no longer in force.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vestibule::{
    config::{self, ListenAddress, Plan},
    gateway::Gateway,
    keeper::{Provisions, sockets::Sockets},
    tls::TicketKeys,
};

use crate::support::{Backend, PATIENCE, raw};

#[test]
fn five_hundred_reloads_leave_no_more_behind_than_five() {
    const CHILD: &str = "VESTIBULE_TEST_RELOADS";
    if let Ok(count) = std::env::var(CHILD) {
        return reload_and_measure(count.parse().unwrap());
    }
    // In a process of its own, whose memory is nobody else's.
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::five_hundred_reloads_leave_no_more_behind_than_five", "--nocapture"])
        .env(CHILD, "500")
        .output()
        .unwrap();

    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

/// A gateway that is given one configuration after the other, each with a listener, an upstream, a route and a log of
/// its own, and other terms of TLS than the one before.
struct Reloaded {
    folder: tempfile::TempDir,
    backend: Backend,
    sockets: Sockets,
    plan: Plan,
    gateway: Gateway,
    generation: u64,
}

impl Reloaded {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Or idle connections to endpoints of before would be there for a while.
        let backend = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        let plan = plan(&folder, &backend, 1);
        let mut sockets = Sockets::default();
        let provisions = Provisions::gather_beside(&plan, &mut sockets, None, None).unwrap();
        let gateway = Gateway::start(plan.clone(), provisions, 1, &TicketKeys::generate().unwrap(), None).unwrap();
        Self { folder, backend, sockets, plan, gateway, generation: 1 }
    }

    /// Reloads and asks for something, so that all that belongs to the generation is made.
    fn reload(&mut self) {
        self.generation += 1;
        let next = plan(&self.folder, &self.backend, self.generation);
        let provisions = Provisions::gather_beside(&next, &mut self.sockets, Some(&self.plan), None).unwrap();
        self.gateway.apply(self.generation, next.clone(), provisions).unwrap();
        self.sockets.keep(&next);
        self.plan = next;
        let ListenAddress::Tcp(address) = self.gateway.addresses()[0] else { panic!("not TCP") };
        let path = format!("/{}/", self.generation);
        let answer = raw(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    fn descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn threads() -> usize {
        fs::read_dir("/proc/self/task").unwrap().count()
    }

    /// In pages.
    fn memory() -> usize {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Series, descriptors, threads: the fewest within a while, since much ends a moment after the reload.
    fn left(&self) -> (usize, usize, usize) {
        let end = Instant::now() + Duration::from_secs(2);
        let (mut descriptors, mut threads) = (usize::MAX, usize::MAX);
        while Instant::now() < end {
            descriptors = descriptors.min(Self::descriptors());
            threads = threads.min(Self::threads());
            thread::park_timeout(Duration::from_millis(20));
        }
        // Series of the last listener but one are still counted in until its connection has ended.
        self.gateway.metrics.reloaded(self.generation);
        let series = self.gateway.metrics.encode().lines().count();
        (series, descriptors, threads)
    }
}

fn plan(folder: &tempfile::TempDir, backend: &Backend, number: u64) -> Plan {
    let (log, host, tls13) = (number % 3, number % 250 + 1, number.is_multiple_of(2));
    let protocols = if tls13 { "[TLSv1.3]" } else { "[TLSv1.2, TLSv1.3]" };
    let text = format!(
        "listeners: [{{ address: '127.0.1.{host}:0' }}, {{ address: '127.0.2.{host}:0', tls: true }}]\n\
         upstreams: {{ app{number}: {{ endpoints: ['{}'], concurrency: 2 }} }}\n\
         routes: [{{ prefix: /{number}/, upstream: app{number}, files: ['{}'] }}]\n\
         tls: {{ storage: storage, protocols: {protocols} }}\nspool: {{ path: . }}\nworkers: 2\n\
         access_log: {{ path: access{log}.log }}\n",
        backend.address,
        folder.path().display()
    );
    let file = folder.path().join("vestibule.yml");
    config::parse(file.to_str().unwrap(), &text, &|_| None).unwrap_or_else(|error| panic!("{error}"))
}

fn reload_and_measure(count: usize) {
    let mut reloaded = Reloaded::start();
    // As fast as this, dozens of listeners that were removed still accept for their last moment: it takes a while until
    // the allocator and the threads have what they go on with.
    (0..200).for_each(|_| reloaded.reload());
    let (left, memory) = (reloaded.left(), Reloaded::memory());

    (0..count).for_each(|_| reloaded.reload());

    let (more, more_memory) = (reloaded.left(), Reloaded::memory());
    eprintln!("{left:?}, {memory} pages; {more:?}, {more_memory} pages");
    assert_eq!(more.0, left.0, "lines of metrics");
    assert!(more.1 <= left.1, "{} descriptors, and {} before", more.1, left.1);
    assert!(more.2 <= left.2, "{} threads, and {} before", more.2, left.2);
    // A generation that stays is larger than this for each; what the allocator of a test makes of so many short lives at
    // once is less. What the program's own makes of reloads one after the other is measured with the soak.
    assert!(more_memory < memory + 4 * count, "{more_memory} pages, and {memory} before");
    assert_eq!(reloaded.gateway.current.living().len(), 1);
    reloaded.gateway.stop(PATIENCE);
}
