//! WebSocket frames: what is written is read back however it is cut, and what RFC 6455 forbids ends the connection.

use keepstep_core::websocket::{
    CONTROL_FRAMES_MAX, End, FRAGMENTS_MAX, FrameReader, Received, frame_close, frame_message,
};
use proptest::prelude::*;

use crate::support::cases;

const LIMIT: usize = 70_000;
const MASK: [u8; 4] = [0x12, 0x00, 0xFE, 0x77];
const CONTINUATION: u8 = 0x0;
const BINARY: u8 = 0x2;
const FINAL: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

/// A masked frame with that first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    if payload.len() < 126 {
        bytes.push(0x80 | u8::try_from(payload.len()).unwrap());
    } else if let Ok(length) = u16::try_from(payload.len()) {
        bytes.push(0xFE);
        bytes.extend(length.to_be_bytes());
    } else {
        bytes.push(0xFF);
        bytes.extend((payload.len() as u64).to_be_bytes());
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

fn read(limit: usize, pieces: &[&[u8]]) -> (Received, Option<End>) {
    let (mut reader, mut received) = (FrameReader::new(limit), Received::default());
    for piece in pieces {
        reader.feed(piece, &mut received);
    }
    (received, reader.end())
}

fn closing(code: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame_close(code, "", &mut bytes);
    bytes
}

/// What a close frame with that payload is answered with.
fn answered(payload: &[u8]) -> (Vec<u8>, Option<End>) {
    let (received, end) = read(LIMIT, &[&frame(CLOSE, payload)]);
    (received.replies, end)
}

#[test]
fn messages_of_every_size_arrive_whole_wherever_they_are_cut() {
    for size in [0, 1, 3, 7, 8, 9, 125, 126, 127, 300] {
        let message: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let bytes = [frame(FINAL | BINARY, &message), frame(FINAL | BINARY, b"next")].concat();
        for cut in 0..=bytes.len() {
            let (received, end) = read(LIMIT, &[&bytes[..cut], &bytes[cut..]]);
            assert_eq!((received.messages, end), (vec![message.clone(), b"next".to_vec()], None));
            assert!(received.replies.is_empty());
        }
    }
    for size in [65_535, 65_536] {
        let bytes = frame(FINAL | BINARY, &vec![7; size]);
        assert_eq!(read(LIMIT, &[&bytes]).0.messages, [vec![7; size]]);
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn fragments_and_control_frames_between_them_make_the_same_messages(
        messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), 0..6),
        piece in 1_usize..60,
    ) {
        let mut bytes = Vec::new();
        let mut pongs = Vec::new();
        for fragments in &messages {
            for (index, fragment) in fragments.iter().enumerate() {
                let opcode = if index == 0 { BINARY } else { CONTINUATION };
                let last = if index + 1 == fragments.len() { FINAL } else { 0 };
                bytes.extend(frame(last | opcode, fragment));
                bytes.extend(frame(PING, &fragment[..fragment.len().min(3)]));
                bytes.extend(frame(PONG, b"unasked"));
                pongs.extend([0x8A, u8::try_from(fragment.len().min(3)).unwrap()]);
                pongs.extend(&fragment[..fragment.len().min(3)]);
            }
        }
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let (received, end) = read(LIMIT, &pieces);
        let whole: Vec<Vec<u8>> = messages.iter().map(|fragments| fragments.concat()).collect();
        prop_assert_eq!((received.messages, received.replies, end), (whole, pongs, None));
    }

    #[test]
    fn no_bytes_make_it_hold_more_than_a_message(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let (received, _) = read(32, &pieces);
        prop_assert!(received.messages.iter().all(|message| message.len() <= 32));
        prop_assert!(received.replies.len() <= 2 * bytes.len() + 4);
    }
}

#[test]
fn what_is_written_has_the_shortest_length() {
    for (size, header) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (65_535, &[0x82, 126, 0xFF, 0xFF]),
        (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut bytes = b"before".to_vec();
        frame_message(&vec![9; size], &mut bytes);
        assert_eq!(bytes, [b"before", header, &vec![9; size]].concat());
    }
}

#[test]
fn a_close_frame_holds_as_much_of_the_reason_as_fits() {
    let mut bytes = Vec::new();
    frame_close(4501, &"é".repeat(100), &mut bytes);
    assert_eq!(bytes[..4], [0x88, 124, 0x11, 0x95]); // an odd byte would have cut a character
    assert_eq!(bytes.len(), 126);
}

#[test]
fn what_the_standard_forbids_ends_the_connection_at_the_first_byte_that_shows_it() {
    let mut reserved = frame(FINAL | BINARY, b"x");
    reserved[0] |= 0x40;
    for (bytes, why) in [
        (vec![0x82, 0x01, b'x'], "unmasked"),
        (reserved, "a reserved bit"),
        (frame(FINAL | 0x3, b""), "a reserved opcode"),
        (frame(FINAL | 0xB, b""), "a reserved control opcode"),
        (frame(FINAL, b""), "a continuation of nothing"),
        (frame(0x9, b""), "half a ping"),
        (frame(PING, &[0; 126]), "a long ping"),
        (vec![0x82, 0xFE, 0, 125, 0, 0, 0, 0], "two bytes of length where one does"),
        (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0], "eight bytes where two do"),
        (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "the highest bit"),
    ] {
        let followed = [frame(FINAL | BINARY, b"before"), bytes, frame(FINAL | BINARY, b"after")].concat();
        for cut in 0..followed.len() {
            let (received, end) = read(LIMIT, &[&followed[..cut], &followed[cut..]]);
            assert_eq!(end, Some(End::Broken), "{why}");
            assert_eq!(received.messages, [b"before"], "{why}");
            assert_eq!(received.replies, closing(1002), "{why}");
        }
    }
    let nested = [frame(BINARY, b"a"), frame(FINAL | BINARY, b"b")].concat();
    assert_eq!(read(LIMIT, &[&nested]).1, Some(End::Broken));
}

#[test]
fn a_text_message_is_not_ours() {
    for text in [frame(0x81, b"text"), frame(0x01, b""), frame(0x81, b"\xff")] {
        assert_eq!(read(LIMIT, &[&text]), (Received::default(), Some(End::Malformed)));
    }
}

#[test]
fn close_frames_are_answered_with_their_code_or_refused() {
    assert_eq!(answered(b""), (vec![0x88, 0], Some(End::Closed)));
    for code in [1000_u16, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999] {
        assert_eq!(answered(&code.to_be_bytes()), (closing(code), Some(End::Closed)), "{code}");
    }
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(answered(&code.to_be_bytes()), (closing(1002), Some(End::Broken)), "{code}");
    }
    assert_eq!(answered(b"\x03"), (closing(1002), Some(End::Broken)));
    assert_eq!(answered(b"\x03\xe8\xce\xba"), (closing(1000), Some(End::Closed)));
    assert_eq!(answered(b"\x03\xe8\xce"), (closing(1007), Some(End::Broken)));
}

#[test]
fn nothing_counts_after_the_end() {
    let bytes = [frame(CLOSE, b""), frame(FINAL | BINARY, b"late"), frame(PING, b"late")].concat();
    assert_eq!(read(LIMIT, &[&bytes, &bytes]).0, Received { messages: vec![], replies: vec![0x88, 0] });
}

#[test]
fn a_message_has_at_most_the_limit_in_force_whether_in_one_frame_or_many() {
    assert_eq!(read(4, &[&frame(FINAL | BINARY, b"four")]).0.messages, [b"four"]);
    assert_eq!(read(4, &[&frame(FINAL | BINARY, b"fives")[..2]]).1, None, "the mask is not there yet");
    assert_eq!(read(4, &[&frame(FINAL | BINARY, b"fives")[..6]]).1, Some(End::TooLarge), "by its header");
    let fragments = [frame(BINARY, b"fo"), frame(CONTINUATION, b"ur"), frame(FINAL, b"")].concat();
    assert_eq!(read(4, &[&fragments]).0.messages, [b"four"]);
    let fragments = [frame(BINARY, b"fo"), frame(FINAL, b"urs")].concat();
    assert_eq!(read(4, &[&fragments]).1, Some(End::TooLarge));
    let huge = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
    assert_eq!(read(4, &[&huge]).1, Some(End::TooLarge));

    let (mut reader, mut received) = (FrameReader::new(4), Received::default());
    reader.limit(5);
    reader.feed(&frame(FINAL | BINARY, b"fives"), &mut received);
    assert_eq!(received.messages, [b"fives"]);
}

#[test]
fn floods_of_frames_that_become_no_message_end() {
    let count = |frames: u32| usize::try_from(frames).unwrap();
    let pings = frame(PING, b"").repeat(count(CONTROL_FRAMES_MAX));
    let message = frame(FINAL | BINARY, b"");
    assert_eq!(read(4, &[&pings, &message, &pings]).1, None, "a message begins the count anew");
    assert_eq!(read(4, &[&pings, &frame(PONG, b"")]).1, Some(End::TooLarge));
    let fragments = [frame(BINARY, b""), frame(CONTINUATION, b"").repeat(count(FRAGMENTS_MAX) - 2)].concat();
    assert_eq!(read(4, &[&fragments, &frame(FINAL, b"")]).1, None);
    assert_eq!(read(4, &[&fragments, &frame(CONTINUATION, b"").repeat(2)]).1, Some(End::TooLarge));
}

#[test]
fn what_is_held_of_a_message_is_known_and_can_be_given_up() {
    let (mut reader, mut received) = (FrameReader::new(1_000), Received::default());
    let message = frame(FINAL | BINARY, &[7; 1_000]);
    assert_eq!((reader.feed(&message[..500], &mut received), reader.unfinished_bytes() >= 492), (None, true));
    assert_eq!((reader.feed(&message[500..], &mut received), reader.unfinished_bytes()), (None, 0));
    reader.feed(&message[..500], &mut received);
    reader.give_up();
    assert_eq!((reader.feed(&message, &mut received), reader.unfinished_bytes()), (Some(End::TooLarge), 0));
    assert_eq!(received.messages, [[7; 1_000]]);
}
