//! Golden plans: each folder under `tests/plans` is a case of `config.toml` and `inventory.json` (the
//! `inventory` of `ringtap plan --json`), with the expected commands, or refusal, in `plan.txt`.

#[path = "support/golden.rs"]
mod golden;

use std::fs;
use std::path::Path;

use ringtap::config::Config;
use ringtap::network::inventory::Inventory;
use ringtap::network::plan::{Step, plan, remarks};
use ringtap::network::script;

/// What the command would print for the case in `folder`.
fn planned(folder: &Path) -> String {
    let config = Config::load(&folder.join("config.toml")).unwrap();
    let chosen = config.chosen(&[]).unwrap();
    match plan(&config, &chosen, &inventory(folder)) {
        Ok(steps) => script(&remarks(&config, &chosen, &inventory(folder)), &steps),
        Err(clashes) => format!("refused:\n{clashes}\n"),
    }
}

fn inventory(folder: &Path) -> Inventory {
    let text = fs::read_to_string(folder.join("inventory.json")).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

#[test]
fn plans_are_as_expected() {
    let failures: Vec<String> = golden::entries(Path::new("tests/plans"))
        .iter()
        .filter_map(|folder| golden::compare(&folder.join("plan.txt"), &planned(folder)).err())
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every step that a plan can hold goes back: a failure in the middle must not leave it.
#[test]
fn every_planned_step_has_an_undo() {
    for folder in golden::entries(Path::new("tests/plans")) {
        let config = Config::load(&folder.join("config.toml")).unwrap();
        let chosen = config.chosen(&[]).unwrap();
        for planned in plan(&config, &chosen, &inventory(&folder)).unwrap_or_default() {
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
}
