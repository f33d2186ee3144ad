//! What agents and aggregators say to each other. The bytes of every message are fixed by golden files.

use sage_common::{ActionId, BootId, Knob, Micros, NodeId, NodeWindow, ServiceId, Setting, Term};
use serde::{Deserialize, Serialize};

/// The protocol version spoken by this build; the hello negotiates it.
pub const VERSION: u16 = 1;

/// Agent to aggregator, on the control stream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum FromAgent {
    /// First message of a connection.
    Hello(Hello),
    /// Still here; sent every heartbeat interval.
    Heartbeat(AgentStatus),
    /// What became of a command.
    Result(CommandResult),
}

/// Opens a connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Hello {
    /// Lowest protocol version the agent speaks.
    pub version_min: u16,
    /// Highest protocol version the agent speaks.
    pub version_max: u16,
    /// The agent's node; must be the one in its certificate.
    pub node: NodeId,
    /// This life of the agent.
    pub boot: BootId,
    /// Program version, for people.
    pub program: String,
    /// Highest term the agent has obeyed.
    pub term: Term,
    /// Actions whose settings are in force here, so that a new leader can take them over.
    pub held: Vec<HeldLease>,
}

/// A lease in force on a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HeldLease {
    /// The action it came from.
    pub action: ActionId,
    /// The knob it holds.
    pub knob: Knob,
    /// The setting it keeps.
    pub setting: Setting,
    /// Time left until it is given back.
    pub remaining: Micros,
}

/// State that an agent repeats with every heartbeat.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Windows kept because no acknowledgement has come.
    pub spooled: u32,
    /// Leases in force.
    pub leases: u32,
    /// Whether the local brake is on.
    pub is_frozen: bool,
}

/// Aggregator to agent, on the control stream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum FromAggregator {
    /// The connection stands.
    Welcome(Welcome),
    /// Not the leader: try there. `None` while nobody leads.
    Redirect(Option<String>),
    /// The connection is refused for good, with the reason for people.
    Refused(String),
    /// Still here, leading this term.
    Heartbeat(Term),
    /// These windows of this boot are committed and need not be sent again.
    Acknowledged {
        /// The life of the agent they belong to.
        boot: BootId,
        /// Their sequence numbers.
        sequences: Vec<u64>,
    },
    /// Change something, or stop changing it.
    Command(Command),
    /// This window can never be taken: drop it and count it. Sending it again would not help.
    Rejected {
        /// The life of the agent it belongs to.
        boot: BootId,
        /// Its sequence number.
        sequence: u64,
        /// What is wrong with it, for people.
        reason: String,
    },
}

/// Answer to a hello.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Welcome {
    /// The version both sides speak from here on.
    pub version: u16,
    /// The term of the leader.
    pub term: Term,
    /// The leader's name, for people.
    pub leader: String,
    /// Every window of this boot below this number is committed.
    pub acknowledged_below: u64,
}

/// One order of the leader.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Command {
    /// The term it was given in; agents refuse lower ones than they have seen.
    pub term: Term,
    /// The action it belongs to.
    pub action: ActionId,
    /// What to do.
    pub order: Order,
}

/// What a command asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Order {
    /// Put a setting in force for the lease time. The same action again changes nothing.
    Apply {
        /// The knob.
        knob: Knob,
        /// Its new setting.
        setting: Setting,
        /// How long to keep it without renewal.
        lease: Micros,
        /// The service it is meant to help, for policy and audit.
        service: ServiceId,
        /// Why, for people.
        reason: String,
    },
    /// Keep the action's setting for this long from now.
    Renew {
        /// How long.
        lease: Micros,
    },
    /// Give the action's setting back now.
    Revoke,
    /// Give everything back and refuse new actions until thawed.
    Freeze,
    /// Allow actions again.
    Thaw,
}

/// What became of a command.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CommandResult {
    /// The action.
    pub action: ActionId,
    /// What happened.
    pub outcome: Outcome,
}

/// How a command, or a lease, ended up.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Outcome {
    /// In force; the knob was read back as `now` and held `before` earlier.
    Applied {
        /// The setting to be given back.
        before: Setting,
        /// The setting read back.
        now: Setting,
    },
    /// The lease runs on.
    Renewed,
    /// The setting is given back.
    Reverted(RevertReason),
    /// Somebody else changed the knob, so the lease was given up and their setting left alone.
    Drifted {
        /// What was found.
        found: Setting,
    },
    /// Not done, by rule.
    Refused(Refusal),
    /// Tried, and the kernel said no.
    Failed(String),
    /// The brake is on (or, after a thaw, off).
    Frozen(bool),
}

/// Why a setting was given back.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RevertReason {
    /// Nobody renewed it in time.
    Expired,
    /// The aggregator asked.
    Revoked,
    /// The agent shut down.
    Shutdown,
    /// An earlier life of the agent had left it behind.
    Recovered,
    /// The brake was pulled.
    Frozen,
}

/// Why an agent does not obey.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Refusal {
    /// A higher term has been seen.
    StaleTerm(Term),
    /// The node's policy does not allow it; the rule, for people.
    Policy(String),
    /// The brake is on.
    Frozen,
    /// Another action holds the knob.
    Held(ActionId),
    /// The action is not known here.
    UnknownAction,
    /// The setting does not fit the knob, or this kernel lacks it.
    Unsupported(String),
}

/// The one message of a uni-directional window stream.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WindowMessage(pub NodeWindow);
