#![expect(clippy::disallowed_methods, reason = "a driver: it takes the time")]
//! `sage-bench training`: how long the net of one service learns, beside the matrix products that it cannot do without.
//! `bench/pytorch/compare.py` runs it in turn with PyTorch on the same nets.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use sage_causal::testing::TrainingProbe;
use serde::Serialize;

/// `sage-bench training`.
#[derive(Args, Debug)]
pub struct TrainingArgs {
    /// Windows to learn from
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    rows: u32,
    /// Columns of what is known: metrics and load
    #[arg(long, default_value_t = 34, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    inputs: u16,
    /// Columns of what is predicted: percentiles of self times and gaps
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    outputs: u16,
    /// Passes over the rows
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    epochs: u16,
    /// A line of JSON instead of words
    #[arg(long)]
    json: bool,
}

/// What was measured, seconds of one core.
#[derive(Debug, Serialize)]
struct Measured {
    train_s: f64,
    matrix_products_s: f64,
}

/// Trains one net on one thread and prints how long it took.
///
/// # Errors
///
/// The net could not be trained.
pub fn run(args: &TrainingArgs) -> Result<ExitCode> {
    let probe = TrainingProbe::new(args.rows as usize, args.inputs.into(), args.outputs.into());
    let began = Instant::now();
    let net = probe.train(args.epochs.into()).context("the net could not be trained")?;
    let train_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for _ in 0..args.epochs {
        std::hint::black_box(probe.floor(&net));
    }
    let measured = Measured { train_s, matrix_products_s: began.elapsed().as_secs_f64() };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
    } else {
        println!(
            "{} rows of {} inputs and {} outputs, {} epochs, one thread: {:.2} s; its matrix products alone: {:.2} s ({:.1} times)",
            args.rows,
            args.inputs,
            args.outputs,
            args.epochs,
            measured.train_s,
            measured.matrix_products_s,
            measured.train_s / measured.matrix_products_s
        );
    }
    Ok(ExitCode::SUCCESS)
}
