//! Opening and loading checkpoints: every golden model, every error that a damaged one must give, and what loading
//! keeps of the numbers.

use std::path::{Path, PathBuf};

use stellate_model::checkpoint::{Checkpoint, CheckpointError};
use stellate_model::weights::WeightChoice;

const GOLDENS: [&str; 5] = ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

#[test]
fn every_golden_model_opens_and_loads_in_f32_bit_for_bit() {
    for name in GOLDENS {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut done = 0;
        let mut total = 0;
        let loaded = checkpoint
            .load(WeightChoice::F32, &mut |progress| {
                assert!(progress.done_bytes > done);
                (done, total) = (progress.done_bytes, progress.total_bytes);
            })
            .unwrap();
        assert_eq!(done, total);
        assert_eq!(loaded.weights.layers.len(), checkpoint.config().layers);
        assert_eq!(loaded.fingerprint, checkpoint.fingerprint(WeightChoice::F32).unwrap());

        let bytes = std::fs::read(golden(name).join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let stored = tensors.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        let down = &loaded.weights.layers[1].down;
        let mut row = vec![0.0; down.cols()];
        for (index, expected) in stored.data().chunks_exact(4 * down.cols()).enumerate() {
            down.row(index, &mut row);
            assert_eq!(bytemuck::cast_slice::<f32, u8>(&row), expected, "{name}, row {index}");
        }
    }
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let error = Checkpoint::open(Path::new("/no/such/model")).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }));
    assert!(error.to_string().contains("/no/such/model"));
}
