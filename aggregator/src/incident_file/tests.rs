//! Round trips, damage in every region of the bytes, and bounds.

use proptest::prelude::*;
use sage_common::Timestamp;

use super::{
    format::{DOCUMENT_BYTES_MAX, FILE_BYTES_MAX, FileError, VERSION, header, is_ours, read, write},
    *,
};
use crate::core::{
    Input, OperatorRequest, TrueCause,
    testing::{Fault, Fleet, Script, rules, service, slo},
};

fn author() -> Author {
    Author { made_by: "sage-aggregator test".into(), fleet: "local".into(), at: Timestamp::from_micros(7) }
}

fn broken() -> Fleet<Script> {
    let mut fleet = Fleet::learned(rules());
    fleet.calls = 25;
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(10, |state| state.actions().len() == 1);
    let label = Label::new(vec![TrueCause { service: service("geo"), resource: None }], Timestamp::default());
    fleet.give(Input::Operator(OperatorRequest::Label(1, Some(label.expect("one")))));
    fleet
}

fn file() -> IncidentFile {
    IncidentFile::of_incident(broken().leader.state(), 1, author()).expect("kept")
}

#[test]
fn an_incident_comes_back_as_it_was_with_its_story() {
    let file = file();
    let bytes = write(&file).expect("short");
    assert_eq!(read(bytes.as_slice()).expect("own bytes"), file);
    assert_eq!(write(&file).expect("short"), bytes, "the same incident has the same bytes");
    let story = file.story.expect("an incident");
    assert_eq!((story.incident.id, story.actions.len()), (1, 1));
    assert_eq!(story.label.expect("labelled").causes[0].service.as_str(), "geo");
    assert_eq!(file.model.as_slice(), b"script");
    assert!(!file.windows.is_empty() && !file.graph.edges.is_empty());
}

#[test]
fn the_document_is_what_a_zstd_decoder_prints() {
    let bytes = write(&file()).expect("short");
    let mut text = Vec::new();
    let mut decoder = zstd::stream::Decoder::new(bytes.as_slice()).expect("frames");
    std::io::Read::read_to_end(&mut decoder, &mut text).expect("skips what is not text");
    let document: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!((&document["fleet"], &document["slo"]["name"]), (&"local".into(), &"home".into()));
}

#[test]
fn the_newest_windows_are_a_file_without_a_story() {
    let fleet = broken();
    let now = IncidentFile::of_now(&fleet.leader, None, author()).expect("a model and windows");
    assert_eq!((now.story.is_none(), &now.slo), (true, &slo()));
    assert_eq!(read(write(&now).expect("short").as_slice()).expect("own bytes"), now);
    let nothing = IncidentFile::of_now(&fleet.leader, Some("shop"), author());
    assert_eq!(nothing, Err(NothingToExport::NoObjective("shop".into())));
}

#[test]
fn what_cannot_be_exported_is_said() {
    let fleet = broken();
    let nothing = |id| IncidentFile::of_incident(fleet.leader.state(), id, author()).map(|_| ());
    assert_eq!(nothing(2), Err(NothingToExport::NoIncident(2)));
    let mut young = Fleet::<Script>::new(rules());
    young.run(2);
    assert_eq!(IncidentFile::of_now(&young.leader, None, author()).map(|_| ()), Err(NothingToExport::NoModel));
}

#[test]
fn a_flipped_bit_or_a_cut_is_refused_wherever_it_is() {
    let bytes = write(&file()).expect("short");
    // The header byte by byte, then every region of what follows.
    let places = (0..120).chain((120..bytes.len()).step_by(bytes.len().div_ceil(400)));
    for at in places {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let error = read(flipped.as_slice()).expect_err("flipped");
        assert!(matches!(error, FileError::Damaged(_) | FileError::Foreign), "byte {at}: {error}");
        assert!(read(&bytes[..at]).is_err(), "cut at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(read(longer.as_slice()), Err(FileError::Damaged(_))));
}

#[test]
fn foreign_and_newer_files_are_told_from_damaged_ones() {
    for foreign in [&b""[..], b"{", b"PK\x03\x04 something else entirely, and longer than the header of a file"] {
        assert!(matches!(read(foreign), Err(FileError::Foreign)), "{foreign:?}");
        assert!(!is_ours(foreign));
    }
    let bytes = write(&file()).expect("short");
    assert!(is_ours(&bytes[..16]));
    assert!(matches!(read(&bytes[..20]), Err(FileError::Damaged(_))));
    let newer = [header(VERSION + 1, 1, 1, b"whatever"), b"whatever".to_vec()].concat();
    let error = read(newer.as_slice()).expect_err("newer");
    assert!(matches!(error, FileError::Newer { found } if found == VERSION + 1), "{error}");
    assert!(error.to_string().contains("use the release that wrote it"), "{error}");
}

/// A file with these parts, its checksums right.
fn made_of(document: u64, model: u64, model_part: &[u8], document_part: &[u8]) -> Vec<u8> {
    let mut rest = 0x184D_2A53_u32.to_le_bytes().to_vec();
    rest.extend((model_part.len() as u32).to_le_bytes());
    rest.extend(model_part);
    rest.extend(document_part);
    let mut bytes = header(VERSION, document, model, &rest);
    bytes.extend(rest);
    bytes
}

#[test]
fn lengths_that_lie_cost_no_more_than_they_declare() {
    let packed = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("compresses");
    let bomb = packed(&vec![0; 64 << 20]);
    assert!(bomb.len() < 100_000, "64 MiB of nothing");
    let error = read(made_of(10, 1_000, &bomb, &packed(b"{}")).as_slice()).expect_err("longer than it says");
    assert!(matches!(error, FileError::Damaged(_)), "{error}");
    let error = read(made_of(10, 0, &packed(b""), &bomb).as_slice()).expect_err("no JSON");
    assert!(matches!(error, FileError::Content(_)), "{error}");
    let error = read(made_of(DOCUMENT_BYTES_MAX + 1, 0, b"", b"").as_slice()).expect_err("too much");
    assert!(matches!(error, FileError::TooLong { what: "the document", .. }), "{error}");
    let endless = header(VERSION, 1, 1, b"").into_iter().chain(std::iter::repeat(0));
    struct Endless<I>(I);
    impl<I: Iterator<Item = u8>> std::io::Read for Endless<I> {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            bytes.iter_mut().zip(&mut self.0).for_each(|(byte, next)| *byte = next);
            Ok(bytes.len())
        }
    }
    let error = read(Endless(endless)).expect_err("endless");
    assert!(matches!(error, FileError::TooLong { what: "the file", len, .. } if len <= FILE_BYTES_MAX as u64 + 100));
}

#[test]
fn a_number_that_text_cannot_hold_is_not_written() {
    let mut file = file();
    let window = Arc::make_mut(&mut file.windows[0]);
    window.offered_per_s = f64::INFINITY;
    assert!(write(&file).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_behind_a_right_header_never_panic(document: Vec<u8>, model: Vec<u8>) {
        prop_assert!(read(made_of(1_000, 1_000, &model, &document).as_slice()).is_err());
        prop_assert!(read(document.as_slice()).is_err());
    }
}
