//! One violation, one verdict: abduction, counterfactuals, search, resources, evidence.

use std::collections::BTreeSet;

use sage_common::{MetricGroup, Micros, ServiceId, Slo};

use crate::{
    engine::{self, Recomposer, entries},
    frame::Frame,
    model::Model,
    null::Null,
    observation::{EdgeKey, Observation},
    pool::{self, Chosen},
    recovery,
    resource::{self, Finding},
    scene::{Part, Scene, UsageScore, grid_index},
    search::{Found, MEMBERS_MAX, P_ENOUGH, Question, Single, search},
    verdict::{Candidate, Culprit, Evidence, EvidenceKind, Resource, Verdict, VerdictKind},
};

/// Arrivals above the largest learnt ones by this factor are demand, not a fault.
const DEMAND_MIN: f64 = 1.2;

/// A partial answer must take this share off the percentile.
const PARTIAL_MIN: f64 = 0.2;

/// Pieces of evidence per culprit: a screen's worth.
const EVIDENCE_MAX: usize = 8;

/// P(callee owns) around a half within which the spans cannot tell the ends of a link apart.
const LINK_TIE: f64 = 0.2;

/// Share of the fleet's windows below which the answer says that telemetry is missing.
const COMPLETE_MIN: f32 = 0.9;

/// Diagnoses the newest violation in `recent` (oldest first).
pub fn diagnose(model: &Model, recent: &[Observation], slo: &Slo) -> Verdict {
    let learnt: BTreeSet<EdgeKey> = model.edges().collect();
    let newest: Vec<&Observation> = recent.iter().rev().take(1).collect();
    let graph = pool::graph(&learnt, model.skeletons(), &newest);
    let Chosen { windows, seen } = pool::choose(&graph, model.normals(), recent, slo);
    let last: Vec<&Observation> = windows.last().copied().into_iter().collect();
    let is_pooled = windows.len() > 1;
    let inquiry = Inquiry { model, slo, recent, calm_since: recovery::calm_since(recent, slo) };
    // One window, the newest, is the common case, and everything about it is known already.
    let verdict = match seen {
        Some((frame, scene)) => inquiry.answer(windows, frame, &scene),
        None => inquiry.look(&learnt, windows),
    };
    let Some(verdict) = verdict else { return nothing_broken(model, recent.last(), slo) };
    if !is_pooled || verdict.culprits.len() < 2 || !pool::can_confirm(&last, slo) {
        return verdict;
    }
    inquiry.look(&learnt, last).filter(|confirmed| is_less(confirmed, &verdict)).unwrap_or(verdict)
}

/// Diagnoses `period` (oldest first) as one interval, for somebody who says that something was wrong in it: windows that met
/// the target belong to it as well. Of a long one, the newest [`pool::WINDOWS_MAX`].
pub fn diagnose_period(model: &Model, period: &[Observation], slo: &Slo) -> Verdict {
    let learnt: BTreeSet<EdgeKey> = model.edges().collect();
    let windows = newest(period, slo);
    let is_broken = pool::observed_log(&windows, slo).is_some_and(|log| log.exp() > slo.target.get() as f64);
    let inquiry = Inquiry { model, slo, recent: period, calm_since: None };
    let verdict = if is_broken { inquiry.look(&learnt, windows) } else { None };
    verdict.unwrap_or_else(|| nothing_broken(model, period.last(), slo))
}

/// What the usage of every service says in `period`, whoever is named: its resource that left what healthy windows reach,
/// else [`Resource::Software`]; and P(right) of that.
pub fn findings(model: &Model, period: &[Observation], slo: &Slo) -> Vec<(ServiceId, Resource, f64)> {
    let learnt: BTreeSet<EdgeKey> = model.edges().collect();
    let windows = newest(period, slo);
    let graph = pool::graph(&learnt, model.skeletons(), &windows);
    let Some(frame) = Frame::of(&graph, &windows) else { return Vec::new() };
    let scene = Scene::new(&graph, model.normals(), &frame);
    let finding = |(number, service): (usize, &ServiceId)| {
        let finding = resource::name(&scene, model.group_null(), number, scene.own_excess(number));
        (service.clone(), finding.resource, finding.p)
    };
    graph.services().iter().enumerate().map(finding).collect()
}

/// The newest windows of `period` in which `slo` has latencies, oldest first.
fn newest<'a>(period: &'a [Observation], slo: &Slo) -> Vec<&'a Observation> {
    let known = period.iter().rev().filter(|window| pool::latency_us(window, slo).is_some());
    let mut windows: Vec<&Observation> = known.take(pool::WINDOWS_MAX).collect();
    windows.reverse();
    windows
}

/// Whether `confirmed` explains its window by some of those that `pooled` names and no others. A fault's first window holds
/// how it began, and what stalled for a moment then is no culprit.
fn is_less(confirmed: &Verdict, pooled: &Verdict) -> bool {
    let is_named = |culprit: &Culprit| pooled.culprits.iter().any(|other| other.service == culprit.service);
    let count = confirmed.culprits.len();
    confirmed.kind == VerdictKind::Culprit
        && (1..pooled.culprits.len()).contains(&count)
        && confirmed.culprits.iter().all(is_named)
}

/// One question to one model.
struct Inquiry<'a> {
    model: &'a Model,
    slo: &'a Slo,
    recent: &'a [Observation],
    /// Since when, in the newest window, only a backlog breaks the target.
    calm_since: Option<Micros>,
}

impl Inquiry<'_> {
    /// The answer from `windows`; `None` when they hold nothing to answer from.
    fn look(&self, learnt: &BTreeSet<EdgeKey>, windows: Vec<&Observation>) -> Option<Verdict> {
        let graph = pool::graph(learnt, self.model.skeletons(), &windows);
        let frame = Frame::of(&graph, &windows)?;
        let scene = Scene::new(&graph, self.model.normals(), &frame);
        self.answer(windows, frame, &scene)
    }

    fn answer(&self, windows: Vec<&Observation>, frame: Frame, scene: &Scene<'_>) -> Option<Verdict> {
        let Self { model, slo, recent, calm_since } = *self;
        let observed = pool::observed_log(&windows, slo)?;
        let mut engine = engine::choose(scene, model.skeletons(), &windows, slo, observed);
        let default_null = Null::default();
        let null = model.null(&slo.name).unwrap_or(&default_null);
        let target = (slo.target.get().max(1) as f64).ln();
        let question = Question { target, error: null.error(), null, windows: windows.len() };
        let found = search(engine.as_mut(), scene, &question);
        let answer = Answer { model, slo, recent, calm_since, windows, observed, frame, scene, question, found };
        Some(answer.verdict(engine.as_ref()))
    }
}

/// Everything known once the search has ended.
struct Answer<'a> {
    model: &'a Model,
    slo: &'a Slo,
    recent: &'a [Observation],
    calm_since: Option<Micros>,
    windows: Vec<&'a Observation>,
    observed: f64,
    frame: Frame,
    scene: &'a Scene<'a>,
    question: Question<'a>,
    found: Found,
}

impl Answer<'_> {
    fn verdict(&self, engine: &dyn Recomposer) -> Verdict {
        let kind = self.kind();
        let named = match kind {
            VerdictKind::Unknown => Vec::new(),
            VerdictKind::Demand if self.found.set.is_empty() => self.bottlenecks(),
            _ => self.found.set.clone(),
        };
        let findings: Vec<(usize, Finding)> = named.iter().map(|service| (*service, self.finding(*service))).collect();
        let newest = self.windows.last().map(|o| o.start).unwrap_or_default();
        let counterfactual = if named.is_empty() { self.observed } else { self.found.counterfactual };
        Verdict {
            slo: self.slo.name.clone(),
            window: newest,
            kind,
            culprits: findings.iter().map(|(service, finding)| self.culprit(*service, finding)).collect(),
            observed: micros(self.observed),
            target: self.slo.target,
            counterfactual: micros(counterfactual),
            p_restored: self.question.p_met(counterfactual),
            candidates: self.found.singles.iter().map(|single| self.candidate(single)).collect(),
            path: named.first().map(|service| self.path(*service)).unwrap_or_default(),
            missing: self.missing(kind, &findings, engine),
            generation: self.model.generation(),
            model_age: self.model.age(newest),
        }
    }

    fn kind(&self) -> VerdictKind {
        let Found { set, counterfactual, .. } = &self.found;
        let gain = 1.0 - (counterfactual - self.observed).exp();
        if self.is_demand() {
            VerdictKind::Demand
        } else if self.calm_since.is_some() || set.is_empty() || set.len() > MEMBERS_MAX {
            VerdictKind::Unknown
        } else if self.question.p_met(*counterfactual) >= P_ENOUGH {
            VerdictKind::Culprit
        } else if gain > PARTIAL_MIN {
            VerdictKind::Partial
        } else {
            VerdictKind::Unknown
        }
    }

    /// Whether arrivals are above anything learnt, now or in the window before.
    fn is_demand(&self) -> bool {
        let arrivals = self.windows.iter().copied().chain(self.recent.iter().rev().take(2)).map(|o| o.offered_per_s);
        let highest = arrivals.filter(|rate| rate.is_finite()).fold(0.0, f64::max);
        // Poisson arrivals of one window stray by the root of their number.
        let chance = |most: f64| 3.0 * (most / self.frame.window_s.max(1e-3)).sqrt();
        self.model.offered_max().is_some_and(|most| highest > DEMAND_MIN * most + chance(most))
    }

    /// Services whose own excess stands above their null, the largest first.
    fn bottlenecks(&self) -> Vec<usize> {
        let name = |single: &&Single| &self.scene.graph.services()[single.service];
        let stands_out = |single: &&Single| {
            let floor = self.question.null.floor(self.question.windows, name(single));
            single.excess.total_us() > floor.excess_us.max(0.01 * self.slo.target.get() as f64)
        };
        let mut singles: Vec<&Single> = self.found.singles.iter().filter(stands_out).collect();
        singles.sort_by(|a, b| b.excess.total_us().total_cmp(&a.excess.total_us()));
        singles.iter().take(MEMBERS_MAX).map(|single| single.service).collect()
    }

    fn candidate(&self, single: &Single) -> Candidate {
        let service = &self.scene.graph.services()[single.service];
        let gain = self.observed - single.counterfactual;
        Candidate {
            service: service.clone(),
            counterfactual: micros(single.counterfactual),
            p_restored: self.question.p_met(single.counterfactual),
            own_excess_us: single.excess.total_us(),
            null_rank: self.question.null.rank(self.question.windows, service, gain),
        }
    }

    fn finding(&self, service: usize) -> Finding {
        resource::name(self.scene, self.model.group_null(), service, self.scene.own_excess(service))
    }

    fn culprit(&self, service: usize, finding: &Finding) -> Culprit {
        Culprit {
            service: self.scene.graph.services()[service].clone(),
            resource: finding.resource,
            p_resource: finding.p,
            link_with: self.link_with(service),
            instance: finding.instance.clone(),
            evidence: self.evidence(service, finding.resource),
        }
    }

    /// The other end, when the excess sits in a gap whose owner the spans cannot tell.
    fn link_with(&self, service: usize) -> Option<ServiceId> {
        let graph = self.scene.graph;
        let excess = |edge: usize| self.scene.edges[edge].gap.map_or(0.0, |part| part.excess_us());
        let around = graph.ins(service).iter().chain(graph.outs(service)).copied();
        let worst = around.max_by(|a, b| excess(*a).total_cmp(&excess(*b)))?;
        let other = if graph.callee(worst) == service { graph.caller(worst)? } else { graph.callee(worst) };
        let own = self.scene.own_excess(service);
        let is_tie = (self.scene.edges[worst].p_callee - 0.5).abs() < LINK_TIE;
        (is_tie && excess(worst) > own.self_us && other != service).then(|| graph.services()[other].clone())
    }

    fn evidence(&self, service: usize, resource: Resource) -> Vec<Evidence> {
        let q = grid_index(self.slo.percentile);
        let graph = self.scene.graph;
        let of_part = |part: &Part, what: EvidenceKind| Evidence {
            what,
            normal: part.normal.logs()[q].exp(),
            observed: part.observed.logs()[q].exp(),
            z: part.z(q),
        };
        let mut latencies = Vec::new();
        for edge in graph.ins(service).iter().chain(graph.outs(service)).copied() {
            let (scene, key) = (&self.scene.edges[edge], &graph.edges()[edge]);
            if let Some(part) = scene.own.filter(|part| part.is_learnt && graph.callee(edge) == service) {
                latencies.push(of_part(&part, EvidenceKind::SelfTime(key.clone())));
            }
            if let Some(part) = scene.gap.filter(|part| part.is_learnt && self.scene.gap_share(edge, &[service]) >= 0.5)
            {
                latencies.push(of_part(&part, EvidenceKind::Gap(key.clone())));
            }
        }
        let of_usage = |score: &UsageScore| Evidence {
            what: EvidenceKind::Metric(score.metric),
            normal: score.normal,
            observed: score.observed,
            z: score.z,
        };
        let speaks = |score: &&UsageScore| {
            let group = score.metric.group();
            resource != Resource::Software && group != MetricGroup::Process && Resource::from(group) == resource
        };
        let mut metrics: Vec<Evidence> =
            self.scene.services[service].usage.iter().filter(speaks).map(of_usage).collect();
        for list in [&mut latencies, &mut metrics] {
            list.sort_by(|a, b| b.z.total_cmp(&a.z));
            list.truncate(EVIDENCE_MAX / 2);
        }
        latencies.append(&mut metrics);
        latencies.sort_by(|a, b| b.z.total_cmp(&a.z));
        latencies
    }

    /// From the objective's entry to `service` along the edges with the most excess.
    fn path(&self, service: usize) -> Vec<EdgeKey> {
        let graph = self.scene.graph;
        let excess = |edge: usize| {
            let edge = &self.scene.edges[edge];
            [edge.own, edge.gap].into_iter().flatten().map(|part| part.excess_us()).sum::<f64>()
        };
        let roots = entries(graph, self.slo);
        let ways = roots.iter().filter_map(|root| {
            let way = graph.path(graph.callee(*root), service, |edge| 1.0 + 1.0 / (1.0 + 1e-3 * excess(edge)));
            let reaches = graph.callee(*root) == service || !way.is_empty();
            reaches.then(|| std::iter::once(*root).chain(way).collect::<Vec<usize>>())
        });
        let shortest = ways.min_by_key(Vec::len).unwrap_or_default();
        shortest.into_iter().map(|edge| graph.edges()[edge].clone()).collect()
    }

    fn missing(&self, kind: VerdictKind, findings: &[(usize, Finding)], engine: &dyn Recomposer) -> Vec<String> {
        let mut missing = engine.lacks();
        let graph = self.scene.graph;
        let complete = self.windows.iter().map(|o| o.completeness).fold(1.0, f32::min);
        if complete < COMPLETE_MIN {
            missing.push(format!("only {:.0} % of the nodes reported", 100.0 * complete));
        }
        let unlearnt = |edge: &usize| {
            let edge = &self.scene.edges[*edge];
            edge.seen.calls > 0.0 && !edge.own.is_some_and(|part| part.is_learnt)
        };
        for edge in (0..self.scene.edges.len()).filter(unlearnt) {
            let key = &graph.edges()[edge];
            missing.push(format!("no normal was learnt for calls of {} {}", key.callee, key.operation));
        }
        for (service, finding) in findings.iter().filter(|(_, finding)| !finding.unmeasured.is_empty()) {
            let groups: Vec<String> =
                finding.unmeasured.iter().map(|group| format!("{group:?}").to_lowercase()).collect();
            missing.push(format!("no {} metrics of {}", groups.join(", "), graph.services()[*service]));
        }
        if self.question.null.is_empty() {
            missing.push("no healthy stretches to compare scores with".to_owned());
        }
        if kind == VerdictKind::Unknown {
            missing.push(self.why_unknown());
        }
        missing
    }

    fn why_unknown(&self) -> String {
        if let Some(since) = self.calm_since {
            format!(
                "requests that began {since} or more into the window meet the target: what is slow is the backlog of something over"
            )
        } else if self.question.p_met(self.found.all_normal) < P_ENOUGH {
            let best = micros(self.found.all_normal);
            format!(
                "with every service as learnt the percentile would still be {best}: the cause is outside what is traced"
            )
        } else {
            "no service stands out above its own noise".to_owned()
        }
    }
}

fn nothing_broken(model: &Model, newest: Option<&Observation>, slo: &Slo) -> Verdict {
    let observed = newest.and_then(|o| pool::latency_us(o, slo)).map_or(Micros::ZERO, |us| Micros::new(us as u64));
    let window = newest.map(|o| o.start).unwrap_or_default();
    let is_met = observed > Micros::ZERO;
    Verdict {
        slo: slo.name.clone(),
        window,
        kind: VerdictKind::Unknown,
        culprits: Vec::new(),
        observed,
        target: slo.target,
        counterfactual: observed,
        p_restored: f64::from(u8::from(is_met)),
        candidates: Vec::new(),
        path: Vec::new(),
        missing: vec![if is_met { "the target is met" } else { "the objective saw no calls" }.to_owned()],
        generation: model.generation(),
        model_age: model.age(window),
    }
}

fn micros(log: f64) -> Micros {
    Micros::new(log.exp().round() as u64)
}
