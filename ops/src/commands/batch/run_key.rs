//! What an answer depends on besides the words of its line (the model and its settings) as one short text. The output
//! has it beside every answer, so that a later run sees which ones it would not have made.

use serde_json::{Value, json};
use stellate_actors::{AskOptions, Layout, SamplingParams};
use stellate_model::block::Attention;
use stellate_model::fingerprint::Fingerprint;
use stellate_runtime::config::Settings;

use super::input::{Line, Work};

/// Digits of a key: 64 bits, as two settings that differ must not meet by chance.
const KEY_DIGITS: usize = 16;

/// Makes the keys of a run's lines.
#[derive(Clone, Debug)]
pub(super) struct RunKeys {
    /// What all lines share.
    shared: Value,
    /// What text in the chat template depends on besides.
    chat: Option<Value>,
}

impl RunKeys {
    /// Keys of answers that the model `fingerprint` gives under `settings` and `ask`; text goes into the chat template if
    /// `chat`.
    pub(super) fn new(fingerprint: &Fingerprint, settings: &Settings, ask: &AskOptions, chat: bool) -> Self {
        let shared = json!({
            "model": fingerprint.to_string(),
            "kv": settings.kv.format.to_string(),
            "max_tokens": ask.max_tokens,
            "stop": ask.stop,
            "ignore_eos": ask.ignore_eos,
            "sampling": sampling(&ask.sampling),
        });
        let role = settings.chat.context_role.to_string();
        let chat = chat.then(|| json!({"role": role, "system_prompt": settings.chat.system_prompt}));
        Self { shared, chat }
    }

    /// The key of a line whose context has `layout`.
    pub(super) fn key(&self, line: &Line, layout: &Layout) -> String {
        let (attention, anchor_tokens) = match layout.attention {
            Attention::Star { anchor_tokens } => ("star", anchor_tokens),
            Attention::Exact => ("exact", 0),
        };
        let chat = self.chat.as_ref().filter(|_| matches!(line.work, Work::Text { .. }));
        let all = json!([self.shared, attention, layout.block_tokens, anchor_tokens, chat]);
        let mut key = Fingerprint::of(all.to_string().as_bytes()).to_string();
        key.truncate(KEY_DIGITS);
        key
    }
}

/// What the sampling depends on: greedy answers do not on what only sampled ones do.
fn sampling(params: &SamplingParams) -> Value {
    let SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        repetition_window_tokens,
        seed,
    } = params;
    let sampled = (*temperature > 0.0).then(|| json!([temperature, top_k, top_p, min_p, seed]));
    json!([sampled, repetition_penalty, repetition_window_tokens])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::parse(text.as_bytes(), 1).unwrap()
    }

    #[test]
    fn a_key_changes_with_everything_that_an_answer_depends_on_and_with_nothing_else() {
        let text = line(r#"{"input_context": "c", "input_query": "q"}"#);
        let ids = line(r#"{"context_ids": [1], "turns": [[1]]}"#);
        let (settings, ask, layout) = (Settings::default(), AskOptions::default(), Layout::star(8, 8));
        let model = Fingerprint::of(b"a");
        let key = |model: &Fingerprint, settings: &Settings, ask: &AskOptions, chat, line, layout: Layout| {
            RunKeys::new(model, settings, ask, chat).key(line, &layout)
        };
        let first = key(&model, &settings, &ask, false, &text, layout);
        assert_eq!(first.len(), KEY_DIGITS);
        assert_eq!(first, key(&model, &settings, &ask, false, &ids, layout));
        assert_eq!(first, key(&model, &settings, &ask, true, &ids, layout), "tokens are in no template");
        let mut seeded = ask.clone();
        seeded.sampling.seed = 7;
        assert_eq!(first, key(&model, &settings, &seeded, false, &text, layout), "greedy has no seed");

        let mut warm = seeded.clone();
        warm.sampling.temperature = 0.5;
        let mut warm_again = warm.clone();
        warm_again.sampling.seed = 8;
        let longer = AskOptions { max_tokens: ask.max_tokens + 1, ..ask.clone() };
        let on = AskOptions { ignore_eos: true, ..ask.clone() };
        let stop = AskOptions { stop: vec!["end".to_owned()], ..ask.clone() };
        let mut bf16 = settings.clone();
        bf16.kv.format = match bf16.kv.format {
            stellate_runtime::config::KvFormat::Bf16 => stellate_runtime::config::KvFormat::F32,
            _ => stellate_runtime::config::KvFormat::Bf16,
        };
        let mut keys = vec![
            first,
            key(&Fingerprint::of(b"b"), &settings, &ask, false, &text, layout),
            key(&model, &bf16, &ask, false, &text, layout),
            key(&model, &settings, &ask, true, &text, layout),
            key(&model, &settings, &ask, false, &text, Layout::star(8, 4)),
            key(&model, &settings, &ask, false, &text, Layout::exact(8)),
            key(&model, &settings, &ask, false, &text, Layout::exact(4)),
        ];
        for ask in [warm, warm_again, longer, on, stop] {
            keys.push(key(&model, &settings, &ask, false, &text, layout));
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }
}
