//! A front door to look at: `vestibule demo`.
//!
//! A Python application, a websocket server and files behind http and https on free ports of loopback, with a
//! configuration written as text and read through the same door as everybody's. All of it lives in a temporary folder
//! and ends with us: in order when we are told to stop, and by the guard of the application, which removes the folder then, when
//! we are killed.

mod application;
mod configuration;
mod echo;
mod folder;

use std::{
    error::Error,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use futures_util::future::join;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use self::{echo::Echo, folder::Folder};
use crate::{
    config::{ListenAddress, Source},
    process::{self, Options},
};

/// Runs until TERM or INT; prints the addresses when they are open, and the access log after them.
///
/// # Errors
///
/// What is missing on this machine, and what to do about it.
pub fn run() -> Result<(), Box<dyn Error>> {
    // Dropped in the reverse order: the folder after everybody who has files in it.
    let folder = Folder::make()?;
    application::prepare(folder.path())?;
    let echo = Echo::bind()?;
    let file = configuration::write(folder.path(), echo.address()?)?;
    // Before there is another thread: signals are for the one that waits for them.
    process::hold_signals();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (open, opened) = oneshot::channel();
    let (source, ready) = (Source::Native(file.clone()), folder.path().join("ready"));
    let beside = async move { join(echo.run(), announce_when(ready, opened, file)).await };
    thread::Builder::new().name("echo".to_owned()).spawn(move || runtime.block_on(beside))?;
    let options = Options { single: true, ..Options::default() };
    let begun = |addresses: &[ListenAddress]| drop(open.send(addresses.to_vec()));
    // A slow page of the demonstration that was cut off is no failure of it.
    process::serve_and_tell(source, options, begun)?;
    Ok(())
}

/// Waits for the file `ready`, which is there when the application is, and says what there is to see. An application that does
/// not come says why in the log.
async fn announce_when(ready: PathBuf, opened: oneshot::Receiver<Vec<ListenAddress>>, configuration: PathBuf) {
    let Ok(addresses) = opened.await else { return };
    let begun = async {
        while !ready.exists() {
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, begun).await.ok();
    // Nobody may be reading; the door is open all the same.
    drop(announce(&addresses, &configuration));
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

/// Python starts in a fraction of a second; a slow disk is given its time.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// In the order of the configuration.
const LISTENERS: [(&str, &str); 2] = [("http", ""), ("https", "  (self-signed: your browser will ask)")];
