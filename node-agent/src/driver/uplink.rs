//! Windows out and commands in: the spool, the link to the aggregators, the way to the actuator.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use sage_common::{BootId, Micros};
use sage_protocol::{
    EncodedWindow,
    message::{AgentStatus, CommandResult},
    quic::{AgentLink, AgentLinkEvent, WindowNotSent, WindowSender, read_tls},
    session::{AgentSessionConfig, AgentState, Timing},
};
use tokio::sync::mpsc;

use super::{actuation::ActuatorHandle, board::Board, clock::monotonic, spool::Spool};
use crate::{config::Config, kernel::chain};

/// Between two reports of our state, and two looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// Between two attempts to read certificates that are missing or do not hold.
const RETRY: Micros = Micros::from_secs(30);
/// Results kept without a link: as many as a link keeps without a connection.
const EARLY_MAX: usize = 256;
/// How long a shutdown waits for the acknowledgement of the last windows.
const FLUSH_MAX: Duration = Duration::from_millis(1_500);

/// The uplink.
pub struct Uplink {
    config: Arc<Config>,
    boot: BootId,
    board: Arc<Board>,
    actuator: ActuatorHandle,
    spool: Spool,
    link: Option<(AgentLink, mpsc::Receiver<AgentLinkEvent>)>,
    retry_at: Micros,
    connection: Option<Connection>,
    /// Results that came before there was a link: what an earlier life had left and was undone at start.
    early: VecDeque<CommandResult>,
}

/// One connection to a leader.
struct Connection {
    windows: WindowSender,
    /// Position of the last window handed over.
    cursor: Option<u64>,
}

impl Uplink {
    /// An uplink that begins unconnected, with what earlier lives left in the spool.
    pub fn new(config: Arc<Config>, boot: BootId, board: Arc<Board>, actuator: ActuatorHandle) -> Self {
        let spool = Spool::open(&config.state_dir.join("spool"), config.spool_bytes_max);
        Self {
            config,
            boot,
            board,
            actuator,
            spool,
            link: None,
            retry_at: Micros::ZERO,
            connection: None,
            early: VecDeque::new(),
        }
    }

    /// Runs until windows and results have both ended, then waits a little for the last acknowledgements.
    pub async fn run(mut self, mut windows: mpsc::Receiver<EncodedWindow>, mut results: mpsc::Receiver<CommandResult>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut has_windows, mut has_results) = (true, true);
        while has_windows || has_results {
            tokio::select! {
                window = windows.recv(), if has_windows => match window {
                    Some(window) => self.keep(window),
                    None => has_windows = false,
                },
                result = results.recv(), if has_results => match result {
                    Some(result) => self.report(result),
                    None => has_results = false,
                },
                event = next_event(&mut self.link) => self.handle_event(event),
                _ = tick.tick() => self.tick(),
            }
            self.publish();
        }
        let _ = tokio::time::timeout(FLUSH_MAX, self.flush()).await;
        if let Some((link, _)) = self.link.take() {
            link.shutdown().await;
        }
        self.publish();
    }

    async fn flush(&mut self) {
        while self.connection.is_some() && !self.spool.is_empty() {
            let event = next_event(&mut self.link).await;
            self.handle_event(event);
        }
    }

    fn keep(&mut self, window: EncodedWindow) {
        // The spool writes files; a slow disk may hold this thread up but not the other tasks.
        tokio::task::block_in_place(|| self.spool.push(window));
        self.pump();
    }

    /// Hands windows over, oldest first, until the connection has enough.
    fn pump(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        // Ends: the link takes a bounded number of windows without acknowledgement.
        while let Some((index, window)) = tokio::task::block_in_place(|| self.spool.after(connection.cursor)) {
            match connection.windows.submit(window) {
                Ok(()) => {
                    connection.cursor = Some(index);
                    self.board.views().uplink.windows.sent += 1;
                }
                // An acknowledgement or the next connection follows.
                Err(WindowNotSent::Full | WindowNotSent::Disconnected) => return,
            }
        }
    }

    fn report(&mut self, result: CommandResult) {
        let Some((link, _)) = &self.link else {
            if self.early.len() >= EARLY_MAX {
                self.early.pop_front();
            }
            self.early.push_back(result);
            return;
        };
        if let Err(result) = link.report(result) {
            tracing::warn!(action = %result.action, "a result could not be reported; the audit has it");
        }
    }

    fn handle_event(&mut self, event: Option<AgentLinkEvent>) {
        let Some(event) = event else {
            self.link = None;
            self.disconnected("the link has ended".to_owned());
            return;
        };
        match event {
            AgentLinkEvent::Connected { address, leader, term, acknowledged_below, windows } => {
                tracing::info!(%address, %leader, %term, "connected");
                self.connection = Some(Connection { windows, cursor: None });
                let mut views = self.board.views();
                views.uplink.leader = Some(leader);
                views.uplink.term = views.uplink.term.max(term);
                drop(views);
                self.forget(|spool, boot| spool.forget_below(boot, acknowledged_below));
            }
            AgentLinkEvent::Disconnected(reason) => self.disconnected(chain(&reason)),
            // The actuator makes a term durable with the first command of it.
            AgentLinkEvent::Term(term) => {
                tracing::debug!(%term, "a higher term");
                let mut views = self.board.views();
                views.uplink.term = views.uplink.term.max(term);
            }
            AgentLinkEvent::Acknowledged { boot, sequences } => self.forget(|spool, _| spool.forget(boot, &sequences)),
            AgentLinkEvent::Rejected { boot, sequence, reason } => {
                tracing::error!(sequence, reason, "an aggregator will never take this window");
                self.board.views().uplink.rejected += 1;
                tokio::task::block_in_place(|| self.spool.forget(boot, &[sequence]));
            }
            AgentLinkEvent::Command(command) => {
                if let Some(answer) = self.actuator.command(command) {
                    self.report(answer);
                }
            }
        }
        self.pump();
    }

    fn forget(&mut self, forget: impl FnOnce(&mut Spool, BootId) -> usize) {
        let boot = self.boot;
        let count = tokio::task::block_in_place(|| forget(&mut self.spool, boot));
        self.board.views().uplink.windows.acknowledged += count as u64;
    }

    fn disconnected(&mut self, reason: String) {
        if self.connection.take().is_some() {
            tracing::warn!(reason, "disconnected");
        }
        let mut views = self.board.views();
        views.uplink.leader = None;
        views.uplink.link_problem = Some(reason);
    }

    fn tick(&mut self) {
        let state = self.state();
        match &self.link {
            Some((link, _)) => link.set_state(state),
            None => self.connect(state),
        }
    }

    /// What heartbeats say.
    fn state(&self) -> AgentState {
        let views = self.board.views();
        let status = AgentStatus {
            spooled: u32::try_from(self.spool.len()).unwrap_or(u32::MAX),
            leases: u32::try_from(views.actuation.held.len()).unwrap_or(u32::MAX),
            is_frozen: views.actuation.is_frozen,
        };
        AgentState { term: views.actuation.term, status, held: views.actuation.held.clone() }
    }

    /// Starts the link, or says why there is none. Certificates may arrive later.
    fn connect(&mut self, state: AgentState) {
        let now = monotonic();
        if now < self.retry_at {
            return;
        }
        self.retry_at = now + RETRY;
        match tokio::task::block_in_place(|| self.start_link(state)) {
            Ok(link) => {
                self.link = Some(link);
                std::mem::take(&mut self.early).into_iter().for_each(|result| self.report(result));
            }
            Err(problem) => {
                tracing::warn!(problem, "windows are kept, nothing is sent");
                self.board.views().uplink.link_problem = Some(problem);
            }
        }
    }

    fn start_link(&self, state: AgentState) -> Result<(AgentLink, mpsc::Receiver<AgentLinkEvent>), String> {
        if self.config.aggregators.is_empty() {
            return Err("no aggregator is configured (aggregators.addresses)".to_owned());
        }
        let files = &self.config.tls;
        let tls = read_tls(&files.ca, &files.cert, &files.key).map_err(|error| chain(&error))?;
        let name = &tls.identity().name;
        if *name != self.config.node {
            return Err(format!(
                "the certificate is for node {name}, this is {}: set node, or issue another",
                self.config.node
            ));
        }
        let session = AgentSessionConfig {
            node: self.config.node.clone(),
            boot: self.boot,
            program: format!("sage-agent {}", env!("CARGO_PKG_VERSION")),
            addresses: self.config.aggregators.clone(),
            timing: Timing::default(),
        };
        AgentLink::spawn(session, &tls, state).map_err(|error| chain(&error))
    }

    fn publish(&self) {
        let mut views = self.board.views();
        views.uplink.windows.spooled = self.spool.len() as u64;
        views.uplink.spool = self.spool.counters();
        views.uplink.spool_bytes = self.spool.bytes();
        views.uplink.spool_problem = self.spool.problem().map(str::to_owned);
    }
}

/// The link's next event; never, without a link.
async fn next_event(link: &mut Option<(AgentLink, mpsc::Receiver<AgentLinkEvent>)>) -> Option<AgentLinkEvent> {
    match link {
        Some((_, events)) => events.recv().await,
        None => std::future::pending().await,
    }
}
