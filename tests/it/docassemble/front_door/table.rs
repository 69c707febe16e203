//! Every number, and where it is held.

use std::{collections::BTreeSet, fs, path::Path};

use super::together;

/// Where a number is held.
enum Held {
    /// In a row of `together`.
    Together,
    /// In a test of its own in `alone`.
    Alone(&'static str),
    /// In a test that is about just this, elsewhere: the file, and the function in it.
    In(&'static str, &'static str),
    /// Not in this version.
    Later(&'static str),
}

use Held::{Alone, In, Later, Together};

const ACME: &str =
    "certificates are ordered and renewed in a later version; until then those of others are used as they come";

const TABLE: &[(u8, Held)] = &[
    (1, Together),
    (2, Together),
    (3, Together),
    (4, Together),
    (5, Together),
    (6, Later(ACME)),
    (7, Together),
    (8, Together),
    (9, Together),
    (10, Together),
    (11, Together),
    (12, Together),
    (13, Together),
    (14, Together),
    (15, Together),
    (16, Together),
    (17, Together),
    (18, Alone("f18_a_root_without_its_final_slash_is_taken_with_a_warning")),
    (19, Alone("f19_index_html_at_the_root_is_the_applications")),
    (20, Together),
    (21, In("tests/docassemble/run.py", "rest_of_the_site")),
    (22, Together),
    (23, Together),
    (24, Together),
    (25, Together),
    (26, Together),
    (27, Together),
    (28, Together),
    (29, Together),
    (30, Together),
    (31, Together),
    (32, In("tests/it/websockets.rs", "a_socket_that_is_used_outlives_the_idle_time")),
    (33, In("tests/it/websockets.rs", "a_piece_of_a_polling_answer_reaches_the_client_at_once")),
    (34, Alone("f34_and_f38_a_socket_server_that_is_not_there_and_one_that_is_not_wanted")),
    (35, Alone("f35_and_f87_the_socket_server_and_all_else_change_by_hot_reload_and_tunnels_live_on")),
    (36, Alone("f36_an_exposed_socket_server_is_found_where_it_listens")),
    (37, In("tests/it/websockets.rs", "a_backend_that_vanishes_ends_the_clients_side")),
    (38, Alone("f34_and_f38_a_socket_server_that_is_not_there_and_one_that_is_not_wanted")),
    (39, Later("one socket server is all that docassemble's configuration names")),
    (40, Together),
    (41, Together),
    (42, Together),
    (43, Together),
    (44, Together),
    (45, Together),
    (46, Together),
    (47, Together),
    (48, Together),
    (49, Together),
    (50, Together),
    (51, Together),
    (52, Together),
    (53, Together),
    (54, Together),
    (55, Together),
    (56, Together),
    (57, Together),
    (58, Together),
    (59, Alone("f59_without_offload_a_named_file_is_not_sent")),
    (60, Together),
    (61, Together),
    (62, In("tests/it/wsgi.rs", "a_client_that_pauses_is_not_felt_by_an_impatient_uwsgi")),
    (63, In("tests/it/queue.rs", "no_more_are_inside_than_there_are_places_over_all_threads")),
    (64, In("tests/it/bodies.rs", "a_response_is_compressed_as_the_client_likes_it")),
    (65, Together),
    (66, Together),
    (67, Together),
    (68, Alone("f68_and_f69_certificates_are_exchanged_without_a_restart_and_a_bad_pair_changes_nothing")),
    (69, Alone("f68_and_f69_certificates_are_exchanged_without_a_restart_and_a_bad_pair_changes_nothing")),
    (70, Alone("f70_without_a_certificate_one_is_made_and_never_the_public_sample_is_served")),
    (71, Together),
    (72, Alone("f71_and_f72_protocols_and_ciphers_are_those_of_config_yml")),
    (73, Together),
    (74, Later(ACME)),
    (75, Later(ACME)),
    (76, Later(ACME)),
    (77, Later(ACME)),
    (78, Later(ACME)),
    (79, Later(ACME)),
    (80, Later(ACME)),
    (81, Later(ACME)),
    (82, Together),
    (83, In("tests/it/service_managers.rs", "supervisord_gives_up_on_a_configuration_that_is_refused")),
    (84, Alone("f84_and_f85_a_stop_of_the_whole_group_drains")),
    (85, Alone("f84_and_f85_a_stop_of_the_whole_group_drains")),
    (
        86,
        In(
            "tests/it/docassemble/configuration.rs",
            "a_malformed_file_is_refused_with_its_place_and_at_reload_changes_nothing",
        ),
    ),
    (87, Alone("f35_and_f87_the_socket_server_and_all_else_change_by_hot_reload_and_tunnels_live_on")),
    (88, In("src/config/docassemble/tests.rs", "keys_are_spelled_as_docassemble_spells_them")),
    (89, In("src/config/docassemble/tests.rs", "a_variable_spelled_otherwise_than_true_has_one_effect_and_a_warning")),
    (90, Alone("f90_a_touch_of_docassemble_wsgi_costs_nobody_a_request")),
    (
        91,
        In(
            "tests/it/docassemble/starting.rs",
            "from_the_first_second_a_page_says_what_is_missing_until_the_application_is_ready",
        ),
    ),
    (
        92,
        In("tests/it/docassemble/configuration.rs", "without_a_config_yml_the_environment_says_it_until_there_is_one"),
    ),
    (93, Alone("f93_a_backend_that_dies_in_a_request_is_a_page_that_names_the_administrator_and_it_recovers")),
    (94, Together),
    (95, In("src/config/docassemble/tests.rs", "an_overlay_wins_by_key_and_by_prefix")),
    (96, Together),
    (97, In("tests/it/upstreams.rs", "a_backend_that_stalls_is_given_up_within_the_timeout_of_the_route")),
    (98, Together),
    (99, Together),
    (100, Together),
    (101, Alone("f101_usr1_opens_the_logs_anew")),
    (102, Together),
    (103, In("tests/it/docassemble/log_server.rs", "logs_are_listed_after_sync_and_read_by_those_who_may")),
    (104, In("tests/it/docassemble/log_server.rs", "logs_are_listed_after_sync_and_read_by_those_who_may")),
    (105, Together),
    (106, Together),
    (107, Together),
    (108, Together),
    (109, Alone("f109_another_http_port_is_listened_on_and_443_stays")),
    (110, Together),
    (
        111,
        In("tests/it/service_managers.rs", "the_capabilities_of_the_sample_unit_are_enough_for_all_that_a_keeper_does"),
    ),
    (112, Together),
];

#[test]
fn every_statement_is_held_somewhere_and_what_is_named_is_there() {
    let numbers: Vec<_> = TABLE.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=112).collect::<Vec<_>>());

    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows: BTreeSet<_> = together::NUMBERS.iter().flat_map(|rows| rows.iter().map(|(number, ..)| *number)).collect();
    for (number, held) in TABLE {
        let (file, function) = match held {
            Together => {
                assert!(rows.contains(number), "F{number:02} has no row");
                continue;
            }
            Alone(function) => ("tests/it/docassemble/front_door/alone.rs", function),
            In(file, function) => (*file, function),
            Later(why) => {
                assert!(!why.is_empty());
                continue;
            }
        };
        let text = fs::read_to_string(project.join(file)).unwrap();
        let found = [format!("fn {function}("), format!("def {function}(")].iter().any(|head| text.contains(head));
        assert!(found, "F{number:02}: {file} has no {function}");
    }
}
