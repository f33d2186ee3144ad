//! A replica at work: admission, lock, stall, cores, disk, steps, answer.

use sage_common::Micros;

use super::{
    super::{arrivals::Arrival, model::Instruction, slab::NONE},
    Engine, Happens, is_event_loop,
    visit::{ANSWER, CALL, CONDITION, Fibre, OWN, Visit},
};
use crate::topology::count;

impl Engine {
    /// A request from outside.
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        self.counts.offered += 1;
        let site = self.model.roots[arrival.kind as usize];
        let tier = &self.model.tiers[self.model.sites[site as usize].tier];
        let replica = (tier.first + arrival.key.child(REPLICA).index(tier.replicas)) as u32;
        let mut rng = arrival.key.child(ITEMS).rng();
        let visit = Visit {
            site,
            replica,
            key: arrival.key.child(ROOT),
            trace: arrival.key.child(TRACE).bits(),
            parent: 0,
            call: NONE,
            start: None,
            arrived: self.now,
            own_ns: 0.0,
            items: count(self.model.sites[site as usize].items, &mut rng),
            open: 1,
            is_failed: false,
        };
        if self.counts.in_system >= self.options.in_system_max {
            self.counts.refused += 1;
            self.trace_refusal(&visit);
            return;
        }
        self.counts.in_system += 1;
        self.deliver(visit);
    }

    /// A request reaches its replica.
    pub(super) fn deliver(&mut self, visit: Visit) {
        let replica = visit.replica as usize;
        let number = self.visits.insert(visit);
        let (now, replica) = (self.now, &mut self.replicas[replica]);
        if replica.admission.enter(number, now) {
            self.take_up(number);
        }
    }

    /// A thread takes the request up.
    pub(super) fn take_up(&mut self, number: u32) {
        let model = self.model.clone();
        let visit = &mut self.visits[number];
        let site = &model.sites[visit.site as usize];
        let tier = &model.tiers[site.tier];
        let mut rng = visit.key.child(OWN).rng();
        visit.own_ns = site.own.map_or(0.0, |own| own.draw(visit.items, &mut rng) * 1e3);
        let effects = self.replicas[visit.replica as usize].effects;
        let is_delayed = effects.lock > 0.0 || effects.slow > 0.0 || effects.stall_ns > 0.0;
        if !is_event_loop(tier.concurrency) || is_delayed {
            visit.start = Some(self.now);
        }
        let (call, replica) = (visit.call, visit.replica as usize);
        let mut fibre = Fibre::new(number, site.entry, NONE);
        fibre.rpc_ns = if call == NONE { 0.0 } else { tier.received_ns };
        let fibre = self.fibres.insert(fibre);
        if effects.lock > 0.0 {
            if self.replicas[replica].lock.enter(fibre, self.now) {
                self.hold_lock(fibre);
            }
        } else {
            self.stall(fibre);
        }
    }

    fn hold_lock(&mut self, fibre: u32) {
        let visit = &self.visits[self.fibres[fibre].visit];
        let hold = visit.own_ns * self.replicas[visit.replica as usize].effects.lock;
        self.plan_in(hold, Happens::LockDone(fibre));
    }

    pub(super) fn lock_done(&mut self, fibre: u32) {
        let replica = self.visits[self.fibres[fibre].visit].replica as usize;
        if let Some((next, _)) = self.replicas[replica].lock.leave() {
            self.hold_lock(next);
        }
        self.stall(fibre);
    }

    /// The part of a slow code path that needs no core.
    fn stall(&mut self, fibre: u32) {
        let visit = &self.visits[self.fibres[fibre].visit];
        let effects = &self.replicas[visit.replica as usize].effects;
        let wait = effects.slow * visit.own_ns + effects.stall_ns;
        if wait > 0.0 {
            self.plan_in(wait, Happens::StallDone(fibre));
        } else {
            self.advance(fibre);
        }
    }

    pub(super) fn stall_done(&mut self, fibre: u32) {
        self.advance(fibre);
    }

    /// Goes on with a fibre until it has to wait for something.
    pub(super) fn advance(&mut self, number: u32) {
        let model = self.model.clone();
        loop {
            let fibre = &mut self.fibres[number];
            if fibre.is_failed {
                return self.end(number);
            }
            let visit = &self.visits[fibre.visit];
            match &model.code[fibre.at as usize] {
                Instruction::Work(share) => {
                    fibre.work_ns += share * visit.own_ns;
                    fibre.at += 1;
                }
                Instruction::If { p, condition, otherwise } => {
                    let is_taken = visit.key.child(CONDITION).child(*condition).uniform() < *p;
                    fibre.at = if is_taken { fibre.at + 1 } else { *otherwise };
                }
                Instruction::Call(site) => {
                    if !self.call_step(number, *site) {
                        return;
                    }
                }
                Instruction::Fork { .. } | Instruction::Done if fibre.has_work() => return self.work(number),
                Instruction::Fork { branches, join } => return self.fork(number, branches, *join),
                Instruction::Done => return self.end(number),
            }
        }
    }

    /// One turn of a step that calls; whether the fibre goes on at once.
    fn call_step(&mut self, number: u32, site: u32) -> bool {
        let model = self.model.clone();
        let called = &model.sites[site as usize];
        let fibre = &mut self.fibres[number];
        let visit = &self.visits[fibre.visit];
        let key = visit.key.child(CALL).child(u64::from(site));
        let left = *fibre.left.get_or_insert_with(|| count(called.repeat, &mut key.rng()));
        if left == 0 {
            (fibre.left, fibre.made, fibre.has_worked) = (None, 0, false);
            fibre.at += 1;
            return true;
        }
        if !fibre.has_worked {
            fibre.rpc_ns += model.tiers[model.replicas[visit.replica as usize].tier].issued_ns;
            if fibre.has_work() {
                self.work(number);
                return false;
            }
        }
        fibre.has_worked = false;
        fibre.left = Some(left - 1);
        fibre.made += 1;
        let key = key.child(u64::from(fibre.made));
        if called.is_detached {
            let visit = fibre.visit;
            self.visits[visit].open += 1;
            self.call(NONE, visit, site, key);
            return true;
        }
        let visit = fibre.visit;
        self.call(number, visit, site, key);
        false
    }

    fn fork(&mut self, number: u32, branches: &[u32], join: u32) {
        let fibre = &mut self.fibres[number];
        fibre.has_worked = false;
        fibre.at = join;
        fibre.branches = branches.len() as u32;
        let visit = fibre.visit;
        if branches.is_empty() {
            return self.advance(number);
        }
        for branch in branches {
            let child = self.fibres.insert(Fibre::new(visit, *branch, number));
            self.advance(child);
        }
    }

    /// A fibre is over: whoever waits for it goes on.
    fn end(&mut self, number: u32) {
        let Fibre { parent, visit, is_failed, .. } = self.fibres[number];
        self.fibres.remove(number);
        if parent == NONE {
            self.visits[visit].is_failed |= is_failed;
            return self.answer(visit);
        }
        let waiting = &mut self.fibres[parent];
        waiting.is_failed |= is_failed;
        waiting.branches -= 1;
        if waiting.branches == 0 {
            self.advance(parent);
        }
    }

    /// Queues for a core.
    fn work(&mut self, number: u32) {
        let replica = self.visits[self.fibres[number].visit].replica as usize;
        let now = self.now;
        if self.replicas[replica].cores.enter(number, now) {
            self.start_work(number, now);
        }
    }

    /// Takes a core for what the fibre has to spend.
    fn start_work(&mut self, number: u32, since: u64) {
        let now = self.now;
        let fibre = &mut self.fibres[number];
        let visit = &mut self.visits[fibre.visit];
        let replica = &mut self.replicas[visit.replica as usize];
        let tier = &self.model.tiers[self.model.replicas[visit.replica as usize].tier];
        visit.start.get_or_insert(now);
        let (shares, effects) = (tier.shares, &replica.effects);
        let mem_ns = fibre.work_ns * shares.mem * effects.mem.slowdown;
        // Memory stalls are CPU time to whoever counts it; a competitor's turns are not.
        let used = fibre.work_ns * (shares.cpu + shares.net) + fibre.rpc_ns + mem_ns;
        let contended = fibre.work_ns * shares.cpu + fibre.rpc_ns;
        let elapsed = (used + contended * (effects.cpu.slowdown - 1.0)) / tier.speed;
        fibre.disk_ns = fibre.work_ns * shares.disk;
        (fibre.work_ns, fibre.rpc_ns) = (0.0, 0.0);
        replica.counters.add_slice(used, elapsed - used, (now - since) as f64);
        self.plan_in(elapsed, Happens::CoreDone(number));
    }

    pub(super) fn core_done(&mut self, number: u32) {
        let Fibre { visit, disk_ns, .. } = self.fibres[number];
        let replica = self.visits[visit].replica as usize;
        if let Some((next, since)) = self.replicas[replica].cores.leave() {
            self.start_work(next, since);
        }
        if disk_ns <= 0.0 {
            return self.worked(number);
        }
        let now = self.now;
        self.fibres[number].since = now;
        if self.replicas[replica].disk.enter(number, now) {
            self.start_disk(number);
        }
    }

    /// More cores than before: those who wait take them.
    pub(super) fn fill_cores(&mut self, replica: usize) {
        while let Some((next, since)) = self.replicas[replica].cores.admit() {
            self.start_work(next, since);
        }
    }

    fn start_disk(&mut self, number: u32) {
        let fibre = &self.fibres[number];
        let replica = &mut self.replicas[self.visits[fibre.visit].replica as usize];
        let elapsed = fibre.disk_ns * replica.effects.disk.slowdown;
        replica.counters.disk_busy_ns += elapsed;
        self.plan_in(elapsed, Happens::DiskDone(number));
    }

    pub(super) fn disk_done(&mut self, number: u32) {
        let Fibre { visit, since, .. } = self.fibres[number];
        let now = self.now;
        let replica = &mut self.replicas[self.visits[visit].replica as usize];
        replica.counters.disk_operations += 1;
        replica.counters.disk_wait_ns += (now - since) as f64;
        if let Some((next, _)) = replica.disk.leave() {
            self.start_disk(next);
        }
        self.worked(number);
    }

    fn worked(&mut self, number: u32) {
        self.fibres[number].has_worked = true;
        self.advance(number);
    }

    /// The visit's answer leaves, and its thread is free.
    fn answer(&mut self, number: u32) {
        let visit = self.visits[number];
        self.trace_server(&visit);
        if let Some((next, _)) = self.replicas[visit.replica as usize].admission.leave() {
            self.take_up(next);
        }
        if visit.call == NONE {
            self.counts.in_system -= 1;
            self.counts.answered += 1;
            self.counts.failed += u64::from(visit.is_failed);
        } else {
            let call = &mut self.calls[visit.call];
            call.is_failed |= visit.is_failed;
            call.served_ns = (self.now - visit.arrived) as f64;
            let caller = call.caller as usize;
            let share = self.model.tiers[self.model.replicas[visit.replica as usize].tier].shares.net;
            let bytes = ANSWER_BYTES + visit.own_ns * share * BYTES_PER_NS;
            let replica = visit.replica as usize;
            let way = self.send(replica, caller, visit.key.child(ANSWER), bytes);
            self.hear_acknowledgement(replica, caller, way);
            self.plan_in(way.total_ns(), Happens::Replied(visit.call));
        }
        self.close(number);
    }

    /// One of the things that keep a visit in mind is over.
    pub(super) fn close(&mut self, number: u32) {
        let visit = &mut self.visits[number];
        visit.open -= 1;
        if visit.open == 0 {
            self.visits.remove(number);
        }
    }

    /// How long something has been going on.
    pub(super) fn since(&self, start: u64) -> Micros {
        Micros::new(self.now / 1_000).saturating_sub(Micros::new(start / 1_000))
    }
}

const REPLICA: u64 = 1;
const ITEMS: u64 = 2;
const ROOT: u64 = 3;
const TRACE: u64 = 4;

/// Headers and a status.
const ANSWER_BYTES: f64 = 300.0;
/// The network's share of the own time is the answer's time on a link of 1 Gbit/s.
const BYTES_PER_NS: f64 = 0.125;
