//! `userswap race`: every order of the protocol's steps, tried.

use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use userswap_core::Way;
use userswap_model::config::Config;
use userswap_model::explore::{Explored, explore};
use userswap_model::suite::{Variant, configurations};
use userswap_model::svg;
use userswap_model::timeline::Timeline;
use userswap_model::violation::Violation;

use crate::args::{RaceArgs, VariantArg, WayArg, way_name};
use crate::exit::Status;
use crate::progress::Progress;
use crate::report::{Report, Table};

/// Good: `unpinned` loses in each way asked for, `direct` and `cached` in none.
pub(crate) fn run(args: &RaceArgs) -> anyhow::Result<Status> {
    let (losing, holding) = what_to_show(args)?;
    let report = Report::new(args.json);
    let mut good = true;
    for (index, &variant) in losing.iter().enumerate() {
        if index > 0 {
            report.line("")?;
        }
        good &= show_loss(variant, args, report)?;
    }
    for (index, &way) in holding.iter().enumerate() {
        if index > 0 || !losing.is_empty() {
            report.line("")?;
        }
        good &= show_holds(way, report)?;
    }
    Ok(if good { Status::Good } else { Status::Failed })
}

fn what_to_show(args: &RaceArgs) -> anyhow::Result<(Vec<Variant>, Vec<Way>)> {
    let way = args.way.map(Way::from);
    if args.variant.is_some() && matches!(way, Some(Way::Direct | Way::Cached)) {
        bail!(
            "--variant names a loss of the way unpinned; leave it out with --way direct or cached"
        );
    }
    let one = match args.variant {
        Some(VariantArg::V1) => Some(Variant::V1),
        Some(VariantArg::V2) => Some(Variant::V2),
        Some(VariantArg::V3) => Some(Variant::V3),
        Some(VariantArg::V4) => Some(Variant::V4),
        Some(VariantArg::All) | None => None,
    };
    if args.svg.is_some() && one.is_none() {
        bail!("--svg draws one schedule; name it with --variant V1, V2, V3 or V4");
    }
    let losing = match (way, one) {
        (Some(Way::Direct | Way::Cached), _) => Vec::new(),
        (_, Some(variant)) => vec![variant],
        (_, None) => Variant::ALL.to_vec(),
    };
    let holding = match (args.way, args.variant) {
        (Some(WayArg::Direct), _) => vec![Way::Direct],
        (Some(WayArg::Cached), _) => vec![Way::Cached],
        (Some(WayArg::Unpinned), _) | (None, Some(_)) => Vec::new(),
        (None, None) => vec![Way::Direct, Way::Cached],
    };
    Ok((losing, holding))
}

/// Shows a shortest schedule that loses data, if there is one; returns whether there is.
fn show_loss(variant: Variant, args: &RaceArgs, report: Report) -> anyhow::Result<bool> {
    let (config, explored) = variant.search(|config| config);
    let title = format!("{} {}", variant.name(), variant.title());
    let Some((schedule, violation)) = &explored.broken else {
        report.line(format!("{title}: no schedule loses anything"))?;
        report.record(&json!({"record": "loss", "variant": variant.name(), "found": false}))?;
        return Ok(false);
    };
    let timeline = Timeline::new(&config, schedule, Some(*violation));
    let about = format!(
        "way unpinned, a device that {}; E is the slot, (c,h) its state, v0 and v1 versions of the page",
        device_words(&config)
    );
    let steps = timeline.rows.len();
    report.line(format!(
        "{title}: {steps} steps, none shorter ({} states)\n{about}\n\n{timeline}",
        explored.states
    ))?;
    report.record(&loss_record(variant, &config, &timeline, *violation))?;
    if let Some(file) = &args.svg {
        let picture = svg::draw(&title, &about, &timeline);
        std::fs::write(file, picture)
            .with_context(|| format!("cannot write the picture to {}", file.display()))?;
    }
    Ok(true)
}

fn device_words(config: &Config) -> &'static str {
    use userswap_model::config::Device;
    match config.device {
        Device::Keeps => "keeps the data of freed slots",
        Device::Discards => "discards the data of freed slots",
        Device::Plain => "reads and writes plain memory, half a page at a time",
        Device::Stable => "needs pages to stand still",
    }
}

fn loss_record(
    variant: Variant,
    config: &Config,
    timeline: &Timeline,
    violation: Violation,
) -> Value {
    let cells = |cells: &[String]| -> Value {
        let pairs = timeline.columns.iter().zip(cells);
        pairs
            .map(|(name, cell)| (name.clone(), Value::from(cell.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let rows = timeline.rows.iter().enumerate().map(|(number, row)| {
        json!({
            "number": number + 1,
            "thread": row.thread,
            "step": format!("{:?}", row.step),
            "protocol_step": row.step.number(),
            "letter": (!row.letter.is_empty()).then_some(row.letter),
            "what": row.what,
            "after": cells(&row.cells),
        })
    });
    json!({
        "record": "loss",
        "variant": variant.name(),
        "title": variant.title(),
        "found": true,
        "way": "unpinned",
        "device": config.device.name(),
        "threads": timeline.threads,
        "letters": timeline.letters(),
        "first": cells(&timeline.first),
        "steps": rows.collect::<Vec<_>>(),
        "lost": violation.to_string(),
    })
}

/// Explores all configurations of a way; returns whether nothing broke.
fn show_holds(way: Way, report: Report) -> anyhow::Result<bool> {
    let name = way_name(way);
    let configurations = configurations(way);
    let progress = Progress::new(configurations.len() as u64);
    let mut table = Table::new(&[
        "configuration",
        "threads",
        "pages",
        "slots",
        "device",
        "failures",
        "states",
        "transitions",
        "result",
    ]);
    let start = Instant::now();
    let (mut states, mut transitions) = (0, 0);
    let mut broken = Vec::new();
    for config in &configurations {
        progress.begin(format!("{name}: {}", config.name));
        let explored = explore(config);
        progress.end();
        states += explored.states;
        transitions += explored.transitions;
        table.row(row(config, &explored));
        progress.suspend(|| report.record(&held_record(name, config, &explored)))?;
        if let Some((schedule, violation)) = explored.broken {
            let timeline = Timeline::new(config, &schedule, Some(violation));
            broken.push(format!(
                "{}: {}\n{timeline}",
                config.name,
                violation.check()
            ));
        }
    }
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    report.line(format!("way {name}: every order of steps\n\n{table}\n"))?;
    for broken in &broken {
        report.line(broken)?;
    }
    let verdict = if broken.is_empty() {
        "none loses data, leaks, deadlocks, spins or starves"
    } else {
        "NOT ALL GOOD"
    };
    report.line(format!(
        "way {name}: {} configurations, {states} states, {transitions} transitions in {seconds:.1} s: {verdict}",
        configurations.len()
    ))?;
    report.record(&json!({
        "record": "way",
        "way": name,
        "configurations": configurations.len(),
        "states": states,
        "transitions": transitions,
        "seconds": seconds,
        "good": broken.is_empty(),
    }))?;
    Ok(broken.is_empty())
}

fn row(config: &Config, explored: &Explored) -> Vec<String> {
    let result = match &explored.broken {
        None => "holds".to_owned(),
        Some((schedule, violation)) => format!("{} in {}", violation.check(), schedule.len()),
    };
    vec![
        config.name.to_owned(),
        config.programs(),
        config.pages.to_string(),
        config.slots.to_string(),
        config.device.name().to_owned(),
        config.failures.to_string(),
        explored.states.to_string(),
        explored.transitions.to_string(),
        result,
    ]
}

fn held_record(way: &str, config: &Config, explored: &Explored) -> Value {
    let threads: Vec<Vec<String>> = config
        .threads
        .iter()
        .map(|ops| ops.iter().map(ToString::to_string).collect())
        .collect();
    json!({
        "record": "configuration",
        "way": way,
        "name": config.name,
        "threads": threads,
        "pages": config.pages,
        "slots": config.slots,
        "device": config.device.name(),
        "failures": config.failures,
        "states": explored.states,
        "transitions": explored.transitions,
        "broken": explored.broken.as_ref().map(|(_, violation)| violation.check()),
    })
}
