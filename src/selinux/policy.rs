//! What the policy's files say of containers: the labels that those have for whom nobody chose others.

use std::io;
use std::path::{Path, PathBuf};

use super::label::Label;

/// Where a distribution may say it for all policies.
const FOR_ALL: &str = "usr/share/containers/selinux/contexts";
const CONFIG: &str = "etc/selinux/config";
const POLICIES: &str = "etc/selinux";
const CONTEXTS: &str = "contexts/lxc_contexts";

/// The labels of a container that is like all others, without categories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    pub process: Label,
    pub file: Label,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", .path.display())]
    Content { path: PathBuf, what: String },
}

impl Contexts {
    /// Reads those of the policy that the machine is configured with.
    ///
    /// # Errors
    /// [`Error`] names the file.
    pub fn read() -> Result<Self, Error> {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })
        };
        let for_all = root.join(FOR_ALL);
        if let Ok(text) = read(&for_all) {
            return Self::parse(&for_all, &text);
        }
        let config = root.join(CONFIG);
        let text = read(&config)?;
        let name = value(&text, "SELINUXTYPE").ok_or_else(|| Error::Content {
            path: config,
            what: "no SELINUXTYPE".to_owned(),
        })?;
        let contexts = root.join(POLICIES).join(name).join(CONTEXTS);
        Self::parse(&contexts, &read(&contexts)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |what: String| Error::Content {
            path: path.to_owned(),
            what,
        };
        let label = |key: &str| {
            let text = value(text, key).ok_or_else(|| wrong(format!("no {key}")))?;
            text.parse::<Label>()
                .map_err(|error| wrong(format!("{key}: {error}")))
        };
        Ok(Self {
            process: label("process")?,
            file: label("file")?,
        })
    }
}

/// The value of a line `key = "value"`; the quotes may be missing, and the last line counts.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().trim_matches('"'))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As container-selinux has it.
    const TEXT: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        ro_file=\"system_u:object_r:container_ro_file_t:s0\"\n\
        sandbox_kvm_process = \"system_u:system_r:svirt_qemu_net_t:s0\"\n";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_policy_in_use_has_the_contexts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let read = || Contexts::read_below(root).map_err(|error| error.to_string());
        assert!(read().unwrap_err().contains("etc/selinux/config: "));
        write(
            root,
            CONFIG,
            "# SELINUXTYPE=mls\nSELINUX=enforcing\n SELINUXTYPE = targeted \n",
        );
        assert!(read().unwrap_err().contains("targeted/contexts/lxc_"));
        write(root, "etc/selinux/targeted/contexts/lxc_contexts", TEXT);
        let contexts = read().unwrap();
        assert_eq!(
            contexts.process.to_string(),
            "system_u:system_r:container_t:s0"
        );
        assert_eq!(
            contexts.file.to_string(),
            "system_u:object_r:container_file_t:s0"
        );
        // What is there for all policies goes before.
        write(root, FOR_ALL, "process=u:r:p\nfile=u:object_r:f\n");
        assert_eq!(read().unwrap().process.to_string(), "u:r:p");
    }

    #[test]
    fn half_a_file_is_none() {
        for (text, what) in [
            ("process = u:r:t:s0", "no file"),
            ("file = u:r:t:s0", "no process"),
            (
                "process = u:r\nfile = u:r:t",
                "process: \"u:r\" is no label",
            ),
            ("process = \nfile = u:r:t", "process: \"\" is no label"),
        ] {
            let error = Contexts::parse(Path::new("/x"), text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("/x: {what}")));
        }
    }
}
