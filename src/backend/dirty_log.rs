//! The dirty log: which pages of guest memory this back-end has written, for a migration (vhost-user
//! "Migration").
//!
//! The front-end shares a bitmap with a bit a page of 4096 bytes of guest-physical addresses. It hangs on guest memory
//! as vm-memory's bitmap, so every write that goes through a slice is marked by the slice itself; what the kernel
//! writes for us (`readv`) is marked by hand.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes of guest memory a bit stands for, whatever the host's page size.
const PAGE: u64 = 4096;

/// The bitmap that a front-end shares (SET_LOG_BASE).
#[derive(Debug)]
pub struct DirtyLog {
    mapping: MmapRegion,
    /// Where the bitmap starts in the mapping.
    offset: usize,
    len: usize,
}

/// How many bytes `file` has, asked by a call that the sandbox knows.
pub(super) fn file_len(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size as u64)
}

impl DirtyLog {
    /// Maps `len` bytes at `offset` of `file`.
    ///
    /// # Errors
    /// The file is too short for that, or can't be mapped.
    pub fn map(file: File, offset: u64, len: u64) -> io::Result<Self> {
        let end = offset.checked_add(len).filter(|_| len > 0);
        let size = file_len(&file)?;
        let Some(end) = end.filter(|end| *end <= size) else {
            let why = format!("a dirty log of {len} bytes at {offset} in a file of {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        // From the file's start, for an offset need not fall on a page.
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), end as usize);
        Ok(Self {
            mapping: mapping.map_err(io::Error::other)?,
            offset: offset as usize,
            len: len as usize,
        })
    }

    /// Marks the pages of `len` bytes at guest-physical `addr`. Pages beyond the bitmap are not the front-end's to ask for.
    fn mark(&self, addr: u64, len: usize) {
        if len == 0 {
            return;
        }
        let last = addr.saturating_add(len as u64 - 1) / PAGE;
        for page in addr / PAGE..=last {
            let byte = (page / 8) as usize;
            if byte >= self.len {
                return;
            }
            if let Ok(bits) = self.mapping.get_atomic_ref::<AtomicU8>(self.offset + byte) {
                bits.fetch_or(1 << (page % 8), Ordering::Relaxed);
            }
        }
    }
}

/// A memory region's part of the log; none while nothing is logged.
#[derive(Debug, Clone, Default)]
pub struct RegionLog {
    log: Option<Arc<DirtyLog>>,
    base: u64,
}

impl RegionLog {
    /// For the region at guest-physical `base`.
    pub fn new(log: Option<Arc<DirtyLog>>, base: u64) -> Self {
        Self { log, base }
    }
}

/// A slice's part of the log.
#[derive(Debug, Clone, Copy)]
pub struct SliceLog<'a> {
    log: Option<&'a DirtyLog>,
    base: u64,
}

impl<'a> WithBitmapSlice<'a> for RegionLog {
    type S = SliceLog<'a>;
}

impl Bitmap for RegionLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }

    /// Nobody asks a back-end; the front-end reads the bitmap itself.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> SliceLog<'_> {
        SliceLog {
            log: self.log.as_deref(),
            base: self.base + offset as u64,
        }
    }
}

impl NewBitmap for RegionLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl<'a> WithBitmapSlice<'_> for SliceLog<'a> {
    type S = SliceLog<'a>;
}

impl BitmapSlice for SliceLog<'_> {}

impl<'a> Bitmap for SliceLog<'a> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(log) = self.log {
            log.mark(self.base + offset as u64, len);
        }
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> SliceLog<'a> {
        SliceLog {
            base: self.base + offset as u64,
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_page_that_is_touched_is_marked_and_no_other() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), 8, 4).unwrap();
        let region = RegionLog::new(Some(Arc::new(log)), 4 * PAGE);
        region.mark_dirty(0, 1); // page 4
        region.mark_dirty(6 * PAGE as usize - 1, 2); // pages 9 and 10
        region.slice_at(PAGE as usize).mark_dirty(1, 0); // nothing
        region.mark_dirty(100 * PAGE as usize, 1); // beyond the bitmap
        let mut bitmap = [0; 16];
        file.read_exact_at(&mut bitmap, 0).unwrap();
        assert_eq!(bitmap[8..12], [0b0001_0000, 0b0000_0110, 0, 0]);
        assert_eq!(bitmap[..8], [0; 8]);
        assert_eq!(bitmap[12..], [0; 4]);
    }

    #[test]
    fn a_log_beyond_its_file_is_refused() {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(16).unwrap();
            file
        };
        assert!(DirtyLog::map(file(), 8, 9).is_err());
        assert!(DirtyLog::map(file(), 0, 0).is_err());
        assert!(DirtyLog::map(file(), u64::MAX, 2).is_err());
    }
}
