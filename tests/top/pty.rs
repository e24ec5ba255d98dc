//! A program on a terminal of its own (pty(7)), and what a person would see there.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::LIMIT;

/// A program on a terminal of 24 lines of 80 characters.
pub struct Pty {
    child: Child,
    ours: File,
    /// The program's side, held open so that its settings can be looked at after the end.
    theirs: File,
    before: Settings,
    emulator: Arc<Mutex<vt100::Parser>>,
}

/// What is on the screen.
#[derive(Debug, Clone)]
pub struct Screen {
    /// Lines without blanks at their ends.
    pub rows: Vec<String>,
    /// The program's own screen is shown, not the one from before it.
    pub is_full: bool,
    /// There is no cursor.
    pub hides_cursor: bool,
    /// Something has another colour than the default one.
    pub is_coloured: bool,
}

impl Screen {
    /// A line; empty where there is none.
    pub fn row(&self, number: usize) -> &str {
        self.rows.get(number).map_or("", String::as_str)
    }
}

impl fmt::Display for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rows.join("\n"))
    }
}

/// The part of a terminal's settings that programs change: input, output, control, local modes.
#[derive(Debug, PartialEq, Eq)]
struct Settings([libc::tcflag_t; 4]);

impl Settings {
    fn of(terminal: &File) -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr(3) fills the structure when it returns 0, which is asserted.
        let now = unsafe {
            assert_eq!(
                libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()),
                0
            );
            settings.assume_init()
        };
        Self([now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag])
    }
}

fn number(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).expect("a window has lines and columns")
}

fn window(rows: u16, columns: u16) -> libc::winsize {
    libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Pty {
    /// Starts the program.
    pub fn run(command: &mut Command) -> Self {
        let (mut ours, mut theirs) = (-1, -1);
        let size = window(24, 80);
        // SAFETY: openpty(3) reads `size` and writes two descriptors, which are ours alone when it
        // returns 0.
        let (ours, theirs) = unsafe {
            let null = std::ptr::null_mut();
            let done = libc::openpty(&mut ours, &mut theirs, null, std::ptr::null(), &size);
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
            (File::from_raw_fd(ours), File::from_raw_fd(theirs))
        };
        let before = Settings::of(&theirs);
        let end = || Stdio::from(theirs.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and touch no memory of ours; the
        // standard input is the terminal at that time.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        let emulator = Arc::new(Mutex::new(vt100::Parser::default()));
        let (mut output, fed) = (
            ours.try_clone().expect("a descriptor"),
            Arc::clone(&emulator),
        );
        // Ends with the last descriptor of the other side.
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut chunk) {
                fed.lock().unwrap().process(&chunk[..count]);
            }
        });
        Self {
            child,
            ours,
            theirs,
            before,
            emulator,
        }
    }

    /// Presses keys, as the bytes that a terminal sends for them.
    pub fn types(&mut self, keys: &str) {
        self.ours
            .write_all(keys.as_bytes())
            .expect("the terminal takes keys");
    }

    /// What is on the screen at the moment.
    pub fn screen(&self) -> Screen {
        let emulator = self.emulator.lock().unwrap();
        let screen = emulator.screen();
        let (rows, columns) = screen.size();
        let cells = (0..rows.get())
            .flat_map(|row| (0..columns.get()).filter_map(move |column| screen.cell(row, column)));
        let mut coloured = false;
        for cell in cells {
            coloured |= cell.fgcolor() != vt100::Color::Default;
        }
        let lines = screen.rows(0, columns.get());
        Screen {
            rows: lines.map(|row| row.trim_end().to_owned()).collect(),
            is_full: screen.alternate_screen(),
            hides_cursor: screen.hide_cursor(),
            is_coloured: coloured,
        }
    }

    /// Waits until the screen shows something; fails the test with what it shows instead.
    #[track_caller]
    pub fn sees(&self, what: &str, shows: impl Fn(&Screen) -> bool) {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if shows(&screen) {
                return;
            }
            assert!(
                started.elapsed() < LIMIT,
                "Not seen: {what}; the screen is:\n{screen}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        // The emulator first: the program draws for the new size at once.
        let mut emulator = self.emulator.lock().unwrap();
        emulator.set_size(number(rows), number(columns));
        let size = window(rows, columns);
        // SAFETY: ioctl(2) with TIOCSWINSZ reads the structure that it is given.
        let done = unsafe { libc::ioctl(self.ours.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill(2) takes two integers; the child has not been waited for, so that the id is
        // its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the program's end; gives its exit status.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let status = until("the program ends", || self.child.try_wait().unwrap());
        assert_eq!(status.signal(), None, "{}", self.screen());
        status.code()
    }

    /// Fails the test unless the terminal is as it was before the program.
    #[track_caller]
    pub fn is_restored(&self) {
        assert_eq!(Settings::of(&self.theirs), self.before);
        self.sees("the screen from before", |screen| {
            !screen.is_full && !screen.hides_cursor
        });
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again until there is an answer; fails the test when none comes in time.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < LIMIT, "Not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
