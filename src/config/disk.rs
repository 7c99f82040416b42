//! Disks of guests: images, and overlays over images.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::problem::suggest;
use super::reader::{Item, Reader, Section};
use super::values::DiskSize;

/// What is in an image file. It is never guessed from what the file holds: that is the guest's to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// QEMU's own.
    Qcow2,
    /// The disk's bytes.
    Raw,
}

impl Format {
    /// That of the files that are called so.
    fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension == "qcow2" => Self::Qcow2,
            _ => Self::Raw,
        }
    }

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            _ => Err(format!("{text:?} is no format of images")),
        }
    }
}

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub format: Format,
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its image.
    pub image: Image,
    /// The image that it is an overlay over, when it is made.
    pub base: Option<Image>,
    /// How large it is made; an overlay is as large as its base unless there is one.
    pub size: Option<DiskSize>,
    /// Whether the guest may only read it.
    pub readonly: bool,
}

impl Disk {
    /// Whether it is made when it is not there.
    pub fn is_made(&self) -> bool {
        self.base.is_some() || self.size.is_some()
    }
}

/// The list at `disks`.
pub(super) fn read_all(reader: &Reader<'_>, section: &Section<'_>) -> Option<Vec<Disk>> {
    let items = reader.mixed_list(section, "disks", "a path or a table");
    super::all(items.iter().enumerate().map(|(index, item)| match item {
        Item::Text(text) => {
            let path = reader.resolve(text, format!("{}[{index}]", section.key("disks")))?;
            let format = Format::of(&path);
            Some(Disk {
                image: Image { path, format },
                base: None,
                size: None,
                readonly: false,
            })
        }
        Item::Table(table) => read(reader, table),
    }))
}

fn read(reader: &Reader<'_>, table: &Section<'_>) -> Option<Disk> {
    reader.known_keys(table, &["path", "base", "size", "format", "readonly"]);
    let readonly = reader.boolean(table, "readonly").is_some_and(|it| it.value);
    let formats = suggest(
        reader.text(table, "format").map_or("", |text| text.value),
        ["qcow2", "raw"],
    );
    let format = reader.parsed::<Format>(table, "format", &formats);
    let size = reader.parsed::<DiskSize>(table, "size", "write it as \"20G\"");
    let base = reader.path(table, "base");
    let path = reader
        .required(table, "path", "\"/srv/web1.qcow2\"")
        .and_then(|text| reader.resolve(&text, table.key("path")))?;
    let format = format.map_or_else(|| Format::of(&path), |format| format.value);
    let made = base.is_some() || size.is_some();
    if base.is_some() && format != Format::Qcow2 {
        reader.problem(
            &table.span_of("path"),
            table.key("path"),
            "only a qcow2 image can be an overlay",
            "call it something.qcow2, or leave base out",
        );
    }
    if readonly && made {
        reader.problem(
            &table.span_of("readonly"),
            table.key("readonly"),
            "a disk that is made empty or as an overlay is there to be written",
            "leave it out, or name an image that exists, without base and size",
        );
    }
    if base.as_ref() == Some(&path) {
        reader.problem(
            &table.span_of("base"),
            table.key("base"),
            "an image can't be an overlay over itself",
            "name the image that it is to start from",
        );
    }
    Some(Disk {
        image: Image { path, format },
        base: base.map(|path| Image {
            format: Format::of(&path),
            path,
        }),
        size: size.map(|size| size.value),
        readonly,
    })
}
