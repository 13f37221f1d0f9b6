//! What a command prints: lines for people, or one JSON object a line and nothing else.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// Standard output in one of its two forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people; silent with `--json`.
    pub(crate) fn line(&self, text: impl fmt::Display) -> anyhow::Result<()> {
        if !self.json {
            let mut out = io::stdout().lock();
            writeln!(out, "{text}")?;
            out.flush()?;
        }
        Ok(())
    }

    /// A record for programs; silent without `--json`.
    pub(crate) fn record(&self, record: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string(record)?)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// A remark beside the result, on standard error.
pub(crate) fn note(text: impl fmt::Display) {
    eprintln!("userswap: {text}");
}

/// Columns for people: the first flush left, the others flush right.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            let end = if index + 1 == self.rows.len() {
                ""
            } else {
                "\n"
            };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["way", "us"]);
        table.row(vec!["direct".into(), "0.52".into()]);
        table.row(vec!["kernel".into(), "10.52".into()]);
        assert_eq!(
            table.to_string(),
            "way        us\ndirect   0.52\nkernel  10.52"
        );
    }
}
