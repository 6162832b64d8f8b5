//! `carpel cni`: carpel's own CNI plugins, for other runtimes and for programs that want them under their names.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::output::{self, FormatArgs, Screen};
use super::table::{Table, column};
use super::{Outcome, SUCCESS};
use crate::config::{Config, Layer};
use crate::network::SHIPPED;

/// The binary that all the names lead to.
const PROGRAM: &str = "carpel-cni";

#[derive(Debug, Args)]
pub struct CniArgs {
    #[command(subcommand)]
    command: CniCommand,
}

#[derive(Debug, Subcommand)]
enum CniCommand {
    /// Install carpel's CNI plugins in a folder, under their own names
    Install(InstallArgs),
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// A folder, as /opt/cni/bin
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Plugins to install [default: all of them]
    #[arg(value_name = "PLUGIN")]
    plugins: Vec<String>,
    /// Take the place of other plugins of these names
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    format: FormatArgs,
}

impl CniArgs {
    pub fn run(self) -> Outcome {
        match self.command {
            CniCommand::Install(args) => args.run(),
        }
    }
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Installed,
    /// It led to carpel's already.
    Present,
    /// Another plugin is there.
    Kept,
}

impl Done {
    fn word(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Present => "was there",
            Self::Kept => "another is there; --force takes its place",
        }
    }
}

impl InstallArgs {
    fn run(self) -> Outcome {
        let names = names(&self.plugins)?;
        let (config, _) = Config::load(None, Layer::default())?;
        let program = config.libexec.find_cni()?;
        let done = install(&program, &self.dir, &names, self.force)
            .with_context(|| format!("install in {}", self.dir.display()))?;
        if self.format.is_json() {
            let entry = |(name, done): &(&str, Done)| serde_json::json!({"plugin": name, "installed": *done != Done::Kept});
            output::print_json(&done.iter().map(entry).collect())?;
        } else {
            let mut table = Table::new([column("PLUGIN"), column("STATE")]);
            for (name, done) in done {
                table.row([name.into(), done.word().into()]);
            }
            output::print(table.render(&Screen::detect()))?;
        }
        Ok(SUCCESS)
    }
}

/// The plugins that are meant, which must be carpel's.
fn names(asked: &[String]) -> anyhow::Result<Vec<&'static str>> {
    if asked.is_empty() {
        return Ok(SHIPPED.to_vec());
    }
    let known = |name: &String| {
        let found = SHIPPED.iter().find(|shipped| *shipped == name).copied();
        found.with_context(|| format!("no plugin {name}; carpel has {}", SHIPPED.join(", ")))
    };
    asked.iter().map(known).collect()
}

/// Copies the program into the folder and links the names to it. A node may run them meanwhile: each is there whole
/// at any time, the old or the new.
fn install(
    program: &Path,
    dir: &Path,
    names: &[&'static str],
    force: bool,
) -> anyhow::Result<Vec<(&'static str, Done)>> {
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("no such folder; make it first")
        }
        Err(error) => return Err(error.into()),
        Ok(found) if !found.is_dir() => bail!("not a folder"),
        Ok(_) => {}
    }
    let new = dir.join(format!(".{PROGRAM}.{}", std::process::id()));
    let replace = |make: &dyn Fn() -> io::Result<()>, path: &Path| {
        let made = make().and_then(|()| fs::rename(&new, path));
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        made.with_context(|| path.display().to_string())
    };
    let copy = || {
        fs::copy(program, &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))
    };
    replace(&copy, &dir.join(PROGRAM))?;
    let mut done = Vec::new();
    for name in names {
        let path = dir.join(name);
        let what = match fs::symlink_metadata(&path) {
            Ok(_) if fs::read_link(&path).is_ok_and(|target| target == Path::new(PROGRAM)) => {
                Done::Present
            }
            Ok(_) if !force => Done::Kept,
            _ => {
                replace(&|| symlink(PROGRAM, &new), &path)?;
                Done::Installed
            }
        };
        done.push((*name, what));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_one_program_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "ours").unwrap();
        let bin = dir.path().join("bin");
        let names = ["bridge", "portmap"];
        assert!(install(&program, &bin, &names, false).is_err());
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("bridge"), "theirs").unwrap();
        let done = install(&program, &bin, &names, false).unwrap();
        assert_eq!(done, [("bridge", Done::Kept), ("portmap", Done::Installed)]);
        assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(bin.join("portmap")).unwrap(), "ours");
        let mode = fs::metadata(bin.join("portmap"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        let done = install(&program, &bin, &names, true).unwrap();
        assert_eq!(
            done,
            [("bridge", Done::Installed), ("portmap", Done::Present)]
        );
        assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "ours");
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 3);
    }

    #[test]
    fn only_what_carpel_has_is_installed() {
        assert_eq!(names(&[]).unwrap(), SHIPPED);
        assert_eq!(names(&["ptp".into()]).unwrap(), ["ptp"]);
        let error = names(&["calico".into()]).unwrap_err().to_string();
        assert!(
            error.starts_with("no plugin calico; carpel has loopback, "),
            "{error}"
        );
    }
}
