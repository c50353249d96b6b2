//! Answers with guesses over the network: the same tokens in fewer rounds of fan-out.

use std::sync::Arc;

use stellate_actors::budget::KvBudget;
use stellate_actors::directory::Directory;
use stellate_actors::link::HostId;
use stellate_actors::node::{Surroundings, start_supervisor};
use stellate_actors::port::HostPort;
use stellate_actors::prompt::Prompter;
use stellate_actors::remote::{DecodeChannel, Pacer, RemoteHost};
use stellate_actors::supervisor::LocalSupervisor;
use stellate_actors::{
    AskOptions, ContextSource, KvFormat, Layout, Node, NodeOptions, QueryInput, Session, TurnReport,
};
use stellate_model::checkpoint::GenerationDefaults;
use stellate_runtime::clock::ManualClock;
use stellate_runtime::transport::ConnectionClass;

use crate::port::Straight;
use crate::support::{Asked, Asker, BLOCK_TOKENS, Model, PATIENT, real_node};

/// Long enough for a model of random weights to repeat itself.
const ANSWER_TOKENS: usize = 300;

/// A node without context hosts of its own, and the way to each of two others.
struct World {
    node: Node,
    channels: Vec<DecodeChannel>,
    _far: Vec<Asked>,
}

impl World {
    fn open(asker: &Asker, model: &Model) -> Self {
        let kv_shape = model.decoder.kv_shape(model.format);
        let scratch = KvBudget::new(kv_shape, usize::MAX);
        let (mut handles, mut ports, mut channels, mut far) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 0..2 {
            let host = asker.runtime.block_on(model.host(HostId(number)));
            let node = real_node(asker, &format!("far-{number}"), model, &host);
            let channel = asker.channel(&node, host.host, model.shape(), PATIENT);
            let control = Arc::new(Straight(host.clone()));
            let bulk = Arc::new(asker.dialer(&node, ConnectionClass::Bulk));
            let scratch = Arc::clone(&scratch);
            let port = RemoteHost::new(channel.clone(), control, bulk, scratch, Pacer::default());
            ports.push(Arc::new(port) as Arc<dyn HostPort>);
            handles.push(host);
            channels.push(channel);
            far.push(node);
        }
        let options = NodeOptions {
            kv_format: model.format,
            // Guesses are then paced by how many hold alone, the same in every run.
            clock: Arc::new(ManualClock::new()),
            ..NodeOptions::default()
        };
        let whole = stellate_actors::Model {
            decoder: Arc::clone(&model.decoder),
            prompter: Arc::new(Prompter::default()),
            defaults: GenerationDefaults::from_config(model.decoder.config()),
        };
        let node = asker.runtime.block_on(async {
            let supervisor = start_supervisor(kv_shape, &handles).await.unwrap();
            let surroundings = Surroundings {
                own: Vec::new(),
                hosts: Arc::new(Directory::of(ports)),
                supervisor: Arc::new(LocalSupervisor(supervisor)),
            };
            Node::open_among(&whole, options, surroundings).await.unwrap()
        });
        Self { node, channels, _far: far }
    }

    fn requests(&self) -> Vec<u64> {
        self.channels.iter().map(|channel| channel.stats().requests()).collect()
    }

    /// An answer, and the requests that each host got for it.
    async fn ask(&self, session: &Session, guess_tokens: usize) -> (TurnReport, Vec<u64>) {
        let before = self.requests();
        let options =
            AskOptions { max_tokens: ANSWER_TOKENS, ignore_eos: true, guess_tokens, ..AskOptions::default() };
        let report = session.ask(QueryInput::Ids(vec![4, 3]), options).finish().await.unwrap();
        (report, self.requests().iter().zip(before).map(|(now, before)| now - before).collect())
    }
}

#[test]
fn guesses_over_the_network_change_no_token_and_each_step_is_one_request_per_layer_and_host() {
    for format in [KvFormat::F32, KvFormat::Bf16] {
        let asker = Asker::new();
        let model = Model::new(format);
        let world = World::open(&asker, &model);
        let layers = model.shape().layers as u64;
        // A text that repeats itself, so that there is something to copy.
        let ids: Vec<u32> = (0..3 * BLOCK_TOKENS as u32).map(|i| (i % 23 * 11 + i % 5 * 3) % 320).collect();
        asker.runtime.block_on(async {
            let layout = Layout::star(BLOCK_TOKENS, BLOCK_TOKENS);
            let context = world.node.encode(ContextSource::Ids(ids), layout).await.unwrap();
            let (plain, plain_requests) = world.ask(&context.session().await.unwrap(), 0).await;
            let (guessed, guessed_requests) = world.ask(&context.session().await.unwrap(), 8).await;
            assert_eq!(guessed.ids, plain.ids, "{format}");
            let (steps, accepted) = (guessed.speculation.steps, guessed.speculation.accepted_tokens);
            assert!(accepted > 10 && steps + accepted == ANSWER_TOKENS, "{:?}", guessed.speculation);
            // The question is the first step of each.
            assert_eq!(plain_requests, [layers * ANSWER_TOKENS as u64; 2], "{format}");
            assert_eq!(guessed_requests, [layers * steps as u64; 2], "{format}");
            world.node.close().await;
        });
        for channel in &world.channels {
            let stats = channel.stats();
            assert_eq!((stats.streams(), stats.replies()), (1, stats.requests()), "nothing was asked again");
        }
    }
}
