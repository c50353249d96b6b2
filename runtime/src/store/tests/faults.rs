//! Disks that lose power, are full, or rot. Every seed is printed.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::disk::Disk;
use super::*;

fn options() -> StoreOptions {
    StoreOptions { cache_bytes: 1 << 20, ..StoreOptions::default() }
}

fn open_on(disk: &Disk) -> Result<Store, OpenError> {
    let disk = disk.clone();
    Store::open_on(move || disk.clone(), options())
}

/// The bytes of entry `index`: of a length of its own, so that a mix of two is found.
fn entry(index: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(index);
    let length = if index.is_multiple_of(7) { 20_000 } else { rng.random_range(0..2_000) };
    (0..length).map(|_| rng.random()).collect()
}

/// A group of one to four appends and a record that says how many there are then; all of them or none must be found.
fn group(rng: &mut ChaCha8Rng, next: u64) -> (u64, Vec<Write>) {
    let count = rng.random_range(1..5);
    let mut writes: Vec<_> = (next..next + count)
        .map(|index| Write::Append { log: b"log".to_vec(), epoch: 1, at: Some(index), entry: entry(index) })
        .collect();
    writes.push(Write::Put {
        kind: Kind::Session,
        key: b"count".to_vec(),
        value: (next + count).to_le_bytes().to_vec(),
        condition: Condition::Any,
    });
    (count, writes)
}

/// How many entries there are; all of them are what they should be, and the record agrees.
fn check_whole(store: &Store, seed: u64) -> u64 {
    let Some(page) = store.read_log(b"log", 0, usize::MAX).expect("read") else { return 0 };
    for found in &page.entries {
        assert_eq!(found.value, entry(found.index), "seed {seed}: entry {}", found.index);
    }
    let record = store.get(Kind::Session, b"count").expect("read").expect("written with the entries");
    assert_eq!(record.value, page.head.next.to_le_bytes(), "seed {seed}: record and log are of one commit");
    page.head.next
}

#[test]
fn after_power_fails_at_any_moment_every_acknowledged_write_is_there_and_nothing_half() {
    let (mut survived_unacknowledged, mut crashes) = (0, 0);
    for seed in 0..400_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut disk = Disk::default();
        drop(open_on(&disk).expect("opens"));
        let mut acknowledged = 0;
        // Several lives of one disk: a crash during the repair of a crash is among them.
        for life in 0..3 {
            disk.set_power(Some(rng.random_range(0..120)));
            let mut attempted = acknowledged;
            if let Ok(store) = open_on(&disk) {
                loop {
                    let (count, writes) = group(&mut rng, acknowledged);
                    attempted = acknowledged + count;
                    let Ok(outcomes) = store.write(&writes) else { break };
                    assert!(outcomes.iter().all(Result::is_ok), "seed {seed}: {outcomes:?}");
                    acknowledged += count;
                }
            }
            crashes += 1;
            disk = Disk::with_image(disk.crash(seed * 10 + life));
            let store = open_on(&disk).unwrap_or_else(|error| panic!("seed {seed} life {life}: {error}"));
            let found = check_whole(&store, seed);
            assert!(
                found == acknowledged || found == attempted,
                "seed {seed} life {life}: {found} entries, acknowledged {acknowledged}, attempted {attempted}"
            );
            survived_unacknowledged += u64::from(found != acknowledged);
            acknowledged = found;
        }
    }
    println!(
        "{crashes} crashes; {survived_unacknowledged} kept a write whose acknowledgement the crash had cut off"
    );
}

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_goes_on_when_there_is_room() {
    for seed in 0..40_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let disk = Disk::default();
        let store = open_on(&disk).expect("opens");
        let mut acknowledged = 0;
        let room = disk.image().len() as u64 + rng.random_range(0..400_000);
        disk.set_capacity(Some(room));
        let failed = loop {
            let (count, writes) = group(&mut rng, acknowledged);
            match store.write(&writes) {
                Ok(_) => acknowledged += count,
                Err(error) => break error,
            }
        };
        assert_eq!(failed, StoreError::DiskFull, "seed {seed}");
        assert_eq!(check_whole(&store, seed), acknowledged, "seed {seed}: reading goes on");
        disk.set_capacity(None);
        let (count, writes) = group(&mut rng, acknowledged);
        store.write(&writes).unwrap_or_else(|error| panic!("seed {seed}: with room again: {error}"));
        assert_eq!(check_whole(&store, seed), acknowledged + count, "seed {seed}");
        drop(store);
        let store = open_on(&disk).expect("opens");
        assert_eq!(check_whole(&store, seed), acknowledged + count, "seed {seed}: after a restart");
    }
}

/// What a reader of a damaged store got.
#[derive(Debug, Default)]
struct Findings {
    refused_at_open: u32,
    found_on_reading: u32,
    vanished: u32,
    harmless: u32,
}

fn read_damaged(
    image: Vec<u8>,
    verify_on_open: bool,
    expected: &[Vec<u8>],
    findings: &mut Findings,
    what: &str,
) {
    let disk = Disk::with_image(image);
    let opened = Store::open_on(move || disk.clone(), StoreOptions { verify_on_open, ..options() });
    let store = match opened {
        Ok(store) => store,
        Err(OpenError::Corrupt { .. } | OpenError::Io { .. }) => {
            findings.refused_at_open += 1;
            return;
        }
        Err(error) => panic!("{what}: {error:?}"),
    };
    let (mut damaged, mut vanished) = (false, false);
    for (index, expected) in expected.iter().enumerate() {
        match store.get(Kind::Manifest, &key(index)) {
            Ok(Some(record)) => assert_eq!(&record.value, expected, "{what}: a wrong value was served"),
            Ok(None) => vanished = true,
            Err(StoreError::Corrupt { .. } | StoreError::Io { .. }) => damaged = true,
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
    assert!(!(vanished && verify_on_open), "{what}: a record vanished in silence");
    match (vanished, damaged) {
        (true, _) => findings.vanished += 1,
        (_, true) => findings.found_on_reading += 1,
        _ => findings.harmless += 1,
    }
}

fn key(index: usize) -> Vec<u8> {
    format!("record-{index:03}").into_bytes()
}

#[test]
fn damage_is_found_and_never_served_as_data() {
    let disk = Disk::default();
    let store = open_on(&disk).expect("opens");
    let values: Vec<_> = (0..40).map(|index| entry(index * 3)).collect();
    for (index, value) in values.iter().enumerate() {
        store.put(Kind::Manifest, &key(index), value, Condition::Any).expect("written");
    }
    drop(store);
    let image = disk.image();
    for verify_on_open in [true, false] {
        let mut findings = Findings::default();
        for seed in 0..600_u64 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut damaged = image.clone();
            let at = if seed.is_multiple_of(4) {
                rng.random_range(0..512)
            } else {
                rng.random_range(0..image.len())
            };
            if seed.is_multiple_of(3) {
                let sector = at / 512 * 512;
                damaged[sector..(sector + 512).min(image.len())].fill(0);
            } else {
                damaged[at] ^= 1 << rng.random_range(0..8);
            }
            let what = format!("seed {seed}, byte {at} of {}", image.len());
            read_damaged(damaged, verify_on_open, &values, &mut findings, &what);
        }
        println!("verified on opening: {verify_on_open}: {findings:?}");
        assert!(findings.refused_at_open + findings.found_on_reading > 0);
    }
}
