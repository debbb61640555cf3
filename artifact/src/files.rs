//! Files that are either wholly there or not there at all: written under a temporary name in the same folder, synced,
//! renamed, and the folder synced. A process killed at any moment leaves the old content or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Replaces (or makes) `path` with `bytes` in one step; folders on the way are made.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| named("write", path, e))?;
    file.commit()
}

/// A file in the making. Nothing shows under its name until [`AtomicFile::commit`]; dropped before that, nothing is
/// left. (A process that is killed leaves a `.NAME.*.tmp` beside the target, which nobody reads; [`sweep`] clears them.)
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    tmp: PathBuf,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        AtomicFile::create_with(path, 0o666)
    }

    /// As [`AtomicFile::create`], readable and writable by the owner only.
    pub fn create_private(path: &Path) -> io::Result<AtomicFile> {
        AtomicFile::create_with(path, 0o600)
    }

    fn create_with(path: &Path, mode: u32) -> io::Result<AtomicFile> {
        let (Some(name), Some(dir)) = (path.file_name(), folder_of(path)) else {
            return Err(named("create", path, io::Error::new(io::ErrorKind::InvalidInput, "it names no file")));
        };
        create_dirs(dir)?;
        let (tmp, file) = create_temporary(dir, &name.to_string_lossy(), mode)?;
        Ok(AtomicFile { path: path.to_path_buf(), tmp, file: Some(BufWriter::with_capacity(1 << 16, file)) })
    }

    /// Nobody is to write to this file again (an object named by its digest).
    pub fn set_read_only(&mut self) -> io::Result<()> {
        let tmp = self.tmp.clone();
        let file = self.writer()?.get_ref();
        let set = file.metadata().and_then(|m| {
            let mut permissions = m.permissions();
            permissions.set_readonly(true);
            file.set_permissions(permissions)
        });
        set.map_err(|e| named("protect", &tmp, e))
    }

    /// Syncs the content and puts it under its name, replacing what was there.
    pub fn commit(mut self) -> io::Result<()> {
        self.sync()?;
        fs::rename(&self.tmp, &self.path).map_err(|e| named("put in place", &self.path, e))?;
        self.file = None;
        sync_parent(&self.path)
    }

    /// Syncs the content and puts it under its name only where nothing has that name yet: Ok(false) says that another
    /// was there first, whose content stays. Of any number of concurrent callers exactly one gets Ok(true).
    pub fn commit_new(mut self) -> io::Result<bool> {
        self.sync()?;
        // link(2) fails on an existing name, where rename(2) would replace it.
        let won = match fs::hard_link(&self.tmp, &self.path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(named("create", &self.path, e)),
        };
        fs::remove_file(&self.tmp).map_err(|e| named("remove", &self.tmp, e))?;
        self.file = None;
        sync_parent(&self.path)?;
        Ok(won)
    }

    fn sync(&mut self) -> io::Result<()> {
        let path = self.path.clone();
        let file = self.writer()?;
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|e| named("write", &path, e))
    }

    fn writer(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is already in place"))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer()?.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(writer) = self.file.take() {
            // Without the flush that dropping a BufWriter would try.
            drop(writer.into_parts());
            let _ = fs::remove_file(&self.tmp);
        }
    }
}

/// Whether a file name is the temporary one of a write that never ended.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Removes what killed writers left in a folder and the folders in it. For the one process that may write there: another
/// one's unfinished file would go too.
pub fn sweep(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(named("list", dir, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| named("list", dir, e))?;
        let path = entry.path();
        // A link's own kind, so that no link leads the sweep out of the folder.
        let kind = entry.file_type().map_err(|e| named("examine", &path, e))?;
        if kind.is_dir() {
            sweep(&path)?;
        } else if kind.is_file() && is_temporary(&entry.file_name().to_string_lossy()) {
            fs::remove_file(&path).map_err(|e| named("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Appends one line (without its line feed) and syncs. Where an earlier append was torn, the new line starts on a line
/// of its own. One write call, so concurrent appenders do not mix their lines.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    append_lines(path, &[line])
}

/// As [`append_line`], for several lines with one sync; without any, makes the file where there is none.
pub fn append_lines(path: &Path, lines: &[impl AsRef<str>]) -> io::Result<()> {
    if lines.iter().any(|line| line.as_ref().contains('\n')) {
        return Err(named("append to", path, io::Error::new(io::ErrorKind::InvalidInput, "the line has a line feed")));
    }
    if let Some(dir) = folder_of(path) {
        create_dirs(dir)?;
    }
    let fresh = !path.exists();
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).open(path).map_err(|e| named("open", path, e))?;
    let mut text = String::with_capacity(lines.iter().map(|line| line.as_ref().len() + 1).sum::<usize>() + 1);
    if !ends_with_line_feed(&mut file).map_err(|e| named("read", path, e))? {
        text.push('\n');
    }
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| named("append to", path, e))?;
    if fresh { sync_parent(path) } else { Ok(()) }
}

/// Also true of an empty file.
fn ends_with_line_feed(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0u8];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Makes a folder and those above it, each synced into its parent.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dirs(parent)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => sync_parent(dir),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(named("create folder", dir, e)),
    }
}

/// Makes the names in a folder durable. Where the platform cannot sync a folder, does nothing.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| named("sync folder", dir, e))?;
    }
    Ok(())
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    folder_of(path).map_or(Ok(()), sync_dir)
}

/// The folder of a path; of a bare file name, the empty path.
fn folder_of(path: &Path) -> Option<&Path> {
    path.parent()
}

fn create_temporary(dir: &Path, name: &str, mode: u32) -> io::Result<(PathBuf, File)> {
    // The name may be as long as the file system allows; the temporary one must not be longer.
    let stem: String = name.chars().take(40).collect();
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let tmp = dir.join(format!(".{stem}.{}-{n}.tmp", std::process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        match options.open(&tmp) {
            Ok(file) => return Ok((tmp, file)),
            // A killed process of the same number left it, or another machine uses the same folder.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(named("create", &tmp, e)),
        }
    }
}

fn named(attempted: &str, path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cannot {attempted} {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut v: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        v.sort();
        v
    }

    #[test]
    fn writes_into_folders_that_do_not_exist_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.txt");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["c.txt"]);
    }

    #[test]
    fn dropped_before_commit_leaves_the_old_content_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half of the n").unwrap();
        assert!(names(dir.path()).iter().any(|n| is_temporary(n)));
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_sweep_clears_what_killed_writers_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["a/b/.model.gguf.20030-42.tmp", ".x.1-0.tmp", "a/kept.tmp", "a/.kept", "a/b/kept"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(names(&dir.path().join("a")), [".kept", "b", "kept.tmp"]);
        assert_eq!(names(&dir.path().join("a/b")), ["kept"]);
        sweep(&dir.path().join("missing")).unwrap();
    }

    #[test]
    fn a_header_can_be_patched_before_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"????body").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"head").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"headbody");
    }

    #[test]
    fn of_two_exclusive_commits_the_first_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut first = AtomicFile::create(&path).unwrap();
        let mut second = AtomicFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        assert!(first.commit_new().unwrap());
        assert!(!second.commit_new().unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn an_appended_line_never_joins_a_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/lines");
        append_line(&path, "one").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"tor").unwrap();
        append_line(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntor\ntwo\n");
        assert!(append_line(&path, "a\nb").is_err());
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        fs::write(&file, "x").unwrap();
        let e = write_atomic(&file.join("under"), b"").unwrap_err();
        assert!(e.to_string().contains("plain"), "{e}");
    }
}
