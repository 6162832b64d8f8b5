//! What of the node a container gets to see: mounts and devices.

use carpel_api::cri;

use super::{Field, Platform, Rejected, Shown, text};
use crate::cdi::QualifiedName;
use crate::cri::validate::calls;
use crate::spec::config::{Device, Mount, MountSource, Propagation};

const MAX_MOUNTS: usize = 4096;
const MAX_DEVICES: usize = 4096;

/// What `mount_options` may say: flags that take something away, of the mount itself or (r…) of what is mounted below
/// it as well. What gives something back would undo what the node's own mount says.
const OPTIONS: [&str; 11] = [
    "noexec",
    "nodev",
    "nosuid",
    "nosymfollow",
    "rnoexec",
    "rnodev",
    "rnosuid",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
];

/// Files of procfs that may be covered: those in which tools like lxcfs show the container's own numbers.
const COVERABLE: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
];

pub fn mounts(
    field: &Field<'_>,
    raw: Vec<cri::Mount>,
    platform: Platform,
) -> Result<Vec<Mount>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_MOUNTS)?;
    raw.iter()
        .enumerate()
        .map(|(index, raw)| mount(&field.index(index), raw, platform))
        .collect()
}

fn mount(field: &Field<'_>, raw: &cri::Mount, platform: Platform) -> Result<Mount, Rejected> {
    let source = source(field, raw)?;
    let propagation_field = field.member("propagation");
    let propagation = match cri::MountPropagation::try_from(raw.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(cri::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(cri::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(unknown(&propagation_field, raw.propagation)),
    };
    if raw.recursive_read_only {
        recursive_read_only(
            &field.member("recursive_read_only"),
            raw,
            propagation,
            platform,
        )?;
    }
    if raw.image.is_some() {
        image_volume(field, raw, propagation)?;
    }
    Ok(Mount {
        container_path: container_path(
            &field.member("container_path"),
            &raw.container_path,
            &raw.host_path,
        )?,
        source,
        readonly: raw.readonly,
        recursive_readonly: raw.recursive_read_only,
        propagation,
        options: options(&field.member("mount_options"), &raw.mount_options)?,
        // An image's mount has the container's label anyway.
        relabel: raw.selinux_relabel,
    })
}

fn source(field: &Field<'_>, raw: &cri::Mount) -> Result<MountSource, Rejected> {
    let host_path = field.member("host_path");
    let sub_path = field.member("image_sub_path");
    let Some(image) = &raw.image else {
        // The kubelet has led to the sub path already. In a pod with an image volume it sends the text of
        // every volume's subPath, and here it means nothing.
        let path = text::absolute_path(&host_path, &raw.host_path)?;
        return Ok(MountSource::Host(path.into()));
    };
    if !raw.host_path.is_empty() {
        return Err(host_path.invalid("must be empty beside an image"));
    }
    let image_field = field.member("image");
    text::at_most(
        &image_field.member("user_specified_image"),
        image.user_specified_image.len(),
        text::MAX_TEXT,
    )?;
    Ok(MountSource::Image {
        image: calls::image_reference(&image_field.member("image"), image.image.clone())?,
        sub_path: match raw.image_sub_path.as_str() {
            // The root, however it is written.
            path if path.split('/').all(|part| matches!(part, "" | "."))
                && !path.starts_with('/') =>
            {
                None
            }
            path => Some(text::relative_path(&sub_path, path)?.into()),
        },
    })
}

/// An image is shared by all who use it, and no mount of the node ever lies in it.
fn image_volume(
    field: &Field<'_>,
    raw: &cri::Mount,
    propagation: Propagation,
) -> Result<(), Rejected> {
    if !raw.readonly {
        return Err(field
            .member("readonly")
            .invalid("must be true for an image"));
    }
    if propagation == Propagation::Bidirectional {
        return Err(field
            .member("propagation")
            .invalid("PROPAGATION_BIDIRECTIONAL is not for images"));
    }
    Ok(())
}

fn options(field: &Field<'_>, raw: &[String]) -> Result<Vec<String>, Rejected> {
    text::no_more_than(field, raw.len(), OPTIONS.len())?;
    for (index, option) in raw.iter().enumerate() {
        if !OPTIONS.contains(&option.as_str()) {
            return Err(field.index(index).invalid(format_args!(
                "{} must be one of {}",
                Shown(option),
                OPTIONS.join(", ")
            )));
        }
    }
    Ok(raw.to_owned())
}

fn recursive_read_only(
    field: &Field<'_>,
    raw: &cri::Mount,
    propagation: Propagation,
    platform: Platform,
) -> Result<(), Rejected> {
    if !raw.readonly {
        return Err(field.invalid("needs readonly"));
    }
    if propagation != Propagation::Private {
        return Err(field.invalid("needs propagation PROPAGATION_PRIVATE"));
    }
    if !platform.recursive_read_only {
        return Err(field.unsupported("the node's kernel cannot do it (needs Linux 5.12)"));
    }
    Ok(())
}

fn container_path(field: &Field<'_>, raw: &str, host_path: &str) -> Result<String, Rejected> {
    let path = text::absolute_path(field, raw)?;
    if path == "/" {
        return Err(field.invalid("must not be the root"));
    }
    // What protects a container is in procfs; only procfs itself may take its place.
    let procfs_itself = path == "/proc" && host_path.trim_end_matches('/') == "/proc";
    let below_proc = path == "/proc" || path.starts_with("/proc/");
    if below_proc && !procfs_itself && !COVERABLE.contains(&path.as_str()) {
        return Err(field.invalid(format_args!("{} would cover procfs", Shown(&path))));
    }
    Ok(path)
}

pub fn devices(field: &Field<'_>, raw: Vec<cri::Device>) -> Result<Vec<Device>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_DEVICES)?;
    raw.iter()
        .enumerate()
        .map(|(index, raw)| device(&field.index(index), raw))
        .collect()
}

fn device(field: &Field<'_>, raw: &cri::Device) -> Result<Device, Rejected> {
    let path_field = field.member("container_path");
    let container_path = text::absolute_path(&path_field, &raw.container_path)?;
    if container_path == "/" {
        return Err(path_field.invalid("must not be the root"));
    }
    let host_path = text::absolute_path(&field.member("host_path"), &raw.host_path)?;
    Ok(Device {
        container_path,
        host_path: host_path.into(),
        permissions: permissions(&field.member("permissions"), &raw.permissions)?,
    })
}

pub fn cdi_devices(
    field: &Field<'_>,
    raw: &[cri::CdiDevice],
) -> Result<Vec<QualifiedName>, Rejected> {
    text::no_more_than(field, raw.len(), MAX_DEVICES)?;
    let mut names: Vec<QualifiedName> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let entry = field.index(index);
        let entry = entry.member("name");
        let name = QualifiedName::parse(&raw.name)
            .map_err(|why| entry.invalid(format_args!("{} {why}", Shown(&raw.name))))?;
        // Whoever asks twice gets it once, as with the peers.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Some of "rwm", each once, in this order. None is all of them, as the peers have it.
fn permissions(field: &Field<'_>, raw: &str) -> Result<String, Rejected> {
    const ALL: &str = "rwm";
    let once = |c: char| raw.chars().filter(|&other| other == c).count() == 1;
    if !raw.chars().all(|c| ALL.contains(c) && once(c)) {
        return Err(field.invalid(format_args!(
            "{} must be some of \"r\", \"w\" and \"m\"",
            Shown(raw)
        )));
    }
    if raw.is_empty() {
        return Ok(ALL.to_owned());
    }
    Ok(ALL.chars().filter(|&c| raw.contains(c)).collect())
}

/// A number that stands for nothing in the interface.
pub fn unknown(field: &Field<'_>, value: i32) -> Rejected {
    field.invalid(format_args!("{value} is no known value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: Field<'static> = Field::root("m");
    const CAN: Platform = Platform {
        apparmor: false,
        unified: true,
        recursive_read_only: true,
    };

    fn good() -> cri::Mount {
        cri::Mount {
            container_path: "/data/".into(),
            host_path: "/srv/data".into(),
            ..Default::default()
        }
    }

    fn image(sub_path: &str) -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "example.com/data:1".into(),
                ..Default::default()
            }),
            image_sub_path: sub_path.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_sub_path_is_a_folder_or_the_root() {
        for (raw, wanted) in [("", None), ("./", None), ("a//b/./", Some("a/b"))] {
            let checked = mounts(&FIELD, vec![image(raw)], CAN).expect(raw);
            let MountSource::Image { image, sub_path } = &checked[0].source else {
                panic!("{checked:?}");
            };
            assert_eq!(image, "example.com/data:1");
            assert_eq!(sub_path.as_deref(), wanted.map(std::path::Path::new));
        }
    }

    #[test]
    fn a_mount_comes_out_normal() {
        let raw = cri::Mount {
            readonly: true,
            recursive_read_only: true,
            ..good()
        };
        let checked = mounts(&FIELD, vec![raw], CAN).expect("a good mount");
        assert_eq!(checked[0].container_path, "/data");
        assert!(checked[0].recursive_readonly);
        let procfs = cri::Mount {
            container_path: "/proc".into(),
            host_path: "/proc".into(),
            ..good()
        };
        assert!(mounts(&FIELD, vec![procfs], CAN).is_ok());
    }

    #[test]
    fn a_sub_path_without_an_image_means_nothing() {
        let raw = cri::Mount {
            image_sub_path: "../etc".into(),
            ..good()
        };
        let with = mounts(&FIELD, vec![raw], CAN).expect("a good mount");
        let without = mounts(&FIELD, vec![good()], CAN).expect("a good mount");
        assert_eq!(format!("{with:?}"), format!("{without:?}"));
    }

    #[test]
    fn bad_mounts_are_named() {
        type Case = (fn(&mut cri::Mount), &'static str);
        let cases: &[Case] = &[
            (
                |m| m.container_path.clear(),
                "m[0].container_path: must not be empty",
            ),
            (
                |m| m.container_path = "data".into(),
                "m[0].container_path: \"data\" must be absolute",
            ),
            (
                |m| m.container_path = "../".into(),
                "m[0].container_path: \"../\" must be absolute",
            ),
            (
                |m| m.container_path = "//".into(),
                "m[0].container_path: must not be the root",
            ),
            (
                |m| m.container_path = "/a/../b".into(),
                "m[0].container_path: \"/a/../b\" must not contain \"..\"",
            ),
            (
                |m| m.container_path = "/a\0".into(),
                "m[0].container_path: must not contain NUL",
            ),
            (
                |m| m.container_path = "/x".repeat(1 << 19),
                "m[0].container_path: is 1048576 bytes long, more than the 4095 of a path",
            ),
            (
                |m| m.container_path = "/proc/self/fd/3".into(),
                "m[0].container_path: \"/proc/self/fd/3\" would cover procfs",
            ),
            (
                |m| m.container_path = "/proc".into(),
                "m[0].container_path: \"/proc\" would cover procfs",
            ),
            (|m| m.host_path.clear(), "m[0].host_path: must not be empty"),
            (
                |m| m.host_path = "srv".into(),
                "m[0].host_path: \"srv\" must be absolute",
            ),
            (
                |m| m.host_path = "/srv/../etc".into(),
                "m[0].host_path: \"/srv/../etc\" must not contain \"..\"",
            ),
            (
                |m| m.propagation = 3,
                "m[0].propagation: 3 is no known value",
            ),
            (
                |m| m.propagation = -1,
                "m[0].propagation: -1 is no known value",
            ),
            (
                |m| m.recursive_read_only = true,
                "m[0].recursive_read_only: needs readonly",
            ),
            (
                |m| (m.readonly, m.recursive_read_only, m.propagation) = (true, true, 1),
                "m[0].recursive_read_only: needs propagation PROPAGATION_PRIVATE",
            ),
            (
                |m| m.image = Some(cri::ImageSpec::default()),
                "m[0].host_path: must be empty beside an image",
            ),
            (
                |m| (m.host_path, m.image) = (String::new(), Some(cri::ImageSpec::default())),
                "m[0].image.image: must not be empty",
            ),
            (
                |m| *m = image("a/../b"),
                "m[0].image_sub_path: \"a/../b\" must not contain \"..\"",
            ),
            (
                |m| *m = image("/a"),
                "m[0].image_sub_path: \"/a\" must be relative",
            ),
            (
                |m| (*m, m.readonly) = (image("a"), false),
                "m[0].readonly: must be true for an image",
            ),
            (
                |m| (*m, m.propagation) = (image("a"), 2),
                "m[0].propagation: PROPAGATION_BIDIRECTIONAL is not for images",
            ),
            (
                |m| m.mount_options = vec!["noexec".into(), "exec".into()],
                "m[0].mount_options[1]: \"exec\" must be one of noexec, nodev, nosuid, nosymfollow, \
                 rnoexec, rnodev, rnosuid, noatime, nodiratime, relatime, strictatime",
            ),
            (
                |m| m.mount_options = vec!["noexec".into(); 12],
                "m[0].mount_options: has 12 entries, more than 11",
            ),
        ];
        for (spoil, why) in cases {
            let mut raw = good();
            spoil(&mut raw);
            let error = mounts(&FIELD, vec![raw], CAN).expect_err(why);
            assert_eq!(error.to_string(), *why);
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_refused() {
        for selinux_relabel in [false, true] {
            let raw = cri::Mount {
                selinux_relabel,
                ..good()
            };
            let checked = mounts(&FIELD, vec![raw], CAN).expect("it can be had");
            assert_eq!(checked[0].relabel, selinux_relabel);
        }
        let recursive = cri::Mount {
            readonly: true,
            recursive_read_only: true,
            ..good()
        };
        assert!(matches!(
            mounts(&FIELD, vec![recursive], Platform::default()),
            Err(Rejected::Unsupported(_))
        ));
        assert!(mounts(&FIELD, vec![good(); MAX_MOUNTS + 1], CAN).is_err());
    }

    #[test]
    fn cdi_devices_have_qualified_names() {
        let names = |names: &[&str]| {
            let device = |name: &&str| cri::CdiDevice {
                name: (*name).into(),
            };
            let raw: Vec<_> = names.iter().map(device).collect();
            cdi_devices(&FIELD, &raw)
                .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let (a, b) = ("vendor.com/class=a", "v/c.d=0:1-2");
        assert_eq!(names(&[a, b, a]), Ok(vec![a.to_owned(), b.to_owned()]));
        for (bad, why) in [
            (
                "",
                "m[1].name: \"\" is not of the form \"vendor.com/class=name\"",
            ),
            (
                "vendor.com/class",
                "m[1].name: \"vendor.com/class\" is not of the form",
            ),
            ("vendor=a", "m[1].name: \"vendor=a\" has no class"),
            ("1v/c=a", "m[1].name: \"1v/c=a\" has no vendor"),
            ("v/c/d=a", "m[1].name: \"v/c/d=a\" has no class"),
            ("v/c=", "m[1].name: \"v/c=\" has no name"),
            ("v/c=a/b", "m[1].name: \"v/c=a/b\" has no name"),
        ] {
            let error = names(&[a, bad]).expect_err(bad);
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn devices_are_checked() {
        let device = |container: &str, host: &str, permissions: &str| {
            let raw = cri::Device {
                container_path: container.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            };
            devices(&FIELD, vec![raw])
                .map(|mut devices| devices.remove(0).permissions)
                .map_err(|error| error.to_string())
        };
        assert_eq!(device("/dev/x", "/dev/y", "mrw").as_deref(), Ok("rwm"));
        assert_eq!(device("/dev/x", "/dev/y", "").as_deref(), Ok("rwm"));
        assert_eq!(device("/dev/x", "/dev/y", "r").as_deref(), Ok("r"));
        for (container, host, permissions, why) in [
            (
                "/dev/x",
                "/dev/../etc",
                "r",
                "m[0].host_path: \"/dev/../etc\" must not contain \"..\"",
            ),
            (
                "dev/x",
                "/dev/y",
                "r",
                "m[0].container_path: \"dev/x\" must be absolute",
            ),
            (
                "/",
                "/dev/y",
                "r",
                "m[0].container_path: must not be the root",
            ),
            ("/dev/x", "", "r", "m[0].host_path: must not be empty"),
            (
                "/dev/x",
                "/dev/y",
                "rx",
                "m[0].permissions: \"rx\" must be some of \"r\", \"w\" and \"m\"",
            ),
            (
                "/dev/x",
                "/dev/y",
                "rr",
                "m[0].permissions: \"rr\" must be some of \"r\", \"w\" and \"m\"",
            ),
        ] {
            assert_eq!(device(container, host, permissions), Err(why.to_owned()));
        }
    }
}
