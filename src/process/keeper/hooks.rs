//! What is done with a certificate besides serving it: commands of the operator's, and files of other programs.
//!
//! All of it is done beside the loop of the keeper and is waited for by nothing but an upgrade. At a stop commands are ended.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use tokio::{
    sync::{
        Mutex,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::spawn_blocking,
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{super::agent::ToAgent, Keeper, Missed, STOPPING, WorkerId};
use crate::{
    config::{AcmePlan, TlsPlan},
    keeper::{command, export, folder},
    telemetry::chain,
    tls::{
        CertificateMaterial,
        acme::{self, OrderReport, TxtRecord},
    },
};

/// What runs, and what is remembered of it.
pub(super) struct Hooks {
    running: TaskTracker,
    /// What commands have said that have made a record, by the name and the value of the record; one runs at a time.
    made: Rc<Mutex<Made>>,
    /// Deployments come one after the other.
    deploying: Rc<Mutex<()>>,
    pub(super) deployed: UnboundedReceiver<Deployed>,
    deployed_sender: UnboundedSender<Deployed>,
    /// Why certificates are not wherever they are to be, by their key path.
    undeployed: BTreeMap<String, String>,
}

/// Why certificates are deployed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Occasion {
    /// Some may not be deployed yet.
    Due,
    /// Somebody has asked for it, by this worker.
    Asked(WorkerId, u32),
}

/// What came of a deployment.
#[derive(Debug)]
pub(super) struct Deployed {
    /// By key path, in words.
    outcomes: Vec<(String, Result<String, String>)>,
    occasion: Occasion,
}

type Made = HashMap<(String, String), String>;

impl Default for Hooks {
    fn default() -> Self {
        let (deployed_sender, deployed) = unbounded_channel();
        Self {
            running: TaskTracker::new(),
            made: Rc::default(),
            deploying: Rc::default(),
            deployed,
            deployed_sender,
            undeployed: BTreeMap::new(),
        }
    }
}

impl Keeper {
    /// Writes ordered certificates to where other programs look for them, and runs the commands for those that are new
    /// there, or, when asked, for all.
    pub(super) fn deploy(&self, occasion: Occasion) {
        let tls = self.plan.tls.clone();
        let done = self.hooks.deployed_sender.clone();
        if tls.export.is_none() && tls.deploy.is_empty() || tls.acme.is_empty() {
            done.send(Deployed { outcomes: Vec::new(), occasion }).ok();
            return;
        }
        let ready = |ordered: &AcmePlan| {
            let file = acme::bundle_file(&tls.storage, &acme::id(&ordered.hosts));
            // A self-signed one in its place is of use to nobody.
            let is_it = |known: &&Arc<CertificateMaterial>| known.at == ordered.at && known.certificate_file == file;
            Some((ordered.clone(), self.certificates.iter().find(is_it)?.clone()))
        };
        let certificates: Vec<_> = tls.acme.iter().filter_map(ready).collect();
        let turn = Rc::clone(&self.hooks.deploying);
        self.hooks.running.spawn_local(async move {
            let _turn = turn.lock().await;
            let mut outcomes = Vec::new();
            for (ordered, material) in certificates {
                let at = ordered.at.clone();
                outcomes.push((at, deploy(&tls, ordered, material, occasion).await));
            }
            done.send(Deployed { outcomes, occasion }).ok();
        });
    }

    /// Takes note of what came of it.
    pub(super) fn note_deployed(&mut self, deployed: Deployed) {
        let Deployed { outcomes, occasion } = deployed;
        self.hooks.undeployed =
            outcomes.iter().filter_map(|(at, outcome)| Some((at.clone(), outcome.as_ref().err()?.clone()))).collect();
        self.report();
        if let Occasion::Asked(worker, id) = occasion {
            let is_done = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
            let said: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome.unwrap_or_else(|why| why)).collect();
            let outcome = match (said.is_empty(), is_done) {
                (true, _) => Err(NOTHING.to_owned()),
                (false, true) => Ok(said.join("\n")),
                (false, false) => Err(said.join("\n")),
            };
            self.answer(worker, id, outcome);
        }
    }

    /// How the certificates stand that are ordered.
    pub(super) fn order_reports(&self) -> Vec<OrderReport> {
        let mut reports = self.orders.reports();
        for report in &mut reports {
            report.undeployed = self.hooks.undeployed.get(&report.at).cloned();
        }
        reports
    }

    /// Exports certificates and runs the commands for all; whoever asked by `worker` is answered when that is done.
    pub(super) fn export(&mut self, worker: WorkerId, id: u32) {
        // Each holds a copy of all certificates.
        if self.hooks.running.len() >= EXPORTS {
            return self.answer(worker, id, Err("too many commands wait already".to_owned()));
        }
        self.deploy(Occasion::Asked(worker, id));
    }

    /// Has a record made or removed by the command of the certificate `id`; the agent is told what came of it.
    pub(super) fn make_record(&self, number: u64, id: &str, record: TxtRecord) {
        let Some(agent) = self.orders.agent.as_ref() else { return };
        let refused = |why: &str| agent.tell(ToAgent::Made { number, outcome: Err(why.to_owned()) });
        let Some(ordered) = self.ordered(id).filter(|ordered| is_for(ordered, &record)).cloned() else {
            return refused("this record is for no certificate of the configuration");
        };
        if self.hooks.running.len() >= RUNNING {
            return refused("too many commands wait already");
        }
        let (agent, made) = (agent.messages(), Rc::clone(&self.hooks.made));
        self.hooks.running.spawn_local(async move {
            let outcome = run_dns_hook(&ordered.dns_hook, record, &mut *made.lock().await).await;
            agent.send(ToAgent::Made { number, outcome }).await.ok();
        });
    }

    /// Waits until no command runs: after an upgrade nobody would.
    pub(super) async fn hooks_ended(&mut self) -> Result<(), String> {
        let running = self.hooks.running.clone();
        running.close();
        let ended = self.meanwhile(Instant::now() + PATIENCE, running.wait()).await;
        running.reopen();
        while let Ok(deployed) = self.hooks.deployed.try_recv() {
            self.note_deployed(deployed);
        }
        ended.map_err(|missed| match missed {
            Missed::Late => "a command of `dns_hook` or `tls.deploy` runs; try again when it has ended".to_owned(),
            Missed::Stopping => STOPPING.to_owned(),
        })
    }
}

/// Deploys one certificate; answers in words what was done.
async fn deploy(
    tls: &TlsPlan,
    ordered: AcmePlan,
    material: Arc<CertificateMaterial>,
    occasion: Occasion,
) -> Result<String, String> {
    let hosts: Vec<_> = ordered.hosts.iter().map(ToString::to_string).collect();
    let (names, id) = (hosts.join(", "), acme::id(&ordered.hosts));
    let lineage = export::lineage_folder(tls, &ordered);
    let content = HEXLOWER.encode(digest(&SHA256, &material.certificate).as_ref());
    let written = {
        let tls = tls.clone();
        spawn_blocking(move || export::write(&tls, &ordered, &material)).await
    };
    let export::Exported { written, faults } = written.map_err(|error| error.to_string())?;
    let files: Vec<_> = written.iter().map(|file| file.display().to_string()).collect();
    if !files.is_empty() {
        tracing::info!(hosts = names, files = files.join(", "), "certificate exported");
    }
    if !faults.is_empty() {
        // Whom the commands are for would go on with what they have.
        let why: Vec<_> = faults.iter().map(|fault| chain(fault)).collect();
        for why in &why {
            tracing::error!(hosts = names, "certificate not exported: {why}; commands of `tls.deploy` are not run");
        }
        return Err(format!("{names}: {}", why.join("; ")));
    }
    let mut said = Vec::from_iter((!files.is_empty()).then(|| format!("{} written", files.join(", "))));
    let is_new = !written.is_empty() || !was_deployed(&tls.storage, &id, &content);
    if !tls.deploy.is_empty() && (is_new || matches!(occasion, Occasion::Asked(..))) {
        let mut environment = vec![("RENEWED_DOMAINS", hosts.join(" ")), ("VESTIBULE_HOST", hosts[0].clone())];
        environment.extend(lineage.map(|folder| ("RENEWED_LINEAGE", folder.display().to_string())));
        let mut faults = Vec::new();
        for hook in &tls.deploy {
            match command::run(&hook.command, &environment, hook.timeout).await {
                Ok(_) => said.push(format!("`{}` has run", hook.command[0])),
                Err(error) => faults.push(chain(&error)),
            }
        }
        for why in &faults {
            tracing::error!(hosts = names, "certificate not deployed: {why}");
        }
        if !faults.is_empty() {
            return Err(format!("{names}: {}", faults.join("; ")));
        }
        if let Err(error) = remember(&tls.storage, &id, &content) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                hosts = names,
                "that it is deployed is not remembered"
            );
        }
        tracing::info!(hosts = names, commands = tls.deploy.len(), "certificate deployed");
    }
    if said.is_empty() {
        said.push("everything is as it is to be".to_owned());
    }
    Ok(format!("{names}: {}", said.join("; ")))
}

/// Whether all commands have run for this certificate, whatever has become of us since.
fn was_deployed(storage: &Path, id: &str, content: &str) -> bool {
    fs::read_to_string(storage.join(DEPLOYED).join(id)).is_ok_and(|known| known == content)
}

fn remember(storage: &Path, id: &str, content: &str) -> io::Result<()> {
    folder::write(&folder::private(storage, DEPLOYED)?, id, content.as_bytes(), 0o600)
}

/// Whether `record` proves a name of `ordered`: it becomes part of a command line, and comes from whoever speaks with
/// authorities.
fn is_for(ordered: &AcmePlan, record: &TxtRecord) -> bool {
    let names_it = |host: &str| host.strip_prefix("*.").unwrap_or(host) == record.host;
    let is_digest = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !ordered.dns_hook.is_empty()
        && ordered.hosts.iter().any(|host| names_it(host.as_str()))
        && record.value.len() == DIGEST
        && record.value.bytes().all(is_digest)
}

/// Runs `hook` for `record`, by its arguments and by what certbot's manual hooks are told.
async fn run_dns_hook(hook: &[String], record: TxtRecord, made: &mut Made) -> Result<(), String> {
    let TxtRecord { present, host, value } = record;
    let (action, name) = (if present { "present" } else { "cleanup" }, format!("_acme-challenge.{host}"));
    let command: Vec<_> = hook.iter().cloned().chain([action.to_owned(), name.clone(), value.clone()]).collect();
    let mut environment = vec![
        ("VESTIBULE_DNS_ACTION", action.to_owned()),
        ("VESTIBULE_DNS_NAME", name.clone()),
        ("VESTIBULE_DNS_VALUE", value.clone()),
        ("CERTBOT_DOMAIN", host),
        ("CERTBOT_VALIDATION", value.clone()),
    ];
    let record = (name, value);
    if !present {
        environment.push(("CERTBOT_AUTH_OUTPUT", made.remove(&record).unwrap_or_default().trim_end().to_owned()));
    }
    let said = command::run(&command, &environment, LONGEST_DNS).await.map_err(|error| chain(&error))?;
    if present && made.len() < RECORDS {
        made.insert(record, said);
    }
    Ok(())
}

/// To whoever asks for it in vain.
const NOTHING: &str = "there is nothing to export: no certificate is ordered that has come, or neither `tls.export` nor \
                       `tls.deploy` says what is to be done with one";
/// The folder of the storage that says for which certificates all commands have run.
const DEPLOYED: &str = "deployed";
/// A hook may wait until all name servers of its provider know the record.
const LONGEST_DNS: Duration = Duration::from_secs(5 * 60);
/// Commands that run or wait: more than orders that are under way at once have records, however often they are asked for.
const RUNNING: usize = 1000;
/// Commands that run or wait when an operator may ask for one more export.
const EXPORTS: usize = 16;
/// Records of which is remembered what their command said.
const RECORDS: usize = 100;
/// Characters of a SHA-256 in base64url.
const DIGEST: usize = 43;
/// How long an upgrade waits for commands.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn no_record_is_made_but_for_names_of_the_certificate() {
        let plan = "listeners: [{ address: '127.0.0.1:1', tls: true }]\nroutes: [{ prefix: /, upstream: a }]\n\
                    upstreams: { a: { endpoints: ['a:1'] } }\n\
                    tls: { certificates: [{ hosts: ['*.a.example'], acme: { dns_hook: [/bin/hook] } }] }";
        let plan = config::parse("/etc/v.yml", plan, &|_| None).unwrap();
        let is_taken = |host: &str, value: &str| {
            let record = TxtRecord { present: true, host: host.to_owned(), value: value.to_owned() };
            is_for(&plan.tls.acme[0], &record)
        };
        let value = "x".repeat(DIGEST);

        assert!(is_taken("a.example", &value));
        assert!(!is_taken("b.example", &value));
        assert!(!is_taken("*.a.example", &value));
        assert!(!is_taken("a.example", &format!("{}\n", &value[1..])));
        assert!(!is_taken("a.example", "$(reboot)"));
    }
}
