//! What this program says about itself to whoever manages back-ends, as QEMU's docs/interop/vhost-user.json has it.
//!
//! A management program learns of ringtap from `scripts/vhost-user/50-ringtap.json`, once that is installed as the
//! README says. It runs the program named there with `--print-capabilities`, which answers [`capabilities`], then with
//! `--fd` or `--socket-path`. That program is a script beside the file, for the convention has no place for a word such
//! as `backend` before the options.

use serde::Serialize;

/// `VHostUserBackendType`'s name for this kind of device.
const TYPE: &str = "net";

/// `VHostUserBackendCapabilities`: the convention names no features for `net`.
#[derive(Serialize)]
struct Capabilities {
    r#type: &'static str,
    features: [&'static str; 0],
}

/// What `--print-capabilities` prints.
pub fn capabilities() -> String {
    let capabilities = Capabilities {
        r#type: TYPE,
        features: [],
    };
    serde_json::to_string_pretty(&capabilities).expect("plain strings are always JSON")
}
