//! GGUF files: the goldens that the `gguf` Python package wrote give the weights of their safetensors; quantised
//! tensors stay as they are; every damage is a clear error.

#[path = "support/gguf_writer.rs"]
mod gguf_writer;

use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use gguf_writer::{GgufWriter, Value, noise, small_llama};
use stellate_kernels::{Matrix, WeightFormat};
use stellate_model::checkpoint::{Checkpoint, CheckpointError};
use stellate_model::config::{ConfigError, RopeConfig, RopeScaling};
use stellate_model::families::Family;
use stellate_model::gguf::GgufError;
use stellate_model::weights::{WeightChoice, Weights};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

fn load(path: &Path) -> (Checkpoint, Weights) {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"));
    let loaded = checkpoint.load(WeightChoice::Auto, &mut |_| ()).unwrap();
    (checkpoint, loaded.weights)
}

fn rows(matrix: &Matrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.cols()];
    for (index, row) in values.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.row(index, row);
    }
    values
}

#[test]
fn a_gguf_file_gives_the_configuration_and_weights_of_its_safetensors() {
    for name in ["llama-tied", "qwen3"] {
        let (from_gguf, ours) = load(&golden(name).join("model.gguf"));
        let (from_directory, theirs) = load(&golden(name));
        let mut config = from_gguf.config().clone();
        assert_eq!(config.rope.inverse_frequencies(config.head_dim), {
            let rope = &from_directory.config().rope;
            rope.inverse_frequencies(config.head_dim)
        });
        config.rope = from_directory.config().rope.clone();
        assert_eq!(&config, from_directory.config(), "{name}");
        assert_eq!(ours.output.is_none(), theirs.output.is_none());
        assert_eq!(rows(&ours.embedding), rows(&theirs.embedding));
        assert_eq!(ours.final_norm, theirs.final_norm);
        for (ours, theirs) in ours.layers.iter().zip(&theirs.layers) {
            assert_eq!(rows(&ours.query), rows(&theirs.query), "{name}: rows put back in order");
            assert_eq!(rows(&ours.key), rows(&theirs.key));
            assert_eq!(rows(&ours.value), rows(&theirs.value));
            assert_eq!(rows(&ours.output), rows(&theirs.output));
            assert_eq!(rows(&ours.down), rows(&theirs.down));
            assert_eq!(ours.query_norm, theirs.query_norm);
            assert_eq!(ours.mlp_norm, theirs.mlp_norm);
        }
    }
}

/// Quantises with candle and returns ggml's type number, the raw blocks and the values they stand for.
fn quantised(kind: GgmlDType, shape: (usize, usize), values: &[f32]) -> (u32, Vec<u8>, Vec<f32>) {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let blocks = QTensor::quantize(&tensor, kind).unwrap();
    let widened = blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let code = match kind {
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q6K => 14,
        other => panic!("{other:?} is not read"),
    };
    (code, blocks.data().unwrap().into_owned(), widened)
}

#[test]
fn quantised_tensors_stay_as_they_are_and_widen_to_what_candle_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut file = small_llama();
    let mut expected = Vec::new();
    for (name, kind, shape) in [
        ("token_embd.weight", GgmlDType::Q6K, (96, 256)),
        ("blk.0.attn_q.weight", GgmlDType::Q4K, (256, 256)),
        ("blk.0.attn_v.weight", GgmlDType::Q8_0, (64, 256)),
    ] {
        let values = noise(7, shape.0 * shape.1);
        let (code, blocks, widened) = quantised(kind, shape, &values);
        file.tensor(name, &[shape.0, shape.1], code, blocks);
        expected.push(widened);
    }
    std::fs::write(&path, file.bytes()).unwrap();

    let (checkpoint, weights) = load(&path);
    assert_eq!(weights.embedding.format(), WeightFormat::Q6K);
    assert_eq!(rows(&weights.embedding), expected[0]);
    let layer = &weights.layers[0];
    assert_eq!(layer.query.format(), WeightFormat::Q4K);
    assert_eq!(
        rows(&layer.query),
        in_halves(&expected[1], 8, 32, 256),
        "raw blocks are put back in order, too"
    );
    assert_eq!(layer.value.format(), WeightFormat::Q8_0);
    assert_eq!(rows(&layer.value), expected[2]);
    assert_eq!(layer.up.format(), WeightFormat::F32);

    let widened = checkpoint.load(WeightChoice::F32, &mut |_| ()).unwrap().weights;
    assert_eq!(widened.embedding.format(), WeightFormat::F32);
    assert_eq!(rows(&widened.embedding), expected[0]);
    assert_eq!(rows(&widened.layers[0].query), in_halves(&expected[1], 8, 32, 256));
    let halved = checkpoint.load(WeightChoice::Bf16, &mut |_| ()).unwrap().weights;
    for (ours, exact) in rows(&halved.embedding).iter().zip(&expected[0]) {
        assert!((ours - exact).abs() <= exact.abs() / 256.0, "{ours} is not {exact} in bf16");
    }
    let requantised = checkpoint.load(WeightChoice::Q4K, &mut |_| ()).unwrap().weights;
    assert_eq!(requantised.embedding.format(), WeightFormat::Q4K);
}

/// From rows of neighbouring pairs, as llama.cpp stores them, to rows of two halves per head.
fn in_halves(values: &[f32], heads: usize, head_dim: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for part in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + part;
                out.extend_from_slice(&values[row * cols..][..cols]);
            }
        }
    }
    out
}

#[test]
fn sixteen_bit_tensors_and_version_2_are_read() {
    let values = noise(3, 64 * 256);
    let f16: Vec<u8> = values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let bf16: Vec<u8> = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    for (code, contents) in [(1, f16), (30, bf16)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut file = small_llama();
        file.version = 2;
        file.alignment = 64;
        file.set("general.alignment", Value::U32(64));
        file.tensor("blk.0.attn_v.weight", &[64, 256], code, contents);
        std::fs::write(&path, file.bytes()).unwrap();
        let (checkpoint, weights) = load(&path);
        assert_eq!(checkpoint.config().family, Family::Llama);
        assert_eq!(weights.layers[0].value.format(), WeightFormat::Bf16);
        for (ours, exact) in rows(&weights.layers[0].value).iter().zip(&values) {
            assert!((ours - exact).abs() <= exact.abs() / 64.0 + 1e-4);
        }
    }
}

#[test]
fn frequency_factors_of_llama_3_are_taken_from_their_tensor() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 64,
    };
    let published = RopeConfig { theta: 500_000.0, scaling };
    let plain = RopeConfig::plain(500_000.0).inverse_frequencies(32).0;
    let scaled = published.inverse_frequencies(32).0;
    let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
    let mut file = small_llama();
    file.f32_tensor("rope_freqs.weight", &[16], &factors);
    let config = Checkpoint::check_gguf(&file.bytes()).unwrap();
    for (ours, expected) in config.rope.inverse_frequencies(32).0.iter().zip(&scaled) {
        assert!((ours - expected).abs() <= expected * 3e-7, "{ours} is not {expected}");
    }
    file.f32_tensor("rope_freqs.weight", &[4], &[1.0; 4]);
    let error = Checkpoint::check_gguf(&file.bytes()).unwrap_err();
    assert!(error.to_string().contains("rope_freqs.weight"), "{error}");
}

#[test]
fn rope_scaling_and_a_sliding_window_are_read_from_metadata() {
    let mut file = small_llama();
    file.set("llama.rope.scaling.type", Value::Text("linear"));
    file.set("llama.rope.scaling.factor", Value::F32(4.0));
    file.set("llama.attention.sliding_window", Value::U32(128));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    file.set("tokenizer.ggml.eot_token_id", Value::U32(9));
    let config = Checkpoint::check_gguf(&file.bytes()).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert!(config.check_context(129).is_err());
    assert_eq!(config.eos_ids, [2, 9]);
    file.set("llama.rope.scaling.type", Value::Text("longrope"));
    let Err(CheckpointError::Config { source, .. }) = Checkpoint::check_gguf(&file.bytes()) else { panic!() };
    assert_eq!(source, ConfigError::UnknownRopeType { found: "longrope".into() });
}

#[test]
fn the_tokenizer_of_a_file_is_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut file = small_llama();
    file.set("tokenizer.ggml.model", Value::Text("gpt2"));
    file.set("tokenizer.ggml.tokens", Value::Texts(vec!["a", "b", "ab"]));
    file.set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 3]));
    file.set("tokenizer.ggml.merges", Value::Texts(vec!["a b"]));
    file.set("tokenizer.chat_template", Value::Text("{{ messages }}"));
    std::fs::write(&path, file.bytes()).unwrap();
    let (checkpoint, _) = load(&path);
    let metadata = checkpoint.gguf_metadata().unwrap();
    let tokenizer = metadata.tokenizer().unwrap();
    assert_eq!((tokenizer.model.as_str(), tokenizer.tokens.len()), ("gpt2", 3));
    assert_eq!(tokenizer.token_types, [1, 1, 3]);
    assert_eq!(metadata.chat_template(), Some("{{ messages }}"));
}

fn gguf_error(bytes: &[u8]) -> GgufError {
    match Checkpoint::check_gguf(bytes) {
        Err(CheckpointError::Gguf { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_header_is_a_clear_error() {
    let bytes = small_llama().bytes();
    assert_eq!(gguf_error(b"GGML"), GgufError::NotGguf);
    assert_eq!(gguf_error(b""), GgufError::NotGguf);
    let mut other_version = bytes.clone();
    other_version[4] = 1;
    assert_eq!(gguf_error(&other_version), GgufError::Version(1));
    for length in [4, 12, 23, 100, 400] {
        assert!(matches!(gguf_error(&bytes[..length]), GgufError::Truncated { .. }), "{length}");
    }
    let cut = gguf_error(&bytes[..bytes.len() - 1]);
    assert!(
        matches!(&cut, GgufError::TruncatedTensor { tensor, .. } if tensor == "output_norm.weight"),
        "{cut}"
    );
    for count in [1u64 << 20, 1 << 40, u64::MAX] {
        for at in [8, 16] {
            let mut many = bytes.clone();
            many[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(matches!(gguf_error(&many), GgufError::Truncated { .. }), "{count} at {at}");
        }
    }
}

#[test]
fn tensors_that_contradict_themselves_are_named() {
    let with = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = small_llama();
        change(&mut file);
        Checkpoint::check_gguf(&file.bytes()).unwrap_err().to_string()
    };
    let name = "blk.0.attn_v.weight";
    let unsupported = with(&|file| file.tensor(name, &[64, 256], 13, vec![0; 64 * 176]));
    assert!(unsupported.contains(name) && unsupported.contains("Q5_K"), "{unsupported}");
    let ragged = with(&|file| file.tensor(name, &[64, 100], 12, vec![0; 4096]));
    assert!(ragged.contains(name) && ragged.contains("blocks"), "{ragged}");
    let turned = with(&|file| file.tensor(name, &[256, 64], 0, vec![0; 64 * 256 * 4]));
    assert!(turned.contains("[256, 64]") && turned.contains("[64, 256]"), "{turned}");
    let missing = with(&|file| file.tensors.retain(|(tensor, ..)| tensor != name));
    assert!(missing.contains(name), "{missing}");
    let huge = with(&|file| file.tensors[0].1 = vec![u64::MAX, u64::MAX]);
    assert!(huge.contains("larger than any file"), "{huge}");
    let twice = with(&|file| file.tensors.push(file.tensors[0].clone()));
    assert!(twice.contains("twice"), "{twice}");
    let foreign = with(&|file| file.set("general.architecture", Value::Text("mamba")));
    assert!(foreign.contains("mamba"), "{foreign}");
    let headless = with(&|file| file.set("llama.attention.head_count", Value::U32(0)));
    assert!(headless.contains("num_attention_heads") || headless.contains("head"), "{headless}");
}
