//! The flags of `carpel serve`: the configuration's last layer.

use std::path::PathBuf;

use clap::Args;

use super::{
    AbsolutePath, CgroupParent, Config, ConfigError, Endpoint, Layer, LogFormat, LogLevel,
};

/// The flags that override the configuration files. `carpel config default` explains each value.
#[derive(Debug, Default, Args)]
#[command(args_override_self = true)]
pub struct Flags {
    /// Configuration file; drop-ins are read from conf.d/*.toml beside it [default: /etc/carpel/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of durable state
    #[arg(long, value_name = "DIR")]
    root: Option<AbsolutePath>,
    /// Folder of volatile state
    #[arg(long, value_name = "DIR")]
    state: Option<AbsolutePath>,
    /// Socket to serve on, as unix:///PATH
    #[arg(long, value_name = "ENDPOINT")]
    listen: Option<Endpoint>,
    /// Use carpel's built-in bridge network while no CNI configuration is there
    #[arg(long)]
    default_network: bool,
    /// Parent of the pods' cgroups when a request names none
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<CgroupParent>,
    /// Folder of CNI configurations
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<AbsolutePath>,
    /// Folder of CNI plugins; may be given several times
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Vec<AbsolutePath>,
    /// Folder that network namespaces are pinned in
    #[arg(long, value_name = "DIR")]
    netns_dir: Option<AbsolutePath>,
    /// How much to log
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Flags {
    /// The configuration under these flags, and the files it comes from.
    ///
    /// # Errors
    /// A file that cannot be read or is not valid.
    pub fn load(self) -> Result<(Config, Vec<PathBuf>), ConfigError> {
        let mut flags = Layer {
            root: self.root,
            state: self.state,
            listen: self.listen,
            ..Layer::default()
        };
        flags.cgroup.parent = self.cgroup_parent;
        flags.network.conf_dir = self.cni_conf_dir;
        flags.network.bin_dirs = (!self.cni_bin_dir.is_empty()).then_some(self.cni_bin_dir);
        flags.network.default_network = self.default_network.then_some(true);
        flags.network.netns_dir = self.netns_dir;
        flags.log.level = self.log_level;
        flags.log.format = self.log_format;
        Config::load(self.config.as_deref(), flags)
    }
}
