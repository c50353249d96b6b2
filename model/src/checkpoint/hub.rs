//! Fetches a checkpoint by its hub id: configuration, tokenizer, chat template and safetensors, nothing else. Files
//! land in the hub's own cache, so that a second call needs no transfer; then the checkpoint is opened from there.

use std::sync::mpsc::{self, Receiver, Sender};

use hf_hub::HFClientSync;
use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};

use super::{Checkpoint, CheckpointError};

/// The files a checkpoint is made of.
const WANTED: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
];

/// How far fetching has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubProgress {
    /// Bytes fetched so far.
    pub done_bytes: u64,
    /// Bytes to fetch in all, 0 while unknown.
    pub total_bytes: u64,
}

/// Carries progress from the client's threads to the caller's.
struct Reporter(Sender<DownloadEvent>);

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(event) = event {
            // The receiver is gone only when fetching has ended.
            let _ = self.0.send(event.clone());
        }
    }
}

impl Checkpoint {
    /// Fetches the model `id` (`owner/name`) at `revision` (a branch, tag or commit; `main` if absent) and opens it.
    /// Blocks until all files are there. A token is taken from `HF_TOKEN` or the hub's own login.
    pub fn open_hub(
        id: &str,
        revision: Option<&str>,
        progress: &mut dyn FnMut(HubProgress),
    ) -> Result<Self, CheckpointError> {
        let failed = |reason: String| CheckpointError::Hub { id: id.to_owned(), reason };
        let Some((owner, name)) = id.split_once('/').filter(|(_, name)| !name.contains('/')) else {
            return Err(failed("an id has the form owner/name".into()));
        };
        let client = HFClientSync::new().map_err(|error| failed(error.to_string()))?;
        let repository = client.model(owner, name);
        let (sender, events) = mpsc::channel();
        // The client blocks the thread it is called on; this one stays free to report.
        let fetched = std::thread::scope(|scope| {
            let fetching = scope.spawn(|| {
                repository
                    .snapshot_download()
                    .maybe_revision(revision.map(str::to_owned))
                    .allow_patterns(WANTED.map(str::to_owned).to_vec())
                    .progress(Progress::new(Reporter(sender)))
                    .send()
            });
            report(&events, progress);
            fetching.join()
        });
        let error = match fetched {
            Ok(Ok(dir)) => return Self::open(&dir),
            Ok(Err(error)) => error,
            Err(_) => return Err(failed("the hub client panicked".into())),
        };
        // Without a network, what an earlier call fetched still serves.
        let cached = repository
            .snapshot_download()
            .maybe_revision(revision.map(str::to_owned))
            .local_files_only(true)
            .send();
        match cached.ok().and_then(|dir| Self::open(&dir).ok()) {
            Some(checkpoint) => {
                tracing::warn!(id, %error, "the hub cannot be reached; using the copy in its cache");
                Ok(checkpoint)
            }
            None => Err(failed(error.to_string())),
        }
    }
}

/// Adds up events until the client drops its end.
fn report(events: &Receiver<DownloadEvent>, progress: &mut dyn FnMut(HubProgress)) {
    let mut files = std::collections::BTreeMap::new();
    let mut total_bytes = 0;
    for event in events {
        match event {
            DownloadEvent::Start { total_bytes: total, .. } => total_bytes = total,
            DownloadEvent::Progress { files: changed } => {
                files.extend(changed.into_iter().map(|file| (file.filename, file.bytes_completed)));
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                files.insert(String::new(), bytes_completed);
            }
            DownloadEvent::Complete => {}
        }
        let done_bytes = files.values().sum();
        progress(HubProgress { done_bytes, total_bytes });
    }
}
