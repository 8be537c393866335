//! A name that stands for many backends.

use std::collections::BTreeSet;

use rstest::rstest;

use super::super::*;
use super::sim::{Sim, direct, limits, millis, secs, token};

fn spread(n: u32) -> Key {
    direct(1, Reuse::Spread(n))
}

/// Opens and ends a tunnel.
fn touch(sim: &mut Sim, key: &Key) {
    if let Ok(conn) = sim.checkout(key) {
        sim.release(conn);
    }
}

/// With connections to these backends.
fn covering(n: u32, backends: &[u64]) -> Sim {
    let mut sim = Sim::new(limits());
    let key = spread(n);
    let _ = sim.checkout(&key);
    for backend in backends {
        let conn = sim.land(0, Some(token(*backend)), 4);
        while sim.conns[&conn].open > 0 {
            sim.release(conn);
        }
    }
    sim
}

#[test]
fn it_grows_one_dial_at_a_time_and_nobody_waits_for_that() {
    let (mut sim, key) = (Sim::new(limits()), spread(3));
    let _ = sim.checkout(&key);
    for n in 0..3 {
        assert_eq!(sim.dials.len(), 1);
        let known_backends: Vec<_> = (0..n).map(token).collect();
        assert_eq!(sim.dials[0].known_backends, known_backends);
        if n > 0 {
            assert!(sim.try_checkout(&key).is_some(), "without waiting");
        }
        sim.land(0, Some(token(n)), 4);
    }
    assert!(sim.dials.is_empty(), "all are known_backends");
    sim.wind_up();
}

#[test]
fn it_follows_the_number_of_backends() {
    let mut sim = covering(2, &[0, 1]);
    assert!(sim.dials.is_empty());
    touch(&mut sim, &spread(3));
    assert_eq!(sim.dials.len(), 1);
    sim.land(0, Some(token(2)), 4);
    touch(&mut sim, &spread(1));
    assert!(sim.dials.is_empty());
    assert_eq!(sim.conns.len(), 3, "what is there stays until it is idle");
    sim.wind_up();
}

#[test]
fn a_backend_that_is_added_does_not_make_up_for_what_the_others_got_before() {
    let mut sim = covering(2, &[0, 1]);
    for _ in 0..400 {
        touch(&mut sim, &spread(2));
    }
    let key = spread(3);
    touch(&mut sim, &key);
    sim.land(0, Some(token(2)), 4);
    let picked: BTreeSet<_> = (0..3).map(|_| sim.checkout(&key).unwrap()).collect();
    assert_eq!(picked.len(), 3, "one each");
    sim.wind_up();
}

#[test]
fn a_backend_with_the_fewest_tunnels_is_next_however_many_connections_it_has() {
    let mut sim = covering(3, &[0, 1]);
    let key = spread(3);
    // A second connection to backend 0 that is there because somebody waited.
    sim.land(0, Some(token(2)), 4);
    let conns: Vec<_> = sim.conns.keys().copied().collect();
    for _ in 0..3 {
        for conn in &conns {
            assert!(sim.conns[conn].open <= 3);
        }
        let picked: BTreeSet<_> = (0..3).map(|_| sim.checkout(&key).unwrap()).collect();
        assert_eq!(picked.len(), 3, "one each");
    }
    sim.wind_up();
}

#[test]
fn a_connection_to_a_backend_that_has_one_is_let_go() {
    let mut sim = covering(3, &[0, 1]);
    assert_eq!(sim.dials.len(), 1);
    let is_duplicate = sim.land(0, Some(token(0)), 4);
    assert!(sim.conns[&is_duplicate].dropped);
    assert_eq!(sim.dials.len(), 1, "and the next is tried");
    sim.wind_up();
}

#[test]
fn it_backs_off_after_misses_and_forgets_that_when_the_number_changes() {
    let mut sim = covering(2, &[0]);
    let key = spread(2);
    for miss in 1..=4 {
        assert_eq!(sim.dials.len(), 1, "miss {miss} is free");
        sim.land(0, Some(token(0)), 4);
        sim.reap();
    }
    let mut wait = 250;
    for _ in 0..4 {
        touch(&mut sim, &key);
        assert_eq!(sim.dials.len(), 1);
        sim.land(0, Some(token(0)), 4);
        sim.reap();
        touch(&mut sim, &key);
        assert_eq!(sim.dials.len(), 0, "not before {wait} ms");
        sim.pass(millis(wait));
        wait *= 2;
    }
    touch(&mut sim, &key);
    sim.land(0, Some(token(0)), 4);
    sim.reap();
    touch(&mut sim, &key);
    assert_eq!(sim.dials.len(), 0);
    touch(&mut sim, &spread(3));
    assert_eq!(sim.dials.len(), 1, "another number, another chance");
    sim.wind_up();
}

#[rstest]
#[case(1, 2)]
#[case(3, 6)]
#[case(10, 8)]
fn of_backends_that_tell_nothing_twice_as_many_are_kept(#[case] backends: u32, #[case] expected: usize) {
    let (mut sim, key) = (Sim::new(limits()), spread(backends));
    let _ = sim.checkout(&key);
    for _ in 0..50 {
        if !sim.dials.is_empty() {
            let conn = sim.land(0, None, 4);
            assert!(sim.dials.is_empty(), "first it has to tell");
            sim.identified(conn, None);
        }
        touch(&mut sim, &key);
    }
    assert_eq!(sim.conns.len(), expected);
    sim.wind_up();
}

#[test]
fn what_the_first_tunnel_tells_counts() {
    let (mut sim, key) = (Sim::new(limits()), spread(2));
    let _ = sim.checkout(&key);
    let first = sim.land(0, None, 4);
    sim.identified(first, Some(token(0)));
    assert_eq!((sim.dials.len(), &sim.dials[0].known_backends[..]), (1, &[token(0)][..]));
    let second = sim.land(0, None, 4);
    sim.identified(second, Some(token(0)));
    assert!(sim.conns[&second].dropped);
    let third = sim.land(0, None, 4);
    sim.identified(third, Some(token(1)));
    assert!(!sim.conns[&third].dropped && sim.dials.is_empty());
    sim.wind_up();
}

#[test]
fn a_backend_that_is_gone_is_replaced_when_somebody_comes() {
    let mut sim = covering(2, &[0, 1]);
    let gone = *sim.conns.keys().next().unwrap();
    sim.end(gone);
    touch(&mut sim, &spread(2));
    assert_eq!((sim.dials.len(), &sim.dials[0].known_backends[..]), (1, &[token(1)][..]));
    sim.wind_up();
}

#[test]
fn at_its_age_each_is_replaced_without_a_gap() {
    let mut sim = covering(2, &[0, 1]);
    let key = spread(2);
    let before: Vec<_> = sim.conns.keys().copied().collect();
    // In use, so that it is not for idleness that they go.
    for _ in 0..2 {
        let _ = sim.checkout(&key);
    }
    for _ in 0..700 {
        sim.pass(secs(1));
        touch(&mut sim, &key);
        while !sim.dials.is_empty() {
            let backend = (0..2).map(token).find(|b| !sim.dials[0].known_backends.contains(b)).unwrap();
            sim.land(0, Some(backend), 4);
        }
        assert!(sim.waiters.is_empty(), "nobody waits");
        let usable = sim.conns.values().filter(|conn| !conn.dropped).count();
        assert_eq!(usable, 2);
    }
    assert!(before.iter().all(|conn| sim.conns[conn].dropped));
    assert_eq!(sim.conns.len(), 4, "one successor each");
    sim.wind_up();
}

#[test]
fn of_connections_to_the_same_backend_the_one_with_the_most_tunnels_is_next() {
    let (mut sim, key) = (Sim::new(limits()), spread(1));
    let mut conns = Vec::new();
    for _ in 0..3 {
        while sim.try_checkout(&key).is_some() {}
        let _ = sim.checkout(&key);
        conns.push(sim.land(0, Some(token(1)), 50));
    }
    for (conn, open) in conns.iter().zip([1, 20, 3]) {
        while sim.conns[conn].open > open {
            sim.release(*conn);
        }
    }
    for _ in 0..20 {
        assert_eq!(sim.checkout(&key), Ok(conns[1]));
    }
    sim.wind_up();
}
