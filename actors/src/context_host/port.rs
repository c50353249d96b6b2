//! A context host of this process behind the seam of all hosts.

use futures_util::future::BoxFuture;
use ractor::call;
use stellate_model::block::BlockId;

use super::{ContextHostHandle, ContextHostMsg, EncodeJob, Encoded, HostError, Reserved};
use crate::budget::BudgetedBlock;
use crate::link::{HostId, HostLink};
use crate::port::HostPort;

impl ContextHostHandle {
    /// The answer, or what it means that none came.
    fn answered<T, E>(&self, answer: Result<Result<T, HostError>, E>) -> Result<T, HostError> {
        answer.unwrap_or_else(|_| {
            Err(HostError::Unreachable { host: self.host, cause: "it has stopped".to_owned() })
        })
    }
}

impl ContextHostHandle {
    /// What is waited for, unless the host is stuck, or comes to be so meanwhile. What was asked may be done all the same, later.
    async fn unless_stuck<T>(
        &self,
        asked: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        tokio::select! {
            biased;
            () = self.vitals.stuck() => Err(HostError::Stuck { host: self.host }),
            answer = asked => answer,
        }
    }
}

impl HostPort for ContextHostHandle {
    fn host(&self) -> HostId {
        self.host
    }

    fn link(&self) -> Box<dyn HostLink> {
        Box::new(ContextHostHandle::link(self))
    }

    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>> {
        Box::pin(self.unless_stuck(async { self.answered(call!(self.actor, ContextHostMsg::Encode, job)) }))
    }

    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>> {
        let reserve = async move { self.answered(call!(self.actor, ContextHostMsg::Reserve, id, tokens)) };
        Box::pin(self.unless_stuck(reserve))
    }

    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move { self.answered(call!(self.actor, ContextHostMsg::Seal, id, block)) })
    }
}
