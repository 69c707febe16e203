//! Commands of the operator's, as the keeper has them run.
//!
//! They run beside its loop and are waited for by nothing but an upgrade. At a stop they are ended.

use std::{collections::HashMap, rc::Rc, time::Duration};

use tokio::{sync::Mutex, time::Instant};
use tokio_util::task::TaskTracker;

use super::{super::agent::ToAgent, Keeper, Missed, STOPPING};
use crate::{
    config::AcmePlan,
    keeper::command,
    tls::acme::{self, TxtRecord},
};

/// What runs, and what is remembered of it.
#[derive(Default)]
pub(super) struct Hooks {
    running: TaskTracker,
    /// What commands have said that have made a record, by the name and the value of the record; one runs at a time.
    made: Rc<Mutex<Made>>,
}

type Made = HashMap<(String, String), String>;

impl Keeper {
    /// Has a record made or removed by the command of the certificate `id`; the agent is told what came of it.
    pub(super) fn make_record(&self, number: u64, id: &str, record: TxtRecord) {
        let Some(agent) = self.orders.agent.as_ref().map(super::agent::Agent::messages) else { return };
        let ordered = self.plan.tls.acme.iter().find(|ordered| acme::id(&ordered.hosts) == id);
        let Some(ordered) = ordered.filter(|ordered| is_for(ordered, &record)).cloned() else {
            let outcome = Err("this record is for no certificate of the configuration".to_owned());
            agent.send(ToAgent::Made { number, outcome }).ok();
            return;
        };
        let made = Rc::clone(&self.hooks.made);
        self.hooks.running.spawn_local(async move {
            let outcome = run_dns_hook(&ordered.dns_hook, record, &mut *made.lock().await).await;
            agent.send(ToAgent::Made { number, outcome }).ok();
        });
    }

    /// Waits until no command runs: after an upgrade nobody would.
    pub(super) async fn hooks_ended(&mut self) -> Result<(), String> {
        let running = self.hooks.running.clone();
        running.close();
        let ended = self.meanwhile(Instant::now() + PATIENCE, running.wait()).await;
        running.reopen();
        ended.map_err(|missed| match missed {
            Missed::Late => "a command of `dns_hook` or `tls.deploy` runs; try again when it has ended".to_owned(),
            Missed::Stopping => STOPPING.to_owned(),
        })
    }
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
    let said =
        command::run(&command, &environment, LONGEST_DNS).await.map_err(|error| crate::telemetry::chain(&error))?;
    if present && made.len() < RECORDS {
        made.insert(record, said);
    }
    Ok(())
}

/// A hook may wait until all name servers of its provider know the record.
const LONGEST_DNS: Duration = Duration::from_secs(5 * 60);
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
