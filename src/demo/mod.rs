//! A front door to look at: `vestibule demo`.
//!
//! A Python application, a websocket server and files behind http and https on free ports of loopback, with a
//! configuration written as text and read through the same door as everybody's. All of it lives in a temporary folder
//! and ends with us: in order when we are told to stop, and by the application, which sees its input end, when we are
//! killed.

mod application;
mod configuration;
mod echo;
mod folder;

use std::{
    error::Error,
    io::{self, Write},
    path::Path,
};

use self::{echo::Echo, folder::Folder};
use crate::{
    config::{self, ListenAddress, Source},
    gateway::Gateway,
    keeper::Provisions,
    process::Signals,
    tls::TicketKeys,
};

/// Runs until TERM or INT; prints the addresses when they are open, and the access log after them.
///
/// # Errors
///
/// What is missing on this machine, and what to do about it.
pub fn run() -> Result<(), Box<dyn Error>> {
    // Dropped in the reverse order: the folder after everybody who has files in it.
    let folder = Folder::make()?;
    let application = application::start(folder.path())?;
    let echo = Echo::bind()?;
    let file = configuration::write(folder.path(), &application.address, echo.address()?)?;
    let plan = config::load(&Source::Native(file.clone()))?;
    let provisions = Provisions::gather(&plan)?;
    let deadline = plan.drain;
    let gateway = Gateway::start(plan, provisions, 1, &TicketKeys::generate()?, None)?;
    gateway.control().spawn(echo.run());
    let signals = gateway.control().block_on(async { Signals::catch() })?;
    // Nobody may be reading; the door is open all the same.
    drop(announce(&gateway.addresses(), &file));
    gateway.control().block_on(signals.stopped());
    // A slow page of the demonstration that was cut off is no failure of it.
    gateway.stop(deadline);
    Ok(())
}

fn announce(addresses: &[ListenAddress], configuration: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "A front door with an application, a websocket server and files behind it:\n")?;
    for (address, (scheme, note)) in addresses.iter().zip(LISTENERS) {
        if let ListenAddress::Tcp(address) = address {
            writeln!(out, "  {scheme}://localhost:{}/{note}", address.port())?;
        }
    }
    writeln!(out, "\nIts configuration: {}", configuration.display())?;
    writeln!(out, "Ctrl-C stops it, and nothing stays behind. Requests, as they come:\n")?;
    out.flush()
}

/// In the order of the configuration.
const LISTENERS: [(&str, &str); 2] = [("http", ""), ("https", "  (self-signed: your browser will ask)")];
