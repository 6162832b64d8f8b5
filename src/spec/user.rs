//! Who runs a container: the request's user, or the image's, looked up inside the root file system.
//!
//! /etc/passwd and /etc/group belong to the image's author, so they are read through a [`RootFd`], whole,
//! up to a limit, and a line that is not well-formed is passed over. A number is never taken for a name,
//! even one that no user id can be.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::spec::config::{GroupsPolicy, Security, UserSpec};
use crate::store::RootFd;

/// The longest /etc/passwd and /etc/group that is read, in bytes.
const LIMIT: u64 = 10 << 20;

/// The largest user and group id: the kernel has more, but they are negative to much of what runs.
const MAX_ID: u32 = i32::MAX as u32;

/// The most supplementary groups that the kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// Why it cannot be said who runs the container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `origin` is the field that names the user: "run_as_username" or "image user".
    #[error("{origin} {name:?}: no such user in the image's /etc/passwd")]
    NoSuchUser { origin: &'static str, name: String },
    #[error("{origin} {name:?}: no such group in the image's /etc/group")]
    NoSuchGroup { origin: &'static str, name: String },
    #[error("{origin} {text:?}: not in the range 0 to 2147483647")]
    OutOfRange { origin: &'static str, text: String },
    #[error("{origin} {text:?}: not a user or user:group")]
    Malformed { origin: &'static str, text: String },
    #[error("supplemental groups: {0} are more than the kernel's 65536")]
    TooManyGroups(usize),
    #[error("read the image's {path}: {source}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
}

/// Who runs a container's processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups, the primary group first: a file that its group may not read stays
    /// closed to one who is in that group by `gid` alone.
    pub groups: Vec<u32>,
    /// Home directory, if the image's /etc/passwd has the user.
    pub home: Option<String>,
    /// Name, if the image's /etc/passwd has the user.
    pub name: Option<String>,
}

/// Finds out who runs a container of the image whose root file system is `root` and whose configuration
/// names `image_user` ("", "user", "uid", "user:group", each part a name or a number).
///
/// # Errors
/// [`Error`]; a name must be in the image, a number need not.
pub fn resolve(root: &RootFd, image_user: &str, security: &Security) -> Result<User, Error> {
    let origin = match &security.user {
        Some(UserSpec::Name(_)) => "run_as_username",
        Some(UserSpec::Id(_)) => "run_as_user",
        None => "image user",
    };
    let (user, group) = match &security.user {
        Some(UserSpec::Id(uid)) => (Wanted::id(origin, *uid)?, None),
        Some(UserSpec::Name(name)) => (Wanted::parse(origin, name)?, None),
        None if image_user.is_empty() => (Wanted::Id(0), None),
        None => match image_user.split_once(':') {
            Some((user, group)) => (
                Wanted::parse(origin, user)?,
                Some(Wanted::parse(origin, group)?),
            ),
            None => (Wanted::parse(origin, image_user)?, None),
        },
    };
    let group = match security.run_as_group {
        Some(gid) => Some(Wanted::id("run_as_group", gid)?),
        None => group,
    };
    let databases = Databases::read(root)?;
    databases.resolve(origin, &user, group.as_ref(), security)
}

/// What a text means: only digits are a number, all else that could be a name is one.
#[derive(Debug)]
enum Wanted {
    Id(u32),
    Name(String),
}

impl Wanted {
    fn id(origin: &'static str, id: u32) -> Result<Self, Error> {
        if id > MAX_ID {
            return Err(Error::OutOfRange {
                origin,
                text: id.to_string(),
            });
        }
        Ok(Self::Id(id))
    }

    fn parse(origin: &'static str, text: &str) -> Result<Self, Error> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse::<u32>() {
                Ok(id) if text == unsigned => Self::id(origin, id),
                _ => Err(Error::OutOfRange {
                    origin,
                    text: text.into(),
                }),
            };
        }
        let hazard = |c: char| c == ':' || c.is_control();
        if text.is_empty() || text.contains(hazard) {
            return Err(Error::Malformed {
                origin,
                text: text.into(),
            });
        }
        Ok(Self::Name(text.into()))
    }
}

/// The image's user and group database.
struct Databases {
    passwd: String,
    group: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Databases {
    fn read(root: &RootFd) -> Result<Self, Error> {
        let read = |path: &'static str| match root.read_file(Path::new(path), LIMIT) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            // An image without the file has no names; numbers work.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(String::new())
            }
            Err(source) => Err(Error::Read { path, source }),
        };
        Ok(Self {
            passwd: read("/etc/passwd")?,
            group: read("/etc/group")?,
        })
    }

    fn passwd(&self) -> impl Iterator<Item = PasswdEntry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let _password = fields.next()?;
            let uid = number(fields.next()?)?;
            let gid = number(fields.next()?)?;
            let _comment = fields.next();
            let home = fields.next().unwrap_or_default();
            (!name.is_empty()).then_some(PasswdEntry {
                name,
                uid,
                gid,
                home,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = GroupEntry<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next()?;
            let _password = fields.next()?;
            let gid = number(fields.next()?)?;
            let members = fields.next().unwrap_or_default();
            (!name.is_empty()).then_some(GroupEntry { name, gid, members })
        })
    }

    fn resolve(
        &self,
        origin: &'static str,
        user: &Wanted,
        group: Option<&Wanted>,
        security: &Security,
    ) -> Result<User, Error> {
        let entry = match user {
            Wanted::Id(uid) => self.passwd().find(|entry| entry.uid == *uid),
            Wanted::Name(name) => {
                let entry = self.passwd().find(|entry| entry.name == name);
                Some(entry.ok_or_else(|| Error::NoSuchUser {
                    origin,
                    name: name.clone(),
                })?)
            }
        };
        let uid = match (user, &entry) {
            (Wanted::Id(uid), _) => *uid,
            (Wanted::Name(_), entry) => entry.as_ref().map_or(0, |entry| entry.uid),
        };
        let gid = match group {
            Some(Wanted::Id(gid)) => *gid,
            Some(Wanted::Name(name)) => {
                let found = self.groups().find(|group| group.name == name);
                let no_such = || Error::NoSuchGroup {
                    origin,
                    name: name.clone(),
                };
                found.ok_or_else(no_such)?.gid
            }
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        let name = entry.as_ref().map(|entry| entry.name);
        Ok(User {
            uid,
            gid,
            groups: self.supplementary(gid, name, security)?,
            home: entry
                .as_ref()
                .map(|entry| entry.home.to_owned())
                .filter(|home| !home.is_empty()),
            name: name.map(str::to_owned),
        })
    }

    /// The primary group, what the request names, and with Merge the image's groups of the user.
    fn supplementary(
        &self,
        gid: u32,
        name: Option<&str>,
        security: &Security,
    ) -> Result<Vec<u32>, Error> {
        let mut groups = vec![gid];
        if let (Some(name), GroupsPolicy::Merge) = (name, security.supplemental_groups_policy) {
            let member =
                |group: &GroupEntry<'_>| group.members.split(',').any(|member| member == name);
            groups.extend(self.groups().filter(member).map(|group| group.gid));
        }
        for gid in &security.supplemental_groups {
            Wanted::id("supplemental group", *gid)?;
            groups.push(*gid);
        }
        let mut seen = std::collections::HashSet::new();
        groups.retain(|gid| seen.insert(*gid));
        if groups.len() > MAX_GROUPS {
            return Err(Error::TooManyGroups(groups.len()));
        }
        Ok(groups)
    }
}

/// A field of digits, in range.
fn number(field: &str) -> Option<u32> {
    let digits = !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit());
    field.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::spec::config::{AppArmorProfile, PidScope, SeccompProfile, SelinuxOptions};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n\
        4294967296:x:0:0::/:/bin/sh\n\
        0x10:x:7:8::/seven:\n\
        broken:x:nope:0::/:\n\
        huge:x:4294967295:0::/:\n\
        short:x:5\n";
    const GROUP: &str =
        "root:x:0:\nalice:x:1001:\nwheel:x:10:root,alice\nmalice:x:11:malice\ngames:x:60:alice\n";

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, RootFd) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::write(root.path().join("etc/group"), group).unwrap();
        let fd = RootFd::open(root.path()).unwrap();
        (root, fd)
    }

    fn security() -> Security {
        Security {
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            add_ambient_capabilities: Vec::new(),
            pid: PidScope::Container,
            user: None,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            supplemental_groups_policy: GroupsPolicy::Merge,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            seccomp: SeccompProfile::Unconfined,
            apparmor: AppArmorProfile::Unconfined,
            selinux: SelinuxOptions::default(),
        }
    }

    fn by_image(user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let (_root, fd) = image(PASSWD, GROUP);
        resolve(&fd, user, &security())
            .map(|user| (user.uid, user.gid, user.groups))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_of_an_images_user() {
        for (user, expected) in [
            ("", (0, 0, vec![0, 10])),
            ("0", (0, 0, vec![0, 10])),
            ("1000", (1000, 1001, vec![1001, 10, 60])),
            ("alice", (1000, 1001, vec![1001, 10, 60])),
            ("alice:wheel", (1000, 10, vec![10, 60])),
            ("alice:7", (1000, 7, vec![7, 10, 60])),
            ("1000:wheel", (1000, 10, vec![10, 60])),
            ("4242", (4242, 0, vec![0])),
            ("4242:4343", (4242, 4343, vec![4343])),
            ("0x10", (7, 8, vec![8])),
            ("2147483647", (2_147_483_647, 0, vec![0])),
        ] {
            assert_eq!(by_image(user), Ok(expected), "{user}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_never_a_name() {
        for user in [
            "4294967296",
            "2147483648",
            "-1",
            "+5",
            "1000:99999999999",
            "99999999999999999999999",
            "alice:-1",
        ] {
            let error = by_image(user).unwrap_err();
            assert!(
                error.contains("not in the range 0 to 2147483647"),
                "{user}: {error}"
            );
        }
    }

    #[test]
    fn unknown_and_malformed_users() {
        for (user, text) in [
            (
                "bob",
                "image user \"bob\": no such user in the image's /etc/passwd",
            ),
            (
                "broken",
                "image user \"broken\": no such user in the image's /etc/passwd",
            ),
            (
                "huge",
                "image user \"huge\": no such user in the image's /etc/passwd",
            ),
            (
                "alice:bob",
                "image user \"bob\": no such group in the image's /etc/group",
            ),
            ("alice:", "image user \"\": not a user or user:group"),
            (":alice", "image user \"\": not a user or user:group"),
            ("a:b:c", "image user \"b:c\": not a user or user:group"),
            ("a\nb", "image user \"a\\nb\": not a user or user:group"),
        ] {
            assert_eq!(by_image(user), Err(text.to_owned()));
        }
    }

    #[test]
    fn the_request_comes_before_the_image() {
        let (_root, fd) = image(PASSWD, GROUP);
        let mut wanted = security();
        wanted.user = Some(UserSpec::Id(1000));
        let user = resolve(&fd, "root:games", &wanted).unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1001));
        assert_eq!(user.home.as_deref(), Some("/home/alice"));
        wanted.run_as_group = Some(2000);
        wanted.supplemental_groups = vec![3000, 10];
        let user = resolve(&fd, "", &wanted).unwrap();
        assert_eq!(user.groups, [2000, 10, 60, 3000]);
        wanted.supplemental_groups_policy = GroupsPolicy::Strict;
        let user = resolve(&fd, "", &wanted).unwrap();
        assert_eq!(user.groups, [2000, 3000, 10]);
        wanted.user = Some(UserSpec::Name("bob".into()));
        let error = resolve(&fd, "", &wanted).unwrap_err().to_string();
        assert_eq!(
            error,
            "run_as_username \"bob\": no such user in the image's /etc/passwd"
        );
        wanted.user = Some(UserSpec::Id(1 << 31));
        let error = resolve(&fd, "", &wanted).unwrap_err().to_string();
        assert_eq!(
            error,
            "run_as_user \"2147483648\": not in the range 0 to 2147483647"
        );
    }

    #[test]
    fn databases_are_bounded_and_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        let fd = RootFd::open(root.path()).unwrap();
        assert_eq!(resolve(&fd, "12", &security()).unwrap().uid, 12);
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = root.path().join("etc/passwd");
        let error = |case: &str| {
            let error = resolve(&fd, "12", &security()).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Read {
                        path: "/etc/passwd",
                        ..
                    }
                ),
                "{case}: {error}"
            );
            fs::remove_file(&passwd).unwrap();
        };
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRUSR).unwrap();
        error("fifo");
        symlink("/etc/passwd", &passwd).unwrap();
        error("loop");
        fs::File::create(&passwd).unwrap().set_len(5 << 30).unwrap();
        error("sparse");
        // A link to the host's file leads to nothing inside.
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "eve:x:1:1::/:\n").unwrap();
        symlink(outside.path(), &passwd).unwrap();
        let found = resolve(&fd, "eve", &security()).unwrap_err();
        assert!(matches!(found, Error::NoSuchUser { .. }), "{found}");
    }
}
