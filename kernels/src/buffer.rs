//! Zeroed memory for packed data, read as f32 values or as 32-bit words that hold bf16 pairs. What the values
//! mean is the business of `kv` and `matrix`.

use bytemuck::Pod;
use memmap2::MmapMut;

/// Zeroed memory that starts on a page, so that vector loads never straddle cache lines. The operating system
/// commits its pages when they are first written, and is asked for huge ones: streaming gigabytes of weights
/// and keys through 4 KiB pages would spend its time on address translation.
pub(crate) struct Buffer {
    map: MmapMut,
    bytes: usize,
}

impl Buffer {
    /// `bytes` zero bytes, or `None` where the operating system refuses.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let map = MmapMut::map_anon(bytes.max(1)).ok()?;
        // Refused advice costs speed only.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Self { map, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn words(&self) -> &[u32] {
        bytemuck::cast_slice(&self.map[..self.bytes])
    }

    /// The memory as values of `T`: f32, or bf16 in the order of the packed pairs.
    pub(crate) fn values_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.bytes])
    }
}
