//! Which services must be normal for the target to be met: forward by the largest fall of the percentile, backward from
//! the largest own excesses, unneeded members dropped.

use std::collections::BTreeMap;

use crate::{
    engine::Recomposer,
    null::{Floor, Null},
    robust::normal_cdf,
    scene::{OwnExcess, Scene},
};

/// Largest set that is acted upon; beyond it the fault is not a service's.
pub const MEMBERS_MAX: usize = 4;

/// Services that the backward search starts from.
const BACKWARD_MAX: usize = 10;

/// Services examined one by one: those behind have the smaller own excess.
const CANDIDATES_MAX: usize = 32;

/// A member must lower the percentile by this much, in logs (2 %).
const GAIN_MIN: f64 = 0.02;

/// Gain of one service alone, in logs and in gains of its null, that needs no excess to show for it.
const DECISIVE_GAIN_MIN: f64 = 0.1;
const DECISIVE_FLOORS: f64 = 3.0;

/// Own excess for the backward search, as a share of the target.
const BACKWARD_EXCESS_MIN: f64 = 0.02;

/// Own excess of a member, as a share of the target.
const MEMBER_EXCESS_MIN: f64 = 0.01;

/// P(target met) from which a set suffices.
pub const P_ENOUGH: f64 = 0.5;

/// P(target met) from which nobody else is looked for.
const P_SURE: f64 = 0.9;

/// Error of a counterfactual percentile per distance from the observed one, both in logs: the study's median error against
/// re-simulated worlds.
const ERROR_PER_DISTANCE: f64 = 0.08;

/// Share of the room between normal and target that an own excess must fill to break the target by itself: a service's excess
/// is known to a fifth.
const ROOM_SHARE_MIN: f64 = 0.8;

/// One service examined alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Single {
    /// Its number.
    pub service: usize,
    /// `ln us` of the percentile without its abnormality.
    pub counterfactual: f64,
    /// Its own excess.
    pub excess: OwnExcess,
}

/// The question: target and error, both in logs of microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// `ln us` of the target.
    pub target: f64,
    /// Standard deviation of a counterfactual.
    pub error: f64,
    /// What healthy stretches score.
    pub null: &'a Null,
    /// How many windows were pooled.
    pub windows: usize,
}

impl Question<'_> {
    /// P(target met) at a counterfactual percentile of `ln us`.
    pub fn p_met(&self, counterfactual: f64) -> f64 {
        normal_cdf((self.target - counterfactual) / self.error)
    }
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Members, the strongest first.
    pub set: Vec<usize>,
    /// `ln us` of the percentile without their abnormality.
    pub counterfactual: f64,
    /// Every examined service, best first.
    pub singles: Vec<Single>,
    /// `ln us` of the percentile with every examined service normal.
    pub all_normal: f64,
}

/// Searches the set of services to repair.
pub fn search(engine: &mut dyn Recomposer, scene: &Scene<'_>, question: &Question<'_>) -> Found {
    let mut search = Search { engine, scene, question, singles: Vec::new(), known: BTreeMap::new(), room_us: 0.0 };
    search.singles = search.examine();
    let everybody: Vec<usize> = search.singles.iter().map(|single| single.service).collect();
    let all_normal = search.counterfactual(&everybody);
    search.room_us = question.target.exp() - all_normal.exp();
    let forward = search.forward();
    let mut set = forward.clone();
    if !search.suffices(&forward) || forward.len() > 1 {
        let backward = search.backward();
        if backward.as_ref().is_some_and(|b| !search.suffices(&forward) || b.len() < forward.len()) {
            set = backward.unwrap_or_default();
        }
    }
    search.prune(&mut set);
    search.make_sure(&mut set);
    let strength = |service: &usize| search.singles.iter().position(|single| single.service == *service);
    set.sort_by_key(strength);
    let counterfactual = search.counterfactual(&set);
    Found { set, counterfactual, singles: search.singles, all_normal }
}

struct Search<'a, 'b> {
    engine: &'a mut dyn Recomposer,
    scene: &'a Scene<'b>,
    question: &'a Question<'a>,
    singles: Vec<Single>,
    /// Worlds computed already: forward, backward and pruning ask for many of them again.
    known: BTreeMap<Vec<usize>, f64>,
    /// What the target leaves when everybody is normal, microseconds.
    room_us: f64,
}

impl Search<'_, '_> {
    /// `ln us` of the percentile had the members of `set` been normal.
    fn counterfactual(&mut self, set: &[usize]) -> f64 {
        let mut key = set.to_vec();
        key.sort_unstable();
        *self.known.entry(key).or_insert_with_key(|key| self.engine.counterfactual(key))
    }

    /// The services with the largest own excess, each alone, the lowest percentile first.
    fn examine(&mut self) -> Vec<Single> {
        let excess = |service| (service, self.scene.own_excess(service));
        let mut all: Vec<(usize, OwnExcess)> = (0..self.scene.services.len()).map(excess).collect();
        all.sort_by(|a, b| b.1.total_us().total_cmp(&a.1.total_us()));
        all.truncate(CANDIDATES_MAX);
        let mut singles: Vec<Single> = all
            .into_iter()
            .map(|(service, excess)| Single { service, counterfactual: self.counterfactual(&[service]), excess })
            .collect();
        // What stands above its noise comes first, however much a noisy one would bring.
        let here = self.counterfactual(&[]);
        let key = |single: &Single| {
            let gain = here - single.counterfactual;
            (gain < GAIN_MIN.max(self.floor(single.service).gain), single.counterfactual)
        };
        singles.sort_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        singles
    }

    fn floor(&self, service: usize) -> Floor {
        self.question.null.floor(self.question.windows, &self.scene.graph.services()[service])
    }

    fn excess(&self, service: usize) -> f64 {
        self.singles.iter().find(|single| single.service == service).map_or(0.0, |single| single.excess.total_us())
    }

    /// Own excess that cannot be that of a member of `set`: at the other end of a link there is but the self time.
    fn excess_beside(&self, service: usize, set: &[usize]) -> f64 {
        let graph = self.scene.graph;
        let callers = graph.ins(service).iter().filter_map(|edge| graph.caller(*edge));
        let callees = graph.outs(service).iter().map(|edge| graph.callee(*edge));
        if !callers.chain(callees).any(|other| set.contains(&other)) {
            return self.excess(service);
        }
        self.singles.iter().find(|single| single.service == service).map_or(0.0, |single| single.excess.self_us)
    }

    fn suffices(&mut self, set: &[usize]) -> bool {
        !set.is_empty() && self.question.p_met(self.counterfactual(set)) >= P_ENOUGH
    }

    /// Whether the service's own excess stands above its null and matters to the target.
    fn is_abnormal(&self, service: usize, share_of_target: f64) -> bool {
        let excess = self.excess(service);
        excess > share_of_target * self.question.target.exp() && excess > self.floor(service).excess_us
    }

    /// Whether a service alone makes so much of a difference that its excess need not show: where one request makes hundreds
    /// of calls, one in a thousand of them is beyond the percentiles of the edge and in every slow trace.
    fn is_decisive(&mut self, service: usize) -> bool {
        let gain = self.counterfactual(&[]) - self.counterfactual(&[service]);
        gain > DECISIVE_GAIN_MIN && gain > DECISIVE_FLOORS * self.floor(service).gain
    }

    fn forward(&mut self) -> Vec<usize> {
        let mut set = Vec::new();
        let mut here = self.counterfactual(&[]);
        while set.len() < MEMBERS_MAX && self.question.p_met(here) < P_ENOUGH {
            let Some((service, next)) = self.best_addition(&set, here) else { break };
            set.push(service);
            here = next;
        }
        set
    }

    /// The service that lowers the percentile most from `here`, among those whose gain stands above their noise.
    fn best_addition(&mut self, set: &[usize], here: f64) -> Option<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        for single in self.singles.clone().into_iter().filter(|single| !set.contains(&single.service)) {
            let mut with = set.to_vec();
            with.push(single.service);
            let next = self.counterfactual(&with);
            let is_gain = here - next >= GAIN_MIN.max(self.floor(single.service).gain);
            if is_gain && best.is_none_or(|(_, lowest)| next < lowest) {
                best = Some((single.service, next));
            }
        }
        best
    }

    /// AND-type culprits on parallel branches: each alone gains nothing, together they do.
    fn backward(&mut self) -> Option<Vec<usize>> {
        let mut set: Vec<usize> =
            self.singles.iter().map(|s| s.service).filter(|s| self.is_abnormal(*s, BACKWARD_EXCESS_MIN)).collect();
        set.sort_by(|a, b| self.excess(*b).total_cmp(&self.excess(*a)));
        set.truncate(BACKWARD_MAX);
        if !self.suffices(&set) {
            return None;
        }
        self.drop_unneeded(&mut set);
        (set.len() <= MEMBERS_MAX).then_some(set)
    }

    /// Drops the member whose absence hurts least, as long as the rest suffices.
    fn drop_unneeded(&mut self, set: &mut Vec<usize>) {
        // Ends: every round drops a member or stops.
        while set.len() > 1 {
            let mut best: Option<(usize, f64)> = None;
            for place in 0..set.len() {
                let mut without = set.clone();
                without.remove(place);
                let counterfactual = self.counterfactual(&without);
                if best.is_none_or(|(_, lowest)| counterfactual < lowest) {
                    best = Some((place, counterfactual));
                }
            }
            match best {
                Some((place, counterfactual)) if self.question.p_met(counterfactual) >= P_ENOUGH => set.remove(place),
                _ => return,
            };
        }
    }

    /// Whether `set` suffices by more than the error of a world that far from the observed one.
    fn is_sure(&mut self, set: &[usize]) -> bool {
        let (here, there) = (self.counterfactual(&[]), self.counterfactual(set));
        let error = self.question.error.hypot(ERROR_PER_DISTANCE * (here - there));
        normal_cdf((self.question.target - there) / error) >= P_SURE
    }

    /// Adds services that make a difference beyond doubt and could break the target by themselves, as long as the set
    /// suffices only just.
    fn make_sure(&mut self, set: &mut Vec<usize>) {
        while self.suffices(set) && set.len() < MEMBERS_MAX && !self.is_sure(set) {
            let here = self.counterfactual(set);
            let Some((service, next)) = self.best_addition(set, here) else { return };
            let is_decisive = here - next > DECISIVE_GAIN_MIN.max(DECISIVE_FLOORS * self.floor(service).gain);
            let is_enough = self.excess_beside(service, set) > ROOM_SHARE_MIN * self.room_us;
            if !is_decisive || !is_enough || !self.is_abnormal(service, MEMBER_EXCESS_MIN) {
                return;
            }
            set.push(service);
        }
    }

    fn prune(&mut self, set: &mut Vec<usize>) {
        let abnormal: Vec<usize> = set
            .iter()
            .copied()
            .filter(|service| self.is_abnormal(*service, MEMBER_EXCESS_MIN) || self.is_decisive(*service))
            .collect();
        *set = abnormal;
        if self.suffices(set) {
            self.drop_unneeded(set);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        curve::{Curve, Q},
        frame::EdgeFrame,
        graph::{Graph, tests::key},
        scene::{Part, SceneEdge, SceneService},
    };

    /// e2e = 10 ms + a + max(b, c), where a, b, c are excesses in ms.
    struct Formula {
        services: [usize; 3],
        excess: [f64; 3],
    }

    impl Recomposer for Formula {
        fn counterfactual(&mut self, repaired: &[usize]) -> f64 {
            let left = |k: usize| if repaired.contains(&self.services[k]) { 0.0 } else { self.excess[k] };
            (1e3 * (10.0 + left(0) + left(1).max(left(2)))).ln()
        }

        fn lacks(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn find(excess_ms: [f64; 3], target_ms: f64) -> Vec<String> {
        let edges = [key("", "a"), key("a", "b"), key("a", "c")];
        let graph = Graph::new(&edges.into_iter().collect(), &BTreeMap::new());
        let level = |us: f64| Curve::of_logs([us.ln(); Q]).expect("finite");
        let edge = |ms: f64| SceneEdge {
            seen: EdgeFrame { calls: 1000.0, rate: 100.0, ..EdgeFrame::default() },
            own: Some(Part {
                observed: level(1e3 * (1.0 + ms)),
                normal: level(1e3),
                scales: [0.02; Q],
                is_learnt: true,
            }),
            is_own_client: false,
            gap: None,
            p_callee: 0.6,
            is_net_like: false,
            restored: None,
        };
        let scene =
            Scene { graph: &graph, edges: excess_ms.map(edge).to_vec(), services: vec![SceneService::default(); 3] };
        let null = Null::default();
        let question = Question { target: (1e3 * target_ms).ln(), error: 0.08, null: &null, windows: 1 };
        let found = search(&mut Formula { services: [0, 1, 2], excess: excess_ms }, &scene, &question);
        found.set.iter().map(|s| graph.services()[*s].to_string()).collect()
    }

    #[test]
    fn one_sufficient_service_is_the_answer() {
        assert_eq!(find([50.0, 1.0, 0.0], 20.0), ["a"]);
    }

    #[test]
    fn a_second_one_that_matters_is_named_where_the_first_only_just_suffices() {
        assert_eq!(find([100.0, 9.0, 9.0], 20.0), ["a"], "neither branch alone makes a difference");
        assert_eq!(find([100.0, 9.0, 0.0], 20.0), ["a", "b"], "19 ms of 20, after 119");
        assert_eq!(find([100.0, 4.0, 0.0], 20.0), ["a"], "14 ms of 20 is met for sure");
    }

    #[test]
    fn two_parallel_culprits_are_found_although_neither_helps_alone() {
        let mut set = find([0.0, 40.0, 40.0], 20.0);
        set.sort();
        assert_eq!(set, ["b", "c"]);
    }

    #[test]
    fn a_member_that_is_not_needed_is_dropped() {
        assert_eq!(find([30.0, 6.0, 0.0], 20.0), ["a"]);
    }

    #[test]
    fn two_culprits_in_a_row_are_both_needed() {
        assert_eq!(find([30.0, 25.0, 0.0], 20.0), ["a", "b"]);
    }

    #[test]
    fn nothing_abnormal_gives_an_empty_set() {
        assert!(find([0.0, 0.0, 0.0], 8.0).is_empty());
    }
}
