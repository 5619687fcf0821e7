//! What keepstep's load generator and the one for other servers have in common: how long a run is, when what of it is
//! sent, and what is measured.

pub mod measured;
pub mod pace;
pub mod schedule;
