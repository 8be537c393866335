//! Our control plane, fed with the manifests of `data/`, tells each cluster what Istio's does.
//!
//! `data/README.md` says where the data comes from. Deliberate differences are listed in [`DIFFERENCES`], each with its
//! reason.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hbone::xds::delta::Entry;
use hbone::xds::proto::{Address, Authorization};
use hbone::xds::view::{Options, Views};
use hbone_programs::controlplane::convert::{Converter, Features};
use hbone_programs::controlplane::kinds::MeshConfig;
use hbone_programs::controlplane::manifest::{self, ReadAs as _};
use rstest::rstest;
use serde_json::Value;

/// Resources of one kind, by name.
type Resources = BTreeMap<String, Value>;

/// Where ours differs on purpose, beside what `Options` says: how the scenario and the resource's name begin and end,
/// and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "11-service-kinds",
        "shop/no-selector.shop.svc.cluster.local",
        "no identity without a service account is accepted",
    ),
    ("19-workload-entry", "shop/cart.shop.svc.cluster.local", "a workload entry counts in the network that it is in"),
    (
        "15-peer-authentication, step 2",
        "shop/converted_peer_authentication_open-but-a-port",
        "a policy that a workload names is there",
    ),
    (
        "15-peer-authentication, step 2",
        "shop/converted_peer_authentication_strict-but-a-port",
        "no clause is sent twice",
    ),
];

/// Everything that a cluster is sent.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    addresses: Resources,
    policies: Resources,
}

struct World {
    clusters: BTreeMap<String, Converter>,
    views: Views,
}

impl World {
    fn read(dir: &Path, options: Options) -> Self {
        let flags = fs::read_to_string(dir.join("flags.txt")).unwrap_or_default();
        let features = Features {
            auto_allow_waypoint: flags.contains("PILOT_AUTO_ALLOW_WAYPOINT_POLICY=true"),
            dry_run_policies: flags.contains("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY=true"),
        };
        let mut clusters = BTreeMap::new();
        for path in files(dir, "cluster.", ".yaml") {
            let name = path.file_name().unwrap().to_str().unwrap().split('.').nth(1).unwrap().to_owned();
            let mut converter = Converter::new(name.as_str(), features);
            let configs = [format!("meshconfig.{name}.yaml"), "meshconfig.yaml".into()];
            let config = configs.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok());
            let config = config.map(|text| text.as_str().read_as::<MeshConfig>().unwrap());
            converter.set_mesh_config(config);
            clusters.insert(name, converter);
        }
        let mut world = Self { clusters, views: Views::new(options) };
        for path in files(dir, "cluster.", ".yaml") {
            world.put(&path, 1);
        }
        world.update();
        world
    }

    /// The objects of a file; the cluster is the given part of its name.
    fn put(&mut self, path: &Path, part: usize) {
        let name = path.file_name().unwrap().to_str().unwrap().split('.').nth(part).unwrap();
        let converter = self.clusters.get_mut(name).unwrap();
        let (objects, problems) = manifest::parse(name, &fs::read_to_string(path).unwrap());
        assert_eq!(problems, [], "{}", path.display());
        for object in objects {
            if object.metadata().annotations.contains_key("golden/delete") {
                converter.remove(&object);
            } else {
                converter.put(object);
            }
        }
    }

    fn update(&mut self) {
        for (name, converter) in &mut self.clusters {
            for change in converter.changes() {
                self.views.apply(name, change);
            }
        }
        self.views.update();
    }

    fn told(&self, cluster: &str) -> Told {
        let view = self.views.view(cluster).unwrap();
        let names = hbone::xds::delta::Resources::names(view.policies());
        let policy = |name: &str| hbone::xds::delta::Resources::get(view.policies(), name).unwrap();
        Told {
            addresses: view.addresses().iter().map(|(name, entry)| (name.into(), json::<Address>(entry))).collect(),
            policies: names.map(|name| (name.into(), json::<Authorization>(policy(name)))).collect(),
        }
    }
}

fn json<M: prost::Message + Default + serde::Serialize>(entry: &Entry) -> Value {
    serde_json::to_value(M::decode(entry.resource.value.clone()).unwrap()).unwrap()
}

fn files(dir: &Path, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    let mut found: Vec<_> = all.filter(is_it).collect();
    found.sort();
    found
}

fn resources(value: &Value) -> Resources {
    value.as_object().map(|map| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default()
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What differs, but for what may.
fn differences(scenario: &str, cluster: &str, kind: &str, ours: &Resources, expected: &Resources) -> Vec<String> {
    let names: BTreeSet<_> = ours.keys().chain(expected.keys()).collect();
    let differing = names.into_iter().filter(|name| ours.get(*name) != expected.get(*name));
    let may = |name: &str| DIFFERENCES.iter().any(|(s, n, _)| scenario.starts_with(s) && name.ends_with(n));
    let describe = |name: &String| {
        let show = |of: &Resources| of.get(name).map_or("nothing".into(), Value::to_string);
        format!("{scenario}, {cluster}, {kind} {name}:\n  ours     {}\n  expected {}", show(ours), show(expected))
    };
    differing.filter(|name| !may(name)).map(describe).collect()
}

fn compare(scenario: &str, cluster: &str, ours: &Told, expected: &Told) -> Vec<String> {
    let addresses = differences(scenario, cluster, "address", &ours.addresses, &expected.addresses);
    let policies = differences(scenario, cluster, "policy", &ours.policies, &expected.policies);
    addresses.into_iter().chain(policies).collect()
}

#[rstest]
fn each_cluster_is_told_what_istio_tells_it(
    #[dirs]
    #[files("tests/golden/data/[0-9]*")]
    dir: PathBuf,
) {
    let scenario = dir.file_name().unwrap().to_str().unwrap().to_owned();
    let mut world = World::read(&dir, Options::istio());
    let mut found = Vec::new();
    let mut expected = BTreeMap::new();
    for cluster in world.clusters.keys() {
        let path = dir.join(format!("expected.{cluster}.json"));
        let alternatives = files(&dir, &format!("expected.{cluster}.or-"), ".json");
        let told = |path: &PathBuf| {
            let value = read(path);
            Told { addresses: resources(&value["addresses"]), policies: resources(&value["policies"]) }
        };
        let all: Vec<_> = [path].iter().chain(&alternatives).map(told).collect();
        let ours = world.told(cluster);
        let least = all.into_iter().min_by_key(|told| compare(&scenario, cluster, &ours, told).len()).unwrap();
        found.extend(compare(&scenario, cluster, &ours, &least));
        expected.insert(cluster.clone(), least);
    }
    for step in 2.. {
        let inputs: Vec<_> = world.clusters.keys().map(|c| dir.join(format!("step{step}.{c}.yaml"))).collect();
        if !inputs.iter().any(|path| path.exists()) {
            break;
        }
        for path in inputs.iter().filter(|path| path.exists()) {
            world.put(path, 1);
        }
        world.update();
        for (cluster, expected) in &mut expected {
            let value = read(&dir.join(format!("step{step}.expected.{cluster}.json")));
            for (kind, of) in [("addresses", &mut expected.addresses), ("policies", &mut expected.policies)] {
                of.extend(resources(&value[kind]["changed"]));
                for name in value[kind]["removed"].as_array().into_iter().flatten() {
                    of.remove(name.as_str().unwrap());
                }
            }
            found.extend(compare(&format!("{scenario}, step {step}"), cluster, &world.told(cluster), expected));
        }
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}
