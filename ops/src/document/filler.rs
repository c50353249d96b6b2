//! Sentences that say nothing: a small technical English, made at random, for facts to be hidden in. It holds no digits
//! and no magic numbers.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::words::{MATTERS, OCCASIONS, QUALITIES, THINGS, VERBS};

/// A sentence with its full stop.
pub(super) fn sentence(rng: &mut ChaCha8Rng) -> String {
    let thing = pick(rng, &THINGS);
    let other = pick(rng, &THINGS);
    let quality = pick(rng, &QUALITIES);
    let second = pick(rng, &QUALITIES);
    let verb = pick(rng, &VERBS);
    let then = pick(rng, &VERBS);
    let matter = pick(rng, &MATTERS);
    let result = pick(rng, &MATTERS);
    let occasion = pick(rng, &OCCASIONS);
    match rng.random_range(0..10) {
        0 => format!("The {quality} {thing} {verb} each {matter} {occasion}."),
        1 => format!("A {second} {matter} is what the {thing} {verb} {occasion}."),
        2 => format!(
            "If the {matter} is {quality}, the {thing} {verb} it and the {other} {then} the {result}."
        ),
        3 => format!(
            "Most of the time the {thing} {verb} a {quality} {matter}, and the {other} {then} it {occasion}."
        ),
        4 => format!("There is a {quality} {thing} for every {second} {matter}."),
        5 => format!(
            "Note that the {thing} {verb} the {matter} {occasion}, which makes the {other} more {quality}."
        ),
        6 => format!("The {matter} and the {result} belong to the {quality} {thing}."),
        7 => format!("In this chapter we show how a {thing} {verb} the {second} {matter}."),
        8 => format!("Some tools expect a {quality} {matter}; the {thing} {verb} it {occasion}."),
        _ => format!("It {verb} the {matter}, {then} the {result} and returns to the {quality} {thing}."),
    }
}

fn pick<'a>(rng: &mut ChaCha8Rng, words: &[&'a str]) -> &'a str {
    words[rng.random_range(0..words.len())]
}
