//! What a fuzzer feeds: the documents and names of images, and archives of them. Each runs on any bytes and panics only
//! if a reader breaks its promises.

use std::path::Path;

use super::archive::Members;
use super::config::{Checked, ImageUser, MOST_LAYERS};
use super::document::{Content, Count, Descriptor, INDEX, MANIFEST};
use super::manifest;
use super::platform::Platforms;
use super::reference::Reference;

/// A document: an index, a manifest or a configuration.
///
/// # Panics
/// If it can be two things, or breaks a bound.
pub fn document(bytes: &[u8]) {
    let read = |kind: Option<&str>| Content::parse(bytes, kind, &mut Count::default()).ok();
    let index = INDEX.map(|kind| read(Some(kind)));
    let manifest = MANIFEST.map(|kind| read(Some(kind)));
    for content in index.iter().flatten() {
        assert!(matches!(content, Content::Index(_)));
        assert!(!manifest.iter().any(Option::is_some), "two things at once");
    }
    for content in manifest.iter().flatten() {
        assert!(matches!(content, Content::Manifest { .. }));
    }
    match read(None) {
        Some(Content::Index(entries)) => entries.iter().for_each(look),
        Some(Content::Manifest { config, layers, .. }) => {
            look(&config);
            layers.iter().for_each(look);
        }
        None => {}
    }
    if let Ok(checked) = Checked::parse(bytes) {
        assert!(checked.diff_ids.len() <= MOST_LAYERS);
        if let ImageUser::Id(id) = checked.user {
            assert!(i32::try_from(id).is_ok());
        }
        let _ = (checked.platform.rank(), checked.platform.to_string());
    }
}

fn look(descriptor: &Descriptor) {
    let kinds = [
        descriptor.is_index(),
        descriptor.is_manifest(),
        descriptor.is_config(),
        descriptor.require_layer().is_ok(),
    ];
    assert!(kinds.iter().filter(|is| **is).count() <= 1);
    let _ = descriptor.is_statement();
}

/// A name.
///
/// # Panics
/// If its printed form is not its own, or leads out of a folder or a URL's path.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let printed = reference.to_string();
    assert_eq!(printed.parse::<Reference>().as_ref(), Ok(&reference));
    for name in [reference.tagged(), reference.digested()]
        .into_iter()
        .flatten()
    {
        assert!(name.parse::<Reference>().is_ok(), "{name}");
    }
    let repository = reference.repository();
    assert!(repository.path().split('/').all(is_plain), "{printed}");
    assert!(
        repository
            .domain()
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b)),
        "{printed}"
    );
    assert!(reference.tag().is_none_or(is_plain), "{printed}");
    assert!(reference.tag().is_some() || reference.digest().is_some());
}

fn is_plain(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
}

/// An archive of images, up to where its layers would be unpacked. `temporary` is a folder for its spool.
///
/// # Panics
/// If an image was found that lacks something.
pub fn archive(bytes: &[u8], temporary: &Path) {
    let Ok(members) = Members::read(bytes, temporary, &|_| {}) else {
        return;
    };
    for found in manifest::find(&members, &Platforms::This).unwrap_or_default() {
        assert_eq!(found.layers.len(), found.checked.diff_ids.len());
        assert!(found.checked.platform.rank().is_some());
        for layer in found.layers {
            assert!(layer.section.len() <= bytes.len() as u64 * 2000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus;
    use crate::store::unpack::fuzz::mend;
    use proptest::prelude::*;

    fn on_a_ground(bytes: &[u8]) {
        let ground = tempfile::tempdir().expect("a folder");
        archive(bytes, ground.path());
    }

    #[test]
    fn the_corpus_breaks_nothing() {
        corpus::of("document")
            .iter()
            .for_each(|bytes| document(bytes));
        corpus::of("reference")
            .iter()
            .for_each(|bytes| reference(bytes));
        corpus::of("archive")
            .iter()
            .for_each(|bytes| on_a_ground(bytes));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn changed_documents_break_nothing(bytes in corpus::changed("document")) {
            document(&bytes);
        }

        #[test]
        fn changed_names_break_nothing(bytes in corpus::changed("reference")) {
            reference(&bytes);
        }

        #[test]
        fn changed_archives_break_nothing(mut bytes in corpus::changed("archive")) {
            mend(&mut bytes);
            on_a_ground(&bytes);
        }
    }
}
