//! Tables of text, in the form that Markdown reads too. What stands in them is the caller's.

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table, TableStyle};

/// A table of `rows` under `header`: the first `left` columns are words, the others figures.
pub(crate) fn markdown(header: &[&str], rows: Vec<Vec<String>>, left: usize) -> String {
    table(ASCII_MARKDOWN, header, rows, left)
}

/// The same without lines, as lists of the command line are.
pub(crate) fn plain(header: &[&str], rows: Vec<Vec<String>>, left: usize) -> String {
    let text = table(NOTHING, header, rows, left);
    let lines: Vec<_> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    lines.join("\n")
}

fn table(style: TableStyle, header: &[&str], rows: Vec<Vec<String>>, left: usize) -> String {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_figures_right() {
        let text = markdown(&["attention", "tokens"], vec![vec!["star".to_owned(), "8".to_owned()]], 1);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "| attention | tokens |");
        assert_eq!(lines[2], "| star      |      8 |");
    }
}
