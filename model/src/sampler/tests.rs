//! The sampler against the definitions of its parameters, written out plainly.

use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.5];

fn random(params: SamplingParams) -> SamplingParams {
    SamplingParams { temperature: 1.0, ..params }
}

/// How often each token is chosen in `draws` steps.
fn counts(params: SamplingParams, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits, &[]).unwrap().id as usize] += 1;
    }
    counts
}

fn chosen(params: SamplingParams) -> Vec<u32> {
    let counts = counts(params, &LOGITS, 3000);
    (0u32..).zip(counts).filter(|&(_, count)| count > 0).map(|(id, _)| id).collect()
}

#[test]
fn greedy_takes_the_best_and_the_lowest_id_of_equals() {
    let sampled = Sampler::new(SamplingParams::default()).unwrap().sample(&LOGITS, &[]).unwrap();
    assert_eq!(sampled.id, 1);
    let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
    assert!((sampled.logprob - (3.0 - total.ln())).abs() < 1e-5);
}

#[test]
fn top_k_keeps_the_k_best_and_what_equals_the_last() {
    assert_eq!(chosen(random(SamplingParams { top_k: Some(1), ..Default::default() })), [1, 3]);
    assert_eq!(chosen(random(SamplingParams { top_k: Some(3), ..Default::default() })), [1, 2, 3]);
    assert_eq!(chosen(random(SamplingParams { top_k: Some(99), ..Default::default() })).len(), 6);
}

#[test]
fn top_p_keeps_the_best_until_their_share_is_reached() {
    // Shares: ids 1 and 3 have 0.381 each, 2 has 0.140, 0 has 0.052, 5 has 0.031, 4 has 0.007.
    for (p, kept) in [(0.3, vec![1]), (0.5, vec![1, 3]), (0.8, vec![1, 2, 3]), (0.93, vec![0, 1, 2, 3])] {
        assert_eq!(
            chosen(random(SamplingParams { top_p: Some(p), ..Default::default() })),
            kept,
            "top_p {p}"
        );
    }
    assert_eq!(chosen(random(SamplingParams { top_p: Some(1.0), ..Default::default() })).len(), 6);
}

#[test]
fn a_uniform_distribution_survives_every_top_p() {
    let kept = |p| {
        let params = random(SamplingParams { top_p: Some(p), ..Default::default() });
        counts(params, &[0.0; 4], 400).iter().filter(|&&count| count > 0).count()
    };
    assert_eq!((kept(1e-6), kept(0.5), kept(0.76)), (1, 2, 4));
}

#[test]
fn min_p_is_measured_against_the_best_token() {
    // e^-1 = 0.37, e^-2 = 0.135, e^-2.5 = 0.08.
    assert_eq!(chosen(random(SamplingParams { min_p: Some(0.3), ..Default::default() })), [1, 2, 3]);
    assert_eq!(chosen(random(SamplingParams { min_p: Some(0.1), ..Default::default() })), [0, 1, 2, 3]);
    assert_eq!(chosen(random(SamplingParams { min_p: Some(1.0), ..Default::default() })), [1, 3]);
}

#[test]
fn draws_follow_the_softmax_of_logits_over_temperature() {
    let draws = 40_000;
    let counts = counts(SamplingParams { temperature: 0.5, seed: 7, ..Default::default() }, &LOGITS, draws);
    let weights: Vec<f64> = LOGITS.iter().map(|&logit| (f64::from(logit) / 0.5).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        let expected = weight / total;
        // Five standard deviations.
        let tolerance = 5.0 * (expected * (1.0 - expected) / draws as f64).sqrt();
        assert!((*count as f64 / draws as f64 - expected).abs() <= tolerance, "{count} of {draws}, seed 7");
    }
}

#[test]
fn equal_seeds_draw_equally_and_a_restored_sampler_goes_on_where_it_stopped() {
    let params = random(SamplingParams { seed: 11, ..Default::default() });
    let draw = |sampler: &mut Sampler, n| -> Vec<u32> {
        (0..n).map(|_| sampler.sample(&LOGITS, &[]).unwrap().id).collect()
    };
    let whole = draw(&mut Sampler::new(params.clone()).unwrap(), 50);
    let mut restored = Sampler::at_step(params.clone(), 20).unwrap();
    assert_eq!(draw(&mut restored, 30), whole[20..]);
    assert_eq!(restored.step(), 50);
    let other = SamplingParams { seed: 12, ..params };
    assert_ne!(draw(&mut Sampler::new(other).unwrap(), 50), whole);
}

#[test]
fn the_draws_of_a_seed_are_pinned() {
    // Any change here changes what sessions stored by earlier versions go on to say.
    let bits =
        [(0, 0), (0, 1), (42, 0), (42, u64::MAX)].map(|(seed, step)| (uniform(seed, step) * 1e6) as u64);
    assert_eq!(bits, PINNED);
}

const PINNED: [u64; 4] = [836_919, 789_161, 348_254, 156_202];

#[test]
fn the_penalty_counts_each_token_of_the_window_once() {
    let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
    let mut sampler = Sampler::new(params.clone()).unwrap();
    assert_eq!(sampler.sample(&LOGITS, &[1, 1, 3]).unwrap().id, 2);
    // Halved once, 3.0 is 1.5 and still above 1.0.
    assert_eq!(sampler.sample(&LOGITS, &[3, 3, 1, 2]).unwrap().id, 1);
    let windowed = SamplingParams { repetition_window_tokens: 1, ..params.clone() };
    assert_eq!(Sampler::new(windowed).unwrap().sample(&LOGITS, &[1, 3]).unwrap().id, 1);
    // A negative logit becomes smaller, not larger.
    assert_eq!(Sampler::new(params).unwrap().sample(&[-1.0, -1.5], &[0]).unwrap().id, 1);
}

#[test]
fn broken_logits_and_foreign_history_are_errors_that_leave_the_step() {
    let params = SamplingParams { repetition_penalty: 1.5, ..Default::default() };
    let mut sampler = Sampler::new(params).unwrap();
    assert_eq!(sampler.sample(&[], &[]), Err(SamplingError::Empty));
    assert!(matches!(sampler.sample(&[0.0, f32::NAN], &[]), Err(SamplingError::NonFinite { id: 1, .. })));
    let infinite = sampler.sample(&[f32::INFINITY, 0.0], &[]);
    assert!(matches!(infinite, Err(SamplingError::NonFinite { id: 0, .. })));
    let foreign = sampler.sample(&[0.0, 1.0], &[9]);
    assert_eq!(foreign, Err(SamplingError::UnknownToken { id: 9, vocab_size: 2 }));
    assert_eq!(sampler.step(), 0);
}

#[test]
fn a_tiny_temperature_and_huge_logits_stay_finite() {
    let params = SamplingParams { temperature: 1e-30, top_p: Some(0.9), ..Default::default() };
    let sampled = Sampler::new(params).unwrap().sample(&[3e38, -3e38, 2.9e38], &[]).unwrap();
    assert_eq!(sampled.id, 0);
    assert!(sampled.logprob.is_finite());
}

#[test]
fn every_parameter_outside_its_range_is_named() {
    let base = SamplingParams::default;
    let bad = [
        ("temperature", SamplingParams { temperature: -0.1, ..base() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
        ("top_k", SamplingParams { top_k: Some(0), ..base() }),
        ("top_p", SamplingParams { top_p: Some(0.0), ..base() }),
        ("top_p", SamplingParams { top_p: Some(1.1), ..base() }),
        ("min_p", SamplingParams { min_p: Some(-0.1), ..base() }),
        ("min_p", SamplingParams { min_p: Some(f32::NAN), ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
    ];
    for (name, params) in bad {
        let error = Sampler::new(params.clone()).expect_err("out of range");
        assert!(
            matches!(error, SamplingError::OutOfRange { parameter, .. } if parameter == name),
            "{params:?}"
        );
        assert!(error.to_string().contains("must be"), "{error}");
    }
    assert_eq!(base().validate(), Ok(()));
}

#[test]
fn top_logprobs_are_the_best_first_and_ties_by_id() {
    let top = top_logprobs(&LOGITS, 3);
    assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 2]);
    let all = top_logprobs(&LOGITS, 100);
    let sum: f32 = all.iter().map(|&(_, logprob)| logprob.exp()).sum();
    assert!(all.len() == 6 && (sum - 1.0).abs() < 1e-5);
    assert!(top_logprobs(&LOGITS, 0).is_empty() && top_logprobs(&[], 3).is_empty());
}
