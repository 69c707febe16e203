//! Every number, and where it is held.

use std::{collections::BTreeSet, fs, path::Path};

use super::together;

/// Where a number is held.
enum Held {
    /// In a row of `together`.
    Together,
    /// In a test of its own beside this, whose name begins with its number.
    Alone(&'static str),
    /// In a test that is about just this, elsewhere: the file, and the function in it.
    In(&'static str, &'static str),
}

use Held::{Alone, In, Together};

const ENDPOINTS: &str = "tests/it/endpoints.rs";
const ORDERING: &str = "tests/it/ordering.rs";
const PLACES: &str = "tests/it/places.rs";
const READING: &str = "src/config/docassemble/tests.rs";

const TABLE: &[(u8, &[Held])] = &[
    (1, &[Together]),
    (2, &[Together]),
    (3, &[Together]),
    (4, &[Together]),
    (5, &[Together, Alone("f05_a_public_port_of_https_is_named_and_the_clients_is_not")]),
    (6, &[In(ORDERING, "each_challenge_is_answered")]),
    (7, &[Together]),
    (8, &[Together]),
    (9, &[Together]),
    (10, &[Together]),
    (11, &[Together]),
    (12, &[Together]),
    (13, &[Together]),
    (14, &[Together]),
    (15, &[Together, Alone("f15_the_bare_prefix_is_redirected_to_its_slash_where_that_is_wanted")]),
    (16, &[Together]),
    (17, &[Together]),
    (18, &[Alone("f18_a_root_without_its_final_slash_is_taken_with_a_warning")]),
    (19, &[Alone("f19_index_html_at_the_root_is_the_applications")]),
    (20, &[Together]),
    (21, &[Alone("f21_the_rest_of_the_site_may_be_another_servers")]),
    (22, &[Together]),
    (23, &[Together]),
    (24, &[Together]),
    (25, &[Together]),
    (26, &[Together]),
    (27, &[Together]),
    (28, &[Together]),
    (29, &[Together]),
    (30, &[Together]),
    (31, &[Together]),
    (32, &[Alone("f32_a_websocket_that_says_little_stays_up_and_may_be_silent_for_a_day")]),
    (33, &[Alone("f33_a_piece_of_a_polling_answer_reaches_the_client_before_the_next_is_made")]),
    (
        34,
        &[Alone(
            "f34_a_socket_server_that_is_not_there_is_a_503_in_the_clients_form_and_one_that_is_back_answers_at_once",
        )],
    ),
    (35, &[Alone("f35_and_f87_the_socket_server_and_all_else_change_by_hot_reload_and_tunnels_live_on")]),
    (
        36,
        &[
            Alone("f36_an_exposed_socket_server_is_found_where_it_listens"),
            Alone("f36_an_exposed_socket_server_is_found_at_the_address_of_the_machine_and_else_on_loopback"),
        ],
    ),
    (37, &[Alone("f37_a_restart_of_the_socket_server_ends_its_tunnels_and_the_next_handshake_waits_for_it")]),
    (38, &[Alone("f38_a_socket_server_that_is_not_wanted_is_not_asked")]),
    (39, &[In(ENDPOINTS, "polling_and_websocket_of_socket_io_come_to_the_same_of_two_servers")]),
    (40, &[Together]),
    (41, &[Together]),
    (
        42,
        &[
            Together,
            Alone("f42_nobody_is_believed_without_a_balancer_and_the_three_networks_with_one"),
            Alone("f42_the_list_of_those_who_are_believed_can_be_another"),
        ],
    ),
    (43, &[Together]),
    (44, &[Together]),
    (45, &[Together]),
    (46, &[Together]),
    (47, &[Together]),
    (48, &[Together]),
    (49, &[Together]),
    (50, &[Together]),
    (51, &[Together, Alone("f51_a_file_of_the_system_is_sent_by_x_sendfile")]),
    (52, &[Together]),
    (53, &[Together]),
    (54, &[Together]),
    (55, &[Together]),
    (56, &[Together]),
    (57, &[Together]),
    (58, &[Together]),
    (59, &[Alone("f59_without_offload_a_named_file_is_not_sent")]),
    (60, &[Together]),
    (61, &[Together, Alone("f61_nothing_and_less_than_nothing_are_no_limit")]),
    (62, &[Alone("f62_uploads_that_pause_and_readers_that_do_not_read_hold_no_thread")]),
    (
        63,
        &[
            Alone("f63_six_are_inside_where_nginx_was"),
            Alone("f63_five_are_inside_where_apache_was"),
            Alone("f63_whoever_finds_the_queue_full_is_answered_503_with_a_time_to_come_back"),
        ],
    ),
    (64, &[Alone("f64_text_is_compressed_for_those_who_take_it_and_says_so")]),
    (65, &[Together, Alone("f65_what_uwsgi_takes_of_headers_is_taken_and_more_is_431_and_never_502")]),
    (66, &[Together]),
    (67, &[Together, Alone("f67_and_f68_new_files_of_root_alone_are_served_and_what_is_open_stays_open")]),
    (
        68,
        &[
            Alone("f68_and_f69_certificates_are_exchanged_without_a_restart_and_a_bad_pair_changes_nothing"),
            Alone("f67_and_f68_new_files_of_root_alone_are_served_and_what_is_open_stays_open"),
        ],
    ),
    (69, &[Alone("f68_and_f69_certificates_are_exchanged_without_a_restart_and_a_bad_pair_changes_nothing")]),
    (70, &[Alone("f70_without_a_certificate_one_is_made_and_never_the_public_sample_is_served")]),
    (71, &[Together]),
    (72, &[Alone("f71_and_f72_protocols_and_ciphers_are_those_of_config_yml")]),
    (73, &[Together]),
    (
        74,
        &[
            In(READING, "use_lets_encrypt_orders_a_certificate_and_puts_it_where_docassemble_looks"),
            In(ORDERING, "from_an_empty_folder_the_first_request_is_served_with_a_certificate_of_the_authority"),
        ],
    ),
    (75, &[In(ORDERING, "renewals_under_load_lose_no_request_and_no_websocket")]),
    (76, &[In(ORDERING, "an_authority_that_is_down_changes_nothing_for_users")]),
    (77, &[In(ORDERING, "another_host_is_another_order_and_the_way_back_is_none")]),
    (78, &[In(PLACES, "what_certbot_has_is_served_from_the_first_request_on_and_no_authority_is_asked")]),
    (79, &[In(PLACES, "exim_speaks_tls_with_the_certificate_that_was_exported")]),
    (80, &[In(PLACES, "commands_are_run_once_for_each_certificate_and_what_they_say_is_logged")]),
    (81, &[In(READING, "no_certificate_is_ordered_where_nobody_could_have_it")]),
    (82, &[Together]),
    (83, &[Alone("f83_it_stays_in_the_foreground_ends_with_0_on_term_and_otherwise_on_a_bad_configuration")]),
    (
        84,
        &[
            Alone("f84_and_f85_a_stop_of_the_whole_group_drains"),
            Alone("f84_term_stops_accepting_and_ends_what_is_inside"),
            Alone("f84_int_stops_accepting_and_ends_what_is_inside"),
            Alone("f84_quit_stops_accepting_and_ends_what_is_inside"),
            Alone("f84_a_stop_takes_less_than_supervisor_gives_and_a_second_signal_does_not_wait"),
        ],
    ),
    (85, &[Alone("f84_and_f85_a_stop_of_the_whole_group_drains")]),
    (
        86,
        &[
            In(
                "tests/it/docassemble/configuration.rs",
                "a_malformed_file_is_refused_with_its_place_and_at_reload_changes_nothing",
            ),
            Alone("f86_hup_reads_the_file_and_a_bad_one_changes_nothing"),
        ],
    ),
    (87, &[Alone("f35_and_f87_the_socket_server_and_all_else_change_by_hot_reload_and_tunnels_live_on")]),
    (88, &[Alone("f88_keys_with_underscores_count_and_the_environment_where_it_takes_precedence")]),
    (89, &[Alone("f89_the_word_true_with_a_capital_has_one_effect_everywhere_and_a_warning")]),
    (90, &[Alone("f90_a_touch_of_docassemble_wsgi_costs_nobody_a_request")]),
    (91, &[Alone("f91_the_starting_page_is_on_80_without_and_on_443_with_tls")]),
    (92, &[Alone("f92_the_ports_are_open_before_the_application_is_there_and_never_closed_while_it_comes")]),
    (
        93,
        &[
            Alone("f93_a_backend_that_dies_in_a_request_is_a_page_that_names_the_administrator_and_it_recovers"),
            Alone("f93_where_nothing_listens_any_more_there_is_a_page_and_it_recovers_by_itself"),
        ],
    ),
    (94, &[Together]),
    (95, &[Alone("f95_a_route_has_a_timeout_of_its_own")]),
    (96, &[Together]),
    (
        97,
        &[
            In("tests/it/programs.rs", "a_program_that_runs_away_is_told_by_whatever_name_and_so_is_its_end"),
            In(READING, "the_programs_behind_its_upstreams_are_asked_about_and_an_overlay_has_one_restarted"),
        ],
    ),
    (98, &[Together, Alone("f98_an_application_that_is_not_ready_says_so_itself_and_we_are_alive_on_our_own_socket")]),
    (99, &[Together]),
    (100, &[Together]),
    (101, &[Alone("f101_usr1_opens_the_logs_anew")]),
    (102, &[Together]),
    (103, &[In("tests/it/docassemble/log_server.rs", "logs_are_listed_after_sync_and_read_by_those_who_may")]),
    (104, &[In("tests/it/docassemble/log_server.rs", "logs_are_listed_after_sync_and_read_by_those_who_may")]),
    (105, &[Together]),
    (106, &[Together]),
    (107, &[Together, Alone("f107_no_answer_of_any_kind_has_a_server_or_a_version")]),
    (108, &[Together, Alone("f108_every_error_is_a_page_for_people_and_json_for_programs")]),
    (
        109,
        &[
            Alone("f109_another_http_port_is_listened_on_and_443_stays"),
            Alone("f109_another_http_port_has_the_starting_page_and_comes_from_either_place"),
        ],
    ),
    (110, &[Together]),
    (
        111,
        &[Alone("f111_it_serves_port_80_as_another_user_with_one_capability_where_only_its_own_folders_are_writable")],
    ),
    (112, &[Together]),
];

#[test]
fn every_statement_is_held_somewhere_and_what_is_named_is_there() {
    let numbers: Vec<_> = TABLE.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=112).collect::<Vec<_>>());

    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows: BTreeSet<_> = together::NUMBERS.iter().flat_map(|rows| rows.iter().map(|(number, ..)| *number)).collect();
    let here = project.join("tests/it/docassemble/front_door");
    let own: String =
        fs::read_dir(&here).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    for (number, held) in TABLE {
        assert!(!held.is_empty(), "F{number:02}");
        for held in *held {
            let (text, function) = match held {
                Together => {
                    assert!(rows.contains(number), "F{number:02} has no row");
                    continue;
                }
                Alone(function) => {
                    assert!(function.contains(&format!("f{number:02}_")), "F{number:02}: {function}");
                    (own.clone(), function)
                }
                In(file, function) => (fs::read_to_string(project.join(file)).unwrap(), function),
            };
            assert!(text.contains(&format!("fn {function}(")), "F{number:02}: there is no {function}");
        }
    }
}
