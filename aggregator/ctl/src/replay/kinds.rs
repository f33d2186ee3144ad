//! Spans without a kind: whether one was served or made a call shows in who else is in its trace. Pure.
//!
//! ```text
//!  a ── a ── a ───── b ── b          parent in another service, or none: it served
//!  ▲         ▲       ▲               a child in another service:         it called
//!  served    called  served          else:                               within the service
//! ```
//!
//! A span waits until those around it had time to come. Only recordings need this: an SDK that speaks to an agent says
//! the kind of its spans.

use std::collections::{HashMap, VecDeque};

use sage_common::{Micros, ServiceId, Side, SpanId, Timestamp, TraceHash};

use super::feed::Placed;

/// Spans that wait at once; further ones make the oldest be told with what is known: about 200 bytes each.
pub const WAITING_MAX: usize = 200_000;

type Id = (TraceHash, SpanId);

/// What is known of one span id.
#[derive(Clone, Debug, Default)]
struct Known {
    service: Option<ServiceId>,
    has_child_elsewhere: bool,
    children: Option<ServiceId>, // of the first child, until the span itself has come
}

/// Spans that wait for their kind.
#[derive(Debug)]
pub struct Kinds {
    hold: Micros,
    waiting: VecDeque<(Timestamp, Placed)>,
    known: HashMap<Id, Known>,
    fading: VecDeque<(Timestamp, Id)>,
}

impl Kinds {
    /// Spans wait for `hold`.
    pub fn new(hold: Micros) -> Self {
        Self { hold, waiting: VecDeque::new(), known: HashMap::new(), fading: VecDeque::new() }
    }

    /// Takes a span at `now`.
    pub fn push(&mut self, now: Timestamp, placed: Placed) {
        let span = &placed.span;
        let (id, parent) = ((span.trace, span.id), (span.trace, span.parent));
        let own = self.known.entry(id).or_default();
        own.has_child_elsewhere |= own.children.take().is_some_and(|child| child != span.service);
        own.service = Some(span.service.clone());
        self.fading.push_back((now, id));
        if span.parent != SpanId(0) {
            let above = self.known.entry(parent).or_default();
            match &above.service {
                Some(service) => above.has_child_elsewhere |= *service != span.service,
                None => above.child_before_parent(&span.service),
            }
            self.fading.push_back((now, parent));
        }
        self.waiting.push_back((now, placed));
    }

    /// The next span whose time has come at `now`, with its kind.
    pub fn pop(&mut self, now: Timestamp) -> Option<Placed> {
        let is_due = |(since, _): &(Timestamp, Placed)| *since + self.hold <= now;
        if !self.waiting.front().is_some_and(is_due) && self.waiting.len() <= WAITING_MAX {
            self.forget(now);
            return None;
        }
        let (_, mut placed) = self.waiting.pop_front()?;
        placed.span.side = self.side(&placed);
        Some(placed)
    }

    fn side(&self, placed: &Placed) -> Side {
        let span = &placed.span;
        let parent = self.known.get(&(span.trace, span.parent)).and_then(|known| known.service.as_ref());
        let has_called = || self.known.get(&(span.trace, span.id)).is_some_and(|known| known.has_child_elsewhere);
        match parent {
            None => Side::Server,
            Some(parent) if *parent != span.service => Side::Server,
            Some(_) if has_called() => Side::Client,
            Some(_) => Side::Internal,
        }
    }

    /// Ids are known twice as long as spans wait: a child may come a whole wait after its parent.
    fn forget(&mut self, now: Timestamp) {
        let keep = self.hold.saturating_mul(2);
        while let Some((_, id)) = self.fading.pop_front_if(|(since, _)| *since + keep <= now) {
            self.known.remove(&id);
        }
        // Ids without a span that waits, above what the waiting ones can need.
        while self.fading.len() > 4 * WAITING_MAX {
            let Some((_, id)) = self.fading.pop_front() else { return };
            self.known.remove(&id);
        }
    }
}

impl Known {
    fn child_before_parent(&mut self, child: &ServiceId) {
        match &self.children {
            None => self.children = Some(child.clone()),
            // Two services below one span: one of them is another than its own.
            Some(first) => self.has_child_elsewhere |= first != child,
        }
    }
}

#[cfg(test)]
mod tests {
    use sage_common::{OperationId, Span};

    use super::*;

    fn placed(id: u64, parent: u64, who: &str) -> Placed {
        let span = Span {
            trace: TraceHash(1),
            id: SpanId(id),
            parent: SpanId(parent),
            service: ServiceId::sanitized(who),
            instance: None,
            pid: None,
            operation: OperationId::sanitized("get"),
            side: Side::Internal,
            peer: None,
            start: Timestamp::default(),
            duration: Micros::ZERO,
            is_error: false,
            weight: 1.0,
        };
        Placed { node: 0, span, has_kind: false }
    }

    fn sides(spans: &[(u64, u64, &str)]) -> Vec<(u64, Side)> {
        let mut kinds = Kinds::new(Micros::from_secs(5));
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        for (id, parent, who) in spans {
            kinds.push(at(1), placed(*id, *parent, who));
        }
        assert!(kinds.pop(at(5)).is_none(), "others may still come");
        let mut all: Vec<(u64, Side)> =
            std::iter::from_fn(|| kinds.pop(at(6))).map(|placed| (placed.span.id.0, placed.span.side)).collect();
        all.sort_by_key(|(id, _)| *id);
        assert!(kinds.pop(at(20)).is_none() && kinds.known.is_empty(), "nothing is remembered for ever");
        all
    }

    #[test]
    fn the_neighbours_tell_the_kind_in_whatever_order_they_come() {
        let want =
            vec![(1, Side::Server), (2, Side::Internal), (3, Side::Client), (4, Side::Server), (5, Side::Internal)];
        let mut spans = [(1, 0, "a"), (2, 1, "a"), (3, 2, "a"), (4, 3, "b"), (5, 4, "b")];
        assert_eq!(sides(&spans), want);
        spans.reverse();
        assert_eq!(sides(&spans), want);
    }

    #[test]
    fn who_is_called_by_a_served_span_directly_was_served_too() {
        assert_eq!(
            sides(&[(1, 0, "a"), (2, 1, "b"), (3, 1, "c")]),
            [(1, Side::Server), (2, Side::Server), (3, Side::Server)]
        );
    }

    #[test]
    fn a_span_whose_parent_never_came_was_served() {
        assert_eq!(sides(&[(2, 9, "b")]), [(2, Side::Server)]);
    }
}
