//! From settings to a model and a node: what `stellate-runtime` read, in the terms of `stellate-actors`. Every command
//! opens through here, with a bar for what takes long and an end for Ctrl-C.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stellate_actors::{
    AskOptions, Context, ContextSource, HostThreads, KvFormat, Layout, Model, ModelOptions, ModelSource,
    ModelStage, Node, NodeOptions, OpenError, SamplingParams, WeightChoice,
};
use stellate_model::chat::ContextRole;
use stellate_model::checkpoint::CheckpointError;
use stellate_runtime::config::{self, Settings};

use crate::app::App;
use crate::progress;
use crate::settings::ModelArgs;

/// Where the model comes from: `--random-weights`, else `model.path`, else the demo model in the program.
pub(crate) fn model_source(args: &ModelArgs, settings: &Settings) -> ModelSource {
    match &args.random_weights {
        Some(shape) => ModelSource::Random { shape: shape.clone(), seed: 0 },
        None if settings.model.path.is_empty() => ModelSource::Demo,
        None => ModelSource::Checkpoint(PathBuf::from(&settings.model.path)),
    }
}

/// How the model is made ready.
pub(crate) fn model_options(settings: &Settings) -> ModelOptions {
    let weights = match settings.model.weights {
        config::WeightFormat::Auto => WeightChoice::Auto,
        config::WeightFormat::F32 => WeightChoice::F32,
        config::WeightFormat::Bf16 => WeightChoice::Bf16,
        config::WeightFormat::Q8_0 => WeightChoice::Q8_0,
        config::WeightFormat::Q4K => WeightChoice::Q4K,
    };
    let context_role = match settings.chat.context_role {
        config::ContextRole::Auto => ContextRole::Auto,
        config::ContextRole::System => ContextRole::System,
        config::ContextRole::User => ContextRole::User,
    };
    let system_prompt = Some(settings.chat.system_prompt.clone()).filter(|text| !text.is_empty());
    ModelOptions { weights, context_role, system_prompt }
}

/// How the node is built.
pub(crate) fn node_options(settings: &Settings) -> NodeOptions {
    let cores = available_parallelism().map_or(1, usize::from);
    let Settings { attention, kv, hosts, query, .. } = settings;
    let host = |index: usize| HostThreads {
        threads: hosts.threads_each(index, cores),
        cpus: hosts.cpus.get(index).cloned().unwrap_or_default(),
    };
    NodeOptions {
        hosts: (0..hosts.count).map(host).collect(),
        query: HostThreads { threads: query.threads_total(cores), cpus: query.cpus.clone() },
        kv_format: match kv.format {
            config::KvFormat::F32 => KvFormat::F32,
            config::KvFormat::Bf16 => KvFormat::Bf16,
            config::KvFormat::Q8 => KvFormat::Q8,
        },
        // More than this machine could address is no bound.
        capacity_bytes: usize::try_from(kv.capacity_bytes.get()).unwrap_or(usize::MAX),
        recompute_anchor: attention.recompute_anchor,
        chunk_tokens: hosts.chunk_tokens,
        queue_jobs: hosts.queue_jobs,
        stuck_after: Duration::from_secs(hosts.stuck_after_s as u64),
        queue_events: query.queue_events,
        max_sessions: query.max_sessions,
        ..NodeOptions::default()
    }
}

/// How a context is encoded.
pub(crate) fn layout(settings: &Settings) -> Layout {
    let attention = &settings.attention;
    match attention.mode {
        config::AttentionMode::Star => Layout::star(attention.block_tokens, attention.anchor_len_tokens()),
        config::AttentionMode::Exact => Layout::exact(attention.block_tokens),
    }
}

/// How an answer is made. Stop strings come from flags alone.
pub(crate) fn ask_options(settings: &Settings, stop: &[String]) -> AskOptions {
    let sampling = &settings.sampling;
    let sampling_params = SamplingParams {
        temperature: sampling.temperature,
        // The settings have a number for "all", where the sampler has none.
        top_k: Some(sampling.top_k).filter(|&k| k > 0),
        top_p: Some(sampling.top_p).filter(|&p| p < 1.0),
        min_p: Some(sampling.min_p).filter(|&p| p > 0.0),
        repetition_penalty: sampling.repetition_penalty,
        repetition_window_tokens: 0,
        seed: sampling.seed,
    };
    AskOptions {
        sampling: sampling_params,
        max_tokens: sampling.max_tokens,
        stop: stop.to_vec(),
        guess_tokens: settings.query.guess_tokens,
        ..AskOptions::default()
    }
}

/// Loads a model on a thread of its own.
///
/// # Errors
/// `OpenError` if it cannot be used; `Interrupted` (the thread then reads on until the process ends).
pub(crate) async fn load_model(app: &App, source: ModelSource) -> anyhow::Result<Model> {
    let options = model_options(&app.settings);
    let named = match &source {
        ModelSource::Checkpoint(path) => format!("cannot use the model {}", path.display()),
        ModelSource::Demo | ModelSource::Random { .. } => "cannot make the model".to_owned(),
    };
    let bar = progress::bytes("loading the model");
    let shown = bar.clone();
    let loading = tokio::task::spawn_blocking(move || {
        Model::load(&source, &options, &mut |state| {
            shown.set_message(match state.stage {
                ModelStage::Fetching => "fetching the model",
                ModelStage::Loading => "loading the model",
            });
            shown.set_length(state.total_bytes);
            shown.set_position(state.done_bytes);
        })
    });
    let loaded = app.interrupt.or(loading).await;
    bar.finish_and_clear();
    let model = loaded?.context("the thread that loads the model stopped")?;
    if let Ok(model) = &model {
        let (decoder, config) = (&model.decoder, model.decoder.config());
        let (weight_bytes, fingerprint) = (decoder.weight_bytes(), decoder.fingerprint());
        tracing::info!(family = ?config.family, layers = config.layers, weight_bytes, %fingerprint, "model loaded");
    }
    model.map_err(|error| {
        let missing = matches!(&error, OpenError::Checkpoint(CheckpointError::Io { source, .. }) if source.kind() == ErrorKind::NotFound);
        let hint = if missing { " (a Hugging Face directory, a .gguf file, or a hub id such as org/name)" } else { "" };
        anyhow::Error::new(error).context(format!("{named}{hint}"))
    })
}

/// Opens a node as the settings say. Close it, also after an error: its threads end then.
///
/// # Errors
/// `OpenError`.
pub(crate) async fn open_node(settings: &Settings, model: &Model) -> anyhow::Result<Node> {
    open_node_with(node_options(settings), model).await
}

/// [`open_node`] with options of one's own.
pub(crate) async fn open_node_with(options: NodeOptions, model: &Model) -> anyhow::Result<Node> {
    tracing::info!(hosts = options.hosts.len(), capacity_bytes = options.capacity_bytes, "opening the node");
    Ok(Node::open(model, options).await?)
}

/// Encodes a context behind a bar; also how long it took.
///
/// # Errors
/// `EncodeError`; `Interrupted` (nothing of the context is kept).
pub(crate) async fn encode(
    app: &App,
    node: &Node,
    source: ContextSource,
    layout: Layout,
) -> anyhow::Result<(Context, Duration)> {
    let bar = progress::items("encoding", "tokens");
    let start = Instant::now();
    let encoded = app.interrupt.or(node.encode_with(source, layout, progress::follow(&bar))).await;
    let took = start.elapsed();
    bar.finish_and_clear();
    Ok((encoded??, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_mean_all_or_none_are_none_to_the_sampler() {
        let options = ask_options(&Settings::default(), &[]);
        assert_eq!(options.sampling, SamplingParams::default());
        let mut settings = Settings::default();
        settings.sampling.top_k = 5;
        settings.sampling.top_p = 0.5;
        let options = ask_options(&settings, &["end".to_owned()]);
        assert_eq!((options.sampling.top_k, options.sampling.top_p), (Some(5), Some(0.5)));
        assert_eq!(options.stop, ["end"]);
    }

    #[test]
    fn a_layout_has_the_anchor_that_the_settings_resolve() {
        let mut settings = Settings::default();
        settings.attention.block_tokens = 64;
        assert_eq!(layout(&settings), Layout::star(64, 64));
        settings.attention.mode = config::AttentionMode::Exact;
        assert_eq!(layout(&settings), Layout::exact(64));
    }

    #[test]
    fn hosts_share_the_cores_and_take_the_threads_they_are_given() {
        let mut settings = Settings::default();
        settings.hosts.count = 3;
        settings.hosts.threads = 2;
        settings.hosts.cpus = vec![vec![0], vec![1], vec![0]];
        let options = node_options(&settings);
        assert_eq!(options.hosts.len(), 3);
        assert_eq!(options.hosts[1], HostThreads { threads: 2, cpus: vec![1] });
    }

    #[test]
    fn without_a_path_or_a_shape_the_model_is_the_demo() {
        let mut settings = Settings::default();
        assert_eq!(model_source(&ModelArgs::default(), &settings), ModelSource::Demo);
        settings.model.path = "org/name".to_owned();
        assert_eq!(
            model_source(&ModelArgs::default(), &settings),
            ModelSource::Checkpoint("org/name".into())
        );
    }
}
