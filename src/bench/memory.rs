//! The memory of a pretend guest: one memfd that the back-end maps as well. Places in it are offsets, which are
//! guest-physical addresses at the same time.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Guest memory, handed out from its beginning on.
#[derive(Debug)]
pub struct Memory {
    region: MmapRegion,
    taken: usize,
}

impl Memory {
    /// Memory of `bytes`, each page of which has been written: a page that was never touched is the kernel's page of zeroes, and
    /// reads as if it were always in cache.
    ///
    /// # Errors
    /// The kernel has not so much to give.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let file = File::from(memfd_create("bench", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes as u64)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), bytes);
        let region = region.map_err(io::Error::other)?;
        let memory = Self { region, taken: 0 };
        let page = vec![0xa5; 4096];
        for at in (0..bytes).step_by(page.len()) {
            let len = page.len().min(bytes - at);
            memory.slice(at, len).copy_from(&page[..len]);
        }
        Ok(memory)
    }

    /// The next `len` bytes that nobody has taken, from a multiple of `align` on.
    ///
    /// # Panics
    /// If there are not so many: the memory is made for what is to be put there.
    pub fn take(&mut self, len: usize, align: usize) -> usize {
        let at = self.taken.next_multiple_of(align);
        self.taken = at + len;
        assert!(self.taken <= self.region.len(), "the memory is too small");
        at
    }

    /// The `len` bytes at `at`.
    ///
    /// # Panics
    /// If they are not all in it.
    pub fn slice(&self, at: usize, len: usize) -> VolatileSlice<'_> {
        self.region
            .get_slice(at, len)
            .expect("a place in the memory")
    }

    /// The little-endian number at `at`, which is even.
    ///
    /// # Panics
    /// If it is not, or not in the memory.
    pub fn load(&self, at: usize, order: Ordering) -> u16 {
        let value = self.slice(at, 2).load(0, order);
        u16::from_le(value.expect("an aligned place"))
    }

    /// Puts a little-endian number at `at`, which is even.
    ///
    /// # Panics
    /// If it is not, or not in the memory.
    pub fn store(&self, at: usize, value: u16, order: Ordering) {
        let stored = self.slice(at, 2).store(value.to_le(), 0, order);
        stored.expect("an aligned place");
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Where this process sees its beginning, which is how front-ends name rings.
    pub fn user_address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// The file behind it.
    pub fn fd(&self) -> RawFd {
        let file = self.region.file_offset().expect("it was made of a file");
        file.file().as_raw_fd()
    }
}
