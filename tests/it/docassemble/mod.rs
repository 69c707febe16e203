//! docassemble's own configuration, in the built binary, on the ports that it says.

mod alongside;
mod configuration;
mod front_door;
mod installed;
mod log_server;
mod neighbours;
mod starting;

use std::{fs, os::unix::fs::chown, process::Command};

use super::support::served::{Served, folder};

/// The front door of a docassemble whose `config.yml` is in a folder of the test's own, and belongs to its user.
pub(super) struct Site {
    pub(super) served: Served,
}

impl Site {
    /// Serves what `config` says, but with `overlay`, in which `{dir}` is the folder.
    pub(super) fn start(config: &str, overlay: &str) -> Self {
        Self::start_with(Some(config), overlay, &[])
    }

    /// The same with these variables; `None`: there is no `config.yml` yet.
    pub(super) fn start_with(config: Option<&str>, overlay: &str, variables: &[(&str, &str)]) -> Self {
        let folder = folder();
        fs::create_dir(folder.path().join("da")).unwrap();
        chown(folder.path().join("da"), Some(www_data()), None).unwrap();
        let file = folder.path().join("da/config.yml");
        if let Some(config) = config {
            put(&file, config);
        }
        let served = Served::start_in(folder, overlay, |command| {
            command.arg("--docassemble").arg(file).envs(variables.iter().copied());
        });
        Self { served }
    }

    /// Puts another `config.yml` in its place, as docassemble does: written over.
    pub(super) fn configure(&self, config: &str) {
        put(&self.served.path("da/config.yml"), config);
    }

    /// The same, and has it put in force; answers what was said.
    pub(super) fn reload(&self, config: &str) -> String {
        self.configure(config);
        self.served.order(&["reload"])
    }
}

fn put(file: &std::path::Path, config: &str) {
    fs::write(file, config).unwrap();
    chown(file, Some(www_data()), None).unwrap();
    Command::new("chmod").arg("0600").arg(file).status().unwrap();
}

/// The user of the application, and of our workers.
pub(super) fn www_data() -> u32 {
    uzers::get_user_by_name("www-data").unwrap().uid()
}
