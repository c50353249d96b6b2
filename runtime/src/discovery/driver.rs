//! Asks the sources at intervals and when wanted, and gathers what they find in one bounded queue.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::dns::DnsFinder;
use super::finder::{DiscoveryError, Finder, Finding, Look, Warning};
use super::options::DiscoveryOptions;
use super::seeds::SeedFinder;

/// Running sources. When it is dropped, they end.
#[derive(Debug)]
pub struct Discovery {
    findings: mpsc::Receiver<Finding>,
    wanted: watch::Sender<u64>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Finding>,
    options: DiscoveryOptions,
}

impl Discovery {
    /// Starts the sources that `options` name, on the current tokio runtime; each looks at once.
    ///
    /// # Errors
    /// What is wrong with the options, see [`DiscoveryError`]; nothing runs then.
    pub fn start(options: DiscoveryOptions) -> Result<Self, DiscoveryError> {
        let seeds = (!options.seeds.is_empty()).then(|| SeedFinder::new(&options)).transpose()?;
        let dns = (!options.dns.is_empty()).then(|| DnsFinder::new(&options)).transpose()?;
        #[cfg(feature = "mdns")]
        let mdns = options
            .mdns
            .as_ref()
            .map(|mdns| super::mdns::MdnsFinder::start(mdns, options.timeout))
            .transpose()?;
        #[cfg(not(feature = "mdns"))]
        if options.mdns.is_some() {
            return Err(DiscoveryError::Mdns { problem: "this program was built without it".to_owned() });
        }
        let mut discovery = Self::with_options(options);
        if let Some(seeds) = seeds {
            discovery.add(seeds);
        }
        if let Some(dns) = dns {
            discovery.add(dns);
        }
        #[cfg(feature = "mdns")]
        if let Some(mdns) = mdns {
            discovery.add(mdns);
        }
        Ok(discovery)
    }

    /// No source yet; [`Self::add`] adds them.
    pub fn with_options(options: DiscoveryOptions) -> Self {
        let (sender, findings) = mpsc::channel(options.queue.max(1));
        Self { findings, wanted: watch::Sender::new(0), tasks: JoinSet::new(), sender, options }
    }

    /// Starts another source.
    pub fn add(&mut self, finder: impl Finder) {
        let look = repeat(finder, self.options.clone(), self.wanted.subscribe(), self.sender.clone());
        self.tasks.spawn(look);
    }

    /// The next finding. Waits for ever if there is no source.
    pub async fn next(&mut self) -> Finding {
        match self.findings.recv().await {
            Some(finding) => finding,
            None => unreachable!("the queue is open as long as its sender is held here"),
        }
    }

    /// Has every source look now, or as soon as it may again.
    pub fn want(&self) {
        self.wanted.send_modify(|count| *count += 1);
    }
}

async fn repeat(
    mut finder: impl Finder,
    options: DiscoveryOptions,
    mut wanted: watch::Receiver<u64>,
    findings: mpsc::Sender<Finding>,
) {
    loop {
        wanted.borrow_and_update();
        let look = bounded(finder.look().await, &finder, options.max_candidates);
        let warnings = look.warnings.into_iter().map(Finding::Warning);
        for finding in look.candidates.into_iter().map(Finding::Candidate).chain(warnings) {
            if findings.send(finding).await.is_err() {
                return;
            }
        }
        sleep(options.shortest_interval).await;
        let rest = options.interval.saturating_sub(options.shortest_interval);
        // Whichever comes first: somebody wants it, or it is time.
        if let Ok(Err(_)) = timeout(rest, wanted.changed()).await {
            return;
        }
    }
}

/// Each address once, and no more of them than may be.
fn bounded(mut look: Look, finder: &impl Finder, limit: usize) -> Look {
    let mut seen = BTreeSet::new();
    look.candidates.retain(|candidate| seen.insert(candidate.address));
    let found = look.candidates.len();
    if found > limit {
        look.candidates.truncate(limit);
        look.warnings.push(Warning::TooMany { source_kind: finder.source(), found, limit });
    }
    look
}
