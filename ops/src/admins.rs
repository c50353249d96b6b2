//! Which certificates administrators were given, kept beside the CA: a line of name and id for each. It is there so that an
//! administrator can be revoked by name; the CA itself needs none of it.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use stellate_runtime::identity::{NodeId, NodeName};

fn file(authority: &Path) -> PathBuf {
    authority.join("admins")
}

/// Remembers a certificate before it is handed out.
pub(crate) fn record(authority: &Path, name: &NodeName, id: NodeId) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file(authority))?;
    file.write_all(format!("{name} {id}\n").as_bytes())?;
    file.sync_all()
}

/// The ids of all certificates that were given to `name`.
pub(crate) fn ids(authority: &Path, name: &str) -> io::Result<Vec<NodeId>> {
    let text = match fs::read_to_string(file(authority)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let id = |line: &str| line.split_once(' ').filter(|(of, _)| *of == name)?.1.parse().ok();
    Ok(text.lines().filter_map(id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_certificates_of_a_name_are_found_again_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ids(folder.path(), "alice").unwrap().is_empty());
        let [one, two, three] = [1, 2, 3].map(|byte| NodeId::from_bytes([byte; 32]));
        for (name, id) in [("alice", one), ("bob", two), ("alice", three)] {
            record(folder.path(), &name.parse().unwrap(), id).unwrap();
        }
        assert_eq!(ids(folder.path(), "alice").unwrap(), [one, three]);
        assert_eq!(ids(folder.path(), "bob").unwrap(), [two]);
        assert!(ids(folder.path(), "ali").unwrap().is_empty());
    }
}
