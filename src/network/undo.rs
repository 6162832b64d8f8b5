//! What was done for a sandbox is taken back.

use super::cache::Entry;
use super::{Error, Inner, cache_error};

impl Inner {
    /// DEL, and the entry's end.
    pub(super) async fn delete(&self, entry: &Entry) -> Result<(), Error> {
        let sandbox = entry.sandbox;
        let network = entry
            .network()
            .map_err(|invalid| Error::Cached { sandbox, invalid })?;
        self.chain(&network).del(entry, self.timeout).await?;
        self.cache
            .remove(&sandbox)
            .map_err(|error| cache_error(self.cache.dir(), error))
    }

    /// DEL of what an ADD that ended early began. A plugin that refuses its configuration in the same words
    /// under both verbs has done nothing, and will never say anything else: it is passed over, or what the
    /// plugins before it gave would never be given back.
    pub(super) async fn undo(&self, entry: &mut Entry, failed: &Error) -> Result<(), Error> {
        let Err(error) = self.delete(entry).await else {
            return Ok(());
        };
        let same = match (failed, &error) {
            (
                Error::Plugin {
                    plugin,
                    failure: added,
                    ..
                },
                Error::Plugin {
                    plugin: other,
                    failure: deleted,
                    ..
                },
            ) => plugin == other && added.is_same_refusal(deleted),
            _ => false,
        };
        match entry.started.and_then(|started| started.checked_sub(1)) {
            Some(before) if same => entry.started = Some(before),
            _ => return Err(error),
        }
        self.delete(entry).await
    }
}
