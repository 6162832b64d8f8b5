//! Names: look-up, removal, tags that move.

use super::*;

#[test]
fn an_image_is_found_by_all_its_names() {
    let ground = Ground::new();
    let made = Made::simple("a");
    let mut layout = Layout::default();
    let manifest = layout.manifest(&made);
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let archive = layout
        .entry(manifest.clone(), "busybox:latest")
        .entry(manifest, "localhost:5000/x:latest");
    ground.import(&archive.finish()).unwrap();
    let hex = made.id().hex();
    for name in [
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        "localhost:5000/x",
        &format!("localhost:5000/x@{digest}"),
        &format!("busybox:whatever@{digest}"),
        &hex,
        &format!("sha256:{hex}"),
        &hex[..12],
        &hex[..4],
        &format!("sha256:{}", &hex[..10]),
    ] {
        let image = ground
            .store
            .resolve(name)
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(image.id.0, made.id());
        assert_eq!(
            image.tags,
            [
                "docker.io/library/busybox:latest",
                "localhost:5000/x:latest"
            ]
        );
        let digests = ["docker.io/library/busybox", "localhost:5000/x"];
        assert_eq!(
            image.digests,
            digests.map(|repository| format!("{repository}@{digest}"))
        );
    }
    for name in [
        "",
        "busybox:2",
        "localhost/x",
        &hex[..3],
        &hex[1..],
        &hex.to_uppercase(),
        &format!("other@{digest}"),
        "../../etc/passwd",
        "busybox\0",
    ] {
        assert!(ground.store.resolve(name).is_none(), "{name}");
    }
}

#[test]
fn an_abbreviation_must_fit_one_image_only() {
    let ground = Ground::new();
    let layer = Tar::new().folder("./").finish();
    let mut made = std::collections::HashMap::new();
    let alike = (0..).find_map(|number| {
        let new = Made::new(
            std::slice::from_ref(&layer),
            Pack::Plain,
            json!({"Cmd": [number.to_string()]}),
        );
        let old = made.insert(new.id().hex()[..4].to_owned(), new.clone())?;
        Some([old, new])
    });
    let alike = alike.unwrap();
    let [one, two] = alike.each_ref().map(|made| made.id().hex());
    ground.import(&alike[0].saved(&[])).unwrap();
    assert_eq!(ground.store.resolve(&one[..4]).unwrap().id.0, alike[0].id());
    ground.import(&alike[1].saved(&[])).unwrap();
    assert!(ground.store.resolve(&one[..4]).is_none());
    for (id, made) in [(&one, &alike[0]), (&two, &alike[1])] {
        assert_eq!(ground.store.resolve(&id[..20]).unwrap().id.0, made.id());
    }
    assert_eq!(ground.store.list().len(), 2);
}

#[test]
fn removing_by_tag_and_by_id() {
    let ground = Ground::new();
    let made = Made::simple("a");
    let archive = Layout::default()
        .image(&made, "r.io/a:1")
        .image(&made, "r.io/b:1")
        .finish();
    ground.import(&archive).unwrap();
    ground.store.remove("r.io/a:1").unwrap();
    let image = ground.store.resolve("r.io/b:1").unwrap();
    assert_eq!(image.tags, ["r.io/b:1"]);
    assert!(
        image
            .digests
            .iter()
            .all(|digest| digest.starts_with("r.io/b@"))
    );
    assert_eq!(image.digests.len(), 1);
    ground.store.remove("r.io/b:1").unwrap();
    assert!(ground.store.list().is_empty());
    ground.import(&archive).unwrap();
    ground.store.remove(&made.id().to_string()).unwrap();
    assert!(ground.store.list().is_empty());
    for unknown in ["r.io/a:1", "", "a b", &made.id().to_string(), "../x"] {
        ground.store.remove(unknown).unwrap();
    }
    // By its only digest reference, when it has no tag.
    let names = [format!("r.io/a@{}", Digest::of(b"x")).parse().unwrap()];
    ground
        .store
        .import(&archive[..], &named(names.to_vec()), &|_| {})
        .unwrap_err();
    drop(image);
    assert_eq!(ground.collect(), 1);
    assert_eq!(ground.counts(), [0, 0, 0, 0]);
    assert_eq!(ground.store.disk_usage().bytes, 0);
}

#[test]
fn a_tag_moves_to_the_image_imported_last() {
    let mut ground = Ground::new();
    let (old, new) = (Made::simple("old"), Made::simple("new"));
    ground.import(&old.saved(&["app:1", "app:old"])).unwrap();
    ground.import(&new.saved(&["app:1"])).unwrap();
    for _ in 0..2 {
        assert_eq!(ground.store.resolve("app:1").unwrap().id.0, new.id());
        assert_eq!(ground.store.resolve("app:old").unwrap().id.0, old.id());
        assert_eq!(ground.store.list().len(), 2);
        ground.reopen();
    }
    // As if killed before the old record was written anew.
    let path = ground.path("images").join(old.id().hex());
    ground.store.remove("app:1").unwrap();
    ground.import(&old.saved(&["app:1"])).unwrap();
    let early = std::fs::read(&path).unwrap();
    ground.import(&new.saved(&["app:1"])).unwrap();
    std::fs::write(&path, early).unwrap();
    ground.reopen();
    assert_eq!(ground.store.resolve("app:1").unwrap().id.0, new.id());
    assert_eq!(
        ground.store.resolve("app:old").unwrap().tags,
        ["docker.io/library/app:old"]
    );
}

#[test]
fn what_is_held_or_in_use_is_not_collected() {
    let ground = Ground::new();
    let made = Made::simple("a");
    ground.import(&made.saved(&["a"])).unwrap();
    let held = ground.store.resolve("a").unwrap();
    // A change of names makes another image object; both count.
    ground.store.pin(&held.id.to_string(), true).unwrap();
    assert!(ground.store.resolve("a").unwrap().pinned);
    ground.store.remove("a").unwrap();
    assert_eq!(ground.collect(), 0);
    let in_use: HashSet<_> = held.layers.iter().copied().collect();
    drop(held);
    assert!(ground.store.collect(|| in_use).layers.is_empty());
    assert_eq!(ground.collect(), 1);
}

#[test]
fn names_can_be_given_for_one_image() {
    let ground = Ground::new();
    let (one, two) = (Made::simple("one"), Made::simple("two"));
    let names = named(vec!["given:1".parse().unwrap()]);
    let both = Layout::default()
        .image(&one, "a:1")
        .image(&two, "b:1")
        .finish();
    let error = ground.store.import(&both[..], &names, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("2 images, so no name"));
    let single = Layout::default().image(&one, "a:1").finish();
    ground.store.import(&single[..], &names, &|_| {}).unwrap();
    assert!(ground.store.resolve("a:1").is_none());
    assert_eq!(ground.store.resolve("given:1").unwrap().digests.len(), 1);
    // A bare tag names no repository, and none is made up.
    ground
        .import(&Layout::default().image(&two, "latest").finish())
        .unwrap();
    assert!(ground.store.resolve("latest").is_none());
    assert_eq!(
        ground.store.resolve(&two.id().to_string()).unwrap().tags,
        Vec::<String>::new()
    );
}

#[test]
fn folders_are_for_root_only() {
    use std::os::unix::fs::PermissionsExt;
    let ground = Ground::new();
    ground.import(&Made::simple("a").saved(&["a"])).unwrap();
    for name in ["", "images", "layers", "tmp", "quarantine"] {
        let mode = std::fs::metadata(ground.path(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}
