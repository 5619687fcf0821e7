//! What a batch's submissions are answered, as messages say it (protocol.md section 4, `accepted`).

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ingest::Answer;
use crate::msgpack::{write_array, write_binary, write_integer, write_optional_binary, write_text};

/// What each kind of answer begins with: an array of so many, the first of them its number.
const ACCEPTED_HEAD: [u8; 2] = [0x95, 0];
const DUPLICATE_HEAD: [u8; 2] = [0x94, 1];
const ERROR_HEAD: [u8; 2] = [0x93, 2];

/// What a store has to be asked for cannot be answered yet.
const OPEN: Error = Error::Argument("an answer takes a look at what is stored");

/// The answers to one submission's events, in order, as an array.
pub fn encode(answers: &[Answer]) -> Result<Vec<u8>> {
    let mut output = Vec::with_capacity(answers.len() * 56 + 3);
    write_array(&mut output, answers.len())?;
    for answer in answers {
        write(&mut output, answer)?;
    }
    Ok(output)
}

fn write(output: &mut Vec<u8>, answer: &Answer) -> Result<()> {
    match answer {
        Answer::New { count, first_seq, received_at_ms, chain } => {
            output.extend_from_slice(&ACCEPTED_HEAD);
            write_integer(output, *count);
            write_integer(output, *first_seq);
            write_integer(output, *received_at_ms);
            write_binary(output, chain)
        }
        Answer::Duplicate { seq, stored } => {
            output.extend_from_slice(&DUPLICATE_HEAD);
            write_integer(output, *seq);
            write_optional_binary(output, stored.as_ref().map(|(chain, _)| chain.as_slice()))?;
            match stored {
                Some((_, received_at_ms)) => write_integer(output, *received_at_ms),
                None => output.push(0xc0),
            }
            Ok(())
        }
        Answer::OutOfOrder { last_n, last_hash } => write_refused(output, code(answer)?, Some((*last_n, last_hash))),
        Answer::IdReused { seq, hash } => write_refused(output, code(answer)?, Some((*seq, hash))),
        Answer::Conflict { head_seq, head_chain } => {
            write_refused(output, code(answer)?, Some((*head_seq, head_chain)))
        }
        Answer::Refused(_) | Answer::Lookup { .. } => write_refused(output, code(answer)?, None),
    }
}

fn write_refused(output: &mut Vec<u8>, code: &str, detail: Option<(u64, &[u8; 32])>) -> Result<()> {
    output.extend_from_slice(&ERROR_HEAD);
    write_text(output, code)?;
    let Some((number, hash)) = detail else { return write_array(output, 0) };
    write_array(output, 2)?;
    write_integer(output, number);
    write_binary(output, hash)
}

/// How many events were answered what: `accepted`, `duplicate`, or the code of an error.
pub fn count<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Result<BTreeMap<&'static str, u64>> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        let events = if let Answer::New { count, .. } = answer { *count } else { 1 };
        *counts.entry(code(answer)?).or_default() += events;
    }
    Ok(counts)
}

fn code(answer: &Answer) -> Result<&'static str> {
    match answer {
        Answer::New { .. } => Ok("accepted"),
        Answer::Duplicate { .. } => Ok("duplicate"),
        Answer::OutOfOrder { .. } => Ok("out_of_order"),
        Answer::IdReused { .. } => Ok("id_reused"),
        Answer::Conflict { .. } => Ok("conflict"),
        Answer::Refused(error) => Ok(error.code()),
        Answer::Lookup { .. } => Err(OPEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_form() {
        let chain = [7; 32];
        let answers = [
            Answer::New { count: 2, first_seq: 200, received_at_ms: 70_000, chain },
            Answer::Duplicate { seq: 5, stored: None },
            Answer::Duplicate { seq: 5, stored: Some((chain, 1)) },
            Answer::OutOfOrder { last_n: 3, last_hash: chain },
            Answer::Refused(Error::BadSignature),
        ];
        let binary = [&[0xc4, 32][..], &chain].concat();
        let expected = [
            &[0x95, 0x95, 0, 2, 0xcc, 200, 0xce, 0, 1, 0x11, 0x70][..],
            &binary,
            &[0x94, 1, 5, 0xc0, 0xc0, 0x94, 1, 5],
            &binary,
            &[1, 0x93, 2, 0xac],
            b"out_of_order",
            &[0x92, 3],
            &binary,
            &[0x93, 2, 0xad],
            b"bad_signature",
            &[0x90],
        ];
        assert_eq!(encode(&answers), Ok(expected.concat()));
        let counts = [("accepted", 2), ("bad_signature", 1), ("duplicate", 2), ("out_of_order", 1)];
        assert_eq!(count(&answers), Ok(counts.into()));
    }

    #[test]
    fn what_the_store_knows_cannot_be_said() {
        let open = [Answer::Lookup { index: 0, n: 1, hash: [0; 32], last_seq: 1 }];
        assert_eq!(encode(&open), Err(OPEN));
        assert_eq!(count(&open), Err(OPEN));
    }
}
