//! Queueing disciplines, classes and filters as rtnetlink messages: TBF, HTB and u32.

use neli::consts::{nl::NlmF, rtnl::Rtm};

use super::{
    filter::Key,
    route::{Refused, RouteSocket},
    wire::{Bytes, attribute, be32_at, i32_at, text, u32_at, u64_at},
};

/// The major number of every handle that is ours. Nobody's default: `tc` counts up from 1 and down from 0x8fff.
pub(super) const OUR_MAJOR: u16 = 0x5a9e;

/// `TC_H_ROOT`.
const ROOT: u32 = 0xffff_ffff;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// struct tcmsg.
const TCMSG_LEN: usize = 20;

/// A handle of ours with this minor number.
pub(super) const fn ours(minor: u16) -> u32 {
    ((OUR_MAJOR as u32) << 16) | minor as u32
}

fn tcmsg(index: i32, handle: u32, parent: u32, info: u32) -> Bytes {
    Bytes::default().u8(0).u8(0).u16(0).i32(index).u32(handle).u32(parent).u32(info)
}

/// What a dump says about one object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub handle: u32,
    pub parent: u32,
    pub kind: String,
    pub options: Vec<u8>,
}

impl Object {
    /// Of an answer's payload, if it belongs to the link with this index.
    fn read(payload: &[u8], index: i32) -> Option<Self> {
        let attributes = payload.get(TCMSG_LEN..)?;
        (i32_at(payload, 4)? == index).then_some(())?;
        Some(Self {
            handle: u32_at(payload, 8)?,
            parent: u32_at(payload, 12)?,
            kind: text(attribute(attributes, KIND)?),
            options: attribute(attributes, OPTIONS).unwrap_or_default().to_vec(),
        })
    }

    pub const fn major(&self) -> u16 {
        (self.handle >> 16) as u16
    }

    pub const fn minor(&self) -> u16 {
        (self.handle & 0xffff) as u16
    }
}

fn dump(socket: &RouteSocket, kind: Rtm, index: i32, parent: u32) -> Result<Vec<Object>, Refused> {
    let answers = socket.dump(kind, tcmsg(index, 0, parent, 0))?;
    Ok(answers.iter().filter_map(|payload| Object::read(payload, index)).collect())
}

/// The root queueing discipline of a link, if the kernel shows one.
pub(super) fn root(socket: &RouteSocket, index: i32) -> Result<Option<Object>, Refused> {
    Ok(dump(socket, Rtm::Getqdisc, index, 0)?.into_iter().find(|object| object.parent == ROOT))
}

/// Removes our root; the kernel puts its default back.
pub(super) fn delete_root(socket: &RouteSocket, index: i32) -> Result<(), Refused> {
    socket.change(Rtm::Delqdisc, NlmF::empty(), tcmsg(index, ours(0), ROOT, 0))
}

// ---- rates ----

/// A rate in bytes per second, within a `tc_ratespec`: the upper part of a larger one goes by an attribute of its own.
fn ratespec(rate: u64) -> Bytes {
    /// Ethernet: the kernel counts by itself and needs no table of ours.
    const LINKLAYER: u8 = 1;
    // cell_log, linklayer, overhead, cell_align, mpu, rate.
    Bytes::default().u8(0).u8(LINKLAYER).u16(0).u16(0).u16(0).u32(u32::try_from(rate).unwrap_or(u32::MAX))
}

const RATESPEC_LEN: usize = 12;
const RATESPEC_RATE: usize = 8;

/// Bytes that may leave at once: ten milliseconds' worth, and never less than two full packets.
fn burst_bytes(rate: u64) -> u64 {
    (rate / 100).max(2 * 1_600)
}

/// The time that a burst takes at this rate, in the kernel's ticks of 64 ns.
fn burst_ticks(rate: u64) -> u32 {
    const TICKS_PER_SECOND: u64 = 15_625_000;
    u32::try_from(burst_bytes(rate).saturating_mul(TICKS_PER_SECOND) / rate.max(1)).unwrap_or(u32::MAX)
}

// ---- TBF ----

mod tbf {
    pub const PARMS: u16 = 1;
    pub const RATE64: u16 = 4;
    pub const BURST: u16 = 6;
}

/// Makes, or changes, our TBF root. `rate` in bytes per second.
pub(super) fn put_tbf(socket: &RouteSocket, index: i32, rate: u64, is_new: bool) -> Result<(), Refused> {
    let burst = u32::try_from(burst_bytes(rate)).unwrap_or(u32::MAX);
    // A tenth of a second of queue, and never less than a burst: longer queues only add latency.
    let limit = u32::try_from(rate / 10).unwrap_or(u32::MAX).max(burst).saturating_add(burst);
    // rate, peak rate, limit, buffer, mtu.
    let parms = ratespec(rate).bytes(&[0; RATESPEC_LEN]).u32(limit).u32(burst_ticks(rate)).u32(0);
    let options = Bytes::default()
        .attribute(tbf::PARMS, parms)
        .attribute(tbf::RATE64, Bytes::default().u64(rate))
        .attribute(tbf::BURST, Bytes::default().u32(burst));
    let message = tcmsg(index, ours(0), ROOT, 0).text(KIND, "tbf").attribute(OPTIONS, options);
    socket.change(Rtm::Newqdisc, new_or_change(is_new), message)
}

/// The rate of a TBF, in bytes per second.
pub(super) fn tbf_rate(options: &[u8]) -> Option<u64> {
    let small = u32_at(attribute(options, tbf::PARMS)?, RATESPEC_RATE)?;
    Some(attribute(options, tbf::RATE64).and_then(|bytes| u64_at(bytes, 0)).unwrap_or(u64::from(small)))
}

// ---- HTB ----

mod htb {
    pub const PARMS: u16 = 1;
    pub const INIT: u16 = 2;
    pub const RATE64: u16 = 6;
    pub const CEIL64: u16 = 7;
}

/// Makes our HTB root. Never in place of another: the kernel refuses if a root has come up meanwhile.
pub(super) fn create_htb(socket: &RouteSocket, index: i32, default: u16) -> Result<(), Refused> {
    // struct tc_htb_glob: version, rate to quantum, default class, debug, direct packets.
    let init = Bytes::default().u32(3).u32(10).u32(u32::from(default)).u32(0).u32(0);
    let options = Bytes::default().attribute(htb::INIT, init);
    let message = tcmsg(index, ours(0), ROOT, 0).text(KIND, "htb").attribute(OPTIONS, options);
    socket.change(Rtm::Newqdisc, new_or_change(true), message)
}

/// A class of our HTB. Rates in bytes per second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Class {
    pub minor: u16,
    /// The minor number of its parent; 0 is the root.
    pub parent: u16,
    /// What it always has.
    pub rate: u64,
    /// What it may borrow up to.
    pub ceil: u64,
}

/// Makes or changes a class.
pub(super) fn put_class(socket: &RouteSocket, index: i32, class: Class) -> Result<(), Refused> {
    let Class { minor, parent, rate, ceil } = class;
    // What a class sends before the next one's turn. Set outright, because the kernel warns about what it works out
    // itself for very slow and very fast classes.
    let quantum = u32::try_from((ceil / 80).clamp(1_514, 60_000)).unwrap_or(60_000);
    // struct tc_htb_opt: rate, ceil, buffer, cbuffer, quantum, level, prio.
    let parms = ratespec(rate)
        .bytes(&ratespec(ceil).into_vec())
        .u32(burst_ticks(rate))
        .u32(burst_ticks(ceil))
        .u32(quantum)
        .u32(0)
        .u32(0);
    let options = Bytes::default()
        .attribute(htb::PARMS, parms)
        .attribute(htb::RATE64, Bytes::default().u64(rate))
        .attribute(htb::CEIL64, Bytes::default().u64(ceil));
    let message = tcmsg(index, ours(minor), ours(parent), 0).text(KIND, "htb").attribute(OPTIONS, options);
    socket.change(Rtm::Newtclass, NlmF::CREATE | NlmF::REPLACE, message)
}

/// The classes of our HTB on a link.
pub(super) fn classes(socket: &RouteSocket, index: i32) -> Result<Vec<Class>, Refused> {
    let objects = dump(socket, Rtm::Gettclass, index, 0)?;
    Ok(objects
        .iter()
        .filter(|object| object.major() == OUR_MAJOR && object.kind == "htb")
        .filter_map(read_class)
        .collect())
}

fn read_class(object: &Object) -> Option<Class> {
    let parms = attribute(&object.options, htb::PARMS)?;
    let rate = |kind: u16, at: usize| {
        let large = attribute(&object.options, kind).and_then(|bytes| u64_at(bytes, 0));
        large.or_else(|| u32_at(parms, at + RATESPEC_RATE).map(u64::from))
    };
    let parent = if object.parent == ROOT { 0 } else { (object.parent & 0xffff) as u16 };
    Some(Class { minor: object.minor(), parent, rate: rate(htb::RATE64, 0)?, ceil: rate(htb::CEIL64, RATESPEC_LEN)? })
}

/// Removes a class.
pub(super) fn delete_class(socket: &RouteSocket, index: i32, minor: u16) -> Result<(), Refused> {
    socket.change(Rtm::Deltclass, NlmF::empty(), tcmsg(index, ours(minor), 0, 0))
}

// ---- u32 ----

mod u32_filter {
    pub const CLASSID: u16 = 1;
    pub const SEL: u16 = 5;
    /// A match ends the search.
    pub const TERMINAL: u8 = 1;
}

/// One of our filters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Filter {
    pub handle: u32,
    pub class: u16,
    pub keys: Vec<Key>,
}

/// Filters of one class share its minor number as their preference, and see every protocol: our keys begin with the
/// IP version.
fn info(class: u16) -> u32 {
    const ETH_P_ALL: u16 = 3;
    (u32::from(class) << 16) | u32::from(ETH_P_ALL.to_be())
}

/// Sends what matches all of `keys` to a class.
pub(super) fn create_filter(socket: &RouteSocket, index: i32, class: u16, keys: &[Key]) -> Result<(), Refused> {
    let count = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    // struct tc_u32_sel: flags, offshift, nkeys, padding, offmask, off, offoff, hoff, hmask.
    let head = Bytes::default().u8(u32_filter::TERMINAL).u8(0).u8(count).u8(0).u16(0).u16(0).u16(0).u16(0).u32(0);
    let sel = keys
        .iter()
        .take(usize::from(count))
        .fold(head, |bytes, key| bytes.be32(key.mask).be32(key.value).i32(key.offset).i32(0));
    let options = Bytes::default()
        .attribute(u32_filter::CLASSID, Bytes::default().u32(ours(class)))
        .attribute(u32_filter::SEL, sel);
    let message = tcmsg(index, 0, ours(0), info(class)).text(KIND, "u32").attribute(OPTIONS, options);
    socket.change(Rtm::Newtfilter, NlmF::CREATE | NlmF::EXCL, message)
}

/// The filters on our root.
pub(super) fn filters(socket: &RouteSocket, index: i32) -> Result<Vec<Filter>, Refused> {
    let objects = dump(socket, Rtm::Gettfilter, index, ours(0))?;
    Ok(objects.iter().filter(|object| object.kind == "u32").filter_map(read_filter).collect())
}

/// `None` for the hash tables that hold the filters.
fn read_filter(object: &Object) -> Option<Filter> {
    const SEL_LEN: usize = 16;
    const KEY_LEN: usize = 16;
    let sel = attribute(&object.options, u32_filter::SEL)?;
    let class = u32_at(attribute(&object.options, u32_filter::CLASSID)?, 0)?;
    let key = |key: &[u8]| Some(Key { mask: be32_at(key, 0)?, value: be32_at(key, 4)?, offset: i32_at(key, 8)? });
    let keys = sel.get(SEL_LEN..)?.chunks_exact(KEY_LEN).map(key).collect::<Option<Vec<_>>>()?;
    Some(Filter { handle: object.handle, class: (class & 0xffff) as u16, keys })
}

/// Removes one filter of a class.
pub(super) fn delete_filter(socket: &RouteSocket, index: i32, class: u16, handle: u32) -> Result<(), Refused> {
    let message = tcmsg(index, handle, ours(0), info(class)).text(KIND, "u32");
    socket.change(Rtm::Deltfilter, NlmF::empty(), message)
}

fn new_or_change(is_new: bool) -> NlmF {
    if is_new { NlmF::CREATE | NlmF::EXCL } else { NlmF::empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(tcmsg(1, 2, 3, 4).into_vec().len(), TCMSG_LEN);
        assert_eq!(ratespec(1).into_vec().len(), RATESPEC_LEN);
        assert_eq!(ours(0x10), 0x5a9e_0010);
    }

    #[test]
    fn a_burst_lasts_ten_milliseconds_or_two_packets() {
        // 100 Mbit/s.
        assert_eq!((burst_bytes(12_500_000), burst_ticks(12_500_000)), (125_000, 156_250));
        // 8 kbit/s: 3.2 s.
        assert_eq!((burst_bytes(1_000), burst_ticks(1_000)), (3_200, 50_000_000));
        assert!(burst_ticks(250_000_000_000) > 0);
    }
}
