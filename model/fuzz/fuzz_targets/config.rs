//! Any text as config.json and generation_config.json.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stellate_model::checkpoint::GenerationDefaults;
use stellate_model::config::ModelConfig;

fuzz_target!(|text: &str| {
    if let Ok(config) = ModelConfig::from_json(text) {
        let (frequencies, attention) = config.rope.inverse_frequencies(config.head_dim);
        assert!(attention.is_finite() && frequencies.iter().all(|frequency| frequency.is_finite()));
    }
    let _ = GenerationDefaults::from_json(text, GenerationDefaults::default());
});
