//! What a front end does in docassemble, statement by statement: one row for each, by its number.
//!
//! Rows that need the same site are held against one ([`held`]); a row that fails says its number. [`TABLE`] says where
//! each number is: in a row here, in a test of its own, or in a later version.

mod alone;
mod life_cycle;
mod load;
mod proxy;
mod sockets;
mod table;
mod together;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{super::support::network::in_network, installed::Installed};

/// A number, the statement, and how it is held against a site.
type Row = (u8, &'static str, fn(&Installed));

/// Holds `rows` against a site with this `config.yml`.
fn held(config: &'static str, variables: &'static [(&'static str, &'static str)], rows: &'static [Row]) {
    in_network(move || {
        let Some(site) = Installed::start_with(config, variables, |_| {}) else { return };
        let fails = |(number, statement, row): &Row| {
            let outcome = catch_unwind(AssertUnwindSafe(|| row(&site)));
            outcome.is_err().then(|| format!("F{number:02}: {statement}"))
        };
        let failed: Vec<_> = rows.iter().filter_map(fails).collect();
        assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), site.served.events());
    });
}
