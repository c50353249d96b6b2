//! Attention over a part of the keys, and the associative merge of such partials. How a partial is
//! computed is the backends' business.
//!
//! Source: the log-sum-exp merge of Star Attention (arXiv 2411.17116, section 2.2) and of FlashAttention.

/// The shape of a [`Partial`]: `[tokens, heads, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialShape {
    /// Query tokens.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl PartialShape {
    /// Rows of the output, one per token and head.
    pub fn rows(self) -> usize {
        self.tokens * self.heads
    }
}

/// The attention of query rows over some of the keys: the normalised output and the log-sum-exp of the scores.
///
/// A row that saw no key holds output 0 and log-sum-exp `-inf`, the exact identity of [`Partial::merge`]. Between
/// [`Partial::reset`] and what fills it, a partial is *blank*: its outputs are whatever was there, and mean nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Partial {
    shape: PartialShape,
    /// Outputs, `[tokens, heads, head_dim]`.
    pub out: Vec<f32>,
    /// Natural log-sum-exp of the scaled scores, `[tokens, heads]`.
    pub lse: Vec<f32>,
}

impl Partial {
    /// The attention over no key.
    pub fn empty(shape: PartialShape) -> Self {
        let out = vec![0.0; shape.rows() * shape.head_dim];
        Self { shape, out, lse: vec![f32::NEG_INFINITY; shape.rows()] }
    }

    /// The shape, as given to [`Partial::empty`] or [`Partial::reset`].
    pub fn shape(&self) -> PartialShape {
        self.shape
    }

    /// Becomes blank, in a shape that may differ, and keeps the allocations: every row is empty, and to be filled by
    /// [`Backend::attend`](crate::Backend::attend) or [`Partial::merge`], which leave zeros in rows that stay empty.
    ///
    /// Outputs are not written: that would be a pass over as much memory as filling them.
    pub fn reset(&mut self, shape: PartialShape) {
        self.shape = shape;
        self.out.resize(shape.rows() * shape.head_dim, 0.0);
        self.lse.clear();
        self.lse.resize(shape.rows(), f32::NEG_INFINITY);
    }

    /// Folds in the attention of the same queries over other keys. Either may be blank; the sum is not.
    ///
    /// Commutative and associative up to rounding. Panics when the shapes differ.
    pub fn merge(&mut self, other: &Partial) {
        assert_eq!(self.shape, other.shape, "partials of different queries cannot be merged");
        let head_dim = self.shape.head_dim;
        for row in 0..self.shape.rows() {
            let at = row * head_dim..(row + 1) * head_dim;
            merge_row(&mut self.out[at.clone()], &mut self.lse[row], &other.out[at], other.lse[row]);
        }
    }

    /// Zeros in the rows that are empty, where filling a blank partial has passed over them.
    pub(crate) fn settle(&mut self) {
        let head_dim = self.shape.head_dim;
        for (row, lse) in self.lse.iter().enumerate() {
            if *lse == f32::NEG_INFINITY {
                self.out[row * head_dim..(row + 1) * head_dim].fill(0.0);
            }
        }
    }
}

/// Merges one row. Every path that folds partials goes through here, so they all give the same bits. Outputs of an empty row
/// are not looked at, and are zeros where two empty rows meet.
///
/// The weights are computed in f64, once per row: a long context folds thousands of segments.
#[inline(always)]
pub(crate) fn merge_row(out: &mut [f32], lse: &mut f32, other_out: &[f32], other_lse: f32) {
    if other_lse == f32::NEG_INFINITY {
        if *lse == f32::NEG_INFINITY {
            out.fill(0.0);
        }
        return;
    }
    if *lse == f32::NEG_INFINITY {
        out.copy_from_slice(other_out);
        *lse = other_lse;
        return;
    }
    let peak = f64::from(lse.max(other_lse));
    let mine = (f64::from(*lse) - peak).exp();
    let theirs = (f64::from(other_lse) - peak).exp();
    let total = mine + theirs;
    let (mine, theirs) = ((mine / total) as f32, (theirs / total) as f32);
    for (value, other) in out.iter_mut().zip(other_out) {
        *value = *value * mine + *other * theirs;
    }
    *lse = (peak + total.ln()) as f32;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: PartialShape = PartialShape { tokens: 2, heads: 2, head_dim: 8 };

    /// Scores up to ±1e4, and rows that saw no key.
    fn partials() -> impl Strategy<Value = Partial> {
        let lse = prop_oneof![1 => Just(f32::NEG_INFINITY), 6 => -1e4f32..1e4, 6 => -3f32..3.0];
        let lse = prop::collection::vec(lse, SHAPE.rows());
        (lse, prop::collection::vec(-8f32..8.0, SHAPE.rows() * SHAPE.head_dim)).prop_map(|(lse, mut out)| {
            for (row, lse) in lse.iter().enumerate().filter(|(_, lse)| **lse == f32::NEG_INFINITY) {
                debug_assert!(lse.is_infinite());
                out[row * SHAPE.head_dim..(row + 1) * SHAPE.head_dim].fill(0.0);
            }
            Partial { shape: SHAPE, out, lse }
        })
    }

    fn merged(a: &Partial, b: &Partial) -> Partial {
        let mut sum = a.clone();
        sum.merge(b);
        sum
    }

    fn assert_close(a: &Partial, b: &Partial) {
        for (a, b) in a.lse.iter().zip(&b.lse) {
            assert!(a == b || (a - b).abs() <= 1e-6 * (1.0 + a.abs()), "lse {a} and {b}");
        }
        for (a, b) in a.out.iter().zip(&b.out) {
            // The weights come from rounded log-sum-exps: at 1e4 one unit in the last place is 1e-3.
            assert!((a - b).abs() <= 3e-2, "out {a} and {b}");
        }
    }

    fn assert_tight(a: &Partial, b: &Partial) {
        assert!(a.out.iter().zip(&b.out).all(|(a, b)| (a - b).abs() <= 1e-5), "{a:?}\n{b:?}");
    }

    proptest! {
        #[test]
        fn merging_is_commutative(a in partials(), b in partials()) {
            assert_close(&merged(&a, &b), &merged(&b, &a));
            assert_tight(&merged(&a, &b), &merged(&b, &a));
        }

        #[test]
        fn merging_is_associative(a in partials(), b in partials(), c in partials()) {
            let (left, right) = (merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            assert_close(&left, &right);
            if a.lse.iter().chain(&b.lse).chain(&c.lse).all(|lse| lse.abs() < 3.0) {
                assert_tight(&left, &right);
            }
        }

        #[test]
        fn the_empty_partial_is_the_exact_identity(a in partials()) {
            for empty in [Partial::empty(SHAPE), blank(SHAPE)] {
                prop_assert_eq!(&merged(&a, &empty), &a);
                prop_assert_eq!(&merged(&empty, &a), &a);
            }
        }

        #[test]
        fn merging_never_gives_nan_and_stays_between_its_parts(a in partials(), b in partials()) {
            let sum = merged(&a, &b);
            for (at, value) in sum.out.iter().enumerate() {
                let (low, high) = (a.out[at].min(b.out[at]), a.out[at].max(b.out[at]));
                prop_assert!(*value >= low - 1e-5 && *value <= high + 1e-5);
            }
            prop_assert!(sum.lse.iter().all(|lse| !lse.is_nan()));
        }
    }

    /// What a reset leaves of a partial that held something.
    fn blank(shape: PartialShape) -> Partial {
        let mut partial = Partial::empty(SHAPE);
        partial.out.fill(f32::NAN);
        partial.lse.fill(1.0);
        partial.reset(shape);
        partial
    }

    #[test]
    fn two_empty_rows_merge_to_an_empty_row() {
        let empty = Partial::empty(SHAPE);
        for (a, b) in [(&empty, &empty), (&blank(SHAPE), &empty), (&blank(SHAPE), &blank(SHAPE))] {
            assert_eq!(merged(a, b), empty);
        }
    }

    #[test]
    fn resetting_changes_the_shape_and_forgets_everything() {
        for tokens in [1, 9] {
            let shape = PartialShape { tokens, heads: 3, head_dim: 16 };
            let mut partial = blank(shape);
            assert_eq!((partial.shape(), partial.lse.len()), (shape, shape.rows()));
            partial.settle();
            assert_eq!(partial, Partial::empty(shape));
        }
    }
}
