//! Weights that meet the same inputs, and how their panels follow each other: what lets several products be one region of
//! parallel work. How the panels are multiplied is decided in `product` and `quantised`.

use std::ops::Range;

use super::isa::Kernels;
use super::shared::{Block, SharedRows};
use crate::matrix::ROWS_PER_PANEL;
use crate::{Matrix, Product};

/// A weight and where the products with it go, `[m, rows]`.
pub(super) struct Target<'a> {
    pub(super) weight: &'a Matrix,
    pub(super) out: SharedRows<'a>,
}

impl<'a> Target<'a> {
    pub(super) fn new(weight: &'a Matrix, out: &'a mut [f32]) -> Self {
        Self { weight, out: SharedRows::new(out) }
    }

    pub(super) fn of(product: &'a mut Product<'_>) -> Self {
        Self::new(product.weight, product.out)
    }
}

/// The panels of some weights with equally many columns, in one order.
#[derive(Clone, Copy)]
pub(super) enum Targets<'a> {
    /// One weight's after the other's.
    Apart(&'a [Target<'a>]),
    /// `silu(gate) * up`: panels of two weights in turns, the products with the second only on their way.
    Gated { gate: &'a Target<'a>, up: &'a Matrix },
}

impl<'a> Targets<'a> {
    /// Panels of all weights.
    pub(super) fn panels(&self) -> usize {
        match self {
            Self::Apart(targets) => {
                targets.iter().map(|target| target.weight.rows().div_ceil(ROWS_PER_PANEL)).sum()
            }
            Self::Gated { gate, .. } => 2 * gate.weight.rows().div_ceil(ROWS_PER_PANEL),
        }
    }

    /// Rows of all weights.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Apart(targets) => targets.iter().map(|target| target.weight.rows()).sum(),
            Self::Gated { gate, up } => gate.weight.rows() + up.rows(),
        }
    }

    /// The weight that the others are like.
    pub(super) fn first(&self) -> Option<&'a Matrix> {
        match self {
            Self::Apart(targets) => targets.first().map(|target| target.weight),
            Self::Gated { gate, .. } => Some(gate.weight),
        }
    }

    /// What the number of panels of an item has to be a multiple of.
    pub(super) fn inseparable(&self) -> usize {
        match self {
            Self::Apart(_) => 1,
            Self::Gated { .. } => 2,
        }
    }

    /// The weight of panel `place`, and which of its panels that is.
    pub(super) fn panel(&self, place: usize) -> (&'a Matrix, usize) {
        match self {
            Self::Gated { up, .. } if place % 2 == 1 => (up, place / 2),
            Self::Gated { gate, .. } => (gate.weight, place / 2),
            Self::Apart(targets) => {
                let (target, panel) = located(targets, place);
                (target.weight, panel)
            }
        }
    }

    /// The place of the products of input rows `rows` with panel `place`, where they may be written as they are: with a whole
    /// panel, whose products nothing else is made of.
    ///
    /// # Safety
    /// No other borrow of these is alive.
    pub(super) unsafe fn direct(&self, place: usize, rows: &Range<usize>) -> Option<Block<'a>> {
        let Self::Apart(targets) = *self else { return None };
        let (target, panel) = located(targets, place);
        let whole = (panel + 1) * ROWS_PER_PANEL <= target.weight.rows();
        // SAFETY: the caller's promise.
        whole.then(|| unsafe { place_of(target, panel, rows) })
    }

    /// Takes the products of input rows `rows` with panel `place`, the last `[rows, 64]` of `sums`, to their place. Before them are
    /// those with the panels before.
    ///
    /// # Safety
    /// No other borrow of the place is alive.
    pub(super) unsafe fn deliver(
        &self,
        kernels: Kernels,
        place: usize,
        rows: &Range<usize>,
        sums: &mut [f32],
    ) {
        let len = rows.len() * ROWS_PER_PANEL;
        let (before, own) = sums.split_at_mut(sums.len() - len);
        let (target, panel, values) = match *self {
            Self::Apart(targets) => {
                let (target, panel) = located(targets, place);
                (target, panel, own)
            }
            // Its turn comes with the panel of the other weight.
            Self::Gated { .. } if place.is_multiple_of(2) => return,
            Self::Gated { gate, .. } => {
                let start = before.len() - len;
                let values = &mut before[start..];
                kernels.swiglu(values, own);
                (gate, place / 2, values)
            }
        };
        // SAFETY: the caller's promise.
        let mut to = unsafe { place_of(target, panel, rows) };
        to.copy_from(&Block::new(values, rows.len(), ROWS_PER_PANEL, ROWS_PER_PANEL));
    }
}

/// The place of the products of input rows `rows` with a panel: its rows of the weight, up to 64.
///
/// # Safety
/// No other borrow of these is alive.
unsafe fn place_of<'a>(target: &'a Target<'a>, panel: usize, rows: &Range<usize>) -> Block<'a> {
    let (stride, column) = (target.weight.rows(), panel * ROWS_PER_PANEL);
    let width = (stride - column).min(ROWS_PER_PANEL);
    // SAFETY: the caller's promise.
    unsafe { target.out.block(rows.start * stride + column, rows.len(), width, stride) }
}

fn located<'a>(targets: &'a [Target<'a>], place: usize) -> (&'a Target<'a>, usize) {
    let mut panel = place;
    for target in targets {
        let panels = target.weight.rows().div_ceil(ROWS_PER_PANEL);
        if panel < panels {
            return (target, panel);
        }
        panel -= panels;
    }
    panic!("panel {place} is beyond all weights");
}
