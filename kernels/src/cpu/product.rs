//! Products with packed weights: how the work is cut into items for the threads.

use std::cell::RefCell;
use std::ops::Range;

use super::isa::Kernels;
use super::micro::MICRO_ROWS;
use super::shared::{Block, SharedRows};
use super::strips::{Lines, Strips, TILE_ROWS};
use super::targets::Targets;
use crate::matrix::ROWS_PER_PANEL;
use crate::pool::Pool;
use crate::{Matrix, WeightFormat};

/// Lines of a panel that all strips pass before the next lines' turn: 32 KiB, which stay in the first-level cache.
const LINES_PER_PASS: usize = 128;

/// Bytes of packed inputs that all panels of an item pass before the next ones' turn: a quarter of a second-level cache
/// of 2 MiB, in which they wait for the next panel, beside the sums of all panels of the item.
const INPUT_BYTES_PER_BLOCK: usize = 1 << 19;

/// Input rows that are packed at once: what bounds the memory for them. More are taken in equal parts.
const MOST_ROWS: usize = 128 * MICRO_ROWS;

/// Panels of one item, which share the loads of the inputs' blocks: fewer where there are many threads.
const PANELS_PER_ITEM: usize = 4;

/// Items per thread that leave room for evening out.
const ITEMS_PER_THREAD: usize = 4;

/// Rows of an item where there are fewer panels than threads could take: whole strips of six rows and of tiles.
const LEAST_ROWS_PER_ITEM: usize = 8 * MICRO_ROWS;

/// From this many input rows on, bf16 lines are widened once for all rows rather than once per six. Both ways
/// compute the same bits.
pub(super) const WIDEN_FROM_ROWS: usize = 13;

/// What packing one value is taken to cost when deciding whether threads are worth waking.
const FLOPS_PER_PACKED: usize = 4;

thread_local! {
    /// The calling thread's packed inputs.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A thread's sums of several passes, and its widened lines.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The products of `x` `[m, cols]` with packed weights of one format and one number of columns.
pub(super) fn matmuls(kernels: Kernels, pool: &Pool, x: &[f32], m: usize, targets: Targets<'_>) {
    let Some(weight) = targets.first() else { return };
    let part = m.div_ceil(m.div_ceil(MOST_ROWS).max(1)).next_multiple_of(LEAST_ROWS_PER_ITEM);
    for start in (0..m).step_by(part.max(1)) {
        let rows = start..m.min(start + part);
        let x = &x[start * weight.cols()..rows.end * weight.cols()];
        Product::new(kernels, pool, rows, weight, targets).run(x);
    }
}

/// Products with packed weights. The depth is cut into passes: the inputs are packed as `[passes][strips][rows of a
/// strip][steps of the pass]` once, and then meet panel after panel.
struct Product<'a> {
    kernels: Kernels,
    pool: &'a Pool,
    targets: Targets<'a>,
    format: WeightFormat,
    cols: usize,
    /// Rows of the outputs.
    range: Range<usize>,
    /// How many these are.
    m: usize,
    /// Whether inputs are rounded to bf16, in words of pairs.
    rounds: bool,
    /// Rows of a strip: six, or a tile's.
    strip_rows: usize,
    /// Values or words of an input row.
    steps: usize,
    /// Of these, what meets a line of the weight.
    steps_per_line: usize,
    /// Steps of a pass.
    pass: usize,
}

impl<'a> Product<'a> {
    fn new(
        kernels: Kernels,
        pool: &'a Pool,
        range: Range<usize>,
        weight: &Matrix,
        targets: Targets<'a>,
    ) -> Self {
        let (format, cols, m) = (weight.format(), weight.cols(), range.len());
        let bf16 = format == WeightFormat::Bf16;
        let rounds = bf16 && kernels.dots();
        let steps = if rounds { cols.div_ceil(2) } else { cols };
        let strip_rows = if rounds && kernels.tiles() { TILE_ROWS } else { MICRO_ROWS };
        let steps_per_line = if bf16 && !rounds { 2 } else { 1 };
        // A lone strip passes the whole panel at once: the sums never leave the registers.
        let pass = if m <= strip_rows { steps.max(1) } else { LINES_PER_PASS * steps_per_line };
        Self {
            kernels,
            pool,
            targets,
            format,
            cols,
            range,
            m,
            rounds,
            strip_rows,
            steps,
            steps_per_line,
            pass,
        }
    }

    fn run(&self, x: &[f32]) {
        PACKED.with_borrow_mut(|packed| {
            let len = self.strips() * self.strip_rows * self.steps;
            let packed = aligned(packed, len);
            self.pack(x, packed);
            self.multiply(packed);
        });
    }

    fn strips(&self) -> usize {
        self.m.div_ceil(self.strip_rows)
    }

    fn passes(&self) -> usize {
        self.steps.div_ceil(self.pass).max(1)
    }

    /// The steps of a pass.
    fn steps_of(&self, pass: usize) -> Range<usize> {
        pass * self.pass..self.steps.min((pass + 1) * self.pass)
    }

    /// Where a strip's piece of a pass starts among the packed inputs.
    fn start_of(&self, strip: usize, steps: &Range<usize>) -> usize {
        (steps.start * self.strips() + strip * steps.len()) * self.strip_rows
    }

    /// Copies the inputs to where the strips want them, or rounds them there.
    fn pack(&self, x: &[f32], packed: &mut [f32]) {
        let cols = self.cols;
        let flops = FLOPS_PER_PACKED * packed.len();
        let packed = SharedRows::new(packed);
        self.pool.run(self.strips(), flops, |strip| {
            for pass in 0..self.passes() {
                let steps = self.steps_of(pass);
                for row in 0..(self.m - strip * self.strip_rows).min(self.strip_rows) {
                    let x = &x[(strip * self.strip_rows + row) * cols..][..cols];
                    let at = self.start_of(strip, &steps) + row * steps.len();
                    // SAFETY: every strip, pass and row has its own place.
                    let packed = unsafe { packed.row(at, steps.len()) };
                    if self.rounds {
                        let x = &x[2 * steps.start..cols.min(2 * steps.end)];
                        self.kernels.round(x, bytemuck::cast_slice_mut(packed));
                    } else {
                        packed.copy_from_slice(&x[steps.clone()]);
                    }
                }
            }
        });
    }

    fn multiply(&self, packed: &[f32]) {
        let panels = self.targets.panels();
        let wanted = if self.pool.threads() == 1 { 1 } else { ITEMS_PER_THREAD * self.pool.threads() };
        // The inputs of a lone strip are next to nothing: it shares none of their loads.
        let most = if self.m <= self.strip_rows { 1 } else { PANELS_PER_ITEM };
        let group = (panels / wanted).clamp(1, most).next_multiple_of(self.targets.inseparable());
        let groups = panels.div_ceil(group);
        let parts = wanted.div_ceil(groups.max(1)).clamp(1, self.m.div_ceil(LEAST_ROWS_PER_ITEM));
        let part_rows = self.m.div_ceil(parts).next_multiple_of(LEAST_ROWS_PER_ITEM);
        let parts = self.m.div_ceil(part_rows);
        self.pool.run(groups * parts, 2 * self.m * self.targets.rows() * self.cols, |item| {
            let (group_index, part) = (item / parts, item % parts);
            let panels = group_index * group..panels.min((group_index + 1) * group);
            let rows = part * part_rows..self.m.min((part + 1) * part_rows);
            self.run_item(packed, panels, rows);
        });
    }

    /// Some panels with some of the input rows. Blocks of passes whose inputs fit a cache meet one panel after the other;
    /// the sums wait side by side, since in the output, whose rows lie far apart, they would displace each other from the
    /// caches.
    fn run_item(&self, packed: &[f32], panels: Range<usize>, part: Range<usize>) {
        let (first, count) = (part.start, part.len());
        let rows = self.range.start + part.start..self.range.start + part.end;
        let (block, len) =
            ((INPUT_BYTES_PER_BLOCK / (count * self.pass * size_of::<f32>())).max(1), count * ROWS_PER_PANEL);
        SCRATCH.with_borrow_mut(|(sums, widened)| {
            let sums = aligned(sums, panels.len() * len);
            for block_start in (0..self.passes()).step_by(block) {
                let passes = block_start..self.passes().min(block_start + block);
                for (index, place) in panels.clone().enumerate() {
                    if self.passes() == 1 {
                        // SAFETY: items are distinct pairs of panels and rows, so their places are apart; this borrow
                        // ends before the item's next one.
                        if let Some(target) = unsafe { self.targets.direct(place, &rows) } {
                            self.meet(packed, first, 0, place, target, widened);
                            continue;
                        }
                    }
                    let sums = &mut sums[..(index + 1) * len];
                    let mut own = Block::new(&mut sums[index * len..], count, ROWS_PER_PANEL, ROWS_PER_PANEL);
                    for pass in passes.clone() {
                        self.meet(packed, first, pass, place, own.reborrow(), widened);
                    }
                    if passes.end == self.passes() {
                        // SAFETY: as above.
                        unsafe { self.targets.deliver(self.kernels, place, &rows, sums) }
                    }
                }
            }
        });
    }

    /// Adds the products of one pass of the strips from row `first` on with panel `place` to `sums [count, 64]`; the first
    /// pass stands alone.
    fn meet(
        &self,
        packed: &[f32],
        first: usize,
        pass: usize,
        place: usize,
        sums: Block<'_>,
        widened: &mut Vec<f32>,
    ) {
        let steps = self.steps_of(pass);
        let (weight, panel) = self.targets.panel(place);
        let words = weight.panel_words(panel);
        let from = steps.start / self.steps_per_line * ROWS_PER_PANEL;
        let to = steps.end.div_ceil(self.steps_per_line) * ROWS_PER_PANEL;
        let lines = &words[from..to];
        let b = match self.format {
            WeightFormat::F32 => Lines::Floats(bytemuck::cast_slice(lines)),
            _ if self.rounds => Lines::Pairs(lines),
            _ if self.m < WIDEN_FROM_ROWS => Lines::Widened(lines),
            _ => {
                let widened = aligned(widened, 2 * lines.len());
                self.kernels.widen(lines, ROWS_PER_PANEL, widened);
                Lines::Floats(widened)
            }
        };
        let depth = if self.rounds { self.cols.min(2 * steps.end) - 2 * steps.start } else { steps.len() };
        self.kernels.strips(Strips {
            depth,
            a: &packed[self.start_of(first / self.strip_rows, &steps)..],
            a_row: steps.len(),
            b,
            c: sums,
            accumulate: pass > 0,
            ahead: &words[to..words.len().min(to + lines.len())],
        });
    }
}

/// `len` values that start on a cache line, so that no vector straddles two; what they hold is left from before.
fn aligned(values: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = 64;
    let spare = LINE / size_of::<f32>() - 1;
    if values.len() < len + spare {
        values.resize(len + spare, 0.0);
    }
    let start = values.as_ptr().align_offset(LINE).min(spare);
    &mut values[start..start + len]
}
