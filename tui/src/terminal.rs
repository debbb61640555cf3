//! The terminal as a resource: taken whole, and given back on every way out: leaving, failing, panicking, suspending or
//! being told to end.

use crate::Error;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture, Event,
};
use ratatui::crossterm::execute;
use ratatui::layout::{Position, Rect};
use ratatui::{DefaultTerminal, Frame};
use std::io::stdout;
use std::time::Duration;

fn failed(attempt: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Terminal { attempt, source }
}

/// The terminal in raw mode on its alternate screen; dropping it restores the shell's.
pub struct Screen {
    /// None once it is restored.
    terminal: Option<DefaultTerminal>,
    mouse: bool,
}

impl Screen {
    /// Also hooks panics, so that their message is not painted into the alternate screen.
    pub fn open() -> Result<Screen, Error> {
        Screen::open_with(false)
    }

    /// `mouse` asks the terminal to tell of the wheel.
    pub fn open_with(mouse: bool) -> Result<Screen, Error> {
        let terminal = match ratatui::try_init() {
            Ok(terminal) => terminal,
            Err(source) => {
                let _ = ratatui::try_restore();
                return Err(Error::Terminal { attempt: "take over", source });
            }
        };
        let screen = Screen { terminal: Some(terminal), mouse };
        // Pasted text must not act as keys.
        execute!(stdout(), EnableBracketedPaste).map_err(failed("take over"))?;
        if mouse {
            execute!(stdout(), EnableMouseCapture).map_err(failed("take over"))?;
        }
        Ok(screen)
    }

    pub fn draw(&mut self, paint: impl FnOnce(&mut Frame<'_>)) -> Result<(), Error> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        terminal.draw(paint).map(|_| ()).map_err(failed("draw on"))
    }

    /// The next draw paints every cell. (`Terminal::clear` would ask the terminal where its cursor is, and fail after
    /// two seconds on one that does not answer.)
    pub fn repaint(&mut self) -> Result<(), Error> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        let size = terminal.size().map_err(failed("measure"))?;
        terminal.resize(Rect::from((Position::ORIGIN, size))).map_err(failed("clear"))
    }

    pub fn close(mut self) -> Result<(), Error> {
        self.restore().map_err(failed("restore"))
    }

    /// Gives the terminal to the shell, stops the process, and takes the terminal again when it is continued.
    pub fn suspend(self, signals: &Signals) -> Result<Screen, Error> {
        let mouse = self.mouse;
        self.close()?;
        signals.stop().map_err(failed("suspend"))?;
        Screen::open_with(mouse)
    }

    fn restore(&mut self) -> std::io::Result<()> {
        let Some(mut terminal) = self.terminal.take() else { return Ok(()) };
        if self.mouse {
            let _ = execute!(stdout(), DisableMouseCapture);
        }
        let paste = execute!(stdout(), DisableBracketedPaste);
        let cursor = terminal.show_cursor();
        if cursor.is_err() {
            // Dropped, it would try again and complain on stderr, which panics where stderr is gone too.
            std::mem::forget(terminal);
        }
        ratatui::try_restore().and(paste).and(cursor)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is no one left to tell if this fails too.
        if std::thread::panicking() {
            // The hook has restored the rest; once more would move the cursor back over its message.
            let _ = execute!(stdout(), DisableBracketedPaste);
            if self.mouse {
                let _ = execute!(stdout(), DisableMouseCapture);
            }
        } else {
            let _ = self.restore();
        }
    }
}

/// What came from the person within a while.
pub enum Input {
    Event(Event),
    Nothing,
    /// The terminal is gone, as when a connection breaks.
    Gone,
}

/// Waits for input for at most `timeout`, or until a signal.
pub fn input(timeout: Duration) -> Result<Input, Error> {
    // First what has been read but not handed out, then what arrives.
    for wait in [Duration::ZERO, timeout] {
        // Crossterm's reader never returns from a terminal that has hung up, so it must not be asked then.
        if hung_up(wait).map_err(failed("wait for"))? {
            return Ok(Input::Gone);
        }
        if event::poll(Duration::ZERO).map_err(failed("read from"))? {
            return Ok(Input::Event(event::read().map_err(failed("read from"))?));
        }
    }
    Ok(Input::Nothing)
}

#[cfg(unix)]
use unix::hung_up;

#[cfg(unix)]
pub use unix::Signals;

#[cfg(unix)]
mod unix {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;
    use signal_hook::consts::{SIGHUP, SIGTERM, SIGTSTP};
    use signal_hook::{SigId, flag, low_level};
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// Waits for input, a signal or the time; tells whether the terminal on stdin is gone.
    pub fn hung_up(timeout: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Signals as flags; when dropped, they do again what they do by default.
    pub struct Signals {
        end: Arc<AtomicBool>,
        stop: Arc<AtomicBool>,
        over: Arc<AtomicBool>,
        flags: Vec<SigId>,
    }

    impl Signals {
        pub fn listen() -> io::Result<Signals> {
            let mut signals =
                Signals { end: Arc::default(), stop: Arc::default(), over: Arc::default(), flags: Vec::new() };
            for (signal, told) in [(SIGTERM, &signals.end), (SIGHUP, &signals.end), (SIGTSTP, &signals.stop)] {
                // A handler once set cannot be unset, only be made to do the default.
                flag::register_conditional_default(signal, signals.over.clone())?;
                let id = flag::register(signal, told.clone())?;
                signals.flags.push(id);
            }
            Ok(signals)
        }

        pub fn told_to_end(&self) -> bool {
            self.end.load(Ordering::Relaxed)
        }

        pub fn told_to_stop(&self) -> bool {
            self.stop.swap(false, Ordering::Relaxed)
        }

        pub fn stop(&self) -> io::Result<()> {
            low_level::emulate_default_handler(SIGTSTP)
        }
    }

    impl Drop for Signals {
        fn drop(&mut self) {
            self.over.store(true, Ordering::Relaxed);
            for id in self.flags.drain(..) {
                low_level::unregister(id);
            }
        }
    }
}

#[cfg(not(unix))]
use elsewhere::hung_up;

#[cfg(not(unix))]
pub use elsewhere::Signals;

#[cfg(not(unix))]
mod elsewhere {
    use std::time::Duration;

    pub fn hung_up(timeout: Duration) -> std::io::Result<bool> {
        ratatui::crossterm::event::poll(timeout).map(|_| false)
    }

    /// There are no such signals here.
    pub struct Signals;

    impl Signals {
        pub fn listen() -> std::io::Result<Signals> {
            Ok(Signals)
        }

        pub fn told_to_end(&self) -> bool {
            false
        }

        pub fn told_to_stop(&self) -> bool {
            false
        }

        pub fn stop(&self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
