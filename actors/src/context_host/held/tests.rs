//! Promises, releases and arrivals in every order.

use futures_util::FutureExt;
use stellate_kernels::{KvFormat, KvShape};
use stellate_runtime::clock::ManualClock;

use super::*;

const TOKENS: usize = 64;

fn blocks(room: usize) -> Arc<HeldBlocks> {
    timed(room, ManualClock::new())
}

fn timed(room: usize, clock: ManualClock) -> Arc<HeldBlocks> {
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 2, format: KvFormat::F32 };
    HeldBlocks::new(HostId(1), KvBudget::new(shape, room * shape.bytes_for(TOKENS)), Arc::new(clock))
}

fn id(byte: u8) -> BlockId {
    BlockId::from_bytes([byte; 32])
}

fn used(blocks: &HeldBlocks) -> usize {
    blocks.budget.used_bytes() / blocks.budget.shape().bytes_for(TOKENS)
}

#[test]
fn room_that_was_promised_is_given_once_and_taken_back_by_a_release() {
    let blocks = blocks(2);
    assert_eq!(blocks.promise(id(1), TOKENS), Ok(false));
    assert_eq!(blocks.promise(id(1), TOKENS), Ok(false), "the same room");
    assert_eq!(blocks.promise(id(2), TOKENS), Ok(false));
    assert!(matches!(blocks.promise(id(3), TOKENS), Err(HostError::Full(_))));
    let Ok(Opening::Room { was_promised: true, strip, arrival }) =
        blocks.receive(id(1), TOKENS).now_or_never().unwrap()
    else {
        panic!("there is room")
    };
    assert!(blocks.receive(id(1), TOKENS).now_or_never().is_none(), "it is on its way");
    assert_eq!(blocks.inbound(), [(id(1), 0)]);
    arrival.promise(strip);
    assert_eq!((used(&blocks), blocks.inbound().len()), (2, 0));
    assert!(blocks.release(&[id(1), id(2)]).is_empty());
    assert_eq!(used(&blocks), 0);
    assert!(blocks.take_promised(&id(1)).is_none());
}

#[test]
fn a_promise_that_nobody_comes_back_to_ends_and_one_in_use_does_not() {
    let clock = ManualClock::new();
    let blocks = timed(3, clock.clone());
    (1..4).for_each(|byte| assert_eq!(blocks.promise(id(byte), TOKENS), Ok(false)));
    clock.advance(PROMISE - Duration::from_secs(1));
    blocks.promise(id(2), TOKENS).unwrap();
    let (arrival, strip) = (blocks.expect(id(3), Way::Copy), blocks.take_promised(&id(3)).unwrap());
    clock.advance(Duration::from_secs(1));
    blocks.expire_promises();
    assert_eq!(used(&blocks), 2);
    arrival.promise(strip);
    clock.advance(PROMISE - Duration::from_secs(1));
    blocks.expire_promises();
    assert_eq!(used(&blocks), 1);
    assert!(blocks.take_promised(&id(3)).is_some());
}

#[test]
fn what_was_on_its_way_when_it_was_released_is_not_held_and_what_comes_later_is() {
    let blocks = blocks(3);
    let (before, room) = (blocks.expect(id(1), Way::Encode), blocks.budget.allocate(TOKENS).unwrap());
    blocks.release(&[id(1)]);
    let (after, other) = (blocks.expect(id(1), Way::Encode), blocks.budget.allocate(TOKENS).unwrap());
    assert!(before.revoked().is_cancelled() && !after.revoked().is_cancelled());
    assert_eq!(before.seal(room), Err(NotSealed::Released));
    assert_eq!((blocks.get(&id(1)).is_some(), used(&blocks)), (false, 1));
    assert_eq!(after.seal(other), Ok(()));
    assert_eq!(blocks.list().len(), 1);
    // Twice the same: the second is given back.
    blocks.insert(id(1), blocks.budget.allocate(TOKENS).unwrap()).unwrap();
    assert_eq!(used(&blocks), 1);
    assert!(blocks.state().arrivals.is_empty());
}

#[test]
fn a_release_names_the_copies_that_are_to_end_and_each_waits_for_earlier_ones_alone() {
    let blocks = blocks(1);
    let (first, second) = (blocks.expect(id(1), Way::Copy), blocks.expect(id(1), Way::Copy));
    let encode = blocks.expect(id(1), Way::Encode);
    assert_eq!([&first, &second, &encode].map(|arrival| arrival.earlier_copies().len()), [0, 1, 2]);
    let copies = blocks.release(&[id(1)]);
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|copy| copy.clone().wait().now_or_never().is_none()));
    drop((first, second));
    assert!(copies.into_iter().all(|copy| copy.wait().now_or_never().is_some()));
}

#[test]
fn a_host_that_has_stopped_holds_nothing_and_takes_nothing() {
    let blocks = blocks(3);
    blocks.insert(id(1), blocks.budget.allocate(TOKENS).unwrap()).unwrap();
    blocks.promise(id(2), TOKENS).unwrap();
    let (arrival, room) = (blocks.expect(id(3), Way::Encode), blocks.budget.allocate(TOKENS).unwrap());
    blocks.close();
    assert_eq!(arrival.seal(room), Err(NotSealed::Closed));
    assert_eq!((used(&blocks), blocks.is_open()), (0, false));
    assert!(matches!(blocks.promise(id(2), TOKENS), Err(HostError::Unreachable { .. })));
    assert!(blocks.get(&id(1)).is_none() && blocks.take_promised(&id(2)).is_none());
}
