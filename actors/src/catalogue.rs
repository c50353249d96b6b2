//! The contexts that a node knows: all that are in use, and those that it keeps because they are durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::manifest::ContextId;
use crate::path::context::EncodedContext;

/// The contexts of a node.
#[derive(Debug, Default)]
pub struct Catalogue(Mutex<BTreeMap<ContextId, Known>>);

#[derive(Debug)]
struct Known {
    context: Weak<EncodedContext>,
    /// For its own sake, whoever uses it.
    _kept: Option<Arc<EncodedContext>>,
}

impl Catalogue {
    /// Adds a context, to be known as long as it is used, or until it is removed if it is to be kept. One of the same
    /// name that is known already stays, and is given instead.
    pub fn add(&self, context: EncodedContext, keep: bool) -> Arc<EncodedContext> {
        let mut known = self.lock();
        known.retain(|_, known| known.context.strong_count() > 0);
        let id = context.manifest.id;
        if let Some(present) = known.get(&id).and_then(|known| known.context.upgrade()) {
            drop(known);
            return present;
        }
        let context = Arc::new(context);
        let kept = keep.then(|| Arc::clone(&context));
        known.insert(id, Known { context: Arc::downgrade(&context), _kept: kept });
        context
    }

    /// A context by its name.
    pub fn get(&self, id: ContextId) -> Option<Arc<EncodedContext>> {
        self.lock().get(&id)?.context.upgrade()
    }

    /// All contexts, by name.
    pub fn all(&self) -> Vec<Arc<EncodedContext>> {
        self.lock().values().filter_map(|known| known.context.upgrade()).collect()
    }

    /// Keeps a context no longer. Gives it if it is in use.
    pub fn remove(&self, id: ContextId) -> Option<Arc<EncodedContext>> {
        let known = self.lock().remove(&id)?;
        known.context.upgrade()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContextId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
