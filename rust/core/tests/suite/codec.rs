//! MessagePack: what is written is read back, and every other encoding of it is refused.

use keepstep_core::msgpack::{INTEGER_MAX, Reader, write_binary, write_integer, write_optional_binary};
use proptest::prelude::*;

use crate::support::{cases, write_text};

fn integer(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    let value = reader.integer().ok()?;
    reader.end().ok()?;
    Some(value)
}

fn binary(bytes: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(bytes);
    let value = reader.binary().ok()?;
    reader.end().ok()?;
    Some(value)
}

#[test]
fn integers_have_one_encoding_each() {
    for (value, size) in
        [(0, 1), (127, 1), (128, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 5), (u64::from(u32::MAX), 5)]
    {
        let mut bytes = Vec::new();
        write_integer(&mut bytes, value);
        assert_eq!((bytes.len(), integer(&bytes)), (size, Some(value)));
    }
    let refused: [&[u8]; 9] = [
        &[0xcc, 127],
        &[0xcd, 0, 255],
        &[0xce, 0, 0, 255, 255],
        &[0xcf, 0, 0, 0, 0, 255, 255, 255, 255],
        &[0xff],
        &[0xd0, 1],
        &[0xca, 0, 0, 0, 0],
        &[0xcd, 1],
        &[],
    ];
    for bytes in refused {
        assert_eq!(integer(bytes), None, "{bytes:x?}");
    }
}

#[test]
fn integers_above_a_bigint_are_refused() {
    let mut bytes = Vec::new();
    write_integer(&mut bytes, INTEGER_MAX);
    assert_eq!(integer(&bytes), Some(INTEGER_MAX));
    bytes[1] = 0x80;
    assert_eq!(integer(&bytes), None);
}

#[test]
fn byte_strings_have_one_encoding_each() {
    for (length, head) in [(0, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 5)] {
        let value = vec![9; length];
        let mut bytes = Vec::new();
        write_binary(&mut bytes, &value).unwrap();
        assert_eq!((bytes.len(), binary(&bytes)), (length + head, Some(value.as_slice())));
    }
    assert_eq!(binary(&[0xc5, 0, 1, 7]), None);
    assert_eq!(binary(&[0xc6, 0, 0, 0, 1, 7]), None);
    assert_eq!(binary(&[0xc4, 2, 7]), None);
    assert_eq!(binary(&[0xa1, 7]), None);
    assert_eq!(binary(&[0xc6, 0xff, 0xff, 0xff, 0xff, 7]), None);
    assert!(Reader::new(&[0xc4, 2, 7, 7]).binary_of::<3>().is_err());
    assert_eq!(Reader::new(&[0xc4, 2, 7, 8]).binary_of::<2>(), Ok([7, 8]));
}

#[test]
fn text_has_one_encoding_each() {
    for (length, head) in [(0, 1), (31, 1), (32, 2), (255, 2)] {
        let mut bytes = Vec::new();
        write_text(&mut bytes, &"x".repeat(length));
        assert_eq!(bytes.len(), length + head);
        assert_eq!(Reader::new(&bytes).text().unwrap().len(), length);
    }
    for (bytes, length) in [(vec![0xda, 1, 0], 256), (vec![0xdb, 0, 1, 0, 0], 65_536)] {
        let bytes = [bytes, vec![b'x'; length]].concat();
        assert_eq!(Reader::new(&bytes).text().unwrap().len(), length);
    }
    for bytes in [&[0xd9, 1, 7][..], &[0xda, 0, 1, 7], &[0xdb, 0, 0, 0, 1, 7], &[0xc4, 0], &[0xa2, 7]] {
        assert!(Reader::new(bytes).text().is_err(), "{bytes:x?}");
    }
}

#[test]
fn arrays_have_one_encoding_each() {
    let accepted: [(&[u8], u64); 4] =
        [(&[0x90], 0), (&[0x9f], 15), (&[0xdc, 0, 16], 16), (&[0xdd, 0, 1, 0, 0], 65_536)];
    for (bytes, count) in accepted {
        assert!(Reader::new(bytes).at_array());
        assert_eq!(Reader::new(bytes).array(), Ok(count));
    }
    for bytes in [&[0xdc, 0, 15][..], &[0xdd, 0, 0, 255, 255], &[0x80], &[0xdc, 0]] {
        assert!(Reader::new(bytes).array().is_err(), "{bytes:x?}");
    }
    assert!(!Reader::new(&[0xc0]).at_array());
}

#[test]
fn nil_is_read_only_where_it_is() {
    let mut reader = Reader::new(&[0xc0, 5]);
    assert!(reader.nil() && !reader.nil());
    assert_eq!(reader.remaining(), 1);
    assert!(Reader::new(&[5]).end().is_err());
    assert!(!Reader::new(&[]).nil());
    let mut bytes = Vec::new();
    write_optional_binary(&mut bytes, None).unwrap();
    write_optional_binary(&mut bytes, Some(b"x")).unwrap();
    assert_eq!(bytes, [0xc0, 0xc4, 1, b'x']);
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn integers_round_trip(value in 0..=INTEGER_MAX) {
        let mut bytes = Vec::new();
        write_integer(&mut bytes, value);
        prop_assert_eq!(integer(&bytes), Some(value));
        prop_assert_eq!(integer(&bytes[..bytes.len() - 1]), None);
    }
}
