//! What cloud-init in a guest is told on its first boot.

use std::path::PathBuf;

use super::reader::{Reader, Section};

/// What a guest is told; its networks are told besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudInit {
    /// Its host name.
    pub hostname: String,
    /// What else it is told.
    pub user_data: UserData,
}

/// What a guest is told of users, packages and commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserData {
    /// By a file, as it is.
    File(PathBuf),
    /// By keys of ringtap's file.
    Keys {
        /// The user who may log in and become root; the distribution's own where there is none.
        user: Option<String>,
        /// The public keys by which.
        ssh_keys: Vec<SshKey>,
        /// Packages to install.
        packages: Vec<String>,
        /// Commands for the shell.
        run: Vec<String>,
    },
}

impl CloudInit {
    /// The user who may log in, as far as ringtap's file says.
    pub fn user(&self) -> Option<&str> {
        match &self.user_data {
            UserData::Keys { user, .. } => user.as_deref(),
            UserData::File(_) => None,
        }
    }
}

/// A public key of ssh's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshKey {
    /// In a file, a key a line.
    File(PathBuf),
    /// As such files have it.
    Text(String),
}

const USER_DATA: [&str; 4] = ["user", "ssh-keys", "packages", "run"];

/// The table at `cloud-init`, of the guest `name`.
pub(super) fn read(reader: &Reader<'_>, section: &Section<'_>, name: &str) -> Option<CloudInit> {
    let table = reader.table(section, "cloud-init")?;
    let mut known = vec!["hostname", "user-data"];
    known.extend(USER_DATA);
    reader.known_keys(&table, &known);
    let remedy = "write letters, digits and hyphens, dots between them";
    let hostname = read_name(
        reader,
        &table,
        "hostname",
        is_host_name,
        "host name",
        remedy,
    );
    Some(CloudInit {
        hostname: hostname.unwrap_or_else(|| name.to_owned()),
        user_data: read_user_data(reader, &table)?,
    })
}

fn read_user_data(reader: &Reader<'_>, table: &Section<'_>) -> Option<UserData> {
    if table.has("user-data") {
        for key in USER_DATA.into_iter().filter(|key| table.has(key)) {
            reader.problem(
                &table.span_of(key),
                table.key(key),
                "is not added to a user-data file",
                "write it there, or leave user-data out",
            );
        }
        return reader.path(table, "user-data").map(UserData::File);
    }
    let texts = |key| {
        let texts = reader.text_list(table, key);
        texts.iter().map(|text| text.value.to_owned()).collect()
    };
    let remedy = "write small letters, digits, _ and -, a letter first";
    let user = read_name(reader, table, "user", is_user_name, "user name", remedy);
    let keys = reader.text_list(table, "ssh-keys");
    let keys = keys.iter().enumerate().map(|(index, text)| {
        let key = format!("{}[{index}]", table.key("ssh-keys"));
        // A key has spaces between its parts; a path to one as a rule has none, and starts with a slash where it has.
        match text.value.contains(' ') && !text.value.starts_with('/') {
            true => Some(SshKey::Text(text.value.to_owned())),
            false => reader.resolve(text, key).map(SshKey::File),
        }
    });
    Some(UserData::Keys {
        user,
        ssh_keys: super::all(keys)?,
        packages: texts("packages"),
        run: texts("run"),
    })
}

/// The text at `key`, if it is sound for what it names.
fn read_name(
    reader: &Reader<'_>,
    table: &Section<'_>,
    key: &str,
    is_sound: fn(&str) -> bool,
    kind: &str,
    remedy: &str,
) -> Option<String> {
    let text = reader.text(table, key)?;
    if is_sound(text.value) {
        return Some(text.value.to_owned());
    }
    let cause = format!("{:?} is no {kind}", text.value);
    reader.problem(&text.span, table.key(key), cause, remedy);
    None
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(sound)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_user_name(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    text.len() <= 32
        && text.chars().all(sound)
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_and_users_have_their_letters() {
        for good in ["web1", "web-1.example.com", "1"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "-web", "web.", "a b", "wéb", &"a".repeat(64)] {
            assert!(!is_host_name(bad), "{bad}");
        }
        assert!(is_user_name("admin") && is_user_name("_apt-2"));
        for bad in ["", "Admin", "1st", "a b", "root:x", &"a".repeat(33)] {
            assert!(!is_user_name(bad), "{bad}");
        }
    }
}
