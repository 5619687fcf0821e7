//! Bounds of what is stored, in bytes of header, signature and payload (docs/adr/0220).

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::header::Kind;

/// What events that bound, empty or explain a stream may take beyond a bound of bytes: a full stream can still be freed.
pub const CONTROL_BYTES: u64 = 1024 * 1024;
/// The bound of `$devices` and of `$keys`, bytes each: whatever the account holds, they have this to themselves.
pub const RESERVED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bounds of bytes beside those that streams have.
#[derive(Clone, Debug, Default)]
pub struct Rooms {
    /// What accounts may still store outside `$devices` and `$keys`, by `user_pk`; without a bound where it is missing.
    pub by_user: HashMap<i64, i64>,
    /// Whether the events go beyond every bound: those that take a device's access away.
    pub essential: bool,
}

impl Rooms {
    /// What the event takes, where the account has it. Events that free a stream may go `CONTROL_BYTES` below nothing.
    pub fn check(&self, user_pk: i64, kind: Kind, bytes: u64) -> Result<()> {
        let Some(room) = self.by_user.get(&user_pk).filter(|_| !kind.is_reserved()) else {
            return Ok(());
        };
        let needed = i64::try_from(bytes).map_err(|_| Error::Argument("an event is above 2^63 - 1 bytes"))?;
        let beyond = if kind.is_control() { CONTROL_BYTES.cast_signed() } else { 0 };
        if needed > room.saturating_add(beyond) {
            return Err(Error::QuotaExceeded("the account has used up its bytes"));
        }
        Ok(())
    }

    /// Counts what is stored.
    pub fn take(&mut self, user_pk: i64, kind: Kind, bytes: u64) {
        if let Some(room) = self.by_user.get_mut(&user_pk).filter(|_| !kind.is_reserved()) {
            *room = room.saturating_sub_unsigned(bytes);
        }
    }
}

/// The stream's own bound; `$devices` and `$keys` have one that no policy sets.
pub fn check_stream(bytes_max: Option<u64>, stored_bytes: u64, kind: Kind, bytes: u64) -> Result<()> {
    let bound = if kind.is_reserved() { Some(RESERVED_BYTES_MAX) } else { bytes_max };
    let Some(bound) = bound else { return Ok(()) };
    let beyond = if kind.is_control() { CONTROL_BYTES } else { 0 };
    if stored_bytes.saturating_add(bytes) > bound.saturating_add(beyond) {
        return Err(Error::QuotaExceeded("the stream has used up its bytes"));
    }
    Ok(())
}
