//! What this program says about itself to whoever manages back-ends, as QEMU's docs/interop/vhost-user.json has it.
//!
//! A management program learns of ringtap from a file such as `/usr/share/qemu/vhost-user/50-ringtap.json` (or
//! in `/etc/qemu/vhost-user`), whose text is [`descriptor`]:
//!
//! ```json
//! {
//!   "description": "ringtap: vhost-user-net on a tap or macvtap",
//!   "type": "net",
//!   "binary": "/usr/libexec/ringtap-vhost-user-net"
//! }
//! ```
//!
//! The convention has no place for words before the options, so `binary` is a two-line script that runs
//! `ringtap backend "$@"`. The manager runs it with `--print-capabilities`, which answers [`capabilities`], then with
//! `--fd` or `--socket-path`.

use std::path::Path;

use serde::Serialize;

/// `VHostUserBackendType`'s name for this kind of device.
const TYPE: &str = "net";

/// `VHostUserBackendCapabilities`: the convention names no features for `net`.
#[derive(Serialize)]
struct Capabilities {
    r#type: &'static str,
    features: [&'static str; 0],
}

/// `VhostUserBackend`.
#[derive(Serialize)]
struct Descriptor<'a> {
    description: &'static str,
    r#type: &'static str,
    binary: &'a str,
}

/// What `--print-capabilities` prints.
pub fn capabilities() -> String {
    json(&Capabilities {
        r#type: TYPE,
        features: [],
    })
}

/// The text of a `50-ringtap.json` for the program at `binary`, an absolute path; `None` where that is not so,
/// or not UTF-8, which JSON could not hold.
pub fn descriptor(binary: &Path) -> Option<String> {
    let binary = binary.to_str().filter(|_| binary.is_absolute())?;
    Some(json(&Descriptor {
        description: "ringtap: vhost-user-net on a tap or macvtap",
        r#type: TYPE,
        binary,
    }))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain strings are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn capabilities_are_those_of_the_convention() {
        assert_eq!(
            value(&capabilities()),
            json!({"type": "net", "features": []})
        );
    }

    #[test]
    fn the_descriptor_has_the_keys_of_the_convention() {
        let text = descriptor(Path::new("/usr/libexec/ringtap-vhost-user-net")).unwrap();
        let object = value(&text);
        let keys: Vec<_> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["binary", "description", "type"]);
        assert_eq!(object["type"], "net");
        assert!(descriptor(Path::new("ringtap")).is_none());
    }
}
