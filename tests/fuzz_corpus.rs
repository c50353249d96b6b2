//! What fuzzing has found worth keeping, once more: every input of every corpus goes through the body of its target. A corpus is
//! a text file, one input per line in hexadecimal digits; `cargo xtask fuzz` grows it.

macro_rules! corpora {
    ($($test:ident: $target:ident of $fuzz:literal;)*) => {$(
        mod $target {
            include!(concat!("../", $fuzz, "/bodies/", stringify!($target), ".rs"));
        }

        #[test]
        fn $test() {
            let corpus = include_str!(concat!("../", $fuzz, "/corpus/", stringify!($target), ".hex"));
            assert!(corpus.lines().count() > 0, "an empty corpus shows nothing");
            for line in corpus.lines() {
                let digits = line.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
                let bytes: Vec<u8> =
                    digits.map(|pair| u8::from_str_radix(pair, 16).expect("two hexadecimal digits")).collect();
                $target::$target(&bytes);
            }
        }
    )*};
}

corpora! {
    frames_of_any_bytes: frames of "runtime/fuzz";
    certificates_of_any_bytes: certificates of "runtime/fuzz";
    requests_to_join_of_any_bytes: joins of "runtime/fuzz";
    membership_of_any_bytes: membership of "runtime/fuzz";
    tokens_of_any_text: tokens of "runtime/fuzz";
    control_messages_of_any_bytes: control of "actors/fuzz";
    headers_of_any_bytes: headers of "actors/fuzz";
    requests_of_any_bytes: requests of "actors/fuzz";
    configurations_of_any_text: config of "model/fuzz";
    gguf_files_of_any_bytes: gguf of "model/fuzz";
    safetensors_files_of_any_bytes: safetensors of "model/fuzz";
    tokenizers_of_any_bytes: tokenizer of "model/fuzz";
}
