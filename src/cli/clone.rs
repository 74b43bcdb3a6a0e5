//! `piton clone`.

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;

use super::args::CloneArgs;
use super::error::{refused, usage};
use super::manage::info;
use super::named::existing;
use super::offline::{Offline, find};
use super::out::{self, outln};
use super::{background, identity, net, output, work};
use crate::checkpoint::Manifest;
use crate::config::{Forward, validate_forwards};
use crate::control::{CloneBody, SetBody, State, VmInfo};
use crate::folder::VmName;
use crate::history::{Catalog, clone, networks, outdated, policy};
use crate::net::{check_free, check_taps};
use crate::vm::Clock;

pub fn run(args: &CloneArgs, json: bool) -> anyhow::Result<()> {
    let folder = existing(&args.checkpoint.vm)?;
    let definition = folder.load()?;
    let found = find(&folder, &args.checkpoint.checkpoint)?;
    let (manifest, why) = outdated::usable(&Catalog::new(&folder, &definition), &found);
    if let Some(why) = why {
        output::complain(&format!("checkpoint `{}` is cloned {why}", manifest.name));
    }
    let names = match args.count {
        None => vec![args.new.clone()],
        Some(count) => {
            let names = (1..=count).map(|n| format!("{}-{n}", args.new).parse());
            names.collect::<Result<Vec<VmName>, _>>().map_err(usage)?
        }
    };
    if args.run && manifest.memory.is_none() {
        return Err(refused(format!(
            "checkpoint `{}` has no memory to resume from: clone it without --run, then `piton start` the \
            clones",
            manifest.name
        )));
    }
    if args.new_identity {
        identity::check(&names)?;
    }
    let forwards = net::numbered(&args.forward_from, names.len()).map_err(usage)?;
    let all: Vec<Forward> = forwards.concat();
    let nets =
        networks::of_new(&args.networks.nets, &manifest.config.nets, manifest.memory.is_some(), names.len())?;
    validate_forwards(&nets, &all).map_err(|e| refused(e.to_string()))?;
    check_free(&all, Duration::ZERO)?;
    if manifest.memory.is_some() {
        // Each of them is started.
        names.iter().try_for_each(|name| networks::check_addresses(&folder.sibling(name), &nets))?;
        check_taps(&nets)?;
    }
    folder.sweep_home()?;
    let body = CloneBody { names, net: args.networks.nets.clone(), own_memory: args.own_memory };
    let path = format!("/vm/checkpoints/{}/clone", manifest.id);
    if work::ask::<VmInfo>(&folder.socket(), Method::POST, &path, &body)?.is_none() {
        let vm = Offline::open(&folder)?;
        work::here(|progress| clone::make(&folder, &vm.definition, manifest.id, &body, progress))??;
    }
    for (name, forward) in body.names.iter().zip(forwards) {
        if !forward.is_empty() {
            let folder = existing(name)?;
            let mut clone = Offline::open(&folder)?;
            let body = SetBody { forward, ..Default::default() };
            policy::set(&folder, &clone.lock, &mut clone.definition, &body)?;
        }
    }
    let state = match (manifest.memory.is_some(), args.run) {
        (false, _) => State::Stopped,
        (true, false) => State::Paused,
        (true, true) => State::Running,
    };
    if manifest.memory.is_some() {
        start(&body.names, &manifest, args)?;
    }
    let folders = body.names.iter().map(existing).collect::<Result<Vec<_>, _>>()?;
    let identities = args.new_identity.then(|| identity::renew(&folders, args.identity_timeout));
    let of = |n: usize| identities.as_ref().and_then(|each| each.get(n));
    if json {
        let each = folders.iter().enumerate().map(|(n, folder)| {
            let mut told = serde_json::json!(info(folder)?);
            if let Some(identity) = of(n) {
                told["new_identity"] = serde_json::json!(identity);
            }
            Ok(told)
        });
        out::json(&serde_json::json!(each.collect::<anyhow::Result<Vec<_>>>()?));
    } else {
        for (n, name) in body.names.iter().enumerate() {
            let next = match state {
                State::Running => "running".to_owned(),
                State::Paused => format!("paused; `piton resume {name}` resumes it"),
                State::Stopped => format!("stopped; `piton start {name}` boots it"),
                State::Unresponsive => format!("unresponsive: see `piton show {name}`"),
            };
            let (checkpoint, vm) = (&manifest.name, &args.checkpoint.vm);
            let identity = of(n).map_or("", |told| identity::words(told));
            outln!("the VM `{name}` is at checkpoint `{checkpoint}` of `{vm}`, {next}{identity}");
        }
    }
    identity::finish(folders.iter().zip(identities.iter().flatten()))
}

/// A process for each, several at a time. Those that cannot be started are there, and off.
fn start(names: &[VmName], manifest: &Manifest, args: &CloneArgs) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut words: Vec<OsString> =
                ["start", &name.to_string(), "--restore", &manifest.id.to_string()].map(Into::into).into();
            words.extend(args.run.then(|| "--resume".into()));
            words.extend((args.clock == Clock::Host).then(|| "--clock=host".into()));
            if let Err(e) = background::start(words)
                && let Ok(mut failed) = failed.lock()
            {
                failed.get_or_insert(e);
            }
        }
    };
    let at_once = std::thread::available_parallelism().map_or(2, |cores| cores.get() * 2).min(names.len());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
