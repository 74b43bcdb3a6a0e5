//! Networks and forwards as they are typed.

use super::error::usage;
use crate::config::{Forward, NetArg, NetConfig, NetError, networks, validate_forwards};
use crate::id::Id;

/// What `piton run` is asked for. Nothing is the default: a guest reaches the world when it is told
/// to. A forward alone says that there is a network.
pub fn of_run(
    nets: &[NetArg],
    forwards: &[Forward],
    isolated: bool,
) -> anyhow::Result<(Vec<NetConfig>, Vec<Forward>)> {
    let mut named = nets.to_vec();
    if named.is_empty() && (isolated || !forwards.is_empty()) {
        named.push(NetArg::USER);
    }
    let none = named.iter().any(|net| net.backend.is_none());
    if none && (isolated || !forwards.is_empty()) {
        return Err(usage(NetError::NoneAndMore));
    }
    named.iter_mut().for_each(|net| net.isolated |= isolated);
    let nets = make(&named, &[])?;
    validate_forwards(&nets, forwards).map_err(usage)?;
    Ok((nets, forwards.to_vec()))
}

/// For each of `count` clones: these forwards, with ports that count up.
pub fn numbered(first: &[Forward], count: usize) -> Result<Vec<Vec<Forward>>, NetError> {
    let nth = |n: usize, forward: &Forward| {
        let port = u16::try_from(n).ok().and_then(|n| forward.port.checked_add(n));
        let port = port.ok_or(NetError::ForwardTooMany(*forward, count))?;
        Ok(Forward { port, ..*forward })
    };
    (0..count).map(|n| first.iter().map(|forward| nth(n, forward)).collect()).collect()
}

/// The networks that were named; what was before keeps its addresses unless others are named.
fn make(named: &[NetArg], before: &[NetConfig]) -> anyhow::Result<Vec<NetConfig>> {
    let ids = named.iter().map(|_| Id::random()).collect::<Result<Vec<Id>, _>>()?;
    let random: Vec<[u8; 3]> = ids.iter().map(|id| *id.as_bytes()).map(|[a, b, c, ..]| [a, b, c]).collect();
    networks(named, before, &random).map_err(usage)
}
