//! Answers of the API, from the state as it is now.

use sage_common::ActionId;
use serde::Serialize;

use super::owner::Owner;
use crate::{
    core::{ActionState, OperatorRequest, Oracle, view},
    http::{Question, Refusal, metrics::Readings},
};

/// An answer, or an order to carry out first.
pub(super) enum Answer {
    /// Known at once.
    Now(Result<String, Refusal>),
    /// Said once the order is durable.
    After(OperatorRequest),
}

/// Answers `question`; changes nothing.
pub(super) fn answer<O: Oracle>(owner: &Owner<O>, question: Question) -> Answer {
    let leader = owner.leader();
    let state = leader.state();
    Answer::Now(match question {
        Question::Ready => owner.trouble().map_or_else(|| Ok("{}".into()), |text| Err(Refusal::Unavailable(text))),
        Question::Status => json(&status(owner)),
        Question::Graph => json(&view::graph(state)),
        Question::Windows(last) => json(&view::windows(leader, last)),
        Question::Incidents => json(&view::incidents(state)),
        Question::Incident(id) => match view::incident(state, id) {
            Some(incident) => json(&incident),
            None => Err(Refusal::NotFound(format!("there is no incident {id}; old ones are forgotten"))),
        },
        Question::Actions => json(&view::actions(state)),
        Question::Models => json(&view::models(state, owner.now())),
        Question::Suggest(percentile) => json(&view::suggestions(leader, percentile)),
        Question::Metrics => Ok(page(owner)),
        Question::SetSlos(slos) => return Answer::After(OperatorRequest::SetSlos(slos)),
        Question::Freeze => return Answer::After(OperatorRequest::Freeze),
        Question::Thaw => return Answer::After(OperatorRequest::Thaw),
        Question::Approve(id) => match approvable(owner, id) {
            Ok(()) => return Answer::After(OperatorRequest::Approve(id)),
            Err(refusal) => Err(refusal),
        },
    })
}

fn json(value: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::Unavailable(format!("the answer cannot be written: {error}")))
}

fn status<O: Oracle>(owner: &Owner<O>) -> view::StatusView {
    let mut status = view::status(owner.leader(), &owner.identity());
    if let Some(trouble) = owner.trouble() {
        status.state = "degraded";
        status.problems.insert(0, trouble);
    }
    status
}

fn approvable<O: Oracle>(owner: &Owner<O>, id: ActionId) -> Result<(), Refusal> {
    match owner.leader().state().actions().get(&id) {
        None => Err(Refusal::NotFound(format!("there is no action {id}; old ones are forgotten"))),
        Some(action) if action.state == ActionState::AwaitingApproval => Ok(()),
        Some(_) => Err(Refusal::Conflict(format!("action {id} does not wait for approval"))),
    }
}

fn page<O: Oracle>(owner: &Owner<O>) -> String {
    let leader = owner.leader();
    let health = owner.health();
    Readings {
        state: leader.state(),
        log: &health,
        calls: owner.calls(),
        connected: leader.agents().values().filter(|agent| agent.is_connected).count(),
        counters: leader.counters(),
        windows_rejected: owner.counts().rejected,
        windows_shed: owner.counts().shed,
        is_training: leader.is_training(),
        uptime_s: owner.identity().uptime.as_secs_f64(),
    }
    .page()
}
