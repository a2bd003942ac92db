//! Bar charts as SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
/// Around the bars.
const LEFT: f64 = 50.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 96.0;
/// Colours that are told apart without red and green (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#999999", "#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73",
];
/// Horizontal lines.
const LINES: u32 = 5;

/// Groups of bars: one group for each of `groups`, one bar for each row in it.
#[must_use]
pub(super) fn bars(
    title: &str,
    unit: &str,
    groups: &[&str],
    rows: &[(&str, Vec<Option<f64>>)],
) -> String {
    let values = rows.iter().flat_map(|(_, values)| values.iter().flatten());
    let top = nice(values.copied().fold(0.0, f64::max));
    let height = HEIGHT - TOP - BOTTOM;
    let floor = TOP + height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}</text>\n\
         <text x=\"{LEFT}\" y=\"31\" fill=\"#666\">{unit}</text>\n"
    );
    for line in 0..=LINES {
        let value = top * f64::from(line) / f64::from(LINES);
        let y = floor - height * value / top;
        let (end, at) = (WIDTH - 10.0, LEFT - 6.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            y + 4.0
        );
    }
    let group_width = (WIDTH - LEFT - 10.0) / groups.len().max(1) as f64;
    let bar_width = group_width * 0.8 / rows.len().max(1) as f64;
    for (group, name) in groups.iter().enumerate() {
        let left = LEFT + group_width * (group as f64 + 0.1);
        for (row, (_, values)) in rows.iter().enumerate() {
            let Some(value) = values.get(group).copied().flatten() else {
                continue;
            };
            let tall = height * value / top;
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"{}\"/>",
                left + bar_width * row as f64,
                floor - tall,
                bar_width * 0.9,
                COLOURS[row % COLOURS.len()],
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"8\" fill=\"#444\" \
                 text-anchor=\"middle\">{value:.2}</text>",
                left + bar_width * (row as f64 + 0.45),
                floor - tall - 3.0,
            );
        }
        let middle = LEFT + group_width * (group as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            floor + 16.0
        );
    }
    for (row, (name, _)) in rows.iter().enumerate() {
        let x = LEFT + (row % 3) as f64 * 225.0;
        let y = floor + 34.0 + (row / 3) as f64 * 18.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            COLOURS[row % COLOURS.len()],
            x + 15.0,
            y + 9.0,
            name.replace('`', "")
        );
    }
    svg + "</svg>\n"
}

/// The next round number.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let fits = steps.into_iter().find(|step| step * unit >= value);
    fits.unwrap_or(10.0) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_numbers() {
        for (value, top) in [(0.0, 1.0), (0.9, 1.0), (3.3, 4.0), (2.2, 2.5), (12.0, 15.0)] {
            assert!((nice(value) - top).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn what_was_not_measured_has_no_bar() {
        let rows = [
            ("a", vec![Some(1.0), None]),
            ("b", vec![Some(2.0), Some(0.5)]),
        ];
        let svg = bars("title", "unit", &["1", "2"], &rows);
        // The background, three bars, two in the legend.
        assert_eq!(svg.matches("<rect").count(), 6);
        assert!(svg.ends_with("</svg>\n"));
    }
}
