//! What the wire carries is written down: every kind of frame, close code, request, event and membership message of the code
//! has its row in `ops/docs/protocol.md`, with the same number; and every test that `failure-model.md` names is there. It reads text, as `tidy.rs` does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rows of the tables below the heading that begins with `heading`: number and name, as `| 32 | `OPEN` …`.
fn rows(document: &str, heading: &str) -> BTreeMap<String, u64> {
    let section = document.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("protocol.md has a section `{heading}`"));
    section.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(String, u64)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let number = cells.next()?.parse().ok()?;
    let name = cells.next()?.strip_prefix('`')?.split('`').next()?;
    Some((name.to_owned(), number))
}

/// Constants of the code whose line has `pattern` between name and number, as `pub const OPEN: FrameKind = kind(16);`.
fn constants(code: &str, pattern: &str) -> BTreeMap<String, u64> {
    let constant = |line: &str| {
        let (before, after) = line.split_once(pattern)?;
        let name = before.rsplit(' ').next()?;
        let number = after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
        Some((name.to_owned(), number))
    };
    code.lines().filter_map(constant).collect()
}

/// The variants of `name`, numbered from 0 in their order.
fn variants(code: &str, name: &str) -> BTreeMap<String, u64> {
    let body = code.split(&format!("enum {name} {{\n")).nth(1).unwrap_or_else(|| panic!("enum {name}"));
    let variant = |line: &str| {
        let word = line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase))?;
        Some(word.chars().take_while(char::is_ascii_alphanumeric).collect::<String>())
    };
    let names = body.lines().take_while(|line| *line != "}").filter_map(variant);
    names.zip(0..).collect()
}

#[test]
fn every_kind_of_frame_in_the_code_is_in_the_document() {
    let mut kinds = constants(&read("runtime/src/transport/frame.rs"), ": Self = Self(");
    kinds.remove("FIRST_FREE").expect("where the kinds of users begin");
    let first_free = 16;
    let of_hosts = constants(&read("actors/src/remote/frames.rs"), ": FrameKind = kind(");
    kinds.extend(of_hosts.into_iter().map(|(name, offset)| (name, first_free + offset)));
    kinds.extend(constants(&read("actors/src/api/wire.rs"), ": FrameKind = FrameKind("));
    assert!(kinds.len() >= 23, "the code was read: {kinds:?}");
    assert_eq!(rows(&read("ops/docs/protocol.md"), "Frames"), kinds);
}

#[test]
fn no_frame_kind_is_defined_where_this_test_does_not_look() {
    let known = ["runtime/src/transport/frame.rs", "actors/src/remote/frames.rs", "actors/src/api/wire.rs"];
    for folder in ["runtime/src", "actors/src", "ops/src"] {
        for path in rust_files(folder) {
            let text = read(&path);
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let defines = code.lines().any(|line| line.contains(": FrameKind = "));
            assert!(!defines || known.contains(&path.as_str()), "{path} defines a kind of frame");
        }
    }
}

#[test]
fn every_close_code_membership_message_request_and_event_is_in_the_document() {
    let document = read("ops/docs/protocol.md");
    let close = read("runtime/src/transport/close.rs");
    let code = |line: &str| {
        let (name, number) = line.trim().strip_prefix("(Self::")?.split_once(", ")?;
        Some((name.to_owned(), number.strip_suffix("),")?.parse().ok()?))
    };
    assert_eq!(rows(&document, "The first frames"), close.lines().filter_map(code).collect());
    let membership = constants(&read("runtime/src/membership/wire.rs"), ": u8 = ");
    let kinds: BTreeMap<_, _> = membership.into_iter().filter(|(name, _)| name != "WIRE_VERSION").collect();
    assert_eq!(rows(&document, "Membership"), kinds);
    let wire = read("actors/src/api/wire.rs");
    let written = rows(&document, "Requests of administrators");
    // One name is a request and an event: both have their row, of which the map keeps the later.
    let (requests, events) = (variants(&wire, "Request"), variants(&wire, "Event"));
    assert!(requests.len() > 15 && events.len() > 8, "the code was read");
    for (name, number) in requests.iter().chain(&events) {
        let row = format!("| {number} | `{name}`");
        assert!(document.contains(&row), "protocol.md has no row `{row}`");
    }
    assert!(written.keys().all(|name| requests.contains_key(name) || events.contains_key(name)));
}

#[test]
fn every_test_that_the_failure_model_names_is_there() {
    let document = read("ops/docs/failure-model.md");
    let mut code = String::new();
    let crates = ["runtime/src", "runtime/tests", "actors/src", "actors/tests", "ops/src", "ops/tests"];
    for folder in crates.into_iter().chain(["tests/simulator/tests", "tests/virtual_network"]) {
        let files = files_below(folder, &[]);
        files.iter().for_each(|path| code.push_str(&read(path)));
    }
    let words = document.split('`').skip(1).step_by(2);
    let names: Vec<_> =
        words.filter(|word| word.matches('_').count() > 2 && !word.contains(['/', '.'])).collect();
    assert!(names.len() > 25, "the document was read: {names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}()")), "there is no test `{name}`");
    }
}

/// Rust files below a folder, but for modules of tests.
fn rust_files(folder: &str) -> Vec<String> {
    files_below(folder, &["tests.rs", "tests"])
}

/// Rust files below a folder, with `/` between folders, but for those of certain names.
fn files_below(folder: &str, but: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&folder));
        for entry in entries.expect("a folder of the workspace can be read") {
            let name = entry.expect("an entry can be read").file_name().to_string_lossy().into_owned();
            let path = format!("{folder}/{name}");
            if but.contains(&&*name) {
                continue;
            }
            if name.ends_with(".rs") {
                found.push(path);
            } else if !name.contains('.') {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}
