//! What client and server agree on before the first request.

use std::io::{Read, Write};

use super::export::Export;
use super::wire::*;

/// Longest thing that an option may carry: a name of the most that the protocol allows, and a few
/// queries beside it.
const OPTION_MAX: u32 = 16 << 10;
/// Options of one client; one that never comes to an end is not waited for.
const OPTIONS_MAX: usize = 1024;

/// Bytes of a request at most, as everyone expects of a server that does not say.
pub const REQUEST_MAX: u32 = 32 << 20;
/// The block size that is best to ask for.
const PREFERRED: u32 = 64 << 10;

/// The id that we give `base:allocation`.
pub const CONTEXT: u32 = 1;

/// What was agreed on.
pub struct Agreed {
    pub export: Export,
    pub structured: bool,
    /// The client may ask for block status.
    pub status: bool,
}

#[derive(Default)]
struct Wishes {
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    status_of: Option<String>,
}

/// None: the client wants no more.
pub fn negotiate(stream: &mut (impl Read + Write), exports: &[Export]) -> Result<Option<Agreed>, Broken> {
    let flags = FIXED_NEWSTYLE | NO_ZEROES;
    send(stream, &[&MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()])?;
    let theirs = read_u32(stream)?;
    if theirs & !u32::from(flags) != 0 || theirs & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(Broken::Protocol("flags"));
    }
    let pads = theirs & u32::from(NO_ZEROES) == 0;
    let mut wishes = Wishes::default();
    for _ in 0..OPTIONS_MAX {
        if read_u64(stream)? != OPTION_MAGIC {
            return Err(Broken::Protocol("no magic before an option"));
        }
        let (option, len) = (read_u32(stream)?, read_u32(stream)?);
        if len > OPTION_MAX {
            return Err(Broken::Protocol("an option that is too long"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                // There is no way to say no but to go.
                let name = std::str::from_utf8(&data).ok().and_then(|name| find(exports, name));
                let export = name.ok_or(Broken::Protocol("the name of an export that is not there"))?;
                let agreed = wishes.agree(export);
                let padding = if pads { &[0; 124][..] } else { &[] };
                let size = export.disk.len().to_be_bytes();
                send(stream, &[&size, &agreed.flags().to_be_bytes(), padding])?;
                return Ok(Some(agreed));
            }
            OPT_ABORT => {
                reply(stream, option, REP_ACK, &[])?;
                return Ok(None);
            }
            OPT_LIST => list(stream, &data, exports)?,
            OPT_INFO | OPT_GO => {
                if let Some(export) = info(stream, option, &data, exports, &wishes)?
                    && option == OPT_GO
                {
                    return Ok(Some(wishes.agree(export)));
                }
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                wishes.structured = true;
                reply(stream, option, REP_ACK, &[])?;
            }
            OPT_STRUCTURED_REPLY => refuse(stream, option, REP_ERR_INVALID, "this option takes no data")?,
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                contexts(stream, option, &data, exports, &mut wishes)?;
            }
            _ => refuse(stream, option, REP_ERR_UNSUPPORTED, "unknown option")?,
        }
    }
    Err(Broken::Protocol("options without end"))
}

impl Wishes {
    fn agree(&self, export: &Export) -> Agreed {
        let status = self.status_of.as_ref() == Some(&export.name);
        Agreed { export: export.clone(), structured: self.structured, status }
    }
}

impl Agreed {
    fn flags(&self) -> u16 {
        HAS_FLAGS | READ_ONLY | CAN_MULTI_CONN | if self.structured { SEND_DF } else { 0 }
    }
}

/// The empty name is the first disk's.
fn find<'a>(exports: &'a [Export], name: &str) -> Option<&'a Export> {
    if name.is_empty() { exports.first() } else { exports.iter().find(|export| export.name == name) }
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[&[u8]]) -> Result<(), Broken> {
    let data = data.concat();
    let len = data.len() as u32;
    let head = [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
    Ok(send(stream, &[&head, &len.to_be_bytes(), &data])?)
}

fn refuse(stream: &mut impl Write, option: u32, error: u32, why: &str) -> Result<(), Broken> {
    reply(stream, option, error, &[why.as_bytes()])
}

fn list(stream: &mut impl Write, data: &[u8], exports: &[Export]) -> Result<(), Broken> {
    if !data.is_empty() {
        return refuse(stream, OPT_LIST, REP_ERR_INVALID, "this option takes no data");
    }
    for export in exports {
        let len = export.name.len() as u32;
        reply(stream, OPT_LIST, REP_SERVER, &[&len.to_be_bytes(), export.name.as_bytes()])?;
    }
    reply(stream, OPT_LIST, REP_ACK, &[])
}

/// Tells of an export; returns it if that is what the client gets.
fn info<'a>(
    stream: &mut impl Write,
    option: u32,
    data: &[u8],
    exports: &'a [Export],
    wishes: &Wishes,
) -> Result<Option<&'a Export>, Broken> {
    let parsed = (|| {
        let mut fields = Fields(data);
        let name = fields.text()?;
        let count = fields.u16()?;
        let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
        fields.0.is_empty().then_some((name, wanted))
    })();
    let Some((name, wanted)) = parsed else {
        refuse(stream, option, REP_ERR_INVALID, "malformed option")?;
        return Ok(None);
    };
    let Some(export) = find(exports, name) else {
        refuse(stream, option, REP_ERR_UNKNOWN, "there is no export with this name")?;
        return Ok(None);
    };
    let flags = wishes.agree(export).flags();
    let kind = INFO_EXPORT.to_be_bytes();
    reply(stream, option, REP_INFO, &[&kind, &export.disk.len().to_be_bytes(), &flags.to_be_bytes()])?;
    // Each once, however often it is asked for.
    if wanted.contains(&INFO_NAME) {
        reply(stream, option, REP_INFO, &[&INFO_NAME.to_be_bytes(), export.name.as_bytes()])?;
    }
    if wanted.contains(&INFO_DESCRIPTION) {
        let description = export.description.as_bytes();
        reply(stream, option, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), description])?;
    }
    if wanted.contains(&INFO_BLOCK_SIZE) {
        let sizes = [1, PREFERRED, REQUEST_MAX].map(u32::to_be_bytes).concat();
        reply(stream, option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes(), &sizes])?;
    }
    reply(stream, option, REP_ACK, &[])?;
    Ok(Some(export))
}

fn contexts(
    stream: &mut impl Write,
    option: u32,
    data: &[u8],
    exports: &[Export],
    wishes: &mut Wishes,
) -> Result<(), Broken> {
    if option == OPT_SET_META_CONTEXT {
        // A failed choice leaves none.
        wishes.status_of = None;
    }
    let parsed = (|| {
        let mut fields = Fields(data);
        let name = fields.text()?;
        let count = fields.u32()?;
        // Each takes bytes, so their number is bounded by what was read.
        let queries = (0..count).map(|_| fields.text()).collect::<Option<Vec<&str>>>()?;
        fields.0.is_empty().then_some((name, queries))
    })();
    let Some((name, queries)) = parsed else {
        return refuse(stream, option, REP_ERR_INVALID, "malformed option");
    };
    if !wishes.structured {
        return refuse(stream, option, REP_ERR_INVALID, "structured replies must be negotiated first");
    }
    let Some(export) = find(exports, name) else {
        return refuse(stream, option, REP_ERR_UNKNOWN, "there is no export with this name");
    };
    let lists = option == OPT_LIST_META_CONTEXT;
    let asked =
        (lists && (queries.is_empty() || queries.contains(&"base:"))) || queries.contains(&BASE_ALLOCATION);
    if asked {
        let id = if lists { 0 } else { CONTEXT };
        reply(stream, option, REP_META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()])?;
        if !lists {
            wishes.status_of = Some(export.name.clone());
        }
    }
    reply(stream, option, REP_ACK, &[])
}
