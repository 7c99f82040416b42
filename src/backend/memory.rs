//! Guest memory: the regions a front-end shares (SET_MEM_TABLE), mapped, and its addresses translated.
//!
//! Two address spaces meet here. Descriptors hold guest-physical addresses, which index [`GuestMemory::mem`];
//! vring addresses come in the front-end's own address space and go through [`GuestMemory::translate`].
//!
//! A front-end may cut its files short while they are mapped. Nothing can be read or written then, and the kernel ends the process
//! by SIGBUS; [`report_loss`] has it say why. Whoever watches over it starts the next one, which refuses such memory.
//!
//! May touch: the memory files it is given. This file is a home of unsafe code: one region made from a part of
//! a mapping, a hint to the CPU, and a handler for SIGBUS.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion, VolatileSlice,
};

use super::dirty_log::{DirtyLog, RegionLog, SliceLog, file_len};

/// Has this process say why it ends when guest memory is gone under it. It ends all the same.
///
/// # Errors
/// Those of `sigaction`.
pub fn report_loss() -> io::Result<()> {
    const LAST_WORDS: &[u8] =
        b"guest memory is gone: the front-end has cut its file short, and this process can only end\n";
    let report = || {
        // There is nobody to tell of what fails here.
        let _ = rustix::io::write(rustix::stdio::stderr(), LAST_WORDS);
        let _ = signal_hook::low_level::emulate_default_handler(libc::SIGBUS);
    };
    // SAFETY: the action makes one system call without libc in between, and calls a function that is made for signal handlers;
    // it allocates nothing and takes no lock.
    unsafe { signal_hook::low_level::register(libc::SIGBUS, report) }?;
    Ok(())
}

/// Guest memory by guest-physical address.
pub type Mem = GuestMemoryMmap<RegionLog>;

/// A piece of guest memory. Writes through it are marked in the dirty log.
pub type Slice<'m> = VolatileSlice<'m, SliceLog<'m>>;

/// Guest memory by address, with the region that was asked for last at hand: the next address is in the same one, nearly always.
#[derive(Debug, Clone)]
pub struct Finder<'m> {
    mem: &'m Mem,
    last: Cell<Option<&'m GuestRegionMmap<RegionLog>>>,
}

impl<'m> Finder<'m> {
    /// Of all of `mem`.
    pub fn new(mem: &'m Mem) -> Self {
        Self {
            mem,
            last: Cell::new(None),
        }
    }

    /// The memory itself.
    pub fn mem(&self) -> &'m Mem {
        self.mem
    }

    /// The `len` bytes at `addr`; none if they are not all in one region.
    pub fn slice(&self, addr: GuestAddress, len: usize) -> Option<Slice<'m>> {
        self.slice_at_hand(addr, len).or_else(|| {
            self.last.set(self.mem.find_region(addr));
            self.slice_at_hand(addr, len)
        })
    }

    /// As [`Self::slice`], but none also if they are in another region than the one at hand.
    #[inline(always)]
    pub fn slice_at_hand(&self, addr: GuestAddress, len: usize) -> Option<Slice<'m>> {
        let region = self.last.get()?;
        let offset = addr.0.checked_sub(region.start_addr().0)?;
        region.get_slice(MemoryRegionAddress(offset), len).ok()
    }
}

/// Has the CPU fetch `slice`, which a guest's CPU has written, for whoever reads it soon: a hint. Of one that is longer than an
/// Ethernet frame the rest is fetched in time by itself, as it is read in order.
pub fn prefetch(slice: &Slice<'_>) {
    #[cfg(target_arch = "x86_64")]
    prefetch_lines::<{ std::arch::x86_64::_MM_HINT_T0 }>(slice);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

/// As [`prefetch`], for whoever writes there soon: a guest's CPU has to give these bytes up.
pub fn prefetch_for_write(slice: &Slice<'_>) {
    #[cfg(target_arch = "x86_64")]
    prefetch_lines::<{ std::arch::x86_64::_MM_HINT_ET0 }>(slice);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

#[cfg(target_arch = "x86_64")]
fn prefetch_lines<const HINT: i32>(slice: &Slice<'_>) {
    const LINE: usize = 64;
    const LINES: usize = 24; // a whole frame of 1514 bytes: faster than its first four (`ringtap bench --work tx --size 1514`)
    for at in (0..slice.len().min(LINES * LINE)).step_by(LINE) {
        let line = slice.ptr_guard().as_ptr().wrapping_add(at);
        // SAFETY: a prefetch of any address has no effect that a program could see.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(line.cast()) };
    }
}

/// Why a memory table can't be used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region is empty or its end wraps around.
    #[error("memory region {0} is empty or wraps around")]
    Bounds(usize),
    /// A region lies beyond its file, so that touching it would kill the process.
    #[error("memory region {index} needs {needed} bytes of a file of {size}")]
    Truncated {
        /// Which region of the table.
        index: usize,
        /// Offset and length of the region together.
        needed: u64,
        /// The file's length.
        size: u64,
    },
    /// The file can't be mapped, or is none.
    #[error("memory region {index} can't be mapped")]
    Map {
        /// Which region of the table.
        index: usize,
        /// What the kernel or vm-memory said.
        #[source]
        cause: io::Error,
    },
    /// Regions overlap in guest-physical addresses.
    #[error("memory regions overlap: {0}")]
    Overlap(String),
}

/// One region of a memory table, as a front-end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where the front-end sees it.
    pub user_addr: u64,
    /// Where it starts in its file.
    pub offset: u64,
}

impl Region {
    /// Whether both lie in the same place: what REM_MEM_REG names a region by.
    pub fn is_at(&self, other: &Self) -> bool {
        let place = |region: &Self| (region.guest_addr, region.user_addr, region.len);
        place(self) == place(other)
    }

    /// The bytes of the file that are needed; `None` where the region is empty or wraps around.
    fn file_len(&self) -> Option<u64> {
        let ends =
            [self.guest_addr, self.user_addr, self.offset].map(|at| at.checked_add(self.len));
        match ends {
            [Some(_), Some(_), Some(end)] if self.len > 0 => Some(end),
            _ => None,
        }
    }
}

/// A front-end's memory table, mapped.
#[derive(Debug)]
pub struct GuestMemory {
    mem: Mem,
    windows: Vec<Window>,
    /// What the regions of `mem` point into: dropped after it.
    _mappings: Vec<MmapRegion>,
}

/// Where a region lies in the front-end's address space.
#[derive(Debug)]
struct Window {
    user_addr: u64,
    guest_addr: u64,
    len: u64,
}

impl GuestMemory {
    /// Maps `regions`, each with its file; what is written there is marked in `log`.
    ///
    /// # Errors
    /// See [`MemoryError`]; nothing stays mapped then.
    pub fn map(
        regions: &[(Region, Arc<File>)],
        log: Option<&Arc<DirtyLog>>,
    ) -> Result<Self, MemoryError> {
        let mut mappings = Vec::with_capacity(regions.len());
        let mut mapped = Vec::with_capacity(regions.len());
        for (index, (region, file)) in regions.iter().enumerate() {
            let (mapping, part) = map_region(index, region, file, log)?;
            mappings.push(mapping);
            mapped.push(part);
        }
        mapped.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(region).0);
        let mem =
            Mem::from_regions(mapped).map_err(|cause| MemoryError::Overlap(cause.to_string()))?;
        let windows = regions.iter().map(|(region, _)| Window {
            user_addr: region.user_addr,
            guest_addr: region.guest_addr,
            len: region.len,
        });
        Ok(Self {
            mem,
            windows: windows.collect(),
            _mappings: mappings,
        })
    }

    /// The memory by guest-physical address.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// The guest-physical address of a front-end address; `None` outside the table.
    pub fn translate(&self, user_addr: u64) -> Option<GuestAddress> {
        self.windows.iter().find_map(|window| {
            let offset = user_addr.checked_sub(window.user_addr)?;
            (offset < window.len).then(|| GuestAddress(window.guest_addr + offset))
        })
    }
}

/// Maps one region; returns the mapping that owns the pages, and the part of it that is the region.
///
/// The file is mapped from its start, for an offset need not fall on a boundary of its (huge) pages.
fn map_region(
    index: usize,
    region: &Region,
    file: &Arc<File>,
    log: Option<&Arc<DirtyLog>>,
) -> Result<(MmapRegion, GuestRegionMmap<RegionLog>), MemoryError> {
    let needed = region.file_len().ok_or(MemoryError::Bounds(index))?;
    let failed = |cause: io::Error| MemoryError::Map { index, cause };
    let size = file_len(file).map_err(failed)?;
    if needed > size {
        return Err(MemoryError::Truncated {
            index,
            needed,
            size,
        });
    }
    let mapping: MmapRegion =
        MmapRegion::from_file(FileOffset::from_arc(Arc::clone(file), 0), needed as usize)
            .map_err(|cause| failed(io::Error::other(cause)))?;
    // SAFETY: the range [offset, offset + size) lies within `mapping`, which is `needed` bytes long, and
    // `mapping` is kept in GuestMemory for as long as the region is, unmoved by being stored (it owns an address).
    let part = unsafe {
        MmapRegionBuilder::new_with_bitmap(
            region.len as usize,
            RegionLog::new(log.cloned(), region.guest_addr),
        )
        .with_raw_mmap_pointer(mapping.as_ptr().add(region.offset as usize))
    }
    .with_mmap_prot(mapping.prot())
    .with_mmap_flags(mapping.flags())
    .build()
    .map_err(|cause| failed(io::Error::other(cause)))?;
    let part = GuestRegionMmap::new(part, GuestAddress(region.guest_addr))
        .ok_or(MemoryError::Bounds(index))?;
    Ok((mapping, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    const PAGE: u64 = 4096;

    fn region(guest_addr: u64, len: u64, user_addr: u64, offset: u64) -> Region {
        Region {
            guest_addr,
            len,
            user_addr,
            offset,
        }
    }

    fn file(pages: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file
    }

    #[test]
    fn a_region_starts_at_its_offset_in_the_file() {
        let mut backing = file(3);
        backing.write_all(&[b'x'; 2 * PAGE as usize]).unwrap();
        backing.write_all(b"here").unwrap();
        let shared = region(0x10000, PAGE, 0x7000_0000, 2 * PAGE);
        let memory = GuestMemory::map(&[(shared, backing.into())], None).unwrap();
        let mut read = [0; 4];
        memory
            .mem()
            .read_slice(&mut read, GuestAddress(0x10000))
            .unwrap();
        assert_eq!(&read, b"here");
    }

    #[test]
    fn front_end_addresses_translate_within_their_region_only() {
        let low = region(0, PAGE, 0x7000_0000, 0);
        let high = region(0x10_0000, PAGE, 0x9000_0000, 0);
        let memory =
            GuestMemory::map(&[(high, file(1).into()), (low, file(1).into())], None).unwrap();
        assert_eq!(memory.translate(0x7000_0010), Some(GuestAddress(0x10)));
        assert_eq!(memory.translate(0x9000_0fff), Some(GuestAddress(0x10_0fff)));
        assert_eq!(memory.translate(0x7000_1000), None);
        assert_eq!(memory.translate(0x6fff_ffff), None);
    }

    #[test]
    fn a_file_too_short_for_its_region_is_refused() {
        let shared = region(0, 2 * PAGE, 0, 0);
        let refused = GuestMemory::map(&[(shared, file(1).into())], None);
        assert!(
            matches!(refused, Err(MemoryError::Truncated { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn empty_wrapping_and_overlapping_regions_are_refused() {
        let empty = region(0, 0, 0, 0);
        assert!(matches!(
            GuestMemory::map(&[(empty, file(1).into())], None),
            Err(MemoryError::Bounds(0))
        ));
        let wraps = region(u64::MAX, PAGE, 0, 0);
        assert!(matches!(
            GuestMemory::map(&[(wraps, file(1).into())], None),
            Err(MemoryError::Bounds(0))
        ));
        let a = region(0, 2 * PAGE, 0, 0);
        let b = region(PAGE, PAGE, 0x9000_0000, 0);
        let overlap = GuestMemory::map(&[(a, file(2).into()), (b, file(1).into())], None);
        assert!(
            matches!(overlap, Err(MemoryError::Overlap(_))),
            "{overlap:?}"
        );
    }

    #[test]
    fn a_descriptor_that_is_no_memory_is_refused() {
        let shared = region(0, PAGE, 0, 0);
        let socket: std::os::fd::OwnedFd = std::os::unix::net::UnixStream::pair().unwrap().0.into();
        assert!(GuestMemory::map(&[(shared, File::from(socket).into())], None).is_err());
    }
}
