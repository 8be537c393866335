//! How many connections there are in all.

use super::super::*;
use super::sim::{Sim, direct, inside, limits, secs, token};

fn sim(in_all: usize) -> Sim {
    Sim::new(Limits { in_all, ..limits() })
}

fn open(sim: &mut Sim, n: u8) -> ConnId {
    let _ = sim.checkout(&direct(n, Reuse::Shared));
    sim.land(0, None, 1)
}

#[test]
fn the_one_that_is_idle_for_the_longest_time_makes_room() {
    let mut sim = sim(3);
    let conns: Vec<_> = (0..3).map(|n| open(&mut sim, n)).collect();
    for n in [1, 0] {
        sim.release(conns[n]);
        sim.pass(secs(1));
    }
    let _ = sim.checkout(&direct(9, Reuse::Shared));
    assert!(sim.conns[&conns[1]].dropped && !sim.conns[&conns[0]].dropped && !sim.conns[&conns[2]].dropped);
    assert!(sim.dials.is_empty(), "it is not gone yet");
    sim.reap();
    assert_eq!(sim.dials.len(), 1);
    sim.wind_up();
}

#[test]
fn for_each_that_is_wanted_one_makes_room() {
    let mut sim = sim(4);
    let conns: Vec<_> = (0..4).map(|n| open(&mut sim, n)).collect();
    conns.iter().for_each(|conn| sim.release(*conn));
    for n in [10, 11, 10, 11] {
        let _ = sim.checkout(&direct(n, Reuse::Shared));
    }
    assert_eq!(sim.conns.values().filter(|conn| conn.dropped).count(), 2);
    sim.reap();
    assert_eq!(sim.dials.len(), 2);
    sim.wind_up();
}

#[test]
fn a_dial_that_found_no_room_starts_when_there_is_some() {
    for end in 0..4 {
        let mut sim = sim(2);
        let a = open(&mut sim, 0);
        let tag = sim.checkout(&direct(1, Reuse::Shared)).unwrap_err();
        let pending = [2, 3].map(|n| sim.checkout(&direct(n, Reuse::Shared)).unwrap_err());
        assert_eq!((sim.dials.len(), sim.state.pending_dials.len()), (1, 2));
        match end {
            0 => sim.end(a),
            1 => {
                sim.release(a);
                sim.reap();
            }
            2 => sim.fail(0),
            _ => {
                // It lands when nobody waits for it any more.
                sim.cancel(0);
                sim.land(0, None, 1);
                sim.reap();
            }
        }
        let started = sim.dials.iter().any(|dial| dial.key == direct(2, Reuse::Shared));
        assert!(started, "end {end}: {:?}", sim.dials);
        assert!(sim.waiters.len() >= 2, "{tag} {pending:?}");
        sim.wind_up();
    }
}

#[test]
fn the_next_gets_the_room_of_one_who_does_not_want_it_any_more() {
    let mut sim = sim(2);
    let (a, _b) = (open(&mut sim, 0), open(&mut sim, 1));
    for n in 2..5 {
        let _ = sim.checkout(&direct(n, Reuse::Shared));
    }
    sim.cancel(0);
    sim.cancel(0);
    sim.end(a);
    assert_eq!(sim.dials.len(), 1);
    assert_eq!(sim.dials[0].key, direct(4, Reuse::Shared));
    sim.wind_up();
}

#[test]
fn what_nobody_waits_for_takes_no_room_from_others() {
    let mut sim = sim(4);
    let keys = [1, 2].map(|n| direct(n, Reuse::Spread(3)));
    for n in 0..40 {
        for key in &keys {
            if let Ok(conn) = sim.checkout(key) {
                sim.release(conn);
            }
        }
        while !sim.dials.is_empty() {
            sim.land(0, Some(token(n)), 4);
        }
        for conn in sim.conns.keys().copied().collect::<Vec<_>>() {
            while sim.conns[&conn].open > 0 {
                sim.release(conn);
            }
        }
        sim.reap();
    }
    let handshakes = sim.state.next_id;
    assert!(handshakes < 20, "they evict each other: {handshakes}");
    sim.wind_up();
}

#[test]
fn the_connection_that_holds_another_is_not_idle() {
    let mut sim = sim(2);
    let outer_key = direct(1, Reuse::Shared);
    let inner_key = inside(&outer_key, "a:1", Reuse::Shared);
    let _ = sim.checkout(&outer_key);
    let outer = sim.land(0, None, 4);
    let _ = sim.checkout(&inner_key);
    assert!(sim.enter(0));
    sim.release(outer);
    let inner = sim.land(0, None, 4);
    sim.release(inner);
    let _ = sim.checkout(&direct(2, Reuse::Shared));
    assert!(sim.conns[&inner].dropped && !sim.conns[&outer].dropped);
    sim.wind_up();
}
