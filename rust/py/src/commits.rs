//! Batches of what is remembered, decided and committed on a thread that takes the GIL for nothing (docs/adr/0368).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use keepstep_core::ingest::{Ingested as CoreIngested, Submission as CoreSubmission};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::events::Submission;
use crate::flight::{Flight, State, Statements, has_arrived};
use crate::ingest::Ingested;
use crate::remembered::{RememberedAccounts, RememberedHeads, decide};

/// A thread, one batch at a time.
#[pyclass(frozen, module = "keepstep._keepstep")]
pub(crate) struct Committer {
    jobs: Sender<Job>,
    done: Mutex<Receiver<Done>>,
    /// Readable while something is done.
    woken: UnixStream,
    busy: AtomicBool,
}

/// One batch and where it goes.
struct Job {
    submissions: Vec<CoreSubmission>,
    now_ms: u64,
    received_at_ms_max: u64,
    generation: u64,
    descriptor: RawFd,
    timeout: Duration,
    statements: Statements,
    held: Held,
}

/// What is Python's: it goes back with what was done, for only who holds the GIL lets go of it at once.
struct Held {
    heads: Py<RememberedHeads>,
    accounts: Py<RememberedAccounts>,
    probe: Option<Py<PyAny>>,
    /// Kept alive, so that the descriptor stays the socket's.
    _connection: Py<PyAny>,
}

struct Done {
    result: Result<Option<Committed>, Failure>,
    held: Held,
}

struct Committed {
    ingested: CoreIngested,
    statements: Statements,
    /// Where its outcome takes a closer look.
    flight: Option<State>,
}

enum Failure {
    Core(keepstep_core::Error),
    Probe(PyErr),
}

impl From<keepstep_core::Error> for Failure {
    fn from(error: keepstep_core::Error) -> Self {
        Self::Core(error)
    }
}

type Taken = Option<(Py<Ingested>, Option<Flight>)>;

#[pymethods]
impl Committer {
    #[new]
    fn new() -> PyResult<Self> {
        let (woken, wake) = UnixStream::pair()?;
        let (jobs, to_do) = channel();
        let (finished, done) = channel();
        thread::Builder::new().name("keepstep commit".into()).spawn(move || work(&to_do, &finished, &wake))?;
        Ok(Self { jobs, done: Mutex::new(done), woken, busy: AtomicBool::new(false) })
    }

    fn fileno(&self) -> RawFd {
        self.woken.as_raw_fd()
    }

    #[pyo3(signature = (
        submissions, heads, accounts, *, now_ms, received_at_ms_max, generation, connection, descriptor, timeout_s,
        move_heads, copies, probe = None
    ))]
    #[allow(clippy::too_many_arguments)] // keyword-only, as the stub documents them
    fn start(
        &self,
        submissions: Vec<Py<Submission>>,
        heads: Py<RememberedHeads>,
        accounts: Py<RememberedAccounts>,
        now_ms: u64,
        received_at_ms_max: u64,
        generation: u64,
        connection: Py<PyAny>,
        descriptor: RawFd,
        timeout_s: f64,
        move_heads: String,
        copies: BTreeMap<i16, String>,
        probe: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if descriptor < 0 {
            return Err(PyValueError::new_err("not a socket"));
        }
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| PyValueError::new_err("not a time"))?;
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(PyRuntimeError::new_err("a batch is on its way"));
        }
        let job = Job {
            submissions: submissions.iter().map(|submission| submission.get().core.clone()).collect(),
            now_ms,
            received_at_ms_max,
            generation,
            descriptor,
            timeout,
            statements: Statements { move_heads, copies },
            held: Held { heads, accounts, probe, _connection: connection },
        };
        self.jobs.send(job).map_err(|_| PyRuntimeError::new_err("the thread has ended"))
    }

    fn take(&self, py: Python<'_>) -> PyResult<Taken> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
        let Done { result, held } =
            done.map_err(|_| PyRuntimeError::new_err("nothing is done, or the thread has ended"))?;
        (&self.woken).read_exact(&mut [0])?;
        self.busy.store(false, Ordering::Release);
        drop(held);
        let committed = match result {
            Ok(None) => return Ok(None),
            Ok(Some(committed)) => committed,
            Err(Failure::Core(error)) => return Err(error).or_raise(py),
            Err(Failure::Probe(error)) => return Err(error),
        };
        let ingested = Py::new(py, Ingested(committed.ingested))?;
        let flight =
            committed.flight.map(|state| Flight::on_its_way(ingested.clone_ref(py), committed.statements, state));
        Ok(Some((ingested, flight)))
    }
}

/// The thread: until nobody can hand anything in.
fn work(jobs: &Receiver<Job>, finished: &Sender<Done>, mut wake: &UnixStream) {
    while let Ok(job) = jobs.recv() {
        let result = job.run();
        if finished.send(Done { result, held: job.held }).is_err() || wake.write_all(&[0]).is_err() {
            return;
        }
    }
}

impl Job {
    /// Decides and commits; `None` where it does not go this way, and nothing was sent.
    fn run(&self) -> Result<Option<Committed>, Failure> {
        let until = Instant::now() + self.timeout;
        let (heads, accounts) = (self.held.heads.get(), self.held.accounts.get());
        let decided =
            decide(&self.submissions, heads, accounts, self.now_ms, self.received_at_ms_max, self.generation)?;
        let Some(ingested) = decided else { return Ok(None) };
        // SAFETY: the connection is kept alive until this is done, and nobody else uses or closes it meanwhile.
        #[allow(unsafe_code)]
        let socket = unsafe { BorrowedFd::borrow_raw(self.descriptor) };
        // A server that says something unasked may be about to go: nobody can tell of a flight that did not arrive.
        if has_arrived(socket) {
            return Ok(None);
        }
        self.probe("before_commit")?;
        let statements = self.statements.of_classes(&ingested);
        let mut flight = State::new(&statements);
        flight.load(&ingested, &statements)?;
        let plainly = matches!(flight.fly(socket, Some(until)), Ok(true)) && flight.is_committed_plainly();
        if plainly {
            heads.keep_moved(&ingested, self.generation);
            self.probe("after_commit")?;
        }
        Ok(Some(Committed { ingested, statements, flight: (!plainly).then_some(flight) }))
    }

    fn probe(&self, point: &str) -> Result<(), Failure> {
        let Some(probe) = &self.held.probe else { return Ok(()) };
        Python::attach(|py| probe.call1(py, (point,))).map(drop).map_err(Failure::Probe)
    }
}
