//! Charts of a report, as SVG that needs nothing else. Pure.

use std::fmt::{self, Display, Write};

use super::table::median;

/// Colours of those who take part, in their order; told apart also by who does not see all colours (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999",
];

/// Legible on dark and on light ground.
const INK: &str = "#808080";

const WIDTH: f64 = 760.0;
const NAMES: f64 = 130.0;
const TEXT: f64 = 170.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 26.0;

/// The colour of the one of this number.
pub fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Text as HTML and SVG have it.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// One's measure: the median, and between what the samples were.
pub struct Bar {
    /// Whose, and the number of its colour.
    pub name: String,
    /// See [`colour`].
    pub colour: usize,
    /// The least, the median, and the most.
    pub values: [f64; 3],
    /// The median in words.
    pub text: String,
}

impl Bar {
    /// What all samples were; none where there are none.
    pub fn of(
        name: &str,
        colour: usize,
        samples: impl Iterator<Item = f64> + Clone,
        text: impl Fn(f64) -> String,
    ) -> Option<Self> {
        let median = median(samples.clone())?;
        let low = samples.clone().fold(f64::INFINITY, f64::min);
        let high = samples.fold(0.0, f64::max);
        Some(Self {
            name: name.to_owned(),
            colour,
            values: [low, median, high],
            text: text(median),
        })
    }
}

/// Bars that have a scale of their own.
pub struct Group {
    /// What they have in common.
    pub title: String,
    /// In order.
    pub bars: Vec<Bar>,
}

/// Groups of bars, one below the other; a thin line says between what the samples were.
pub fn bars(groups: &[Group]) -> String {
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = HEAD * groups.len() as f64 + ROW * rows as f64 + 6.0;
    let mut svg = open(height);
    let mut y = 0.0;
    for group in groups {
        y += HEAD;
        text(&mut svg, 0.0, y - 8.0, "font-weight=\"bold\"", &group.title);
        let all = group.bars.iter().flat_map(|bar| bar.values);
        let most = all.fold(f64::MIN_POSITIVE, f64::max);
        for bar in &group.bars {
            row(&mut svg, y, bar, (WIDTH - NAMES - TEXT) / most);
            y += ROW;
        }
    }
    svg + "</svg>\n"
}

fn row(svg: &mut String, y: f64, bar: &Bar, scale: f64) {
    let [low, median, high] = bar.values.map(|value| value * scale);
    let (fill, middle) = (colour(bar.colour), y + ROW / 2.0);
    text(
        svg,
        NAMES - 8.0,
        middle + 4.0,
        "text-anchor=\"end\"",
        &bar.name,
    );
    let _ = writeln!(
        svg,
        "<rect x=\"{NAMES}\" y=\"{:.1}\" width=\"{median:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{fill}\"/>\
         <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"{INK}\" stroke-width=\"2\"/>",
        y + 2.0,
        ROW - 4.0,
        NAMES + low,
        NAMES + high,
    );
    text(
        svg,
        NAMES + high.max(median) + 8.0,
        middle + 4.0,
        "",
        &bar.text,
    );
}

/// One's curve.
pub struct Curve {
    /// Whose.
    pub name: String,
    /// See [`colour`].
    pub colour: usize,
    /// Points: parts of all, below 1, and values above 0, both growing.
    pub points: Vec<(f64, f64)>,
}

/// Curves over parts of all, each nine of which has as much room; values are on a scale of powers.
pub fn curves(curves: &[Curve], unit: &str) -> String {
    const HEIGHT: f64 = 260.0;
    const BELOW: f64 = 34.0;
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let nines = |part: f64| -(1.0 - part).log10();
    let most_nines = points().map(|(part, _)| nines(*part)).fold(1.0, f64::max);
    let values = || points().map(|(_, value)| value.log10());
    let low = values().fold(f64::INFINITY, f64::min).floor();
    let high = values().fold(low + 1.0, f64::max).ceil();
    let x = |part: f64| NAMES + nines(part) / most_nines * (WIDTH - NAMES - TEXT);
    let y = |value: f64| HEIGHT - (value.log10() - low) / (high - low) * (HEIGHT - 12.0);
    let mut svg = open(HEIGHT + BELOW);
    for power in low as i32..=high as i32 {
        let value = 10f64.powi(power);
        line(&mut svg, NAMES, y(value), WIDTH - TEXT, y(value));
        let label = format!("{value} {unit}");
        text(
            &mut svg,
            NAMES - 8.0,
            y(value) + 4.0,
            "text-anchor=\"end\"",
            &label,
        );
    }
    for part in [0.5, 0.9, 0.99, 0.999, 0.9999] {
        if nines(part) <= most_nines + 0.01 {
            line(&mut svg, x(part), 12.0, x(part), HEIGHT);
            let label = format!("{} %", part * 100.0);
            text(
                &mut svg,
                x(part),
                HEIGHT + 18.0,
                "text-anchor=\"middle\"",
                &label,
            );
        }
    }
    let ends = curves.iter().filter_map(|curve| curve.points.last());
    let names = apart(ends.map(|(_, value)| y(*value)).collect(), HEIGHT);
    let mut names = names.into_iter();
    for curve in curves {
        let points = curve.points.iter();
        let points = points.map(|(part, value)| format!("{:.1},{:.1}", x(*part), y(*value)));
        let points: Vec<String> = points.collect();
        let stroke = colour(curve.colour);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        if let Some((part, value)) = curve.points.last() {
            let height = names.next().unwrap_or(y(*value));
            let fill = format!("style=\"fill:{stroke}\"");
            text(&mut svg, x(*part) + 8.0, height + 4.0, &fill, &curve.name);
        }
    }
    svg + "</svg>\n"
}

/// Where lines of text go that want to be at these heights, none of them upon another, none below `bottom`.
fn apart(mut heights: Vec<f64>, bottom: f64) -> Vec<f64> {
    const LINE: f64 = 14.0;
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|one, other| heights[*one].total_cmp(&heights[*other]));
    let mut least = f64::NEG_INFINITY;
    for at in &order {
        heights[*at] = heights[*at].max(least);
        least = heights[*at] + LINE;
    }
    let mut most = bottom;
    for at in order.iter().rev() {
        heights[*at] = heights[*at].min(most);
        most = heights[*at] - LINE;
    }
    heights
}

fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n"
    )
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let text = Escaped(text);
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"
    );
}

fn line(svg: &mut String, x: f64, y: f64, to_x: f64, to_y: f64) {
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}\" stroke=\"{INK}\" stroke-opacity=\"0.3\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_has_all_the_room_and_names_are_text() {
        let bar = |name: &str, median: f64| Bar {
            name: name.to_owned(),
            colour: 0,
            values: [median, median, median],
            text: format!("{median}"),
        };
        let svg = bars(&[Group {
            title: "a < b".to_owned(),
            bars: vec![bar("one & only", 2.0), bar("half", 1.0)],
        }]);
        assert!(svg.contains("a &lt; b") && svg.contains("one &amp; only"));
        let whole = WIDTH - NAMES - TEXT;
        assert!(svg.contains(&format!("width=\"{whole:.1}\"")), "{svg}");
        assert!(
            svg.contains(&format!("width=\"{:.1}\"", whole / 2.0)),
            "{svg}"
        );
    }

    #[test]
    fn no_name_is_written_upon_another() {
        assert_eq!(apart(vec![50.0, 10.0], 100.0), [50.0, 10.0]);
        assert_eq!(apart(vec![52.0, 50.0, 51.0], 100.0), [78.0, 50.0, 64.0]);
        assert_eq!(apart(vec![95.0, 99.0], 100.0), [86.0, 100.0]);
        assert_eq!(apart(vec![], 100.0), [0.0; 0]);
    }

    #[test]
    fn a_curve_rises_from_left_to_right() {
        let svg = curves(
            &[Curve {
                name: "one".to_owned(),
                colour: 0,
                points: vec![(0.5, 10.0), (0.99, 100.0)],
            }],
            "us",
        );
        let points = svg
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let points: Vec<Vec<f64>> = points
            .split(' ')
            .map(|point| point.split(',').map(|it| it.parse().unwrap()).collect())
            .collect();
        assert!(
            points[0][0] < points[1][0] && points[0][1] > points[1][1],
            "{svg}"
        );
    }
}
