//! An instance of a program of ours, as those know it who send requests there.

use serde::{Deserialize, Serialize};

use crate::config::EndpointAddress;

/// One process of a backend, with all that it has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// No other one has ever had it.
    pub id: u32,
    /// The name of the backend.
    pub backend: String,
    pub address: EndpointAddress,
    pub state: InstanceState,
    /// Answers 200 when it is ready.
    pub ready_path: Option<String>,
    /// Missed deadlines in a row by which it counts as hung.
    pub hung: Option<u32>,
    /// Whether anybody wants to know of its requests.
    pub is_counted: bool,
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// It has not answered yet.
    Starting,
    /// It is sent requests.
    Serving,
    /// Another one has taken its place; it is sent requests of those clients only whose cookies name it.
    Lingering,
    /// It is sent no more, and ends what it has.
    Draining,
    /// It has been told to end.
    Stopping,
}

impl InstanceState {
    pub const ALL: [Self; 5] = [Self::Starting, Self::Serving, Self::Lingering, Self::Draining, Self::Stopping];

    /// As `/status` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Lingering => "lingering",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}
