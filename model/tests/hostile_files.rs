//! Files from strangers: thousands of damaged copies of valid ones go through every reader. None may panic, and none
//! may allocate more than a small bound, whatever lengths it claims. The same readers are fuzzed in `model/fuzz`.
//! Deterministic: a failure names its case, and the case alone decides the damage.

#[path = "support/gguf_writer.rs"]
mod gguf_writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gguf_writer::{Value, small_llama};
use peak_alloc::PeakAlloc;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use stellate_model::checkpoint::{Checkpoint, GenerationDefaults, TensorTable};
use stellate_model::config::ModelConfig;
use stellate_model::gguf::GgufFile;
use stellate_model::tokenizer::Tokenizer;
use stellate_model::weights::WeightChoice;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What reading one damaged file may allocate, in bytes. The files have less than 1 MiB.
const MAX_ALLOCATED_BYTES: usize = 64 << 20;

/// Damage to lengths and counts is likelier near the start, where headers are.
const HEADER_BYTES: usize = 6000;

/// The heap is measured for the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const HOSTILE_NUMBERS: [u64; 12] =
    [0, 1, 2, 3, 31, 255, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 40, u64::MAX / 2, u64::MAX];

const HOSTILE_TEXTS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "3",
    "1e308",
    "1e-308",
    "0.5",
    "4294967296",
    "18446744073709551615",
    "99999999999999999999999999",
    "null",
    "true",
    "\"\"",
    "[[[[]]]]",
];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(path)
}

/// Runs `read` on `cases` damaged copies of `valid`; it says whether it accepted them. Some must be accepted and
/// some refused, or the damage would not reach what it is meant to test.
fn survive(what: &str, cases: u64, valid: &[u8], read: impl Fn(u64, &[u8]) -> bool) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut accepted = 0;
    for case in 0..cases {
        let damaged = damage(case, valid);
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let result = catch_unwind(AssertUnwindSafe(|| read(case, &damaged)));
        match result {
            Ok(well) => accepted += u64::from(well),
            Err(_) => panic!("{what}: case {case} panicked"),
        }
        let allocated = HEAP.peak_usage().saturating_sub(before);
        assert!(allocated <= MAX_ALLOCATED_BYTES, "{what}: case {case} allocated {allocated} bytes");
    }
    assert!((1..cases).contains(&accepted), "{what}: {accepted} of {cases} damaged files were accepted");
}

fn damage(case: u64, valid: &[u8]) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(case);
    let mut bytes = valid.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        let region = if rng.random_ratio(3, 4) { bytes.len().min(HEADER_BYTES) } else { bytes.len() };
        let at = rng.random_range(0..region);
        match rng.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = rng.random(),
            3 => overwrite(&mut bytes, at, &hostile(&mut rng).to_le_bytes()),
            4 => overwrite(&mut bytes, at, &(hostile(&mut rng) as u32).to_le_bytes()),
            5 => {
                let end = bytes.len().min(at + rng.random_range(1..64));
                bytes.drain(at..end);
            }
            6 => {
                let mut noise = vec![0; rng.random_range(1..64)];
                rng.fill_bytes(&mut noise);
                bytes.splice(at..at, noise);
            }
            _ => replace_number(&mut rng, &mut bytes, at),
        }
    }
    bytes
}

fn hostile(rng: &mut ChaCha8Rng) -> u64 {
    HOSTILE_NUMBERS[rng.random_range(0..HOSTILE_NUMBERS.len())]
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let end = bytes.len().min(at + with.len());
    bytes[at..end].copy_from_slice(&with[..end - at]);
}

/// Puts a hostile value in place of the next number of a text.
fn replace_number(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, at: usize) {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let Some(start) = bytes[at..].iter().position(|byte| byte.is_ascii_digit()).map(|found| at + found)
    else {
        return;
    };
    let end =
        bytes[start..].iter().position(|byte| !is_digit(byte)).map_or(bytes.len(), |found| start + found);
    let text = HOSTILE_TEXTS[rng.random_range(0..HOSTILE_TEXTS.len())];
    bytes.splice(start..end, text.bytes());
}

/// A directory whose files are replaced from case to case.
fn scratch_copy(name: &str, files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(golden(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn open_and_load(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    checkpoint.load(WeightChoice::Auto, &mut |_| ()).unwrap();
    true
}

#[test]
fn damaged_gguf_files_are_errors_or_models() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for name in ["llama-tied/model.gguf", "qwen3/model.gguf"] {
        let valid = std::fs::read(golden(name)).unwrap();
        survive(name, 3000, &valid, |case, bytes| {
            let sound = Checkpoint::check_gguf(bytes).is_ok();
            if sound && case % 16 == 0 {
                std::fs::write(&path, bytes).unwrap();
                assert!(open_and_load(&path));
            }
            sound
        });
    }
}

#[test]
fn damaged_gguf_tokenizers_are_errors_or_tokenizers() {
    let mut file = small_llama();
    file.set("tokenizer.ggml.model", Value::Text("gpt2"));
    file.set("tokenizer.ggml.tokens", Value::Texts(vec!["a", "b", "c", "ab", "abc", "<s>"]));
    file.set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 1, 1, 3]));
    file.set("tokenizer.ggml.merges", Value::Texts(vec!["a b", "ab c"]));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(5));
    file.tensors.clear();
    survive("GGUF tokenizer", 3000, &file.bytes(), |_, bytes| {
        let Ok(gguf) = GgufFile::parse(bytes) else { return false };
        let Some(tokenizer) = gguf.metadata().tokenizer() else { return false };
        let Ok(tokenizer) = Tokenizer::from_gguf(&tokenizer) else { return false };
        let _ = tokenizer.encode("abc cab", true);
        true
    });
}

#[test]
fn damaged_configurations_are_errors_or_models() {
    for name in ["llama-tied", "llama3", "mistral", "qwen2", "qwen3"] {
        let valid = std::fs::read(golden(name).join("config.json")).unwrap();
        survive(name, 3000, &valid, |_, bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = GenerationDefaults::from_json(&text, GenerationDefaults::default());
            let config = ModelConfig::from_json(&text);
            if let Ok(config) = &config {
                let (frequencies, attention) = config.rope.inverse_frequencies(config.head_dim);
                assert!(attention.is_finite() && frequencies.iter().all(|frequency| frequency.is_finite()));
                let _ = config.check_context(1 << 20);
            }
            config.is_ok()
        });
    }
}

#[test]
fn damaged_safetensors_are_errors_or_models() {
    let dir = scratch_copy("llama-tied", &["config.json"]);
    let path = dir.path().join("model.safetensors");
    let valid = std::fs::read(golden("llama-tied/model.safetensors")).unwrap();
    survive("safetensors", 3000, &valid, |case, bytes| {
        let sound = TensorTable::default().add_safetensors(0, &path, bytes).is_ok();
        if sound || case % 16 == 0 {
            std::fs::write(&path, bytes).unwrap();
            open_and_load(dir.path());
        }
        sound
    });
}

#[test]
fn damaged_indexes_are_errors_or_models() {
    let dir = scratch_copy("llama-tied", &["config.json"]);
    std::fs::copy(golden("llama-tied/model.safetensors"), dir.path().join("a.safetensors")).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let valid = br#"{"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "a.safetensors"}}"#;
    survive("index", 500, valid, |_, bytes| {
        std::fs::write(&index, bytes).unwrap();
        open_and_load(dir.path())
    });
}

#[test]
fn damaged_tokenizer_files_are_errors_or_tokenizers() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tokenizer.json");
    let valid = std::fs::read(demo).unwrap();
    survive("tokenizer.json", 60, &valid, |_, bytes| {
        let Ok(tokenizer) = Tokenizer::from_bytes(bytes) else { return false };
        let _ = tokenizer.encode("The code is 7421.", true);
        true
    });
}
