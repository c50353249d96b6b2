//! The asynchronous handle: group commit, bounds, and order between writes and reads.

use std::sync::mpsc;

use super::disk::Disk;
use super::*;

fn append(entry: &[u8]) -> Write {
    Write::Append { log: b"log".to_vec(), epoch: 1, at: None, entry: entry.to_vec() }
}

/// Keeps the reader or, through a shared store, nobody else busy until the returned sender is dropped.
async fn block_reader(handle: &StoreHandle) -> (mpsc::Sender<()>, tokio::task::JoinHandle<()>) {
    let (release, blocked) = mpsc::channel::<()>();
    let (started, starting) = tokio::sync::oneshot::channel();
    let handle = handle.clone();
    let task = tokio::spawn(async move {
        let read = handle.read(move |_| {
            started.send(()).expect("awaited");
            // An error is what the test waits for: the sender is gone.
            let _ = blocked.recv();
            Ok(())
        });
        read.await.expect("read");
    });
    starting.await.expect("started");
    (release, task)
}

#[tokio::test]
async fn writes_that_wait_together_share_a_sync_and_each_learns_its_own_outcome() {
    let disk = Disk::default();
    let on = disk.clone();
    let store = Store::open_on(move || on.clone(), StoreOptions::default()).expect("opens");
    let before = disk.syncs();
    store.write(&[append(b"one by itself")]).expect("written");
    let syncs_of_one = disk.syncs() - before;
    let handle = StoreHandle::start(store).expect("starts");

    let before = disk.syncs();
    let mut requests = tokio::task::JoinSet::new();
    for index in 0..100_u8 {
        let handle = handle.clone();
        requests.spawn(async move {
            let late = Write::Append { log: b"log".to_vec(), epoch: 0, at: None, entry: vec![] };
            let outcomes = handle.write(vec![append(&[index]), late]).await.expect("the disk is fine");
            assert_eq!(outcomes[1], Err(Refusal::Fenced { stored: 1, offered: 0 }));
            match outcomes[0] {
                Ok(Written::Appended { index: at }) => (at, index),
                ref other => panic!("{other:?}"),
            }
        });
    }
    let mut places = requests.join_all().await;
    let syncs = disk.syncs() - before;
    println!("100 requests at once: {syncs} syncs, where one by one takes {}", 100 * syncs_of_one);
    assert!(syncs < 100 * syncs_of_one, "{syncs} syncs");

    places.sort_unstable();
    let page =
        handle.read(|store| store.read_log(b"log", 1, usize::MAX)).await.expect("read").expect("exists");
    let found: Vec<_> = page.entries.iter().map(|entry| (entry.index, entry.value[0])).collect();
    assert_eq!(found, places);
}

#[tokio::test]
async fn a_read_sees_every_write_that_was_acknowledged_before_it() {
    let folder = folder();
    let handle = StoreHandle::start(open(&folder)).expect("starts");
    for turn in 0..20 {
        handle.write_one(append(b"turn")).await.expect("written");
        let head = handle.read(|store| store.log(b"log")).await.expect("read").expect("exists");
        assert_eq!(head.next, turn + 1);
    }
}

#[tokio::test]
async fn a_refusal_of_a_single_write_is_typed() {
    let folder = folder();
    let handle = StoreHandle::start(open(&folder)).expect("starts");
    handle.write_one(Write::Fence { log: b"log".to_vec(), epoch: 2 }).await.expect("fenced");
    let refused = handle.write_one(append(b"late")).await;
    assert_eq!(refused, Err(Refusal::Fenced { stored: 2, offered: 1 }.into()));
}

#[tokio::test]
async fn a_value_larger_than_the_queue_still_gets_through() {
    let folder = folder();
    let options = StoreOptions { queue_bytes: 4 << 10, ..StoreOptions::default() };
    let handle = StoreHandle::start(Store::open(folder.path(), options).expect("opens")).expect("starts");
    let large = handle.write_one(append(&[7; 100_000])).await;
    assert_eq!(large, Ok(Written::Appended { index: 0 }));
    let next = handle.write_one(append(b"small")).await;
    assert_eq!(next, Ok(Written::Appended { index: 1 }));
}

#[tokio::test]
async fn a_slow_reader_does_not_hold_up_writes() {
    let folder = folder();
    let handle = StoreHandle::start(open(&folder)).expect("starts");
    let (release, reader) = block_reader(&handle).await;
    handle.write_one(append(b"meanwhile")).await.expect("written");
    drop(release);
    reader.await.expect("reads");
}

#[tokio::test]
async fn closing_finishes_what_is_queued_and_frees_the_folder() {
    let folder = folder();
    let handle = StoreHandle::start(open(&folder)).expect("starts");
    let writes: Vec<_> = (0..50_u8).map(|index| handle.write(vec![append(&[index])])).collect();
    let writing = futures_util::future::join_all(writes);
    assert!(writing.await.iter().all(Result::is_ok));
    handle.close();
    let store = open(&folder);
    assert_eq!(store.log(b"log").expect("read").expect("exists").next, 50);
}
