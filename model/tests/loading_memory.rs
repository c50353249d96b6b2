//! The peak of memory while loading: at most 1.1 × the weights in their running format, measured both as heap and
//! as what the system counts as resident, mapped pages included. One test, so that nothing else runs beside it.

use std::collections::BTreeMap;

use peak_alloc::PeakAlloc;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use stellate_model::checkpoint::Checkpoint;
use stellate_model::weights::WeightChoice;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const HIDDEN: usize = 1024;
const INNER: usize = 4096;
const LAYERS: usize = 4;
const VOCAB: usize = 16_384;

/// Writes a bf16 checkpoint of about 170 MB, most of it zeros.
fn write_checkpoint(dir: &std::path::Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 16, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let data: Vec<u8> =
        (0..2 * VOCAB * HIDDEN).map(|index| if index % 2 == 1 { 0x3c } else { index as u8 }).collect();
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = 2 * shape.iter().product::<usize>();
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), &data[..bytes]).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// A line of /proc/self/status, in bytes; `None` where there is no such file.
fn status_bytes(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

#[test]
#[allow(clippy::print_stdout)] // a test that cannot measure says so
fn loading_takes_at_most_a_tenth_more_memory_than_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for choice in [WeightChoice::Auto, WeightChoice::F32, WeightChoice::Q8_0] {
        // Forget the peak so far, as proc(5) describes. Where that is refused, only the heap is measured.
        let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        let resident = status_bytes("VmRSS");
        HEAP.reset_peak_usage();
        let heap = HEAP.current_usage();
        let loaded = checkpoint.load(choice, &mut |_| ()).unwrap();
        let limit = loaded.weights.bytes() + loaded.weights.bytes() / 10;
        let heap_peak = HEAP.peak_usage() - heap;
        assert!(
            heap_peak <= limit,
            "{choice}: {heap_peak} bytes of heap for weights of {}",
            loaded.weights.bytes()
        );
        match (resident, status_bytes("VmHWM")) {
            (Some(before), Some(peak)) if reset => {
                let grown = peak.saturating_sub(before);
                assert!(
                    grown <= limit,
                    "{choice}: {grown} bytes resident for weights of {}",
                    loaded.weights.bytes()
                );
            }
            _ => println!("SKIPPED: this system does not say how much memory is resident"),
        }
    }
}
