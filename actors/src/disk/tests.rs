//! The disk under faults: what is written is whole or not there, what is damaged is told and never served, and a disk that
//! refuses is no reason to stop.

mod memory;

use std::path::Path;

use stellate_kernels::{KvFormat, KvShape};
use stellate_runtime::clock::ManualClock;

use super::form::{HEAD_BYTES, Head, file_bytes, name, part_name};
use super::index::PAUSE;
use super::*;
use crate::budget::KvBudget;
use crate::checksum::Checksum;
use crate::context_host::strip::Strip;
use crate::link::HostId;
use memory::{Memory, Reads};

const TOKENS: usize = 64;
const MODEL: [u8; 32] = [5; 32];
/// Only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn shape() -> KvShape {
    KvShape { layers: 1, kv_heads: 2, head_dim: 8, format: KvFormat::F32 }
}

fn bytes() -> usize {
    shape().bytes_for(TOKENS)
}

fn id(byte: u8) -> BlockId {
    BlockId::from_bytes([byte; 32])
}

fn fill(byte: u8) -> Vec<u8> {
    (0..bytes()).map(|at| (at as u8).wrapping_mul(31) ^ byte).collect()
}

fn block(budget: &Arc<KvBudget>, byte: u8) -> BudgetedBlock {
    let mut strip = Strip::new(budget.allocate(TOKENS).unwrap());
    strip.fill(&[fill(byte)]);
    strip.into_block(TOKENS)
}

fn options(bound_bytes: u64, clock: &ManualClock) -> DiskOptions {
    let clock = Arc::new(clock.clone());
    DiskOptions { folder: PathBuf::new(), bound_bytes, model: MODEL, shape: shape(), clock }
}

/// A node's disk and one host over it.
struct Node {
    disk: Disk,
    held: Arc<HeldBlocks>,
    clock: ManualClock,
}

impl Node {
    /// With room for so many blocks on disk and in memory, an eighth of which is left free when it starts.
    fn start(memory: &Memory, on_disk: u64, in_memory: usize) -> Self {
        let clock = ManualClock::new();
        let disk =
            Disk::open_over(memory.boxed(), options(on_disk * file_bytes(bytes() as u64), &clock)).unwrap();
        Self::over(disk, in_memory, clock)
    }

    fn over(disk: Disk, in_memory: usize, clock: ManualClock) -> Self {
        let budget = KvBudget::new(shape(), in_memory * bytes());
        let held = HeldBlocks::backed(HostId(1), budget, Arc::new(clock.clone()), Some(disk.clone()));
        disk.serve(&[Arc::clone(&held)]);
        disk.bring_back(&[Arc::clone(&held)]);
        Self { disk, held, clock }
    }

    fn hold(&self, byte: u8) {
        self.held.insert(id(byte), block(self.held.budget(), byte)).unwrap();
    }

    async fn written(&self) {
        assert!(self.disk.settle(PATIENCE).await, "{:?}", self.disk.figures());
    }

    /// Until everything that comes from the disk by itself has come, or does not come.
    fn is_back(&self) {
        until(|| self.held.from_disk().is_empty(), || format!("{:?}", self.held.from_disk()));
    }

    fn holds(&self, byte: u8) -> bool {
        self.held.get(&id(byte)).is_some_and(|held| {
            assert_eq!(held.raw(), fill(byte), "block {byte} is what was written");
            true
        })
    }
}

fn until(is_so: impl Fn() -> bool, what: impl Fn() -> String) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it never came to be: {}", what());
        std::thread::yield_now();
    }
}

fn head(byte: u8) -> Head {
    let checksum = Checksum::of(&fill(byte));
    Head {
        id: id(byte),
        model: MODEL,
        shape: shape(),
        tokens: TOKENS as u64,
        bytes: bytes() as u64,
        checksum,
    }
}

#[test]
fn whenever_power_fails_a_file_is_whole_or_not_there_and_what_was_acknowledged_is_there() {
    let budget = KvBudget::new(shape(), 8 * bytes());
    let mut died = 0;
    for power in 0..40 {
        for seed in 0..24 {
            let (memory, mut written) = (Memory::default(), Vec::new());
            memory.set_power(power);
            for byte in 1..=3 {
                if files::write(&mut *memory.boxed(), &head(byte), &fill(byte), &mut || {}).is_ok() {
                    written.push(id(byte));
                }
            }
            died += usize::from(memory.is_dead());
            let mut after = memory.crash(seed);
            let mut index = DiskIndex::new(u64::MAX);
            let scan = files::scan(&mut after, &mut index).unwrap();
            let what = format!("power {power}, seed {seed}, {:?}", after.names());
            assert_eq!(index.figures().damaged, 0, "{what}");
            assert!(written.iter().all(|id| index.file_bytes(id).is_some()), "{what}");
            assert_eq!(after.names().len(), scan.heads.len(), "nothing is left over: {what}");
            for found in scan.heads {
                let mut strip = Strip::new(budget.allocate(TOKENS).unwrap());
                let read = files::read(&mut after, &found, &mut strip, &mut || true);
                assert!(matches!(read, Ok(true)), "{what}: {read:?}");
                assert_eq!(strip.into_block(TOKENS).raw(), fill(found.id.as_bytes()[0]), "{what}");
            }
        }
    }
    assert!(died > 100, "power failed while blocks were written");
}

#[tokio::test]
async fn blocks_are_back_after_a_restart_the_latest_first_and_as_many_as_leave_an_eighth_free() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 16);
    for byte in 1..=16 {
        node.hold(byte);
        node.written().await;
    }
    node.disk.close().await;
    let node = Node::start(&memory, 100, 16);
    node.is_back();
    // The clock of the test stands still, so the files say by their own when they were written.
    assert_eq!((1..=16).filter(|&byte| node.holds(byte)).collect::<Vec<_>>(), (3..=16).collect::<Vec<_>>());
    let figures = node.disk.figures();
    assert_eq!((figures.hits, figures.blocks, figures.damaged, figures.written), (14, 16, 0, 0));
    assert_eq!(node.held.computed(), 0);
    // The others come when they are asked for, if there is room.
    for ended in node.held.recall(&[id(1), id(2), id(99)]) {
        ended.wait().await;
    }
    assert!(node.holds(1) && node.holds(2) && node.held.get(&id(99)).is_none());
    node.disk.close().await;
}

#[tokio::test]
async fn one_bit_anywhere_costs_that_block_alone_and_is_never_served() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    (1..=5).for_each(|byte| node.hold(byte));
    node.written().await;
    node.disk.close().await;
    let last = HEAD_BYTES + bytes() - 1;
    for (byte, damage) in [(1, 0), (2, HEAD_BYTES - 1), (3, HEAD_BYTES), (4, last)] {
        memory.change(&name(&id(byte)), |file| file[damage] ^= 16);
    }
    let node = Node::start(&memory, 100, 8);
    node.is_back();
    assert_eq!((1..=5).filter(|&byte| node.holds(byte)).collect::<Vec<_>>(), [5]);
    until(
        || node.disk.figures().used_bytes == file_bytes(bytes() as u64),
        || format!("{:?}", node.disk.figures()),
    );
    assert_eq!((node.disk.figures().damaged, memory.names()), (4, vec![name(&id(5))]));
    assert!(node.held.recall(&[id(3)]).is_empty(), "it is not to be had");
    // Computed again, it is written again, and back the next time.
    node.hold(3);
    node.written().await;
    node.disk.close().await;
    let node = Node::start(&memory, 100, 8);
    node.is_back();
    assert!(node.holds(3) && node.disk.figures().damaged == 0);
    node.disk.close().await;
}

#[tokio::test]
async fn files_of_a_wrong_length_or_name_are_damaged_and_those_of_others_are_left_alone() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    (1..=4).for_each(|byte| node.hold(byte));
    node.written().await;
    node.disk.close().await;
    memory.change(&name(&id(1)), |file| _ = file.pop());
    memory.change(&name(&id(2)), |file| file.truncate(7));
    memory.misname(&name(&id(3)), &name(&id(9)));
    memory.put("notes.txt", vec![1]);
    memory.put(&part_name(&id(7)), vec![1; 50]);
    let node = Node::start(&memory, 100, 8);
    node.is_back();
    assert!(node.holds(4) && node.held.list().len() == 1);
    until(|| memory.names() == [name(&id(4)), "notes.txt".to_owned()], || format!("{:?}", memory.names()));
    assert_eq!(node.disk.figures().damaged, 3);
    node.disk.close().await;
}

#[tokio::test]
async fn a_full_disk_costs_nothing_but_the_blocks_on_it_and_is_used_again_when_it_has_room() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    node.hold(1);
    node.written().await;
    memory.set_capacity(file_bytes(bytes() as u64) as usize + 300);
    (2..=3).for_each(|byte| node.hold(byte));
    until(|| node.disk.figures().failed == 1, || format!("{:?}", node.disk.figures()));
    // What the write had left is gone, and nothing is tried for a while.
    until(|| memory.names().len() == 1, || format!("{:?}", memory.names()));
    assert!((1..=3).all(|byte| node.holds(byte)), "what is in memory is served");
    // Waiting keeps nothing in memory.
    node.held.release(&[id(2)]);
    assert_eq!((node.held.budget().used_bytes(), node.disk.figures().waiting), (2 * bytes(), 2));
    memory.set_capacity(usize::MAX);
    node.clock.advance(PAUSE);
    node.hold(4);
    node.written().await;
    assert_eq!(memory.names(), [1, 3, 4].map(|byte| name(&id(byte))));
    assert_eq!((node.disk.figures().failed, node.disk.figures().written), (1, 3));
    node.disk.close().await;
}

#[tokio::test]
async fn the_bound_is_never_passed_and_blocks_that_are_in_use_stay_longest() {
    let memory = Memory::default();
    let node = Node::start(&memory, 3, 8);
    for byte in 1..=3 {
        node.hold(byte);
        node.written().await;
    }
    // In use are 1 and 3, and 2 is not, though it was used later than 1.
    node.held.release(&[id(2)]);
    node.hold(4);
    node.written().await;
    assert_eq!(memory.names(), [1, 3, 4].map(|byte| name(&id(byte))));
    (5..=8).for_each(|byte| node.hold(byte));
    node.written().await;
    let bound = 3 * file_bytes(bytes() as u64);
    assert_eq!((memory.peak() as u64, node.disk.figures().used_bytes), (bound, bound));
    node.disk.close().await;
}

#[tokio::test]
async fn what_is_released_while_it_comes_is_not_held_and_stays_on_the_disk() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    node.hold(1);
    node.written().await;
    node.disk.close().await;
    let node = Node::start(&memory, 100, 8);
    for ended in node.held.release(&[id(1)]) {
        ended.wait().await;
    }
    node.is_back();
    node.held.release(&[id(1)]);
    assert_eq!((node.held.budget().used_bytes(), node.disk.figures().blocks), (0, 1));
    for ended in node.held.recall(&[id(1)]) {
        ended.wait().await;
    }
    assert!(node.holds(1));
    // A host that has stopped takes nothing.
    node.held.close();
    assert!(node.held.recall(&[id(1)]).is_empty() && node.held.budget().used_bytes() == 0);
    node.disk.close().await;
}

#[tokio::test]
async fn who_lets_go_of_what_is_yet_to_come_waits_for_nothing_that_comes_before() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    [1, 2, 3].into_iter().for_each(|byte| node.hold(byte));
    node.written().await;
    node.disk.close().await;
    let clock = ManualClock::new();
    let disk = Disk::open_over(memory.boxed(), options(100 * file_bytes(bytes() as u64), &clock)).unwrap();
    memory.set_reads(Reads::Wait);
    let node = Node::over(disk, 8, clock);
    // The latest comes first, and does not get on.
    for ended in node.held.release(&[id(1), id(2)]) {
        tokio::time::timeout(PATIENCE, ended.wait()).await.expect("it ends before its turn comes");
    }
    assert_eq!(node.held.from_disk(), [(id(3), bytes() as u64)]);
    memory.set_reads(Reads::Well);
    node.is_back();
    assert!(node.holds(3) && !node.holds(1) && !node.holds(2));
    assert_eq!(node.disk.figures().blocks, 3);
    node.disk.close().await;
}

#[tokio::test]
async fn files_that_cannot_be_read_now_stay_and_are_read_later() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    node.hold(1);
    node.written().await;
    node.disk.close().await;
    memory.set_reads(Reads::Fail);
    let node = Node::start(&memory, 100, 8);
    node.is_back();
    let recalled = async |byte| {
        for ended in node.held.recall(&[id(byte)]) {
            ended.wait().await;
        }
        node.holds(byte)
    };
    assert!(!recalled(1).await);
    memory.set_reads(Reads::Well);
    assert!(recalled(1).await);
    let figures = node.disk.figures();
    assert_eq!((figures.blocks, figures.damaged), (1, 0));
    node.disk.close().await;
}

#[tokio::test]
async fn a_block_from_the_disk_takes_the_room_that_was_promised_to_it() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 1);
    node.hold(1);
    node.written().await;
    node.held.release(&[id(1)]);
    assert_eq!(node.held.promise(id(1), TOKENS), Ok(false));
    for ended in node.held.recall(&[id(1)]) {
        ended.wait().await;
    }
    assert!(node.holds(1) && node.held.take_promised(&id(1)).is_none());
    assert_eq!(node.held.budget().used_bytes(), bytes());
    node.disk.close().await;
}

fn open(folder: &Path) -> Result<Disk, DiskError> {
    let folder = folder.to_owned();
    Disk::open(DiskOptions { folder, ..options(1 << 20, &ManualClock::new()) })
}

#[tokio::test]
async fn a_folder_of_the_machine_keeps_blocks_and_is_one_nodes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/blocks");
    let node = Node::over(open(&path).unwrap(), 8, ManualClock::new());
    (1..=3).for_each(|byte| node.hold(byte));
    node.written().await;
    assert!(matches!(open(&path), Err(DiskError::Taken { .. })));
    node.disk.close().await;
    let flipped = path.join(name(&id(2)));
    let mut file = fs::read(&flipped).unwrap();
    *file.last_mut().unwrap() ^= 1;
    fs::write(&flipped, file).unwrap();
    let node = Node::over(open(&path).unwrap(), 8, ManualClock::new());
    node.is_back();
    assert_eq!((1..=3).filter(|&byte| node.holds(byte)).collect::<Vec<_>>(), [1, 3]);
    until(|| !flipped.exists(), || "the damaged file is removed".to_owned());
    node.disk.close().await;
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file).unwrap_err().to_string();
    assert!(error.contains("kv.disk_dir"), "{error}");
}

#[test]
fn blocks_of_another_model_are_kept_and_not_brought_back() {
    let (memory, clock) = (Memory::default(), ManualClock::new());
    files::write(&mut *memory.boxed(), &head(1), &fill(1), &mut || {}).unwrap();
    let other = DiskOptions { model: [6; 32], ..options(1 << 20, &clock) };
    let node = Node::over(Disk::open_over(memory.boxed(), other).unwrap(), 8, clock);
    assert!(node.held.from_disk().is_empty() && node.held.list().is_empty());
    assert_eq!(node.disk.figures().blocks, 1);
}

#[tokio::test]
async fn nobody_waits_for_a_disk_that_was_closed() {
    let memory = Memory::default();
    let node = Node::start(&memory, 100, 8);
    node.hold(1);
    node.written().await;
    node.held.release(&[id(1)]);
    node.disk.close().await;
    for ended in node.held.recall(&[id(1)]) {
        tokio::time::timeout(PATIENCE, ended.wait()).await.unwrap();
    }
    assert!(node.held.get(&id(1)).is_none());
    node.hold(2);
    assert!(!node.disk.settle(PATIENCE).await, "it is written no more, and nobody waits for that");
}
