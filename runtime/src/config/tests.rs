//! Settings as a user meets them: files, variables and flags in, settings or a message out.

use std::path::PathBuf;

use super::read::default_table;
use super::*;

/// A settings file that lives as long as the returned folder.
fn file_with(text: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    (folder, Sources { file: Some(path), ..Sources::default() })
}

fn environment(variables: &[(&str, &str)]) -> Sources {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    Sources { environment: variables.iter().map(owned).collect(), ..Sources::default() }
}

/// The message for `sources`, which must be an error and contain each of `parts`.
#[track_caller]
fn assert_message(sources: &Sources, parts: &[&str]) {
    let message = Settings::read(sources).expect_err("these settings are wrong").to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn default_kv() -> KvSettings {
    KvSettings {
        format: KvFormat::Bf16,
        capacity_bytes: Bytes::new(4 << 30),
        disk_bytes: Bytes::new(0),
        disk_dir: PathBuf::new(),
    }
}

fn default_hosts() -> HostSettings {
    HostSettings { count: 1, threads: 0, cpus: vec![], queue_jobs: 64, chunk_tokens: 512, stuck_after_s: 30 }
}

/// Written out once more by hand, so that a change of a default is seen in review.
#[test]
fn every_setting_of_cluster_toml_is_the_documented_default() {
    let expected = Settings {
        model: ModelSettings { path: String::new(), weights: WeightFormat::Auto },
        attention: AttentionSettings {
            mode: AttentionMode::Star,
            block_tokens: 2048,
            anchor_tokens: AnchorTokens::Block,
            recompute_anchor: false,
        },
        kv: default_kv(),
        hosts: default_hosts(),
        query: QuerySettings {
            threads: 0,
            cpus: vec![],
            max_sessions: 64,
            queue_events: 256,
            guess_tokens: 8,
            copies: 2,
        },
        sampling: SamplingSettings {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            max_tokens: 256,
        },
        chat: ChatSettings { context_role: ContextRole::Auto, system_prompt: String::new() },
        node: NodeSettings {
            name: String::new(),
            roles: vec![NodeRole::Context, NodeRole::Query, NodeRole::Supervisor],
            data_dir: PathBuf::new(),
        },
        network: NetworkSettings {
            listen: ([0, 0, 0, 0], 7400).into(),
            join_listen: ([0, 0, 0, 0], 7401).into(),
            advertise: vec![],
            seeds: vec![],
            dns: vec![],
            mdns: false,
            max_protocol: 0,
        },
        cluster: ClusterSettings {
            supervisor: String::new(),
            voters: vec![],
            lease_s: 10,
            replicas: 1,
            repair: Repair::Cheapest,
            rebalance_every_s: 30,
            slow_start_s: 60,
            full_percent: 85,
            copy_rate: Bytes::new(0),
        },
        log: LogSettings { level: "warn".to_owned(), format: LogFormat::Human },
    };
    assert_eq!(Settings::default(), expected);
    assert_eq!(Settings::read(&Sources::default()).unwrap(), expected);

    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster.toml"));
    let sources = Sources { file: Some(file), ..Sources::default() };
    assert_eq!(Settings::read(&sources).unwrap(), expected);
}

#[test]
fn every_setting_can_be_given_by_the_environment_and_by_a_flag() {
    let table = default_table().unwrap();
    let keys = keys::Keys::of(&table);
    for (key, value) in keys::leaves(&table) {
        let text = match value.kind {
            ::config::ValueKind::Array(texts) => {
                format!("{:?}", texts.into_iter().map(|text| text.to_string()).collect::<Vec<_>>())
            }
            kind => kind.to_string(),
        };
        let variable = format!("{ENVIRONMENT_PREFIX}{}", key.to_uppercase().replace('.', "__"));
        let sources = environment(&[(&variable, &text)]).with_override(&key, &text);
        assert_eq!(Settings::read(&sources).unwrap(), Settings::default(), "{key}");
    }
    assert_eq!(keys.names().count(), 52, "a new setting needs its row in the test of defaults too");
}

#[test]
fn a_file_yields_to_the_environment_and_the_environment_to_flags() {
    let (_folder, mut sources) = file_with("[hosts]\ncount = 2\nthreads = 2\nqueue_jobs = 2\n");
    sources.environment =
        environment(&[("STELLATE_HOSTS__COUNT", "3"), ("STELLATE_HOSTS__THREADS", "3")]).environment;
    let hosts = Settings::read(&sources.with_override("hosts.count", 4)).unwrap().hosts;
    assert_eq!((hosts.count, hosts.threads, hosts.queue_jobs), (4, 3, 2));
    assert_eq!(hosts.chunk_tokens, HostSettings::default().chunk_tokens);
}

#[test]
fn an_unknown_key_of_a_file_is_named_with_the_file_and_the_nearest_key() {
    let (_folder, sources) = file_with("[attention]\nblok_tokens = 512\n");
    assert_message(
        &sources,
        &["`attention.blok_tokens`", "settings.toml", "did you mean `attention.block_tokens`?"],
    );

    let (_folder, sources) = file_with("block_tokens = 512\n");
    assert_message(&sources, &["`block_tokens`", "settings.toml", "did you mean `attention.block_tokens`?"]);

    let (_folder, sources) = file_with("[attentoin]\nmode = \"star\"\n");
    assert_message(&sources, &["`attentoin.mode`", "did you mean `attention.mode`?"]);

    let (_folder, sources) = file_with("[nothing]\n");
    assert_message(&sources, &["`nothing`", "settings.toml"]);
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_key() {
    let sources = environment(&[("STELLATE_HOSTS__COUNTS", "3")]);
    assert_message(
        &sources,
        &["`hosts.counts`", "variable STELLATE_HOSTS__COUNTS", "did you mean `hosts.count`?"],
    );

    let sources = environment(&[("STELLATE_HOSTS_COUNT", "3")]);
    assert_message(&sources, &["STELLATE_HOSTS_COUNT", "did you mean `hosts.count`?"]);
}

#[test]
fn a_key_that_is_like_none_gets_no_suggestion() {
    for name in ["STELLATE_FOO", "STELLATE_HOME", "STELLATE_SAMPLING__FOO", "STELLATE_X", "STELLATE_"] {
        let message = Settings::read(&environment(&[(name, "3")])).unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{message}");
        assert!(
            message.ends_with(&format!("variable {name}; cluster.toml lists every setting")),
            "{message}"
        );
    }
}

#[test]
fn the_largest_seed_can_be_given_by_a_flag() {
    let sources = Sources::default().with_override("sampling.seed", u64::MAX);
    assert_eq!(Settings::read(&sources).unwrap().sampling.seed, u64::MAX);
}

#[test]
fn more_threads_than_any_machine_runs_are_refused() {
    let list = |cpus: usize| format!("{:?}", (0..cpus).collect::<Vec<_>>());
    let lists = |hosts: usize, cpus: usize| format!("[{}]", vec![list(cpus); hosts].join(", "));
    for (overrides, parts) in [
        (vec![("hosts.threads", "100000".to_owned())], vec!["`hosts.threads`", "100000", "from 0 to 1024"]),
        (vec![("query.threads", "1025".to_owned())], vec!["`query.threads`", "1025", "from 0 to 1024"]),
        (
            vec![("hosts.threads", "1024".to_owned()), ("hosts.count", "5".to_owned())],
            vec!["`hosts.threads`", "hosts.count = 5", "5120 in all", "at most 4096"],
        ),
        (
            vec![("hosts.cpus", lists(5, 1000)), ("hosts.count", "5".to_owned())],
            vec!["`hosts.cpus`", "5000 CPUs", "at most 4096", "hosts.count"],
        ),
        (vec![("hosts.cpus", lists(1, 1025))], vec!["`hosts.cpus`", "1025 CPUs", "at most 1024"]),
        (vec![("query.cpus", list(1025))], vec!["`query.cpus`", "1025 CPUs", "at most 1024"]),
    ] {
        let sources = overrides
            .iter()
            .fold(Sources::default(), |sources, (key, value)| sources.with_override(key, value));
        assert_message(&sources, &parts);
        assert_message(&sources, &["the command line"]);
    }
    let most = Sources::default().with_override("hosts.threads", 1024).with_override("hosts.count", 4);
    Settings::read(&most).unwrap();
}

#[test]
fn an_unknown_flag_is_named() {
    assert_message(
        &Sources::default().with_override("hosts.cuont", 3),
        &["`hosts.cuont`", "the command line", "did you mean `hosts.count`?"],
    );
}

#[test]
fn variables_of_other_programs_and_those_that_are_no_settings_are_passed_over() {
    let sources = environment(&[
        ("PATH", "/bin"),
        ("stellate_hosts__count", "x"),
        (CONFIG_FILE_VARIABLE, "else.toml"),
        ("STELLATE_CPU_ISA", "scalar"),
        (IDENTITY_VARIABLE, "folder"),
        (ADDRESS_VARIABLE, "127.0.0.1:7400"),
    ]);
    assert_eq!(Settings::read(&sources).unwrap(), Settings::default());
}

#[test]
fn a_bad_value_is_named_with_its_key_its_source_and_what_is_expected() {
    for (text, parts) in [
        ("[hosts]\ncount = \"three\"", ["`hosts.count`", "settings.toml", "`three`", "a whole number"]),
        ("[hosts]\ncount = 1.5", ["`hosts.count`", "settings.toml", "`1.5`", "a whole number"]),
        ("[hosts]\ncount = true", ["`hosts.count`", "settings.toml", "`true`", "a whole number"]),
        ("[hosts]\ncount = -1", ["`hosts.count`", "settings.toml", "`-1`", "a whole number from 1 to 256"]),
        ("[sampling]\nseed = -1", ["`sampling.seed`", "settings.toml", "`-1`", "a whole number, 0 or more"]),
        (
            "[hosts]\ncpus = [[0], [\"one\"]]",
            ["`hosts.cpus[1][0]`", "settings.toml", "one", "a whole number"],
        ),
        (
            "[hosts]\ncpus = [[-1]]",
            ["`hosts.cpus[0][0]`", "settings.toml", "`-1`", "a whole number, 0 or more"],
        ),
        ("hosts = 3", ["`hosts`", "settings.toml", "is a section", "[hosts]"]),
        ("[model]\nweights = \"q5\"", ["`model.weights`", "settings.toml", "\"q5\"", "\"q4_k\""]),
        ("[model]\nweights = 8", ["`model.weights`", "settings.toml", "\"8\"", "\"q8_0\""]),
        (
            "[kv]\ncapacity_bytes = \"4 gibbons\"",
            ["`kv.capacity_bytes`", "settings.toml", "4 gibbons", "\"4GiB\""],
        ),
        (
            "[attention]\nanchor_tokens = \"all\"",
            ["`attention.anchor_tokens`", "settings.toml", "\"all\"", "\"block\""],
        ),
        (
            "[attention]\nrecompute_anchor = 1",
            ["`attention.recompute_anchor`", "settings.toml", "`1`", "true or false"],
        ),
        (
            "[cluster]\nreplicas = -1",
            ["`cluster.replicas`", "settings.toml", "`-1`", "a whole number from 1 to 256"],
        ),
        (
            "[cluster]\nrebalance_every_s = \"never\"",
            ["`cluster.rebalance_every_s`", "settings.toml", "`never`", "a whole number from 0 to 86400"],
        ),
        ("[sampling]\ntop_p = \"high\"", ["`sampling.top_p`", "settings.toml", "`high`", "a number"]),
    ] {
        let (_folder, sources) = file_with(text);
        assert_message(&sources, &parts);
    }
    assert_message(
        &environment(&[("STELLATE_HOSTS__COUNT", "many")]),
        &["`hosts.count`", "variable STELLATE_HOSTS__COUNT", "`many`", "a whole number"],
    );
    assert_message(
        &Sources::default().with_override("hosts.count", -2),
        &["`hosts.count`", "the command line", "`-2`", "a whole number from 1 to 256"],
    );
    assert_message(
        &Sources::default().with_override("hosts.cpus", "0-3"),
        &["`hosts.cpus`", "the command line", "`0-3`", "list"],
    );
}

#[test]
fn a_value_that_breaks_a_rule_is_named_with_what_is_expected() {
    for (overrides, parts) in [
        (vec![("attention.block_tokens", "0")], vec!["`attention.block_tokens`", "from 1"]),
        (
            vec![("attention.block_tokens", "512"), ("attention.anchor_tokens", "513")],
            vec!["`attention.anchor_tokens`", "513", "attention.block_tokens (512)"],
        ),
        (vec![("hosts.count", "0")], vec!["`hosts.count`", "from 1 to 256"]),
        (vec![("hosts.queue_jobs", "0")], vec!["`hosts.queue_jobs`"]),
        (vec![("hosts.chunk_tokens", "0")], vec!["`hosts.chunk_tokens`"]),
        (vec![("network.max_protocol", "3")], vec!["`network.max_protocol`", "from 0 to 2"]),
        (vec![("hosts.stuck_after_s", "0")], vec!["`hosts.stuck_after_s`", "from 1 to 86400"]),
        (
            vec![("hosts.count", "3"), ("hosts.cpus", "[[0], [1]]")],
            vec!["`hosts.cpus`", "2 lists", "hosts.count = 3"],
        ),
        (vec![("hosts.cpus", "[[]]")], vec!["`hosts.cpus`", "host 0 is empty"]),
        (vec![("kv.capacity_bytes", "0")], vec!["`kv.capacity_bytes`"]),
        (vec![("query.max_sessions", "0")], vec!["`query.max_sessions`"]),
        (vec![("query.queue_events", "0")], vec!["`query.queue_events`"]),
        (vec![("query.guess_tokens", "65")], vec!["`query.guess_tokens`"]),
        (vec![("query.copies", "9")], vec!["`query.copies`"]),
        (vec![("sampling.temperature", "-0.1")], vec!["`sampling.temperature`", "0 (greedy) or more"]),
        (vec![("sampling.temperature", "NaN")], vec!["`sampling.temperature`"]),
        (vec![("sampling.top_p", "0")], vec!["`sampling.top_p`"]),
        (vec![("sampling.min_p", "1")], vec!["`sampling.min_p`"]),
        (vec![("sampling.repetition_penalty", "0")], vec!["`sampling.repetition_penalty`"]),
        (vec![("sampling.max_tokens", "0")], vec!["`sampling.max_tokens`"]),
        (vec![("node.name", "Node_1")], vec!["`node.name`", "Node_1", "lower-case"]),
        (vec![("node.roles", "[]")], vec!["`node.roles`", "at least one"]),
        (vec![("network.join_listen", "0.0.0.0:7400")], vec!["`network.join_listen`", "network.listen"]),
        (vec![("network.advertise", "[\"0.0.0.0:7400\"]")], vec!["`network.advertise`", "nobody can dial"]),
        (vec![("cluster.supervisor", "-")], vec!["`cluster.supervisor`"]),
        (vec![("cluster.voters", "[\"a\", \"b\"]")], vec!["`cluster.voters`", "found 2", "1, 3 or 5"]),
        (vec![("cluster.voters", "[\"a\", \"b\", \"a\"]")], vec!["`cluster.voters`", "`a` twice"]),
        (vec![("cluster.voters", "[\"A_\"]")], vec!["`cluster.voters`", "A_", "lower-case"]),
        (
            vec![("cluster.voters", "[\"a\"]"), ("cluster.supervisor", "a")],
            vec!["`cluster.supervisor`", "cluster.voters", "takeover"],
        ),
        (vec![("cluster.lease_s", "1")], vec!["`cluster.lease_s`", "from 2 to 300"]),
        (vec![("cluster.lease_s", "301")], vec!["`cluster.lease_s`", "from 2 to 300"]),
        (vec![("cluster.replicas", "0")], vec!["`cluster.replicas`", "from 1 to 256"]),
        (vec![("cluster.replicas", "257")], vec!["`cluster.replicas`", "from 1 to 256"]),
        (vec![("cluster.repair", "both")], vec!["`cluster.repair`", "\"both\"", "\"recompute\""]),
        (
            vec![("cluster.rebalance_every_s", "86401")],
            vec!["`cluster.rebalance_every_s`", "from 0 to 86400"],
        ),
        (vec![("cluster.slow_start_s", "86401")], vec!["`cluster.slow_start_s`", "from 0 to 86400"]),
        (vec![("cluster.full_percent", "0")], vec!["`cluster.full_percent`", "from 1 to 100"]),
        (vec![("cluster.full_percent", "101")], vec!["`cluster.full_percent`", "from 1 to 100"]),
        (vec![("cluster.copy_rate", "1023KiB")], vec!["`cluster.copy_rate`", "1023KiB", "at least \"1MiB\""]),
        (vec![("cluster.copy_rate", "fast")], vec!["`cluster.copy_rate`", "\"fast\"", "\"512MiB\""]),
        (vec![("log.level", "info,=")], vec!["`log.level`", "\"info\""]),
    ] {
        let sources = overrides
            .iter()
            .fold(Sources::default(), |sources, (key, value)| sources.with_override(key, value));
        assert_message(&sources, &parts);
        assert_message(&sources, &["the command line"]);
    }
    let (_folder, sources) = file_with("[attention]\nanchor_tokens = 4096\n");
    assert_message(
        &sources,
        &["`attention.anchor_tokens`", "settings.toml", "attention.block_tokens (2048)"],
    );
}

#[test]
fn a_copy_rate_of_none_is_no_bound() {
    let rate = |text: &str| {
        let sources = Sources::default().with_override("cluster.copy_rate", text);
        Settings::read(&sources).unwrap().cluster.max_copy_rate()
    };
    assert_eq!((rate("0"), rate("1MiB"), rate("12.5MB")), (None, Some(1 << 20), Some(12_500_000)));
}

#[test]
fn settings_that_code_has_changed_can_be_checked_again() {
    let mut settings = Settings::default();
    settings.validate().unwrap();
    settings.attention.anchor_tokens = AnchorTokens::Tokens(settings.attention.block_tokens + 1);
    let message = settings.validate().unwrap_err().to_string();
    assert!(message.contains("`attention.anchor_tokens`"), "{message}");
}

#[test]
fn a_file_that_was_asked_for_must_exist_and_be_toml() {
    let missing = Sources { file: Some(PathBuf::from("no/such/file.toml")), ..Sources::default() };
    assert_message(&missing, &["no/such/file.toml"]);
    let (_folder, sources) = file_with("[hosts\ncount = 3\n");
    assert_message(&sources, &["settings.toml", "not valid TOML", "line 1"]);
}

#[test]
fn an_empty_file_and_an_empty_section_change_nothing() {
    for text in ["", "[hosts]\n[log]\n"] {
        let (_folder, sources) = file_with(text);
        assert_eq!(Settings::read(&sources).unwrap(), Settings::default());
    }
}

#[test]
fn an_anchor_is_a_number_or_as_long_as_a_block() {
    for (written, expected) in [("block", 512), ("0", 0), ("512", 512), ("17", 17)] {
        let sources = Sources::default()
            .with_override("attention.block_tokens", 512)
            .with_override("attention.anchor_tokens", written);
        assert_eq!(Settings::read(&sources).unwrap().attention.anchor_len_tokens(), expected);
        let (_folder, sources) = file_with(&format!(
            "[attention]\nblock_tokens = 512\nanchor_tokens = {}",
            written.replace("block", "\"block\"")
        ));
        assert_eq!(Settings::read(&sources).unwrap().attention.anchor_len_tokens(), expected);
    }
}

#[test]
fn sizes_are_read_with_every_unit_and_shown_so_that_they_read_back() {
    for (text, bytes) in [
        ("0", 0),
        ("1048576", 1 << 20),
        ("64KiB", 64 << 10),
        ("64 kib", 64 << 10),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("7B", 7),
        ("3kB", 3_000),
        ("2MB", 2_000_000),
        ("1.5GB", 1_500_000_000),
        ("1TB", 1_000_000_000_000),
        ("18446744073709551615", u64::MAX),
    ] {
        let read: Bytes = text.parse().unwrap();
        assert_eq!(read.get(), bytes, "{text}");
        assert_eq!(read.to_string().parse::<Bytes>().unwrap(), read, "{text}");
    }
    for text in
        ["", "GiB", "-1", "1.5", "0.3B", "1..5GiB", "4 gibbons", "18446744073709551616", "16777216TiB", "1e3"]
    {
        assert!(text.parse::<Bytes>().is_err(), "{text}");
    }
    assert_eq!(Bytes::new(4 << 30).to_string(), "4GiB");
    assert_eq!(Bytes::new(1_500).to_string(), "1500");
}

#[test]
fn threads_that_are_not_given_are_shared_evenly_and_are_never_none() {
    let hosts = |overrides: &[(&str, &str)]| {
        let sources = overrides
            .iter()
            .fold(Sources::default(), |sources, (key, value)| sources.with_override(key, value));
        Settings::read(&sources).unwrap().hosts
    };
    assert_eq!(hosts(&[("hosts.count", "4")]).threads_each(0, 16), 4);
    assert_eq!(hosts(&[("hosts.count", "4")]).threads_each(3, 2), 1);
    assert_eq!(hosts(&[("hosts.count", "4"), ("hosts.threads", "7")]).threads_each(0, 2), 7);
    let bound = hosts(&[("hosts.count", "2"), ("hosts.cpus", "[[0, 1, 2], [3]]")]);
    assert_eq!((bound.threads_each(0, 64), bound.threads_each(1, 64)), (3, 1));
    let query = QuerySettings { threads: 0, cpus: vec![4, 5], ..QuerySettings::default() };
    assert_eq!(query.threads_total(64), 2);
    assert_eq!(QuerySettings::default().threads_total(64), 64);
}
