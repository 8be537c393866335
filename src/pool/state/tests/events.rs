//! Any events in any order.

use arbitrary::{Arbitrary, Unstructured};

use super::super::*;
use super::sim::{Sim, dial_error, direct, inside, limits, millis, secs, token};

#[derive(Clone, Debug)]
enum Event {
    Checkout {
        source: u64,
        path: u8,
        backends: u32,
    },
    /// Asks again after room may have come in between.
    Enqueue {
        source: u64,
        path: u8,
        backends: u32,
    },
    Cancel(usize),
    Release(usize),
    /// A dial inside another connection gets its permit there.
    Enter(usize),
    Land {
        dial: usize,
        backend: Option<u64>,
        limit: usize,
        awaiting_settings: bool,
    },
    Fail(usize),
    Lose(usize),
    Identified(usize, Option<u64>),
    Limit(usize, usize),
    Close(usize),
    Drain(usize),
    FailBeforeSettings(usize),
    LoadChanged(usize, Load),
    End(usize),
    Reap,
    SourceEnded(u64, bool),
    Pass(u64),
    ClosePool,
}

impl<'a> Arbitrary<'a> for Event {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        // One byte for each number: what is near to an input is near to it in what happens.
        let mut byte = || u8::arbitrary(u);
        let backend = |byte: u8| (!byte.is_multiple_of(6)).then_some(u64::from(byte % 6));
        Ok(match byte()? % 19 {
            kind @ 0..2 => {
                let source = 1 + u64::from(byte()? % 2);
                let (path, backends) = (byte()? % 6, 1 + u32::from(byte()? % 4));
                match kind {
                    0 => Self::Checkout { source, path, backends },
                    _ => Self::Enqueue { source, path, backends },
                }
            }
            2 => Self::Cancel(byte()?.into()),
            3 => Self::Release(byte()?.into()),
            4 => Self::Enter(byte()?.into()),
            5 => {
                let (dial, limit) = (byte()?.into(), usize::from(byte()? % 6));
                Self::Land { dial, backend: backend(byte()?), limit, awaiting_settings: byte()? % 2 == 1 }
            }
            6 => Self::Fail(byte()?.into()),
            7 => Self::Identified(byte()?.into(), backend(byte()?)),
            8 => Self::Limit(byte()?.into(), usize::from(byte()? % 6)),
            9 => Self::Close(byte()?.into()),
            10 => Self::Drain(byte()?.into()),
            11 => Self::FailBeforeSettings(byte()?.into()),
            12 => Self::LoadChanged(byte()?.into(), [Load::Light, Load::Bulk, Load::Full][usize::from(byte()? % 3)]),
            13 => Self::End(byte()?.into()),
            14 => Self::Reap,
            15 => Self::SourceEnded(1 + u64::from(byte()? % 2), byte()? % 2 == 1),
            16 => {
                let (scale, time) = (byte()? % 3, u64::from(byte()?));
                Self::Pass(time * [2, 80, 8_000][usize::from(scale)])
            }
            17 => Self::Lose(byte()?.into()),
            _ => Self::ClosePool,
        })
    }
}

fn key(source: u64, path: u8, backends: u32) -> Key {
    let outer = direct(1, Reuse::Shared);
    let key = match path {
        0 => outer,
        1 => inside(&outer, "a:1", Reuse::Spread(backends)),
        2 => inside(&outer, "b:1", Reuse::Never),
        3 => inside(&inside(&outer, "a:1", Reuse::Spread(backends)), "c:1", Reuse::Shared),
        4 => direct(2, Reuse::Never),
        _ => direct(3, Reuse::Spread(backends)),
    };
    Key { source, ..key }
}

fn nth<T: Copy>(mut items: impl ExactSizeIterator<Item = T>, n: usize) -> Option<T> {
    let len = items.len();
    items.nth(n.checked_rem(len)?)
}

fn apply(sim: &mut Sim, event: Event) {
    let conn = |sim: &Sim, n| nth(sim.conns.keys().copied().collect::<Vec<_>>().into_iter(), n);
    let dial = |sim: &Sim, n: usize| n.checked_rem(sim.dials.len());
    let releasable = |sim: &Sim, id: ConnId| sim.conns[&id].open > sim.conns[&id].nested;
    match event {
        Event::Checkout { source, path, backends } => drop(sim.checkout(&key(source, path, backends))),
        Event::Enqueue { source, path, backends } => drop(sim.enqueue(&key(source, path, backends))),
        Event::Cancel(n) => {
            if let Some(n) = n.checked_rem(sim.waiters.len()) {
                sim.cancel(n);
            }
        }
        Event::Release(n) => {
            if let Some(id) = conn(sim, n).filter(|id| releasable(sim, *id)) {
                sim.release(id);
            }
        }
        Event::Enter(n) => {
            if let Some(n) = dial(sim, n)
                && sim.dials[n].parent.is_none()
                && let Some((path, _)) = sim.dials[n].key.path.parent()
            {
                let parent = Key { source: sim.dials[n].key.source, path };
                if !sim.enter(n) {
                    // The simulated dial doesn't wait; a caller does.
                    let _ = sim.checkout(&parent);
                }
            }
        }
        Event::Land { dial: n, backend, limit, awaiting_settings } => {
            if let Some(n) = dial(sim, n)
                && (sim.dials[n].key.path.depth() == 1 || sim.dials[n].parent.is_some())
            {
                sim.land_as(n, backend.map(token), limit, awaiting_settings);
            }
        }
        Event::Fail(n) => {
            if let Some(n) = dial(sim, n) {
                sim.fail(n);
            }
        }
        Event::Lose(n) => {
            if let Some(n) = dial(sim, n) {
                sim.lose(n);
            }
        }
        Event::Identified(n, backend) => {
            if let Some(id) = conn(sim, n) {
                sim.identified(id, backend.map(token));
            }
        }
        Event::Limit(n, limit) => {
            if let Some(id) = conn(sim, n) {
                sim.limit(id, limit);
            }
        }
        Event::Close(n) => {
            if let Some(id) = conn(sim, n) {
                sim.close_conn(id);
            }
        }
        Event::Drain(n) => {
            if let Some(id) = conn(sim, n) {
                sim.drain(id);
            }
        }
        Event::FailBeforeSettings(n) => {
            if let Some(id) = conn(sim, n) {
                sim.fail_before_settings(id);
            }
        }
        Event::LoadChanged(n, load) => {
            if let Some(id) = conn(sim, n) {
                sim.load_changed(id, load);
            }
        }
        Event::End(n) => {
            // The connections inside one end before its driver reports, or just after; here just before.
            if let Some(id) = conn(sim, n).filter(|id| sim.conns.values().all(|conn| conn.parent != Some(*id))) {
                sim.end(id);
            }
        }
        Event::Reap => sim.reap(),
        Event::SourceEnded(source, error) => sim.source_ended(source, error.then(dial_error).as_ref()),
        Event::Pass(millis_passed) => sim.pass(millis(millis_passed)),
        Event::ClosePool => sim.close(),
    }
}

/// Any events in any order, under limits from the first bytes.
pub fn fuzz(data: &[u8]) {
    let Some(([in_all, per_path, busy, seed], events)) = data.split_first_chunk() else { return };
    let [in_all, per_path, busy_connections] = [2 + in_all % 10, 1 + per_path % 5, 1 + busy % 2].map(usize::from);
    let limits = Limits { in_all, per_path, busy_connections, max_age: secs(400), ..limits() };
    let mut events = Unstructured::new(events);
    let events = std::iter::from_fn(|| (!events.is_empty()).then(|| events.arbitrary().ok()).flatten());
    happen(limits, (*seed).into(), events.take(500));
}

fn happen(limits: Limits, seed: u64, events: impl IntoIterator<Item = Event>) {
    let mut sim = Sim::seeded(limits, seed);
    for event in events {
        apply(&mut sim, event);
    }
    sim.wind_up();
}

#[cfg(test)]
mod any_order {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let (source, path, backends) = (1..3u64, 0..6u8, 1..5u32);
        let n = 0..64usize;
        let backend = || proptest::option::weighted(0.7, 0..5u64);
        prop_oneof![
            30 => (source.clone(), path.clone(), backends.clone())
                .prop_map(|(source, path, backends)| Event::Checkout { source, path, backends }),
            4 => (source.clone(), path, backends)
                .prop_map(|(source, path, backends)| Event::Enqueue { source, path, backends }),
            6 => n.clone().prop_map(Event::Cancel),
            14 => n.clone().prop_map(Event::Release),
            10 => n.clone().prop_map(Event::Enter),
            16 => (n.clone(), backend(), 0..6usize, any::<bool>())
                .prop_map(|(dial, backend, limit, awaiting_settings)| {
                    Event::Land { dial, backend, limit, awaiting_settings }
                }),
            5 => n.clone().prop_map(Event::Fail),
            2 => n.clone().prop_map(Event::Lose),
            5 => (n.clone(), backend()).prop_map(|(n, backend)| Event::Identified(n, backend)),
            5 => (n.clone(), 0..6usize).prop_map(|(n, limit)| Event::Limit(n, limit)),
            3 => n.clone().prop_map(Event::Close),
            2 => n.clone().prop_map(Event::Drain),
            2 => n.clone().prop_map(Event::FailBeforeSettings),
            3 => (n.clone(), prop_oneof![Just(Load::Light), Just(Load::Bulk), Just(Load::Full)])
                .prop_map(|(n, load)| Event::LoadChanged(n, load)),
            3 => n.prop_map(Event::End),
            8 => Just(Event::Reap),
            1 => (source, any::<bool>()).prop_map(|(source, error)| Event::SourceEnded(source, error)),
            6 => prop_oneof![0..500u64, 0..20_000u64, 0..2_000_000u64].prop_map(Event::Pass),
            1 => prop_oneof![9 => Just(Event::Reap), 1 => Just(Event::ClosePool)],
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

        #[test]
        fn no_caller_is_forgotten_and_nothing_is_left_over(
            events in proptest::collection::vec(event(), 1..150),
            in_all in 2..12usize,
            per_path in 1..6usize,
            busy_connections in 1..3usize,
            seed in any::<u64>(),
        ) {
            let limits = Limits { in_all, per_path, busy_connections, max_age: secs(400), ..limits() };
            happen(limits, seed, events);
        }
    }
}
