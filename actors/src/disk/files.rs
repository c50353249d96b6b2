//! Blocks to and from the files of a folder: written so that a file of that name is whole or not there, read so that what
//! comes is what was written. What is to be written, read or removed is decided in [`super::index`].

use std::io;

use stellate_model::block::BlockId;

use super::folder::BlockFolder;
use super::form::{HEAD_BYTES, Head, Name, name, part_name};
use super::index::DiskIndex;
use crate::context_host::strip::Strip;

/// Bytes between two looks at what else there is to do.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Why a file is not served. It is removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("it could not be read: {0}")]
    Unread(#[from] io::Error),
    #[error("its head is not that of a block")]
    Head,
    #[error("it holds the block {}", name(.0))]
    OtherBlock(BlockId),
    #[error("it is {found} bytes long, and should be {expected}")]
    Length { found: u64, expected: u64 },
    #[error("its bytes have another checksum than those that were written")]
    Checksum,
}

impl Damage {
    /// Whether the file itself may be as it should be: this machine could not read it now.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            // A file that ends too early stays so, and one that is gone does not come again.
            Self::Unread(error) => {
                !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
            }
            _ => false,
        }
    }
}

/// What a look through a folder has found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The heads of blocks, those used longest ago first.
    pub(super) heads: Vec<Head>,
    /// Files that are not of this program.
    pub(super) foreign: usize,
}

/// Tells `index` of every block in a folder, by its head alone; damaged ones to be removed. What was not written to its end
/// is removed now.
///
/// # Errors
/// The folder cannot be listed, or a file of it not be removed.
pub(super) fn scan(folder: &mut dyn BlockFolder, index: &mut DiskIndex) -> io::Result<Scan> {
    let (mut files, mut scan) = (folder.list()?, Scan::default());
    files.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
    for file in files {
        match Name::of(&file.name) {
            Name::Block(id) => match read_head(folder, &id, file.bytes) {
                Ok(head) => {
                    index.found(id, file.bytes);
                    scan.heads.push(head);
                }
                Err(damage) if damage.may_pass() => {
                    tracing::warn!(file = file.name, %damage, "a block on the disk cannot be read now; it stays where it is");
                    index.found(id, file.bytes);
                }
                Err(damage) => {
                    tracing::warn!(file = file.name, %damage, "a block on the disk is damaged; it is removed, and encoded again when it is needed");
                    index.found_damaged(id, file.bytes);
                }
            },
            Name::Part => folder.remove(&file.name)?,
            Name::Foreign => scan.foreign += 1,
        }
    }
    Ok(scan)
}

/// The head of a block's file of `bytes` bytes.
pub(super) fn read_head(folder: &mut dyn BlockFolder, id: &BlockId, bytes: u64) -> Result<Head, Damage> {
    let mut head = [0; HEAD_BYTES];
    folder.read(&name(id), 0, &mut head)?;
    let head = Head::decode(&head).ok_or(Damage::Head)?;
    if head.id != *id {
        return Err(Damage::OtherBlock(head.id));
    }
    if head.file_bytes() != bytes {
        return Err(Damage::Length { found: bytes, expected: head.file_bytes() });
    }
    Ok(head)
}

/// Fills `strip` with a block's bytes. `go_on` is asked before each piece. Tells whether all are there.
pub(super) fn read(
    folder: &mut dyn BlockFolder,
    head: &Head,
    strip: &mut Strip,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<bool, Damage> {
    let (name, mut piece) = (name(&head.id), vec![0; PIECE_BYTES.min(strip.bytes())]);
    while strip.arrived_bytes() < strip.bytes() {
        if !go_on() {
            return Ok(false);
        }
        let at = strip.arrived_bytes();
        let piece = &mut piece[..PIECE_BYTES.min(strip.bytes() - at)];
        folder.read(&name, (HEAD_BYTES + at) as u64, piece)?;
        strip.fill(&[&*piece]);
    }
    if strip.checksum() != head.checksum {
        return Err(Damage::Checksum);
    }
    Ok(true)
}

/// Writes a block's file. `pause` is called before each piece.
///
/// # Errors
/// The folder's. The file may be there in part, under either of its names.
pub(super) fn write(
    folder: &mut dyn BlockFolder,
    head: &Head,
    raw: &[u8],
    pause: &mut dyn FnMut(),
) -> io::Result<()> {
    let part = part_name(&head.id);
    folder.create(&part)?;
    folder.append(&head.encode())?;
    for piece in raw.chunks(PIECE_BYTES) {
        pause();
        folder.append(piece)?;
    }
    // Before it has its name, so that no file of that name is ever short of bytes.
    folder.sync()?;
    folder.rename(&part, &name(&head.id))?;
    folder.sync_names()
}

/// Removes a block's file under both of its names.
///
/// # Errors
/// The folder's.
pub(super) fn clear(folder: &mut dyn BlockFolder, id: &BlockId) -> io::Result<()> {
    folder.remove(&part_name(id))?;
    folder.remove(&name(id))
}
