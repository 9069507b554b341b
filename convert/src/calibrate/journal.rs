//! What a calibration has done, kept beside the output, so that the same command goes on where it was stopped.
//!
//! It saves time and nothing hangs on it: what cannot be kept is done again.
//!
//! A safetensors file for each step, named by the step and by what decides its result, with a checksum. What does not fit is
//! as good as not there. Steps give the same bytes every time, so a file that was made in two runs is that of one.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tidbit_runtime::format::header::{hex, sha256_hex};

/// Of the way in which steps are computed: to be raised with every change that gives other bytes.
const METHOD: u32 = 1;

/// Named bytes.
pub(crate) type Entries = BTreeMap<String, Vec<u8>>;

/// The steps of one calibration.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    key: String,
}

/// Where the steps of a conversion to `output` are kept until it is done.
pub fn journal_folder(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!(".{name}.calibration"))
}

impl Journal {
    /// `decides` is everything that the results depend on.
    pub(crate) fn new(output: &Path, decides: &[&[u8]]) -> Self {
        let mut all = Sha256::new_with_prefix(format!("{} {METHOD}", env!("CARGO_PKG_VERSION")));
        for part in decides {
            all.update((part.len() as u64).to_le_bytes());
            all.update(part);
        }
        Self { folder: journal_folder(output), key: hex(&all.finalize()[..8]) }
    }

    fn path(&self, step: &str) -> PathBuf {
        self.folder.join(format!("{}-{step}.safetensors", self.key))
    }

    /// What a step gave, if it was done before.
    pub(crate) fn find(&self, step: &str) -> Option<Entries> {
        let bytes = std::fs::read(self.path(step)).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let entries: Entries = tensors.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
        let expected = header.metadata().as_ref()?.get("sha256")?;
        (*expected == checksum(&entries)).then_some(entries)
    }

    /// Keeps what a step gave, if there is room.
    pub(crate) fn keep(&self, step: &str, entries: &Entries) {
        // Half a file is not found.
        let _ = self.write(step, entries);
    }

    fn write(&self, step: &str, entries: &Entries) -> std::io::Result<()> {
        // Bytes of as many elements as there are bytes: nothing that could be refused.
        let views = entries.iter().filter_map(|(name, bytes)| {
            TensorView::new(Dtype::U8, vec![bytes.len()], bytes).map(|view| (name.clone(), view)).ok()
        });
        let metadata = HashMap::from([("sha256".to_string(), checksum(entries))]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(std::io::Error::other)?;
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        std::fs::write(file.path(), bytes)?;
        file.persist(self.path(step))?;
        Ok(())
    }
}

fn checksum(entries: &Entries) -> String {
    let mut all = Vec::new();
    for (name, bytes) in entries {
        all.extend(Sha256::digest(name));
        all.extend(Sha256::digest(bytes));
    }
    sha256_hex(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_again_if_all_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("m");
        std::fs::create_dir(journal_folder(&output)).unwrap();
        let journal = Journal::new(&output, &[b"model", b"text"]);
        let entries = Entries::from([("a".into(), vec![1, 2, 3]), ("b".into(), vec![])]);
        assert!(journal.find("x").is_none());
        journal.keep("x", &entries);
        assert_eq!(journal.find("x"), Some(entries.clone()));
        assert!(journal.find("y").is_none());
        assert!(Journal::new(&output, &[b"model", b"test"]).find("x").is_none());
        assert!(Journal::new(&output, &[b"mode", b"ltext"]).find("x").is_none());

        let whole = std::fs::read(journal.path("x")).unwrap();
        for damaged in [
            &whole[..whole.len() - 1],
            &[&whole[..whole.len() - 1], &[9]].concat(),
            b"",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            std::fs::write(journal.path("x"), damaged).unwrap();
            assert!(journal.find("x").is_none());
        }
        journal.keep("x", &entries);
        assert_eq!(journal.find("x").as_ref(), Some(&entries));
        std::fs::remove_dir_all(journal_folder(&output)).unwrap();
        journal.keep("x", &entries);
        assert!(journal.find("x").is_none(), "no folder, and no failure");
    }
}
