//! Objects by id.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, PoisonError, RwLock};

use std::str::FromStr;

use super::Lookup;

/// A table that is read often and changed rarely; it is never locked across an await.
pub(crate) struct Table<K, T>(RwLock<BTreeMap<K, Arc<T>>>);

impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Ord + Copy + Display + FromStr, T> Table<K, T> {
    pub fn get(&self, id: &K) -> Option<Arc<T>> {
        self.read(|table| table.get(id).cloned())
    }

    pub fn all(&self, wanted: impl Fn(&Arc<T>) -> bool) -> Vec<Arc<T>> {
        self.read(|table| {
            table
                .values()
                .filter(|object| wanted(object))
                .cloned()
                .collect()
        })
    }

    pub fn insert(&self, id: K, object: &Arc<T>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(object));
    }

    pub fn remove(&self, id: &K) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// The id that `prefix` is, or begins.
    pub fn find(&self, prefix: &str) -> Result<K, Lookup> {
        if prefix.is_empty() {
            return Err(Lookup::NotFound);
        }
        if let Ok(id) = prefix.parse::<K>() {
            let found = self.read(|table| table.contains_key(&id));
            return found.then_some(id).ok_or(Lookup::NotFound);
        }
        self.read(|table| {
            let mut found = table.keys().filter(|id| id.to_string().starts_with(prefix));
            match (found.next(), found.next()) {
                (None, _) => Err(Lookup::NotFound),
                (Some(id), None) => Ok(*id),
                (Some(_), Some(_)) => Err(Lookup::Ambiguous),
            }
        })
    }

    fn read<R>(&self, look: impl FnOnce(&BTreeMap<K, Arc<T>>) -> R) -> R {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}
