//! Plots in SVG. One kind so far: seconds against tokens, both axes logarithmic, a line a series. The text in it is set by
//! whoever shows it; sizes here leave room for that.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Width and height in pixels.
const SIZE: (u32, u32) = (960, 600);
const FONT: &str = "sans-serif";
/// Of Okabe and Ito: told apart by the colour-blind too.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// A line of the plot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    /// What it is called in the legend.
    pub(crate) label: String,
    /// Tokens and seconds, all positive, by rising tokens.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Checks that a plot can be written to `path`, before the work that it is to show. What is there stays as it is.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if metadata.is_file() => OpenOptions::new().append(true).open(path).map(drop),
        // A device: opening a pipe might wait for ever.
        Ok(_) => Ok(()),
        Err(_) => {
            OpenOptions::new().append(true).create_new(true).open(path)?;
            fs::remove_file(path)
        }
    }
}

/// Draws seconds against tokens of context to `path`. Nothing is drawn without a point.
pub(crate) fn seconds_against_tokens(path: &Path, title: &str, series: &[Series]) -> anyhow::Result<()> {
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), title, series)?;
    // Not by the backend, which would not tell of a disk that is full.
    fs::write(path, svg).with_context(|| format!("cannot draw {}", path.display()))
}

fn draw(root: DrawingArea<SVGBackend<'_>, Shift>, title: &str, series: &[Series]) -> anyhow::Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    let Some((tokens, seconds)) = range(points().map(|p| p.0)).zip(range(points().map(|p| p.1))) else {
        return Err(anyhow!("there is nothing to plot"));
    };
    root.fill(&WHITE)?;
    let (x_range, y_range) = ((tokens.0 / 1.15, tokens.1 * 1.15), (seconds.0 / 1.4, seconds.1 * 1.4));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 22))
        .margin(16)
        .x_label_area_size(56)
        .y_label_area_size(88)
        .build_cartesian_2d(
            (x_range.0..x_range.1).log_scale().with_key_points(ticks(x_range, 2.0, &[1.0])),
            (y_range.0..y_range.1).log_scale().with_key_points(ticks(y_range, 10.0, &[1.0, 2.0, 5.0])),
        )?;
    chart
        .configure_mesh()
        .x_desc("context, tokens")
        .y_desc("time to encode, seconds")
        .x_label_formatter(&|tokens| tokens_label(*tokens))
        .y_label_formatter(&|seconds| seconds_label(*seconds))
        .axis_desc_style((FONT, 18))
        .label_style((FONT, 15))
        .bold_line_style(RGBColor(215, 215, 215))
        .draw()?;
    for (index, Series { label, points }) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 16))
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(190, 190, 190))
        .draw()?;
    Ok(root.present()?)
}

/// The least and the greatest of some positive numbers.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((least, greatest)) => Some((f64::min(least, value), f64::max(greatest, value))),
    })
}

/// The numbers `step × base^k` within `range`, for every step and whole k, rising.
fn ticks(range: (f64, f64), base: f64, steps: &[f64]) -> Vec<f64> {
    let powers = (range.0.log(base).floor() as i32..=range.1.log(base).ceil() as i32).map(|k| base.powi(k));
    let ticks = powers.flat_map(|power| steps.iter().map(move |step| step * power));
    ticks.filter(|tick| (range.0..=range.1).contains(tick)).collect()
}

/// 2048 as `2K`, as lengths of contexts are called.
fn tokens_label(tokens: f64) -> String {
    let kilo = tokens / 1024.0;
    if kilo >= 1.0 { format!("{}K", (kilo * 10.0).round() / 10.0) } else { format!("{}", tokens.round()) }
}

/// As short as it is exact to three digits: `0.05`, `20`.
fn seconds_label(seconds: f64) -> String {
    let decimals = (2 - seconds.log10().floor() as i32).clamp(0, 9);
    format!("{}", (seconds * 10_f64.powi(decimals)).round() / 10_f64.powi(decimals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(ticks((1500.0, 9000.0), 2.0, &[1.0]), [2048.0, 4096.0, 8192.0]);
        let labels: Vec<_> =
            ticks((0.04, 12.0), 10.0, &[1.0, 2.0, 5.0]).into_iter().map(seconds_label).collect();
        assert_eq!(labels, ["0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]);
        assert_eq!(tokens_label(2048.0), "2K");
    }

    #[test]
    fn whether_a_plot_can_be_written_is_known_before_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "earlier").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "earlier");
        assert!(check_writable(folder.path()).is_err());
        assert!(check_writable(&folder.path().join("none").join("plot.svg")).is_err());
    }

    #[test]
    fn a_plot_has_its_title_labels_and_series() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let series = [("star", 2.0), ("exact", 3.0)].map(|(label, factor)| Series {
            label: label.to_owned(),
            points: vec![(2048.0, factor), (8192.0, factor * 5.0), (32768.0, factor * 30.0)],
        });
        seconds_against_tokens(&path, "a title", &series).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for words in ["a title", "context, tokens", "time to encode, seconds", "star", "exact", "8K"] {
            assert!(text.contains(words), "{words}");
        }
        assert!(seconds_against_tokens(&path, "a title", &[]).is_err());
    }
}
