//! Golden plans: each folder under `tests/plans` is a case of `config.toml` and `inventory.json` (the
//! `inventory` of `ringtap plan --json`), with the expected commands, or refusal, in `plan.txt`.
//!
//! Beside those, `tests/matrix` has every mode on every kind of host, and every two modes together: `MODE.toml` is a file
//! with one network, `hosts/HOST.json` an inventory, and `MODE.txt` what is planned. That is the whole script on a fresh
//! host; on the other hosts, and beside another mode, what differs from that, a line a step: ` ` as on the fresh host (or for
//! one of the two alone), `+` only here, and `-` not here.

#[path = "support/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use ringtap::config::Config;
use ringtap::network::inventory::Inventory;
use ringtap::network::plan::{Planned, Remark, Step, plan, remarks};
use ringtap::network::script;

const MATRIX: &str = "tests/matrix";

/// The steps that a file needs on a host with the remarks to them, or why it can't be.
type Outcome = Result<(Vec<Remark>, Vec<Planned>), String>;

fn planned(config: &Config, inventory: &Inventory) -> Outcome {
    let chosen = config.chosen(&[]).unwrap();
    match plan(config, &chosen, inventory) {
        Ok(steps) => Ok((remarks(config, &chosen, inventory), steps)),
        Err(clashes) => Err(format!("refused:\n{clashes}\n")),
    }
}

/// What the command would print.
fn printed(outcome: Outcome) -> String {
    outcome.map_or_else(
        |refusal| refusal,
        |(remarks, steps)| script(&remarks, &steps),
    )
}

fn inventory(file: &Path) -> Inventory {
    let text = fs::read_to_string(file).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The configuration and the inventory of each folder under `tests/plans`, with the file that says what is expected.
fn cases() -> Vec<(Config, Inventory, PathBuf)> {
    let folders = golden::entries(Path::new("tests/plans")).into_iter();
    let case = |folder: PathBuf| {
        let config = Config::load(&folder.join("config.toml")).unwrap();
        let inventory = inventory(&folder.join("inventory.json"));
        (config, inventory, folder.join("plan.txt"))
    };
    folders.map(case).collect()
}

#[test]
fn plans_are_as_expected() {
    compare(cases().into_iter().map(|(config, inventory, file)| {
        let actual = printed(planned(&config, &inventory));
        (file, actual)
    }));
}

#[track_caller]
fn compare(texts: impl Iterator<Item = (PathBuf, String)>) {
    let failures: Vec<String> = texts
        .filter_map(|(file, actual)| golden::compare(&file, &actual).err())
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A file of the matrix with one network, whose name is the file's.
struct Mode {
    name: String,
    text: String,
}

impl Mode {
    fn all() -> Vec<Self> {
        named_files(MATRIX, "toml")
            .into_iter()
            .map(|(name, file)| Self {
                name,
                text: fs::read_to_string(file).unwrap(),
            })
            .collect()
    }

    fn planned(&self, inventory: &Inventory) -> Outcome {
        planned(&config(&self.text), inventory)
    }

    /// What is planned for both at once.
    fn planned_beside(&self, other: &Self, inventory: &Inventory) -> Outcome {
        planned(
            &config(&format!("{}\n{}", self.text, other.text)),
            inventory,
        )
    }
}

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("ringtap.toml")).unwrap()
}

/// The files in `dir` whose names end so, with what is before the end.
fn named_files(dir: &str, extension: &str) -> Vec<(String, PathBuf)> {
    let files = golden::entries(Path::new(dir)).into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|it| it == extension));
    let named = |file: PathBuf| {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, file)
    };
    files.map(named).collect()
}

/// The fresh host, and the others by name.
fn hosts() -> (Inventory, Vec<(String, Inventory)>) {
    let files = named_files("tests/matrix/hosts", "json").into_iter();
    let mut hosts: Vec<_> = files.map(|(name, file)| (name, inventory(&file))).collect();
    let fresh = hosts.iter().position(|(name, _)| name == "fresh").unwrap();
    (hosts.remove(fresh).1, hosts)
}

/// What of `outcome` differs from `usual`: step by step, marked, or in a word if nothing does.
fn changes(outcome: &Outcome, usual: &[&Outcome]) -> String {
    let (remarks, steps) = match outcome {
        Ok(planned) => planned,
        Err(refusal) => return refusal.clone(),
    };
    let text = |planned: &Planned| format!("{}: {}", planned.owner, planned.step);
    let usual = usual.iter().filter_map(|outcome| outcome.as_ref().ok());
    let usual: Vec<&Planned> = usual.flat_map(|(_, steps)| steps).collect();
    let mut gone: BTreeMap<String, &Planned> = usual.iter().map(|it| (text(it), *it)).collect();
    let mut marked: String = remarks.iter().map(|it| format!("# {it}\n")).collect();
    let mut new = 0;
    for planned in steps {
        let (mark, shown) = match gone.remove(&text(planned)) {
            Some(_) => (' ', planned.step.line()),
            None => ('+', planned.step.to_string()),
        };
        new += usize::from(mark == '+');
        shown
            .lines()
            .for_each(|line| writeln!(marked, "{mark} {line}").unwrap());
    }
    if remarks.is_empty() && new == 0 && gone.is_empty() {
        return "nothing else\n".to_owned();
    }
    let gone = usual.iter().filter(|it| gone.remove(&text(it)).is_some());
    gone.for_each(|it| writeln!(marked, "- {}", it.step.line()).unwrap());
    marked
}

/// Whom the steps are for, in their order.
fn order(outcome: &Outcome) -> String {
    let steps = outcome.as_ref().map_or(&[][..], |(_, steps)| steps);
    let mut owners: Vec<String> = steps.iter().map(|it| it.owner.to_string()).collect();
    owners.dedup();
    owners.join(", ")
}

#[test]
fn every_mode_on_every_host_and_beside_every_other_is_as_expected() {
    let modes = Mode::all();
    let (fresh, others) = hosts();
    compare(modes.iter().enumerate().map(|(index, mode)| {
        let alone = mode.planned(&fresh);
        let mut text = printed(mode.planned(&fresh));
        for (host, inventory) in &others {
            let changes = changes(&mode.planned(inventory), &[&alone]);
            write!(text, "\n== on a host: {host}\n{changes}").unwrap();
        }
        for other in &modes[index + 1..] {
            let both = mode.planned_beside(other, &fresh);
            let changes = changes(&both, &[&alone, &other.planned(&fresh)]);
            let order = order(&both);
            write!(text, "\n== beside {}: {order}\n{changes}", other.name).unwrap();
        }
        (Path::new(MATRIX).join(format!("{}.txt", mode.name)), text)
    }));
}

/// Every plan of the folders and of the matrix.
fn all_plans() -> Vec<Vec<Planned>> {
    let of_cases = cases()
        .into_iter()
        .map(|(config, inventory, _)| planned(&config, &inventory));
    let (fresh, others) = hosts();
    let hosts: Vec<Inventory> = others
        .into_iter()
        .map(|(_, it)| it)
        .chain([fresh])
        .collect();
    let modes = Mode::all();
    let of_matrix = modes
        .iter()
        .flat_map(|mode| hosts.iter().map(|it| mode.planned(it)));
    let all = of_cases.chain(of_matrix).filter_map(Result::ok);
    all.map(|(_, steps)| steps).collect()
}

/// Every step that a plan can hold goes back: a failure in the middle must not leave it.
#[test]
fn every_planned_step_has_an_undo() {
    for planned in all_plans().into_iter().flatten() {
        // A dnsmasq whose files are not known can't be started again as it was.
        let unknown = matches!(planned.step, Step::StopDnsmasq { was: None, .. });
        let undo = planned.step.undo();
        assert!(undo.is_some() || unknown, "{}", planned.step);
        // Down must know of everything that was made, and its journal survives being written.
        for step in planned.step.teardown().iter().chain(&undo) {
            let text = serde_json::to_string(step).unwrap();
            assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), *step);
        }
    }
}
