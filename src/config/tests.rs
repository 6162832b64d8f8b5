use super::*;

fn load(files: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let file = dir.path().join("config.toml");
    Config::load(Some(&file), Layer::default())
        .map(|(config, _)| config)
        .map_err(|error| {
            error
                .to_string()
                .replace(&dir.path().display().to_string(), "DIR")
        })
}

#[test]
fn the_printed_default_is_the_default() {
    assert_eq!(
        load(&[("config.toml", DEFAULT_TEXT)]),
        Ok(Config::default())
    );
    // With every commented-out key switched on it is still a configuration.
    let all: String = DEFAULT_TEXT
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.contains(" = ") && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = load(&[("config.toml", &all)]).unwrap();
    assert_eq!(config.cgroup.pids_limit, Some(4096));
    assert!(config.libexec.cni.is_some());
    assert!(config.network.conf_template.is_some());
    assert!(config.telemetry.traces.is_some());
    assert!(config.streaming.tls.is_some());
}

#[test]
fn what_show_prints_reads_as_the_same() {
    let config = load(&[(
        "config.toml",
        "[cgroup]\npids_limit = 9\n[libexec]\ncni = \"/x\"\n\
         [telemetry]\ntraces = \"http://[::1]:4317\"\nsampling_ratio = 0.000123\n",
    )])
    .unwrap();
    assert_eq!(load(&[("config.toml", &config.to_toml())]), Ok(config));
}

#[test]
fn drop_ins_are_merged_key_by_key_in_order() {
    let config = load(&[
        (
            "config.toml",
            "[network]\nbin_dirs = [\"/a\"]\nnetns_dir = \"/n\"\n",
        ),
        ("conf.d/20.toml", "[log]\nlevel = \"debug\"\n"),
        (
            "conf.d/10.toml",
            "[log]\nlevel = \"warn\"\nformat = \"json\"\n[network]\nnetns_dir = \"/m\"\n",
        ),
        ("conf.d/30.toml.off", "nonsense"),
    ])
    .unwrap();
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.network.bin_dirs, [PathBuf::from("/a")]);
    assert_eq!(config.network.netns_dir, PathBuf::from("/m"));
}

#[test]
fn an_error_names_the_file_and_the_line() {
    let cases = [
        (
            "\n\nrooot = \"/x\"",
            "DIR/config.toml:3: unknown field `rooot`",
        ),
        (
            "[network]\n\ntimeout = 3",
            "DIR/config.toml:3: unknown field `timeout`",
        ),
        ("\nroot = 7", "DIR/config.toml:2: invalid type: integer `7`"),
        (
            "\nroot = \"relative\"",
            "DIR/config.toml:2: \"relative\" is not an absolute path",
        ),
        (
            "[network]\nbin_dirs = [\n \"/a\",\n \"/b/../c\"]",
            "DIR/config.toml:2: \"/b/../c\" is not a normal path",
        ),
        (
            "listen = \"tcp://0.0.0.0:1\"",
            "DIR/config.toml:1: \"tcp://0.0.0.0:1\" is not",
        ),
        (
            "[log]\nlevel = \"loud\"",
            "DIR/config.toml:2: unknown variant `loud`",
        ),
        (
            "[network]\ntimeout_seconds = 0",
            "DIR/config.toml:2: invalid value: integer `0`",
        ),
        (
            "[cgroup]\nparent = \"a/b\"",
            "DIR/config.toml:2: \"a/b\" is not an absolute",
        ),
        ("a = \n", "DIR/config.toml:1: "),
        (
            "[registry]\nconfig_path = \"/a:b\"",
            "DIR/config.toml:2: \"b\" is not an absolute path",
        ),
        ("workers = 0", "DIR/config.toml:1: invalid value"),
        (
            "[streaming]\n\ntls = { certificate = \"/a\" }",
            "DIR/config.toml:3: missing field `key`",
        ),
        (
            "[telemetry]\nmetrics = \"localhost\"",
            "DIR/config.toml:2: invalid socket address syntax",
        ),
        (
            "[telemetry]\ntraces = \"https://127.0.0.1:4317\"",
            "DIR/config.toml:2: \"https://127.0.0.1:4317\" is not the address of a collector",
        ),
        (
            "[telemetry]\ntraces = \"http://127.0.0.1\"",
            "DIR/config.toml:2: \"http://127.0.0.1\" is not the address of a collector",
        ),
        (
            "[telemetry]\nsampling_ratio = 1.5",
            "DIR/config.toml:2: \"1.5\" is not a number between 0 and 1",
        ),
    ];
    for (text, expected) in cases {
        let error = load(&[("config.toml", text)]).unwrap_err();
        assert!(error.starts_with(expected), "{text:?} gives {error:?}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn a_missing_program_is_named_with_its_key() {
    let libexec = Libexec {
        cni: Some("/nonexistent/cni".into()),
        ..Libexec::default()
    };
    let error = libexec.find_cni().unwrap_err().to_string();
    assert_eq!(
        error,
        "carpel-cni is not in /nonexistent/cni; reinstall carpel or set libexec.cni"
    );
}
