//! These need root: they mount for real, in mount namespaces of their own.

use super::*;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use rustix::mount::{MoveMountFlags, move_mount};

const NONE: Option<&str> = None;

/// Runs a test in a mount namespace of its own, with a tmpfs that has "source" (itself a mount, with
/// "below" as a mount in it) and "target" in it.
fn in_namespace(test: impl FnOnce(&Path) + Send + 'static) {
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        tmpfs(path);
        for name in ["source", "target"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        tmpfs(&path.join("source"));
        for name in ["below", "from-host", "from-container"] {
            fs::create_dir(path.join("source").join(name)).unwrap();
        }
        tmpfs(&path.join("source/below"));
        test(path);
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    std::thread::spawn(run).join().unwrap();
}

fn tmpfs(path: &Path) {
    mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
}

fn share(path: &Path, how: MsFlags) {
    mount(NONE, path, NONE, how, NONE).unwrap();
}

fn bind(path: &Path, propagation: Propagation) -> BindMount {
    BindMount {
        source: path.join("source"),
        recursive: true,
        attrs: 0,
        recursive_attrs: 0,
        propagation,
        mapped: false,
    }
}

fn attach(clone: &OwnedFd, target: &Path) {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(clone, "", CWD, target, flags).unwrap();
}

fn is_mount(path: &Path) -> bool {
    let id = |path: &Path| {
        statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
            .unwrap()
            .stx_mnt_id
    };
    id(path) != id(path.parent().unwrap())
}

fn writable(folder: &Path) -> bool {
    match fs::write(folder.join("written"), "") {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            false
        }
    }
}

#[test]
fn mounts_travel_as_the_propagation_says() {
    for (propagation, to_container, to_host) in [
        (Propagation::Private, false, false),
        (Propagation::HostToContainer, true, false),
        (Propagation::Bidirectional, true, true),
    ] {
        in_namespace(move |path| {
            share(&path.join("source"), MsFlags::MS_SHARED | MsFlags::MS_REC);
            let clone = clone_mount(&bind(path, propagation)).unwrap();
            attach(&clone, &path.join("target"));
            assert!(is_mount(&path.join("target/below")), "recursive");
            tmpfs(&path.join("source/from-host"));
            assert_eq!(
                is_mount(&path.join("target/from-host")),
                to_container,
                "{propagation:?}"
            );
            tmpfs(&path.join("target/from-container"));
            assert_eq!(
                is_mount(&path.join("source/from-container")),
                to_host,
                "{propagation:?}"
            );
            // And below the submount, which MS_PRIVATE without AT_RECURSIVE would leave shared.
            for side in ["source", "target"] {
                fs::create_dir(path.join("source/below").join(side)).unwrap();
            }
            tmpfs(&path.join("source/below/source"));
            assert_eq!(is_mount(&path.join("target/below/source")), to_container);
            tmpfs(&path.join("target/below/target"));
            assert_eq!(is_mount(&path.join("source/below/target")), to_host);
        });
    }
}

#[test]
fn propagation_that_could_do_nothing_is_refused() {
    in_namespace(|path| {
        let source = path.join("source");
        let error = clone_mount(&bind(path, Propagation::Bidirectional)).unwrap_err();
        assert!(
            matches!(&error, Error::NotShared { mount, .. } if *mount == source),
            "{error}"
        );
        let error = clone_mount(&bind(path, Propagation::HostToContainer)).unwrap_err();
        assert!(
            matches!(&error, Error::NotSharedOrSlave { mount, .. } if *mount == source),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .ends_with("which is not a shared or slave mount"),
            "{error}"
        );
        // A slave: only towards the container. A folder below a mount is judged by that mount.
        share(&source, MsFlags::MS_SHARED);
        fs::create_dir(path.join("slave")).unwrap();
        mount(
            Some(&source),
            &path.join("slave"),
            NONE,
            MsFlags::MS_BIND,
            NONE,
        )
        .unwrap();
        share(&path.join("slave"), MsFlags::MS_SLAVE);
        let mut slave = bind(path, Propagation::HostToContainer);
        slave.source = path.join("slave/from-host");
        clone_mount(&slave).unwrap();
        slave.propagation = Propagation::Bidirectional;
        assert!(matches!(
            clone_mount(&slave).unwrap_err(),
            Error::NotShared { .. }
        ));
    });
}

#[test]
fn read_only_is_of_the_mount_or_of_the_tree() {
    for (readonly, recursive, top, below) in [
        (false, false, true, true),
        (true, false, false, true),
        (true, true, false, false),
    ] {
        in_namespace(move |path| {
            let attrs = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
            let mount = BindMount {
                attrs,
                recursive_attrs: if recursive { attrs } else { 0 },
                ..bind(path, Propagation::Private)
            };
            let clone = clone_mount(&mount).unwrap();
            attach(&clone, &path.join("target"));
            assert_eq!(writable(&path.join("target")), top);
            assert_eq!(writable(&path.join("target/below")), below);
            assert!(writable(&path.join("source")) && writable(&path.join("source/below")));
        });
    }
}

#[test]
fn a_clone_is_of_the_mount_alone_unless_recursive() {
    in_namespace(|path| {
        let mount = BindMount {
            recursive: false,
            ..bind(path, Propagation::Private)
        };
        attach(&clone_mount(&mount).unwrap(), &path.join("target"));
        assert!(path.join("target/below").is_dir() && !is_mount(&path.join("target/below")));
    });
}

#[test]
fn options_are_the_mounts_own_or_the_trees() {
    assert!(can_protect_recursively());
    in_namespace(|path| {
        let mount = BindMount {
            attrs: libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOATIME,
            recursive_attrs: libc::MOUNT_ATTR_NODEV,
            ..bind(path, Propagation::Private)
        };
        attach(&clone_mount(&mount).unwrap(), &path.join("target"));
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let options = |point: &Path| {
            let point = format!(" {} ", point.display());
            let line = table.lines().find(|line| line.contains(&point)).unwrap();
            line.split(' ').nth(5).unwrap().to_owned()
        };
        assert_eq!(options(&path.join("target")), "rw,nodev,noexec,noatime");
        assert_eq!(options(&path.join("target/below")), "rw,nodev,relatime");
        assert_eq!(options(&path.join("source")), "rw,relatime");
    });
}

#[test]
fn a_missing_path_is_made_and_links_are_followed() {
    in_namespace(|path| {
        let mut mount = bind(path, Propagation::Private);
        mount.source = path.join("made/of/folders");
        let error = clone_mount(&mount).unwrap_err().to_string();
        assert!(
            error.contains("made/of/folders: open_tree: No such file"),
            "{error}"
        );
        prepare(&mount.source, Propagation::Private).unwrap();
        clone_mount(&mount).unwrap();
        let meta = fs::metadata(path.join("made/of")).unwrap();
        assert!(meta.is_dir());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o755);

        fs::write(path.join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", path.join("link")).unwrap();
        mount.source = path.join("link");
        let clone = clone_mount(&mount).unwrap();
        fs::write(path.join("hosts"), "").unwrap();
        attach(&clone, &path.join("hosts"));
        assert_eq!(fs::read_to_string(path.join("hosts")).unwrap(), "content");

        mount.source = path.join("file/below");
        let error = clone_mount(&mount).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("file/below: open_tree: Not a directory (os error 20)"),
            "{error}"
        );
        mount.source = "/proc/missing".into();
        assert!(matches!(
            prepare(&mount.source, Propagation::Private).unwrap_err(),
            Error::Path { .. }
        ));
    });
}

#[test]
fn a_devices_node_is_cloned_as_a_file() {
    in_namespace(|path| {
        let mut mount = bind(path, Propagation::Private);
        mount.source = "/dev/zero".into();
        let clone = clone_mount(&mount).unwrap();
        fs::write(path.join("zero"), "").unwrap();
        attach(&clone, &path.join("zero"));
        let mut bytes = [1; 4];
        fs::File::open(path.join("zero"))
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        assert_eq!(bytes, [0; 4]);
    });
}

#[test]
fn the_mount_table_is_read_as_the_kernel_writes_it() {
    let table = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        31 23 0:28 /a /b rw,relatime shared:5 master:7 propagate_from:2 - tmpfs shared:tmpfs rw\n";
    let none = Peers {
        shared: false,
        slave: false,
    };
    let both = Peers {
        shared: true,
        slave: true,
    };
    assert_eq!(find_mount(table, 22), Some(("/proc".into(), none)));
    assert_eq!(find_mount(table, 31), Some(("/b".into(), both)));
    assert_eq!(find_mount(table, 2), None);
}

#[test]
fn a_terminal_has_two_ends_and_a_devpts_of_its_own() {
    let first = terminal(5, None).unwrap();
    let second = terminal(5, None).unwrap();
    for terminal in [first, second] {
        assert_eq!(terminal.number, 0);
        let name = terminal.number.to_string();
        let node = statx(
            &terminal.devpts,
            &name,
            AtFlags::empty(),
            StatxFlags::BASIC_STATS,
        )
        .unwrap();
        assert_eq!((node.stx_mode & 0o7777, node.stx_gid), (0o620, 5));
        let ptmx = statx(
            &terminal.devpts,
            "ptmx",
            AtFlags::empty(),
            StatxFlags::BASIC_STATS,
        )
        .unwrap();
        assert_eq!(ptmx.stx_mode & 0o777, 0o666);
        let mut master = fs::File::from(terminal.master);
        let mut slave = fs::File::from(terminal.slave);
        slave.write_all(b"out\n").unwrap();
        let mut bytes = [0; 16];
        // The kernel may hand it over in parts.
        master.read_exact(&mut bytes[..5]).unwrap();
        assert_eq!(&bytes[..5], b"out\r\n");
        master.write_all(b"in\n").unwrap();
        let length = slave.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"in\n");
    }
}

#[test]
fn only_a_terminal_device_is_opened_in_a_root() {
    let root = tempfile::tempdir().unwrap();
    let open = || {
        let root = fs::File::open(root.path()).unwrap();
        terminal_below(root.as_fd()).unwrap_err().to_string()
    };
    let pts = root.path().join("dev/pts");
    assert!(open().contains("open ptmx"));
    fs::create_dir_all(&pts).unwrap();
    fs::write(pts.join("ptmx"), "").unwrap();
    assert!(open().contains("invalid input"));
    fs::remove_file(pts.join("ptmx")).unwrap();
    std::os::unix::fs::symlink("/dev/ptmx", pts.join("ptmx")).unwrap();
    assert!(open().contains("symbolic links"));
    fs::remove_file(pts.join("ptmx")).unwrap();
    // The right number in the wrong file system.
    let device = rustix::fs::FileType::CharacterDevice;
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, pts.join("ptmx"), device, mode, makedev(5, 2)).unwrap();
    assert!(open().contains("invalid input"));
}
