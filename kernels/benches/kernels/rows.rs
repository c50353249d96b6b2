//! Operations on rows: what a decoder does between its products. All are bound by memory; the work is the bytes that they
//! read and write.

use stellate_kernels::*;

use crate::peaks::Bound;
use crate::report::Report;
use crate::rivals::{self, Rival};
use crate::{Sets, values};

/// Rows, and values of one: a tensor of them is larger than a large cache.
const ROWS: usize = 2048;
const COLS: usize = 8192;

/// Rows of the table that embeddings are looked up in, and tokens of which they are.
const VOCABULARY: usize = 32768;
const LOOKED_UP: usize = 512;

/// Values of a head that is rotated.
const HEAD_DIM: usize = 128;

/// Times an operation that reads or writes `tensors` tensors of `[ROWS, COLS]`.
fn line(
    name: &str,
    tensors: f64,
    sets: &Sets<'_>,
    report: &mut Report,
    rivals: impl FnOnce() -> Vec<Rival> + 'static,
    mut call: impl FnMut(&dyn Backend),
) {
    let (name, work) = (format!("{name} {ROWS}x{COLS}"), tensors * (ROWS * COLS * size_of::<f32>()) as f64);
    if report.wants(&name) {
        report.time(&name, sets.answers, Bound::Memory, work, || call(sets.answers.backend));
        report.beside(&name, Bound::Memory, work, rivals);
    }
}

pub(crate) fn all(sets: &Sets<'_>, report: &mut Report) {
    norms(sets, report);
    sums(sets, report);
    let (x, gate, mut out) = (values(ROWS * COLS), values(ROWS * COLS), vec![0.0; ROWS * COLS]);
    line(
        "copy and swiglu",
        5.0,
        sets,
        report,
        || rivals::swiglu(ROWS, COLS),
        |backend| {
            // Gates afresh: fed with its own results it would soon compute on subnormals.
            out.copy_from_slice(&gate);
            backend.swiglu(&mut out, &x);
        },
    );
    let half = HEAD_DIM / 2;
    let inv_freq: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
    let angles = RopeAngles::new(&inv_freq, 1.0, 0..ROWS as u32);
    line(
        "rope",
        2.0,
        sets,
        report,
        || rivals::rope(ROWS, COLS / HEAD_DIM, HEAD_DIM),
        |backend| {
            backend.rope(&mut out, COLS / HEAD_DIM, &angles);
        },
    );
    embed(sets, report);
}

fn norms(sets: &Sets<'_>, report: &mut Report) {
    let (x, weight, mut out) = (values(ROWS * COLS), values(COLS), vec![0.0; ROWS * COLS]);
    line(
        "rms_norm",
        2.0,
        sets,
        report,
        || rivals::rms_norm(ROWS, COLS, false),
        |backend| {
            backend.rms_norm(&x, &weight, 1e-5, &mut out);
        },
    );
    let mut sum = x.clone();
    // The sum grows by `x` each time, far from any limit.
    line(
        "add_rms_norm",
        4.0,
        sets,
        report,
        || rivals::rms_norm(ROWS, COLS, true),
        |backend| {
            backend.add_rms_norm(&mut sum, &x, &weight, 1e-5, &mut out);
        },
    );
}

fn sums(sets: &Sets<'_>, report: &mut Report) {
    let (x, bias, mut sum) = (values(ROWS * COLS), values(COLS), values(ROWS * COLS));
    line("add", 3.0, sets, report, || rivals::add(ROWS, COLS, ROWS), |backend| backend.add(&mut sum, &x));
    line(
        "add_bias",
        2.0,
        sets,
        report,
        || rivals::add(ROWS, COLS, 1),
        |backend| {
            backend.add_bias(&mut sum, &bias);
        },
    );
}

/// Reads bf16 and writes f32.
fn embed(sets: &Sets<'_>, report: &mut Report) {
    let (cols, name) = (2048, format!("embed bf16 {LOOKED_UP} of {VOCABULARY}x2048"));
    if !report.wants(&name) {
        return;
    }
    let mut table = Matrix::builder(WeightFormat::Bf16, VOCABULARY, cols).expect("a table of this size");
    let rows = values(64 * cols);
    (0..VOCABULARY / 64).for_each(|_| table.push_rows(&rows));
    let table = table.finish().expect("all rows");
    let ids: Vec<u32> = (0..LOOKED_UP).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let mut out = vec![0.0; LOOKED_UP * cols];
    let work = (LOOKED_UP * cols * (WeightFormat::Bf16.row_bytes(1) + size_of::<f32>())) as f64;
    report.time(&name, sets.answers, Bound::Memory, work, || {
        sets.answers.backend.embed(&table, &ids, &mut out);
    });
    report.beside(&name, Bound::Memory, work, move || rivals::embed(VOCABULARY, cols, ids));
}
