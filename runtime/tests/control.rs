//! The control plane between processes, each a node: sessions over real QUIC with mutual TLS, calls to an actor that is found
//! through its process group, what is told when the other process is killed, and its return. The other process is this
//! test's own program, started again with a task in its environment.

#![allow(clippy::print_stdout, reason = "processes speak to each other")]

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, call_t};
use ractor_cluster::RactorClusterMessage;
use stellate_runtime::clock::{Clock, SystemClock};
use stellate_runtime::control::{ControlError, ControlEvent, ControlPlane, ControlSetup, Wire};
use stellate_runtime::identity::{CertificateAuthority, Credentials, NodeId};
use stellate_runtime::membership::NodeState;
use stellate_runtime::store::{Store, StoreHandle, StoreOptions};
use stellate_runtime::substrate::{Substrate, SubstrateSetup};
use tokio::sync::broadcast::Receiver;
use wincode::{SchemaRead, SchemaWrite};

const FOLDER: &str = "STELLATE_TEST_CONTROL_FOLDER";
const SEED: &str = "STELLATE_TEST_CONTROL_SEED";
const SELF: &str = "this_program_is_a_node_if_its_environment_says_so";
const GROUP: &str = "test.summing";
/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_MS: u64 = 20_000;

#[derive(RactorClusterMessage)]
enum Summing {
    #[rpc]
    Sum(Wire<Vec<u32>>, RpcReplyPort<Wire<Answer>>),
}

/// What another version might send under the same name.
#[derive(RactorClusterMessage)]
enum Hostile {
    #[rpc]
    Sum(Vec<u8>, RpcReplyPort<Wire<Answer>>),
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
enum Answer {
    Sum { sum: u64, process: u32 },
    Refused(String),
}

struct Adder;

impl Actor for Adder {
    type Msg = Summing;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Summing>, (): ()) -> Result<(), ActorProcessingErr> {
        ractor::pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Summing>,
        message: Summing,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Summing::Sum(numbers, reply) = message;
        let answer = match numbers.take() {
            Ok(numbers) => {
                let sum = numbers.into_iter().map(u64::from).sum();
                Answer::Sum { sum, process: std::process::id() }
            }
            Err(error) => Answer::Refused(error.to_string()),
        };
        let _ = reply.send(Wire::new(answer));
        Ok(())
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test ends in time") })
}

async fn start(folder: &Path, seed: Option<&str>) -> Substrate {
    let credentials = Arc::new(Credentials::load(&folder.join("identity")).unwrap());
    let store = Store::open(&folder.join("store"), StoreOptions::default()).unwrap();
    let store = StoreHandle::start(store).unwrap();
    let mut setup = SubstrateSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, store).unwrap();
    setup.profile.state = NodeState::Active;
    setup.discovery.seeds.extend(seed.map(str::to_owned));
    Substrate::start(setup).await.unwrap().0
}

/// What a started process does: a node with an actor, until it is killed or its standard input ends.
#[test]
fn this_program_is_a_node_if_its_environment_says_so() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _node = runtime.block_on(async {
        let node = start(Path::new(&folder), Some(&seed)).await;
        let (actor, _) = Actor::spawn(None, Adder, ()).await.unwrap();
        println!("started {}", node.id());
        (node, actor)
    });
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A started process; killed with the test.
struct Other(Child);

impl Other {
    fn start(folder: &Path, seed: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([SELF, "--exact", "--nocapture"])
            .env(FOLDER, folder)
            .env(SEED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = lines.map_while(Result::ok).any(|line| line.contains("started "));
        assert!(started, "the process said nothing");
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kill -9.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for an event; those before it pass.
async fn until(events: &mut Receiver<ControlEvent>, wanted: ControlEvent) {
    while events.recv().await.unwrap() != wanted {}
}

fn adder_of(control: &ControlPlane, node: NodeId) -> ActorCell {
    let members = control.members(GROUP);
    let (_, cell) = members.into_iter().find(|(of, _)| *of == node).expect("a ready node's actors are known");
    cell
}

async fn sum(adder: &ActorCell, numbers: Vec<u32>) -> Result<Answer, String> {
    let adder = ActorRef::<Summing>::from(adder.clone());
    let answer =
        call_t!(adder, Summing::Sum, CALL_MS, Wire::new(numbers)).map_err(|error| error.to_string())?;
    answer.take().map_err(|error| error.to_string())
}

/// Two identities of one cluster.
fn identities(folder: &Path) -> (PathBuf, PathBuf) {
    let now = SystemClock::new().wall();
    let authority = CertificateAuthority::create(now).unwrap();
    let folder_of = |name: &str| {
        let credentials = authority.issue_node(&name.parse().unwrap(), now).unwrap();
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        credentials.save(&folder.join("identity")).unwrap();
        folder
    };
    (folder_of("here"), folder_of("there"))
}

#[test]
fn actors_of_another_process_are_found_called_lost_and_found_again() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = identities(folder.path());
        let node = start(&here, None).await;
        let (control, address) = (node.control().unwrap(), node.local_address().unwrap());
        let other = Credentials::load(&there.join("identity")).unwrap().id();
        let mut events = control.events();

        // One control plane in a process.
        let setup =
            ControlSetup { node: node.id(), incarnation: 9, ca: node.endpoint().credentials().ca_hash() };
        let error = ControlPlane::start(&node.network(), setup).await.unwrap_err();
        assert!(matches!(error, ControlError::Taken), "{error}");

        let mut process = Other::start(&there, address);
        until(&mut events, ControlEvent::Ready(other)).await;
        assert_eq!(control.ready_peers(), [other]);
        let adder = adder_of(control, other);
        assert_eq!(control.node_of(adder.get_id()), Some(other));
        let answer = sum(&adder, vec![1, 2, 3]).await;
        assert_eq!(answer, Ok(Answer::Sum { sum: 6, process: process.id() }));
        let many = sum(&adder, vec![7; 500_000]).await;
        assert_eq!(many, Ok(Answer::Sum { sum: 3_500_000, process: process.id() }));

        // Hostile bytes are an answer, not a dead actor.
        for bytes in
            [vec![], vec![0], vec![0xff; 40], vec![0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            let hostile = ActorRef::<Hostile>::from(adder.clone());
            let answer = call_t!(hostile, Hostile::Sum, CALL_MS, bytes.clone());
            let answer = answer.unwrap().take().unwrap();
            assert!(matches!(answer, Answer::Refused(_)), "{bytes:?}: {answer:?}");
        }
        assert!(sum(&adder, vec![4]).await.is_ok());

        // Killed: told by QUIC's idle time, and nobody waits for an answer for ever.
        process.kill();
        until(&mut events, ControlEvent::Gone(other)).await;
        assert_eq!(control.ready_peers(), []);
        assert!(sum(&adder, vec![1]).await.is_err());

        // Back, and killed and back at once, before anyone can have noticed.
        let mut process = Other::start(&there, address);
        until(&mut events, ControlEvent::Ready(other)).await;
        let answer = sum(&adder_of(control, other), vec![5]).await;
        assert_eq!(answer, Ok(Answer::Sum { sum: 5, process: process.id() }));
        process.kill();
        let process = Other::start(&there, address);
        until(&mut events, ControlEvent::Gone(other)).await;
        until(&mut events, ControlEvent::Ready(other)).await;
        let answer = sum(&adder_of(control, other), vec![6]).await;
        assert_eq!(answer, Ok(Answer::Sum { sum: 6, process: process.id() }));
        drop(process);
        node.leave().await;
    });
}
