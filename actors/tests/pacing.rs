//! How many tokens are guessed follows from what steps take, by a clock that the hosts drive: many where a guess costs
//! nothing, hardly any where it costs as much as the step it saves. The answers are the same.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use stellate_actors::budget::BudgetedBlock;
use stellate_actors::context_host::{ContextHostHandle, EncodeJob, Encoded, HostError, Reserved};
use stellate_actors::directory::Directory;
use stellate_actors::link::{AttendReply, AttendRequest, HostId, HostLink, LinkError, LocalLink};
use stellate_actors::node::{Surroundings, start_hosts, start_supervisor};
use stellate_actors::port::HostPort;
use stellate_actors::supervisor::LocalSupervisor;
use stellate_actors::{
    AskOptions, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions,
    QueryInput, TurnReport, WeightChoice,
};
use stellate_model::block::BlockId;
use stellate_runtime::clock::ManualClock;

/// Long enough for a model of random weights to repeat itself.
const TOKENS: usize = 300;

/// What a request takes, by the clock.
#[derive(Clone, Copy, Debug)]
struct Cost {
    request: Duration,
    token: Duration,
}

/// A host whose attention takes time, by a clock that nothing else moves.
#[derive(Debug)]
struct TimedHost {
    host: ContextHostHandle,
    clock: ManualClock,
    cost: Cost,
    /// Values of a token's queries.
    token_values: usize,
}

#[derive(Debug)]
struct TimedLink {
    link: LocalLink,
    clock: ManualClock,
    cost: Cost,
    token_values: usize,
}

impl HostPort for TimedHost {
    fn host(&self) -> HostId {
        self.host.host
    }

    fn link(&self) -> Box<dyn HostLink> {
        let Self { host, clock, cost, token_values } = self;
        let (clock, cost, token_values) = (clock.clone(), *cost, *token_values);
        Box::new(TimedLink { link: host.link(), clock, cost, token_values })
    }

    fn encode(&self, job: EncodeJob) -> BoxFuture<'_, Result<Encoded, HostError>> {
        self.host.encode(job)
    }

    fn reserve(&self, id: BlockId, tokens: usize) -> BoxFuture<'_, Result<Reserved, HostError>> {
        self.host.reserve(id, tokens)
    }

    fn seal(&self, id: BlockId, block: BudgetedBlock) -> BoxFuture<'_, Result<(), HostError>> {
        self.host.seal(id, block)
    }
}

impl HostLink for TimedLink {
    fn host(&self) -> HostId {
        self.link.host()
    }

    fn post(&mut self, request: AttendRequest) -> Result<(), LinkError> {
        let tokens = request.queries.len() / self.token_values;
        self.clock.advance(self.cost.request + self.cost.token * tokens as u32);
        self.link.post(request)
    }

    fn wait(&mut self) -> Result<AttendReply, LinkError> {
        self.link.wait()
    }
}

/// Two turns over a text that repeats itself, with at most `guess_tokens` guesses in a step.
async fn answers(model: &Model, cost: Cost, guess_tokens: usize) -> anyhow::Result<Vec<TurnReport>> {
    let clock = ManualClock::new();
    let options = NodeOptions {
        kv_format: KvFormat::F32,
        capacity_bytes: 16 << 20,
        clock: Arc::new(clock.clone()),
        ..NodeOptions::default()
    };
    let own = start_hosts(model, &options, [0; 6]).await?;
    let supervisor = start_supervisor(model.decoder.kv_shape(options.kv_format), &own).await?;
    let config = model.decoder.config();
    let token_values = config.heads * config.head_dim;
    let ports = own.iter().map(|host| {
        let (host, clock) = (host.clone(), clock.clone());
        Arc::new(TimedHost { host, clock, cost, token_values }) as Arc<dyn HostPort>
    });
    let hosts = Arc::new(Directory::of(ports));
    let surroundings = Surroundings { own, hosts, supervisor: Arc::new(LocalSupervisor(supervisor)) };
    let node = Node::open_among(model, options, surroundings).await?;
    let ids = (0..200).map(|i| (i % 23 * 11 + i % 5 * 3) % 320).collect();
    let session = node.encode(ContextSource::Ids(ids), Layout::star(64, 32)).await?.session().await?;
    let mut reports = Vec::new();
    for question in [1, 2] {
        let options =
            AskOptions { max_tokens: TOKENS, ignore_eos: true, guess_tokens, ..AskOptions::default() };
        reports.push(session.ask(QueryInput::Ids(vec![question, 3]), options).finish().await?);
    }
    node.close().await;
    Ok(reports)
}

#[tokio::test]
async fn as_many_tokens_are_guessed_as_pay_by_what_steps_take() -> anyhow::Result<()> {
    let source = ModelSource::Random { shape: "tiny".into(), seed: 3 };
    let options = ModelOptions { weights: WeightChoice::F32, ..ModelOptions::default() };
    let model = Model::load(&source, &options, &mut |_| {})?;
    let (some, none) = (Duration::from_millis(2), Duration::ZERO);
    let (free, dear) = (Cost { request: some, token: none }, Cost { request: none, token: some });
    let plain = answers(&model, free, 0).await?;
    let (many, few) = (answers(&model, free, 8).await?, answers(&model, dear, 8).await?);
    for reports in [&many, &few] {
        for (report, plain) in reports.iter().zip(&plain) {
            assert_eq!(report.ids, plain.ids);
            assert_eq!(report.speculation.steps + report.speculation.accepted_tokens, TOKENS);
        }
    }
    let guessed =
        |reports: &[TurnReport]| reports.iter().map(|r| r.speculation.guessed_tokens).sum::<usize>();
    let (many, few) = (guessed(&many), guessed(&few));
    assert!(many > 200 && few > 0 && few < 40, "{many} and {few}");
    Ok(())
}
