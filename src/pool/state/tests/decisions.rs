//! Which connection a tunnel goes on, who waits, and what ends a connection.

use rstest::rstest;

use super::super::*;
use super::sim::{Sim, dial_error, direct, inside, limits, millis, secs, token};

/// A shared path with connections of which each has this many tunnels.
fn shared(open: &[usize]) -> (Sim, Key, Vec<ConnId>) {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let mut conns = Vec::new();
    for _ in open {
        for _ in 0..4 {
            let _ = sim.checkout(&key);
        }
        let _ = sim.checkout(&key);
        conns.push(sim.land(0, None, 4));
    }
    for (conn, open) in conns.iter().zip(open) {
        while sim.conns[conn].open > *open {
            sim.release(*conn);
        }
        while sim.conns[conn].open < *open {
            // Those before it are full.
            let _ = sim.checkout(&key);
        }
    }
    while !sim.waiters.is_empty() {
        sim.cancel(0);
    }
    let found: Vec<_> = conns.iter().map(|conn| sim.conns[conn].open).collect();
    assert_eq!(found, open);
    (sim, key, conns)
}

#[rstest]
#[case::the_fullest(&[3, 1, 2], 0)]
#[case::the_fullest_with_room(&[4, 2, 3], 2)]
#[case::none_that_is_idle(&[0, 1, 0], 1)]
#[case::the_oldest_of_equals(&[0, 0, 0], 0)]
fn where_all_lead_to_the_same_a_tunnel_goes_where_the_most_are(#[case] open: &[usize], #[case] expected: usize) {
    for seed in 0..20 {
        let (mut sim, key, conns) = shared(open);
        sim.state.rng.seed(seed);
        assert_eq!(sim.checkout(&key), Ok(conns[expected]));
    }
}

#[test]
fn what_a_burst_needed_is_closed_soon_after_it_but_for_one_connection() {
    let (mut sim, key, conns) = shared(&[4, 4, 4]);
    for conn in &conns {
        (0..4).for_each(|_| sim.release(*conn));
    }
    sim.pass(secs(14));
    assert_eq!(sim.conns.values().filter(|conn| !conn.dropped).count(), 3);
    sim.pass(secs(2));
    assert_eq!(sim.conns.values().filter(|conn| !conn.dropped).count(), 1);
    assert_eq!(sim.checkout(&key), Ok(conns[0]), "the oldest");
    sim.wind_up();
}

#[test]
fn of_idle_connections_to_the_same_one_is_kept_to_and_the_others_are_closed() {
    let (mut sim, key, _) = shared(&[0, 0, 0]);
    for _ in 0..limits().idle_timeout.as_secs() * 3 / 2 {
        let conn = sim.checkout(&key).unwrap();
        sim.pass(secs(1));
        sim.release(conn);
    }
    assert_eq!(sim.conns.values().filter(|conn| !conn.dropped).count(), 1);
    sim.wind_up();
}

#[test]
fn ties_between_backends_are_decided_by_chance_and_the_seed() {
    let picks = |seed| {
        let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Spread(3)));
        let _ = sim.checkout(&key);
        let conns: Vec<ConnId> = (0..3).map(|n| sim.land(0, Some(token(n)), 4)).collect();
        let held = sim.conns.iter().find(|(_, conn)| conn.open > 0).map(|(id, _)| *id).unwrap();
        sim.release(held);
        sim.state.rng.seed(seed);
        let mut picks = Vec::new();
        for _ in 0..240 {
            // Long enough for what came before to be forgotten.
            sim.pass(secs(1));
            let conn = sim.checkout(&key).unwrap();
            picks.push(conns.iter().position(|c| *c == conn).unwrap());
            sim.release(conn);
        }
        picks
    };
    assert_eq!(picks(1), picks(1));
    assert_ne!(picks(1), picks(2));
    for conn in 0..3 {
        let share = picks(3).iter().filter(|pick| **pick == conn).count();
        assert!((50..110).contains(&share), "{conn}: {share}");
    }
}

#[test]
fn who_waits_is_served_in_order() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let tags: Vec<_> = (0..6).map(|_| sim.checkout(&key).unwrap_err()).collect();
    let conn = sim.land(0, None, 2);
    let served = |sim: &Sim| sim.granted.iter().map(|(tag, _)| *tag).collect::<Vec<_>>();
    assert_eq!(served(&sim), tags[..2]);
    sim.cancel(0);
    sim.release(conn);
    assert_eq!(served(&sim), [tags[0], tags[1], tags[3]]);
    sim.limit(conn, 4);
    assert_eq!(served(&sim), [tags[0], tags[1], tags[3], tags[4], tags[5]]);
}

#[test]
fn who_asks_just_when_a_place_has_come_gets_it() {
    let (mut sim, key, conns) = shared(&[4]);
    assert_eq!(sim.try_checkout(&key), None);
    sim.release(conns[0]);
    sim.enqueue(&key);
    assert_eq!((sim.waiters.len(), sim.granted.last().unwrap().1), (0, conns[0]));
}

#[rstest]
#[case::one_for_all(3, 1)]
#[case::as_many_as_it_takes(9, 3)]
#[case::no_more_than_allowed(100, 8)]
fn dials_are_shared_by_those_who_wait(#[case] callers: usize, #[case] dials: usize) {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    for _ in 0..callers {
        let _ = sim.checkout(&key);
    }
    assert_eq!(sim.dials.len(), dials);
    while !sim.dials.is_empty() {
        sim.fail(0);
    }
    assert_eq!((sim.failed.len(), sim.waiters.len()), (callers, 0));
    sim.wind_up();
}

#[test]
fn a_peer_that_has_not_told_its_limit_is_given_time_and_one_that_allows_little_another_connection() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    for _ in 0..4 {
        let _ = sim.checkout(&key);
    }
    let conn = sim.land_as(0, None, 2, true);
    assert_eq!((sim.granted.len(), sim.dials.len()), (2, 0));
    // It allows just what was used before it announced that.
    sim.limit(conn, 2);
    assert_eq!((sim.granted.len(), sim.dials.len()), (2, 1));
}

#[test]
fn each_failure_in_a_row_doubles_the_wait_up_to_the_longest_and_its_error_is_shared() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    for wait in [100, 200, 400, 800, 1600, 3000, 3000] {
        let _ = sim.checkout(&key);
        assert_eq!(sim.dials.len(), 1);
        sim.fail(0);
        sim.pass(millis(wait - 1));
        let failed = sim.failed.len();
        let _ = sim.checkout(&key);
        assert_eq!((sim.failed.len(), sim.dials.len()), (failed + 1, 0), "before {wait} ms are over");
        sim.pass(millis(1));
    }
    assert!(sim.failed.iter().all(|(_, error)| error.kind() == dial_error().kind()));
    let _ = sim.checkout(&key);
    let conn = sim.land(0, None, 4);
    sim.end(conn);
    let _ = sim.checkout(&key);
    sim.fail(0);
    sim.pass(millis(100));
    assert_eq!(sim.checkout(&key).map_err(|_| sim.dials.len()), Err(1), "a success ends the row");
    sim.wind_up();
}

#[test]
fn a_connection_that_ends_before_its_peer_says_anything_is_a_dial_that_failed() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    for wait in [100, 200, 400] {
        for _ in 0..4 {
            let _ = sim.checkout(&key);
        }
        let conn = sim.land_as(0, None, 1, true);
        sim.fail_before_settings(conn);
        assert_eq!((sim.waiters.len(), sim.dials.len()), (0, 0));
        sim.release(conn);
        sim.end(conn);
        assert!(sim.checkout(&key).is_err() && sim.dials.is_empty(), "not before {wait} ms");
        sim.pass(millis(wait));
    }
    assert_eq!(sim.failed.len(), 3 * 4);
    for _ in 0..4 {
        let _ = sim.checkout(&key);
    }
    let conn = sim.land_as(0, None, 1, true);
    sim.limit(conn, 4);
    assert_eq!(sim.granted.len(), 3 + 4);
    assert!(sim.state.entries.values().all(|entry| entry.failure.is_none()), "it has said something");
    sim.wind_up();
}

#[rstest]
#[case::for_a_path_without_connections(false)]
#[case::for_one_with(true)]
fn a_failure_long_ago_does_not_make_the_next_wait_longer(#[case] connected: bool) {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    if connected {
        let _ = sim.checkout(&key);
        sim.land(0, None, 1);
    }
    for _ in 0..3 {
        let _ = sim.checkout(&key);
        sim.fail(0);
        while !sim.waiters.is_empty() {
            sim.cancel(0);
        }
        sim.pass(secs(60));
    }
    let _ = sim.checkout(&key);
    sim.fail(0);
    let failure = sim.state.entries.values().next().unwrap().failure.as_ref().unwrap();
    assert_eq!(failure.retry_at - sim.now, millis(100));
    sim.wind_up();
}

#[test]
fn who_waits_while_others_run_is_not_failed_by_a_dial() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let conn = sim.land(0, None, 1);
    let tag = sim.checkout(&key).unwrap_err();
    sim.fail(0);
    assert!(sim.failed.is_empty());
    sim.pass(millis(100));
    assert_eq!(sim.dials.len(), 1, "it is tried again without anybody asking");
    sim.release(conn);
    assert_eq!(sim.granted.last(), Some(&(tag, conn)));
}

#[test]
fn the_waiters_of_a_lost_dial_ask_again_at_once_and_without_back_off() {
    let mut sim = Sim::new(limits());
    let key = direct(1, Reuse::Shared);
    (0..3).for_each(|_| assert!(sim.checkout(&key).is_err()));
    sim.lose(0);
    assert_eq!((sim.failed.len(), sim.waiters.len(), sim.dials.len()), (0, 3, 1));
    sim.land(0, None, 4);
    assert_eq!(sim.granted.len(), 3);
    sim.wind_up();
}

#[test]
fn a_lost_dial_that_nobody_waits_for_is_not_made_up_for() {
    let mut sim = Sim::new(limits());
    let _ = sim.checkout(&direct(1, Reuse::Shared));
    sim.cancel(0);
    sim.lose(0);
    assert_eq!((sim.dials.len(), sim.state.counts()), (0, Counts::default()));
}

#[test]
fn an_aged_connection_is_used_until_its_successor_is_there() {
    let (mut sim, key) = (Sim::new(Limits { idle_timeout: secs(3600), ..limits() }), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let old = sim.land(0, None, 4);
    sim.pass(secs(539));
    assert!(sim.dials.is_empty());
    sim.pass(secs(122));
    assert_eq!(sim.dials.len(), 1, "off anybody's way");
    assert_eq!(sim.checkout(&key), Ok(old));
    sim.fail(0);
    assert_eq!(sim.checkout(&key), Ok(old), "still");
    sim.pass(secs(1));
    let young = sim.land(0, None, 4);
    assert!(sim.conns[&old].dropped);
    assert_eq!(sim.checkout(&key), Ok(young));
    assert_eq!((sim.conns[&old].open, sim.dials.len()), (3, 0));
    sim.wind_up();
}

#[test]
fn an_aged_connection_without_tunnels_goes_without_a_successor() {
    let (mut sim, key) = (Sim::new(Limits { idle_timeout: secs(3600), ..limits() }), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let conn = sim.land(0, None, 4);
    sim.release(conn);
    sim.pass(secs(661));
    assert!(sim.conns[&conn].dropped && sim.dials.is_empty());
    sim.wind_up();
}

#[test]
fn an_idle_connection_is_closed_after_its_time_and_not_while_it_is_used() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let conn = sim.land(0, None, 4);
    sim.pass(secs(310));
    sim.release(conn);
    sim.pass(secs(299));
    assert!(!sim.conns[&conn].dropped);
    sim.pass(secs(1));
    assert!(sim.conns[&conn].dropped);
    sim.wind_up();
}

#[derive(Clone, Copy, Debug)]
enum End {
    GoAway,
    Drained,
    Ended,
    Rotated,
    Age,
    GoAwayAfterAge,
}

#[rstest]
#[case(End::GoAway, false)]
#[case(End::Drained, false)]
#[case(End::Ended, false)]
#[case(End::Rotated, false)]
#[case(End::Age, true)]
#[case(End::GoAwayAfterAge, false)]
fn what_ends_a_connection_ends_those_inside_except_age(#[case] end: End, #[case] goes_on: bool) {
    let mut sim = Sim::new(Limits { idle_timeout: secs(3600), ..limits() });
    let outer_key = direct(1, Reuse::Shared);
    let inner_key = inside(&outer_key, "a:1", Reuse::Shared);
    let _ = sim.checkout(&outer_key);
    let outer = sim.land(0, None, 4);
    let _ = sim.checkout(&inner_key);
    assert!(sim.enter(0));
    let inner = sim.land(0, None, 4);
    let age = |sim: &mut Sim| {
        sim.state.retire(outer, Retire::Unneeded, sim.now);
        sim.act();
    };
    match end {
        End::GoAway => sim.close_conn(outer),
        End::Drained => sim.drain(outer),
        End::Ended => {
            sim.end(outer);
        }
        End::Rotated => sim.source_ended(1, None),
        End::Age => age(&mut sim),
        End::GoAwayAfterAge => {
            age(&mut sim);
            sim.close_conn(outer);
        }
    }
    assert_eq!(sim.checkout(&inner_key).is_ok(), goes_on);
    assert_eq!(sim.conns[&inner].dropped, !goes_on);
    sim.wind_up();
}

#[rstest]
#[case::going(false)]
#[case::gone(true)]
fn a_connection_that_lands_inside_one_that_ends_serves_those_who_wait_and_nobody_else(#[case] gone: bool) {
    let mut sim = Sim::new(limits());
    let outer_key = direct(1, Reuse::Shared);
    let inner_key = inside(&outer_key, "a:1", Reuse::Shared);
    let _ = sim.checkout(&outer_key);
    let outer = sim.land(0, None, 4);
    let tag = sim.checkout(&inner_key).unwrap_err();
    assert!(sim.enter(0));
    if gone {
        sim.end(outer);
    } else {
        sim.drain(outer);
    }
    let inner = sim.land(0, None, 4);
    assert!(sim.conns[&inner].dropped);
    assert_eq!(sim.granted.contains(&(tag, inner)), !gone);
    assert_eq!(sim.dials.len(), usize::from(gone), "it is tried once more where nobody could be served");
    let _ = sim.checkout(&inner_key).unwrap_err();
    assert_eq!(sim.dials.len(), 1, "whoever comes later gets another one");
    sim.wind_up();
}

#[test]
fn a_new_certificate_leaves_those_who_wait_in_place_and_dials_anew() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let tag = sim.checkout(&key).unwrap_err();
    sim.source_ended(1, None);
    assert_eq!(sim.dials.len(), 2);
    let old = sim.land(0, None, 4);
    assert!(sim.granted.is_empty(), "the dial of before shows the old certificate");
    let new = sim.land(0, None, 4);
    assert_eq!(sim.granted, [(tag, new)]);
    assert!(!sim.conns.contains_key(&old));
    sim.wind_up();
}

#[test]
fn a_source_that_is_gone_fails_those_who_wait() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Shared));
    let tag = sim.checkout(&key).unwrap_err();
    sim.source_ended(1, Some(&dial_error()));
    assert_eq!(sim.failed[0].0, tag);
    sim.wind_up();
}

#[test]
fn each_tunnel_has_its_own_connection_where_reuse_is_never() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Never));
    for _ in 0..20 {
        let _ = sim.checkout(&key);
    }
    assert_eq!(sim.dials.len(), 20, "the limit of a path does not count");
    while !sim.dials.is_empty() {
        sim.land(0, None, 4);
    }
    assert!(sim.conns.values().all(|conn| conn.open == 1));
    let last = *sim.conns.keys().last().unwrap();
    sim.release(last);
    assert!(sim.checkout(&key).is_err());
    sim.wind_up();
}

#[rstest]
#[case::one(1, 1, Load::Full)]
#[case::three(3, 3, Load::Full)]
#[case::one_with_bulk(1, 1, Load::Bulk)]
#[case::three_with_bulk(3, 3, Load::Bulk)]
fn more_connections_are_opened_while_all_are_busy(#[case] allowed: usize, #[case] expected: usize, #[case] load: Load) {
    let (mut sim, key) = (Sim::new(Limits { busy_connections: allowed, ..limits() }), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let mut last = sim.land(0, None, 4);
    for _ in 0..5 {
        sim.load_changed(last, load);
        if !sim.dials.is_empty() {
            last = sim.land(0, None, 4);
            assert_eq!(sim.checkout(&key), Ok(last), "one with time left");
        }
    }
    assert_eq!((sim.conns.len(), sim.dials.len()), (expected, 0));
    sim.wind_up();
}

#[rstest]
#[case::shared(Reuse::Shared)]
#[case::to_one_backend(Reuse::Spread(1))]
fn tunnels_keep_away_from_bulk_however_few_are_beside_it(#[case] reuse: Reuse) {
    let (mut sim, key) = (Sim::new(Limits { busy_connections: 2, ..limits() }), direct(1, reuse));
    let _ = sim.checkout(&key);
    let bulky = sim.land(0, Some(token(1)), 100);
    sim.load_changed(bulky, Load::Bulk);
    let other = sim.land(0, Some(token(1)), 100);
    for _ in 0..50 {
        assert_eq!(sim.checkout(&key), Ok(other));
    }
    sim.wind_up();
}

#[rstest]
#[case::which_is_told(true)]
// Nothing moves any more, so that nobody measures.
#[case::which_is_not_told(false)]
fn after_bulk_tunnels_return_to_the_oldest_connection_and_its_company_is_closed(#[case] told: bool) {
    let (mut sim, key) = (Sim::new(Limits { busy_connections: 2, ..limits() }), direct(1, Reuse::Shared));
    let _ = sim.checkout(&key);
    let bulky = sim.land(0, None, 100);
    sim.load_changed(bulky, Load::Bulk);
    let company = sim.land(0, None, 100);
    for _ in 0..5 {
        assert_eq!(sim.checkout(&key), Ok(company));
    }
    if told {
        sim.load_changed(bulky, Load::Light);
    }
    sim.release(bulky);
    if !told {
        // Of what moved before.
        sim.load_changed(bulky, Load::Bulk);
    }
    (0..5).for_each(|_| sim.release(company));
    for _ in 0..20 {
        assert_eq!(sim.checkout(&key), Ok(bulky));
        sim.pass(secs(1));
        sim.release(bulky);
    }
    assert!(sim.conns[&company].dropped);
    sim.wind_up();
}

#[test]
fn bulk_does_not_keep_tunnels_from_a_backend() {
    let (mut sim, key) = (Sim::new(limits()), direct(1, Reuse::Spread(2)));
    let _ = sim.checkout(&key);
    let bulky = sim.land(0, Some(token(1)), 100);
    let other = sim.land(0, Some(token(2)), 100);
    sim.load_changed(bulky, Load::Bulk);
    let got: Vec<ConnId> = (0..99).map(|_| sim.checkout(&key).unwrap()).collect();
    assert_eq!(got.iter().filter(|conn| **conn == bulky).count(), 49, "of 100 with the first, {other} has the rest");
    sim.wind_up();
}

#[test]
fn a_closed_pool_gives_nothing_and_forgets_all() {
    let (mut sim, key, conns) = shared(&[4, 4]);
    let tag = sim.checkout(&key).unwrap_err();
    sim.close();
    assert_eq!(sim.failed.last().unwrap().0, tag);
    assert!(conns.iter().all(|conn| sim.conns[conn].dropped));
    let tag = sim.checkout(&key).unwrap_err();
    let (last, error) = sim.failed.last().unwrap();
    assert_eq!((*last, error.kind()), (tag, &ErrorKind::Closed));
    sim.wind_up();
}
