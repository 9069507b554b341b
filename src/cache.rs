//! Models that a command converted itself, kept in the user's cache folder.
//!
//! A checkpoint is known by its folder, and its state by names, sizes and times of the files that could matter: reading
//! gigabytes at every start to hash them would take longer than the run. On Unix the times include the one of the last
//! change of content *or* attributes, which no program can set back, so a file that is replaced, edited or
//! restored with its old date makes a new model; one that changes while it is converted is noticed, because the state is taken
//! before and after. Elsewhere a file of the same size whose date was set back goes unnoticed.
//!
//! There is one model for each folder and type: a new one removes its predecessor. Whatever was not run for [`KEPT`] is removed
//! when something is converted.

use crate::failure::Hint;
use crate::interrupt::Catch;
use crate::output::note;
use crate::progress::Conversion;
use anyhow::{Context, anyhow, bail};
use etcetera::BaseStrategy;
use sha2::{Digest, Sha256};
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};
use tidbit_convert::{Checkpoint, Options};
use tidbit_runtime::format::{self, ModelFile};
use tidbit_runtime::quant::{QuantType, TILE_ID};
use tidbit_runtime::tokenizer::bpe;

/// How checkpoints are stored that are converted on the way, unless something else is asked for.
pub(crate) const QUANT: QuantType = QuantType::Q8;

/// How long a model is kept that is not run.
const KEPT: Duration = Duration::from_hours(30 * 24);

/// Kinds of files that a conversion may read.
const EXTENSIONS: [&str; 6] = ["bin", "gguf", "jinja", "json", "safetensors", "txt"];

/// The model file of `path`: itself, or the converted one when `path` is the folder of a checkpoint or a GGUF file.
///
/// # Errors
/// When the checkpoint cannot be read or converted, or the cache not be written.
pub(crate) fn model_file(path: &Path) -> anyhow::Result<PathBuf> {
    model_file_as(path, QUANT)
}

/// The same, with the weights of a checkpoint stored in another type.
///
/// # Errors
/// As [`model_file`].
pub(crate) fn model_file_as(path: &Path, quant: QuantType) -> anyhow::Result<PathBuf> {
    if !path.is_dir() && !is_gguf(path) {
        return Ok(path.into());
    }
    let name = Name::of(path, quant)?;
    let cache = folder()?;
    let cached = cache.join(name.full());
    if cached.exists() {
        match ModelFile::open(&cached) {
            Ok(_) => {
                mark_as_used(&cached);
                return Ok(cached);
            }
            Err(error) => note(format_args!("note: converting again: {error}")),
        }
    }
    convert(path, &cached, quant)?;
    if Name::of(path, quant)?.state != name.state {
        // What was read may be partly old and partly new.
        let _ = std::fs::remove_file(&cached);
        bail!("{}: a file changed while it was converted", path.display());
    }
    clean(&cache, &name);
    Ok(cached)
}

/// Whether a path is that of a GGUF file, which is converted as a folder is.
fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

fn convert(source: &Path, cached: &Path, quant: QuantType) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(source)?;
    note(format_args!("converting {} to {quant}, kept as {}", source.display(), cached.display()));
    for warning in checkpoint.warnings() {
        note(format_args!("warning: {warning}"));
    }
    if let Some(parent) = cached.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|e| anyhow!("{}: {e}", parent.display()).hint("TIDBIT_CACHE names another cache folder"))?;
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let _caught = Catch::new(Arc::clone(&cancel))?;
    let options = Options { quant, cancel: Some(cancel) };
    tidbit_convert::convert(&checkpoint, cached, &options, &mut Conversion::default())?;
    Ok(())
}

/// `TIDBIT_CACHE`, or `tidbit` in the user's cache folder.
fn folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIDBIT_CACHE").filter(|f| !f.is_empty()) {
        return Ok(folder.into());
    }
    let base = etcetera::choose_base_strategy().context("no home folder to keep the converted model in");
    let base = base.map_err(|e| e.hint("TIDBIT_CACHE names a cache folder"))?;
    Ok(base.cache_dir().join("tidbit"))
}

/// What a kept model is called: `FOLDER-QUANT-PLACE-STATE.tidbit`.
struct Name {
    /// Name of the checkpoint's folder, for people.
    folder: String,
    /// How its weights are stored.
    quant: QuantType,
    /// Hash of the folder's path.
    place: String,
    /// Hash of all that decides the model's content.
    state: String,
}

/// Hexadecimal digits of a hash in a name.
const DIGITS: usize = 16;

impl Name {
    fn of(source: &Path, quant: QuantType) -> anyhow::Result<Self> {
        let error = |e: std::io::Error| anyhow!("{}: {e}", source.display());
        let absolute = source.canonicalize().map_err(error)?;
        let mut files = Vec::new();
        let paths = if is_gguf(source) {
            vec![absolute.clone()]
        } else {
            let entries = std::fs::read_dir(source).map_err(error)?;
            entries.map(|entry| Ok(entry.map_err(error)?.path())).collect::<anyhow::Result<_>>()?
        };
        // How sentence-transformers pools is said in a folder of its own.
        for path in paths.into_iter().chain([absolute.join("1_Pooling/config.json")]) {
            let known = path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)));
            // Follows links, as a download of a model hub has them. A broken one may be an unused one.
            if known && let Ok(about) = path.metadata() {
                files.push((path.file_name().unwrap_or_default().as_encoded_bytes().to_vec(), state_of(&about)));
            }
        }
        files.sort();
        let mut state = Sha256::new();
        let tables = bpe::VERSION.to_string();
        for part in [env!("CARGO_PKG_VERSION"), format::VERSION, TILE_ID, &tables, quant.name()] {
            state.update(part.as_bytes());
            state.update([0]);
        }
        for (name, numbers) in &files {
            state.update((name.len() as u64).to_le_bytes());
            state.update(name);
            for n in numbers {
                state.update(n.to_le_bytes());
            }
        }
        let digits = |hasher: Sha256| format::header::hex(&hasher.finalize())[..DIGITS].to_owned();
        let place = Sha256::new_with_prefix(absolute.as_os_str().as_encoded_bytes());
        let folder = absolute.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { folder, quant, place: digits(place), state: digits(state) })
    }

    fn full(&self) -> String {
        format!("{}-{}-{}-{}.tidbit", self.folder, self.quant, self.place, self.state)
    }

    /// The type, place and state in the name of a file that this module made; `None` for any other file.
    fn parse(file: &str) -> Option<(QuantType, &str, &str)> {
        let hash = |text: &str| text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let (rest, state) = file.strip_suffix(".tidbit")?.rsplit_once('-')?;
        let (rest, place) = rest.rsplit_once('-')?;
        let (_, quant) = rest.rsplit_once('-')?;
        let quant = QuantType::from_name(quant)?;
        (hash(state) && hash(place)).then_some((quant, place, state))
    }
}

/// Size and times of a file; its number and the time of its last change where the system has them.
fn state_of(about: &Metadata) -> Vec<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
        [about.size(), about.ino()].into_iter().chain(times.map(i64::cast_unsigned)).collect()
    }
    #[cfg(not(unix))]
    {
        let since = about.modified().ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        vec![about.len(), since.map_or(0, |t| t.as_nanos() as u64)]
    }
}

/// The time of a model's last run is the file's date. It only decides when it is removed, so a read-only cache is fine.
fn mark_as_used(cached: &Path) {
    if let Ok(file) = std::fs::File::open(cached) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Removes other models of the same checkpoint, and those that were not run for long. Nothing depends on it, so what
/// cannot be removed stays. A model in use stays readable on Unix and cannot be removed elsewhere.
fn clean(cache: &Path, new: &Name) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((quant, place, state)) = name.to_str().and_then(Name::parse) else { continue };
        let replaced = (quant, place) == (new.quant, &new.place) && state != new.state;
        let modified = entry.metadata().and_then(|about| about.modified());
        let unused = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT));
        if replaced || unused {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_made_here_are_taken_for_kept_models() {
        let name = Name { folder: "a-b".into(), quant: QUANT, place: "0123456789abcdef".into(), state: "f".repeat(16) };
        assert_eq!(Name::parse(&name.full()), Some((QUANT, "0123456789abcdef", "ffffffffffffffff")));
        for other in [
            "a.tidbit",
            "a-q8.tidbit",
            "gpt2-q8-0123456789abcdef.tidbit",
            "a-q8-0123456789abcdeF-ffffffffffffffff.tidbit",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_state_changes_with_every_file_that_matters() {
        let folder = tempfile::tempdir().unwrap();
        let state = || Name::of(folder.path(), QUANT).unwrap().state;
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        let first = state();
        assert_eq!(state(), first);
        write("log.tsv", "unrelated");
        assert_eq!(state(), first);
        write("tokenizer.json", "{}");
        let second = state();
        assert_ne!(second, first);
        // The same size, and the old date.
        let path = folder.path().join("config.json");
        let date = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        write("config.json", "[]");
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(date).unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), date);
        if cfg!(unix) {
            assert_ne!(state(), second);
        }
    }
}
