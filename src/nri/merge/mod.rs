//! What several plugins want of one container, put together.
//!
//! What must always hold: each plugin is shown the container as those before it want it; no entry is said by two, unless
//! the later one takes away first what the earlier one said; a later plugin's removal takes effect on the request and on
//! what was said before.

mod owners;
mod resources;

use std::collections::{BTreeMap, BTreeSet};

use carpel_api::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Field, Hooks, KeyValue,
    LinuxContainerAdjustment, LinuxNamespace, LinuxRdt, LinuxResources, Mount, OwningPlugins,
};

use owners::Owners;

/// An entry whose key says that it is to go.
fn removal(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// What plugins want of a container that is being created.
pub(super) struct Creation {
    /// As those that were asked want it.
    pub container: Container,
    adjust: ContainerAdjustment,
    updates: Updates,
}

/// What plugins want of containers that are there.
#[derive(Default)]
pub(super) struct Updates {
    /// The one whose own update is under way, and what it has asked for.
    own: Option<(String, LinuxResources)>,
    updates: BTreeMap<String, ContainerUpdate>,
    evictions: Vec<ContainerEviction>,
    owners: Owners,
}

/// What came of asking all.
#[derive(Debug, Default, PartialEq)]
pub struct Wanted {
    pub updates: Vec<ContainerUpdate>,
    pub evictions: Vec<ContainerEviction>,
}

impl Creation {
    pub(super) fn new(container: Container) -> Self {
        Self {
            container,
            adjust: ContainerAdjustment::default(),
            updates: Updates::default(),
        }
    }

    pub(super) fn finish(self) -> (ContainerAdjustment, Wanted, OwningPlugins) {
        let owners = self.updates.owners;
        let wanted = Wanted {
            updates: self.updates.updates.into_values().collect(),
            evictions: self.updates.evictions,
        };
        (self.adjust, wanted, owners.into_message())
    }

    /// Takes a plugin's answer.
    ///
    /// # Errors
    /// Another one has said it already.
    pub(super) fn take(
        &mut self,
        plugin: &str,
        adjust: Option<ContainerAdjustment>,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), String> {
        if let Some(adjust) = adjust {
            self.adjust(plugin, adjust)?;
        }
        let own = |id: &String| *id == self.container.id;
        let mut named = updates.iter().map(|update| &update.container_id);
        let mut evicted = evictions.iter().map(|eviction| &eviction.container_id);
        if named.any(own) || evicted.any(own) {
            return Err(format!(
                "plugin {plugin:?} wants the container changed that is being created"
            ));
        }
        self.updates.take(plugin, updates, evictions)
    }

    fn adjust(&mut self, plugin: &str, wanted: ContainerAdjustment) -> Result<(), String> {
        self.annotations(plugin, wanted.annotations)?;
        self.mounts(plugin, wanted.mounts)?;
        self.env(plugin, wanted.env)?;
        self.args(plugin, wanted.args)?;
        if let Some(hooks) = wanted.hooks {
            self.hooks(plugin, hooks);
        }
        if let Some(linux) = wanted.linux {
            self.linux(plugin, linux)?;
        }
        let owners = &mut self.updates.owners;
        let id = &self.container.id;
        for limit in wanted.rlimits {
            owners.claim(id, Field::Rlimits, &limit.r#type, plugin)?;
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            owners.claim(id, Field::CdiDevices, &device.name, plugin)?;
            self.adjust.cdi_devices.push(device);
        }
        Ok(())
    }

    fn annotations(
        &mut self,
        plugin: &str,
        wanted: BTreeMap<String, String>,
    ) -> Result<(), String> {
        let mut change = Keyed {
            owners: &mut self.updates.owners,
            container: &self.container.id,
            plugin,
            field: Field::Annotations,
        };
        let shown = &mut self.container.annotations;
        change.map(wanted, &mut self.adjust.annotations, shown)
    }

    fn mounts(&mut self, plugin: &str, wanted: Vec<Mount>) -> Result<(), String> {
        let mut change = Keyed {
            owners: &mut self.updates.owners,
            container: &self.container.id,
            plugin,
            field: Field::Mounts,
        };
        let shown = &mut self.container.mounts;
        change.list(wanted, &mut self.adjust.mounts, shown, |mount| {
            &mount.destination
        })
    }

    fn env(&mut self, plugin: &str, wanted: Vec<KeyValue>) -> Result<(), String> {
        let mut change = Keyed {
            owners: &mut self.updates.owners,
            container: &self.container.id,
            plugin,
            field: Field::Env,
        };
        let split = |entry: &String| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            KeyValue {
                key: key.to_owned(),
                value: value.to_owned(),
            }
        };
        let mut shown = self.container.env.iter().map(split).collect();
        change.list(wanted, &mut self.adjust.env, &mut shown, |entry| &entry.key)?;
        let joined = |entry: KeyValue| format!("{}={}", entry.key, entry.value);
        self.container.env = shown.into_iter().map(joined).collect();
        Ok(())
    }

    fn args(&mut self, plugin: &str, mut wanted: Vec<String>) -> Result<(), String> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (owners, id) = (&mut self.updates.owners, &self.container.id);
        if wanted[0].is_empty() {
            owners.clear(id, Field::Args, "", plugin);
            wanted.remove(0);
        }
        owners.claim(id, Field::Args, "", plugin)?;
        self.container.args.clone_from(&wanted);
        self.adjust.args = wanted;
        Ok(())
    }

    fn hooks(&mut self, plugin: &str, wanted: Hooks) {
        if wanted == Hooks::default() {
            return;
        }
        let id = &self.container.id;
        self.updates.owners.join(id, Field::OciHooks, plugin);
        let shown = self.container.hooks.get_or_insert_default();
        for hooks in [shown, self.adjust.hooks.get_or_insert_default()] {
            let more = wanted.clone();
            hooks.prestart.extend(more.prestart);
            hooks.create_runtime.extend(more.create_runtime);
            hooks.create_container.extend(more.create_container);
            hooks.start_container.extend(more.start_container);
            hooks.poststart.extend(more.poststart);
            hooks.poststop.extend(more.poststop);
        }
    }

    fn linux(&mut self, plugin: &str, wanted: LinuxContainerAdjustment) -> Result<(), String> {
        let id = self.container.id.clone();
        let owners = &mut self.updates.owners;
        let shown = self.container.linux.get_or_insert_default();
        let adjust = self.adjust.linux.get_or_insert_default();
        let mut of = Keyed {
            owners,
            container: &id,
            plugin,
            field: Field::Devices,
        };
        of.list(
            wanted.devices,
            &mut adjust.devices,
            &mut shown.devices,
            |device| &device.path,
        )?;
        of.field = Field::Sysctl;
        of.map(wanted.sysctl, &mut adjust.sysctl, &mut shown.sysctl)?;
        of.field = Field::LinuxNetDevices;
        let devices = (&mut adjust.net_devices, &mut shown.net_devices);
        of.map(wanted.net_devices, devices.0, devices.1)?;
        of.field = Field::Namespace;
        namespaces(&mut of, wanted.namespaces, &mut adjust.namespaces)?;
        let owners = of.owners;
        if let Some(wanted) = wanted.resources {
            let mut both = [
                shown.resources.get_or_insert_default(),
                adjust.resources.get_or_insert_default(),
            ];
            resources::lay_over(owners, &id, plugin, wanted, &mut both)?;
        }
        let mut claim = |field| owners.claim(&id, field, "", plugin);
        if !wanted.cgroups_path.is_empty() {
            claim(Field::CgroupsPath)?;
            shown.cgroups_path.clone_from(&wanted.cgroups_path);
            adjust.cgroups_path = wanted.cgroups_path;
        }
        if wanted.oom_score_adj.is_some() {
            claim(Field::OomScoreAdj)?;
            shown.oom_score_adj.clone_from(&wanted.oom_score_adj);
            adjust.oom_score_adj = wanted.oom_score_adj;
        }
        if wanted.io_priority.is_some() {
            claim(Field::IoPriority)?;
            shown.io_priority.clone_from(&wanted.io_priority);
            adjust.io_priority = wanted.io_priority;
        }
        if wanted.seccomp_policy.is_some() {
            claim(Field::SeccompPolicy)?;
            shown.seccomp_policy.clone_from(&wanted.seccomp_policy);
            adjust.seccomp_policy = wanted.seccomp_policy;
        }
        if wanted.scheduler.is_some() {
            claim(Field::LinuxSched)?;
            shown.scheduler.clone_from(&wanted.scheduler);
            adjust.scheduler = wanted.scheduler;
        }
        if wanted.memory_policy.is_some() {
            claim(Field::MemoryPolicy)?;
            adjust.memory_policy = wanted.memory_policy;
        }
        if let Some(wanted) = wanted.rdt {
            rdt(owners, &id, plugin, wanted, &mut adjust.rdt)?;
        }
        Ok(())
    }
}

/// A change of entries that have keys.
struct Keyed<'a> {
    owners: &'a mut Owners,
    container: &'a str,
    plugin: &'a str,
    field: Field,
}

impl Keyed<'_> {
    fn claim(&mut self, key: &str) -> Result<(), String> {
        self.owners
            .claim(self.container, self.field, key, self.plugin)
    }

    fn clear(&mut self, key: &str) {
        self.owners
            .clear(self.container, self.field, key, self.plugin);
    }

    fn map<V: Clone + Default>(
        &mut self,
        wanted: BTreeMap<String, V>,
        adjust: &mut BTreeMap<String, V>,
        shown: &mut BTreeMap<String, V>,
    ) -> Result<(), String> {
        let gone: BTreeSet<_> = wanted.keys().filter_map(|key| removal(key)).collect();
        for key in &gone {
            if adjust.remove(*key).is_some() || wanted.contains_key(*key) {
                self.clear(key);
            }
            shown.remove(*key);
            adjust.insert(format!("-{key}"), V::default());
        }
        for (key, value) in &wanted {
            if removal(key).is_none() {
                self.claim(key)?;
                shown.insert(key.clone(), value.clone());
                adjust.insert(key.clone(), value.clone());
            }
        }
        Ok(())
    }

    fn list<V: Clone>(
        &mut self,
        wanted: Vec<V>,
        adjust: &mut Vec<V>,
        shown: &mut Vec<V>,
        key: impl Fn(&V) -> &String,
    ) -> Result<(), String> {
        let gone: BTreeSet<String> = wanted
            .iter()
            .filter_map(|value| removal(key(value)).map(str::to_owned))
            .collect();
        for name in &gone {
            let said = adjust.iter().any(|value| key(value) == name);
            let anew = wanted.iter().any(|value| key(value) == name);
            if said || anew {
                self.clear(name);
            }
        }
        adjust.retain(|value| !gone.contains(key(value)));
        let named = |value: &V| wanted.iter().any(|other| key(other) == key(value));
        shown.retain(|value| !gone.contains(key(value)) && !named(value));
        for value in &wanted {
            match removal(key(value)) {
                // What is said anew takes the place of what was there anyway.
                Some(gone) if wanted.iter().any(|other| key(other) == gone) => {}
                Some(_) => adjust.push(value.clone()),
                None => {
                    self.claim(key(value))?;
                    shown.push(value.clone());
                    adjust.push(value.clone());
                }
            }
        }
        Ok(())
    }
}

fn namespaces(
    change: &mut Keyed<'_>,
    wanted: Vec<LinuxNamespace>,
    adjust: &mut Vec<LinuxNamespace>,
) -> Result<(), String> {
    for namespace in wanted {
        let kind = removal(&namespace.r#type).unwrap_or(&namespace.r#type);
        change.claim(kind)?;
        adjust.push(namespace);
    }
    Ok(())
}

fn rdt(
    owners: &mut Owners,
    id: &str,
    plugin: &str,
    wanted: LinuxRdt,
    adjust: &mut Option<LinuxRdt>,
) -> Result<(), String> {
    let fields = [
        Field::RdtClosId,
        Field::RdtSchemata,
        Field::RdtEnableMonitoring,
    ];
    let adjust = adjust.get_or_insert_default();
    if wanted.remove {
        for field in fields {
            owners.clear(id, field, "", plugin);
        }
        *adjust = LinuxRdt {
            remove: true,
            ..LinuxRdt::default()
        };
    }
    let said = [
        wanted.clos_id.is_some(),
        wanted.schemata.is_some(),
        wanted.enable_monitoring.is_some(),
    ];
    for (field, said) in fields.into_iter().zip(said) {
        if said {
            owners.claim(id, field, "", plugin)?;
            adjust.remove = false;
        }
    }
    adjust.clos_id = wanted.clos_id.or(adjust.clos_id.take());
    adjust.schemata = wanted.schemata.or(adjust.schemata.take());
    adjust.enable_monitoring = wanted.enable_monitoring.or(adjust.enable_monitoring.take());
    Ok(())
}

impl Updates {
    /// Of an update that a client has asked for.
    pub(super) fn of(container: &str, asked: LinuxResources) -> Self {
        Self {
            own: Some((container.to_owned(), asked)),
            ..Self::default()
        }
    }

    /// What is asked for of the container itself, as the plugins so far want it.
    pub(super) fn asked(&self) -> Option<&LinuxResources> {
        self.own.as_ref().map(|(_, asked)| asked)
    }

    /// Takes a plugin's answer.
    ///
    /// # Errors
    /// Another one has said it already.
    pub(super) fn take(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), String> {
        for update in updates {
            let id = update.container_id;
            let wanted = update.linux.and_then(|linux| linux.resources);
            let wanted = wanted.unwrap_or_default();
            let laid = match &mut self.own {
                Some((own, asked)) if *own == id => {
                    resources::lay_over(&mut self.owners, &id, plugin, wanted, &mut [asked])
                }
                _ => {
                    let target =
                        self.updates
                            .entry(id.clone())
                            .or_insert_with(|| ContainerUpdate {
                                container_id: id.clone(),
                                linux: None,
                                ignore_failure: true,
                            });
                    target.ignore_failure &= update.ignore_failure;
                    let linux = target.linux.get_or_insert_default();
                    let target = linux.resources.get_or_insert_default();
                    resources::lay_over(&mut self.owners, &id, plugin, wanted, &mut [target])
                }
            };
            if !update.ignore_failure {
                laid?;
            }
        }
        self.evictions.extend(evictions);
        Ok(())
    }

    /// What is to be done, and what the container itself is to have, if it is its update.
    pub(super) fn finish(self) -> (Option<LinuxResources>, Wanted) {
        let wanted = Wanted {
            updates: self.updates.into_values().collect(),
            evictions: self.evictions,
        };
        (self.own.map(|(_, asked)| asked), wanted)
    }
}
