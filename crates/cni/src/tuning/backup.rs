//! What an interface was before it was tuned, in files in the original's format.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::config::settings;
use crate::{
    error::{Code, Doing, Error},
    netlink::link::{Mac, Setting},
    request::{Attachment, Request},
};

/// The settings that were changed, as they were.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Backup {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Ours alone: whose garbage it may become.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Backup {
    pub fn mac(&self) -> Option<Mac> {
        Mac::parse(&self.mac)
    }

    pub fn settings(&self) -> Vec<(&'static str, Setting)> {
        let mtu = Some(self.mtu).filter(|mtu| *mtu != 0);
        settings(self.promisc, mtu, self.allmulti, self.queue)
    }
}

/// The file of an attachment.
pub struct Store {
    path: PathBuf,
}

fn file_name(attachment: &Attachment) -> String {
    format!("{}_{}.json", attachment.container, attachment.interface)
}

impl Store {
    pub fn of(request: &Request, folder: &Path) -> Result<Store, Error> {
        let path = folder.join(file_name(request.attachment()?));
        Ok(Store { path })
    }

    fn named(&self) -> String {
        self.path.display().to_string()
    }

    /// Notes what was before; what an earlier ADD noted stays.
    pub fn save(&self, backup: &Backup) -> Result<(), Error> {
        let bytes = serde_json::to_vec(backup).doing(Code::Internal, || self.named())?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let write = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            io::Write::write_all(&mut options.open(&self.path)?, &bytes)
        };
        match write() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            written => written.doing(Code::Io, || self.named()),
        }
    }

    /// What was before, if it was noted. What cannot be read restores nothing.
    pub fn load(&self) -> Result<Option<Backup>, Error> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(Code::Io, || self.named()),
        }
    }

    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(Code::Io, || self.named())
            }
            _ => Ok(()),
        }
    }
}

/// Removes the files of a network whose attachments are not valid.
pub fn retain(folder: &Path, network: &str, valid: &HashSet<Attachment>) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.doing(Code::Io, || folder.display().to_string())?,
    };
    let valid: HashSet<String> = valid.iter().map(file_name).collect();
    for entry in entries {
        let entry = entry.doing(Code::Io, || folder.display().to_string())?;
        if valid.contains(entry.file_name().to_string_lossy().as_ref()) {
            continue;
        }
        let store = Store { path: entry.path() };
        if store
            .load()?
            .is_some_and(|backup| backup.network == network)
        {
            store.remove()?;
        }
    }
    Ok(())
}
