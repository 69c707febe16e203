//! The configuration of the demonstration: text, as anybody's is, in a file that can be read, checked and explained.

use std::{
    fmt::Write,
    fs,
    io::{Error, Result},
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Writes `vestibule.yml` into `folder`, for the application in it and a websocket server at `echo`.
pub(super) fn write(folder: &Path, echo: SocketAddr) -> Result<PathBuf> {
    let file = folder.join("vestibule.yml");
    let places = [quoted(&folder.join("application.py"))?, quoted(folder)?, quoted(&folder.join("files"))?];
    fs::write(&file, text(&places, echo))?;
    Ok(file)
}

fn text([program, folder, files]: &[String; 3], echo: SocketAddr) -> String {
    // As ourselves: the folder is for our eyes only.
    let user = if rustix::process::geteuid().is_root() { "\n    user: root" } else { "" };
    let demo = std::process::id();
    format!(
        r#"listeners:
  - address: "127.0.0.1:0"        # a free port
  - address: "127.0.0.1:0"
    tls: true                     # with a certificate that is made on the spot
backends:
  app:
    command: [python3, -I, {program}, {folder}]
    port: auto                    # PORT in its environment{user}
    environment: {{ DEMO: "{demo}" }}
upstreams:
  app:
    backend: app
    concurrency: 4
  echo:
    endpoints: ["{echo}"]
routes:
  - prefix: /
    upstream: app
    body_limit: 64MiB
    files: [{files}]
  - prefix: /small/
    upstream: app
    body_limit: 1KiB
  - prefix: /slow
    upstream: app
    timeout: 2s
  - prefix: /ws/
    strip_prefix: true
    upstream: echo
tls: {{ storage: storage }}
drain: 2s
"#
    )
}

/// `path` as a value in YAML's double quotes, in which `${` is not a variable.
fn quoted(path: &Path) -> Result<String> {
    let path = path.to_str().ok_or_else(|| Error::other("the path of the temporary folder is not UTF-8"))?;
    let mut quoted = String::from('"');
    for character in path.replace("${", "$${").chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            character if character.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(character)).map_err(Error::other)?;
            }
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn any_name_of_the_folder_is_one_value_of_the_configuration() {
        for name in ["plain", "a b", "it's", "\"quoted\"", "back\\slash", "${HOME}", "# no comment", "ü\n{{x}}", "$$"]
        {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join(name);
            fs::create_dir(&folder).unwrap();

            let file = write(&folder, SocketAddr::from(([127, 0, 0, 1], 2))).unwrap();
            let plan = config::load(&config::Source::Native(file)).unwrap_or_else(|error| panic!("{name}: {error}"));

            let root = plan.routes.iter().find(|route| !route.files.is_empty()).unwrap();
            assert_eq!(root.files, [folder.join("files")], "{name}");
        }
    }
}
