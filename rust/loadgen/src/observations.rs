//! What a run's devices saw, kept in memory while it runs and written for the checker after
//! (`docs/reference/observation-log.md`).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keepstep_core::hash::{Hash, chain_0};

use crate::prepared::Prepared;
use crate::streams::stream_name;
use crate::wire::Answer;

const VERSION: u64 = 1;
/// Hashes in one `published` record, so that no line grows long.
const HASHES_PER_LINE: usize = 1000;

/// One delivered event. What equals a published event byte by byte is kept as its author and number alone.
pub(crate) struct Row {
    /// Index of the author among the user's devices.
    pub(crate) author: u16,
    pub(crate) n: u64,
    pub(crate) received_at_ms: u64,
    /// Author id and hash of anything else.
    pub(crate) other: Option<Box<([u8; 16], Hash)>>,
}

/// One thing that a device saw; of answers and rows as many as it says, after those of what it saw before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    /// The answers to a publish message.
    Answered { frame: usize, answers: usize },
    /// A page of events of a stream.
    Received { stream: usize, seq: u64, rows: usize, chain: Hash },
}

/// All that one device saw: long lists, so that nothing is allocated for an event.
#[derive(Default)]
pub(crate) struct Observations {
    pub(crate) sent_frames: usize,
    pub(crate) seen: Vec<Observed>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) rows: Vec<Row>,
}

/// A device, for its observations to be named.
pub(crate) struct Observer<'a> {
    pub(crate) user_key: &'a [u8; 32],
    pub(crate) device_id: &'a [u8; 16],
    /// Ids of all devices of its user, in their order.
    pub(crate) devices: &'a [[u8; 16]],
    /// What they published.
    pub(crate) prepared: &'a [Prepared],
    /// Its own place among them.
    pub(crate) index: usize,
    /// How many streams its user has.
    pub(crate) streams: usize,
}

/// Writes a log of all devices.
pub(crate) struct Writer {
    file: BufWriter<File>,
    line: String,
}

impl Writer {
    /// Begins a log in a file that does not exist yet.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).with_context(|| format!("{}", path.display()))?;
        let mut writer = Self { file: BufWriter::new(file), line: String::new() };
        write!(writer.line, "[\"keepstep-observations\",{VERSION},\"keepstep-loadgen\"]")?;
        writer.end_line()?;
        Ok(writer)
    }

    /// Declares a device; all are, before anything else is written.
    pub(crate) fn device(&mut self, device_id: &[u8; 16], user_key: &[u8; 32]) -> Result<()> {
        self.begin("device", device_id);
        self.bytes(user_key);
        self.line.push(']');
        self.end_line()
    }

    /// Writes everything that one device did and saw: every one follows its user's stream, or reads it back in the end.
    pub(crate) fn observations(&mut self, observer: &Observer<'_>, observations: &Observations) -> Result<()> {
        for stream in 0..observer.streams {
            self.published(observer, stream, observations.sent_frames)?;
            self.begin_stream("subscribed", observer.device_id, stream)?;
            self.line.push_str(",0");
            self.bytes(&chain_0(observer.user_key, &stream_name(stream)));
            self.line.push(']');
            self.end_line()?;
        }
        let (mut all_answers, mut all_rows) = (&observations.answers[..], &observations.rows[..]);
        for observed in &observations.seen {
            match observed {
                Observed::Answered { frame, answers } => {
                    let (answers, rest) = all_answers.split_at(*answers);
                    self.answered(observer, *frame, answers)?;
                    all_answers = rest;
                }
                Observed::Received { stream, seq, rows, chain } => {
                    let (rows, rest) = all_rows.split_at(*rows);
                    self.received(observer, *stream, *seq, rows, chain)?;
                    all_rows = rest;
                }
            }
        }
        for stream in 0..observer.streams {
            self.begin_stream("complete", observer.device_id, stream)?;
            self.line.push(']');
            self.end_line()?;
        }
        Ok(())
    }

    /// Ends the log.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.file.flush()?;
        Ok(())
    }

    fn published(&mut self, observer: &Observer<'_>, stream: usize, frames: usize) -> Result<()> {
        let prepared = &observer.prepared[observer.index];
        let end = prepared.count(stream, frames) + 1;
        let mut first = 1;
        while first < end {
            let last = end.min(first + HASHES_PER_LINE);
            self.begin_stream("published", observer.device_id, stream)?;
            write!(self.line, ",{first},[")?;
            for n in first..last {
                self.row_separator(n == first);
                self.text(prepared.hash(stream, n));
            }
            self.line.push_str("]]");
            self.end_line()?;
            first = last;
        }
        Ok(())
    }

    fn answered(&mut self, observer: &Observer<'_>, frame: usize, answers: &[Answer]) -> Result<()> {
        let prepared = &observer.prepared[observer.index];
        let stream = prepared.stream_of(frame);
        let mut n = prepared.numbers(frame).start;
        for answer in answers {
            match answer {
                Answer::Accepted { count, seq, received_at_ms, chain } => {
                    self.begin_stream("accepted", observer.device_id, stream)?;
                    write!(self.line, ",{n},{count},{seq},{received_at_ms}")?;
                    self.bytes(chain);
                    n += usize::try_from(*count)?;
                }
                Answer::Duplicate(place) => {
                    self.begin_stream("duplicate", observer.device_id, stream)?;
                    if let Some((seq, chain, received_at_ms)) = place {
                        write!(self.line, ",{n},{seq}")?;
                        self.bytes(chain);
                        write!(self.line, ",{received_at_ms}")?;
                    } else {
                        write!(self.line, ",{n},null,null,null")?;
                    }
                    n += 1;
                }
                Answer::Refused(code) => {
                    self.begin_stream("refused", observer.device_id, stream)?;
                    write!(self.line, ",{n}")?;
                    self.bytes(prepared.hash(stream, n));
                    write!(self.line, ",{}", serde_json::to_string(code)?)?;
                    n += 1;
                }
            }
            self.line.push(']');
            self.end_line()?;
        }
        Ok(())
    }

    fn received(&mut self, observer: &Observer<'_>, stream: usize, seq: u64, rows: &[Row], chain: &Hash) -> Result<()> {
        self.begin_stream("received", observer.device_id, stream)?;
        write!(self.line, ",{seq},[")?;
        for (index, row) in rows.iter().enumerate() {
            self.row_separator(index == 0);
            self.line.push('[');
            let author = usize::from(row.author);
            let (id, hash) = match &row.other {
                Some(other) => (&other.0, &other.1),
                None => (&observer.devices[author], observer.prepared[author].hash(stream, usize::try_from(row.n)?)),
            };
            self.text(id);
            write!(self.line, ",{},{}", row.n, row.received_at_ms)?;
            self.bytes(hash);
            self.line.push(']');
        }
        self.line.push(']');
        self.bytes(chain);
        self.line.push(']');
        self.end_line()
    }

    fn begin(&mut self, record: &str, device_id: &[u8; 16]) {
        self.line.push_str("[\"");
        self.line.push_str(record);
        self.line.push('"');
        self.bytes(device_id);
    }

    fn begin_stream(&mut self, record: &str, device_id: &[u8; 16], stream: usize) -> Result<()> {
        self.begin(record, device_id);
        write!(self.line, ",\"{}\"", stream_name(stream))?;
        Ok(())
    }

    fn row_separator(&mut self, first: bool) {
        if !first {
            self.line.push(',');
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.line.push(',');
        self.text(bytes);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.line.push('"');
        STANDARD.encode_string(bytes, &mut self.line);
        self.line.push('"');
    }

    fn end_line(&mut self) -> Result<()> {
        self.line.push('\n');
        self.file.write_all(self.line.as_bytes())?;
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Device, Seen};
    use crate::prepared::Shape;

    #[test]
    fn every_record_has_the_documented_form() -> Result<()> {
        let device = Device::new([5; 32])?;
        let prepared = [Prepared::sign(
            &device,
            Seen { seq: 1, chain: [1; 32] },
            &Shape::of_one_stream(2, 3, 8),
            1_760_000_000_000,
        )?];
        let path = std::env::temp_dir().join(format!("keepstep-loadgen-observations-{}", std::process::id()));
        let observer = Observer {
            user_key: &[5; 32],
            device_id: &device.id,
            devices: &[device.id],
            prepared: &prepared,
            index: 0,
            streams: 1,
        };
        let answers = vec![
            Answer::Accepted { count: 1, seq: 1, received_at_ms: 7, chain: [1; 32] },
            Answer::Duplicate(Some((2, [2; 32], 8))),
            Answer::Refused("unavailable".into()),
            Answer::Duplicate(None),
        ];
        let rows = vec![
            Row { author: 0, n: 1, received_at_ms: 7, other: None },
            Row { author: 0, n: 9, received_at_ms: 8, other: Some(Box::new(([3; 16], [4; 32]))) },
        ];
        let seen = vec![
            Observed::Answered { frame: 0, answers: 3 },
            Observed::Answered { frame: 1, answers: 1 },
            Observed::Received { stream: 0, seq: 1, rows: 2, chain: [6; 32] },
        ];
        let mut writer = Writer::create(&path)?;
        writer.device(&device.id, &[5; 32])?;
        writer.observations(&observer, &Observations { sent_frames: 2, seen, answers, rows })?;
        writer.finish()?;
        assert!(Writer::create(&path).is_err());
        let text = std::fs::read_to_string(&path)?;
        std::fs::remove_file(&path)?;

        let (id, hash) = (STANDARD.encode(device.id), |n| STANDARD.encode(prepared[0].hash(0, n)));
        let of = |byte: u8| STANDARD.encode([byte; 32]);
        let expected = [
            serde_json::json!(["keepstep-observations", 1, "keepstep-loadgen"]),
            serde_json::json!(["device", id, of(5)]),
            serde_json::json!(["published", id, "load", 1, (1..7).map(hash).collect::<Vec<_>>()]),
            serde_json::json!(["subscribed", id, "load", 0, STANDARD.encode(chain_0(&[5; 32], "load"))]),
            serde_json::json!(["accepted", id, "load", 1, 1, 1, 7, of(1)]),
            serde_json::json!(["duplicate", id, "load", 2, 2, of(2), 8]),
            serde_json::json!(["refused", id, "load", 3, hash(3), "unavailable"]),
            serde_json::json!(["duplicate", id, "load", 4, null, null, null]),
            serde_json::json!([
                "received",
                id,
                "load",
                1,
                [[id, 1, 7, hash(1)], [STANDARD.encode([3; 16]), 9, 8, of(4)]],
                of(6)
            ]),
            serde_json::json!(["complete", id, "load"]),
        ];
        let found = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        assert_eq!(found, expected);
        Ok(())
    }
}
