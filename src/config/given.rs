//! A guest that no file has: `ringtap run --disk x.qcow2 --network default`. It becomes a section of TOML after the file's
//! text, so that from there on it is a guest like any other, and what is wrong with it is said in the same words.

use std::path::Path;

use toml::Value;

use super::problem::Problems;
use super::{Config, Memory, USUAL_FILE};
use crate::types::Name;

/// What stands for the file where there is none.
const USUAL: &str = "[networks.default]\nmode = \"nat\"\nsubnet = \"192.168.100.0/24\"\n";

/// A guest as a person gives it on the command line.
#[derive(Debug, Clone)]
pub struct Given {
    /// Its name.
    pub name: Name,
    /// Virtual CPUs.
    pub cpus: u16,
    /// RAM.
    pub memory: Memory,
    /// The images of its disks; relative paths start at the current directory.
    pub disks: Vec<String>,
    /// The networks of its NICs.
    pub networks: Vec<Name>,
}

impl Config {
    /// Reads `file`, with `given` as a further guest. If it is the [`USUAL_FILE`], it need not exist: there is a NAT network
    /// `default` then.
    ///
    /// # Errors
    /// As [`Config::load`]; or the file has such a guest already, or not such networks.
    pub fn load_with(file: &Path, given: &Given) -> Result<Self, Problems> {
        let base = match file == Path::new(USUAL_FILE) && !file.exists() {
            true => Self::parse(USUAL, file)?,
            false => Self::load(file)?,
        };
        base.with(given)
    }

    fn with(&self, given: &Given) -> Result<Self, Problems> {
        if self.guests.contains_key(&given.name) {
            return Err(Problems::whole(
                &self.file,
                format!("there is a guest `{}` in it already", given.name),
                "run that one, without --disk, or give yours another name".to_owned(),
            ));
        }
        for network in &given.networks {
            self.network(network)?;
        }
        Self::parse(&format!("{}\n{}", self.text, given.section()), &self.file)
    }
}

impl Given {
    fn section(&self) -> String {
        let Self {
            name, cpus, memory, ..
        } = self;
        // A path that can't be made absolute is reported by whoever opens it.
        let absolute = |disk: &String| match std::path::absolute(disk) {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(_) => disk.clone(),
        };
        let disks: Vec<String> = self.disks.iter().map(absolute).collect();
        let disks = Value::from(disks);
        let nics = self.networks.iter();
        let nics: Vec<String> = nics
            .map(|network| format!("{{ network = \"{network}\" }}"))
            .collect();
        let nics = nics.join(", ");
        format!(
            "[guests.{name}]\ncpus = {cpus}\nmemory = \"{memory}\"\ndisks = {disks}\nnics = [{nics}]\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(disk: &str, networks: &[&str]) -> Given {
        Given {
            name: "x".parse().unwrap(),
            cpus: 2,
            memory: "1G".parse().unwrap(),
            disks: vec![disk.to_owned()],
            networks: networks.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    fn usual() -> Config {
        Config::parse(USUAL, Path::new("/etc/ringtap.toml")).unwrap()
    }

    #[test]
    fn a_given_guest_is_one_of_the_file() {
        let odd = "/srv/a \"b\"\\\n.qcow2";
        let config = usual().with(&given(odd, &["default", "default"])).unwrap();
        let guest = config.guest(&"x".parse().unwrap()).unwrap();
        assert_eq!(guest.disks[0].image.path, Path::new(odd));
        assert_eq!((guest.cpus, guest.nics.len()), (2, 2));
        assert_eq!(guest.memory.bytes(), 1 << 30);
        // Its definition can be read again.
        Config::parse(config.text(), config.path()).unwrap();
    }

    #[test]
    fn a_relative_path_starts_where_the_person_is() {
        let config = usual().with(&given("x.qcow2", &[])).unwrap();
        let here = std::env::current_dir().unwrap();
        let guest = config.guest(&"x".parse().unwrap()).unwrap();
        assert_eq!(guest.disks[0].image.path, here.join("x.qcow2"));
    }

    #[test]
    fn one_that_the_file_has_and_a_network_that_it_has_not_are_refused() {
        let said = usual().with(&given("x.qcow2", &["defualt"])).unwrap_err();
        assert!(
            said.to_string().contains("did you mean `default`?"),
            "{said}"
        );
        let config = usual().with(&given("x.qcow2", &[])).unwrap();
        let said = config.with(&given("y.qcow2", &[])).unwrap_err();
        assert!(said.to_string().contains("already"), "{said}");
    }
}
