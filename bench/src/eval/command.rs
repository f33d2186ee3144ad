//! `sage-bench eval` and `sage-bench report`.
#![allow(clippy::disallowed_methods, reason = "pages are files")]

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{experiments, page, results::Results, run::Plan, seeds, simulated, sources, systems};

/// Cases per application, and windows of history, as long as nobody asks for others.
const CASES: usize = 120;
const WINDOWS: usize = 420;

/// The same for `--quick`.
const QUICK_CASES: usize = 24;
const QUICK_WINDOWS: usize = 140;

/// What `all --quick` asks of every experiment but accuracy: so many applications, the cheapest, and cases of each.
const NARROW_APPS: usize = 2;
const NARROW_CASES: usize = 12;

/// Name of the page within its folder.
const PAGE: &str = "report.html";

/// `sage-bench eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// accuracy, sampling, instrumentation, replicas, ablation, counterfactuals, markov, scale, retraining, actuation, tuning, or all
    name: String,
    /// Same seed, same cases. 102, 103, 104 are for reports; 11, 12, 13 for choosing constants
    #[arg(long, default_value_t = seeds::REPORTING[0])]
    seed: u64,
    /// Applications; the simulated ones by default
    #[arg(long, value_delimiter = ',')]
    apps: Vec<String>,
    /// Systems, where an experiment compares them; all by default
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Cases per application
    #[arg(long)]
    cases: Option<usize>,
    /// Windows of history
    #[arg(long)]
    windows: Option<usize>,
    /// A few minutes for everything
    #[arg(long)]
    quick: bool,
    /// Write every case that the first system gets wrong to standard error
    #[arg(long)]
    explain: bool,
    /// Folder of results.json and report.html
    #[arg(long)]
    out: PathBuf,
}

/// `sage-bench report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Folders with results.json; the page goes into the first
    #[arg(required = true)]
    folders: Vec<PathBuf>,
}

/// Runs experiments and stores what they found; what was stored before is kept where it is of other experiments.
pub fn eval(args: &EvalArgs) -> Result<ExitCode> {
    let plan = plan(args)?;
    let names: Vec<&str> = if args.name == "all" { experiments::ALL.to_vec() } else { vec![&args.name] };
    let mut results = Results::new(plan.seed);
    for name in names {
        let begun = Instant::now();
        println!("\n{name}, seed {} ({})", plan.seed, seeds::purpose(plan.seed));
        let is_narrow = plan.is_quick && args.name == "all" && name != "accuracy";
        let asked = if is_narrow { narrowed(&plan) } else { plan.clone() };
        results.rows.extend(experiments::run(name, &asked)?);
        // After each, so that an interrupted run leaves what it has.
        results.write(&args.out)?;
        println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    write_page(&args.out, std::slice::from_ref(&results))?;
    Ok(ExitCode::SUCCESS)
}

/// A smaller plan: enough to see that an experiment works, not what it says.
fn narrowed(plan: &Plan) -> Plan {
    let apps = plan.apps.iter().take(NARROW_APPS).cloned().collect();
    Plan { apps, cases: plan.cases.min(NARROW_CASES), ..plan.clone() }
}

/// Makes the page again from stored results.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let runs = args.folders.iter().map(|folder| Results::read(folder)).collect::<Result<Vec<_>>>()?;
    let Some(first) = args.folders.first() else { bail!("no folder was named") };
    write_page(first, &runs)?;
    println!("{}", first.join(PAGE).display());
    Ok(ExitCode::SUCCESS)
}

fn write_page(folder: &std::path::Path, runs: &[Results]) -> Result<()> {
    let path = folder.join(PAGE);
    fs::write(&path, page::render(runs)).with_context(|| format!("cannot write {}", path.display()))
}

fn plan(args: &EvalArgs) -> Result<Plan> {
    let known = sources::apps();
    if let Some(unknown) = args.apps.iter().find(|app| !known.contains(&app.as_str())) {
        bail!("no application is called {unknown}; there are {}", known.join(", "));
    }
    let or_all = |asked: &[String], all: &[&str]| {
        if asked.is_empty() { all.iter().map(|name| (*name).to_owned()).collect() } else { asked.to_vec() }
    };
    Ok(Plan {
        seed: args.seed,
        apps: or_all(&args.apps, &simulated::APPS),
        systems: or_all(&args.systems, &systems::ALL),
        cases: args.cases.unwrap_or(if args.quick { QUICK_CASES } else { CASES }),
        windows: args.windows.unwrap_or(if args.quick { QUICK_WINDOWS } else { WINDOWS }),
        is_quick: args.quick,
        explains: args.explain,
    })
}
