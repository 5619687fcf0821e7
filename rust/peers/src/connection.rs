//! What a peer's adaptor does for the load: everything else is the same for all of them.

use std::sync::Arc;

use anyhow::Result;

use crate::arguments::{Arguments, Target};
use crate::event::Payloads;

/// What came from a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// The server says what it says when it has taken the event with this index.
    Acknowledged(usize),
    /// It has not taken it.
    Refused(String),
    /// Somebody's event: connection and index of its author.
    Delivered(usize, usize),
    /// Everything that was stored has been sent.
    CaughtUp,
}

/// Whom a connection is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    /// Nobody.
    None,
    /// The other two of its group, from now on.
    Others,
    /// One connection, from the first event on.
    Everything { author: usize },
}

/// One connection to a peer.
pub(crate) trait Connection: Send + Sized + 'static {
    /// What all connections of a run have in common.
    type Fleet: Send + Sync + 'static;

    /// Makes what they have in common, and everything that costs time and does not belong into what is measured.
    fn prepare(
        arguments: &Arguments,
        target: &Target,
        payloads: Arc<Payloads>,
    ) -> impl Future<Output = Result<Self::Fleet>> + Send;

    /// Connects; the subscription holds when it returns.
    fn open(
        fleet: Arc<Self::Fleet>,
        target: &Target,
        connection: usize,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// Puts the event with this index into what is sent next.
    fn publish(&mut self, index: usize) -> Result<()>;

    /// Sends what was put there. Not cancel-safe.
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Waits until something comes, and appends all that did. Cancel-safe: what was read is kept.
    fn receive(&mut self, came: &mut Vec<Came>) -> impl Future<Output = Result<()>> + Send;
}
