//! How far the encoding of a context is, told to whoever waits for it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A state of an encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeProgress {
    /// Tokens encoded, or found encoded.
    pub tokens_done: usize,
    /// Tokens of the context.
    pub tokens_total: usize,
    /// Blocks sealed, or found sealed.
    pub blocks_done: usize,
    /// Blocks of the context.
    pub blocks_total: usize,
    /// Blocks that some host held already.
    pub blocks_reused: usize,
}

type Listener = Box<dyn FnMut(EncodeProgress) + Send>;

/// Counts what the hosts have done and tells a listener. Clones count together.
#[derive(Clone, Default)]
pub struct EncodeMeter(Arc<Mutex<Count>>);

#[derive(Default)]
struct Count {
    progress: EncodeProgress,
    listener: Option<Listener>,
}

impl fmt::Debug for EncodeMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EncodeMeter").field(&self.progress()).finish()
    }
}

impl EncodeMeter {
    /// A meter that calls `listener` after every change, from the thread that made it: it must be quick.
    pub fn new(listener: impl FnMut(EncodeProgress) + Send + 'static) -> Self {
        let listener: Listener = Box::new(listener);
        Self(Arc::new(Mutex::new(Count { progress: EncodeProgress::default(), listener: Some(listener) })))
    }

    /// The state now.
    pub fn progress(&self) -> EncodeProgress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).progress
    }

    pub(crate) fn start(&self, tokens_total: usize, blocks_total: usize) {
        self.update(|p| *p = EncodeProgress { tokens_total, blocks_total, ..EncodeProgress::default() });
    }

    /// Takes over a state that was counted elsewhere.
    pub(crate) fn report(&self, progress: EncodeProgress) {
        self.update(|p| *p = progress);
    }

    pub(crate) fn encoded(&self, tokens: usize) {
        self.update(|p| p.tokens_done += tokens);
    }

    pub(crate) fn sealed(&self, tokens: usize, reused: bool) {
        self.update(|p| {
            p.blocks_done += 1;
            if reused {
                p.blocks_reused += 1;
                p.tokens_done += tokens;
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut EncodeProgress)) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut count.progress);
        let progress = count.progress;
        if let Some(listener) = &mut count.listener {
            listener(progress);
        }
    }
}
