//! Opening and loading Hugging Face checkpoints: every golden model, every error that a damaged one must give, and
//! what loading keeps of the numbers.

#[path = "support/golden.rs"]
mod golden;

use std::path::Path;

use golden::{config_copy, golden, tensors, write_tensors};
use safetensors::Dtype;
use stellate_kernels::WeightFormat;
use stellate_model::checkpoint::{Checkpoint, CheckpointError};
use stellate_model::config::ConfigError;
use stellate_model::weights::WeightChoice;

const GOLDENS: [&str; 5] = ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"];

fn open(dir: &tempfile::TempDir) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(dir.path())
}

#[test]
fn every_golden_model_loads_in_f32_bit_for_bit() {
    for name in GOLDENS {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut done = 0;
        let mut total = 0;
        let loaded = checkpoint
            .load(WeightChoice::Auto, &mut |progress| {
                assert!(progress.done_bytes > done);
                (done, total) = (progress.done_bytes, progress.total_bytes);
            })
            .unwrap();
        assert_eq!(done, total);
        assert_eq!(loaded.weights.layers.len(), checkpoint.config().layers);
        assert_eq!(loaded.weights.output.is_none(), checkpoint.config().tie_word_embeddings);
        assert_eq!(loaded.fingerprint, checkpoint.fingerprint(WeightChoice::Auto).unwrap());

        let stored = tensors(name);
        let down = &loaded.weights.layers[1].down;
        assert_eq!(down.format(), WeightFormat::F32);
        let mut row = vec![0.0; down.cols()];
        let (_, _, expected) = &stored["model.layers.1.mlp.down_proj.weight"];
        for (index, expected) in expected.chunks_exact(4 * down.cols()).enumerate() {
            down.row(index, &mut row);
            assert_eq!(bytemuck::cast_slice::<f32, u8>(&row), expected, "{name}, row {index}");
        }
        if let Some(bias) = &loaded.weights.layers[0].query_bias {
            let (_, _, expected) = &stored["model.layers.0.self_attn.q_proj.bias"];
            assert_eq!(bytemuck::cast_slice::<f32, u8>(bias), expected);
        }
    }
}

#[test]
fn f16_and_bf16_checkpoints_run_in_bf16_and_differ_in_their_fingerprints() {
    let mut fingerprints = Vec::new();
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
        let dir = config_copy("llama-tied");
        let mut tensors = tensors("llama-tied");
        for (stored, _, data) in tensors.values_mut().filter(|_| dtype != Dtype::F32) {
            let values = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            *data = match dtype {
                Dtype::F16 => values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect(),
                _ => values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect(),
            };
            *stored = dtype;
        }
        write_tensors(&dir.path().join("model.safetensors"), &tensors);
        let loaded = open(&dir).unwrap().load(WeightChoice::Auto, &mut |_| ()).unwrap();
        let expected = if dtype == Dtype::F32 { WeightFormat::F32 } else { WeightFormat::Bf16 };
        let query = &loaded.weights.layers[0].query;
        assert_eq!(query.format(), expected);
        let (_, _, data) = &tensors["model.layers.0.self_attn.q_proj.weight"];
        let mut row = vec![0.0; query.cols()];
        query.row(3, &mut row);
        let width = data.len() / query.rows() / query.cols();
        let third = &data[3 * width * query.cols()..];
        let first = match dtype {
            Dtype::F16 => half::f16::from_le_bytes([third[0], third[1]]).to_f32(),
            Dtype::BF16 => half::bf16::from_le_bytes([third[0], third[1]]).to_f32(),
            _ => f32::from_le_bytes([third[0], third[1], third[2], third[3]]),
        };
        assert!((row[0] - first).abs() <= first.abs() / 256.0, "{dtype:?}: {} became {}", first, row[0]);
        fingerprints.push(loaded.fingerprint);
    }
    fingerprints.sort();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 3);
}

#[test]
fn quantised_choices_fall_back_where_rows_are_not_whole_blocks() {
    let checkpoint = Checkpoint::open(&golden("llama3")).unwrap();
    let loaded = checkpoint.load(WeightChoice::Q4K, &mut |_| ()).unwrap();
    let layer = &loaded.weights.layers[0];
    assert_eq!(layer.query.format(), WeightFormat::Q8_0, "64 columns are blocks of 32 but not of 256");
    assert_eq!(layer.down.format(), WeightFormat::Bf16, "176 columns are neither");
    let q8 = checkpoint.fingerprint(WeightChoice::Q8_0).unwrap();
    assert_eq!(q8, loaded.fingerprint, "here both choices run every tensor in the same format");
    assert_ne!(q8, checkpoint.fingerprint(WeightChoice::F32).unwrap());
}

#[test]
fn shards_give_the_same_weights_as_one_file() {
    let dir = config_copy("qwen3");
    shard(dir.path(), "qwen3");
    let sharded = open(&dir).unwrap();
    let single = Checkpoint::open(&golden("qwen3")).unwrap();
    let fingerprint = |checkpoint: &Checkpoint| checkpoint.fingerprint(WeightChoice::F32).unwrap();
    assert_eq!(fingerprint(&sharded), fingerprint(&single));
    let by_file = Checkpoint::open(&dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    assert_eq!(fingerprint(&by_file), fingerprint(&single));
}

/// Splits a golden model's tensors over two shards with an index.
fn shard(dir: &Path, name: &str) {
    let mut first = tensors(name);
    let middle = first.keys().nth(first.len() / 2).unwrap().clone();
    let second = first.split_off(&middle);
    let mut map = serde_json::Map::new();
    for (number, tensors) in [(1, first), (2, second)] {
        let file = format!("model-0000{number}-of-00002.safetensors");
        write_tensors(&dir.join(&file), &tensors);
        map.extend(tensors.into_keys().map(|tensor| (tensor, file.clone().into())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    let dir = config_copy("qwen3");
    shard(dir.path(), "qwen3");
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingShard { .. }));
    assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn an_index_cannot_reach_outside_its_directory() {
    for name in ["../secrets.safetensors", "/etc/passwd", "a/b.safetensors", ".."] {
        let dir = config_copy("qwen3");
        let index = serde_json::json!({ "weight_map": { "model.norm.weight": name } });
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert!(matches!(open(&dir), Err(CheckpointError::Malformed { .. })), "{name}");
    }
}

#[test]
fn a_truncated_file_is_reported_with_the_bytes_it_lacks() {
    let whole = std::fs::read(golden("llama3").join("model.safetensors")).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 1000, 8, 7, 0] {
        let dir = config_copy("llama3");
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, &whole[..length]).unwrap();
        match open(&dir) {
            Err(CheckpointError::Truncated { needed_bytes, found_bytes, .. }) => {
                assert_eq!(found_bytes, length as u64);
                assert!(needed_bytes > found_bytes);
            }
            // An empty file cannot be mapped everywhere.
            Err(CheckpointError::Io { .. }) if length == 0 => {}
            other => panic!("{length} bytes gave {other:?}"),
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = config_copy("mistral");
    let mut tensors = tensors("mistral");
    tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    match open(&dir).unwrap_err() {
        CheckpointError::MissingTensor { tensor } => assert_eq!(tensor, "model.layers.1.mlp.up_proj.weight"),
        other => panic!("{other}"),
    }
}

#[test]
fn a_wrong_shape_is_reported_with_both_shapes() {
    let dir = config_copy("mistral");
    let mut tensors = tensors("mistral");
    tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().1 = vec![64, 24];
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    match open(&dir).unwrap_err() {
        CheckpointError::WrongShape { tensor, expected, found } => {
            assert_eq!(tensor, "model.layers.0.self_attn.k_proj.weight");
            assert_eq!((expected, found), (vec![24, 64], vec![64, 24]));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_unsupported_number_format_is_named() {
    let dir = config_copy("mistral");
    let mut tensors = tensors("mistral");
    tensors.get_mut("lm_head.weight").unwrap().0 = Dtype::I32;
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    match open(&dir).unwrap_err() {
        CheckpointError::UnsupportedType { tensor, found } => {
            assert_eq!((tensor.as_str(), found.as_str()), ("lm_head.weight", "I32"));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_unknown_architecture_is_refused_before_the_weights_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["MambaForCausalLM"], "hidden_size": 64}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    match open(&dir).unwrap_err() {
        CheckpointError::Config { source: ConfigError::UnknownArchitecture { found }, .. } => {
            assert_eq!(found, "MambaForCausalLM");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn missing_files_are_named() {
    let error = Checkpoint::open(Path::new("/no/such/model")).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }));
    assert!(error.to_string().contains("/no/such/model"));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open(&empty), Err(CheckpointError::MissingConfig { .. })));
    assert!(matches!(open(&config_copy("qwen2")), Err(CheckpointError::MissingWeights { .. })));
    let text = empty.path().join("model.txt");
    std::fs::write(&text, "no weights").unwrap();
    assert!(matches!(Checkpoint::open(&text), Err(CheckpointError::UnknownKind { .. })));
}

#[test]
fn special_ids_come_from_the_generation_configuration_first() {
    let dir = config_copy("llama-tied");
    write_tensors(&dir.path().join("model.safetensors"), &tensors("llama-tied"));
    let from_config = open(&dir).unwrap();
    assert_eq!(from_config.generation_config().bos_id, Some(1));
    assert_eq!(from_config.generation_config().eos_ids, [2]);
    let generation = r#"{"eos_token_id": [7, 9], "temperature": 0.6, "top_k": 20, "do_sample": true}"#;
    std::fs::write(dir.path().join("generation_config.json"), generation).unwrap();
    let checkpoint = open(&dir).unwrap();
    let defaults = checkpoint.generation_config();
    assert_eq!((defaults.bos_id, defaults.eos_ids.as_slice()), (Some(1), [7, 9].as_slice()));
    assert_eq!((defaults.temperature, defaults.top_k, defaults.do_sample), (Some(0.6), Some(20), Some(true)));
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
    let error = open(&dir).unwrap_err();
    assert!(error.to_string().contains("eos_token_id"), "{error}");
}

#[test]
fn a_bad_text_file_is_named_and_no_other_is_blamed() {
    for (bad, other) in
        [("generation_config.json", "/config.json"), ("config.json", "generation_config.json")]
    {
        let dir = config_copy("llama-tied");
        write_tensors(&dir.path().join("model.safetensors"), &tensors("llama-tied"));
        std::fs::write(dir.path().join(bad), "{\"eos_token_id\": ").unwrap();
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", dir.path().join(bad).display())), "{error}");
        assert!(error.ends_with("fetch the file again") && !error.contains(other), "{error}");
    }
}

#[test]
fn the_demo_model_opens_with_all_its_text_files() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let checkpoint = Checkpoint::open(&demo).unwrap();
    assert!(checkpoint.files().tokenizer.is_some());
    assert!(checkpoint.files().tokenizer_config.is_some());
    let loaded = checkpoint.load(WeightChoice::Auto, &mut |_| ()).unwrap();
    assert_eq!(loaded.weights.embedding.format(), WeightFormat::Bf16);
}
