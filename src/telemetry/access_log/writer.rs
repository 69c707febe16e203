//! From the traffic threads to the file: buffers that are swapped out, and the thread that writes them.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags};
use thiserror::Error;
use tracing::{error, warn};

use super::{Format, Record};
use crate::metrics::Counter;

/// The lines on their way to one file, and the thread that writes them.
///
/// A line is in the file [`FLUSH_INTERVAL`] after its request at the latest, earlier under load; an idle log wakes
/// nobody. Lines of one [`LogWriter`] keep their order. Memory is bounded by twice [`BUFFER_LIMIT`] (and a line) for
/// each writer: when the file cannot keep up, further lines are dropped and counted, and traffic goes on.
///
/// The thread ends when this and every [`LogWriter`] are gone; [`Self::shutdown`] waits for it.
pub struct AccessLog {
    buffers: Buffers,
    dropped: Counter,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// Begins to write to `output`, which is best opened for appending: others may write to it between our lines.
    ///
    /// `dropped` counts the lines that are lost, be it for want of room in the buffers or on the disk.
    pub fn start(output: File, dropped: Counter) -> io::Result<Self> {
        let buffers = Buffers::default();
        let (commands, received) = mpsc::channel();
        let sink = Sink {
            output,
            buffers: Arc::clone(&buffers),
            spare: Vec::new(),
            cut: Vec::new(),
            reported: dropped.get(),
            dropped: dropped.clone(),
            next_warning: Instant::now(),
            next_error: Instant::now(),
        };
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || sink.run(&received))?;
        Ok(Self { buffers, dropped, commands, thread })
    }

    /// A handle for one traffic thread.
    #[must_use]
    pub fn writer(&self) -> LogWriter {
        let buffer = Buffer::default();
        lock(&self.buffers).push(Arc::clone(&buffer));
        LogWriter { buffer, dropped: self.dropped.clone(), commands: self.commands.clone() }
    }

    /// Goes on in `output`. What was logged before this call is written to the old file, which is then closed.
    ///
    /// Does not wait for that.
    pub fn reopen(&self, output: File) {
        // Fails only if the thread has panicked; then nothing is written any more.
        if self.commands.send(Command::Reopen(output)).is_err() {
            error!("the access log has stopped");
        }
    }

    /// Writes everything that was logged before this call and ends the thread; blocks until then.
    ///
    /// # Errors
    ///
    /// Lines are left when `deadline` has passed: nobody reads the pipe, or the disk hangs. The thread is then left
    /// behind.
    pub fn shutdown(self, deadline: Duration) -> Result<(), Unwritten> {
        let (done, finished) = mpsc::sync_channel(1);
        if self.commands.send(Command::Stop(done)).is_err() || finished.recv_timeout(deadline).is_err() {
            return Err(Unwritten { deadline });
        }
        self.thread.join().map_err(|_| Unwritten { deadline })
    }
}

/// The access log could not be finished.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the last lines of the access log could not be written within {deadline:?}")]
pub struct Unwritten {
    pub deadline: Duration,
}

/// Standard output as something to write to; shares its position and mode with everyone else who has it.
pub fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Takes the lines of one traffic thread.
///
/// There is nothing to flush: what is in memory is collected from the other side.
pub struct LogWriter {
    buffer: Buffer,
    dropped: Counter,
    commands: Sender<Command>,
}

impl LogWriter {
    /// Logs `record`, or drops it when the buffer is full.
    ///
    /// Never waits for the file. The lock is one thread's own, but for the moment in which its buffer is swapped.
    pub fn log(&self, format: &Format, record: &Record) {
        let mut lines = lock(&self.buffer);
        let before = lines.len();
        if before >= BUFFER_LIMIT {
            drop(lines);
            self.dropped.inc();
            return;
        }
        format.write(record, &mut lines);
        let after = lines.len();
        drop(lines);

        // Only these two passages are told, so that at most two commands a buffer wait for a thread that is stuck.
        let command = if before < URGENT && after >= URGENT {
            Command::WriteNow
        } else if before == 0 {
            Command::WriteSoon
        } else {
            return;
        };
        // Nobody is left to receive after a shutdown; the line stays in the buffer.
        self.commands.send(command).ok();
    }
}

type Buffer = Arc<Mutex<Vec<u8>>>;
type Buffers = Arc<Mutex<Vec<Buffer>>>;

enum Command {
    /// There is a first line in a buffer.
    WriteSoon,
    /// There is enough to be worth a write.
    WriteNow,
    Reopen(File),
    Stop(SyncSender<()>),
}

/// The writing side.
struct Sink {
    output: File,
    buffers: Buffers,
    /// Empty; what is swapped for the next buffer.
    spare: Vec<u8>,
    /// The end of a line whose beginning is in the file. Goes first, so that no line stays torn.
    cut: Vec<u8>,
    dropped: Counter,
    /// How much of `dropped` has been told.
    reported: u64,
    next_warning: Instant,
    next_error: Instant,
}

impl Sink {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            let command = match first {
                Command::WriteSoon => gather(commands),
                urgent => urgent,
            };
            self.collect();
            match command {
                Command::WriteSoon | Command::WriteNow => {}
                Command::Reopen(output) => {
                    if !self.cut.is_empty() {
                        self.lose(1);
                        self.cut.clear();
                    }
                    self.output = output;
                }
                Command::Stop(done) => {
                    // Whoever waited may have given up.
                    done.send(()).ok();
                    return;
                }
            }
        }
        self.collect();
    }

    /// Writes what all buffers hold.
    fn collect(&mut self) {
        let mut buffers = lock(&self.buffers).clone();
        for buffer in &buffers {
            mem::swap(&mut *lock(buffer), &mut self.spare);
            let mut lines = mem::take(&mut self.spare);
            self.write(&lines);
            lines.clear();
            lines.shrink_to(BUFFER_LIMIT);
            self.spare = lines;
        }
        // Two owners, this list and the registry: the writer is gone.
        buffers.retain(|buffer| Arc::strong_count(buffer) == 2 && lock(buffer).is_empty());
        if !buffers.is_empty() {
            lock(&self.buffers).retain(|buffer| !buffers.iter().any(|gone| Arc::ptr_eq(gone, buffer)));
        }
        self.warn();
    }

    /// Writes whole `lines`, or as many as there is room for.
    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let cut = mem::take(&mut self.cut);
        let result = write(&mut self.output, &cut).map_err(|(written, error)| {
            self.cut = cut[written..].to_vec();
            (0, error)
        });
        if let Err((written, error)) = result.and_then(|()| write(&mut self.output, lines)) {
            let lost = if written == 0 || lines[written - 1] == b'\n' {
                &lines[written..]
            } else {
                let end =
                    lines[written..].iter().position(|&byte| byte == b'\n').map_or(lines.len(), |at| written + at + 1);
                self.cut = lines[written..end].to_vec();
                &lines[end..]
            };
            self.lose(lost.split_inclusive(|&byte| byte == b'\n').count() as u64);
            let now = Instant::now();
            if now >= self.next_error {
                self.next_error = now + ERROR_INTERVAL;
                error!(error = &error as &dyn std::error::Error, "cannot write the access log; lines are lost");
            }
        }
    }

    /// Counts `lines` that [`Self::write`] tells of itself.
    fn lose(&mut self, lines: u64) {
        self.dropped.add(lines);
        self.reported += lines;
    }

    /// Tells of lines for which there was no room in a buffer.
    ///
    /// From here, not from the thread that dropped them: standard error may be the very pipe that nobody reads. While
    /// a write hangs, the metric tells.
    fn warn(&mut self) {
        let (dropped, now) = (self.dropped.get(), Instant::now());
        if dropped > self.reported && now >= self.next_warning {
            warn!(lines = dropped - self.reported, "the access log is too slow; lines were dropped");
            self.reported = dropped;
            self.next_warning = now + WARNING_INTERVAL;
        }
    }
}

/// Lets lines gather for [`FLUSH_INTERVAL`], or until something is urgent.
fn gather(commands: &Receiver<Command>) -> Command {
    let deadline = Instant::now() + FLUSH_INTERVAL;
    loop {
        match commands.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Command::WriteSoon) => {}
            Ok(urgent) => return urgent,
            Err(_) => return Command::WriteNow,
        }
    }
}

/// Writes all of `bytes`, or says how many were written before the error.
fn write(output: &mut File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever else has this pipe made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(output, PollFlags::OUT)];
                match rustix::event::poll(&mut ready, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err((written, errno.into())),
                }
            }
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// What is behind these locks is whole lines at any time: a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest a line waits in memory for company.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// Bytes in a buffer from which on lines are dropped.
pub const BUFFER_LIMIT: usize = 256 * 1024;

/// Bytes in a buffer that are written without waiting for more.
const URGENT: usize = 32 * 1024;

const WARNING_INTERVAL: Duration = Duration::from_secs(1);
const ERROR_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Seek},
        os::fd::OwnedFd,
        path::Path,
        sync::Barrier,
    };

    use super::*;
    use crate::{config::LogFormat, telemetry::access_log::Started};

    const SOON: Duration = Duration::from_secs(10);

    fn numbered() -> Format {
        Format::compile(&LogFormat::Template("{route} {bytes_sent} end".to_owned())).unwrap()
    }

    fn record(thread: &str, number: u64) -> Record {
        let mut record = Record::new(Started::now(), None);
        record.route = Some(Arc::from(thread));
        record.bytes_sent = number;
        record
    }

    fn append(path: &Path) -> File {
        File::options().append(true).create(true).open(path).unwrap()
    }

    /// Waits until `condition` holds.
    fn wait(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition() {
            assert!(Instant::now() < deadline, "it did not come to be within {SOON:?}");
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    #[test]
    fn lines_of_many_threads_arrive_whole_and_each_in_order() {
        const LINES: u64 = 5000;
        let file = tempfile::NamedTempFile::new().unwrap();
        let dropped = Counter::default();
        let log = AccessLog::start(append(file.path()), dropped.clone()).unwrap();
        let format = numbered();

        thread::scope(|scope| {
            for name in ["one", "two", "three", "four"] {
                let (writer, format) = (log.writer(), &format);
                scope.spawn(move || (0..LINES).for_each(|number| writer.log(format, &record(name, number))));
            }
        });
        log.shutdown(SOON).unwrap();

        assert_eq!(dropped.get(), 0);
        let text = fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count() as u64, 4 * LINES);
        for name in ["one", "two", "three", "four"] {
            let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("{name} "))).collect();
            let expected: Vec<_> = (0..LINES).map(|number| format!("{name} {number} end")).collect();
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn a_line_reaches_the_file_without_anyone_flushing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = AccessLog::start(append(file.path()), Counter::default()).unwrap();
        let writer = log.writer();

        for number in 1..=3 {
            writer.log(&numbered(), &record("one", number));
            wait(|| fs::read_to_string(file.path()).unwrap().ends_with(&format!("one {number} end\n")));
        }
    }

    #[test]
    fn reopening_splits_the_lines_between_the_files_and_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let log = AccessLog::start(append(&old), Counter::default()).unwrap();
        let (writer, other) = (log.writer(), log.writer());
        let (format, halfway) = (numbered(), Barrier::new(2));

        thread::scope(|scope| {
            // One thread that logs right through, and one that knows on which side it is.
            let (format, halfway) = (&format, &halfway);
            scope.spawn(move || {
                (0..1000).for_each(|number| other.log(format, &record("through", number)));
                halfway.wait();
                (1000..2000).for_each(|number| other.log(format, &record("through", number)));
            });
            writer.log(format, &record("before", 1));
            halfway.wait();
            log.reopen(append(&new));
            log.shutdown(SOON).unwrap();
        });

        let (old, new) = (fs::read_to_string(&old).unwrap(), fs::read_to_string(&new).unwrap());
        assert!(old.contains("before 1 end\n"), "{old}");
        assert!(old.contains("through 999 end\n"), "{old}");
        let both = old + &new;
        let numbers: Vec<_> = both.lines().filter(|line| line.starts_with("through")).collect();
        let expected: Vec<_> = (0..numbers.len()).map(|number| format!("through {number} end")).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn reopening_closes_the_old_file_and_later_lines_are_in_the_new_one() {
        let (mut old, pipe) = io::pipe().unwrap();
        let new = tempfile::NamedTempFile::new().unwrap();
        let log = AccessLog::start(File::from(OwnedFd::from(pipe)), Counter::default()).unwrap();
        let writer = log.writer();

        writer.log(&numbered(), &record("before", 1));
        log.reopen(append(new.path()));
        // Up to the end of the pipe, which comes when it is closed.
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        writer.log(&numbered(), &record("after", 2));
        log.shutdown(SOON).unwrap();

        assert_eq!(text, "before 1 end\n");
        assert_eq!(fs::read_to_string(new.path()).unwrap(), "after 2 end\n");
    }

    #[test]
    fn a_pipe_nobody_reads_drops_and_counts_lines_but_holds_nobody_up() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let dropped = Counter::default();
        let log = AccessLog::start(File::from(OwnedFd::from(pipe)), dropped.clone()).unwrap();
        let (writer, format) = (log.writer(), numbered());

        let begun = Instant::now();
        let mut logged = 0;
        while dropped.get() < 1000 {
            writer.log(&format, &record("one", logged));
            logged += 1;
            assert!(begun.elapsed() < SOON, "{logged} lines and none was dropped");
        }
        assert!(lock(&writer.buffer).len() < BUFFER_LIMIT + 100, "the buffer is not bounded");

        // What was not dropped is all there once somebody reads.
        drop(writer);
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        log.shutdown(SOON).unwrap();
        let text = reading.join().unwrap();
        assert_eq!(text.lines().count() as u64, logged - dropped.get());
        assert!(text.lines().all(|line| line.starts_with("one ") && line.ends_with(" end")));
    }

    #[test]
    fn shutdown_gives_up_on_a_pipe_nobody_reads() {
        let (_reader, pipe) = io::pipe().unwrap();
        let log = AccessLog::start(File::from(OwnedFd::from(pipe)), Counter::default()).unwrap();
        let (writer, format) = (log.writer(), numbered());
        (0..20_000).for_each(|number| writer.log(&format, &record("one", number)));

        let deadline = Duration::from_millis(50);
        assert_eq!(log.shutdown(deadline), Err(Unwritten { deadline }));
    }

    #[test]
    fn a_non_blocking_pipe_gets_every_line() {
        let (mut reader, pipe) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&pipe, true).unwrap();
        let log = AccessLog::start(File::from(OwnedFd::from(pipe)), Counter::default()).unwrap();
        let (writer, format) = (log.writer(), numbered());
        // More than the 64 KiB of a pipe, less than a buffer.
        (0..10_000).for_each(|number| writer.log(&format, &record("one", number)));

        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        log.shutdown(SOON).unwrap();

        assert_eq!(reading.join().unwrap().lines().count(), 10_000);
    }

    #[test]
    fn a_full_disk_costs_whole_lines_and_they_are_counted() {
        let dropped = Counter::default();
        let log = AccessLog::start(File::options().write(true).open("/dev/full").unwrap(), dropped.clone()).unwrap();
        let writer = log.writer();

        (0..10).for_each(|number| writer.log(&numbered(), &record("one", number)));
        log.shutdown(SOON).unwrap();

        assert_eq!(dropped.get(), 10);
    }

    #[test]
    fn a_line_cut_by_a_full_disk_is_finished_when_there_is_room() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink {
            output: File::options().write(true).open("/dev/full").unwrap(),
            buffers: Buffers::default(),
            spare: Vec::new(),
            cut: b" half\n".to_vec(),
            dropped: Counter::default(),
            reported: 0,
            next_warning: Instant::now(),
            next_error: Instant::now(),
        };

        sink.write(b"lost\nlost\n");
        sink.output = file.try_clone().unwrap();
        sink.write(b"whole\n");

        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, " half\nwhole\n");
        assert_eq!(sink.dropped.get(), 2);
    }

    #[test]
    fn a_disk_that_is_full_for_a_while_costs_whole_lines_and_the_others_are_written() {
        const CHILD: &str = "VESTIBULE_TEST_SMALL_DISK";
        if let Some(disk) = std::env::var_os(CHILD) {
            return fill(Path::new(&disk));
        }
        // A disk of its own, which nobody else sees and which goes with its process.
        let disk = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=256k tmpfs \"$1\" && exec \"$0\" --exact --nocapture \"$2\"";
        let name = concat!(
            "telemetry::access_log::writer::tests::",
            "a_disk_that_is_full_for_a_while_costs_whole_lines_and_the_others_are_written"
        );
        let child = std::process::Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script])
            .args([std::env::current_exe().unwrap().as_os_str(), disk.path().as_os_str(), name.as_ref()])
            .env(CHILD, disk.path())
            .output();
        match child {
            Ok(child) => {
                let told = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
                let forbidden = told.contains("unshare failed") || told.contains("permission denied");
                if forbidden && std::env::var_os("CI").is_none() {
                    eprintln!("skipped: {told}");
                } else {
                    assert!(child.status.success() && told.contains("1 passed"), "{told}");
                }
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "unshare: {error}");
                eprintln!("skipped: unshare: {error}");
            }
        }
    }

    /// Logs while `disk` has room, while it has not, and when it has again.
    fn fill(disk: &Path) {
        let dropped = Counter::default();
        let (path, ballast) = (disk.join("access.log"), disk.join("ballast"));
        let log = AccessLog::start(append(&path), dropped.clone()).unwrap();
        let (writer, format) = (log.writer(), numbered());
        let mut logged = 0;
        let mut log_some = |count| {
            for _ in 0..count {
                writer.log(&format, &record("one", logged));
                logged += 1;
            }
            logged
        };

        log_some(1000);
        wait(|| fs::read_to_string(&path).unwrap().ends_with("one 999 end\n"));
        // All but the rest of a page: the last line that fits is cut.
        let filled = fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        log_some(5000);
        wait(|| dropped.get() > 0 && lock(&log.buffers).iter().all(|buffer| lock(buffer).is_empty()));
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.ends_with('\n'), "no line was cut: this shows less than it should");

        fs::remove_file(&ballast).unwrap();
        let all = log_some(100);
        log.shutdown(SOON).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        let numbers: Vec<u64> = text
            .lines()
            .map(|line| {
                let number = line.strip_prefix("one ").and_then(|line| line.strip_suffix(" end"));
                number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("not a line: {line}"))
            })
            .collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "twice, or out of order");
        assert_eq!(numbers.last(), Some(&(all - 1)), "not written again");
        assert_eq!(numbers.len() as u64 + dropped.get(), all);
    }

    #[test]
    fn the_buffer_of_a_writer_that_is_gone_is_given_up_once_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = AccessLog::start(append(file.path()), Counter::default()).unwrap();
        let writer = log.writer();
        writer.log(&numbered(), &record("one", 1));
        drop(writer);

        wait(|| lock(&log.buffers).is_empty());

        assert_eq!(fs::read_to_string(file.path()).unwrap(), "one 1 end\n");
    }
}
