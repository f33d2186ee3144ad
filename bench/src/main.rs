//! `sage-bench`: applications from topology files, load for them, and the demo.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sage_bench::{
    app::process::TierArgs,
    demo::{self, DemoArgs},
    eval::command::{self as evaluation, EvalArgs, ReportArgs},
    hog::{self, Hog},
    simulate::command::{self as simulation, SimulateArgs},
    training::{self, TrainingArgs},
};

use crate::commands::{AppArgs, LoadArgs};

/// Applications from topology files, load for them, and the demo
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an application: one process per tier, until SIGTERM
    App(AppArgs),
    /// Run one tier (started by `app`)
    #[command(hide = true)]
    Tier(TierArgs),
    /// Send requests at a rate that does not wait for answers
    Load(LoadArgs),
    /// Learn a real application, break it, watch Sage name the culprit and repair the node
    Demo(DemoArgs),
    /// Run an application as queues in virtual time: its windows, or a recording of it
    Simulate(SimulateArgs),
    /// Measure Sage and everything it is compared with
    Eval(EvalArgs),
    /// Make the page of an evaluation again from its results
    Report(ReportArgs),
    /// Time the training of one service's nets
    Training(TrainingArgs),
    /// Take up a resource (started by `demo`)
    #[command(hide = true, subcommand)]
    Hog(Hog),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::App(args) => commands::app(args),
        Command::Tier(args) => sage_bench::app::process::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Load(args) => commands::load(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Simulate(args) => simulation::run(&args),
        Command::Eval(args) => evaluation::eval(&args),
        Command::Report(args) => evaluation::report(&args),
        Command::Training(args) => training::run(&args),
        Command::Hog(hog) => hog::run(hog).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("sage-bench: {error:#}");
        ExitCode::FAILURE
    })
}
