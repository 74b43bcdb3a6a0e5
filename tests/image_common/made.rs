//! Bytes of file systems and programs, made here.

#![allow(dead_code, reason = "each test uses what it needs")]

/// A FAT file system with these files.
pub fn fat_of(bytes: usize, files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::{Cursor, Write};
    let mut disk = Cursor::new(vec![0; bytes]);
    let options = fatfs::FormatVolumeOptions::new()
        .bytes_per_cluster(512)
        .fats(1)
        .volume_label(*b"ESP        ")
        .volume_id(0x1234_abcd);
    fatfs::format_volume(&mut disk, options).unwrap();
    {
        let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
        for (path, content) in files {
            let mut folder = volume.root_dir();
            let mut parts = path.split('/').peekable();
            while let Some(part) = parts.next() {
                match parts.peek() {
                    Some(_) => folder = folder.create_dir(part).unwrap(),
                    None => folder.create_file(part).unwrap().write_all(content).unwrap(),
                }
            }
        }
    }
    disk.into_inner()
}

/// A unified kernel image with these sections.
pub fn uki(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const SECTION: usize = 40;
    const ALIGN: usize = 512;
    let table = 0x40 + 24 + 112;
    let mut file = vec![0; (table + SECTION * sections.len()).next_multiple_of(ALIGN)];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664u16.to_le_bytes());
    put(0x46, &(sections.len() as u16).to_le_bytes());
    // The optional header, for 64 bits, without directories.
    put(0x54, &112u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    for (index, (name, bytes)) in sections.iter().enumerate() {
        let (header, at) = (table + SECTION * index, file.len());
        let stored = bytes.len().next_multiple_of(ALIGN);
        file[header..header + name.len()].copy_from_slice(name.as_bytes());
        for (field, value) in [(8, bytes.len()), (12, 0x1000 * (index + 1)), (16, stored), (20, at)] {
            file[header + field..header + field + 4].copy_from_slice(&(value as u32).to_le_bytes());
        }
        file.extend_from_slice(bytes);
        file.resize(at + stored, 0);
    }
    file
}
