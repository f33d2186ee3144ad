//! What hostile bytes can make a decoder allocate, measured: a small multiple of what was sent, whatever they declare.
#![allow(unsafe_code, reason = "an allocator that counts has to be one")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use proptest::prelude::*;
use sage_common::{
    BootId, CallShape, EntryHistogram, InstanceUsage, NodeWindow, OperationId, ServiceId, Skeleton, Stub,
};
use sage_protocol::{
    EncodedWindow,
    codec::{self, MESSAGE_BYTES_MAX},
    frame::{CONTROL_BYTES_MAX, FrameDecoder, HEADER_LEN},
    message::{FromAgent, FromAggregator, WindowMessage},
};
use support::{full_window, name, window};

/// Heap in use by this thread, and the most there was.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(grown: usize, shrunk: usize) {
    let now = NOW.get().wrapping_add(grown).wrapping_sub(shrunk);
    NOW.set(now);
    PEAK.set(PEAK.get().max(now));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches two thread-local integers, which
// neither allocate nor have destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist for a moment.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most heap that `work` had in use, above what was there before.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    drop(work());
    PEAK.get().saturating_sub(before)
}

/// What a declared length may cost before its bytes are missed: one string of all that the decoder's limit leaves, and
/// serde's 1 MiB for each of at most four nested lists. The string's pages are never touched.
const DECLARED_MAX: usize = 12 * MESSAGE_BYTES_MAX;

/// The most heap that decoding takes for one byte of a message: see the densest windows below.
const HEAP_PER_BYTE_MAX: usize = 64;

fn decode_all(bytes: &[u8]) -> usize {
    let peaks = [
        peak_of(|| codec::decode::<FromAgent>(bytes)),
        peak_of(|| codec::decode::<FromAggregator>(bytes)),
        peak_of(|| EncodedWindow::from_bytes(bytes.to_vec())),
    ];
    peaks.into_iter().max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic_and_cost_little(bytes in prop::collection::vec(any::<u8>(), 0..4_000)) {
        let peak = decode_all(&bytes);
        prop_assert!(peak <= DECLARED_MAX, "{} bytes cost {peak}", bytes.len());
    }

    /// A valid start, then lengths up to 2^64.
    #[test]
    fn declared_lengths_cost_little(
        start in prop::collection::vec(0_u8..8, 0..24),
        marker in 250_u8..=255,
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let peak = decode_all(&[start, vec![marker], rest].concat());
        prop_assert!(peak <= DECLARED_MAX, "cost {peak}");
    }

    #[test]
    fn a_frame_header_costs_nothing(len in any::<u32>(), rest in prop::collection::vec(any::<u8>(), 0..1_000)) {
        let stream = [&len.to_le_bytes(), rest.as_slice()].concat();
        let peak = peak_of(|| FrameDecoder::new(CONTROL_BYTES_MAX).decode(&mut stream.as_slice()));
        // A vector grows by doubling, and a whole frame is copied out once.
        prop_assert!(peak <= 4 * (HEADER_LEN + rest.len()) + 64, "{len} announced, {} sent, cost {peak}", rest.len());
    }
}

/// The longest message that is a window with a list of many times `item`.
fn dense_window<T: Clone>(list: impl Fn(&mut NodeWindow) -> &mut Vec<T>, item: &T) -> Vec<u8> {
    let mut window = window(&name("n"), BootId(0), 0);
    let mut len_with = |count: usize| {
        *list(&mut window) = vec![item.clone(); count];
        codec::encode(&WindowMessage(window.clone())).expect("within the limit")
    };
    let (none, some) = (len_with(0).len(), len_with(1_000).len());
    // The length of the list takes up to four bytes more than when it was short.
    len_with((MESSAGE_BYTES_MAX - none - 4) * 1_000 / (some - none))
}

/// What each list holds at least, and so the most heap for one byte of the wire.
#[test]
fn the_densest_windows_cost_a_bounded_multiple_of_their_bytes() {
    let full = full_window();
    let (service, operation): (ServiceId, OperationId) = (name("s"), name("o"));
    let usage = InstanceUsage { service: service.clone(), instance: name("i"), metrics: vec![] };
    let stub = Stub { service: service.clone(), operation: operation.clone(), peer: None, ..full.stubs[0].clone() };
    let entry = EntryHistogram { service: service.clone(), operation: operation.clone(), v2: vec![], errors: 0.0 };
    let skeleton = Skeleton { service, operation, groups: vec![], count: 0 };
    for (what, bytes) in [
        ("instances", dense_window(|w| &mut w.usage, &usage)),
        ("stubs", dense_window(|w| &mut w.stubs, &stub)),
        ("histograms", dense_window(|w| &mut w.entries, &entry)),
        ("call structures", dense_window(|w| &mut w.skeletons, &skeleton)),
        ("groups of one call structure", dense_window(first_groups, &vec![])),
    ] {
        assert!(bytes.len() > MESSAGE_BYTES_MAX / 100 * 99, "{what}: {} bytes", bytes.len());
        let peak = peak_of(|| EncodedWindow::decode(&bytes).expect("a window"));
        println!("{what}: {} bytes cost {peak}", bytes.len());
        assert!(peak <= HEAP_PER_BYTE_MAX * bytes.len(), "{what}: {} bytes cost {peak}", bytes.len());
    }
}

/// The groups of the window's only call structure.
fn first_groups(window: &mut NodeWindow) -> &mut Vec<Vec<Vec<CallShape>>> {
    if window.skeletons.is_empty() {
        window.skeletons = full_window().skeletons;
    }
    &mut window.skeletons[0].groups
}

#[test]
fn a_string_that_is_not_there_costs_no_more_than_the_decoders_limit() {
    let mut bytes = codec::encode(&FromAggregator::Refused(String::new())).expect("short");
    let declared = u32::try_from(8 * MESSAGE_BYTES_MAX - 64).expect("small");
    bytes.splice(1.., [&[252], declared.to_le_bytes().as_slice()].concat());
    assert!(codec::decode::<FromAggregator>(&bytes).is_err());
    let peak = peak_of(|| codec::decode::<FromAggregator>(&bytes));
    assert!(peak <= DECLARED_MAX, "cost {peak}");
}
