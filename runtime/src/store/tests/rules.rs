//! What the store promises while nothing fails: versions, fences, bounds, order, and all of it again after closing.

use super::*;

#[test]
fn a_record_is_there_with_its_version_after_the_store_was_closed_and_opened() {
    let folder = folder();
    let version = open(&folder).put(Kind::Manifest, b"book", b"blocks", Condition::Absent).expect("written");
    let record = open(&folder).get(Kind::Manifest, b"book").expect("read");
    assert_eq!(record, Some(Record { version, value: b"blocks".to_vec() }));
}

#[test]
fn kinds_are_apart_and_listings_are_in_the_order_of_keys_and_go_on_where_they_ended() {
    let folder = folder();
    let store = open(&folder);
    for key in ["b/2", "a/1", "b/1", "b/3", "c"] {
        store.put(Kind::Session, key.as_bytes(), key.as_bytes(), Condition::Any).expect("written");
        store.put(Kind::Manifest, key.as_bytes(), b"other", Condition::Any).expect("written");
    }
    let keys = |after: Option<&[u8]>, limit| -> Vec<_> {
        let listed = store.list(Kind::Session, b"b/", after, limit).expect("listed");
        listed.into_iter().map(|listed| String::from_utf8(listed.key).expect("text")).collect()
    };
    assert_eq!(keys(None, 2), ["b/1", "b/2"]);
    assert_eq!(keys(Some(b"b/2"), 2), ["b/3"]);
    assert_eq!(keys(Some(b"a"), 9), ["b/1", "b/2", "b/3"]);
    assert_eq!(store.list(Kind::Token, b"", None, 9).expect("listed"), []);
}

#[test]
fn a_conditional_write_is_refused_with_the_stored_version_and_changes_nothing() {
    let folder = folder();
    let store = open(&folder);
    let first = store.put(Kind::Intent, b"node", b"cordoned", Condition::Absent).expect("written");
    let again = store.put(Kind::Intent, b"node", b"draining", Condition::Absent);
    assert_eq!(again, Err(Refusal::Version { stored: Some(first) }.into()));
    let second = store.put(Kind::Intent, b"node", b"draining", Condition::Version(first)).expect("written");
    assert!(second > first);
    let stale = store.delete(Kind::Intent, b"node", Condition::Version(first));
    assert_eq!(stale, Err(Refusal::Version { stored: Some(second) }.into()));
    assert_eq!(store.delete(Kind::Intent, b"node", Condition::Version(second)), Ok(true));
    assert_eq!(store.delete(Kind::Intent, b"node", Condition::Any), Ok(false));
    let gone = store.put(Kind::Intent, b"node", b"", Condition::Version(second));
    assert_eq!(gone, Err(Refusal::Version { stored: None }.into()));
}

#[test]
fn versions_are_not_used_again_after_a_delete() {
    let folder = folder();
    let store = open(&folder);
    let first = store.put(Kind::Token, b"t", b"1", Condition::Any).expect("written");
    store.delete(Kind::Token, b"t", Condition::Any).expect("deleted");
    drop(store);
    assert!(open(&folder).put(Kind::Token, b"t", b"1", Condition::Any).expect("written") > first);
}

#[test]
fn a_log_keeps_its_entries_in_order_and_reads_by_pages() {
    let folder = folder();
    let store = open(&folder);
    for turn in 0..10_u8 {
        assert_eq!(store.append(b"session", 1, &[turn; 100]), Ok(u64::from(turn)));
    }
    store.append(b"session-2", 1, b"another log").expect("written");
    drop(store);
    let store = open(&folder);
    let page = store.read_log(b"session", 2, 350).expect("read").expect("exists");
    assert_eq!(page.head, LogHead { epoch: 1, next: 10, bytes: 1000 });
    assert_eq!(page.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [2, 3, 4]);
    let large = store.read_log(b"session", 9, 1).expect("read").expect("exists");
    assert_eq!(large.entries, [Entry { index: 9, epoch: 1, value: vec![9; 100] }]);
    assert_eq!(store.read_log(b"session", 10, 1).expect("read").expect("exists").entries, []);
    assert_eq!(store.read_log(b"none", 0, 1).expect("read"), None);
    let logs = store.logs(b"session", None, 9).expect("listed");
    assert_eq!(
        logs.iter().map(|(name, _)| name.as_slice()).collect::<Vec<_>>(),
        [&b"session"[..], b"session-2"]
    );
}

#[test]
fn an_owner_of_a_lower_epoch_can_no_longer_append_and_the_fence_outlives_the_process() {
    let folder = folder();
    let store = open(&folder);
    store.append(b"session", 1, b"first").expect("written");
    assert_eq!(store.fence(b"session", 3), Ok(1));
    drop(store);
    let store = open(&folder);
    let refused = Err(Refusal::Fenced { stored: 3, offered: 2 }.into());
    assert_eq!(store.append(b"session", 2, b"late"), refused);
    assert_eq!(store.fence(b"session", 2), refused);
    assert_eq!(store.append(b"session", 3, b"second"), Ok(1));
    assert_eq!(store.append(b"session", 4, b"third"), Ok(2));
    let late = Err(Refusal::Fenced { stored: 4, offered: 3 }.into());
    assert_eq!(store.append(b"session", 3, b"late"), late);
    let entries = store.read_log(b"session", 0, 1000).expect("read").expect("exists").entries;
    assert_eq!(entries.iter().map(|entry| entry.epoch).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn an_append_that_names_its_index_is_not_written_twice() {
    let folder = folder();
    let store = open(&folder);
    let write = Write::Append { log: b"session".to_vec(), epoch: 1, at: Some(0), entry: b"turn".to_vec() };
    let outcomes = store.write(&[write.clone(), write]).expect("the disk is fine");
    assert_eq!(outcomes[0], Ok(Written::Appended { index: 0 }));
    assert_eq!(outcomes[1], Err(Refusal::Position { next: 1, expected: 0 }));
}

#[test]
fn a_dropped_log_is_gone_with_all_its_entries_and_no_other() {
    let folder = folder();
    let store = open(&folder);
    for turn in 0..5 {
        store.append(b"a", 2, &[turn]).expect("written");
        store.append(b"aa", 2, &[turn]).expect("written");
    }
    let dropping = |epoch| {
        store.write(&[Write::Drop { log: b"a".to_vec(), epoch }]).expect("the disk is fine").remove(0)
    };
    assert_eq!(dropping(1), Err(Refusal::Fenced { stored: 2, offered: 1 }));
    assert_eq!(dropping(2), Ok(Written::Deleted { existed: true }));
    assert_eq!(dropping(2), Ok(Written::Deleted { existed: false }));
    assert_eq!(store.log(b"a").expect("read"), None);
    assert_eq!(store.append(b"a", 0, b"anew"), Ok(0));
    assert_eq!(store.read_log(b"aa", 0, 1000).expect("read").expect("exists").entries.len(), 5);
}

#[test]
fn a_lower_promise_is_refused_also_after_a_restart() {
    let folder = folder();
    let promise = |term, holder| Promise { term, holder: [holder; 32] };
    let store = open(&folder);
    assert_eq!(store.promised(), Ok(None));
    store.promise(promise(5, 7)).expect("made");
    store.promise(promise(5, 7)).expect("again");
    drop(store);
    let store = open(&folder);
    let refused = Err(Refusal::Promised { stored: promise(5, 7) }.into());
    assert_eq!(store.promise(promise(4, 9)), refused);
    assert_eq!(store.promise(promise(5, 6)), refused);
    store.promise(promise(5, 8)).expect("higher");
    store.promise(promise(6, 1)).expect("higher");
    assert_eq!(store.promised(), Ok(Some(promise(6, 1))));
}

#[test]
fn keys_and_values_out_of_bounds_are_refused_and_their_neighbours_are_written() {
    let folder = folder();
    let options = StoreOptions { max_value_bytes: 10, ..StoreOptions::default() };
    let store = Store::open(folder.path(), options).expect("opens");
    let put = |key: &[u8], value: &[u8]| Write::Put {
        kind: Kind::Node,
        key: key.to_vec(),
        value: value.to_vec(),
        condition: Condition::Any,
    };
    let writes = [put(b"", b""), put(&[1; 257], b""), put(b"k", &[0; 11]), put(&[1; 256], &[0; 10])];
    let outcomes = store.write(&writes).expect("the disk is fine");
    assert_eq!(outcomes[0], Err(Refusal::Key { bytes: 0 }));
    assert_eq!(outcomes[1], Err(Refusal::Key { bytes: 257 }));
    assert_eq!(outcomes[2], Err(Refusal::TooLarge { bytes: 11, limit: 10 }));
    assert!(outcomes[3].is_ok());
}

#[test]
fn a_second_store_on_the_folder_is_refused_and_names_who_has_it() {
    let folder = folder();
    let store = open(&folder);
    let second = Store::open(folder.path(), StoreOptions::default()).map(drop);
    let expected = OpenError::InUse { folder: folder.path().to_owned(), holder: Some(std::process::id()) };
    assert_eq!(second, Err(expected));
    drop(store);
    open(&folder);
}

#[test]
fn a_store_of_a_later_schema_is_refused_and_left_alone() {
    let folder = folder();
    drop(open(&folder));
    let file = folder.path().join("store.redb");
    let database = redb::Database::open(&file).expect("opens");
    let transaction = database.begin_write().expect("begins");
    transaction.open_table(tables::NUMBERS).expect("opens").insert(tables::SCHEMA_KEY, 99).expect("written");
    transaction.commit().expect("committed");
    drop(database);
    let refused = Store::open(folder.path(), StoreOptions::default()).expect_err("a later schema");
    let expected = OpenError::Newer { folder: folder.path().to_owned(), found: 99, known: tables::SCHEMA };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("run the newer program"), "{refused}");
}

#[test]
fn a_file_that_is_no_store_is_reported_and_not_overwritten() {
    let folder = folder();
    let file = folder.path().join("store.redb");
    std::fs::write(&file, b"my thesis, do not delete").expect("written");
    let refused = Store::open(folder.path(), StoreOptions::default()).expect_err("no store");
    assert!(matches!(refused, OpenError::Corrupt { .. }), "{refused:?}");
    assert_eq!(std::fs::read(&file).expect("still there"), b"my thesis, do not delete");
}

#[test]
fn a_store_half_created_by_a_crash_is_created_anew() {
    let folder = folder();
    std::fs::write(folder.path().join("store.redb.new"), b"half").expect("written");
    open(&folder).append(b"log", 1, b"entry").expect("written");
    assert!(!folder.path().join("store.redb.new").exists());
}

#[cfg(unix)]
#[test]
fn the_folder_and_the_file_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let data = folder.path().join("deep").join("data");
    drop(Store::open(&data, StoreOptions::default()).expect("opens"));
    let mode = |path: &std::path::Path| path.metadata().expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("store.redb")), 0o600);
}
