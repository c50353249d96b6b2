//! The instruction sets: their names, what this machine has, and the table of kernels compiled for each. The
//! kernels themselves are in `strips`, `softmax`, `quantised`, `pack` and `vector`.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::lanes::{Lanes, Plain};
use super::pack::{self, PackTile};
use super::quantised::{self, FewRows, Unpack};
use super::softmax::AttendTile;
use super::strips::Strips;
use super::{softmax, strips, vector};
use crate::KernelError;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AMX with bf16, beside AVX-512 with the same. Rounds as [`Isa::Avx512Bf16`] does.
    Amx,
    /// AVX-512 with dot products of bf16 pairs. Meeting bf16 weights or keys, activations are rounded to bf16.
    Avx512Bf16,
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA (and F16C).
    Avx2,
    /// NEON, which every aarch64 has.
    Neon,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Isa {
    /// All of them, best first.
    pub const ALL: [Isa; 6] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// What this machine can run, best first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The set that runs unless another is named: the best that keeps activations in f32. Rounding them to bf16 is faster
    /// on some machines, but makes of the last bits in which the merges of different placements differ a rounding to the
    /// other side here and there, and then an answer could depend on where blocks lie.
    pub fn preferred() -> Isa {
        let exact = |isa: &Isa| isa.is_available() && !isa.rounds_activations();
        Self::ALL.into_iter().find(exact).unwrap_or(Isa::Portable)
    }

    /// The set that encodes contexts unless another is named. What is encoded does not depend on where blocks lie, so
    /// rounding does no harm there.
    pub fn preferred_for_encoding() -> Isa {
        let best = Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable);
        match best {
            // Processors that have AMX, and keep it from us, multiply bf16 pairs no faster than they multiply f32.
            Isa::Avx512Bf16 if Self::has_tiles() => Self::preferred(),
            best => best,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn has_tiles() -> bool {
        amx::is_present()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn has_tiles() -> bool {
        false
    }

    /// Whether activations are rounded to bf16 where they meet bf16 weights, keys or values.
    pub fn rounds_activations(self) -> bool {
        matches!(self, Isa::Amx | Isa::Avx512Bf16)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        // Every processor with AVX2 and FMA has F16C too.
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        match self {
            Isa::Amx => Isa::Avx512Bf16.is_available() && amx::is_available(),
            Isa::Avx512Bf16 => {
                Isa::Avx512.is_available()
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
            }
            Isa::Avx512 => avx2 && is_x86_feature_detected!("avx512f"),
            Isa::Avx2 => avx2,
            Isa::Neon => false,
            Isa::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        match self {
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => false,
            // Part of the architecture, and of every target that has a standard library.
            Isa::Neon => cfg!(target_arch = "aarch64"),
            Isa::Portable => true,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Isa::Amx => "amx",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        })
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let known = "amx, avx512bf16, avx512, avx2, neon, portable";
        let found = Self::ALL.into_iter().find(|isa| isa.to_string() == name);
        found.ok_or_else(|| KernelError::UnknownName { what: "instruction set", name: name.into(), known })
    }
}

/// The kernels compiled for one instruction set. A value exists only where the machine has that set.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    table: &'static Table,
}

struct Table {
    /// Whether products of bf16 pairs are one instruction.
    dots: bool,
    /// Whether products of bf16 pairs run on AMX tiles.
    tiles: bool,
    strips: unsafe fn(Strips<'_>),
    /// Whether `few_rows` is there.
    has_few_rows: bool,
    few_rows: unsafe fn(FewRows<'_>),
    unpack: unsafe fn(Unpack<'_>),
    attend: unsafe fn(AttendTile<'_>),
    round: unsafe fn(&[f32], &mut [u32]),
    scale: unsafe fn(&mut [f32], f32),
    widen: unsafe fn(&[u32], usize, &mut [f32]),
    widen_bytes: unsafe fn(&[i8], &mut [f32]),
    pair_bytes: unsafe fn(&[i8], usize, &mut [u32]),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    swiglu: unsafe fn(&mut [f32], &[f32]),
    rotate: unsafe fn(&mut [f32], &[f32], &[f32]),
    pack: unsafe fn(PackTile<'_>),
}

/// Calls a kernel of the table.
macro_rules! call {
    ($kernels:ident.$kernel:ident($($argument:expr),*)) => {
        // SAFETY: `Kernels::new` checked that the machine has the instruction set of the table; the kernels
        // check their slices themselves.
        unsafe { ($kernels.table.$kernel)($($argument),*) }
    };
}

impl Kernels {
    /// The kernels for `isa`.
    ///
    /// Fails where the machine lacks it.
    pub(super) fn new(isa: Isa) -> Result<Self, KernelError> {
        if !isa.is_available() {
            let available: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
            return Err(KernelError::UnsupportedIsa {
                wanted: isa.to_string(),
                available: available.join(", "),
            });
        }
        let table = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &amx_tiles::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &avx512bf16::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::TABLE,
            _ => &portable::TABLE,
        };
        Ok(Self { table })
    }

    /// See [`Strips`].
    pub(super) fn strips(self, job: Strips<'_>) {
        call!(self.strips(job))
    }

    /// The most rows of a [`FewRows`].
    pub(super) fn most_few_rows(self) -> usize {
        if self.table.has_few_rows { quantised::MOST_FEW_ROWS } else { 0 }
    }

    /// See [`FewRows`].
    pub(super) fn few_rows(self, job: FewRows<'_>) {
        call!(self.few_rows(job))
    }

    /// See [`Unpack`].
    pub(super) fn unpack(self, job: Unpack<'_>) {
        call!(self.unpack(job))
    }

    /// Whether bf16 is to be met in bf16: dot products of its pairs are one instruction.
    pub(super) fn dots(self) -> bool {
        self.table.dots
    }

    /// Whether products of bf16 pairs run on AMX tiles.
    pub(super) fn tiles(self) -> bool {
        self.table.tiles
    }

    /// See [`softmax::attend`].
    pub(super) fn attend(self, job: AttendTile<'_>) {
        call!(self.attend(job))
    }

    /// See [`vector::round`].
    pub(super) fn round(self, x: &[f32], out: &mut [u32]) {
        call!(self.round(x, out))
    }

    /// See [`vector::scale`].
    pub(super) fn scale(self, x: &mut [f32], factor: f32) {
        call!(self.scale(x, factor))
    }

    /// See [`vector::widen`].
    pub(super) fn widen(self, pairs: &[u32], width: usize, out: &mut [f32]) {
        call!(self.widen(pairs, width, out))
    }

    /// See [`vector::widen_bytes`].
    pub(super) fn widen_bytes(self, bytes: &[i8], out: &mut [f32]) {
        call!(self.widen_bytes(bytes, out))
    }

    /// See [`vector::pair_bytes`].
    pub(super) fn pair_bytes(self, bytes: &[i8], width: usize, out: &mut [u32]) {
        call!(self.pair_bytes(bytes, width, out))
    }

    /// See [`vector::rms_norm`].
    pub(super) fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        call!(self.rms_norm(x, weight, eps, out))
    }

    /// See [`vector::swiglu`].
    pub(super) fn swiglu(self, gate: &mut [f32], up: &[f32]) {
        call!(self.swiglu(gate, up))
    }

    /// See [`pack::rotate`].
    pub(super) fn rotate(self, heads: &mut [f32], cos: &[f32], sin: &[f32]) {
        call!(self.rotate(heads, cos, sin))
    }

    /// See [`pack::pack`].
    pub(super) fn pack(self, job: PackTile<'_>) {
        call!(self.pack(job))
    }
}

/// Compiles every kernel in registers of `$lanes`, `$panel` of them side by side, with the given features on. A set
/// that only adds instructions for pairs leaves all else to the `$base` it stands beside: compiling the same loops
/// again took minutes.
macro_rules! compile {
    ($module:ident $(beside $base:ident)?, $lanes:ty, $panel:literal, $(#[$features:meta])?) => {
        mod $module {
            use super::*;

            pub(super) static TABLE: Table = Table {
                dots: <$lanes as Lanes>::DOTS,
                tiles: <$lanes as Lanes>::TILES,
                strips,
                has_few_rows: quantised::has_few_rows::<$lanes>(),
                few_rows,
                unpack,
                attend,
                round,
                scale,
                widen,
                widen_bytes,
                pair_bytes,
                rms_norm,
                swiglu,
                rotate,
                pack,
            };

            $(#[$features])?
            pub(super) fn strips(job: Strips<'_>) {
                $(
                    if !job.is_for::<$lanes>() {
                        return super::$base::strips(job);
                    }
                )?
                strips::run::<$lanes, $panel>(job)
            }
            $(#[$features])?
            fn few_rows(job: FewRows<'_>) {
                quantised::few_rows::<$lanes, $panel>(job)
            }
            $(#[$features])?
            fn unpack(job: Unpack<'_>) {
                quantised::unpack::<$lanes>(job)
            }
            $(#[$features])?
            pub(super) fn attend(job: AttendTile<'_>) {
                $(
                    if !job.is_for::<$lanes>() {
                        return super::$base::attend(job);
                    }
                )?
                softmax::attend::<$lanes, $panel>(job)
            }
            $(#[$features])?
            fn round(x: &[f32], out: &mut [u32]) {
                vector::round::<$lanes>(x, out)
            }
            $(#[$features])?
            fn scale(x: &mut [f32], factor: f32) {
                vector::scale::<$lanes>(x, factor)
            }
            $(#[$features])?
            fn widen(pairs: &[u32], width: usize, out: &mut [f32]) {
                vector::widen::<$lanes>(pairs, width, out)
            }
            $(#[$features])?
            fn widen_bytes(bytes: &[i8], out: &mut [f32]) {
                vector::widen_bytes::<$lanes>(bytes, out)
            }
            $(#[$features])?
            fn pair_bytes(bytes: &[i8], width: usize, out: &mut [u32]) {
                vector::pair_bytes::<$lanes>(bytes, width, out)
            }
            $(#[$features])?
            fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                vector::rms_norm::<$lanes>(x, weight, eps, out)
            }
            $(#[$features])?
            fn swiglu(gate: &mut [f32], up: &[f32]) {
                vector::swiglu::<$lanes>(gate, up)
            }
            $(#[$features])?
            fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
                pack::rotate(heads, cos, sin)
            }
            $(#[$features])?
            fn pack(job: PackTile<'_>) {
                pack::pack(job)
            }
        }
    };
}

// Panels: as many registers as leave room for MICRO_ROWS rows of sums, of 32, of 16, with NEON of 32 in halves, and of
// 16 in halves.
#[cfg(target_arch = "x86_64")]
compile!(
    amx_tiles beside avx512bf16,
    super::super::x86::Avx512<true, true>,
    4,
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16,avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
compile!(
    avx512bf16 beside avx512,
    super::super::x86::Avx512<true, false>,
    4,
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16,avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
compile!(avx512, super::super::x86::Avx512<false, false>, 4, #[target_feature(enable = "avx512f,avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
compile!(avx2, super::super::x86::Avx2<false>, 2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
compile!(neon, super::super::neon::Neon, 2, #[target_feature(enable = "neon")]);
compile!(portable, Plain, 1,);
