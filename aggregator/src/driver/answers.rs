//! Answers of the API, from the state as it is now.

use sage_common::ActionId;
use serde::Serialize;

use super::owner::Owner;
use crate::{
    core::{ActionState, OperatorRequest, Oracle, view},
    http::{Question, Refusal, Reply, metrics::Readings},
    incident_file::{Author, IncidentFile, NothingToExport, format},
};

/// An answer, or an order to carry out first.
pub(super) enum Answer {
    /// Known at once.
    Now(Result<Reply, Refusal>),
    /// Said once the order is durable.
    After(OperatorRequest),
}

/// Answers `question`; changes nothing.
pub(super) fn answer<O: Oracle>(owner: &Owner<O>, question: Question) -> Answer {
    let leader = owner.leader();
    let state = leader.state();
    let text = match question {
        Question::Ready => owner.trouble().map_or_else(|| Ok("{}".into()), |text| Err(Refusal::Unavailable(text))),
        Question::Status => json(&status(owner)),
        Question::Graph => json(&view::graph(state)),
        Question::Windows(last) => json(&view::windows(leader, last)),
        Question::Incidents => json(&view::incidents(state)),
        Question::Incident(id) => match view::incident(state, id) {
            Some(incident) => json(&incident),
            None => Err(refused(&NothingToExport::NoIncident(id))),
        },
        Question::Actions => json(&view::actions(state)),
        Question::Models => json(&view::models(state, owner.now())),
        Question::Suggest(percentile) => json(&view::suggestions(leader, percentile)),
        Question::Metrics => Ok(page(owner)),
        Question::Export(id) => {
            return Answer::Now(export(IncidentFile::of_incident(state, id, author(owner))));
        }
        Question::ExportNow(slo) => {
            return Answer::Now(export(IncidentFile::of_now(leader, slo.as_deref(), author(owner))));
        }
        Question::Label(id, _) if !state.incidents().contains_key(&id) => {
            Err(refused(&NothingToExport::NoIncident(id)))
        }
        Question::Label(id, label) => return Answer::After(OperatorRequest::Label(id, label)),
        Question::SetSlos(slos) => return Answer::After(OperatorRequest::SetSlos(slos)),
        Question::Freeze => return Answer::After(OperatorRequest::Freeze),
        Question::Thaw => return Answer::After(OperatorRequest::Thaw),
        Question::Approve(id) => match approvable(owner, id) {
            Ok(()) => return Answer::After(OperatorRequest::Approve(id)),
            Err(refusal) => Err(refusal),
        },
    };
    Answer::Now(text.map(Reply::Text))
}

fn json(value: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::Unavailable(format!("the answer cannot be written: {error}")))
}

fn author<O: Oracle>(owner: &Owner<O>) -> Author {
    let view::Identity { fleet, version, .. } = owner.identity();
    Author { made_by: format!("sage-aggregator {version}"), fleet, at: owner.now() }
}

/// What was taken out of the state, to be made into bytes away from it.
fn export(taken: Result<IncidentFile, NothingToExport>) -> Result<Reply, Refusal> {
    let file = taken.map_err(|nothing| refused(&nothing))?;
    let unwritable = |error: format::FileError| Refusal::Unavailable(error.to_string());
    Ok(Reply::work(move || format::write(&file).map_err(unwritable)))
}

fn refused(nothing: &NothingToExport) -> Refusal {
    match nothing {
        NothingToExport::NoIncident(_) | NothingToExport::NoObjective(_) => Refusal::NotFound(nothing.to_string()),
        _ => Refusal::Conflict(nothing.to_string()),
    }
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
