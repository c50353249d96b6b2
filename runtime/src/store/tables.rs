//! The tables in the file and its schema version. A change here needs a new [`SCHEMA`] and a step that brings older files up.

use redb::TableDefinition;

/// The schema that this program writes. Version 1: numbers by name; records by kind and key; heads of logs; entries of logs
/// by log and index; values as `sealed` writes them.
pub(super) const SCHEMA: u64 = 1;

/// Numbers about the store itself.
pub(super) const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

/// In [`NUMBERS`]: the schema of the file.
pub(super) const SCHEMA_KEY: &str = "schema";

/// In [`NUMBERS`]: the version that the latest put got.
pub(super) const VERSION_KEY: &str = "version";

/// Sealed version and value by kind and key.
pub(super) const RECORDS: TableDefinition<'static, (u8, &[u8]), &[u8]> = TableDefinition::new("records");

/// Sealed epoch, next index and bytes of entries by log.
pub(super) const HEADS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("heads");

/// Sealed epoch and entry by log and index.
pub(super) const ENTRIES: TableDefinition<'static, (&[u8], u64), &[u8]> = TableDefinition::new("entries");
