//! The slow, obvious implementation of every operation: the oracle that the others are held against. Sums are
//! f64, loops are scalar, nothing is shared with the fast paths but the packed data itself.

use crate::backend::{check_attend, check_matmul, check_rope, check_rows};
use crate::partial::merge_row;
use crate::{Backend, KvSpan, Matrix, Partial, Queries, RopeAngles};

/// The oracle.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Backend for Reference {
    fn encoding(&self) -> &dyn Backend {
        self
    }

    fn name(&self) -> &str {
        "reference"
    }

    fn attend(&self, q: Queries<'_>, spans: &[KvSpan<'_>], out: &mut Partial) {
        check_attend(&q, spans, out);
        for token in 0..q.tokens {
            for head in 0..q.heads {
                let row = token * q.heads + head;
                let at = row * q.head_dim..(row + 1) * q.head_dim;
                let (values, lse) = attend_row(&q, token, head, spans);
                merge_row(&mut out.out[at], &mut out.lse[row], &values, lse);
            }
        }
    }

    fn matmul(&self, x: &[f32], weight: &Matrix, out: &mut [f32]) {
        let m = check_matmul(x, weight, out);
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut weights = vec![0.0; cols];
        for row in 0..rows {
            weight.row(row, &mut weights);
            for i in 0..m {
                out[i * rows + row] = dot(&x[i * cols..(i + 1) * cols], &weights) as f32;
            }
        }
    }

    fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        check_rows(x, bias.len());
        x.chunks_exact_mut(bias.len()).for_each(|row| self.add(row, bias));
    }

    fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "sums are of equal lengths");
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        check_rows(x, n);
        assert_eq!(x.len(), out.len(), "the output has the shape of the input");
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let scale = 1.0 / (dot(x, x) / n as f64 + f64::from(eps)).sqrt();
            for i in 0..n {
                out[i] = (f64::from(weight[i]) * f64::from(x[i]) * scale) as f32;
            }
        }
    }

    fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up have equal lengths");
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = f64::from(*gate);
            *gate = (x / (1.0 + (-x).exp()) * f64::from(*up)) as f32;
        }
    }

    fn rope(&self, x: &mut [f32], heads: usize, angles: &RopeAngles) {
        check_rope(x, heads, angles);
        let half = angles.half;
        for token in 0..angles.tokens() {
            for head in 0..heads {
                let start = (token * heads + head) * 2 * half;
                for i in 0..half {
                    let (cos, sin) = (angles.cos[token * half + i], angles.sin[token * half + i]);
                    let (a, b) = (x[start + i], x[start + half + i]);
                    x[start + i] = a * cos - b * sin;
                    x[start + half + i] = b * cos + a * sin;
                }
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// One query row over every visible key of every span: two passes, all scores kept.
fn attend_row(q: &Queries<'_>, token: usize, head: usize, spans: &[KvSpan<'_>]) -> (Vec<f32>, f32) {
    let row = (token * q.heads + head) * q.head_dim;
    let query = &q.data[row..row + q.head_dim];
    let (mut scores, mut values) = (Vec::new(), Vec::new());
    let (mut k, mut v) = (vec![0.0; q.head_dim], vec![0.0; q.head_dim]);
    for span in spans {
        let kv_head = head / (q.heads / span.keys.kv_heads());
        for key in 0..span.visible.count(token, span.keys.keys()) {
            span.keys.read_key(kv_head, key, &mut k, &mut v);
            scores.push(dot(query, &k) * f64::from(q.scale));
            values.extend_from_slice(&v);
        }
    }
    if scores.is_empty() {
        return (vec![0.0; q.head_dim], f32::NEG_INFINITY);
    }
    let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - peak).exp()).sum();
    let mut out = vec![0f64; q.head_dim];
    for (score, value) in scores.iter().zip(values.chunks_exact(q.head_dim)) {
        let weight = (score - peak).exp() / total;
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight * f64::from(*value);
        }
    }
    (out.iter().map(|value| *value as f32).collect(), (peak + total.ln()) as f32)
}
