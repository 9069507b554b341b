//! The `tidbit` command. This file is the table of contents.
//!
//! Text goes to stdout, everything else to stderr. The exit code is 0 when all went well, 1 after an
//! error, 2 when the command line is at fault, and 130 after Ctrl-C.

#![forbid(unsafe_code)]

mod access;
mod bench;
mod cache;
mod chat;
mod cli;
mod commands;
mod failure;
mod generate;
mod interrupt;
mod memory;
mod output;
mod progress;
mod prompt;
mod prompt_loop;
mod sizes;
mod stop;
mod text_file;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match cli::Cli::parse().command {
        cli::Command::Convert(args) => commands::convert::run(&args),
        cli::Command::Init(args) => commands::init::run(&args),
        cli::Command::Run(args) => commands::run::run(&args),
        cli::Command::Embed(args) => commands::embed::run(&args),
        cli::Command::Inspect(args) => commands::inspect::run(&args),
        cli::Command::Eval(args) => commands::eval::run(&args),
        cli::Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
