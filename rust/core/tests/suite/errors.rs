//! Errors: the code a peer is answered with, and a sentence for the log.

use keepstep_core::Error;

#[test]
fn every_error_has_its_code_and_a_sentence() {
    let errors = [
        (Error::Malformed("why"), "malformed: why"),
        (Error::TooLarge("why"), "too_large: why"),
        (Error::Unsupported("why"), "unsupported: why"),
        (Error::Unexpected("why"), "unexpected: why"),
        (Error::BadSignature, "bad_signature: the signature does not verify"),
        (Error::BadRecord, "bad_record: the record did not open"),
        (Error::Forbidden, "forbidden: the device lacks the capability"),
        (Error::UnknownStream, "unknown_stream: there is no such stream"),
        (Error::Unprocessable("why"), "unprocessable: why"),
        (Error::Argument("why"), "internal: why"),
    ];
    for (error, text) in errors {
        assert_eq!(error.to_string(), text);
    }
}
