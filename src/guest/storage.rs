//! A guest's disks: made where they are to be and are not there, looked at, and opened for QEMU.
//!
//! QEMU opens none of its files by name: it gets descriptors, of images and of each image that they are overlays over, so
//! that it needs no right to anything else. What format an image has is said by ringtap's file, and of those beneath it by
//! the header of the one above, never guessed from what a guest may have written there. An image that exists is never
//! overwritten, resized or deleted.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;
use serde::Deserialize;
use thiserror::Error;

use super::handed::Handed;
use super::qemu::{DiskFiles, Files, Layer};
use crate::config::{Disk, Firmware, Format, Guest, Image};
use crate::programs::{self, QEMU_IMG, ToolError};

/// Where distributions have OVMF's code, and the variables that it starts from.
const OVMF: [[&str; 2]; 2] = [
    [
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ],
    [
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ],
];

/// Why a guest can't have its files.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A file can't be opened.
    #[error("{key} {} can't be read: name a file that exists and may be read", path.display())]
    Open {
        /// The key in the file.
        key: &'static str,
        /// The file it names.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// QEMU, which is not root, could not open it.
    #[error("{key} {file} is closed to others than its owner, and QEMU runs as another: chmod o+r {file}", file = path.display())]
    Closed {
        /// The key in the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// An image is not there, and not to be made.
    #[error(
        "disk {} does not exist: name one that does, or give it a base or a size, for it to be made", .0.display()
    )]
    Missing(PathBuf),
    /// The directory that it is to be made in is not there.
    #[error("disk {} can't be made: there is no directory {}", path.display(), directory.display())]
    NoDirectory {
        /// The image.
        path: PathBuf,
        /// Where it would be.
        directory: PathBuf,
    },
    /// It can't be made.
    #[error("disk {} can't be made; nothing of it is left", path.display())]
    Make {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file system is full.
    #[error("disk {} can't be made: its file system is full; make room, or choose another path", .0.display())]
    Full(PathBuf),
    /// Another process has it.
    #[error(
        "disk {path} is in use by another process: another guest, or qemu-img (`fuser -v {path}` shows it); end that first",
        path = .0.display()
    )]
    InUse(PathBuf),
    /// It is none of this format.
    #[error("disk {} is no sound {} image: {said}", path.display(), format.name())]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// What it is to be.
        format: Format,
        /// In the words of qemu-img.
        said: String,
    },
    /// An overlay over something else.
    #[error(
        "disk {} is an overlay over {found}, not over {}: write that as its base, or another path for a new one",
        path.display(), base.display()
    )]
    OtherBase {
        /// The image.
        path: PathBuf,
        /// What it starts from.
        found: String,
        /// What the file says.
        base: PathBuf,
    },
    /// An overlay whose header lacks the format of what it is over.
    #[error(
        "disk {disk} does not say what format its base {base} has: qemu-img rebase -u -F FORMAT -b {base} {disk}",
        disk = .0.display(), base = .1.display()
    )]
    UnknownBase(PathBuf, PathBuf),
    /// There is no OVMF.
    #[error("firmware = \"uefi\" needs OVMF: install the package ovmf")]
    NoOvmf,
    /// qemu-img does not work.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Opens the files that `guest` starts from, once they are [prepared](prepare); `dir` is the guest's, and `handed` gets what
/// QEMU is to inherit. As whom QEMU runs, root or not, is `as_root`.
///
/// # Errors
/// See [`StorageError`].
pub fn open(
    guest: &Guest,
    dir: &Path,
    as_root: bool,
    handed: &mut Handed,
) -> Result<Files, StorageError> {
    let mut by_name = |key: &'static str, path: &Option<PathBuf>| {
        let path = path.as_ref();
        path.map(|path| open_for_all(key, path, as_root, handed))
            .transpose()
    };
    let kernel = by_name("kernel", &guest.kernel)?;
    let initrd = by_name("initrd", &guest.initrd)?;
    let disks = guest.disks.iter().map(|disk| open_disk(disk, handed));
    let disks = disks.collect::<Result<_, _>>()?;
    let firmware = match guest.firmware {
        Firmware::Bios => None,
        Firmware::Uefi => Some(open_firmware(guest, dir, handed)?),
    };
    Ok(Files {
        kernel,
        initrd,
        disks,
        firmware,
        seed: None,
    })
}

/// Makes those disks of `guest` that are to be made, once all that [`open`] will open besides is seen to be there.
///
/// # Errors
/// See [`StorageError`].
pub fn prepare(guest: &Guest, as_root: bool) -> Result<(), StorageError> {
    let mut nothing = Handed::default();
    for (key, path) in [("kernel", &guest.kernel), ("initrd", &guest.initrd)] {
        if let Some(path) = path {
            open_for_all(key, path, as_root, &mut nothing)?;
        }
    }
    for disk in &guest.disks {
        if disk.image.path.exists() {
            layers(disk)?;
        } else {
            refuse_to_make(disk)?;
        }
    }
    if guest.firmware == Firmware::Uefi {
        ovmf()?;
    }
    guest.disks.iter().try_for_each(make)
}

/// Opens a file that QEMU opens again, by the descriptor's name.
fn open_for_all(
    key: &'static str,
    path: &Path,
    as_root: bool,
    handed: &mut Handed,
) -> Result<RawFd, StorageError> {
    let failed = |cause| StorageError::Open {
        key,
        path: path.to_owned(),
        cause,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if !as_root && mode & 0o004 == 0 {
        let path = path.to_owned();
        return Err(StorageError::Closed { key, path });
    }
    Ok(handed.add(file))
}

/// What keeps a disk that is not there from being made.
fn refuse_to_make(disk: &Disk) -> Result<(), StorageError> {
    let path = &disk.image.path;
    if !disk.is_made() {
        return Err(StorageError::Missing(path.clone()));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(StorageError::NoDirectory {
            path: path.clone(),
            directory: directory.to_owned(),
        });
    }
    match &disk.base {
        Some(base) => File::open(&base.path)
            .map(drop)
            .map_err(|cause| StorageError::Open {
                key: "base",
                path: base.path.clone(),
                cause,
            }),
        None => Ok(()),
    }
}

/// Makes a disk that is not there: whole, or not at all.
fn make(disk: &Disk) -> Result<(), StorageError> {
    let path = &disk.image.path;
    if path.exists() {
        return Ok(());
    }
    refuse_to_make(disk)?;
    let failed = |cause| StorageError::Make {
        path: path.clone(),
        cause,
    };
    let new = NewFile::beside(path).map_err(failed)?;
    create(disk, &new.path())?;
    new.becomes(path).map_err(failed)
}

/// A file that is being made.
struct NewFile {
    file: File,
    /// None where the file system has files without a name: whoever is killed meanwhile leaves nothing then.
    name: Option<PathBuf>,
}

impl NewFile {
    /// One that is to be at `path`.
    fn beside(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut unnamed = options.clone();
        unnamed.custom_flags(OFlags::TMPFILE.bits() as i32);
        if let Ok(file) = unnamed.open(directory) {
            return Ok(Self { file, name: None });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = path.with_file_name(format!(".{name}.{}", std::process::id()));
        Ok(Self {
            file: options.create(true).truncate(true).open(&name)?,
            name: Some(name),
        })
    }

    /// By what other processes find it.
    fn path(&self) -> PathBuf {
        let number = self.file.as_raw_fd();
        let by_number = || format!("/proc/{}/fd/{number}", std::process::id()).into();
        self.name.clone().unwrap_or_else(by_number)
    }

    /// Puts it at `path`, unless one has come there meanwhile: unlike a rename a link never takes another's place.
    fn becomes(self, path: &Path) -> io::Result<()> {
        match linkat(CWD, self.path(), CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn create(disk: &Disk, new: &Path) -> Result<(), StorageError> {
    let size = disk.size.map(|size| size.bytes().to_string());
    let new = new.display().to_string();
    let base = disk.base.as_ref().map(|base| {
        // As an absolute path: qemu-img would look for a relative one beside the new image.
        let path = std::path::absolute(&base.path).unwrap_or_else(|_| base.path.clone());
        (path.display().to_string(), base.format.name())
    });
    let mut words = vec!["create", "-q", "-f", disk.image.format.name()];
    if let Some((base, format)) = &base {
        words.extend(["-b", base, "-F", format]);
    }
    words.push(&new);
    words.extend(size.as_deref());
    let done = programs::run(QEMU_IMG, &words, "").map(drop);
    done.map_err(|error| match &disk.base {
        Some(base) => of_qemu_img(error, base, &disk.image.path),
        None => of_qemu_img(error, &disk.image, &disk.image.path),
    })
}

/// What qemu-img's complaint means, about `image` while it was at `path`.
fn of_qemu_img(error: ToolError, image: &Image, path: &Path) -> StorageError {
    let ToolError::Failed { message, .. } = &error else {
        return error.into();
    };
    if message.contains("No space left on device") {
        StorageError::Full(path.to_owned())
    } else if message.contains("lock") && message.contains("another process") {
        StorageError::InUse(image.path.clone())
    } else {
        let said = message.lines().next().unwrap_or_default();
        StorageError::Corrupt {
            path: image.path.clone(),
            format: image.format,
            said: said.trim_start_matches("qemu-img: ").to_owned(),
        }
    }
}

/// What qemu-img says of an image.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    filename: PathBuf,
    format: String,
    full_backing_filename: Option<PathBuf>,
    backing_filename_format: Option<String>,
}

/// The image of a disk and, each after that over which it is an overlay, those beneath.
fn layers(disk: &Disk) -> Result<Vec<Image>, StorageError> {
    let image = &disk.image;
    let path = image.path.display().to_string();
    let words = [
        "info",
        "-f",
        image.format.name(),
        "--backing-chain",
        "--output=json",
        &path,
    ];
    let said = programs::run(QEMU_IMG, &words, "");
    let said = said.map_err(|error| of_qemu_img(error, image, &image.path))?;
    let infos: Vec<Info> = serde_json::from_str(&said).map_err(|source| ToolError::Output {
        program: QEMU_IMG.name,
        source,
    })?;
    for info in &infos {
        if let (Some(base), None) = (&info.full_backing_filename, &info.backing_filename_format) {
            return Err(StorageError::UnknownBase(
                info.filename.clone(),
                base.clone(),
            ));
        }
    }
    let found = infos
        .first()
        .and_then(|top| top.full_backing_filename.as_ref());
    if let Some(base) = &disk.base {
        let same = |found: &PathBuf| {
            let [found, base] = [found, &base.path].map(|path| path.canonicalize().ok());
            found.is_some() && found == base
        };
        if !found.is_some_and(same) {
            let nothing = "nothing".to_owned();
            return Err(StorageError::OtherBase {
                path: image.path.clone(),
                found: found.map_or(nothing, |found| found.display().to_string()),
                base: base.path.clone(),
            });
        }
    }
    let layer = |info: &Info| {
        let format = info.format.parse();
        let format = format.map_err(|_| StorageError::Corrupt {
            path: info.filename.clone(),
            format: Format::Qcow2,
            said: format!(
                "its format is {}, and guests have qcow2 or raw",
                info.format
            ),
        })?;
        Ok(Image {
            path: info.filename.clone(),
            format,
        })
    };
    infos.iter().map(layer).collect()
}

fn open_disk(disk: &Disk, handed: &mut Handed) -> Result<DiskFiles, StorageError> {
    let layers = layers(disk)?;
    let open = |(depth, image): (usize, &Image)| {
        let failed = |cause| StorageError::Open {
            key: "disk",
            path: image.path.clone(),
            cause,
        };
        let write = depth == 0 && !disk.readonly;
        let file = File::options().read(true).write(write).open(&image.path);
        let file = file.map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        Ok(Layer {
            fd: handed.add(file),
            format: image.format,
            is_device: kind.is_block_device(),
        })
    };
    Ok(DiskFiles {
        layers: layers
            .iter()
            .enumerate()
            .map(open)
            .collect::<Result<_, StorageError>>()?,
        readonly: disk.readonly,
    })
}

fn ovmf() -> Result<[&'static Path; 2], StorageError> {
    let pairs = OVMF.map(|pair| pair.map(Path::new));
    let there = pairs
        .into_iter()
        .find(|pair| pair.iter().all(|it| it.exists()));
    there.ok_or(StorageError::NoOvmf)
}

/// OVMF's code, and the guest's own variables: beside its first disk, where they outlive a boot of the host; in its
/// directory where it has none.
fn open_firmware(
    guest: &Guest,
    dir: &Path,
    handed: &mut Handed,
) -> Result<[RawFd; 2], StorageError> {
    let [code, fresh] = ovmf()?;
    let variables = match guest.disks.first() {
        Some(disk) => disk.image.path.with_extension("efivars"),
        None => dir.join("efivars"),
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        |cause| StorageError::Open {
            key: "firmware",
            path,
            cause,
        }
    };
    if !variables.exists() {
        let made = fs::read(fresh).and_then(|bytes| fs::write(&variables, bytes));
        made.map_err(|cause| match cause.kind() {
            io::ErrorKind::StorageFull => StorageError::Full(variables.clone()),
            _ => failed(&variables)(cause),
        })?;
    }
    let code = File::open(code).map_err(failed(code))?;
    let options = File::options().read(true).write(true).open(&variables);
    let variables = options.map_err(failed(&variables))?;
    Ok([handed.add(code), handed.add(variables)])
}
