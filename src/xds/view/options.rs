//! How a view is computed.

/// How a view is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    only_ready: bool,
    all_gateways: bool,
    waypoint_identities: bool,
}

impl Default for Options {
    /// All that is better than Istio's.
    fn default() -> Self {
        Self { only_ready: true, all_gateways: true, waypoint_identities: true }
    }
}

impl Options {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// What Istio's own control plane does (86c9f01).
    pub fn istio() -> Self {
        Self { only_ready: false, all_gateways: false, waypoint_identities: false }
    }

    /// Counts only endpoints that are ready and take tunnels. Default: true.
    pub fn with_only_ready(mut self, only_ready: bool) -> Self {
        self.only_ready = only_ready;
        self
    }

    /// Tells of all gateways into a network, not of the first one only. Default: true.
    pub fn with_all_gateways(mut self, all_gateways: bool) -> Self {
        self.all_gateways = all_gateways;
        self
    }

    /// Accepts the identities of waypoints in other networks. Default: true.
    pub fn with_waypoint_identities(mut self, waypoint_identities: bool) -> Self {
        self.waypoint_identities = waypoint_identities;
        self
    }

    /// Whether only endpoints count that are ready and take tunnels.
    pub fn only_ready(&self) -> bool {
        self.only_ready
    }

    /// Whether all gateways into a network are announced.
    pub fn all_gateways(&self) -> bool {
        self.all_gateways
    }

    /// Whether the identities of waypoints in other networks are accepted.
    pub fn waypoint_identities(&self) -> bool {
        self.waypoint_identities
    }
}
