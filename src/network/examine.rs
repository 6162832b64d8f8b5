//! What a daemon would find, without being one: for `carpel doctor`.

use std::path::{Path, PathBuf};

use super::exec::Bins;
use super::folder;

/// What the folder of network configurations says, and where its plugins are.
#[derive(Debug, Default)]
pub struct Examined {
    /// The name of the network that pods would get.
    pub network: Option<String>,
    /// Its plugins in order, with the program of each or why there is none.
    pub plugins: Vec<(String, Result<PathBuf, String>)>,
    /// Whether one of them opens host ports.
    pub maps_ports: bool,
    /// What is wrong with files that were passed over.
    pub warnings: Vec<String>,
}

/// Looks at a folder of configurations, and for the plugins that they name in the folders of plugins and
/// among carpel's own.
#[must_use]
pub fn examine(conf_dir: &Path, bin_dirs: &[PathBuf], own: Option<PathBuf>) -> Examined {
    let scan = folder::scan(conf_dir);
    let Some(network) = scan.network else {
        return Examined {
            warnings: scan.bad,
            ..Examined::default()
        };
    };
    let bins = Bins::new(bin_dirs.to_vec(), own);
    // Each plugin needs a program, and so does the one that it gives addresses with.
    let kinds = network.plugins.iter().flat_map(|plugin| {
        let ipam = plugin.raw.get("ipam").and_then(|ipam| ipam.get("type"));
        let ipam = ipam.and_then(serde_json::Value::as_str);
        [Some(plugin.kind.as_str()), ipam].into_iter().flatten()
    });
    let plugins = kinds.map(|kind| {
        let program = match &bins {
            // Not a file's name: no plugin is looked for by it.
            _ if kind.contains('/') => Err("is no plugin's name".to_owned()),
            Ok(bins) => bins
                .find(kind)
                .map(|program| program.path().to_owned())
                .map_err(|failure| failure.to_string()),
            Err(error) => Err(error.to_string()),
        };
        (kind.to_owned(), program)
    });
    Examined {
        plugins: plugins.collect(),
        maps_ports: network.maps_ports(),
        network: Some(network.name),
        warnings: scan.bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let found = examine(dir.path(), &[], None);
        assert!(found.network.is_none() && found.warnings.is_empty());
        std::fs::write(dir.path().join("00-bad.conf"), "{").unwrap();
        let network = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
            {"type":"bridge","ipam":{"type":"host-local"}},{"type":"missing"}]}"#;
        std::fs::write(dir.path().join("10-pods.conflist"), network).unwrap();
        let own = PathBuf::from("/own");
        let found = examine(dir.path(), &["/nowhere".into()], Some(own.clone()));
        assert_eq!(found.network.as_deref(), Some("pods"));
        assert_eq!((found.warnings.len(), found.maps_ports), (1, false));
        assert_eq!(found.plugins[0], ("bridge".into(), Ok(own.clone())));
        assert_eq!(found.plugins[1], ("host-local".into(), Ok(own)));
        assert!(
            found.plugins[2]
                .1
                .as_ref()
                .unwrap_err()
                .contains("/nowhere")
        );
    }
}
