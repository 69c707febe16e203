//! Which endpoint a request goes to.
//!
//! Nothing here locks or allocates. What threads change at the same time is approximate: two requests that arrive in the same
//! microsecond may see the same endpoint as the best.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Endpoint;
use crate::config::Balance;

/// What of a request has a say in where it goes.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Where it goes while that can be used.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Without that, the client's address decides, whatever `balance` says.
    pub by_client: bool,
    /// What tells the endpoint that has just failed this very request: another one had better have it now.
    pub avoid: Option<u64>,
}

/// How requests are shared out.
#[derive(Debug)]
pub(super) struct Balancer {
    balance: Balance,
    slow_start: Duration,
    /// The turn of the endpoint that was picked last: who was away for long is not given all that it has missed.
    turn: AtomicU64,
}

impl Balancer {
    /// `before` has had these endpoints until now: they have had their turns.
    pub(super) fn new(balance: Balance, slow_start: Duration, before: Option<&Self>) -> Self {
        let turn = before.map_or(0, |before| before.turn.load(Ordering::Relaxed));
        Self { balance, slow_start, turn: AtomicU64::new(turn) }
    }

    /// Picks one of `endpoints`.
    ///
    /// Backups come into question while no other can be used, and all while none can, those last that cannot even be connected
    /// to: being down is a guess, not a verdict. One that leaves never does, but for who is stuck to it.
    pub(super) fn pick<'e>(&self, endpoints: &'e [Arc<Endpoint>], affinity: &Affinity) -> Option<&'e Arc<Endpoint>> {
        if let [only] = endpoints
            && !only.is_leaving()
        {
            return Some(only);
        }
        let stuck = |endpoint: &&Arc<Endpoint>| {
            affinity.endpoint.as_ref().is_some_and(|stuck| stuck.id == endpoint.id)
                && affinity.avoid != Some(endpoint.id)
                && endpoint.is_usable()
        };
        if let Some(stuck) = endpoints.iter().find(stuck) {
            return Some(stuck);
        }
        let by_client = affinity.by_client || matches!(self.balance, Balance::Hash | Balance::BoundedHash);
        let client = affinity.client.filter(|_| by_client);
        // A session that is found by the hash is nowhere else, however much is inside there.
        let is_bounded = self.balance == Balance::BoundedHash && !affinity.by_client;
        let tier = |endpoint: &Arc<Endpoint>| Tier::of(endpoint, affinity.avoid);
        let best = endpoints.iter().map(tier).min().filter(|best| *best != Tier::Leaving)?;
        let fits = |endpoint: &&'e Arc<Endpoint>| tier(endpoint) == best;
        let pick = match client {
            // Of those that cannot be connected to, each in turn, to find the one that is back.
            Some(client) if best != Tier::Unreachable => {
                let bounded = if is_bounded { within_bound(endpoints, fits, client) } else { None };
                bounded.or_else(|| by_hash(endpoints.iter().filter(fits), client))
            }
            _ => self.in_turn(endpoints, fits),
        };
        // Between two looks all may have come to be something else.
        let pick = pick.or_else(|| endpoints.iter().find(|endpoint| !endpoint.is_leaving()))?;
        let turn = pick.turn.load(Ordering::Relaxed).max(self.turn.load(Ordering::Relaxed));
        self.turn.store(turn, Ordering::Relaxed);
        pick.turn.store(turn + TURN / pick.share(self.slow_start), Ordering::Relaxed);
        Some(pick)
    }

    fn in_turn<'e>(
        &self,
        endpoints: &'e [Arc<Endpoint>],
        fits: impl Fn(&&'e Arc<Endpoint>) -> bool,
    ) -> Option<&'e Arc<Endpoint>> {
        let turn = self.turn.load(Ordering::Relaxed);
        let turn = |endpoint: &Endpoint| endpoint.turn.load(Ordering::Relaxed).max(turn);
        if self.balance != Balance::Least {
            return endpoints.iter().filter(&fits).min_by_key(|endpoint| turn(endpoint));
        }
        // Of many, two: who looks at all of them finds the same one as everybody else who looks at this moment.
        let load = |endpoint: &Endpoint| endpoint.in_flight() as u64 * LOAD / endpoint.share(self.slow_start);
        if endpoints.len() > FEW {
            let drawn = [draw(endpoints, &fits), draw(endpoints, &fits)];
            // Of two that are equal the first one, which is any: turns would prefer those at the head of the list.
            return drawn.into_iter().flatten().min_by_key(|endpoint| load(endpoint));
        }
        endpoints.iter().filter(fits).min_by_key(|endpoint| (load(endpoint), turn(endpoint)))
    }
}

/// Who comes into question first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Usable,
    Backup,
    /// Something speaks against it, and it can be connected to.
    Doubtful,
    /// It has just failed this very request.
    Avoided,
    Unreachable,
    Leaving,
}

impl Tier {
    fn of(endpoint: &Endpoint, avoid: Option<u64>) -> Self {
        match (endpoint.is_usable(), endpoint.is_backup()) {
            _ if endpoint.is_leaving() => Self::Leaving,
            (usable, _) if !usable && endpoint.unreachable_for().is_some() => Self::Unreachable,
            _ if avoid == Some(endpoint.id) => Self::Avoided,
            // Who has waited for nothing once is not sent where others have just done so, too.
            _ if avoid.is_some() && endpoint.health.is_silent(1) => Self::Doubtful,
            (true, false) => Self::Usable,
            (true, true) => Self::Backup,
            (false, _) => Self::Doubtful,
        }
    }
}

/// One of those that fit, by weight and chance.
fn draw<'e>(endpoints: &'e [Arc<Endpoint>], fits: impl Fn(&&'e Arc<Endpoint>) -> bool) -> Option<&'e Arc<Endpoint>> {
    let mut total = 0;
    let mut drawn = None;
    for endpoint in endpoints.iter().filter(fits) {
        total += u32::from(endpoint.weight());
        if fastrand::u32(..total) < u32::from(endpoint.weight()) {
            drawn = Some(endpoint);
        }
    }
    drawn
}

/// Rendezvous hashing: each endpoint has a draw of its own for each client, and the best one wins. Where one goes, only its own
/// clients move; and no front door has to know another.
fn by_hash<'e>(endpoints: impl Iterator<Item = &'e Arc<Endpoint>>, client: IpAddr) -> Option<&'e Arc<Endpoint>> {
    let client = client_hash(client);
    let score = |endpoint: &&Arc<Endpoint>| {
        // From 2⁵³ values that a float tells apart, none of them 0 or 1; an exponential draw, shorter for a greater weight.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what fits")]
        let draw = ((mixed(client ^ endpoint.tag) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -draw.ln() / f64::from(endpoint.weight())
    };
    endpoints.min_by(|one, other| score(one).total_cmp(&score(other)))
}

/// The same, but for those that have as many requests inside as [`MOST`] of their share, with the one that is to come: theirs go
/// to the next one in the hash's order. There is always one that has fewer, unless it has just been given one by another thread.
fn within_bound<'e>(
    endpoints: &'e [Arc<Endpoint>],
    fits: impl Fn(&&'e Arc<Endpoint>) -> bool,
    client: IpAddr,
) -> Option<&'e Arc<Endpoint>> {
    let sum = |(inside, weights), endpoint: &Arc<Endpoint>| {
        (inside + endpoint.in_flight() as u64, weights + u64::from(endpoint.weight()))
    };
    let (inside, weights) = endpoints.iter().filter(&fits).fold((1, 0), sum);
    let has_room = |endpoint: &&'e Arc<Endpoint>| {
        let most = (inside * u64::from(endpoint.weight()) * MOST.0).div_ceil(weights.max(1) * MOST.1);
        fits(endpoint) && (endpoint.in_flight() as u64) < most
    };
    by_hash(endpoints.iter().filter(has_room), client)
}

/// The same for all addresses that one client takes: of IPv6 its network, in which it changes the rest by itself.
fn client_hash(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => mixed(u64::from(u32::from(address))),
        IpAddr::V6(address) => mixed((u128::from(address) >> 64) as u64),
    }
}

/// The same on every machine and in every version, as no hasher of the standard library promises to be: FNV-1a.
pub(super) fn tag(address: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mixed(address.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
}

/// Each bit of `value` in all bits (the end of `SplitMix64`).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a turn costs a whole share of one.
const TURN: u64 = 1 << 30;
/// A request inside an endpoint, likewise.
const LOAD: u64 = 1 << 20;
/// Of its share of what is inside, what an endpoint has at most where hashes are bounded.
const MOST: (u64, u64) = (5, 4);
/// As many are looked at one by one; it takes more for chance to be fairer.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::endpoint::UNREACHABLE, *};
    use crate::{
        config::{EjectPlan, EndpointAddress, EndpointPlan},
        upstream::{Failure, Member, now_micros, successors},
    };

    fn endpoints(members: &[(&str, u16, bool)]) -> Vec<Arc<Endpoint>> {
        let member = |(host, weight, backup): &(&str, u16, bool)| Member {
            address: EndpointAddress::Tcp { host: (*host).to_owned(), port: 1 },
            name: None,
            weight: *weight,
            backup: *backup,
            leaving: false,
        };
        successors(&[], members.iter().map(member))
    }

    fn balancer(balance: Balance) -> Balancer {
        Balancer::new(balance, Duration::ZERO, None)
    }

    /// How many of so many requests, one after the other, go where.
    fn picks(balancer: &Balancer, endpoints: &[Arc<Endpoint>], requests: usize) -> BTreeMap<String, usize> {
        let mut picks = BTreeMap::new();
        for _ in 0..requests {
            let pick = balancer.pick(endpoints, &Affinity::default()).unwrap();
            *picks.entry(pick.label.to_string()).or_default() += 1;
        }
        picks
    }

    fn from(client: [u8; 4]) -> Affinity {
        Affinity { client: Some(client.into()), ..Affinity::default() }
    }

    #[test]
    fn each_gets_its_weight_where_nobody_is_busy() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 3, false), ("c", EndpointPlan::LARGEST_WEIGHT, false)]);
        for balance in [Balance::Least, Balance::RoundRobin] {
            let picks = picks(&balancer(balance), &endpoints, 2600);

            assert_eq!((picks["a:1"], picks["b:1"], picks["c:1"]), (10, 30, 2560), "{balance:?}");
        }
    }

    #[test]
    fn turns_are_spread_out() {
        let endpoints = endpoints(&[("a", 2, false), ("b", 1, false)]);
        let balancer = balancer(Balance::RoundRobin);

        let order: String = (0..6)
            .map(|_| balancer.pick(&endpoints, &Affinity::default()).unwrap().label.chars().next().unwrap())
            .collect();

        assert!(!order.contains("aaa") && !order.contains("bb"), "{order}");
    }

    #[test]
    fn a_busy_one_is_passed_by_as_far_as_its_weight_goes() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 3, false)]);
        endpoints[1].in_flight.store(2, Ordering::Relaxed);
        let balancer = balancer(Balance::Least);
        assert_eq!(&*balancer.pick(&endpoints, &Affinity::default()).unwrap().label, "a:1");

        endpoints[0].in_flight.store(1, Ordering::Relaxed);

        assert_eq!(&*balancer.pick(&endpoints, &Affinity::default()).unwrap().label, "b:1");
    }

    #[test]
    fn of_many_the_busiest_is_left_alone() {
        let names: Vec<_> = (0..20).map(|number| format!("e{number}")).collect();
        let endpoints = endpoints(&names.iter().map(|name| (name.as_str(), 1, false)).collect::<Vec<_>>());
        endpoints[7].in_flight.store(100, Ordering::Relaxed);

        let picks = picks(&balancer(Balance::Least), &endpoints, 4000);

        // Only where both that are drawn are this one: ten times.
        assert!(picks.get("e7:1").copied().unwrap_or(0) < 40, "{picks:?}");
        assert!(names.iter().filter(|name| *name != "e7").all(|name| picks[&format!("{name}:1")] > 100), "{picks:?}");
    }

    #[test]
    fn backups_wait_until_no_other_can_be_used() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false), ("c", 1, true)]);
        for balance in [Balance::Least, Balance::RoundRobin, Balance::Hash] {
            let balancer = balancer(balance);
            let pick = || balancer.pick(&endpoints, &from([192, 0, 2, 1])).unwrap().label.to_string();
            endpoints[0].refused(UNREACHABLE);
            assert_eq!(pick(), "b:1", "{balance:?}");
            endpoints[1].refused(UNREACHABLE);
            assert_eq!(pick(), "c:1", "{balance:?}");
            endpoints[2].refused(UNREACHABLE);
            assert!(!pick().is_empty(), "one of them all the same");
            for endpoint in &endpoints {
                endpoint.connected();
            }
            assert_ne!(pick(), "c:1", "{balance:?}");
        }
    }

    #[test]
    fn who_answers_badly_comes_before_who_cannot_be_connected_to() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false)]);
        endpoints[0].refused(UNREACHABLE);
        endpoints[1].pass_over(UNREACHABLE);
        endpoints[1].in_flight.store(9, Ordering::Relaxed);
        for balance in [Balance::Least, Balance::RoundRobin, Balance::Hash] {
            let picks = picks(&balancer(balance), &endpoints, 10);
            assert_eq!(picks.get("b:1"), Some(&10), "{balance:?}");
        }
    }

    #[test]
    fn who_has_just_failed_a_request_is_not_asked_for_it_again_and_others_stay() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, true)]);
        let stuck = Affinity { endpoint: Some(Arc::clone(&endpoints[0])), ..Affinity::default() };
        let again = Affinity { avoid: Some(endpoints[0].id), ..stuck.clone() };
        let balancer = balancer(Balance::Least);

        assert_eq!(&*balancer.pick(&endpoints, &again).unwrap().label, "b:1");
        assert_eq!(&*balancer.pick(&endpoints, &stuck).unwrap().label, "a:1");
    }

    #[test]
    fn who_has_failed_a_request_and_is_gone_comes_after_who_answers_badly() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false)]);
        endpoints[0].refused(UNREACHABLE);
        endpoints[1].pass_over(UNREACHABLE);
        endpoints[1].in_flight.store(9, Ordering::Relaxed);
        let again = Affinity { avoid: Some(endpoints[0].id), ..Affinity::default() };

        assert_eq!(&*balancer(Balance::Least).pick(&endpoints, &again).unwrap().label, "b:1");
    }

    #[test]
    fn who_has_failed_once_does_not_go_where_others_have_had_no_answer_either() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false), ("c", 1, false)]);
        let eject = EjectPlan { failures: 5, time: Duration::from_secs(10), most: 50 };
        endpoints[1].health.failed(Failure::silent(Duration::from_secs(1), Duration::ZERO), &eject);
        endpoints[2].in_flight.store(9, Ordering::Relaxed);
        let again = Affinity { avoid: Some(endpoints[0].id), ..Affinity::default() };
        for balance in [Balance::Least, Balance::RoundRobin, Balance::Hash] {
            let balancer = balancer(balance);
            assert_eq!(&*balancer.pick(&endpoints, &again).unwrap().label, "c:1", "{balance:?}");
        }
        assert_eq!(&*balancer(Balance::Least).pick(&endpoints, &Affinity::default()).unwrap().label, "a:1");
    }

    #[test]
    fn one_that_is_new_is_not_given_what_the_others_have_had_over_a_reload() {
        let mut endpoints = endpoints(&[("a", 1, false), ("b", 1, false)]);
        let before = balancer(Balance::RoundRobin);
        picks(&before, &endpoints, 1000);
        endpoints.extend(self::endpoints(&[("c", 1, false)]));

        let picks = picks(&Balancer::new(Balance::RoundRobin, Duration::ZERO, Some(&before)), &endpoints, 300);

        assert!((90..=110).contains(&picks["c:1"]), "{picks:?}");
    }

    #[test]
    fn only_the_clients_of_one_that_goes_move_and_shares_follow_weights() {
        let all = endpoints(&[("a", 1, false), ("b", 1, false), ("c", 2, false)]);
        let left = endpoints(&[("c", 2, false), ("a", 1, false)]);
        let balancer = balancer(Balance::Hash);
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..4000_u32 {
            let client = from(number.to_be_bytes());
            let [before, after] =
                [&all, &left].map(|endpoints| balancer.pick(endpoints, &client).unwrap().label.to_string());
            assert!(before == "b:1" || before == after, "{number}: {before} {after}");
            *shares.entry(before).or_default() += 1;
        }
        assert!((900..1100).contains(&shares["a:1"]) && (1850..2150).contains(&shares["c:1"]), "{shares:?}");
    }

    #[test]
    fn with_a_bound_no_endpoint_has_much_more_than_its_share_and_clients_keep_theirs_while_there_is_room() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false), ("c", 2, false)]);
        let (hash, bounded) = (balancer(Balance::Hash), balancer(Balance::BoundedHash));
        for request in 1..=400_u32 {
            // Most of what there is comes from one client.
            let client = from(if request % 4 == 0 { request } else { 7 }.to_be_bytes());
            let first = hash.pick(&endpoints, &client).unwrap();
            let most = |endpoint: &Endpoint| (request * u32::from(endpoint.weight()) * 5).div_ceil(4 * 4) as usize;
            let has_room = first.in_flight() < most(first);

            let pick = bounded.pick(&endpoints, &client).unwrap();

            assert_eq!(Arc::ptr_eq(first, pick), has_room, "{request}");
            pick.in_flight.fetch_add(1, Ordering::Relaxed);
            assert!(pick.in_flight() <= most(pick), "{request}: {} in {}", pick.in_flight(), pick.label);
        }
    }

    #[test]
    fn who_has_to_come_to_one_endpoint_does_so_however_much_is_inside() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false)]);
        let client = Affinity { by_client: true, ..from([192, 0, 2, 1]) };
        let balancer = balancer(Balance::BoundedHash);
        let first = balancer.pick(&endpoints, &client).unwrap();
        first.in_flight.store(1000, Ordering::Relaxed);

        assert!(Arc::ptr_eq(balancer.pick(&endpoints, &client).unwrap(), first));
    }

    #[test]
    fn hashes_are_the_same_on_every_machine_and_in_every_version() {
        assert_eq!(tag("10.0.0.2:8000"), 14_512_483_499_738_020_485);
        assert_eq!(client_hash([192, 0, 2, 1].into()), client_hash("::ffff:192.0.2.1".parse().unwrap()));
        assert_eq!(client_hash("2001:db8::1".parse().unwrap()), client_hash("2001:db8::ffff:2".parse().unwrap()));
    }

    #[test]
    fn who_is_stuck_stays_while_that_can_be_used() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 200, false)]);
        let affinity = Affinity { endpoint: Some(Arc::clone(&endpoints[0])), ..Affinity::default() };
        let balancer = balancer(Balance::RoundRobin);
        for _ in 0..10 {
            assert_eq!(&*balancer.pick(&endpoints, &affinity).unwrap().label, "a:1");
        }

        endpoints[0].refused(UNREACHABLE);

        assert_eq!(&*balancer.pick(&endpoints, &affinity).unwrap().label, "b:1");
    }

    #[test]
    fn one_that_comes_back_comes_to_its_share_slowly_and_makes_up_for_nothing() {
        let endpoints = endpoints(&[("a", 1, false), ("b", 1, false)]);
        let slow = Balancer::new(Balance::RoundRobin, Duration::from_secs(3600), None);
        endpoints[0].refused(UNREACHABLE);
        picks(&slow, &endpoints, 100);
        assert!(endpoints[0].connected());

        let first = picks(&slow, &endpoints, 100);
        // Since the clock began, and for as long again.
        endpoints[0].growing_since.store(1, Ordering::Relaxed);
        while now_micros() < 300_000 {
            std::thread::yield_now();
        }
        let slow = Balancer::new(Balance::RoundRobin, Duration::from_micros(now_micros() * 2), None);
        let half = picks(&slow, &endpoints, 1000);
        endpoints[0].growing_since.store(1, Ordering::Relaxed);
        let at_once = picks(&balancer(Balance::RoundRobin), &endpoints, 100);

        assert!(first.get("a:1").copied().unwrap_or(0) <= 10, "{first:?}");
        assert!((320..345).contains(&half["a:1"]), "{half:?}");
        assert!((49..=51).contains(&at_once["a:1"]), "{at_once:?}");
    }
}
