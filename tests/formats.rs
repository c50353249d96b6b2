//! Number formats: bf16 keys and values, bf16 weights and quantised weights beside f32, on the goldens; and the same
//! weights as a GGUF file.

use stellate_actors::{AskOptions, ContextSource, KvFormat, QueryInput, WeightChoice};
use stellate_tests::{FAMILIES, answer, cases, golden_dir, golden_model, largest_difference, small_node};

/// Largest difference from f32 logits (whose scale is about 3) with bf16 keys and values: bf16 keeps 8 bits, and the
/// errors of a few hundred keys mostly cancel. Seen: 0.024.
const BF16_KV_TOLERANCE: f32 = 0.05;

/// The same with keys and values in 8 bits, each off by up to a 254th of the largest of its head. Seen: 0.087.
const Q8_KV_TOLERANCE: f32 = 0.18;

/// The same with bf16 weights. Seen: 0.059.
const BF16_WEIGHTS_TOLERANCE: f32 = 0.12;

/// The largest difference of query logits from those in f32, over every case of every family.
async fn off(weights: WeightChoice, kv: KvFormat) -> anyhow::Result<f32> {
    let mut worst = 0.0_f32;
    for family in FAMILIES {
        let plain = golden_model(&golden_dir(family), WeightChoice::F32)?;
        let other = golden_model(&golden_dir(family), weights)?;
        let plain = small_node(&plain, 1, KvFormat::F32).await?;
        let other = small_node(&other, 2, kv).await?;
        for case in cases(family)? {
            // The first turn: a later one begins with tokens that the other format may have chosen otherwise.
            let expected = answer(&plain, &case).await?.swap_remove(0).report.query_logits;
            let actual = answer(&other, &case).await?.swap_remove(0).report.query_logits;
            worst = worst.max(largest_difference(&expected.unwrap_or_default(), &actual.unwrap_or_default()));
        }
    }
    Ok(worst)
}

#[tokio::test]
async fn bf16_keys_and_values_stay_within_the_stated_tolerance_of_f32() -> anyhow::Result<()> {
    let off = off(WeightChoice::F32, KvFormat::Bf16).await?;
    assert!(off > 0.0 && off < BF16_KV_TOLERANCE, "off by {off}");
    Ok(())
}

#[tokio::test]
async fn eight_bit_keys_and_values_stay_within_the_stated_tolerance_of_f32() -> anyhow::Result<()> {
    let off = off(WeightChoice::F32, KvFormat::Q8).await?;
    assert!(off > 0.0 && off < Q8_KV_TOLERANCE, "off by {off}");
    Ok(())
}

#[tokio::test]
async fn bf16_weights_stay_within_the_stated_tolerance_of_f32() -> anyhow::Result<()> {
    let off = off(WeightChoice::Bf16, KvFormat::F32).await?;
    assert!(off > 0.0 && off < BF16_WEIGHTS_TOLERANCE, "off by {off}");
    Ok(())
}

#[tokio::test]
async fn the_same_weights_as_a_gguf_file_give_the_same_answers() -> anyhow::Result<()> {
    for family in ["llama-tied", "qwen3"] {
        let safetensors = golden_model(&golden_dir(family), WeightChoice::F32)?;
        let gguf = golden_model(&golden_dir(family).join("model.gguf"), WeightChoice::F32)?;
        let safetensors = small_node(&safetensors, 1, KvFormat::F32).await?;
        let gguf = small_node(&gguf, 2, KvFormat::F32).await?;
        for case in cases(family)? {
            let (expected, actual) = (answer(&safetensors, &case).await?, answer(&gguf, &case).await?);
            for (expected, actual) in expected.iter().zip(&actual) {
                assert_eq!(expected.report.ids, actual.report.ids, "{family} {}", case.case);
                let off = largest_difference(&expected.step_logits, &actual.step_logits);
                assert!(off < 1e-4, "{family} {}: off by {off}", case.case);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn keys_and_values_take_the_bytes_that_their_formula_says() -> anyhow::Result<()> {
    let model = golden_model(&golden_dir("llama3"), WeightChoice::F32)?;
    let config = model.decoder.config();
    let d = config.head_dim;
    for (kv, bytes) in [(KvFormat::F32, 4 * d), (KvFormat::Bf16, 2 * d), (KvFormat::Q8, d + 4)] {
        let node = small_node(&model, 2, kv).await?;
        let tokens: usize = 1280;
        let context =
            node.encode(ContextSource::Ids(vec![5; tokens]), stellate_actors::Layout::star(256, 0)).await?;
        let expected = 2 * config.layers * config.kv_heads * bytes * tokens;
        let held: usize = node.stores().map(|(_, store)| store.used_bytes()).sum();
        assert_eq!((context.kv_bytes(), held), (expected, expected));
        let options = AskOptions { max_tokens: 1, ..AskOptions::default() };
        let session = context.session().await?;
        session.ask(QueryInput::Ids(vec![1]), options).finish().await?;
        assert_eq!(node.session_store().used_bytes(), expected / tokens * 256);
    }
    Ok(())
}

#[tokio::test]
async fn every_weight_format_runs_and_quantised_ones_take_less_memory() -> anyhow::Result<()> {
    let case = cases("llama3")?.swap_remove(0);
    let mut bytes = Vec::new();
    for weights in [WeightChoice::F32, WeightChoice::Bf16, WeightChoice::Q8_0, WeightChoice::Q4K] {
        let model = golden_model(&golden_dir("llama3"), weights)?;
        let node = small_node(&model, 2, KvFormat::Bf16).await?;
        let answers = answer(&node, &case).await?;
        assert_eq!(answers[1].report.ids.len(), 6, "{weights:?}");
        bytes.push(model.decoder.weight_bytes());
    }
    assert!(bytes[0] > bytes[1] && bytes[1] > bytes[2] && bytes[2] >= bytes[3], "{bytes:?}");
    Ok(())
}
