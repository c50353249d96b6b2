// Any text as config.json and generation_config.json.

use stellate_model::checkpoint::GenerationDefaults;
use stellate_model::config::ModelConfig;

pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = ModelConfig::from_json(text) {
        let (frequencies, attention) = config.rope.inverse_frequencies(config.head_dim);
        assert!(attention.is_finite() && frequencies.iter().all(|frequency| frequency.is_finite()));
    }
    let _ = GenerationDefaults::from_json(text, GenerationDefaults::default());
}
