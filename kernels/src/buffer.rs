//! Zeroed memory that starts on a cache line, read as f32 values or as 32-bit words that hold bf16 pairs.
//! What the values mean is the business of `kv` and `matrix`.

use bytemuck::{Pod, Zeroable};

/// One cache line: the unit of allocation, so that vector loads never straddle two lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Zeroed, 64-byte aligned memory. The operating system commits its pages when they are first written.
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// At least `bytes` zero bytes, or `None` where the allocator refuses.
    pub(crate) fn zeroed(bytes: usize) -> Option<Self> {
        let lines = bytemuck::allocation::try_zeroed_vec(bytes.div_ceil(size_of::<Line>())).ok()?;
        Some(Self { lines })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    pub(crate) fn words(&self) -> &[u32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The memory as values of `T`: f32, or bf16 in the order of the packed pairs.
    pub(crate) fn values_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
