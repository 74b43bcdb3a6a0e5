//! Unified kernel images: programs of EFI that hold a kernel, its initrd and its command line as sections.
//! Source: the UAPI Group's Unified Kernel Image specification.

use object::LittleEndian as LE;
use object::pe::{ImageDosHeader, ImageNtHeaders64};
use object::read::pe::ImageNtHeaders as _;

use super::entry::Section;
use super::error::Result;
use super::survey::Volume;

/// Of a program, what its headers have room in.
const HEAD: u64 = 64 << 10;
/// Bytes of a section that is text.
const TEXT_MAX: u64 = 64 << 10;

#[derive(Debug, Default)]
pub struct Uki {
    pub linux: Section,
    pub initrds: Vec<Section>,
    pub cmdline: String,
    /// As os-release(5) has it.
    pub os_release: String,
}

struct Found {
    name: [u8; 8],
    section: Section,
}

/// What is in a file; none: it is no such image.
pub fn read(volume: &Volume, path: &str) -> Result<Option<Uki>> {
    let Some(len) = volume.len(path)? else { return Ok(None) };
    let head = volume.read_section(path, Section { offset: 0, len: len.min(HEAD) })?;
    let Some(found) = sections(&head) else { return Ok(None) };
    let mut uki = Uki::default();
    let mut has_kernel = false;
    for Found { name, section } in found {
        if section.offset.checked_add(section.len).is_none_or(|end| end > len) {
            return Ok(None);
        }
        let text = || {
            let some = Section { len: section.len.min(TEXT_MAX), ..section };
            let bytes = volume.read_section(path, some)?;
            let text = String::from_utf8_lossy(&bytes);
            Ok::<_, super::error::ImageError>(text.trim_end_matches('\0').trim().to_owned())
        };
        match name.as_slice() {
            // What follows are others of which the boot loader may choose one.
            b".profile" => break,
            b".linux\0\0" if !has_kernel => {
                uki.linux = section;
                has_kernel = true;
            }
            // Microcode goes before all else.
            b".ucode\0\0" => uki.initrds.insert(0, section),
            b".initrd\0" => uki.initrds.push(section),
            b".cmdline" => uki.cmdline = text()?,
            b".osrel\0\0" => uki.os_release = text()?,
            _ => {}
        }
    }
    Ok(has_kernel.then_some(uki))
}

/// Those of a PE program for 64 bits.
fn sections(head: &[u8]) -> Option<Vec<Found>> {
    let dos = ImageDosHeader::parse(head).ok()?;
    let mut at = u64::from(dos.nt_headers_offset());
    let (headers, _) = ImageNtHeaders64::parse(head, &mut at).ok()?;
    let table = headers.sections(head, at).ok()?;
    let section = |header: &object::pe::ImageSectionHeader| {
        let (stored, used) = (header.size_of_raw_data.get(LE), header.virtual_size.get(LE));
        // The file has it rounded up.
        let len = if used == 0 { stored } else { stored.min(used) };
        let section = Section { offset: header.pointer_to_raw_data.get(LE).into(), len: len.into() };
        Found { name: header.name, section }
    };
    Some(table.iter().map(section).collect())
}
