//! What it takes to reach a storage that is shared: read by the keeper, for the agent, which reads no files of others and
//! has no environment.

use std::{env, path::Path};

use serde::{Deserialize, Serialize};

use super::{Storage, derived};
use crate::{
    config::{Environment, FetchPlan, Plan, Problem, Secret, SharedService, SharedStoragePlan, StorePlan},
    tls::{Roots, SecretBytes, read_bounded},
};

/// A shared storage, with all that is needed to use it.
#[derive(Clone, PartialEq, Deserialize, Serialize)]
pub struct Access {
    store: StorePlan,
    /// What objects are sealed with, not the secret itself; `None`: they are as others put them there.
    sealing_key: Option<SecretBytes>,
    /// By the names that the variables of the environment have, in lower case.
    settings: Vec<(String, Secret)>,
    /// What is in `ca_file`.
    roots: Option<Vec<u8>>,
}

impl Access {
    /// Reads the files that `plan` names, and from the environment what it does not say.
    ///
    /// # Errors
    ///
    /// All that cannot be had.
    pub fn read(plan: &SharedStoragePlan, environment: Environment<'_>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let secret = noted(secret(plan), &mut problems);
        let unsealed = Self::read_unsealed(&plan.store, environment).map_err(|found| problems.extend(found)).ok();
        match (secret, unsealed) {
            (Some(secret), Some(access)) => Ok(Self { sealing_key: Some(derived(&secret, "objects")), ..access }),
            _ => Err(problems),
        }
    }

    /// The same for a store in which others put objects, which are as they are.
    pub fn read_unsealed(plan: &StorePlan, environment: Environment<'_>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let key = plan.key_file.as_ref().map(|file| {
            let name = match plan.service {
                SharedService::S3 => "secret_access_key_file",
                SharedService::Azure => "account_key_file",
            };
            let text = read(file, name).and_then(|key| {
                let text = std::str::from_utf8(key.expose()).ok().map(str::trim).filter(|text| !text.is_empty());
                text.map(|text| Secret::new(text.to_owned()))
                    .ok_or_else(|| problem(name, format!("{}: there is no key in it", file.display())))
            });
            noted(text, &mut problems)
        });
        let roots = plan.ca_file.as_ref().map(|file| noted(read(file, "ca_file"), &mut problems));

        let (names, identity, secret_name) = match plan.service {
            SharedService::S3 => (&S3[..], "aws_access_key_id", "aws_secret_access_key"),
            SharedService::Azure => (&AZURE[..], "azure_storage_account_name", "azure_storage_account_key"),
        };
        // Half of a pair from here and half from there would be no pair.
        let names = names.iter().filter(|name| plan.identity.is_none() || !PAIRS.contains(name));
        let found = names.filter_map(|name| {
            let value = environment(name).filter(|value| !value.is_empty())?;
            Some((name.to_ascii_lowercase(), Secret::new(value)))
        });
        let mut settings: Vec<_> = found.collect();
        let mut set = |name: &str, value: Option<Secret>| {
            settings.extend(value.map(|value| (name.to_owned(), value)));
        };
        let text = |text: &Option<String>| text.clone().map(Secret::new);
        set(identity, text(&plan.identity));
        set(secret_name, key.flatten());
        match plan.service {
            SharedService::S3 => {
                set("aws_region", text(&plan.region));
                // It wins over the other one.
                set("aws_endpoint_url_s3", text(&plan.endpoint));
            }
            SharedService::Azure => set("azure_storage_endpoint", text(&plan.endpoint)),
        }
        if plan.service == SharedService::Azure && !settings.iter().any(|(name, _)| name == identity) {
            let say = "the name of the storage account is missing; write it here, or set AZURE_STORAGE_ACCOUNT_NAME";
            problems.push(problem("account", say));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let roots = roots.flatten().map(|roots| roots.expose().to_vec());
        Ok(Self { store: plan.clone(), sealing_key: None, settings, roots })
    }

    /// The same with the variables of this process.
    pub(crate) fn of_this_process(plan: &SharedStoragePlan) -> Result<Self, Vec<Problem>> {
        Self::read(plan, &|name| env::var(name).ok())
    }

    /// To what is fetched, likewise.
    pub(crate) fn to_fetched(plan: &FetchPlan) -> Result<Self, Vec<Problem>> {
        Self::read_unsealed(&plan.store, &|name| env::var(name).ok())
    }

    /// The root certificates that its server is believed by; `None`: those of the system.
    pub(super) fn roots(&self) -> Option<&[u8]> {
        self.roots.as_deref()
    }

    pub(super) fn store(&self) -> &StorePlan {
        &self.store
    }

    pub(super) fn sealing_key(&self) -> Option<&SecretBytes> {
        self.sealing_key.as_ref()
    }

    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }
}

/// What is in `secret_file`, without the end of its last line, which one editor writes and another does not.
pub(crate) fn secret(plan: &SharedStoragePlan) -> Result<SecretBytes, Problem> {
    let secret = read(&plan.secret_file, "secret_file")?;
    let secret = secret.expose().trim_ascii_end();
    if secret.len() < SHORTEST_SECRET {
        let (file, length) = (plan.secret_file.display(), secret.len());
        let say = format!(
            "{file} has {length} bytes, and a secret at least {SHORTEST_SECRET}; make one by `openssl rand -base64 -out {file} 48`, and \
             put the same file on each machine"
        );
        return Err(problem("secret_file", say));
    }
    Ok(SecretBytes::new(secret.to_vec()))
}

/// What keeps the storage and the stores that `plan` names from being used, as far as that can be told without asking anybody.
pub(crate) fn faults(plan: &Plan) -> Vec<Problem> {
    let shared = plan.tls.shared.iter().map(Access::of_this_process);
    // One stands for all: they are reached alike.
    let fetched = plan.tls.fetched.iter().filter(|_| plan.tls.shared.is_none()).take(1).map(Access::to_fetched);
    let problems = shared.chain(fetched).flat_map(|access| match access {
        Ok(access) => {
            let unusable = Storage::shared(&access, &Roots::none()).err();
            let at = "tls.storage_options".to_owned();
            unusable.map(|fault| Problem { at, problem: fault.to_string() }).into_iter().collect()
        }
        Err(problems) => problems,
    });
    problems.collect()
}

fn read(file: &Path, name: &str) -> Result<SecretBytes, Problem> {
    let read = read_bounded(file).map(SecretBytes::new);
    read.map_err(|fault| problem(name, format!("cannot read {}: {fault}", file.display())))
}

fn problem(name: &str, problem: impl Into<String>) -> Problem {
    Problem { at: format!("tls.storage_options.{name}"), problem: problem.into() }
}

fn noted<T>(outcome: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    outcome.map_err(|problem| problems.push(problem)).ok()
}

const SHORTEST_SECRET: usize = 32;

/// What is taken from the environment.
const S3: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
];
const AZURE: [&str; 5] = [
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
];
/// Those that belong to a key of one's own.
const PAIRS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
];

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn plan(service: SharedService, folder: &Path) -> SharedStoragePlan {
        fs::write(folder.join("secret"), [b'x'; 32]).unwrap();
        let store = StorePlan {
            service,
            bucket: "site".to_owned(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            identity: None,
            key_file: None,
            ca_file: None,
        };
        SharedStoragePlan { store, secret_file: folder.join("secret"), share_tickets: false }
    }

    fn setting<'a>(access: &'a Access, name: &str) -> Option<&'a str> {
        access.settings().filter(|(known, _)| *known == name).last().map(|(_, value)| value)
    }

    #[test]
    fn what_is_not_written_comes_from_the_environment_and_no_key_is_of_two_halves() {
        let folder = tempfile::tempdir().unwrap();
        let set = |name: &str| Some(format!("{name} of the environment"));
        let mut plan = plan(SharedService::S3, folder.path());
        let access = Access::read(&plan, &set).unwrap();
        assert_eq!(setting(&access, "aws_access_key_id"), Some("AWS_ACCESS_KEY_ID of the environment"));
        assert_eq!(setting(&access, "aws_session_token"), Some("AWS_SESSION_TOKEN of the environment"));
        assert_eq!(setting(&access, "aws_region"), Some("AWS_REGION of the environment"));

        fs::write(folder.path().join("key"), "written\n").unwrap();
        (plan.store.identity, plan.store.key_file) = (Some("id".to_owned()), Some(folder.path().join("key")));
        plan.store.region = Some("eu-central-1".to_owned());
        let access = Access::read(&plan, &set).unwrap();
        assert_eq!(setting(&access, "aws_access_key_id"), Some("id"));
        assert_eq!(setting(&access, "aws_secret_access_key"), Some("written"));
        assert_eq!(setting(&access, "aws_session_token"), None);
        assert_eq!(setting(&access, "aws_region"), Some("eu-central-1"));
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = plan(SharedService::Azure, folder.path());
        fs::write(folder.path().join("secret"), "short\n").unwrap();
        fs::write(folder.path().join("empty"), "\n").unwrap();
        plan.store.key_file = Some(folder.path().join("empty"));
        plan.store.ca_file = Some(PathBuf::from("/nonexistent/ca.pem"));

        let problems = Access::read(&plan, &|_| None).err().unwrap();

        let told: Vec<_> = problems.iter().map(|told| format!("{}: {}", told.at, told.problem)).collect();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let expected = [
            format!(
                "tls.storage_options.secret_file: {0} has 5 bytes, and a secret at least 32; make one by `openssl rand -base64 -out {0} \
                 48`, and put the same file on each machine",
                file("secret")
            ),
            format!("tls.storage_options.account_key_file: {}: there is no key in it", file("empty")),
            "tls.storage_options.ca_file: cannot read /nonexistent/ca.pem: there is no such file".to_owned(),
            "tls.storage_options.account: the name of the storage account is missing; write it here, or set \
             AZURE_STORAGE_ACCOUNT_NAME"
                .to_owned(),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn settings_that_no_service_takes_are_found_before_anything_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let mut tls = crate::keeper::testing::tls_plan(folder.path());
        let mut shared = plan(SharedService::Azure, folder.path());
        fs::write(folder.path().join("key"), "no base64!").unwrap();
        (shared.store.identity, shared.store.key_file) = (Some("account".to_owned()), Some(folder.path().join("key")));
        tls.tls.shared = Some(shared);

        let problems = faults(&tls);

        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].at, "tls.storage_options");
    }
}
