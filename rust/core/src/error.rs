//! The one error type: what a peer can do wrong, by the code it is answered with, and what a caller can.

use std::fmt;

/// Why something was refused. Every variant but `Argument` is the peer's doing and carries a code of the error table;
/// the text is fixed, for logs and the local user, and never holds anything that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes do not have the documented form.
    Malformed(&'static str),
    /// A documented size limit is exceeded.
    TooLarge(&'static str),
    /// This version does not know that version, suite or kind.
    Unsupported(&'static str),
    /// It is not for this side or this state.
    Unexpected(&'static str),
    /// A signature does not verify.
    BadSignature,
    /// A record did not open.
    BadRecord,
    /// The device lacks the capability.
    Forbidden,
    /// There is no such stream.
    UnknownStream,
    /// The stream does not hold a position that the event names.
    UnknownPosition,
    /// The event would bring a stream or an account above its bound of bytes.
    QuotaExceeded(&'static str),
    /// A time in the event is too far in the future.
    Unprocessable(&'static str),
    /// The caller broke the documented contract; never caused by a peer.
    Argument(&'static str),
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The code of the error table; `internal` for a caller's mistake.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) => "too_large",
            Self::Unsupported(_) => "unsupported",
            Self::Unexpected(_) => "unexpected",
            Self::BadSignature => "bad_signature",
            Self::BadRecord => "bad_record",
            Self::Forbidden => "forbidden",
            Self::UnknownStream => "unknown_stream",
            Self::UnknownPosition => "unknown_position",
            Self::QuotaExceeded(_) => "quota_exceeded",
            Self::Unprocessable(_) => "unprocessable",
            Self::Argument(_) => "internal",
        }
    }

    /// One fixed sentence that says what was wrong.
    pub const fn detail(&self) -> &'static str {
        match self {
            Self::Malformed(detail)
            | Self::TooLarge(detail)
            | Self::Unsupported(detail)
            | Self::Unexpected(detail)
            | Self::QuotaExceeded(detail)
            | Self::Unprocessable(detail)
            | Self::Argument(detail) => detail,
            Self::BadSignature => "the signature does not verify",
            Self::BadRecord => "the record did not open",
            Self::Forbidden => "the device lacks the capability",
            Self::UnknownStream => "there is no such stream",
            Self::UnknownPosition => "the stream does not hold the position that the event names",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.code(), self.detail())
    }
}

impl std::error::Error for Error {}
