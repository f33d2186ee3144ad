//! A small application: requests arrive by chance, each tier works for a lognormal time and calls others one after
//! another. Whatever runs on a machine whose processors are taken is slower.

use sage_common::{InstanceId, Micros, OperationId, PeerHint, ServiceId, Side, Span, SpanId, TraceHash};

use super::{draw::Draw, machine::Machine};

/// Deviation of the logarithm of self times.
const SELF_SIGMA: f64 = 0.35;
/// The way between two machines, median microseconds.
const WAY_US: f64 = 200.0;
const WAY_SIGMA: f64 = 0.2;
/// Requests per second, unless a test wants others.
const RATE: f64 = 10.0;
/// What a tier that is at fault itself takes longer by.
pub(super) const SLOW: f64 = 12.0;

/// One service.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its name on spans.
    pub service: ServiceId,
    /// Its address, which stays when its name changes.
    pub address: ServiceId,
    /// The machine it runs on.
    pub machine: usize,
    /// Which start of it this is.
    pub life: u64,
    /// Whether anybody calls it.
    pub is_called: bool,
    /// Whether its own code is slow.
    pub is_slow: bool,
    /// What its own code takes longer by since it was last released.
    pub pace: f64,
    self_us: f64,
    calls: Vec<usize>,
    pub(super) cpu_us: f64,
}

impl Tier {
    fn new(name: &str, machine: usize, self_us: f64, calls: Vec<usize>) -> Self {
        Self {
            service: ServiceId::sanitized(name),
            address: ServiceId::sanitized(&format!("{name}.local")),
            machine,
            life: 1,
            is_called: true,
            is_slow: false,
            pace: 1.0,
            self_us,
            calls,
            cpu_us: 0.0,
        }
    }

    /// The replica that runs now.
    pub(super) fn instance(&self) -> InstanceId {
        InstanceId::sanitized(&format!("{}-{}", self.address, self.life))
    }
}

/// A span and when its machine's agent gets it, by the simulation's clock.
#[derive(Debug)]
pub(super) struct Emitted {
    pub machine: usize,
    pub at: Micros,
    pub span: Span,
}

/// The application.
#[derive(Debug)]
pub struct Application {
    /// `front`, `cart` and `audit` on the first machine, `search` on the second, `stock` on the third.
    pub tiers: Vec<Tier>,
    /// Requests per second.
    pub rate: f64,
    draw: Draw,
}

/// A request on its way.
struct Request<'a> {
    machines: &'a [Machine],
    trace: TraceHash,
    out: Vec<Emitted>,
}

impl Application {
    pub(super) fn new(seed: u64) -> Self {
        let tiers = vec![
            Tier::new("front", 0, 3_000.0, vec![1, 2]),
            Tier::new("cart", 0, 2_000.0, vec![]),
            Tier::new("search", 1, 6_000.0, vec![3]),
            Tier::new("stock", 2, 5_000.0, vec![4]),
            Tier::new("audit", 0, 500.0, vec![]),
        ];
        Self { tiers, rate: RATE, draw: Draw::new(seed, 1) }
    }

    /// The tier of this name at the start.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn tier(&mut self, name: &str) -> &mut Tier {
        let address = format!("{name}.local");
        self.tiers.iter_mut().find(|tier| tier.address.as_str() == address).expect("a tier of the simulation")
    }

    pub(super) fn next_pause(&mut self) -> Micros {
        self.draw.pause(self.rate)
    }

    /// Everything that comes of a request at `at`.
    pub(super) fn request(&mut self, at: Micros, machines: &[Machine]) -> Vec<Emitted> {
        let mut request = Request { machines, trace: TraceHash(self.draw.id()), out: Vec::new() };
        self.serve(0, at, SpanId(0), &mut request);
        request.out
    }

    /// Serves one call that reaches `tier` at `start`; returns when it has answered.
    fn serve(&mut self, tier: usize, start: Micros, parent: SpanId, request: &mut Request<'_>) -> Micros {
        let Tier { machine, self_us, is_slow, pace, .. } = self.tiers[tier];
        let calls: Vec<usize> = self.tiers[tier].calls.iter().copied().filter(|to| self.tiers[*to].is_called).collect();
        let work = self.draw.lognormal(pace * self_us, SELF_SIGMA);
        self.tiers[tier].cpu_us += work / pace; // what a release adds is waiting
        let slower = request.machines[machine].slowdown() * if is_slow { SLOW } else { 1.0 };
        let part = Micros::new((work * slower) as u64 / (calls.len() as u64 + 1));
        let id = SpanId(self.draw.id());
        let mut now = start + part;
        for to in calls {
            now = self.call(tier, to, now, id, request) + part;
        }
        let operation = if tier == 0 { "GET /" } else { "Find" };
        self.emit(tier, Side::Server, operation, None, (start, now), (id, parent), request);
        now
    }

    fn call(&mut self, from: usize, to: usize, start: Micros, parent: SpanId, request: &mut Request<'_>) -> Micros {
        let id = SpanId(self.draw.id());
        let mut way = || Micros::new(self.draw.lognormal(WAY_US, WAY_SIGMA) as u64);
        let (there, back) = (way(), way());
        let end = self.serve(to, start + there, id, request) + back;
        let peer = Some(PeerHint::Address(self.tiers[to].address.clone()));
        self.emit(from, Side::Client, "POST", peer, (start, end), (id, parent), request);
        end
    }

    #[expect(clippy::too_many_arguments, reason = "a span has so many parts")]
    fn emit(
        &self,
        tier: usize,
        side: Side,
        operation: &str,
        peer: Option<PeerHint>,
        (start, end): (Micros, Micros),
        (id, parent): (SpanId, SpanId),
        request: &mut Request<'_>,
    ) {
        let Tier { service, machine, .. } = &self.tiers[tier];
        let span = Span {
            trace: request.trace,
            id,
            parent,
            service: service.clone(),
            instance: Some(self.tiers[tier].instance()),
            pid: None,
            operation: OperationId::sanitized(operation),
            side,
            peer,
            start: request.machines[*machine].wall(start),
            duration: end.saturating_sub(start),
            is_error: false,
            weight: 1.0,
        };
        request.out.push(Emitted { machine: *machine, at: end, span });
    }
}
