//! Which plugin has said what of a container: no two may say the same.

use std::collections::BTreeMap;

use carpel_api::nri::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};

/// By container.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<String, Claims>);

/// By the field, and the key within it; a field that has no keys has one that is empty.
type Claims = BTreeMap<(i32, String), Claim>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Set(String),
    /// A plugin has taken away what was said before it, and may say it anew.
    Cleared(String),
}

impl Owners {
    /// Takes an entry for a plugin.
    ///
    /// # Errors
    /// Another one has it.
    pub(super) fn claim(
        &mut self,
        container: &str,
        field: Field,
        key: &str,
        plugin: &str,
    ) -> Result<(), String> {
        let claims = self.0.entry(container.to_owned()).or_default();
        let entry = (field as i32, key.to_owned());
        match claims.get(&entry) {
            Some(Claim::Set(other)) => return Err(conflict(field, key, plugin, other)),
            Some(Claim::Cleared(other)) if other != plugin => {
                return Err(conflict(field, key, plugin, other));
            }
            _ => {}
        }
        claims.insert(entry, Claim::Set(plugin.to_owned()));
        Ok(())
    }

    /// Adds a plugin to those that have said something, where all may.
    pub(super) fn join(&mut self, container: &str, field: Field, plugin: &str) {
        let claims = self.0.entry(container.to_owned()).or_default();
        let entry = (field as i32, String::new());
        let all = match claims.get(&entry) {
            Some(Claim::Set(others)) => format!("{others},{plugin}"),
            _ => plugin.to_owned(),
        };
        claims.insert(entry, Claim::Set(all));
    }

    /// Takes away what was said before.
    pub(super) fn clear(&mut self, container: &str, field: Field, key: &str, plugin: &str) {
        let claims = self.0.entry(container.to_owned()).or_default();
        let cleared = Claim::Cleared(plugin.to_owned());
        claims.insert((field as i32, key.to_owned()), cleared);
    }

    pub(super) fn into_message(self) -> OwningPlugins {
        let of = |claims: Claims| {
            let mut owners = FieldOwners::default();
            for ((field, key), claim) in claims {
                // As the interface writes it.
                let plugin = match claim {
                    Claim::Set(plugin) => plugin,
                    Claim::Cleared(plugin) => format!("-{plugin}"),
                };
                if key.is_empty() {
                    owners.simple.insert(field, plugin);
                } else {
                    let field: &mut CompoundFieldOwners = owners.compound.entry(field).or_default();
                    field.owners.insert(key, plugin);
                }
            }
            owners
        };
        let owners = self.0.into_iter().map(|(id, claims)| (id, of(claims)));
        OwningPlugins {
            owners: owners.collect(),
        }
    }
}

fn conflict(field: Field, key: &str, plugin: &str, other: &str) -> String {
    let what = field.as_str_name();
    let key = if key.is_empty() {
        String::new()
    } else {
        format!(" {key:?}")
    };
    format!("plugins {other:?} and {plugin:?} both set {what}{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_plugins() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Env, "A", "00-a").unwrap();
        owners.claim("c", Field::Env, "B", "10-b").unwrap();
        owners.claim("d", Field::Env, "A", "10-b").unwrap();
        let error = owners.claim("c", Field::Env, "A", "10-b").unwrap_err();
        assert_eq!(error, "plugins \"00-a\" and \"10-b\" both set Env \"A\"");
        // Who takes away may say it anew, and nobody else.
        owners.clear("c", Field::Env, "A", "10-b");
        owners.claim("c", Field::Env, "A", "20-c").unwrap_err();
        owners.claim("c", Field::Env, "A", "10-b").unwrap();
        owners.claim("c", Field::OomScoreAdj, "", "00-a").unwrap();
        let error = owners.claim("c", Field::OomScoreAdj, "", "00-a");
        assert!(
            error.is_err(),
            "twice is once too often for one plugin, too"
        );
        owners.join("c", Field::OciHooks, "00-a");
        owners.join("c", Field::OciHooks, "10-b");
        let message = owners.into_message();
        let of = &message.owners["c"];
        assert_eq!(of.compound[&(Field::Env as i32)].owners["A"], "10-b");
        assert_eq!(of.simple[&(Field::OciHooks as i32)], "00-a,10-b");
    }
}
