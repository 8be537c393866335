//! The sessions' format; `docs/vectors/README.md` describes it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::hpack::Fields;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    pub(super) about: String,
    #[serde(rename = "section")]
    _section: String,
    pub(super) side: Side,
    /// The settings of the peer, in its first frame.
    #[serde(default)]
    pub(super) settings: BTreeMap<String, u32>,
    /// How many tunnels the side under test allows.
    pub(super) max_tunnels: Option<u32>,
    /// Whether the peer answers PINGs.
    #[serde(default = "yes")]
    pub(super) answers_pings: bool,
    pub(super) steps: Vec<Step>,
}

/// The side under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Side {
    Client,
    Server,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// The peer sends a frame.
    Peer(Frame),
    /// The side under test sends it.
    Expect(Frame),
    /// It has sent none such so far, beside those expected.
    Never(Frame),
    /// What the user of the side under test does.
    App(Action),
    /// What that user sees.
    Sees(Sight),
    /// Seconds go by.
    Wait(u64),
    /// A session inside a tunnel.
    Inside(Inside),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Frame {
    pub(super) frame: String,
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) ack: bool,
    /// HEADERS that CONTINUATION follows.
    pub(super) unfinished: bool,
    pub(super) padding: Option<u8>,
    pub(super) text: Option<String>,
    pub(super) hex: Option<String>,
    /// How the payload of the next DATA frame begins. It is not consumed.
    pub(super) begins: Option<String>,
    pub(super) fields: Option<Fields>,
    pub(super) code: Option<String>,
    pub(super) last_stream: Option<u32>,
    pub(super) increment: Option<u32>,
    pub(super) settings: BTreeMap<String, u32>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Action {
    Open {
        tunnel: u32,
        authority: String,
        #[serde(default)]
        fields: Fields,
        /// Returns before the answer.
        #[serde(default)]
        early: bool,
    },
    /// Opens a tunnel for a session inside it.
    Extend {
        authority: String,
        accept: Vec<String>,
        #[serde(default)]
        fields: Fields,
    },
    Accept {
        tunnel: u32,
        #[serde(default)]
        fields: Fields,
    },
    Refuse {
        tunnel: u32,
        error: String,
        details: Option<String>,
    },
    /// Lets go of a request without an answer, of a tunnel, or of one that is being opened.
    Drop {
        tunnel: u32,
    },
    Write {
        tunnel: u32,
        text: String,
    },
    /// Ends this side's direction.
    Finish {
        tunnel: u32,
    },
    Reset {
        tunnel: u32,
        code: String,
    },
    /// The server opens no more tunnels; the client lets go of the connection.
    Drain,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Sight {
    /// The server's user is asked for a tunnel.
    Request {
        tunnel: u32,
        authority: String,
        #[serde(default)]
        fields: Fields,
    },
    /// The client's tunnel is open.
    Opened {
        tunnel: u32,
        #[serde(default)]
        fields: Fields,
    },
    Refused {
        tunnel: u32,
        status: u16,
        error: Option<String>,
        details: Option<String>,
    },
    Data {
        tunnel: u32,
        text: String,
    },
    End {
        tunnel: u32,
    },
    /// The tunnel, or opening it, fails. With the code of a reset, where there is one.
    Failure {
        tunnel: u32,
        code: Option<String>,
    },
    /// The session inside could not be opened.
    ExtendFailed,
    Connection {
        /// Or by a failure.
        in_order: bool,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inside {
    pub(super) stream: u32,
    /// Who the peer proves to be.
    pub(super) server: String,
    #[serde(default)]
    pub(super) settings: BTreeMap<String, u32>,
    /// Whether the handshake succeeds.
    #[serde(default = "yes")]
    pub(super) handshake: bool,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
}

fn yes() -> bool {
    true
}

const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

const KINDS: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];

const SETTINGS: [&str; 6] = [
    "HEADER_TABLE_SIZE",
    "ENABLE_PUSH",
    "MAX_CONCURRENT_STREAMS",
    "INITIAL_WINDOW_SIZE",
    "MAX_FRAME_SIZE",
    "MAX_HEADER_LIST_SIZE",
];

/// The number behind a name, or behind itself in hexadecimal.
fn number(names: &[&str], name: &str) -> u32 {
    match names.iter().position(|n| *n == name) {
        Some(position) => position as u32,
        None => {
            let digits = name.strip_prefix("0x").unwrap_or_else(|| panic!("{name} has no number"));
            u32::from_str_radix(digits, 16).unwrap()
        }
    }
}

pub(super) fn code(name: &str) -> u32 {
    number(&CODES, name)
}

pub(super) fn kind(name: &str) -> u8 {
    number(&KINDS, name).try_into().unwrap()
}

/// The payload of a SETTINGS frame.
pub(super) fn settings(values: &BTreeMap<String, u32>) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in values {
        // The first one has the number 1.
        let offset = u32::from(!name.starts_with("0x"));
        let id = u16::try_from(number(&SETTINGS, name) + offset).unwrap();
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    payload
}
