//! Properties of streams: pieces join to the whole text however it is cut, and stop strings are found wherever
//! tokens split them.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

fn demo() -> &'static Tokenizer {
    static DEMO: OnceLock<Tokenizer> = OnceLock::new();
    DEMO.get_or_init(|| {
        Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/tokenizer.json"))
            .expect("the demo loads")
    })
}

fn pieces_of(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = TokenStream::new(tokenizer, skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    pieces.push(stream.finish());
    pieces
}

/// The rule of [`StopStrings`] in its plainest form: look at every beginning of the text, the shortest first.
fn naive_search(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for (at, char) in text.char_indices() {
        let seen = &text[..at + char.len_utf8()];
        let longest = stops.iter().filter(|stop| seen.ends_with(stop.as_str())).map(String::len).max();
        if let Some(longest) = longest {
            let index = stops.iter().position(|stop| stop.len() == longest && seen.ends_with(stop.as_str()));
            return (seen[..seen.len() - longest].to_owned(), index);
        }
    }
    (text.to_owned(), None)
}

fn multibyte_text() -> impl Strategy<Value = String> {
    let chars = prop_oneof![
        4 => any::<char>().prop_filter("what decoding itself writes", |&char| char != char::REPLACEMENT_CHARACTER),
        2 => prop::char::range('\u{4e00}', '\u{9fff}'),
        2 => prop::char::range('\u{1f300}', '\u{1f9ff}'),
        3 => prop::char::range(' ', '~'),
        1 => Just('\u{200d}'),
    ];
    prop::collection::vec(chars, 0..60).prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #[test]
    fn pieces_of_random_ids_join_to_the_decoded_whole(ids in prop::collection::vec(0u32..4096, 0..80), skip: bool) {
        let whole = demo().decode(&ids, skip).unwrap();
        prop_assert_eq!(pieces_of(demo(), &ids, skip).concat(), whole);
    }

    #[test]
    fn pieces_of_any_text_join_to_that_text_and_hold_no_replacement_character(text in multibyte_text()) {
        prop_assume!(!text.contains("<|"));
        let ids = demo().encode(&text, false).unwrap();
        let pieces = pieces_of(demo(), &ids, false);
        prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
        prop_assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn at_most_three_bytes_are_held_back(ids in prop::collection::vec(0u32..4096, 0..80)) {
        let mut stream = TokenStream::new(demo(), false);
        for id in ids {
            stream.push(id);
            prop_assert!(stream.pending.len() <= 3);
        }
    }

    #[test]
    fn stop_strings_are_found_wherever_the_text_is_cut(
        // A small alphabet makes stop strings overlap and almost match.
        text in "[ab é\u{1f600}]{0,40}",
        stops in prop::collection::vec("[ab é\u{1f600}]{1,5}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|&at| text.is_char_boundary(at)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let longest = stops.iter().map(String::len).max().unwrap_or(1);
        let mut search = StopStrings::new(stops.clone()).unwrap();
        let mut shown = String::new();
        for cut in cuts.windows(2) {
            shown.push_str(&search.push(&text[cut[0]..cut[1]]).text);
            prop_assert!(search.held_bytes() < longest);
        }
        shown.push_str(&search.finish());
        prop_assert_eq!((shown, search.matched()), naive_search(&text, &stops));
    }
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let ids = demo().encode("😀", false).unwrap();
    assert!(ids.len() > 1, "the demo vocabulary writes an emoji in several tokens");
    let pieces = pieces_of(demo(), &ids, false);
    let (last, earlier) = pieces[..ids.len()].split_last().unwrap();
    assert!(earlier.iter().all(String::is_empty), "{pieces:?}");
    assert_eq!(last, "😀");
}

#[test]
fn an_unfinished_character_becomes_one_replacement_character_at_the_end() {
    let ids = demo().encode("a😀", false).unwrap();
    let mut stream = TokenStream::new(demo(), false);
    let text: String = ids[..ids.len() - 1].iter().map(|&id| stream.push(id)).collect();
    assert_eq!((text.as_str(), stream.finish().as_str()), ("a", "\u{fffd}"));
}

#[test]
fn special_tokens_are_skipped_only_when_asked() {
    let ids = demo().encode("a<|end|>", false).unwrap();
    assert_eq!(pieces_of(demo(), &ids, true).concat(), "a");
    assert_eq!(pieces_of(demo(), &ids, false).concat(), "a<|end|>");
}

#[test]
fn the_longest_stop_string_that_ends_here_counts() {
    let mut search = StopStrings::new(["c", "abc"]).unwrap();
    let first = search.push("xab");
    assert_eq!(first, StopOutcome { text: "x".to_owned(), matched: None });
    assert_eq!(search.push("c and more"), StopOutcome { text: String::new(), matched: Some(1) });
    assert_eq!(search.push("later"), StopOutcome { text: String::new(), matched: Some(1) });
    assert_eq!(search.finish(), "");
}

#[test]
fn an_empty_stop_string_is_refused() {
    assert_eq!(StopStrings::new(["a", ""]).unwrap_err(), StopError::Empty { index: 1 });
}

#[test]
fn without_stop_strings_all_text_passes_at_once() {
    let mut search = StopStrings::default();
    assert_eq!(search.push("text"), StopOutcome { text: "text".to_owned(), matched: None });
}
