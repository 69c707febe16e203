//! What holds for any text, and for any configuration that can be written.

use std::{fmt::Write, num::NonZeroUsize, time::Duration};

use proptest::prelude::*;

use super::{minimal, unset};
use crate::{
    config::{explain, parse, units},
    properties::configuration,
};

/// Text made of the pieces that configurations are made of.
fn likely() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "listeners",
        "upstreams",
        "routes",
        "tls",
        "limits",
        "host",
        "files",
        "prefix",
        ": ",
        ":",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "'",
        "\"",
        "&a ",
        "*a",
        "!!str ",
        "# ",
        "null",
        "true",
        "/",
        "[::]:80",
        "app",
        "16MiB",
        "${",
        "}",
        ":-",
        "$",
        "|\n",
        ">",
        "? ",
        "---\n",
        "é",
        "\u{0}",
        "\t",
        "%",
        "<<",
    ]);
    prop::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
}

#[derive(Clone, Debug)]
struct Generated {
    ports: Vec<u16>,
    prefixes: Vec<String>,
    body_limit: Option<u64>,
    timeout: Duration,
    concurrency: Option<usize>,
    drain: Duration,
}

fn generated() -> impl Strategy<Value = Generated> {
    let milliseconds = || (1u64..10_000_000).prop_map(Duration::from_millis);
    (
        prop::collection::btree_set(1u16.., 1..4),
        prop::collection::btree_set("(/[a-z0-9_.~-]{1,8}x){1,3}", 1..5),
        prop::option::of(1u64..1 << 50),
        milliseconds(),
        prop::option::of(1usize..1000),
        milliseconds(),
    )
        .prop_map(|(ports, prefixes, body_limit, timeout, concurrency, drain)| Generated {
            ports: ports.into_iter().collect(),
            prefixes: prefixes.into_iter().collect(),
            body_limit,
            timeout,
            concurrency,
            drain,
        })
}

fn written(generated: &Generated) -> String {
    let or_null = |text: Option<String>| text.unwrap_or_else(|| "null".to_owned());
    let mut text = format!("drain: {}\nlisteners:\n", units::show_time(generated.drain));
    for port in &generated.ports {
        writeln!(text, "  - address: \"[::]:{port}\"").unwrap();
    }
    let concurrency = or_null(generated.concurrency.map(|places| places.to_string()));
    write!(text, "upstreams:\n  app:\n    endpoints: [\"a:1\"]\n    concurrency: {concurrency}\nroutes:\n").unwrap();
    for prefix in &generated.prefixes {
        let limit = or_null(generated.body_limit.map(units::show_size));
        let timeout = units::show_time(generated.timeout);
        write!(text, "  - prefix: '{prefix}/'\n    upstream: app\n    body_limit: {limit}\n    timeout: {timeout}\n")
            .unwrap();
    }
    text
}

proptest! {
    #[test]
    fn any_text_is_a_plan_or_has_faults_at_places(text in any::<String>()) {
        configuration(text.as_bytes());
    }

    #[test]
    fn any_text_that_looks_like_a_configuration_is_a_plan_or_has_faults_at_places(text in likely()) {
        configuration(text.as_bytes());
        configuration(minimal(&text).as_bytes());
    }

    #[test]
    fn a_generated_configuration_means_what_it_was_made_of(generated in generated()) {
        let plan = parse("v.yml", &written(&generated), &unset);
        prop_assert!(plan.is_ok(), "{}\n{}", plan.unwrap_err(), written(&generated));
        let plan = plan.unwrap();

        prop_assert_eq!(plan.listeners.len(), generated.ports.len());
        let prefixes: Vec<_> = plan.routes.iter().map(|route| route.prefix.as_str().to_owned()).collect();
        prop_assert_eq!(prefixes, generated.prefixes);
        prop_assert!(plan.routes.iter().all(|route| route.body_limit == generated.body_limit));
        prop_assert!(plan.routes.iter().all(|route| route.timeout == generated.timeout));
        prop_assert_eq!(plan.upstreams["app"].concurrency.map(NonZeroUsize::get), generated.concurrency);
        prop_assert_eq!(plan.drain, generated.drain);
        prop_assert!(explain(&plan).ends_with('\n'));
    }
}
