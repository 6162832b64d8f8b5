//! These need root: they mount for real, in mount namespaces of their own.

use super::*;
use crate::store::RootFd;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Instant;

use rustix::fs::{StatxFlags, statx};

/// Those of this kernel: the older one works everywhere.
fn methods() -> Vec<Method> {
    match method_of_this_kernel() {
        Method::OneString => vec![Method::OneString],
        Method::LayerByLayer => vec![Method::OneString, Method::LayerByLayer],
    }
}

fn method_of_this_kernel() -> Method {
    let release = rustix::system::uname()
        .release()
        .to_str()
        .unwrap()
        .to_owned();
    let version = release
        .split(['.', '-'])
        .take(2)
        .map(|part| part.parse::<u32>().unwrap());
    if version.collect::<Vec<_>>() >= vec![6, 8] {
        Method::LayerByLayer
    } else {
        Method::OneString
    }
}

/// A state folder with `layers` layers: each has a file of its own, and all have "top".
struct Fixture {
    folder: tempfile::TempDir,
    layers: usize,
}

impl Fixture {
    fn new(layers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for layer in 0..layers {
            let path = folder.path().join(format!("layers/{layer}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(format!("file-{layer}")), format!("{layer}")).unwrap();
            fs::write(path.join("top"), format!("{layer}")).unwrap();
        }
        let fixture = Self { folder, layers };
        for name in ["upper", "work"] {
            fs::create_dir(fixture.folder.path().join(name)).unwrap();
        }
        fixture
    }

    fn overlay(&self) -> Overlay {
        let path = self.folder.path();
        Overlay {
            layers: (0..self.layers)
                .map(|layer| path.join(format!("layers/{layer}")))
                .collect(),
            upper: path.join("upper"),
            work: path.join("work"),
            volatile: true,
            user_namespace: None,
            label: None,
        }
    }
}

fn read(root: &RootFd, path: &str) -> io::Result<String> {
    root.read_file(Path::new(path), 100)
        .map(|bytes| String::from_utf8(bytes).unwrap())
}

fn write(root: &RootFd, path: &str, text: &str) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC;
    let file = root
        .open_in(Path::new(path), flags, Mode::from_raw_mode(0o644))
        .unwrap();
    rustix::io::write(&file, text.as_bytes()).unwrap();
}

#[tokio::test]
async fn layers_are_stacked_in_order_and_written_above() {
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        for layers in [0, 1, 5, MAX_LAYERS] {
            let fixture = Fixture::new(layers);
            let root = RootFd::from(builder.overlay(fixture.overlay()).await.unwrap());
            for layer in 0..layers {
                assert_eq!(
                    read(&root, &format!("file-{layer}")).unwrap(),
                    layer.to_string()
                );
            }
            if layers > 0 {
                assert_eq!(
                    read(&root, "top").unwrap(),
                    (layers - 1).to_string(),
                    "{method:?}"
                );
            }
            write(&root, "top", "written");
            assert_eq!(read(&root, "/top").unwrap(), "written");
            assert_eq!(
                fs::read(fixture.folder.path().join("upper/top")).unwrap(),
                b"written"
            );
        }
    }
}

#[tokio::test]
async fn the_newest_method_is_found_by_trying() {
    let (send, found) = mpsc::channel();
    std::thread::spawn(move || send.send(Room::enter(None).unwrap().method).unwrap());
    assert_eq!(found.recv().unwrap(), method_of_this_kernel());
}

#[tokio::test]
async fn nothing_shows_in_the_hosts_mount_table() {
    let fixture = Fixture::new(3);
    let builder = Builder::start().unwrap();
    let root = builder.overlay(fixture.overlay()).await.unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let id = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .unwrap()
        .stx_mnt_id;
    for line in table.lines() {
        assert!(!line.starts_with(&format!("{id} ")), "{line}");
        assert!(
            !line.contains("/proc/self/fd/") && !line.contains("anchor-"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn the_mark_of_a_volatile_overlay_is_removed() {
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        let fixture = Fixture::new(2);
        let root = RootFd::from(builder.overlay(fixture.overlay()).await.unwrap());
        write(&root, "kept", "kept");
        drop(root);
        let mark = fixture.folder.path().join("work/work/incompat/volatile");
        assert!(mark.exists());
        let root = RootFd::from(builder.overlay(fixture.overlay()).await.unwrap());
        assert_eq!(read(&root, "kept").unwrap(), "kept");
        drop(root);
        // Also before one that is not volatile.
        let overlay = Overlay {
            volatile: false,
            ..fixture.overlay()
        };
        let root = RootFd::from(builder.overlay(overlay).await.unwrap());
        assert_eq!(read(&root, "kept").unwrap(), "kept");
        assert!(!mark.exists());
    }
}

#[tokio::test]
async fn paths_may_be_long_and_lie_in_other_mounts_and_go_through_links() {
    let builder = Builder::start().unwrap();
    let mut fixture = Fixture::new(1);
    let mut long = fixture.folder.path().to_owned();
    while long.as_os_str().len() < 3700 {
        long.push("d".repeat(200));
    }
    let mut overlay = fixture.overlay();
    for (index, name) in ["layer", "upper", "work"].into_iter().enumerate() {
        let path = long.join(name);
        mkdir_all(&path);
        match index {
            0 => overlay.layers.push(path),
            1 => overlay.upper = path,
            _ => overlay.work = path,
        }
    }
    let link = fixture.folder.path().join("link");
    std::os::unix::fs::symlink(&overlay.layers[0], &link).unwrap();
    overlay.layers[0] = link;
    // Another mount.
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(shm.path().join("shm"), "shm").unwrap();
    overlay.layers.push(shm.path().to_owned());
    let root = RootFd::from(builder.overlay(overlay).await.unwrap());
    assert_eq!(read(&root, "file-0").unwrap(), "0");
    assert_eq!(read(&root, "shm").unwrap(), "shm");
    write(&root, "new", "new");
    fixture.layers = 0;
    // tempfile cannot remove paths this long.
    drop(root);
    remove_long(fixture.folder.path());
}

fn mkdir_all(path: &Path) {
    fs::create_dir_all(path).unwrap();
}

/// As `rm -r`, for paths longer than the kernel takes at once.
fn remove_long(path: &Path) {
    let status = std::process::Command::new("rm")
        .arg("-rf")
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_root_has_the_owner_and_mode_of_the_upper_folder() {
    let builder = Builder::start().unwrap();
    let fixture = Fixture::new(0);
    let upper = fixture.folder.path().join("upper");
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::chown(&upper, Some(3), Some(4)).unwrap();
    let root = builder.overlay(fixture.overlay()).await.unwrap();
    let meta = fs::File::from(root).metadata();
    // An O_PATH descriptor may be asked for its metadata.
    let meta = meta.unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o751, 3, 4)
    );
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let builder = Builder::start().unwrap();
    let fixture = Fixture::new(1);
    let mut overlay = fixture.overlay();
    overlay.layers.push(fixture.folder.path().join("missing"));
    let error = builder.overlay(overlay).await.unwrap_err();
    assert!(
        matches!(&error, Error::Folder { path, source }
        if path.ends_with("missing") && source.kind() == io::ErrorKind::NotFound),
        "{error}"
    );

    let mut overlay = fixture.overlay();
    overlay.upper = fixture.folder.path().join("layers/0/file-0");
    let error = builder.overlay(overlay).await.unwrap_err();
    assert!(
        error.to_string().ends_with("file-0: not a directory"),
        "{error}"
    );

    let mut overlay = fixture.overlay();
    overlay.layers = vec![overlay.layers[0].clone(); MAX_LAYERS + 1];
    let error = builder.overlay(overlay).await.unwrap_err();
    assert!(matches!(error, Error::TooManyLayers(128)), "{error}");

    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let overlay = Overlay {
        work: shm.path().to_owned(),
        ..fixture.overlay()
    };
    let error = builder.overlay(overlay).await.unwrap_err();
    assert!(matches!(error, Error::Mount { .. }), "{error}");
}

/// The id of an unmounted mount is soon another's: the anchor is then made anew.
#[test]
fn a_mount_that_is_replaced_is_seen() {
    let test = || {
        use nix::mount::{MsFlags, mount, umount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let builder = Builder::start().unwrap();
        let fixture = Fixture::new(1);
        for round in 0..20 {
            let point = fixture.folder.path().join("point");
            fs::create_dir_all(&point).unwrap();
            mount(Some("none"), &point, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            fs::create_dir(point.join("layer")).unwrap();
            fs::write(point.join("layer/round"), round.to_string()).unwrap();
            let mut overlay = fixture.overlay();
            overlay.layers.push(point.join("layer"));
            let root = RootFd::from(runtime.block_on(builder.overlay(overlay)).unwrap());
            assert_eq!(read(&root, "round").unwrap(), round.to_string());
            drop(root);
            umount(&point).unwrap();
        }
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_root_can_be_moved_into_any_namespace_and_outlives_the_builder() {
    for method in methods() {
        let fixture = Fixture::new(2);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let builder = Builder::start_with(Some(method)).unwrap();
        let root = runtime
            .block_on(builder.overlay(fixture.overlay()))
            .unwrap();
        drop(builder);
        let test = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .unwrap();
            let target = tempfile::tempdir().unwrap();
            move_mount(
                &root,
                "",
                CWD,
                target.path(),
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .unwrap();
            drop(root);
            assert_eq!(fs::read(target.path().join("top")).unwrap(), b"1");
            fs::write(target.path().join("top"), "written").unwrap();
            unmount(target.path(), UnmountFlags::DETACH).unwrap();
        };
        std::thread::spawn(test).join().unwrap();
        assert_eq!(
            fs::read(fixture.folder.path().join("upper/top")).unwrap(),
            b"written"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    let builder = Builder::start().unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let builder = builder.clone();
            tokio::spawn(async move {
                let fixture = Fixture::new(5);
                let root = RootFd::from(builder.overlay(fixture.overlay()).await.unwrap());
                assert_eq!(read(&root, "top").unwrap(), "4");
                drop(root);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Not a test of speed, which depends on the machine, but a place to read it: `--nocapture`.
#[tokio::test]
async fn times() {
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        for layers in [1, 5, MAX_LAYERS] {
            let mut fixtures = Vec::new();
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..20 {
                let fixture = Fixture::new(layers);
                let start = Instant::now();
                let root = builder.overlay(fixture.overlay()).await.unwrap();
                times[0].push(start.elapsed());
                let start = Instant::now();
                drop(root);
                times[1].push(start.elapsed());
                fixtures.push(fixture);
            }
            times.iter_mut().for_each(|times| times.sort_unstable());
            let [made, dropped] = times.map(|times| times[10]);
            println!("{method:?}, {layers} layers: p50 {made:?}, dropped in {dropped:?}");
        }
    }
}

#[tokio::test]
async fn a_volume_shows_layers_and_takes_nothing() {
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        for layers in [0, 1, 3] {
            let fixture = Fixture::new(layers);
            let volume = Volume {
                layers: fixture.overlay().layers,
                sub_path: None,
                user_namespace: None,
                label: None,
            };
            let root = RootFd::from(builder.volume(volume).await.unwrap());
            if let Some(top) = layers.checked_sub(1) {
                assert_eq!(read(&root, "top").unwrap(), top.to_string(), "{method:?}");
                assert_eq!(read(&root, "file-0").unwrap(), "0");
            }
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let error = root.open_in(Path::new("new"), flags, Mode::from_raw_mode(0o644));
            let kind = error.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::ReadOnlyFilesystem, "{method:?}");
        }
    }
}

#[tokio::test]
async fn a_sub_path_is_a_folder_within_the_volume() {
    use std::os::unix::fs::symlink;
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        let fixture = Fixture::new(2);
        let bottom = fixture.folder.path().join("layers/0");
        fs::create_dir_all(bottom.join("a/b")).unwrap();
        fs::write(bottom.join("a/b/f"), "deep").unwrap();
        symlink("/a", bottom.join("absolute")).unwrap();
        symlink("../../../../../../../../etc", bottom.join("out")).unwrap();
        symlink("/proc", bottom.join("proc")).unwrap();
        let make = async |path: &str| {
            let volume = Volume {
                layers: fixture.overlay().layers,
                sub_path: Some(path.into()),
                user_namespace: None,
                label: None,
            };
            builder.volume(volume).await.map(RootFd::from)
        };
        for (path, file) in [("a", "b/f"), ("a/b", "f"), ("absolute/b", "f")] {
            let root = make(path).await.unwrap();
            assert_eq!(read(&root, file).unwrap(), "deep", "{method:?} {path}");
            // What lies above it is out of reach.
            assert!(read(&root, "../../top").is_err());
        }
        for (path, errno) in [
            ("none", libc::ENOENT),
            ("top", libc::ENOTDIR),
            ("out", libc::ENOENT),
            // In there it is a link to itself.
            ("proc", libc::ELOOP),
        ] {
            match make(path).await.unwrap_err() {
                Error::SubPath { source, .. } => {
                    assert_eq!(source.raw_os_error(), Some(errno), "{path}");
                }
                other => panic!("{path}: {other}"),
            }
        }
        // The builder is as good as before.
        let root = RootFd::from(builder.overlay(fixture.overlay()).await.unwrap());
        assert_eq!(read(&root, "top").unwrap(), "1");
    }
}

/// A user namespace in which id 0 is the host's 100000, and so on. It is there while its process is.
struct UserNamespace(std::process::Child, Arc<OwnedFd>);

impl UserNamespace {
    fn new() -> Self {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "cat"]);
        command.stdin(std::process::Stdio::piped());
        let child = command.spawn().expect("util-linux");
        let path = |name: &str| format!("/proc/{}/{name}", child.id());
        let of = |path: &str| fs::read_link(path).unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(30);
        while of(&path("ns/user")) == of("/proc/self/ns/user") {
            assert!(Instant::now() < deadline, "no user namespace");
            std::thread::yield_now();
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(path(map), "0 100000 65536").unwrap();
        }
        let file = fs::File::open(path("ns/user")).unwrap();
        Self(child, Arc::new(file.into()))
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn layers_are_seen_in_the_ids_of_a_user_namespace() {
    let namespace = UserNamespace::new();
    for method in methods() {
        let builder = Builder::start_with(Some(method)).unwrap();
        for layers in [0, 1, MAX_LAYERS] {
            let fixture = Fixture::new(layers);
            let overlay = Overlay {
                user_namespace: Some(Arc::clone(&namespace.1)),
                label: None,
                ..fixture.overlay()
            };
            let owner = |root: &RootFd, name: &str| {
                let path = OFlags::PATH;
                let file = root.open_in(Path::new(name), path, Mode::empty()).unwrap();
                rustix::fs::fstat(&file).unwrap().st_uid
            };
            let root = RootFd::from(builder.overlay(overlay.clone()).await.unwrap());
            if layers > 0 {
                assert_eq!(owner(&root, "top"), 100_000, "{method:?}");
                // Others see the same layers as ever.
                assert_eq!(
                    fixture
                        .folder
                        .path()
                        .join("layers/0/top")
                        .metadata()
                        .unwrap()
                        .uid(),
                    0
                );
            }
            // What is written is not mapped again.
            write(&root, "new", "new");
            assert_eq!(owner(&root, "new"), 0, "{method:?}");
            drop(root);
            // Nothing of it stays in the way of the next.
            builder.overlay(overlay).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_layer_that_cannot_be_mapped_is_an_error_that_names_it() {
    let namespace = UserNamespace::new();
    let builder = Builder::start().unwrap();
    let fixture = Fixture::new(1);
    let overlay = Overlay {
        layers: vec!["/proc/sys".into()],
        user_namespace: Some(Arc::clone(&namespace.1)),
        label: None,
        ..fixture.overlay()
    };
    let error = builder.overlay(overlay).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("layer /proc/sys: its file system cannot be idmapped"),
        "{text}"
    );
    builder.overlay(fixture.overlay()).await.unwrap();
}
