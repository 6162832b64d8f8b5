//! SELinux: what pods and containers run as, and what their files are labelled with.
//!
//! A label says who a process is and whose a file is; the kernel's policy says which may do what. A pod has a level
//! (two categories) that no other has, and its containers share it; types and users are the policy's for containers,
//! unless a request names others. Processes get their label as they execute their program, files theirs from the
//! mount that they are seen through (`context=`), or, where files are the host's, by being relabelled.
//!
//! Where SELinux is off there is no [`Selinux`], and labels mean nothing.

mod kernel;
mod label;
mod level;
mod policy;
mod relabel;

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::spec::config::SelinuxOptions;

pub use kernel::{Kernel, domain_of};
pub use label::Label;
pub use level::Pair;
pub use policy::Contexts;
pub use relabel::{Error as RelabelError, Forbidden, relabel, set_label};

/// A type that the policy lets do everything. What such a process mounts need not be labelled for it.
pub const SUPER_PRIVILEGED: &str = "spc_t";

/// Why there are no labels.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `field` is empty if it is no single option.
    #[error("selinux_options{field}: the node's SELinux policy does not know {value:?}")]
    Unknown { field: &'static str, value: String },
    #[error("selinux_options: the node's SELinux policy has no labels for containers: {0}")]
    NoContexts(String),
    #[error(
        "the node's SELinux policy does not know its own labels for containers, {process} and {mount}"
    )]
    Contexts { process: Label, mount: Label },
    #[error("all SELinux levels are taken by other pods")]
    Full,
    #[error("ask the kernel for an SELinux label: {0}")]
    Kernel(#[from] io::Error),
}

/// The labels of a pod, or of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    pub process: Label,
    pub mount: Label,
}

/// SELinux, as one daemon uses it.
#[derive(Debug)]
pub struct Selinux {
    kernel: Kernel,
    /// If the policy knows nothing of containers: why.
    contexts: Result<Contexts, String>,
    /// Held while a level is chosen, until it is seen to be taken.
    choosing: Mutex<()>,
}

impl Selinux {
    /// `None` where SELinux is off.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let kernel = Kernel::detect()?;
        let contexts = Contexts::read();
        match &contexts {
            Ok(contexts) => {
                let domain = domain_of("self").unwrap_or_default();
                let (may, to) = (
                    kernel.may_run_as(&domain, &contexts.process),
                    &contexts.process,
                );
                if kernel.is_enforcing() && may.is_ok_and(|may| !may) {
                    tracing::warn!(domain, %to, "the SELinux policy does not let this daemon start containers (carpel doctor says what to do)");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no SELinux labels for containers: they run in the daemon's domain");
            }
        }
        Some(Self {
            kernel,
            contexts: contexts.map_err(|error| error.to_string()),
            choosing: Mutex::new(()),
        })
    }

    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// To be held from before it is looked which levels are taken until the one that is chosen counts as taken.
    pub fn choosing(&self) -> MutexGuard<'_, ()> {
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of a new pod, with a level that is not `taken` unless it names its own. `None` if the policy knows
    /// nothing of containers and nothing was asked for.
    ///
    /// # Errors
    /// [`Error::Unknown`] for what the kernel does not know, and all the others.
    pub fn of_pod(
        &self,
        options: &SelinuxOptions,
        taken: &HashSet<Pair>,
    ) -> Result<Option<Labels>, Error> {
        let Some(contexts) = self.contexts(options)? else {
            return Ok(None);
        };
        let level = match (&options.level, contexts.process.sensitivity()) {
            (None, Some(sensitivity)) => Some(unused(sensitivity, taken)?),
            _ => None,
        };
        let base = |label: &Label| match &level {
            Some(level) => label.with_level(Some(level)),
            None => label.clone(),
        };
        let base = Labels {
            process: base(&contexts.process),
            mount: base(&contexts.file),
        };
        self.checked(&base, options).map(Some)
    }

    /// The labels of a container of a pod.
    ///
    /// # Errors
    /// As [`Selinux::of_pod`].
    pub fn of_container(
        &self,
        pod: Option<&Labels>,
        options: &SelinuxOptions,
    ) -> Result<Option<Labels>, Error> {
        match pod {
            Some(pod) => self.checked(pod, options).map(Some),
            None => self.contexts(options).map(|_| None),
        }
    }

    fn contexts(&self, options: &SelinuxOptions) -> Result<Option<&Contexts>, Error> {
        match &self.contexts {
            Ok(contexts) => Ok(Some(contexts)),
            Err(why) if *options != SelinuxOptions::default() => {
                Err(Error::NoContexts(why.clone()))
            }
            Err(_) => Ok(None),
        }
    }

    fn checked(&self, base: &Labels, options: &SelinuxOptions) -> Result<Labels, Error> {
        let knows = |label: &Label| self.kernel.knows(label);
        overlay(base, options, &knows)
    }
}

/// A level with two categories that nobody has.
fn unused(sensitivity: &str, taken: &HashSet<Pair>) -> Result<String, Error> {
    let pair = Pair::free(taken).ok_or(Error::Full)?;
    Ok(format!("{sensitivity}:{pair}"))
}

/// Lays what was asked for over the labels of others, and has the kernel say whether there are such.
fn overlay(
    base: &Labels,
    options: &SelinuxOptions,
    knows: &dyn Fn(&Label) -> io::Result<bool>,
) -> Result<Labels, Error> {
    let labels = Labels {
        process: base.process.of_process(options),
        mount: base.mount.of_files(options),
    };
    if knows(&labels.process)? && knows(&labels.mount)? {
        return Ok(labels);
    }
    let Labels { process, mount } = labels;
    if *options == SelinuxOptions::default() {
        return Err(Error::Contexts { process, mount });
    }
    // The first option that cannot be had even without the others.
    for (field, value, alone) in one_by_one(options) {
        if !knows(&base.process.of_process(&alone))? || !knows(&base.mount.of_files(&alone))? {
            return Err(Error::Unknown { field, value });
        }
    }
    let value = match knows(&process)? {
        false => process.to_string(),
        true => mount.to_string(),
    };
    Err(Error::Unknown { field: "", value })
}

/// Each option that is set, by field and value, and alone.
fn one_by_one(options: &SelinuxOptions) -> Vec<(&'static str, String, SelinuxOptions)> {
    let mut each = Vec::new();
    let mut add = |field, value: &Option<String>, set: fn(&mut SelinuxOptions, String)| {
        if let Some(value) = value {
            let mut alone = SelinuxOptions::default();
            set(&mut alone, value.clone());
            each.push((field, value.clone(), alone));
        }
    };
    add(".user", &options.user, |alone, user| {
        alone.user = Some(user)
    });
    add(".role", &options.role, |alone, role| {
        alone.role = Some(role)
    });
    add(".type", &options.kind, |alone, kind| {
        alone.kind = Some(kind)
    });
    add(".level", &options.level, |alone, level| {
        alone.level = Some(level)
    });
    each
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        Labels {
            process: "system_u:system_r:container_t:s0:c1,c2".parse().unwrap(),
            mount: "system_u:object_r:container_file_t:s0:c1,c2"
                .parse()
                .unwrap(),
        }
    }

    /// A policy with a few words, in which staff_u has no system_r.
    fn knows(label: &Label) -> io::Result<bool> {
        let text = label.to_string();
        let parts: Vec<_> = text.splitn(4, ':').collect();
        let [user, role, kind, level] = parts[..] else {
            return Ok(false);
        };
        Ok(["system_u", "staff_u"].contains(&user)
            && ["system_r", "staff_r", "object_r"].contains(&role)
            && ["container_t", "spc_t", "container_file_t"].contains(&kind)
            && ["s0", "s0:c1,c2", "s0:c3,c4"].contains(&level)
            && (user, role) != ("staff_u", "system_r"))
    }

    fn options(user: &str, role: &str, kind: &str, level: &str) -> SelinuxOptions {
        let option = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        SelinuxOptions {
            user: option(user),
            role: option(role),
            kind: option(kind),
            level: option(level),
        }
    }

    #[test]
    fn what_the_kernel_knows_is_laid_over_the_pods() {
        let both = |options| {
            let labels = overlay(&labels(), &options, &knows).unwrap();
            (labels.process.to_string(), labels.mount.to_string())
        };
        assert_eq!(
            both(options("", "", "", "")),
            (labels().process.to_string(), labels().mount.to_string())
        );
        assert_eq!(
            both(options("staff_u", "staff_r", "spc_t", "s0:c3,c4")),
            (
                "staff_u:staff_r:spc_t:s0:c3,c4".to_owned(),
                "staff_u:object_r:container_file_t:s0:c3,c4".to_owned()
            )
        );
    }

    #[test]
    fn what_the_kernel_does_not_know_is_named() {
        for (options, field) in [
            (options("x", "", "", ""), ".user"),
            (options("", "x", "", ""), ".role"),
            (options("", "", "x", "s0"), ".type"),
            (options("", "", "spc_t", "x"), ".level"),
        ] {
            let error = overlay(&labels(), &options, &knows).unwrap_err();
            let text =
                format!("selinux_options{field}: the node's SELinux policy does not know \"x\"");
            assert_eq!(error.to_string(), text);
        }
        // With the pod's role it cannot be had.
        let error = overlay(&labels(), &options("staff_u", "", "", ""), &knows).unwrap_err();
        assert!(
            matches!(error, Error::Unknown { field: ".user", .. }),
            "{error}"
        );
        // A policy whose types have their roles: each is there, and not together.
        let both = "system_u:staff_r:spc_t:s0:c1,c2";
        let picky = |label: &Label| Ok(label.to_string() != both);
        let error = overlay(&labels(), &options("", "staff_r", "spc_t", ""), &picky).unwrap_err();
        assert!(
            matches!(&error, Error::Unknown { field: "", value } if value == both),
            "{error}"
        );
    }

    #[test]
    fn nobody_is_blamed_for_the_policys_own_labels() {
        let nothing = |_: &Label| Ok(false);
        let error = overlay(&labels(), &SelinuxOptions::default(), &nothing).unwrap_err();
        assert!(matches!(error, Error::Contexts { .. }), "{error}");
        let broken = |_: &Label| Err(io::ErrorKind::PermissionDenied.into());
        let error = overlay(&labels(), &SelinuxOptions::default(), &broken).unwrap_err();
        assert!(matches!(error, Error::Kernel(_)), "{error}");
    }

    #[test]
    fn a_level_is_nobody_elses() {
        let taken = HashSet::from([Pair::of("s0:c1,c2").unwrap()]);
        for _ in 0..100 {
            let level = unused("s0", &taken).unwrap();
            let pair = Pair::of(&level).unwrap();
            assert!(level.starts_with("s0:c") && !taken.contains(&pair));
        }
    }
}
