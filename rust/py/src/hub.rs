//! Many devices' sockets in one call: one epoll descriptor that Trio waits on, and no call that blocks.
//!
//! A socket belongs to the hub from `welcome` to `remove` or `discard`. Sockets are watched level-triggered and read once a turn, up to a chunk, so that
//! nobody starves; who is ready has its turn before the kernel is asked again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keepstep_core::incoming::Incoming;
use keepstep_core::websocket::FrameReader;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, acceptfrom_with, shutdown};

use crate::buffer::Input;
use crate::incoming::{RecordReader, opened_list};
use crate::records::{Direction, RecordSealer, add_frames};
use crate::stage::{GONE, Stage};
use crate::unfinished::{Part, Unfinished};

/// Sockets that one turn reads from.
const SOCKETS_MAX: usize = 256;
/// Bytes of messages after which a turn leaves the other sockets to the next one.
const TURN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that a message counts for beside its own: to act on it takes Python's time, however short it is.
const MESSAGE_BYTES: usize = 256;
/// Bytes that one turn reads from a socket.
const CHUNK_BYTES: usize = 64 * 1024;
/// The same of a stranger: it costs no more than this at a time.
const STRANGERS_CHUNK_BYTES: usize = 4 * 1024;
/// Connections that are accepted at a time: others get their turn in between.
const ACCEPTED_MAX: usize = 64;
/// What accepting may say of the connection that came, not of the port: accept(2), "Error handling".
const OF_ONE_CONNECTION: [Errno; 9] = [
    Errno::PERM, // a firewall's rule
    Errno::NETDOWN,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::HOSTDOWN,
    Errno::NONET,
    Errno::HOSTUNREACH,
    Errno::OPNOTSUPP,
    Errno::NETUNREACH,
];
/// Pongs are left out for a peer that takes nothing and has so many bytes waiting.
const PONG_BACKLOG_BYTES_MAX: usize = 64 * 1024;
/// What the end of a peer is called whose message is not whole for too long.
const TIMEOUT: &str = "timeout";

/// One socket.
struct Socket {
    descriptor: OwnedFd,
    stage: Stage,
    reader: FrameReader,
    /// What the reader holds of a message.
    part: Part,
    /// Makes records of what is sent.
    sealer: Option<Direction>,
    /// Frames for the kernel; held only while there are some that it has not taken.
    frames: Vec<u8>,
    /// How many of their bytes it has taken.
    sent: usize,
    is_paused: bool,
    attention: Attention,
    /// Nothing comes or goes any more; it is not watched.
    is_over: bool,
    watched: EventFlags,
}

/// Whether what a peer says is taken. A stranger says one thing after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attention {
    Listening,
    /// Something came: nothing more is taken until it is asked for.
    Heard,
    /// More has come since: it is not watched for.
    Muted,
}

/// What a turn found of one socket.
struct Turn {
    token: u64,
    opened: Vec<Incoming>,
    record_bytes: usize,
    end: Option<&'static str>,
    is_writable: bool,
}

struct Sockets {
    by_token: HashMap<u64, Socket>,
    /// What the kernel said is ready and has not had its turn yet: it would name the same first the next time.
    ready: VecDeque<(u64, EventFlags)>,
    last_token: u64,
    chunk: Vec<u8>,
    unfinished: Unfinished,
}

/// The sockets and the descriptor that watches them.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct SocketHub {
    epoll: OwnedFd,
    sockets: Mutex<Sockets>,
}

type PyTurn<'py> = (u64, Bound<'py, PyList>, usize, Option<&'static str>, bool);

#[pymethods]
impl SocketHub {
    #[new]
    fn new(unfinished_bytes_max: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let sockets = Sockets {
            by_token: HashMap::new(),
            ready: VecDeque::new(),
            last_token: 0,
            chunk: vec![0; CHUNK_BYTES],
            unfinished: Unfinished::new(unfinished_bytes_max),
        };
        Ok(Self { epoll, sockets: Mutex::new(sockets) })
    }

    fn fileno(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Accepts what has come; an error only where nothing has.
    #[staticmethod]
    fn accept(listener: RawFd) -> io::Result<Vec<(RawFd, String)>> {
        // SAFETY: the stub makes the caller keep the socket open meanwhile.
        #[allow(unsafe_code)]
        let listener = unsafe { BorrowedFd::borrow_raw(listener) };
        let mut accepted = Vec::new();
        while accepted.len() < ACCEPTED_MAX {
            match acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((descriptor, Some(address))) => {
                    if let Ok(address) = SocketAddr::try_from(address) {
                        accepted.push((descriptor.into_raw_fd(), address.ip().to_canonical().to_string()));
                    }
                }
                Ok((_, None)) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => break,
                Err(error) if OF_ONE_CONNECTION.contains(&error) => break,
                Err(_) if !accepted.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(accepted)
    }

    fn welcome(&self, descriptor: RawFd) -> io::Result<u64> {
        // SAFETY: the stub makes the caller give a descriptor away that it owns, as `socket.detach` returns it.
        #[allow(unsafe_code)]
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let mut sockets = self.lock();
        let token = sockets.last_token + 1;
        let watched = EventFlags::IN;
        epoll::add(&self.epoll, &descriptor, EventData::new_u64(token), watched)?;
        sockets.last_token = token;
        let socket = Socket {
            descriptor,
            stage: Stage::Request(Vec::new()),
            reader: FrameReader::new(0),
            part: Part::default(),
            sealer: None,
            frames: Vec::new(),
            sent: 0,
            is_paused: false,
            attention: Attention::Listening,
            is_over: false,
            watched,
        };
        sockets.by_token.insert(token, socket);
        Ok(token)
    }

    fn upgraded<'py>(
        &self,
        py: Python<'py>,
        token: u64,
        answer: Input,
        rest: Input,
        message_bytes_max: usize,
    ) -> PyResult<(Bound<'py, PyList>, Option<&'static str>)> {
        let mut sockets = self.lock();
        let socket = sockets.find(token)?;
        (socket.stage, socket.reader) = (Stage::Messages, FrameReader::new(message_bytes_max));
        socket.attention = Attention::Listening;
        socket.frames.extend_from_slice(&answer);
        let mut turn = Turn::new(token);
        if socket.flush().is_err() {
            turn.end = Some(GONE);
        } else {
            socket.take(&rest, &mut turn);
        }
        if turn.end.is_some() || socket.watch(&self.epoll, token).is_err() {
            turn.end = turn.end.or(Some(GONE));
            socket.leave(&self.epoll);
        }
        Ok((opened_list(py, turn.opened)?, turn.end))
    }

    fn listen(&self, token: u64) -> PyResult<()> {
        let mut sockets = self.lock();
        let socket = sockets.find(token)?;
        socket.attention = Attention::Listening;
        Ok(socket.watch(&self.epoll, token).map_err(io::Error::from)?)
    }

    #[pyo3(signature = (token, records, sealer, message_bytes_max))]
    fn begin(
        &self,
        token: u64,
        records: &RecordReader,
        sealer: Option<&Bound<'_, RecordSealer>>,
        message_bytes_max: usize,
    ) -> PyResult<()> {
        let mut sockets = self.lock();
        let socket = sockets.find(token)?;
        socket.stage = Stage::Session(records.0.clone());
        socket.reader.limit(message_bytes_max);
        socket.sealer = sealer.map(|sealer| sealer.get().0.clone());
        socket.attention = Attention::Listening;
        Ok(socket.watch(&self.epoll, token).map_err(io::Error::from)?)
    }

    /// Says the last word, and takes what comes for the peer's.
    fn farewell(&self, token: u64, frame: Input, ended: bool) -> PyResult<bool> {
        let mut sockets = self.lock();
        let socket = sockets.find(token)?;
        socket.frames.extend_from_slice(&frame);
        socket.stage = Stage::Farewell;
        (socket.is_paused, socket.attention) = (false, Attention::Listening);
        let told = socket.flush().and_then(|()| {
            if ended && socket.unsent() == 0 { shutdown(&socket.descriptor, Shutdown::Write) } else { Ok(()) }
        });
        Ok(told.and_then(|()| socket.watch_again(&self.epoll, token)).is_ok())
    }

    fn remove(&self, token: u64) -> PyResult<(RawFd, usize)> {
        let Some(mut socket) = self.lock().take_out(token) else {
            return Err(PyKeyError::new_err(token));
        };
        socket.leave(&self.epoll);
        let unsent = socket.unsent();
        Ok((socket.descriptor.into_raw_fd(), unsent))
    }

    fn discard(&self, token: u64) {
        drop(self.lock().take_out(token)); // whose last descriptor is closed is not watched any more
    }

    fn unsent(&self, token: u64) -> PyResult<usize> {
        Ok(self.lock().find(token)?.unsent())
    }

    fn pause(&self, token: u64, paused: bool) -> io::Result<()> {
        match self.lock().by_token.get_mut(&token) {
            Some(socket) => {
                socket.is_paused = paused;
                Ok(socket.watch(&self.epoll, token)?)
            }
            None => Ok(()),
        }
    }

    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Vec<PyTurn<'py>>> {
        let turns = py.detach(|| self.lock().receive(&self.epoll)).map_err(io::Error::from)?;
        let turn = |Turn { token, opened, record_bytes, end, is_writable }: Turn| {
            Ok((token, opened_list(py, opened)?, record_bytes, end, is_writable))
        };
        turns.into_iter().map(turn).collect()
    }

    fn send(&self, py: Python<'_>, outgoing: Vec<(u64, Vec<Option<Input>>)>) -> Vec<(u64, usize, bool)> {
        py.detach(|| self.lock().send(&self.epoll, &outgoing))
    }
}

impl SocketHub {
    /// A panic while it is held leaves every socket whole, so the lock has no poison to heed.
    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    const fn new(token: u64) -> Self {
        Self { token, opened: Vec::new(), record_bytes: 0, end: None, is_writable: false }
    }

    /// Whether there is anything to tell.
    fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.end.is_none() && !self.is_writable
    }
}

impl Sockets {
    fn find(&mut self, token: u64) -> PyResult<&mut Socket> {
        self.by_token.get_mut(&token).ok_or_else(|| PyKeyError::new_err(token))
    }

    /// A socket that is the hub's no more.
    fn take_out(&mut self, token: u64) -> Option<Socket> {
        let mut socket = self.by_token.remove(&token)?;
        self.unfinished.note(token, &mut socket.part, 0, false);
        Some(socket)
    }

    /// Ends those whose messages began first, until the others hold no more than they may.
    fn end_slowest(&mut self, epoll: &OwnedFd, turns: &mut Vec<Turn>) {
        while let Some(token) = self.unfinished.surplus() {
            let Some(socket) = self.by_token.get_mut(&token) else { return };
            socket.reader.give_up();
            self.unfinished.note(token, &mut socket.part, 0, false);
            if !socket.is_over {
                socket.leave(epoll);
                turns.push(Turn { end: Some(TIMEOUT), ..Turn::new(token) });
            }
        }
    }

    /// Everything that is ready, from each socket at most a chunk.
    fn receive(&mut self, epoll: &OwnedFd) -> Result<Vec<Turn>, Errno> {
        if self.ready.is_empty() {
            self.find_ready(epoll)?;
        }
        let mut turns = Vec::with_capacity(self.ready.len());
        let mut record_bytes = 0;
        while record_bytes < TURN_BYTES_MAX
            && let Some((token, flags)) = self.ready.pop_front()
        {
            let Some(socket) = self.by_token.get_mut(&token).filter(|socket| !socket.is_over) else { continue };
            let mut turn = Turn::new(token);
            if flags.contains(EventFlags::OUT) && socket.unsent() > 0 {
                match socket.flush() {
                    Ok(()) => turn.is_writable = socket.unsent() == 0,
                    Err(_) => turn.end = Some(GONE),
                }
            }
            let is_gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            if turn.end.is_none() && (is_gone || flags.contains(EventFlags::IN)) {
                if socket.attention != Attention::Listening {
                    socket.attention = Attention::Muted;
                }
                if socket.is_paused || socket.attention == Attention::Muted {
                    turn.end = is_gone.then_some(GONE); // a reset: what was not read is lost either way
                } else {
                    socket.receive(&mut self.chunk, &mut turn);
                    let (held, anew) = (socket.reader.unfinished_bytes(), !turn.opened.is_empty());
                    self.unfinished.note(token, &mut socket.part, held, anew);
                }
            }
            if turn.end.is_none() && socket.watch(epoll, token).is_err() {
                turn.end = Some(GONE); // it alone: what the others sent is opened already
            }
            if turn.end.is_some() {
                socket.leave(epoll);
            }
            record_bytes += turn.record_bytes + turn.opened.len() * MESSAGE_BYTES;
            if !turn.is_empty() {
                turns.push(turn);
            }
            self.end_slowest(epoll, &mut turns);
        }
        Ok(turns)
    }

    /// Asks the kernel, which hands ready sockets out in turns.
    fn find_ready(&mut self, epoll: &OwnedFd) -> Result<(), Errno> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; SOCKETS_MAX];
        match epoll::wait(epoll, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(Errno::INTR) => {}
            result => self.ready.extend(result?.0.iter().map(|event| (event.data.u64(), event.flags))),
        }
        Ok(())
    }

    /// Sends to each as much as goes; gives those for whom something is left, or who are gone.
    fn send(&mut self, epoll: &OwnedFd, outgoing: &[(u64, Vec<Option<Input>>)]) -> Vec<(u64, usize, bool)> {
        let mut left = Vec::new();
        for (token, messages) in outgoing {
            let Some(socket) = self.by_token.get_mut(token) else { continue };
            if socket.is_over {
                continue;
            }
            if add_frames(socket.sealer.as_ref(), messages, &mut socket.frames).is_err() {
                // A record that cannot be made must not be stepped over: nothing of this socket's goes any more.
                socket.leave(epoll);
                left.push((*token, 0, true));
                continue;
            }
            if socket.watched.contains(EventFlags::OUT) {
                left.push((*token, socket.unsent(), false)); // its turn comes when the kernel says so
                continue;
            }
            match socket.flush() {
                Ok(()) if socket.unsent() == 0 => {}
                Ok(()) if socket.watch(epoll, *token).is_ok() => left.push((*token, socket.unsent(), false)),
                Ok(()) | Err(_) => {
                    socket.leave(epoll);
                    left.push((*token, 0, true));
                }
            }
        }
        left
    }
}

impl Socket {
    /// One chunk of what the peer sent, with its records opened.
    fn receive(&mut self, chunk: &mut [u8], turn: &mut Turn) {
        let most = if self.stage.is_strangers() { STRANGERS_CHUNK_BYTES } else { CHUNK_BYTES };
        match rustix::net::recv(&self.descriptor, &mut chunk[..most], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => turn.end = Some(GONE),
            Ok((_, bytes)) => self.take(&chunk[..bytes], turn),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => turn.end = Some(GONE),
        }
    }

    /// What came, and answers to what the frames ask.
    fn take(&mut self, data: &[u8], turn: &mut Turn) {
        let mut chunk = self.stage.take(&mut self.reader, data);
        (turn.opened, turn.record_bytes, turn.end) = (chunk.opened, chunk.record_bytes, chunk.end);
        if self.stage.is_strangers() && !turn.opened.is_empty() {
            self.attention = Attention::Heard;
        }
        if !chunk.replies.is_empty() && self.unsent() < PONG_BACKLOG_BYTES_MAX {
            let waits = self.unsent() > 0;
            self.frames.append(&mut chunk.replies);
            if !waits && self.flush().is_err() {
                turn.end = turn.end.or(Some(GONE));
            }
        }
    }

    /// Bytes that the kernel has not taken.
    const fn unsent(&self) -> usize {
        self.frames.len() - self.sent
    }

    /// Sends as much as goes without waiting.
    fn flush(&mut self) -> Result<(), Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while self.unsent() > 0 {
            match rustix::net::send(&self.descriptor, &self.frames[self.sent..], flags) {
                Ok(bytes) => self.sent += bytes,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if self.unsent() == 0 {
            (self.frames, self.sent) = (Vec::new(), 0); // an idle socket holds no buffer
        } else if self.sent > self.frames.len() / 2 {
            self.frames.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Has the kernel tell what is of use now.
    fn watch(&mut self, epoll: &OwnedFd, token: u64) -> Result<(), Errno> {
        if self.is_over {
            return Ok(());
        }
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, !self.is_paused && self.attention != Attention::Muted);
        wanted.set(EventFlags::OUT, self.unsent() > 0);
        if wanted != self.watched {
            epoll::modify(epoll, &self.descriptor, EventData::new_u64(token), wanted)?;
            self.watched = wanted;
        }
        Ok(())
    }

    /// The same also where it had ended.
    fn watch_again(&mut self, epoll: &OwnedFd, token: u64) -> Result<(), Errno> {
        if self.is_over {
            epoll::add(epoll, &self.descriptor, EventData::new_u64(token), EventFlags::IN)?;
            (self.is_over, self.watched) = (false, EventFlags::IN);
        }
        self.watch(epoll, token)
    }

    /// It is not watched any more.
    fn leave(&mut self, epoll: &OwnedFd) {
        if !self.is_over {
            self.is_over = true;
            // It fails only for a descriptor that is not watched.
            let _ = epoll::delete(epoll, &self.descriptor);
        }
    }
}
