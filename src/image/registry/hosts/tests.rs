use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Vec<Host>, String> {
    file::parse(Path::new("/c/a/hosts.toml"), text).map_err(|error| error.to_string())
}

fn places(hosts: &[Host]) -> Vec<String> {
    let place = |host: &Host| match &host.place {
        Some(place) => {
            let scheme = if place.plain { "http" } else { "https" };
            format!("{scheme}://{}{}", place.host, place.root)
        }
        None => "own".into(),
    };
    hosts.iter().map(place).collect()
}

#[test]
fn everything_that_containerd_documents_is_read() {
    let hosts = parse(
        r#"
        server = "https://up.example"
        skip_verify = true
        [host."https://z.example"]
          capabilities = ["pull"]
          ca = "z.crt"
        [host."http://192.0.2.1:5000"]
          capabilities = ["Pull", "resolve", "push"]
          ca = ["/abs/a.crt", "b.crt"]
          client = [["c.cert", "c.key"], ["d.pem", ""], "e.pem"]
          dial_timeout = "1.5s"
          override_path = false
          proxy = "http://proxy.example:3128"
          [host."http://192.0.2.1:5000".header]
            x-one = "1"
            x-two = ["a", "b"]
        [host."https://m.example/v2/proxy"]
          override_path = true
          client = "f.pem"
        [host."a.example/cache"]
        "#,
    )
    .unwrap();
    // In the file's order, not sorted.
    assert_eq!(
        places(&hosts),
        [
            "https://z.example/v2",
            "http://192.0.2.1:5000/v2",
            "https://m.example/v2/proxy",
            "https://a.example/cache/v2",
            "https://up.example/v2"
        ]
    );
    let [z, plain, m, a, up] = hosts.as_slice() else {
        panic!("five hosts")
    };
    assert!(z.pull && !z.resolve && plain.resolve && a.pull && a.resolve);
    assert_eq!(z.tls.ca, [PathBuf::from("/c/a/z.crt")]);
    assert_eq!(
        plain.tls.ca,
        ["/abs/a.crt", "/c/a/b.crt"].map(PathBuf::from)
    );
    let path = |name: &str| PathBuf::from(format!("/c/a/{name}"));
    assert_eq!(
        plain.tls.client,
        [
            (path("c.cert"), Some(path("c.key"))),
            (path("d.pem"), None),
            (path("e.pem"), None)
        ]
    );
    assert_eq!(m.tls.client, [(path("f.pem"), None)]);
    assert_eq!(plain.dial_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(
        plain.proxy.as_ref().unwrap().uri,
        "http://proxy.example:3128/"
    );
    let two: Vec<_> = plain.headers.get_all("x-two").iter().collect();
    assert_eq!(
        (two.len(), &plain.headers["x-one"]),
        (2, &"1".parse().unwrap())
    );
    assert!(up.tls.skip_verify && !z.tls.skip_verify);
}

/// What its second turn without the first's certificates came to would be told as the reason.
#[test]
fn a_server_that_is_named_twice_is_asked_once() {
    let host = "[host.'https://a.example']\nca = 'a.crt'\n";
    let twice = |top: &str, below: &str| {
        let hosts = parse(&format!("server = 'https://a.example'\n{top}{host}{below}"));
        places(&hosts.unwrap()).len()
    };
    assert_eq!(twice("", ""), 1);
    assert_eq!(twice("", "capabilities = ['pull', 'resolve']"), 1);
    // It is the only one that may be asked for tags, or there is something else to it.
    assert_eq!(twice("", "capabilities = ['pull']"), 2);
    assert_eq!(twice("ca = 'b.crt'\n", ""), 2);
    assert_eq!(twice("[header]\nx = '1'\n", ""), 2);
}

#[test]
fn urls_are_roots_of_the_api() {
    for (url, override_path, expected) in [
        ("a.example", false, "https://a.example/v2"),
        ("https://a.example/", false, "https://a.example/v2"),
        ("https://a.example/v2/", false, "https://a.example/v2"),
        (
            "https://a.example//x/./y",
            false,
            "https://a.example/x/y/v2",
        ),
        ("https://a.example", true, "https://a.example"),
        ("http://a.example:80/x/", true, "http://a.example:80/x"),
    ] {
        let text = format!("[host.{url:?}]\noverride_path = {override_path}");
        assert_eq!(places(&parse(&text).unwrap()), [expected, "own"], "{url}");
    }
    assert_eq!(places(&parse("server = \"\"").unwrap()), ["own"]);
}

#[test]
fn an_error_names_the_file_and_the_line() {
    for (text, expected) in [
        ("\n\nserver = 3", "3: invalid type: integer `3`"),
        (
            "\nserver = \"ftp://a\"",
            "2: \"ftp://a\": neither http nor https",
        ),
        (
            "[host.\"https://a\"]\n\n[host.\"https://u:p@b\"]",
            "3: \"https://u:p@b\": not",
        ),
        (
            "[host.\"https://a/../b\"]",
            "1: \"https://a/../b\": a path with",
        ),
        (
            "[host.\"https://a?b=c\"]",
            "1: \"https://a?b=c\": a URL with a query",
        ),
        ("[host.\"\"]", "1: \"\": "),
        (
            "\ncapabilities = [\"fly\"]",
            "2: unknown capability \"fly\"",
        ),
        (
            "\n\nca = 7",
            "3: invalid type: integer `7`, expected a string or a list",
        ),
        ("\nca = [[\"a\"]]", "2: invalid type"),
        ("client = [[\"a\"]]", "1: invalid length 1"),
        ("client = [[\"a\", \"b\", \"c\"]]", "1: invalid length 3"),
        (
            "[host.\"https://a\"]\nskip_verify = \"yes\"",
            "2: invalid type: string",
        ),
        ("\n\ndial_timeout = \"soon\"", "3: \"soon\" is no time"),
        ("\nproxy = \"ftp://SECRET@a\"", "2: it is not of the form"),
        ("[header]\nhost = \"a\"", "1: \"host\" cannot be a header"),
        ("[header]\n\"a b\" = \"a\"", "1: \"a b\" cannot be a header"),
        (
            "[header]\na = \"SECRET\\n\"",
            "1: header \"a\" has a malformed",
        ),
        ("a = \n", "1: "),
        ("host = 1", "1: invalid type"),
    ] {
        let error = parse(text).unwrap_err();
        let expected = format!("/c/a/hosts.toml:{expected}");
        assert!(error.starts_with(&expected), "{text:?} gives {error:?}");
        assert!(
            !error.contains("SECRET") && !error.contains('\n'),
            "{error:?}"
        );
    }
}

#[test]
fn unknown_keys_are_read_over_as_containerd_does() {
    let text = "new = 1\n[host.\"https://a\"]\nrewrite = {a = \"b\"}\n";
    assert_eq!(places(&parse(text).unwrap()), ["https://a/v2", "own"]);
}

#[test]
fn the_folder_of_a_registry_is_found_as_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let dirs = [one.clone(), two.clone()];
    let first = |domain: &str| {
        let hosts = read(&dirs, domain).unwrap();
        places(&hosts).remove(0)
    };
    assert_eq!(first("a.example"), "own");
    for (number, name) in [
        "two/_default",
        "two/a.example",
        "one/[::1]_5000_",
        "one/b.example:5000",
        "one/b.example_5000_",
        "one/c.example:5000",
    ]
    .iter()
    .enumerate()
    {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!("[host.\"https://m{number}\"]\n");
        std::fs::write(folder.join(FILE), text).unwrap();
    }
    for (domain, number) in [
        ("a.example", 1),
        ("a.example:5000", 0),
        ("[::1]:5000", 2),
        ("b.example:5000", 4),
        ("c.example:5000", 5),
        ("b.example", 0),
    ] {
        assert_eq!(first(domain), format!("https://m{number}/v2"), "{domain}");
    }
    // Without a file, or with an empty one, certificates count.
    let folder = two.join("a.example");
    std::fs::write(folder.join(FILE), "").unwrap();
    for name in [
        "b.crt", "a.crt", "c.cert", "c.key", "d.cert", "e.key", "f.txt",
    ] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let hosts = read(&dirs, "a.example").unwrap();
    assert_eq!(places(&hosts), ["own"]);
    let path = |name: &str| folder.join(name);
    assert_eq!(hosts[0].tls.ca, [path("a.crt"), path("b.crt")]);
    let pairs = [
        (path("c.cert"), Some(path("c.key"))),
        (path("d.cert"), None),
    ];
    assert_eq!(hosts[0].tls.client, pairs);
    // What cannot be read is no reason to go on without it.
    std::fs::remove_file(folder.join(FILE)).unwrap();
    std::fs::create_dir(folder.join(FILE)).unwrap();
    let error = read(&dirs, "a.example").unwrap_err().to_string();
    assert!(error.contains("hosts.toml"), "{error}");
}

/// The files that the fuzzer begins with, and each with one byte changed.
#[test]
fn the_corpus_is_read_or_refused() {
    let files = crate::corpus::of("hosts");
    for bytes in &files {
        fuzz(bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 7);
            fuzz(&changed);
        }
    }
    assert!(files.len() >= 3);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        fuzz(&bytes);
    }

    /// Files that are nearly right.
    #[test]
    fn no_file_makes_it_panic(lines in prop::collection::vec(
        "(\\[host\\.\"(https?://)?[a-z:.?#/@\\[\\]0-9]{0,12}\"\\]|\\[header\\]|(server|ca|client|capabilities|header|dial_timeout|skip_verify|override_path|proxy|x) = (\"[ -~&&[^\"\\\\]]{0,12}\"|true|[0-9]{1,4}|\\[(\"[a-z]{0,4}\",?){0,3}\\]|\\[\\[\"a\", \"b\"\\]\\]))",
        0..8,
    )) {
        fuzz(lines.join("\n").as_bytes());
    }

    #[test]
    fn what_is_named_is_asked_in_that_order(names in prop::collection::hash_set("[a-z]{1,6}", 1..6)) {
        let names: Vec<_> = names.into_iter().collect();
        let text: String = names.iter().map(|name| format!("[host.\"https://{name}.example\"]\n")).collect();
        let found = places(&parse(&text).unwrap());
        let expected = names.iter().map(|name| format!("https://{name}.example/v2"));
        prop_assert_eq!(found, expected.chain(["own".to_owned()]).collect::<Vec<_>>());
    }
}
