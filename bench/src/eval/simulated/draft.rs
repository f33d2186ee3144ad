//! Drafts of faults: which tiers, which kinds, how bad, and what else happens meanwhile.

use rand::{Rng, rngs::SmallRng, seq::SliceRandom};
use sage_common::Micros;

use crate::simulate::{FaultKind, FaultPlan, Model, Role};

/// Latency over target that faults are made for: from hardly broken to far beyond.
const RATIOS: (f64, f64) = (1.1, 15.0);

/// The same of each of several faults alone: together they must break the target, alone they need not.
const SHARED_RATIOS: (f64, f64) = (0.85, 8.0);

/// Halvings of a range of severities: two decades to within a fifth.
const HALVINGS: usize = 5;

/// Severities that are tried at most, as multiples of the kind's default.
const SEVEREST: f64 = 12.0;
const MILDEST: f64 = 0.1;

/// Tiers and kinds that are tried for one fault: many faults cannot break anything where they are.
const TRIES: usize = 8;

/// How often a metric moves elsewhere without slowing anybody, and how often somebody else is mildly slowed.
const DECOY_SHARE: f64 = 0.5;
const MILD_SHARE: f64 = 0.3;

/// Factor of a mild slowdown.
const MILD: f64 = 1.25;

/// Kinds whose metrics can move without harm.
const DECOYS: [FaultKind; 5] =
    [FaultKind::Cpu, FaultKind::Mem, FaultKind::Disk, FaultKind::NetDelay, FaultKind::NetLoss];

/// Drafts in one episode; `probe` says latency over target under some faults.
pub struct Drafting<'a> {
    model: &'a Model,
    start: Micros,
    end: Micros,
    probe: Box<dyn Fn(&[FaultPlan]) -> f64 + 'a>,
}

/// What shall happen.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Faults that break the target, on different tiers.
    pub injected: Vec<FaultPlan>,
    /// Decoys and mild disturbances.
    pub others: Vec<FaultPlan>,
}

impl<'a> Drafting<'a> {
    /// For an episode from `start` to `end`.
    pub fn new(model: &'a Model, start: Micros, end: Micros, probe: Box<dyn Fn(&[FaultPlan]) -> f64 + 'a>) -> Self {
        Self { model, start, end, probe }
    }

    /// `count` faults that matter, each made as bad as a ratio drawn for it; `None` when too few tiers can be made to.
    pub fn draft(&self, count: usize, draw: &mut SmallRng) -> Option<Draft> {
        let (low, high) = if count == 1 { RATIOS } else { SHARED_RATIOS };
        let mut draft = Draft::default();
        for _ in 0..TRIES * count {
            if draft.injected.len() == count {
                break;
            }
            let fault = self.fault(draw);
            let is_taken = draft.injected.iter().any(|other| other.service == fault.service);
            if !is_taken {
                let ratio = draw.random_range(f64::ln(low)..f64::ln(high)).exp();
                draft.injected.extend(self.scaled(fault, ratio));
            }
        }
        draft.others = self.others(&draft.injected, draw);
        (draft.injected.len() == count).then_some(draft)
    }

    /// `count` faults of ordinary severity, whatever comes of them.
    pub fn untested(&self, count: usize, draw: &mut SmallRng) -> Draft {
        let mut injected: Vec<FaultPlan> = Vec::new();
        for _ in 0..count {
            let mut fault = self.fault(draw);
            fault.severity *= draw.random_range(f64::ln(0.7)..f64::ln(4.0)).exp();
            if !injected.iter().any(|other| other.service == fault.service) {
                injected.push(clamped(fault));
            }
        }
        let others = self.others(&injected, draw);
        Draft { injected, others }
    }

    /// So many times the load.
    pub fn surge(&self, factor: f64) -> FaultPlan {
        self.plan(FaultKind::Surge, 0, factor)
    }

    /// A fault that is hardly one, and a decoy.
    pub fn weak(&self, draw: &mut SmallRng) -> Vec<FaultPlan> {
        let slow = self.plan(FaultKind::Slow, self.tier(draw), draw.random_range(1.1..1.4));
        let mut decoy = self.plan(DECOYS[draw.random_range(0..DECOYS.len())], self.tier(draw), 1.0);
        (decoy.severity, decoy.role) = (decoy.kind.default_severity(), Role::Decoy);
        vec![slow, decoy]
    }

    fn tier(&self, draw: &mut SmallRng) -> usize {
        draw.random_range(0..self.model.tiers.len())
    }

    fn plan(&self, kind: FaultKind, tier: usize, severity: f64) -> FaultPlan {
        FaultPlan {
            kind,
            service: self.model.tiers[tier].service.to_string(),
            callee: None,
            replica: None,
            start: self.start,
            end: self.end,
            severity,
            role: Role::Real,
        }
    }

    /// Any kind on any tier, at the kind's default severity. Kinds of one resource share its chance: resources come in
    /// equal numbers.
    fn fault(&self, draw: &mut SmallRng) -> FaultPlan {
        let resources = [
            &[FaultKind::Cpu][..],
            &[FaultKind::Mem],
            &[FaultKind::Disk],
            &[FaultKind::NetDelay, FaultKind::NetLoss, FaultKind::NetBw],
            &[FaultKind::Threads, FaultKind::Pool, FaultKind::Lock],
            &[FaultKind::Slow, FaultKind::Stall],
        ];
        let kinds = resources[draw.random_range(0..resources.len())];
        let kind = kinds[draw.random_range(0..kinds.len())];
        self.plan(kind, self.tier(draw), kind.default_severity())
    }

    /// `fault` as severe as brings latency to `ratio` times the target; `None` where no severity does.
    fn scaled(&self, mut fault: FaultPlan, ratio: f64) -> Option<FaultPlan> {
        let default = fault.kind.default_severity();
        let (least, most) = fault.kind.severities();
        let (mut low, mut high) = ((default * MILDEST).max(least).ln(), (default * SEVEREST).min(most).ln());
        fault.severity = high.exp();
        if (self.probe)(std::slice::from_ref(&fault)) < ratio {
            return None;
        }
        for _ in 0..HALVINGS {
            fault.severity = f64::midpoint(low, high).exp();
            if (self.probe)(std::slice::from_ref(&fault)) < ratio {
                low = fault.severity.ln()
            } else {
                high = fault.severity.ln()
            }
        }
        fault.severity = high.exp();
        Some(fault)
    }

    fn others(&self, injected: &[FaultPlan], draw: &mut SmallRng) -> Vec<FaultPlan> {
        let mut free: Vec<usize> = (0..self.model.tiers.len())
            .filter(|tier| !injected.iter().any(|fault| fault.service == self.model.tiers[*tier].service.as_str()))
            .collect();
        free.shuffle(draw);
        let mut others = Vec::new();
        if draw.random_bool(DECOY_SHARE)
            && let Some(tier) = free.pop()
        {
            let kind = DECOYS[draw.random_range(0..DECOYS.len())];
            others.push(FaultPlan { role: Role::Decoy, ..self.plan(kind, tier, kind.default_severity()) });
        }
        if draw.random_bool(MILD_SHARE)
            && let Some(tier) = free.pop()
        {
            others.push(self.plan(FaultKind::Cpu, tier, MILD));
        }
        others
    }
}

fn clamped(fault: FaultPlan) -> FaultPlan {
    let (least, most) = fault.kind.severities();
    FaultPlan { severity: fault.severity.clamp(least, most), ..fault }
}
