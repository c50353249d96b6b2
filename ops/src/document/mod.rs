//! The demo's document: facts in RULER's wording (arXiv 2404.06654, the needle tasks) between sentences that say nothing,
//! the same for the same seed. Asking and judging are not done here.

mod filler;
mod words;

use std::collections::BTreeSet;
use std::ops::Range;

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use self::words::{ADJECTIVES, NOUNS};

/// Facts that a document can hold: no two share a word of their keys.
pub const MAX_FACTS: usize = if ADJECTIVES.len() < NOUNS.len() { ADJECTIVES.len() } else { NOUNS.len() };

/// What a document starts with.
const INSTRUCTION: &str = "Some special magic numbers are hidden within the following text. Make sure to memorize it. \
                           I will quiz you about the numbers afterwards.\n";

/// Seven digits, the first of them not 0.
const VALUES: Range<u32> = 1_000_000..10_000_000;

/// Something to be found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// An adjective and a noun, as in `amber-falcon`.
    pub key: String,
    /// Seven digits.
    pub value: String,
    /// Where it stands: the part of the document's tokens before it, from 0 to 1.
    pub depth: f64,
}

/// A text with facts in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// All of it.
    pub text: String,
    /// In the order they stand in the text.
    pub facts: Vec<Fact>,
}

impl Fact {
    fn sentence(&self) -> String {
        format!("One of the special magic numbers for {} is: {}.", self.key, self.value)
    }

    /// What is asked about it: the wording that the demo model was taught, with the beginning of the answer.
    pub fn question(&self) -> String {
        let key = &self.key;
        format!(
            "What is the special magic number for {key} mentioned in the provided text? \
             The special magic number for {key} mentioned in the provided text is"
        )
    }

    /// Whether the digits of `answer` are the value and nothing else.
    pub fn is_answered_by(&self, answer: &str) -> bool {
        answer.chars().filter(char::is_ascii_digit).eq(self.value.chars())
    }
}

impl Document {
    /// A document of about `tokens` tokens, as `count` counts them, with `facts` facts spread over it: the `i`-th at a
    /// random place within the `i`-th of as many equal parts.
    ///
    /// # Panics
    /// If `facts` is more than [`MAX_FACTS`].
    pub fn generate(seed: u64, tokens: usize, facts: usize, count: impl Fn(&str) -> usize) -> Self {
        assert!(facts <= MAX_FACTS, "no more than {MAX_FACTS} facts have words of their own");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut waiting = some_facts(&mut rng, facts).into_iter().peekable();
        let mut facts = Vec::new();
        let mut text = INSTRUCTION.to_owned();
        let mut written = count(INSTRUCTION);
        loop {
            let depth = written as f64 / tokens.max(1) as f64;
            let sentence = match waiting.next_if(|fact| fact.depth <= depth || written >= tokens) {
                Some(fact) => {
                    let sentence = fact.sentence();
                    facts.push(Fact { depth, ..fact });
                    sentence
                }
                None if written >= tokens => break,
                None => filler::sentence(&mut rng),
            };
            // Behind a space, as it is tokenised within the text.
            let space = if text.ends_with('\n') { "" } else { " " };
            let sentence = format!("{space}{sentence}");
            written += count(&sentence);
            text.push_str(&sentence);
        }
        text.push('\n');
        let total = written.max(1) as f64;
        for fact in &mut facts {
            fact.depth *= tokens.max(1) as f64 / total;
        }
        Self { text, facts }
    }
}

/// Facts with the depths that they are to have, in their order. No two keys share a word, no two values are equal.
fn some_facts(rng: &mut ChaCha8Rng, count: usize) -> Vec<Fact> {
    let adjectives = shuffled(rng, &ADJECTIVES);
    let nouns = shuffled(rng, &NOUNS);
    let mut values = BTreeSet::new();
    (0..count)
        .map(|index| {
            let value = loop {
                let value = rng.random_range(VALUES);
                if values.insert(value) {
                    break value.to_string();
                }
            };
            let depth = (index as f64 + rng.random_range(0.1..0.9)) / count as f64;
            Fact { key: format!("{}-{}", adjectives[index], nouns[index]), value, depth }
        })
        .collect()
}

/// Fisher and Yates's shuffle.
fn shuffled<'a>(rng: &mut ChaCha8Rng, words: &[&'a str]) -> Vec<&'a str> {
    let mut words = words.to_vec();
    for last in (1..words.len()).rev() {
        words.swap(last, rng.random_range(0..=last));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn the_same_seed_gives_the_same_document_and_another_seed_another_one() {
        assert_eq!(Document::generate(7, 500, 5, words), Document::generate(7, 500, 5, words));
        assert_ne!(Document::generate(7, 500, 5, words).text, Document::generate(8, 500, 5, words).text);
    }

    #[test]
    fn no_two_facts_share_a_word_or_a_value_and_each_stands_in_the_text_once() {
        let document = Document::generate(1, 4000, MAX_FACTS, words);
        let mut seen = BTreeSet::new();
        for fact in &document.facts {
            let (adjective, noun) = fact.key.split_once('-').unwrap();
            assert!(seen.insert(adjective) && seen.insert(noun) && seen.insert(&fact.value), "{fact:?}");
            assert_eq!(document.text.matches(&fact.sentence()).count(), 1);
            assert_eq!(document.text.matches(&fact.key).count(), 1);
            assert_eq!(document.text.matches(&fact.value).count(), 1);
        }
        assert_eq!(document.facts.len(), MAX_FACTS);
    }

    #[test]
    fn each_fact_stands_in_its_part_of_a_document_of_the_asked_length() {
        for seed in 0..20 {
            let document = Document::generate(seed, 3000, 6, words);
            let total = words(&document.text);
            assert!((3000..3040).contains(&total), "seed {seed}: {total} words");
            for (index, fact) in document.facts.iter().enumerate() {
                let before = document.text.split(&fact.sentence()).next().unwrap();
                let depth = words(before) as f64 / total as f64;
                assert!((depth - fact.depth).abs() < 1e-9, "seed {seed}: at {depth}, said {}", fact.depth);
                let part = index as f64 / 6.0..(index + 1) as f64 / 6.0;
                assert!(part.contains(&depth), "seed {seed}: fact {index} at {depth}");
            }
        }
    }

    #[test]
    fn a_document_too_short_for_its_facts_holds_all_of_them_nevertheless() {
        assert_eq!(Document::generate(0, 1, 4, words).facts.len(), 4);
        assert_eq!(Document::generate(0, 0, 0, words).text.trim_end(), INSTRUCTION.trim_end());
    }

    #[test]
    fn only_the_digits_of_the_value_are_an_answer() {
        let fact = Fact { key: "amber-falcon".to_owned(), value: "1234567".to_owned(), depth: 0.5 };
        assert!(fact.is_answered_by(" 1234567."));
        assert!(!fact.is_answered_by(" 123456."));
        assert!(!fact.is_answered_by(" 1234567, 7654321."));
        assert!(!fact.is_answered_by(""));
    }
}
