//! The files of a context, and standard input, as one text. Nothing is tokenised here.

use std::io::{Read as _, stdin};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::app::App;
use crate::exit::UsageError;

/// Whether the path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads all files in their order. One is taken as it is; several stand each below a heading with its name, or, if
/// `raw`, one after the other on new lines.
///
/// # Errors
/// `UsageError` for a file that cannot be read or is no text; `Interrupted` while standard input is read.
pub(crate) async fn read(app: &App, paths: &[PathBuf], raw: bool) -> anyhow::Result<String> {
    let paths = paths.to_vec();
    let reading = tokio::task::spawn_blocking(move || {
        paths
            .iter()
            .map(|path| Ok((name(path), text(path, bytes(path)?)?)))
            .collect::<Result<Vec<_>, UsageError>>()
    });
    let files = app.interrupt.or(reading).await?.context("the thread that reads the files stopped")??;
    Ok(join(files, raw))
}

fn bytes(path: &Path) -> Result<Vec<u8>, UsageError> {
    let read = if is_stdin(path) {
        let mut bytes = Vec::new();
        stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| {
        UsageError(format!(
            "cannot read the context {}: {error}; name a text file, or - for standard input",
            name(path)
        ))
    })
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, UsageError> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let (at, name) = (error.utf8_error().valid_up_to(), name(path));
        UsageError(format!(
            "{name} is not UTF-8 text (byte {at}); convert it first, as with `iconv -f LATIN1 -t UTF-8`, or extract \
             its text if it is no text file"
        ))
    })?;
    // A byte order mark is no part of the text.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn join(mut files: Vec<(String, String)>, raw: bool) -> String {
    if files.len() < 2 {
        return files.pop().map(|(_, text)| text).unwrap_or_default();
    }
    let mut joined = String::new();
    for (name, text) in files {
        if !joined.is_empty() && !joined.ends_with('\n') {
            joined.push('\n');
        }
        if !raw {
            let gap = if joined.is_empty() { "" } else { "\n" };
            joined.push_str(&format!("{gap}# {name}\n\n"));
        }
        joined.push_str(&text);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn one_file_is_taken_as_it_is() {
        assert_eq!(join(files(&[("a.txt", " one\n\n")]), false), " one\n\n");
        assert_eq!(join(files(&[]), false), "");
    }

    #[test]
    fn several_files_stand_below_their_names() {
        let joined = join(files(&[("a.txt", "one"), ("b.txt", "two\n")]), false);
        assert_eq!(joined, "# a.txt\n\none\n\n# b.txt\n\ntwo\n");
    }

    #[test]
    fn several_raw_files_stand_on_new_lines() {
        assert_eq!(join(files(&[("a", "one"), ("b", "two\n"), ("c", "three")]), true), "one\ntwo\nthree");
    }

    #[test]
    fn a_byte_order_mark_is_dropped_and_bytes_that_are_no_text_are_refused() {
        let path = Path::new("a.txt");
        assert_eq!(text(path, b"\xef\xbb\xbfone".to_vec()).unwrap(), "one");
        let message = text(path, b"on\xff".to_vec()).unwrap_err().to_string();
        assert!(message.contains("a.txt") && message.contains("byte 2"), "{message}");
    }
}
