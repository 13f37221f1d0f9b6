//! The table of `docs/RULES.md`: which checker sees which broken rule.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::Write;

use userswap_core::rule::Rule;

const DOCUMENT: &str = include_str!("../../../../docs/RULES.md");

/// The rows of the table: rule, then column and cell. Only the rows between the table's marks.
pub(crate) fn rows() -> Vec<(String, BTreeMap<&'static str, &'static str>)> {
    let mut lines = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with("| rule |"))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
    let head: Vec<_> = lines.next().expect("the table's head");
    lines
        .skip(1)
        .map(|cells: Vec<_>| {
            let name = cells[0].trim_matches('`').to_owned();
            (name, head.iter().copied().zip(cells).collect())
        })
        .collect()
}

/// The rules whose cell in `column` says that they are caught.
pub(crate) fn column(column: &str) -> Vec<Rule> {
    let rows = rows();
    Rule::ALL
        .into_iter()
        .filter(|rule| {
            let row = rows.iter().find(|(name, _)| *name == format!("{rule:?}"));
            row.is_some_and(|(_, cells)| cells[column] == "x")
        })
        .collect()
}

/// Prints a line past the capture of the test's output.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").expect("stdout");
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .expect("a message")
        .to_owned()
}

/// Prints what a checker said of each rule, and compares it with the document.
pub(crate) fn report(checker: &str, found: &[(Rule, String)]) {
    say(&format!(
        "\nrule broken                | {checker}: caught by"
    ));
    for (rule, said) in found {
        let line = said.lines().next().unwrap_or_default();
        let line = line.replace("assertion `left == right` failed", "not equal");
        say(&format!("{:<26} | {line}", format!("{rule:?}")));
    }
    let mut rules: Vec<_> = found.iter().map(|(rule, _)| *rule).collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        column(checker),
        "docs/RULES.md, column {checker}, says otherwise"
    );
}
