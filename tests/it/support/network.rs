//! A network of a test's own: every port is free there, and peers may have any address.

use std::{fs::File, os::fd::AsFd, path::Path, process::Command, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Peer, program, wait_for};

/// Addresses that a test may connect from, beside those of loopback: a load balancer's, and two of the internet.
pub(crate) const BALANCER: &str = "10.0.0.1";
pub(crate) const CLIENT: &str = "203.0.113.7";
pub(crate) const OTHER_CLIENT: &str = "198.51.100.9";

/// Runs `test` in a network of its own, with what it starts. Needs root; without it the test is skipped.
pub(crate) fn in_network(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network of its own needs root");
        return;
    }
    if program("ip").is_none() || program("unshare").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", SETUP, "sh"]).arg(&ready).args([BALANCER, CLIENT, OTHER_CLIENT]);
    let mut holder = Peer::start(&mut command, &folder.path().join("log"));
    wait_for("the network", || {
        assert!(!holder.has_ended(), "{}", log(folder.path()));
        ready.exists()
    });
    let network = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    // A thread of its own: the one that runs tests may run others after this.
    let inside = thread::spawn(move || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        test();
    });
    if let Err(panic) = inside.join() {
        std::panic::resume_unwind(panic);
    }
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

const SETUP: &str = "ready=$1; shift; ip link set lo up && \
                     for address; do ip address add \"$address/32\" dev lo; done && touch \"$ready\" && exec sleep 600";
