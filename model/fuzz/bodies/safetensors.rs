// Any bytes as a safetensors file: the header and the ranges it claims.

use std::path::Path;

use stellate_model::checkpoint::TensorTable;

pub(crate) fn safetensors(bytes: &[u8]) {
    let mut table = TensorTable::default();
    if table.add_safetensors(0, Path::new("fuzz"), bytes).is_ok() {
        assert!(table.iter().all(|(_, entry)| entry.range.end <= bytes.len()));
    }
}
