//! The hot transaction on the socket of an open connection, in one write and without the GIL (docs/adr/0270).

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keepstep_core::flight::{Answers, Statements as CoreStatements, encode};
use keepstep_core::ingest::Ingested as CoreIngested;
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::buffer::bytes;
use crate::error::OrRaise;
use crate::ingest::Ingested;

/// What is received at a time: all the answers to a flight are smaller in general.
const RECEIVE_BYTES: usize = 4096;

/// One transaction on its way.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Flight {
    ingested: Py<Ingested>,
    statements: Statements,
    state: Mutex<State>,
}

/// Names of the prepared statements, the copies by retention class.
pub(crate) struct Statements {
    pub(crate) move_heads: String,
    pub(crate) copies: BTreeMap<i16, String>,
}

impl Statements {
    /// Those that a batch takes.
    pub(crate) fn of_classes(&self, ingested: &CoreIngested) -> Self {
        let is_taken = |class: i16| ingested.moved.iter().any(|moved| moved.new.retention_class == class);
        let copies = self.copies.iter().filter(|(class, _)| is_taken(**class));
        Self {
            move_heads: self.move_heads.clone(),
            copies: copies.map(|(class, name)| (*class, name.clone())).collect(),
        }
    }
}

/// How far it has come.
pub(crate) struct State {
    /// What is sent; made where the GIL is not held.
    output: Option<Vec<u8>>,
    sent: usize,
    /// Received and not yet a whole message.
    input: Vec<u8>,
    answers: Answers,
    /// Why the connection is of no use any more.
    lost: Option<Lost>,
}

/// Why a connection is of no use any more.
#[derive(Clone)]
pub(crate) struct Lost(String);

impl From<Errno> for Lost {
    fn from(error: Errno) -> Self {
        Self(std::io::Error::from(error).to_string())
    }
}

#[pymethods]
impl Flight {
    #[new]
    #[pyo3(signature = (ingested, *, move_heads, copies))]
    fn new(ingested: Py<Ingested>, move_heads: String, copies: BTreeMap<i16, String>) -> Self {
        let statements = Statements { move_heads, copies };
        let state = State::new(&statements);
        Self::on_its_way(ingested, statements, state)
    }

    fn fly(&self, py: Python<'_>, descriptor: RawFd, timeout_s: Option<f64>) -> PyResult<bool> {
        if descriptor < 0 {
            return Err(PyValueError::new_err("not a socket"));
        }
        let timeout = timeout_s.map(Duration::try_from_secs_f64).transpose();
        let until = timeout.map_err(|_| PyValueError::new_err("not a time"))?.map(|timeout| Instant::now() + timeout);
        // SAFETY: the caller, which has the connection to itself, keeps it open until this returns.
        #[allow(unsafe_code)]
        let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
        py.detach(|| {
            let mut state = self.state();
            state.load(&self.ingested.get().0, &self.statements)?;
            Ok(state.fly(socket, until))
        })
        .or_raise(py)?
        .map_err(|Lost(detail)| PyConnectionError::new_err(detail))
    }

    #[getter]
    fn xid(&self) -> Option<String> {
        self.state().answers.xid.clone()
    }

    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let state = self.state();
        let Some(fields) = &state.answers.error else { return Ok(None) };
        let by_code = PyDict::new(py);
        for (code, value) in fields {
            let value: Bound<'py, PyBytes> = bytes(py, value);
            by_code.set_item(code, value)?;
        }
        Ok(Some(by_code))
    }

    #[getter]
    fn warned(&self) -> bool {
        self.state().answers.warned
    }

    #[getter]
    fn in_step(&self) -> bool {
        let state = self.state();
        state.answers.over && state.input.is_empty()
    }
}

impl Flight {
    /// One that has begun, perhaps.
    pub(crate) fn on_its_way(ingested: Py<Ingested>, statements: Statements, state: State) -> Self {
        Self { ingested, statements, state: Mutex::new(state) }
    }

    /// A panic while it is held leaves a connection that nobody uses again.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Before anything is sent.
    pub(crate) fn new(statements: &Statements) -> Self {
        let answers = Answers::new(statements.copies.len());
        Self { output: None, sent: 0, input: Vec::new(), answers, lost: None }
    }

    /// Writes what is sent, once.
    pub(crate) fn load(&mut self, ingested: &CoreIngested, statements: &Statements) -> keepstep_core::Result<()> {
        if self.output.is_none() {
            let copies: Vec<_> = statements.copies.iter().map(|(class, name)| (*class, &**name)).collect();
            let statements = CoreStatements { move_heads: &statements.move_heads, copies: &copies };
            self.output = Some(encode(ingested, &statements)?);
        }
        Ok(())
    }

    /// Whether everything was answered as it is in general: committed, without a word.
    pub(crate) fn is_committed_plainly(&self) -> bool {
        self.answers.over && self.answers.error.is_none() && !self.answers.warned && self.input.is_empty()
    }

    /// Sends and receives until everything is answered; `false` where that took longer. What is lost stays lost.
    pub(crate) fn fly(&mut self, socket: BorrowedFd<'_>, until: Option<Instant>) -> Result<bool, Lost> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        self.go_on(socket, until).inspect_err(|lost| self.lost = Some(lost.clone()))
    }

    fn go_on(&mut self, socket: BorrowedFd<'_>, until: Option<Instant>) -> Result<bool, Lost> {
        loop {
            self.send(socket)?;
            // Also before everything is sent: a server that cannot get rid of its answers would stop reading.
            self.receive(socket)?;
            if self.answers.over {
                return Ok(true);
            }
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, !self.unsent().is_empty());
            let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
            if !wait(socket, wanted, remaining)? {
                return Ok(false);
            }
        }
    }

    fn unsent(&self) -> &[u8] {
        self.output.as_deref().and_then(|output| output.get(self.sent..)).unwrap_or_default()
    }

    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<(), Lost> {
        while !self.unsent().is_empty() {
            match send(socket, self.unsent(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // What the server said before it went may still be there.
                Err(Errno::PIPE | Errno::CONNRESET) => self.sent = usize::MAX,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<(), Lost> {
        let mut chunk = [0; RECEIVE_BYTES];
        while !self.answers.over {
            match recv(socket, &mut chunk, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Lost("the server closed the connection".into())),
                Ok((_, count)) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    let taken = self.answers.take(&self.input).map_err(|error| Lost(error.0.into()))?;
                    self.input.drain(..taken);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether there is something to be received, or to be said of the connection, that nobody asked for.
pub(crate) fn has_arrived(socket: BorrowedFd<'_>) -> bool {
    !matches!(wait(socket, PollFlags::IN, Some(Duration::ZERO)), Ok(false))
}

/// Whether something can be done, within `remaining`; `None`: however long it takes.
fn wait(socket: BorrowedFd<'_>, wanted: PollFlags, remaining: Option<Duration>) -> Result<bool, Lost> {
    let timeout = remaining.map(|remaining| Timespec {
        tv_sec: i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: remaining.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::from_borrowed_fd(socket, wanted)], timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
