//! Measures piton against QEMU on this machine; scripts/bench runs it.

mod block;
mod boot;
mod checkpoint;
mod clones;
mod console;
mod host;
mod net;
mod piton;
mod qemu;
mod results;
mod setting;
mod stats;

use std::io;
use std::path::PathBuf;

use piton::Piton;
use results::Results;
use setting::Setting;

fn main() {
    if let Err(e) = run() {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["boot", rounds, piton, guest, work] => {
            boot::run(number(rounds)?, piton.as_ref(), guest.as_ref(), work.as_ref())
        }
        [
            what @ ("block" | "checkpoint" | "clones" | "net"),
            rounds,
            size @ ("full" | "quick"),
            piton,
            guest,
            work,
            results,
        ] => {
            let work = PathBuf::from(work);
            let setting = Setting {
                piton: Piton { program: piton.into(), home: work.join("home") },
                guest: guest.into(),
                work,
                results: results.into(),
                rounds: number(rounds)?,
                quick: size == "quick",
            };
            match what {
                "block" => block::run(&setting),
                "clones" => clones::run(&setting),
                "net" => net::run(&setting),
                _ => checkpoint::run(&setting),
            }
        }
        ["render", "block", results] => block::report(&Results::load(results.as_ref())?),
        ["render", "clones", results] => clones::report(&Results::load(results.as_ref())?),
        ["render", "net", results] => net::report(&Results::load(results.as_ref())?),
        ["render", "checkpoint", results, plot] => {
            checkpoint::report(&Results::load(results.as_ref())?, plot.as_ref())
        }
        _ => Err(io::Error::other(
            "usage: piton-bench boot ROUNDS PITON GUEST FOLDER
       piton-bench block|checkpoint|clones|net ROUNDS full|quick PITON GUEST FOLDER RESULTS
       piton-bench render block|clones|net RESULTS | render checkpoint RESULTS PLOT",
        )),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}
