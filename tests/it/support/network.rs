//! A network of a test's own: every port is free there, and peers may have any address. Several machines may be in it.

use std::{fs::File, net::Ipv4Addr, os::fd::AsFd, path::Path, process::Command, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Peer, clients::run, program, wait_for};

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
    inside(&holder, test);
}

/// Runs `act` in the network that `holder` holds, with what it starts.
fn inside<T: Send + 'static>(holder: &Peer, act: impl FnOnce() -> T + Send + 'static) -> T {
    let network = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    // A thread of its own: the one that runs tests may run others after this.
    let inside = thread::spawn(move || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        act()
    });
    inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Where machines find whoever made them: the test, with its name server and the like.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Has what [`Machine`]s are plugged into. To be called once, [`in_network`].
pub(crate) fn make_hub() {
    ip(&["link", "add", "hub", "type", "bridge"]);
    ip(&["address", "add", &format!("{HUB}/24"), "dev", "hub"]);
    ip(&["link", "set", "hub", "up"]);
}

/// One that has a network and an address of its own, beside the others of the hub. What runs on it is not ended with it.
pub(crate) struct Machine {
    pub(crate) address: Ipv4Addr,
    /// Our end of its cable.
    cable: String,
    holder: Peer,
    _folder: tempfile::TempDir,
}

impl Machine {
    /// Plugs in the machine with this last number of its address.
    pub(crate) fn new(number: u8) -> Self {
        let address = Ipv4Addr::new(10, 77, 0, number);
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && touch \"$1\" && exec sleep 600", "sh"]).arg(&ready);
        let mut holder = Peer::start(&mut command, &folder.path().join("log"));
        wait_for("a machine", || {
            assert!(!holder.has_ended(), "{}", log(folder.path()));
            ready.exists()
        });
        let (cable, pid) = (format!("machine{number}"), holder.id().to_string());
        ip(&["link", "add", &cable, "master", "hub", "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &cable, "up"]);
        let machine = Self { address, cable, holder, _folder: folder };
        machine.run(move || {
            ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            ip(&["link", "set", "eth0", "up"]);
        });
        machine
    }

    /// Does something there: processes that are started are on the machine.
    pub(crate) fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.holder, act)
    }

    /// Pulls its cable: what it sends and what is sent to it is lost.
    pub(crate) fn cut_off(&self) {
        ip(&["link", "set", &self.cable, "down"]);
    }

    pub(crate) fn plug_in(&self) {
        ip(&["link", "set", &self.cable, "up"]);
    }
}

fn ip(arguments: &[&str]) {
    let output = run(Command::new("ip").args(arguments));
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

const SETUP: &str = "ready=$1; shift; ip link set lo up && \
                     for address; do ip address add \"$address/32\" dev lo; done && touch \"$ready\" && exec sleep 600";
