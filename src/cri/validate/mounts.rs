//! What of the node a container gets to see: mounts and devices.

use carpel_api::cri;

use super::{Field, Platform, Rejected, Shown, text};
use crate::spec::config::{Device, Mount, Propagation};

const MAX_MOUNTS: usize = 4096;
const MAX_DEVICES: usize = 4096;

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
    unsupported_parts(field, raw, platform)?;
    let host_path = text::absolute_path(&field.member("host_path"), &raw.host_path)?;
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
    Ok(Mount {
        container_path: container_path(
            &field.member("container_path"),
            &raw.container_path,
            &host_path,
        )?,
        host_path: host_path.into(),
        readonly: raw.readonly,
        recursive_readonly: raw.recursive_read_only,
        propagation,
    })
}

fn unsupported_parts(
    field: &Field<'_>,
    raw: &cri::Mount,
    platform: Platform,
) -> Result<(), Rejected> {
    if raw.image.is_some() {
        return Err(field
            .member("image")
            .unsupported("image volumes are not supported yet"));
    }
    if !raw.image_sub_path.is_empty() {
        return Err(field.member("image_sub_path").invalid("needs an image"));
    }
    if !raw.mount_options.is_empty() {
        return Err(field
            .member("mount_options")
            .unsupported("mount options are not supported yet"));
    }
    // Without SELinux there are no labels, so nothing is left out.
    if raw.selinux_relabel && platform.selinux {
        return Err(field
            .member("selinux_relabel")
            .unsupported("SELinux is on, and carpel sets no labels yet"));
    }
    Ok(())
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
    let procfs_itself = path == "/proc" && host_path == "/proc";
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
        selinux: false,
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
                "m[0].image: image volumes are not supported yet",
            ),
            (
                |m| m.image_sub_path = "a".into(),
                "m[0].image_sub_path: needs an image",
            ),
            (
                |m| m.mount_options = vec!["noexec".into()],
                "m[0].mount_options: mount options are not supported yet",
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
        let relabel = cri::Mount {
            selinux_relabel: true,
            ..good()
        };
        assert!(mounts(&FIELD, vec![relabel.clone()], CAN).is_ok());
        let selinux = Platform {
            selinux: true,
            ..CAN
        };
        assert!(matches!(
            mounts(&FIELD, vec![relabel], selinux),
            Err(Rejected::Unsupported(_))
        ));
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
