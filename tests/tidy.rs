//! What a reader of this repository may rely on, as tests over its files: sizes, opening words, where `unsafe` and
//! `cuda` may stand. It reads text, line by line, and trusts rustfmt's layout; what the compiler, clippy, cargo-deny
//! or `.ci/layering` can check is not repeated here.

use std::fs;
use std::path::{Path, PathBuf};

/// Most files stay below this: at least [`MOST_PERCENT`] of them.
const MOST_FILES_LINES: usize = 350;
const MOST_PERCENT: usize = 80;
/// No file is longer, not counting its `#[cfg(test)]` modules; only files under `tests/` may be.
const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

/// A text file of the repository.
struct TextFile {
    /// Relative to the root, with `/` between folders.
    path: String,
    lines: Vec<String>,
}

impl TextFile {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Each line with its number from 1.
    fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(i, line)| (i + 1, line.as_str()))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace exists")
}

/// Every text file that is kept in the repository, in order of path.
fn text_files() -> Vec<TextFile> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<TextFile>) {
        for entry in fs::read_dir(folder).expect("a folder of the workspace can be read") {
            let path = entry.expect("an entry of a folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | "node_modules") {
                    walk(root, &path, found);
                }
            } else if is_text(&path) {
                let relative = path.strip_prefix(root).expect("found below the root");
                let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
                // A file that another program has just removed is no file of ours.
                let Ok(text) = fs::read_to_string(&path) else { continue };
                found.push(TextFile {
                    path: parts.join("/"),
                    lines: text.lines().map(str::to_owned).collect(),
                });
            }
        }
    }

    let root = root();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.iter().filter(|file| file.is_rust()).count() > 10, "the workspace's files were not found");
    found
}

/// Files that people write. Recorded data (JSON, weights, the lock file) may contain anything.
fn is_text(path: &Path) -> bool {
    match path.extension() {
        Some(extension) => {
            ["rs", "toml", "md", "py", "sh", "yml", "yaml", "cu", "h", "html", "js", "css", "service", "json"]
                .contains(&extension.to_string_lossy().as_ref())
                && !path.components().any(|part| part.as_os_str() == "goldens")
        }
        None => {
            path.parent().is_some_and(|folder| folder.file_name().is_some_and(|name| name == ".ci"))
                || path.ends_with("Dockerfile")
        }
    }
}

fn rust_files() -> impl Iterator<Item = TextFile> {
    text_files().into_iter().filter(TextFile::is_rust)
}

/// The code of a line: without its comment and without what stands between quotes. A text or a comment over several
/// lines is taken for code; that has not mattered yet.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut characters = line.chars().peekable();
    let mut in_text = false;
    while let Some(c) = characters.next() {
        match (in_text, c) {
            (true, '\\') => drop(characters.next()),
            (true, '"') => in_text = false,
            (true, _) => {}
            (false, '\'') if characters.peek() == Some(&'"') => drop(characters.next()),
            (false, '"') => in_text = true,
            (false, '/') if characters.peek() == Some(&'/') => break,
            (false, c) => code.push(c),
        }
    }
    code
}

/// Whether `word` stands in `code` on its own: `unsafe` does not stand in `unsafe_code`.
fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

fn indent_of(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// The index of the line that closes what is opened at `start`: the first of the same indent that ends the item.
fn end_of_item(lines: &[String], start: usize) -> usize {
    let indent = indent_of(&lines[start]);
    let at_indent = |line: &str| !line.trim().is_empty() && indent_of(line) == indent;
    let opened = (start..lines.len()).find(|&i| {
        let code = lines[i].trim_end();
        at_indent(code) && (code.ends_with('{') || code.ends_with(';') || code.ends_with('}'))
    });
    match opened {
        Some(i) if lines[i].trim_end().ends_with('{') => {
            let closing = format!("{indent}}}");
            (i + 1..lines.len()).find(|&j| lines[j].trim_end() == closing).unwrap_or(lines.len() - 1)
        }
        Some(i) => i,
        None => lines.len() - 1,
    }
}

/// Lines of a file without its inline `#[cfg(test)]` modules.
fn lines_without_tests(lines: &[String]) -> usize {
    let mut counted = lines.len();
    let mut i = 0;
    while i < lines.len() {
        if lines[i].trim() == "#[cfg(test)]" {
            let module = (i + 1..lines.len()).find(|&j| !lines[j].trim_start().starts_with("#["));
            if let Some(start) = module.filter(|&j| has_word(&code_of(&lines[j]), "mod")) {
                let end = end_of_item(lines, start);
                counted -= end - i + 1;
                i = end;
            }
        }
        i += 1;
    }
    counted
}

/// Whether a line begins a function: `fn` after nothing but qualifiers.
fn begins_function(line: &str) -> bool {
    let code = code_of(line);
    let Some((before, after)) = code.split_once("fn ") else { return false };
    after.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '$')
        && before.split_whitespace().all(|word| {
            matches!(word, "pub" | "const" | "async" | "unsafe" | "extern" | "default")
                || word.starts_with("pub(")
        })
}

/// Fails with every finding on a line of its own.
#[track_caller]
fn assert_none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}\n  {}\n", findings.join("\n  "));
}

#[test]
fn every_rust_file_opens_by_saying_what_lives_there() {
    let findings: Vec<_> = rust_files()
        // The bodies of fuzz targets are included by two files each, where `//!` cannot stand.
        .filter(|file| !file.path.contains("/fuzz/bodies/"))
        .filter(|file| !file.lines.first().is_some_and(|line| line.starts_with("//! ")))
        .map(|file| format!("{}:1", file.path))
        .collect();
    assert_none(
        "open these files with `//!`: what lives there and what does not, in two to five lines",
        &findings,
    );
}

#[test]
fn files_stay_short() {
    let files: Vec<_> = rust_files().filter(|file| !file.is_in("tests")).collect();
    let sizes: Vec<_> = files.iter().map(|file| (lines_without_tests(&file.lines), &file.path)).collect();
    let findings: Vec<_> = sizes
        .iter()
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .map(|(lines, path)| format!("{path}:{MAX_FILE_LINES} goes on to {lines} lines without tests"))
        .collect();
    assert_none("split these files along what they do", &findings);

    let long: Vec<_> = sizes.iter().filter(|(lines, _)| *lines > MOST_FILES_LINES).collect();
    assert!(
        long.len() * 100 <= sizes.len() * (100 - MOST_PERCENT),
        "{} of {} files are over {MOST_FILES_LINES} lines, more than {} %: split some of {long:#?}",
        long.len(),
        sizes.len(),
        100 - MOST_PERCENT,
    );
}

#[test]
fn functions_fit_on_a_screen() {
    let mut findings = Vec::new();
    for file in rust_files() {
        for (number, line) in file.numbered().filter(|(_, line)| begins_function(line)) {
            let length = end_of_item(&file.lines, number - 1) + 2 - number;
            if length > MAX_FUNCTION_LINES {
                findings.push(format!("{}:{number}: {length} lines: {}", file.path, line.trim()));
            }
        }
    }
    assert_none(&format!("split these functions: over {MAX_FUNCTION_LINES} lines"), &findings);
}

#[test]
fn only_kernels_is_unsafe() {
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| !file.is_in("kernels")) {
        for (number, line) in file.numbered().filter(|(_, line)| has_word(&code_of(line), "unsafe")) {
            findings.push(format!("{}:{number}: {}", file.path, line.trim()));
        }
    }
    assert_none("move this into `kernels`, the only crate that may be unsafe", &findings);
}

#[test]
fn only_kernels_knows_of_cuda() {
    let feature = concat!("feature = ", "\"cuda\"");
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| !file.is_in("kernels")) {
        for (number, line) in file.numbered().filter(|(_, line)| line.contains(feature)) {
            findings.push(format!("{}:{number}: {}", file.path, line.trim()));
        }
    }
    assert_none("choose the device by a backend value; the feature is visible in `kernels` alone", &findings);
}

#[test]
fn nothing_names_a_folder_of_the_machine_it_was_written_on() {
    // Written in two parts each, or this file would find itself.
    let folders =
        [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
    // The folder must begin the path: one of that name further down is another matter.
    let names = |line: &str, folder: &str| {
        line.match_indices(folder).any(|(at, _)| {
            !line[..at].ends_with(|c: char| {
                c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '}' | '*' | '~')
            })
        })
    };
    let mut findings = Vec::new();
    for file in text_files() {
        for (number, line) in file.numbered() {
            if folders.iter().any(|folder| names(line, folder)) {
                findings.push(format!(
                    "{}:{number}: {}",
                    file.path,
                    line.trim().chars().take(120).collect::<String>()
                ));
            }
        }
    }
    assert_none(
        "write these paths relative to the repository or as an example such as `path/to/model`",
        &findings,
    );
}

#[test]
fn every_member_takes_the_lints_of_the_workspace() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let members =
        manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("members on one line");
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.contains(&"kernels") && members.contains(&"tests"), "members were not read: {members:?}");
    let findings: Vec<_> = members
        .iter()
        .map(|member| format!("{member}/Cargo.toml"))
        .filter(|path| {
            let text = fs::read_to_string(root().join(path)).expect("a member has a manifest");
            !text.replace("\r\n", "\n").contains("\n[lints]\nworkspace = true\n")
        })
        .collect();
    assert_none("give these manifests `[lints]` with `workspace = true`", &findings);
}

#[test]
fn tests_have_sentences_for_names_and_none_is_switched_off() {
    let mut findings = Vec::new();
    for file in rust_files() {
        for (number, line) in file.numbered() {
            let code = code_of(line);
            if (begins_function(line) && code.contains("fn test_"))
                || code.trim_start().starts_with("#[ignore")
            {
                findings.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    assert_none(
        "say in the name what holds, without `test_`; mend or delete a test rather than ignore it",
        &findings,
    );
}

/// The reader of text above, on texts whose answer is known.
mod the_scan {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn sees_code_but_no_comments_and_no_texts() {
        assert!(has_word(&code_of("    danger { *pointer }"), "danger"));
        assert!(!has_word(&code_of("    // danger { *pointer }"), "danger"));
        assert!(!has_word(&code_of(r#"    let word = "\"danger";"#), "danger"));
        assert!(!has_word(&code_of("#![forbid(danger_code)]"), "danger"));
        assert!(has_word(&code_of(r#"let quote = '"'; danger { f() }"#), "danger"));
    }

    #[test]
    fn finds_where_functions_begin_and_end() {
        let text = lines(concat!(
            "impl A {\n    pub(crate) fn f<T>(\n        x: T,\n    ) -> T\n    where\n        T: B,\n    {\n        x\n    }\n\n",
            "    fn declared(&self);\n    fn short() {}\n}\n"
        ));
        let found: Vec<_> = (0..text.len()).filter(|&i| begins_function(&text[i])).collect();
        assert_eq!(found, [1, 10, 11]);
        assert_eq!(found.iter().map(|&i| end_of_item(&text, i)).collect::<Vec<_>>(), [8, 10, 11]);
        assert!(!begins_function("    let f: fn (usize) = g;"));
    }

    #[test]
    fn does_not_count_inline_test_modules() {
        let text = lines("fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        assert_eq!(lines_without_tests(&text), 3);
        let text = lines("#[cfg(test)]\nmod tests;\n\nfn c() {}\n");
        assert_eq!(lines_without_tests(&text), 2);
    }
}
