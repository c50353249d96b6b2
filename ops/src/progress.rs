//! Progress bars and remarks on standard error, shown only where that is a terminal. Bars disappear when they end.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _, stderr};

use indicatif::{ProgressBar, ProgressStyle};
use stellate_actors::EncodeProgress;

/// A bar that counts bytes.
pub(crate) fn bytes(label: impl Into<Cow<'static, str>>) -> ProgressBar {
    bar(label, "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}")
}

/// A bar that counts anything else, named in `unit`.
pub(crate) fn items(label: impl Into<Cow<'static, str>>, unit: &str) -> ProgressBar {
    bar(label, &format!("{{msg}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{eta}}"))
}

/// What moves `bar` while a context is encoded.
pub(crate) fn follow(bar: &ProgressBar) -> impl FnMut(EncodeProgress) + Send + 'static {
    let bar = bar.clone();
    move |state| {
        bar.set_length(state.tokens_total as u64);
        bar.set_position(state.tokens_done as u64);
    }
}

// indicatif draws to standard error, and only if it is a terminal.
fn bar(label: impl Into<Cow<'static, str>>, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a template of this file");
    ProgressBar::new(0).with_style(style).with_message(label)
}

/// A remark for whoever watches; none where nobody does.
pub(crate) fn note(text: &str) {
    if stderr().is_terminal() {
        // Nobody is left to be told of a terminal that is gone.
        let _ = writeln!(stderr(), "{text}");
    }
}
