//! A schedule as a picture: a self-contained SVG, readable on light and on dark ground.

use std::fmt::Write;

use crate::timeline::Timeline;

const MARGIN: usize = 24;
const HEAD: usize = 92;
const ROW: usize = 22;
const NUMBER: usize = 30;
/// A lane's least width.
const LANE: usize = 212;
const LETTER: usize = 24;
/// A character of the cells' font, about.
const CHARACTER: usize = 8;

const STYLE: &str = "\
.ground{fill:#ffffff}.text{fill:#1f2328}.dim{fill:#6e7781}.lane{fill:#f6f8fa}.line{stroke:#d0d7de}\
.t0{fill:#ddf4ff;stroke:#54aeff}.t1{fill:#dafbe1;stroke:#4ac26b}.t2{fill:#fff8c5;stroke:#d4a72c}\
.changed{fill:#1f2328;font-weight:600}.badge{fill:#1f2328}.badgetext{fill:#ffffff;font-weight:600}\
.lost{fill:#ffebe9;stroke:#cf222e;stroke-width:2}.losttext{fill:#cf222e;font-weight:600}\
text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif}.title{font-size:16px;font-weight:600}\
.cell{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}\
@media(prefers-color-scheme:dark){.ground{fill:#0d1117}.text{fill:#e6edf3}.dim{fill:#8d96a0}\
.lane{fill:#161b22}.line{stroke:#30363d}.t0{fill:#0c2d6b;stroke:#388bfd}.t1{fill:#0f3d1f;stroke:#3fb950}\
.t2{fill:#3d2e00;stroke:#d29922}.changed{fill:#ffffff}.badge{fill:#e6edf3}.badgetext{fill:#0d1117}\
.lost{fill:#490202;stroke:#f85149}.losttext{fill:#ff7b72}}";

/// Draws `timeline` under `title`.
#[must_use]
pub fn draw(title: &str, subtitle: &str, timeline: &Timeline) -> String {
    let lanes = timeline.threads.len();
    let names = timeline.threads.iter().map(|thread| 7 * thread.len() + 24);
    let lane_width = names.max().unwrap_or(0).max(LANE);
    let column_width = |column: usize| {
        let cells = timeline.rows.iter().map(|row| row.cells[column].len());
        let longest = cells.max().unwrap_or(0).max(timeline.first[column].len());
        (longest.max(timeline.columns[column].len()) + 2) * CHARACTER
    };
    let widths: Vec<usize> = (0..timeline.columns.len()).map(column_width).collect();
    let strip = MARGIN + NUMBER + lanes * lane_width + 12;
    let width = strip + widths.iter().sum::<usize>() + MARGIN;
    let foot = HEAD + (timeline.rows.len() + 1) * ROW;
    let height = foot + 56;
    let mut svg = Svg(String::new());
    svg.put(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    ));
    svg.put(&format!("<style>{STYLE}</style>"));
    svg.put(&format!(
        "<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>"
    ));
    svg.text("text title", MARGIN, 32, title);
    svg.text("dim", MARGIN, 52, subtitle);
    for (lane, thread) in timeline.threads.iter().enumerate() {
        let x = MARGIN + NUMBER + lane * lane_width;
        svg.put(&format!(
            "<rect class=\"lane\" x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"6\"/>",
            HEAD - 24,
            lane_width - 8,
            foot - HEAD + 28
        ));
        svg.text("text", x + 8, HEAD - 7, thread);
    }
    let mut xs = Vec::new();
    let mut x = strip;
    for (name, width) in timeline.columns.iter().zip(&widths) {
        svg.text("dim", x, HEAD - 7, name);
        xs.push(x);
        x += width;
    }
    let mut before = &timeline.first;
    for (x, cell) in xs.iter().zip(before) {
        svg.text("dim cell", *x, HEAD + 15, cell);
    }
    let last = timeline.rows.len();
    for (number, row) in timeline.rows.iter().enumerate() {
        let top = HEAD + (number + 1) * ROW;
        let x = MARGIN + NUMBER + row.thread * lane_width + 4;
        let lost = number + 1 == last && timeline.end.is_some();
        let class = if lost {
            "lost".to_owned()
        } else {
            format!("t{}", row.thread)
        };
        svg.text("dim", MARGIN, top + 15, &(number + 1).to_string());
        svg.put(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\"/>",
            top + 1,
            lane_width - 16,
            ROW - 3
        ));
        if !row.letter.is_empty() {
            svg.put(&format!(
                "<rect class=\"badge\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"15\" rx=\"7\"/>",
                x + 4,
                top + 3,
                LETTER - 2
            ));
            svg.put(&format!(
                "<text class=\"badgetext\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                x + 3 + LETTER / 2,
                top + 15,
                row.letter
            ));
        }
        let class = if lost { "losttext" } else { "text" };
        svg.text(class, x + LETTER + 8, top + 15, &row.what);
        for ((x, cell), was) in xs.iter().zip(&row.cells).zip(before) {
            let class = match (lost, cell == was) {
                (_, true) => "dim cell",
                (true, false) => "losttext cell",
                (false, false) => "changed cell",
            };
            svg.text(class, *x, top + 15, cell);
        }
        before = &row.cells;
    }
    svg.put(&format!(
        "<line class=\"line\" x1=\"{MARGIN}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\"/>",
        foot + 12,
        width - MARGIN
    ));
    if let Some(end) = &timeline.end {
        svg.text("losttext", MARGIN, foot + 36, end);
    }
    svg.put("</svg>");
    svg.0
}

struct Svg(String);

impl Svg {
    fn put(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn text(&mut self, class: &str, x: usize, y: usize, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.0,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>",
            escape(text)
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
