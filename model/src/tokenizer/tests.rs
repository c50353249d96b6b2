//! The demo's tokenizer against its recorded ids, GGUF descriptions against the same, and files that lie.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn demo_file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/demo/{name}", env!("CARGO_MANIFEST_DIR"))).expect("the demo is complete")
}

fn demo() -> Tokenizer {
    Tokenizer::from_bytes(&demo_file("tokenizer.json")).expect("the demo loads")
}

/// The demo's tokenizer as a GGUF file would carry it.
fn demo_as_gguf() -> GgufTokenizer {
    let file: Value = serde_json::from_slice(&demo_file("tokenizer.json")).unwrap();
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut token_types = vec![1; tokens.len()];
    for added in file["added_tokens"].as_array().unwrap() {
        token_types[added["id"].as_u64().unwrap() as usize] = 3;
    }
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        text => text.as_str().unwrap().to_owned(),
    };
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        token_types,
        merges: file["model"]["merges"].as_array().unwrap().iter().map(merge).collect(),
        bos: Some(0),
        eos: Some(1),
        ..GgufTokenizer::default()
    }
}

/// A SentencePiece vocabulary with all bytes and a few pieces, the better the later.
fn sentence_piece(pieces: &[&str]) -> GgufTokenizer {
    let mut gguf =
        GgufTokenizer { model: "llama".to_owned(), unk: Some(0), bos: Some(1), ..Default::default() };
    let mut add = |text: String, kind, score| {
        gguf.tokens.push(text);
        gguf.token_types.push(kind);
        gguf.scores.push(score);
    };
    add("<unk>".to_owned(), 2, 0.0);
    add("<s>".to_owned(), 3, 0.0);
    add("</s>".to_owned(), 3, 0.0);
    (0..=255u8).for_each(|byte| add(format!("<0x{byte:02X}>"), 6, 0.0));
    for (index, piece) in pieces.iter().enumerate() {
        let score = if piece.chars().count() == 1 { -1e9 } else { index as f32 - 100.0 };
        add((*piece).to_owned(), 1, score);
    }
    gguf
}

/// SentencePiece's own algorithm: join the best-scored neighbours, the leftmost of equals, until none can be joined.
fn naive_sentence_piece(gguf: &GgufTokenizer, text: &str) -> Vec<u32> {
    let marked = format!("▁{}", text.replace(' ', "▁"));
    let mut parts: Vec<String> = marked.chars().map(String::from).collect();
    let id = |part: &str| gguf.tokens.iter().position(|token| token == part);
    loop {
        let score = |at: usize| id(&(parts[at].clone() + &parts[at + 1])).map(|id| gguf.scores[id]);
        let pairs = (0..parts.len().saturating_sub(1)).filter_map(|at| Some((at, score(at)?)));
        let best = pairs.reduce(|best, pair| if pair.1 > best.1 { pair } else { best });
        let Some((at, _)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    let bytes = |part: &String| part.bytes().map(|byte| u32::from(byte) + 3).collect();
    parts.iter().flat_map(|part| id(part).map_or_else(|| bytes(part), |id| vec![id as u32])).collect()
}

#[test]
fn the_demo_encodes_its_examples_to_their_recorded_ids() {
    let tokenizer = demo();
    let examples = String::from_utf8(demo_file("examples.jsonl")).unwrap();
    for line in examples.lines() {
        let example: Value = serde_json::from_str(line).unwrap();
        let expected: Vec<u32> = serde_json::from_value(example["context_ids"].clone()).unwrap();
        let text = format!("<|begin|>{}", example["context"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text, false).unwrap(), expected);
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), text);
        assert_eq!(format!("<|begin|>{}", tokenizer.decode(&expected, true).unwrap()), text);
        for question in example["questions"].as_array().unwrap() {
            let text = format!(" {}", question["question"].as_str().unwrap());
            let ids: Vec<u32> = serde_json::from_value(question["question_ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode_continuation(&text).unwrap(), ids);
        }
    }
}

#[test]
fn the_demo_knows_its_special_tokens() {
    let tokenizer = demo();
    assert_eq!((tokenizer.token_id("<|begin|>"), tokenizer.token_id("<|end|>")), (Some(0), Some(1)));
    assert_eq!(tokenizer.token_id("no such token"), None);
    assert_eq!(tokenizer.token_text(1).as_deref(), Some("<|end|>"));
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(100) && !tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.vocab_size(), 4096);
    let outside = tokenizer.decode(&[4096], false);
    assert!(matches!(outside, Err(TokenizerError::UnknownId { id: 4096, vocab_size: 4096 })));
}

#[test]
fn a_gguf_description_of_the_demo_encodes_as_the_demo_does() {
    let (from_json, from_gguf) = (demo(), Tokenizer::from_gguf(&demo_as_gguf()).unwrap());
    for text in ["", " ", "It's 1234567.\n\n  Größe 你好 👋🏽!", "a<|end|> b", "def f(x):\n    return x**2"]
    {
        let ids = from_json.encode(text, true).unwrap();
        assert_eq!(from_gguf.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(from_gguf.decode(&ids, false).unwrap(), text);
    }
    assert!(from_gguf.is_special(1));
    let with_bos = GgufTokenizer { add_bos: Some(true), ..demo_as_gguf() };
    assert_eq!(Tokenizer::from_gguf(&with_bos).unwrap().encode("a", true).unwrap()[0], 0);
}

#[test]
fn every_known_pre_tokenizer_loads_and_gives_the_text_back() {
    let text = "I'LL pay 12345 in\r\n\r\n  2 days…   ok\t你好 naïve";
    let known = [
        None,
        Some("default"),
        Some("gpt-2"),
        Some("llama-bpe"),
        Some("llama3"),
        Some("smaug-bpe"),
        Some("qwen2"),
    ];
    for pre in known.into_iter().chain([Some("tekken"), Some("smollm")]) {
        let gguf = GgufTokenizer { pre: pre.map(str::to_owned), add_bos: Some(false), ..demo_as_gguf() };
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre:?}");
    }
    let unknown = Tokenizer::from_gguf(&GgufTokenizer { pre: Some("bloom".to_owned()), ..demo_as_gguf() });
    assert!(unknown.unwrap_err().to_string().contains("\"bloom\""));
    let model = Tokenizer::from_gguf(&GgufTokenizer { model: "bert".to_owned(), ..demo_as_gguf() });
    assert!(matches!(model, Err(TokenizerError::UnknownModel { model }) if model == "bert"));
}

#[test]
fn llama_3_groups_digits_by_three_and_qwen_takes_them_one_by_one() {
    // All bytes, and merges that join any digits: only the split can keep them apart.
    let mut gguf = GgufTokenizer { model: "gpt2".to_owned(), ..Default::default() };
    gguf.tokens = ["1", "11", "111", "1111"].map(str::to_owned).to_vec();
    gguf.merges = ["1 1", "11 1", "11 11"].map(str::to_owned).to_vec();
    let encode = |pre: &str, text: &str| {
        let gguf = GgufTokenizer { pre: Some(pre.to_owned()), ..gguf.clone() };
        Tokenizer::from_gguf(&gguf).unwrap().encode(text, false).unwrap()
    };
    assert_eq!(encode("llama-bpe", "11111"), [2, 1]);
    assert_eq!(encode("qwen2", "111"), [0, 0, 0]);
    assert_eq!(encode("gpt-2", "1111"), [3]);
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let gguf = sentence_piece(&[
        "▁", "h", "e", "l", "o", "w", "he", "ll", "lo", "▁he", "llo", "▁w", "hello", "▁hello",
    ]);
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    for text in ["hello", "hello hello", "  low hell", "é你", "wow 😀 he", "<0x41>"] {
        let expected = naive_sentence_piece(&gguf, text);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("o", true).unwrap()[0], 1, "a text begins with bos");
}

#[test]
fn a_continuation_gets_no_space_of_the_tokenizers_own() {
    let gguf = sentence_piece(&["▁", "o", "w", "▁o"]);
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    assert_eq!(tokenizer.encode("o", false).unwrap(), [id("▁o")]);
    assert_eq!(tokenizer.encode_continuation("o").unwrap(), [id("o")]);
    assert_eq!(tokenizer.encode_continuation(" o").unwrap(), [id("▁o")]);
    let mut answer = TokenStream::continuing(&tokenizer, true);
    assert_eq!(answer.push(id("▁o")), " o");
    assert_eq!(demo().encode_continuation(" a").unwrap(), demo().encode(" a", false).unwrap());
}

#[test]
fn contradictions_in_a_gguf_file_are_named() {
    let good = || sentence_piece(&["▁", "a"]);
    let bad = [
        ("scores", GgufTokenizer { scores: vec![0.0], ..good() }),
        ("one score per token", GgufTokenizer { scores: vec![], ..good() }),
        ("token types", GgufTokenizer { token_types: vec![1], ..good() }),
        ("bos token 9999", GgufTokenizer { bos: Some(9999), ..good() }),
        ("no bos_token_id", GgufTokenizer { bos: None, add_bos: Some(true), ..good() }),
        ("score of token 0", GgufTokenizer { scores: vec![f32::NAN; good().tokens.len()], ..good() }),
        ("are both \"▁\"", sentence_piece(&["▁", "▁"])),
        ("merge 0", GgufTokenizer { merges: vec!["ab".to_owned()], ..demo_as_gguf() }),
        ("out of vocabulary", GgufTokenizer { merges: vec!["no such".to_owned()], ..demo_as_gguf() }),
        ("longer than", sentence_piece(&["▁", &"a".repeat(5000)])),
    ];
    for (words, gguf) in bad {
        let error = Tokenizer::from_gguf(&gguf).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn settings_that_would_change_a_context_in_secret_are_dropped_or_refused() {
    let with = |path: &str, value: Value| {
        let mut file: Value = serde_json::from_slice(&demo_file("tokenizer.json")).unwrap();
        *file.pointer_mut(path).unwrap() = value;
        Tokenizer::from_bytes(file.to_string().as_bytes())
    };
    let truncation =
        json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    let ids = with("/truncation", truncation).unwrap().encode("one two three four", false).unwrap();
    assert!(ids.len() > 2);
    assert!(matches!(with("/model/dropout", json!(0.5)), Err(TokenizerError::Dropout { .. })));
    let decoder = with("/decoder", json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }));
    assert!(decoder.unwrap_err().to_string().contains("WordPiece"));
    assert!(matches!(with("/decoder", Value::Null), Err(TokenizerError::UnsupportedDecoder { .. })));
    let far = json!({ "a": 0, "b": u32::MAX });
    let model = json!({ "type": "BPE", "vocab": far, "merges": [] });
    assert!(matches!(with("/model", model), Err(TokenizerError::IdTooLarge { .. })));
}

#[test]
fn a_missing_file_is_named() {
    let error = Tokenizer::from_file("/no/such/tokenizer.json").unwrap_err();
    assert!(error.to_string().contains("/no/such/tokenizer.json"));
}

#[test]
fn a_file_that_is_no_tokenizer_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for (text, words) in
        [("{", "not a valid tokenizer.json"), (r#"{"model": {"dropout": 0.5}}"#, "dropout to 0.5")]
    {
        std::fs::write(&path, text).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())) && error.contains(words), "{error}");
    }
}

proptest! {
    #[test]
    fn any_gguf_description_is_an_error_or_a_tokenizer_but_never_a_panic(
        llama: bool,
        tokens in prop::collection::vec("[ab▁ <>x0-9]{0,6}", 0..12),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        token_types in prop::collection::vec(-1..8i32, 0..12),
        merges in prop::collection::vec("[ab ]{0,4}", 0..4),
        [bos, unk] in [prop::option::of(0u32..14), prop::option::of(0u32..14)],
        [add_bos, add_space_prefix] in [any::<Option<bool>>(), any::<Option<bool>>()],
    ) {
        let model = if llama { "llama" } else { "gpt2" }.to_owned();
        let mut gguf = GgufTokenizer {
            model, tokens, scores, token_types, merges, bos, unk, add_bos, add_space_prefix, ..Default::default()
        };
        // Half of the time the lists agree in length, so that the checks behind that one are reached, too.
        if gguf.tokens.len().is_multiple_of(2) {
            gguf.scores.resize(gguf.tokens.len(), 0.0);
            gguf.token_types.resize(gguf.tokens.len(), 1);
        }
        if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
            let ids = tokenizer.encode("ab a<0 é", true).unwrap_or_default();
            tokenizer.decode(&ids, false).unwrap();
        }
    }

    #[test]
    fn our_decoding_is_the_librarys(ids in prop::collection::vec(0u32..4096, 0..60), skip: bool) {
        let tokenizer = demo();
        prop_assert_eq!(tokenizer.decode(&ids, skip).unwrap(), tokenizer.library.decode(&ids, skip).unwrap());
    }

    #[test]
    fn sentence_piece_text_comes_back(text in "[ a-z\u{e9}\u{4f60}\u{1f600}]{0,30}") {
        let tokenizer = Tokenizer::from_gguf(&sentence_piece(&["▁", "a", "b", "ab", "▁a"])).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.as_str());
        prop_assert_eq!(tokenizer.library.decode(&ids, true).unwrap(), text);
    }

    #[test]
    fn damaged_files_are_errors_or_tokenizers_but_never_panics(
        cut in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        truncate: bool,
    ) {
        // The settings and a small vocabulary; the demo's own is large and all alike.
        let mut bytes = small_file();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_it(&bytes);
    }

    #[test]
    fn files_with_foreign_values_are_errors_or_tokenizers_but_never_panics(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(u64::MAX)), Just(json!("")), Just(json!([])), Just(json!({})),
            Just(json!(0)), Just(json!(u32::MAX)), Just(json!(1e300)), Just(json!(true)), Just(json!("(?<x>(a+)+$)")),
        ],
    ) {
        let mut file: Value = serde_json::from_slice(&small_file()).unwrap();
        let mut paths = Vec::new();
        all_paths(&file, String::new(), &mut paths);
        *file.pointer_mut(&paths[at.index(paths.len())]).unwrap() = value;
        use_it(file.to_string().as_bytes());
    }
}

fn use_it(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(bytes) {
        let _ = tokenizer.encode("hello é 12 <s> aaaaaaaaaaaaaaaa", true);
        let _ = tokenizer.encode_continuation(" hello");
        let _ = tokenizer.decode(&[0, 1, 2, 300], false);
    }
}

/// A file with every kind of setting.
fn small_file() -> Vec<u8> {
    let gguf = GgufTokenizer { add_bos: Some(true), ..sentence_piece(&["▁", "h", "e", "l", "o", "he"]) };
    let mut file = gguf.to_tokenizer_json().unwrap();
    file["truncation"] =
        json!({ "direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0 });
    file["padding"] = json!({ "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": 4, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>" });
    file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "\\d" }, "behavior": "Isolated", "invert": false },
        { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true } ] });
    file.to_string().into_bytes()
}

fn all_paths(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields.iter().filter(|(name, _)| !name.contains(['/', '~'])).take(20) {
                all_paths(inner, format!("{path}/{name}"), paths);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate().take(20) {
                all_paths(inner, format!("{path}/{index}"), paths);
            }
        }
        _ => {}
    }
    paths.push(path);
}
