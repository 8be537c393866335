//! The server's side of a delta stream.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::super::proto::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

/// The resources of one type that may be sent to a client.
pub trait Resources {
    /// A resource by its own name.
    fn get(&self, name: &str) -> Option<&Entry>;

    /// The names of all.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// The names of what somebody means who asks for `name`: a resource of this name or alias, and what is needed with
    /// it, such as the workloads of a service. Empty when there is nothing.
    fn resolve(&self, name: &str) -> Vec<&str>;
}

/// A resource, encoded once for all clients.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Changes when the resource does.
    pub version: Arc<str>,
    /// The resource.
    pub resource: Any,
    /// Other names that clients may ask for.
    pub aliases: Vec<String>,
}

impl Entry {
    /// A resource whose version is a hash of what it is.
    pub fn new(resource: Any, aliases: Vec<String>) -> Self {
        Self { version: version(&resource.value).into(), resource, aliases }
    }
}

/// FNV-1a over 64 bits: stable across processes, so that a client which comes back to another server is not sent
/// everything again. Nobody gains by a collision: it would hide a change from whoever made it.
fn version(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// What one client has asked for of one type, and what it has been sent.
#[derive(Clone, Debug, Default)]
pub struct Subscriber {
    started: bool,
    wildcard: bool,
    /// Names that were asked for, each with what it led to.
    names: BTreeMap<String, BTreeSet<String>>,
    /// What is sent unasked.
    pinned: BTreeSet<String>,
    /// What the client holds, with versions.
    held: HashMap<String, Arc<str>>,
    nonce: u64,
}

impl Subscriber {
    /// A client that has not asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers a request. `None` where there is nothing to say: to an ACK or NACK, or to names that were answered
    /// before.
    ///
    /// `pinned` are names of what the client is sent even if it only asks on demand: a node's proxy of the workloads on
    /// its node.
    pub fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        resources: &impl Resources,
        pinned: impl FnOnce() -> BTreeSet<String>,
    ) -> Option<DeltaDiscoveryResponse> {
        let first = !self.started;
        if first {
            self.start(request, pinned);
        }
        self.unsubscribe(request);
        let subscribed = request.resource_names_subscribe.iter().filter(|name| *name != "*");
        let asked: BTreeSet<_> = subscribed.filter(|name| !self.names.contains_key(*name)).cloned().collect();
        if !first && asked.is_empty() {
            return None;
        }
        let mut answer = Answer::default();
        for name in asked {
            // Answered even if it was sent for another reason before.
            self.lead(&name, resources, &mut answer, true);
            if self.names[&name].is_empty() {
                answer.response.removed_resources.push(name);
            }
        }
        if first && self.wildcard {
            for name in resources.names() {
                self.sync(name, resources, &mut answer, false);
            }
        }
        if first {
            for name in self.pinned.iter().chain(self.held.keys()).cloned().collect::<Vec<_>>() {
                self.sync(&name, resources, &mut answer, false);
            }
        }
        // Even an empty first answer is one: it says that there is nothing.
        Some(self.finish(answer, &request.type_url))
    }

    /// Announces what has changed. `changed` are the names of resources that were made, changed or removed since the
    /// last call; `pinned` replaces what is sent unasked.
    pub fn changed<'a>(
        &mut self,
        changed: impl IntoIterator<Item = &'a str>,
        resources: &impl Resources,
        type_url: &str,
        pinned: impl FnOnce() -> BTreeSet<String>,
    ) -> Option<DeltaDiscoveryResponse> {
        if !self.started {
            return None;
        }
        let mut answer = Answer::default();
        if self.wildcard {
            for name in changed {
                self.sync(name, resources, &mut answer, false);
            }
        } else {
            self.pinned = pinned();
            for (name, led_to) in self.names.clone() {
                self.lead(&name, resources, &mut answer, false);
                if self.names[&name].is_empty() && !led_to.is_empty() {
                    answer.response.removed_resources.push(name);
                }
            }
            for name in self.pinned.iter().chain(self.held.keys()).cloned().collect::<Vec<_>>() {
                self.sync(&name, resources, &mut answer, false);
            }
        }
        let response = &answer.response;
        let is_empty = response.resources.is_empty() && response.removed_resources.is_empty();
        (!is_empty).then(|| self.finish(answer, type_url))
    }

    /// Tells of all that differs from what the client holds: for one of whom it is not known what has changed.
    pub fn resync(
        &mut self,
        resources: &impl Resources,
        type_url: &str,
        pinned: impl FnOnce() -> BTreeSet<String>,
    ) -> Option<DeltaDiscoveryResponse> {
        let held: Vec<_> = self.held.keys().cloned().collect();
        self.changed(resources.names().chain(held.iter().map(String::as_str)), resources, type_url, pinned)
    }

    fn start(&mut self, request: &DeltaDiscoveryRequest, pinned: impl FnOnce() -> BTreeSet<String>) {
        self.started = true;
        let has = |names: &[String]| names.iter().any(|name| name == "*");
        let (subscribe, unsubscribe) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        self.wildcard = !has(unsubscribe) && (subscribe.is_empty() || has(subscribe));
        if !self.wildcard {
            self.pinned = pinned();
        }
        let versions = request.initial_resource_versions.iter();
        self.held = versions.map(|(name, version)| (name.clone(), version.as_str().into())).collect();
    }

    /// The client forgets what only these names led to by itself.
    fn unsubscribe(&mut self, request: &DeltaDiscoveryRequest) {
        for name in &request.resource_names_unsubscribe {
            for name in self.names.remove(name).unwrap_or_default() {
                let is_wanted = self.wildcard
                    || self.pinned.contains(&name)
                    || self.names.values().any(|led_to| led_to.contains(&name));
                if !is_wanted {
                    self.held.remove(&name);
                }
            }
        }
    }

    /// Tells of all that a name leads to.
    fn lead(&mut self, name: &str, resources: &impl Resources, answer: &mut Answer, again: bool) {
        let found: BTreeSet<String> = resources.resolve(name).into_iter().map(Into::into).collect();
        for found in &found {
            self.sync(found, resources, answer, again);
        }
        self.names.insert(name.into(), found);
    }

    /// Tells of one resource as it is, unless the client holds it so; `again` even then.
    fn sync(&mut self, name: &str, resources: &impl Resources, answer: &mut Answer, again: bool) {
        let Some(entry) = resources.get(name) else {
            if self.held.remove(name).is_some() {
                answer.response.removed_resources.push(name.into());
            }
            return;
        };
        let is_held = self.held.get(name) == Some(&entry.version);
        if (again || !is_held) && answer.names.insert(name.into()) {
            self.held.insert(name.into(), entry.version.clone());
            answer.response.resources.push(Resource {
                version: entry.version.to_string(),
                resource: Some(entry.resource.clone()),
                name: name.into(),
                aliases: if self.wildcard { Vec::new() } else { entry.aliases.clone() },
                ..Default::default()
            });
        }
    }

    fn finish(&mut self, answer: Answer, type_url: &str) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        DeltaDiscoveryResponse { nonce: self.nonce.to_string(), type_url: type_url.into(), ..answer.response }
    }
}

/// A response in the making.
#[derive(Default)]
struct Answer {
    response: DeltaDiscoveryResponse,
    /// Of its resources.
    names: HashSet<String>,
}

#[cfg(test)]
mod tests {
    use super::super::super::proto::ADDRESS_TYPE;
    use super::*;

    /// Services `s/NAME` with workloads `w/NAME/N`, and aliases.
    #[derive(Default)]
    struct World(BTreeMap<String, Entry>);

    impl World {
        fn with(mut self, name: &str, content: &'static str, aliases: &[&str]) -> Self {
            self.put(name, content, aliases);
            self
        }

        fn put(&mut self, name: &str, content: &'static str, aliases: &[&str]) {
            let any = Any { type_url: ADDRESS_TYPE.into(), value: content.into() };
            self.0.insert(name.into(), Entry::new(any, aliases.iter().map(|alias| (*alias).into()).collect()));
        }
    }

    impl Resources for World {
        fn get(&self, name: &str) -> Option<&Entry> {
            self.0.get(name)
        }

        fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
            Box::new(self.0.keys().map(String::as_str))
        }

        fn resolve(&self, name: &str) -> Vec<&str> {
            let is_it =
                |(own, entry): &(&String, &Entry)| *own == name || entry.aliases.iter().any(|alias| alias == name);
            let Some((own, _)) = self.0.iter().find(is_it) else { return Vec::new() };
            let workloads = own.strip_prefix("s/").map(|service| format!("w/{service}/"));
            let behind = |name: &&String| workloads.as_ref().is_some_and(|prefix| name.starts_with(prefix.as_str()));
            [own].into_iter().chain(self.0.keys().filter(behind)).map(String::as_str).collect()
        }
    }

    fn world() -> World {
        World::default().with("s/cart", "cart", &["east/10.1.0.1"]).with("w/cart/1", "one", &["east/10.0.0.1"]).with(
            "w/web/1",
            "web",
            &["east/10.0.0.9"],
        )
    }

    fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..Default::default()
        }
    }

    fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
        response.resources.iter().map(|resource| &resource.name[..]).collect()
    }

    fn nothing() -> BTreeSet<String> {
        BTreeSet::new()
    }

    #[test]
    fn a_wildcard_gets_everything_and_then_what_has_changed() {
        let (mut world, mut subscriber) = (world(), Subscriber::new());
        let all = subscriber.request(&request(&[], &[]), &world, nothing).unwrap();
        assert_eq!(names(&all), ["s/cart", "w/cart/1", "w/web/1"]);
        assert!(all.resources.iter().all(|resource| resource.aliases.is_empty()));
        let ack = DeltaDiscoveryRequest { response_nonce: all.nonce, ..request(&[], &[]) };
        assert_eq!(subscriber.request(&ack, &world, nothing), None);

        assert_eq!(subscriber.changed(["w/web/1"], &world, ADDRESS_TYPE, nothing), None, "it is as it was");
        world.put("w/web/1", "web, changed", &[]);
        world.0.remove("w/cart/1");
        let changed = subscriber.changed(["w/web/1", "w/cart/1"], &world, ADDRESS_TYPE, nothing).unwrap();
        assert_eq!((names(&changed), &changed.removed_resources[..]), (vec!["w/web/1"], &["w/cart/1".into()][..]));
        assert_ne!(changed.nonce, ack.response_nonce);
    }

    #[test]
    fn an_empty_first_answer_says_that_there_is_nothing() {
        let answer = Subscriber::new().request(&request(&[], &[]), &World::default(), nothing).unwrap();
        assert_eq!((answer.resources, answer.removed_resources), (vec![], vec![]));
        assert_eq!((answer.type_url.as_str(), answer.nonce.as_str()), (ADDRESS_TYPE, "1"));
    }

    #[test]
    fn who_comes_back_is_told_what_changed_meanwhile() {
        let world = world();
        let version = world.get("s/cart").unwrap().version.to_string();
        let held = [("s/cart".into(), version), ("w/cart/1".into(), "old".into()), ("w/gone".into(), "1".into())];
        let back = DeltaDiscoveryRequest { initial_resource_versions: held.into(), ..request(&[], &[]) };
        let answer = Subscriber::new().request(&back, &world, nothing).unwrap();
        assert_eq!(
            (names(&answer), &answer.removed_resources[..]),
            (vec!["w/cart/1", "w/web/1"], &["w/gone".into()][..])
        );
    }

    #[test]
    fn on_demand_gets_what_is_pinned_and_what_it_asks_for_with_aliases() {
        let (mut world, mut subscriber) = (world(), Subscriber::new());
        let pinned = || BTreeSet::from(["w/web/1".to_owned()]);
        let first = subscriber.request(&request(&["*"], &["*"]), &world, pinned).unwrap();
        assert_eq!(names(&first), ["w/web/1"]);
        assert_eq!(first.resources[0].aliases, ["east/10.0.0.9"]);

        let asked = subscriber.request(&request(&["east/10.1.0.1"], &[]), &world, pinned).unwrap();
        assert_eq!(names(&asked), ["s/cart", "w/cart/1"], "a service comes with its workloads");
        assert_eq!(subscriber.request(&request(&["east/10.1.0.1"], &[]), &world, pinned), None, "once");
        let again = subscriber.request(&request(&["w/cart/1"], &[]), &world, pinned).unwrap();
        assert_eq!(names(&again), ["w/cart/1"], "a new name is answered, whatever it leads to");
        let unknown = subscriber.request(&request(&["east/10.0.0.77"], &[]), &world, pinned).unwrap();
        assert_eq!((names(&unknown), &unknown.removed_resources[..]), (vec![], &["east/10.0.0.77".into()][..]));

        world.put("w/cart/2", "two", &[]);
        world.put("w/other/1", "other", &[]);
        let changed = subscriber.changed(["w/cart/2", "w/other/1"], &world, ADDRESS_TYPE, pinned).unwrap();
        assert_eq!(names(&changed), ["w/cart/2"]);
        world.0.remove("s/cart");
        world.0.remove("w/cart/1");
        let changed = subscriber.changed(["s/cart", "w/cart/1"], &world, ADDRESS_TYPE, pinned).unwrap();
        let removed: BTreeSet<_> = changed.removed_resources.iter().map(|name| &name[..]).collect();
        assert_eq!(removed, BTreeSet::from(["east/10.1.0.1", "s/cart", "w/cart/1"]));
    }

    #[test]
    fn a_request_that_only_unsubscribes_is_not_answered() {
        let (world, mut subscriber) = (world(), Subscriber::new());
        subscriber.request(&request(&["*", "s/cart"], &["*"]), &world, nothing).unwrap();
        assert_eq!(subscriber.request(&request(&[], &["s/cart"]), &world, nothing), None);
        let again = subscriber.request(&request(&["w/cart/1"], &[]), &world, nothing).unwrap();
        assert_eq!(names(&again), ["w/cart/1"]);
    }
}
