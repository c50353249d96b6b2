//! What a few measurements have in common: the exponent of a power law, and the seconds that two kinds of work take
//! each. Numbers only; what they are of is the caller's.

/// Columns whose squared cosine is above this say too little about each other's part.
const MAX_COLLINEARITY: f64 = 0.999;

/// The exponent `e` of the power law `y = c · x^e` through positive points: the slope of the least-squares line of `ln y`
/// over `ln x`. `None` with fewer than two different `x`.
pub(crate) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let logs = || points.iter().map(|&(x, y)| (x.ln(), y.ln()));
    let (mean_x, mean_y) = logs().fold((0.0, 0.0), |(x, y), (a, b)| (x + a / count, y + b / count));
    let (mut spread, mut product) = (0.0, 0.0);
    for (x, y) in logs() {
        spread += (x - mean_x).powi(2);
        product += (x - mean_x) * (y - mean_y);
    }
    (spread > 1e-12).then(|| product / spread)
}

/// Seconds that a unit of each of two kinds of work takes, from samples of `([units of one, units of the other], seconds)`:
/// least squares of the relative errors. Where the samples cannot tell the two apart, or one of them would cost less
/// than nothing, both get the cost of their sum. `None` without a sample of some work and some time.
pub(crate) fn costs(samples: &[([f64; 2], f64)]) -> Option<[f64; 2]> {
    // Each sample, divided by its seconds, should make 1.
    let rows = || {
        let used = samples.iter().filter(|(work, seconds)| *seconds > 0.0 && work[0] + work[1] > 0.0);
        used.map(|&([a, b], seconds)| [a / seconds, b / seconds])
    };
    let (mut aa, mut ab, mut bb, mut a1, mut b1) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for [a, b] in rows() {
        aa += a * a;
        ab += a * b;
        bb += b * b;
        a1 += a;
        b1 += b;
    }
    if aa + bb == 0.0 {
        return None;
    }
    let determinant = aa * bb - ab * ab;
    let apart = ab * ab < MAX_COLLINEARITY * aa * bb;
    let both = [(a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant];
    if apart && both.iter().all(|&cost| cost > 0.0) {
        return Some(both);
    }
    let common = (a1 + b1) / (aa + 2.0 * ab + bb);
    Some([common; 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_of_a_power_law_is_found_and_a_point_alone_has_none() {
        let points: Vec<_> = [2.0_f64, 8.0, 32.0].iter().map(|&x| (x, 3.0 * x.powf(1.5))).collect();
        assert!((exponent(&points).unwrap() - 1.5).abs() < 1e-9);
        assert_eq!(exponent(&points[..1]), None);
        assert_eq!(exponent(&[(2.0, 1.0), (2.0, 3.0)]), None);
        assert_eq!(exponent(&[]), None);
    }

    #[test]
    fn the_costs_of_two_kinds_of_work_are_told_apart() {
        let sample = |a: f64, b: f64| ([a, b], 2.0 * a + 5.0 * b);
        let found = costs(&[sample(1.0, 0.1), sample(1.0, 3.0), sample(7.0, 9.0)]).unwrap();
        assert!((found[0] - 2.0).abs() < 1e-9 && (found[1] - 5.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn what_cannot_be_told_apart_has_one_cost() {
        assert_eq!(costs(&[([3.0, 1.0], 2.0)]), Some([0.5; 2]));
        // The second kind would have to cost less than nothing.
        let found = costs(&[([1.0, 0.0], 1.0), ([1.0, 1.0], 0.5)]).unwrap();
        assert_eq!(found[0], found[1]);
        assert_eq!(costs(&[]), None);
    }
}
