//! How often something may happen: so many at once, and then evenly as they are replenished (GCRA, which governor counts).

use std::{fmt, hash::Hash, net::IpAddr, sync::Arc, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use http::{HeaderMap, StatusCode};

use super::{Client, Notice, slots::Slots};
use crate::{
    config::{LimitsPlan, Rate, RateKey, RequestRate, TrustedProxies},
    http::{GatewayError, headers},
};

/// One rate, for each key or for all.
struct Limiter {
    rate: Rate,
    counts: RateLimiter<usize, Cells, MonotonicClock>,
    cells: Arc<Slots<InMemoryState>>,
}

impl Limiter {
    fn new(rate: Rate, cells: Slots<InMemoryState>) -> Self {
        let period = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("no period of zero").allow_burst(rate.count);
        let cells = Arc::new(cells);
        Self { rate, counts: RateLimiter::new(quota, Cells(Arc::clone(&cells)), MonotonicClock), cells }
    }

    fn for_each(rate: Rate) -> Self {
        Self::new(rate, Slots::new())
    }

    fn for_all(rate: Rate) -> Self {
        Self::new(rate, Slots::single())
    }

    /// Counts one more of `key`, unless there were too many: then, after what time one may come.
    fn count(&self, key: &impl Hash) -> Result<(), Duration> {
        self.counts.check_key(&self.cells.of(key)).map_err(|until| until.wait_time_from(MonotonicClock.now()))
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.rate).finish()
    }
}

/// Where governor keeps its counts: by the number of a slot.
struct Cells(Arc<Slots<InMemoryState>>);

impl StateStore for Cells {
    type Key = usize;

    fn measure_and_replace<T, F, E>(&self, slot: &usize, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.slot(*slot).measure_and_replace(&NotKeyed::NonKey, f)
    }
}

/// How many TLS handshakes there may be.
#[derive(Clone, Debug)]
pub struct Handshakes {
    all: Option<Arc<Limiter>>,
    by_client: Option<Arc<Limiter>>,
}

impl Handshakes {
    /// As `limits` says; goes on with the counts of `before` where that said the same.
    pub fn new(limits: &LimitsPlan, before: Option<&Self>) -> Self {
        let next = |rate: Option<Rate>, before: Option<&Arc<Limiter>>, new: fn(Rate) -> Limiter| {
            let rate = rate?;
            let same = before.filter(|before| before.rate == rate).cloned();
            Some(same.unwrap_or_else(|| Arc::new(new(rate))))
        };
        Self {
            all: next(limits.handshakes, before.and_then(|before| before.all.as_ref()), Limiter::for_all),
            by_client: next(
                limits.handshakes_per_address,
                before.and_then(|before| before.by_client.as_ref()),
                Limiter::for_each,
            ),
        }
    }

    /// So many of each client, and any number of all.
    pub fn of_each(rate: Rate) -> Self {
        Self { all: None, by_client: Some(Arc::new(Limiter::for_each(rate))) }
    }

    /// Counts one more, of a client that is counted by its address or of one that is not. Whether it may be made.
    pub fn count(&self, client: Option<Client>) -> bool {
        // The client first: who makes too many takes none from the others.
        let own = self.by_client.as_ref().zip(client).is_none_or(|(limiter, client)| limiter.count(&client).is_ok());
        own && self.all.as_ref().is_none_or(|limiter| limiter.count(&()).is_ok())
    }
}

/// How many requests there may be, of a route or of all.
#[derive(Clone, Debug)]
pub struct Requests(Arc<[RequestLimit]>);

#[derive(Clone, Debug)]
struct RequestLimit {
    /// The key of the configuration that says so.
    at: String,
    by: RateKey,
    limiter: Arc<Limiter>,
    notice: Arc<Notice>,
}

impl Requests {
    /// As `rates` at the key `at` say; goes on with the counts of `before` where that said the same.
    pub fn new(rates: &[RequestRate], at: &str, before: Option<&Self>) -> Self {
        let limit = |(index, plan): (usize, &RequestRate)| {
            let same = before.and_then(|before| before.0.get(index));
            let same = same.filter(|same| same.by == plan.by && same.limiter.rate == plan.rate);
            let at = format!("{at}[{index}]");
            if let Some(same) = same {
                return RequestLimit { at, ..same.clone() };
            }
            let limiter = match plan.by {
                RateKey::All => Limiter::for_all(plan.rate),
                RateKey::Address | RateKey::Cookie(_) => Limiter::for_each(plan.rate),
            };
            RequestLimit { at, by: plan.by.clone(), limiter: Arc::new(limiter), notice: Arc::default() }
        };
        Self(rates.iter().enumerate().map(limit).collect())
    }

    /// Counts one more request.
    ///
    /// # Errors
    ///
    /// There were too many: 429, with the time after which one may come.
    pub fn count(
        &self,
        client: Option<IpAddr>,
        headers: &HeaderMap,
        limits: &LimitsPlan,
        trusted: &TrustedProxies,
    ) -> Result<(), GatewayError> {
        // What is counted for all comes last: who asks too much takes none from the others.
        let of = |all: bool| self.0.iter().filter(move |limit| (limit.by == RateKey::All) == all);
        for limit in of(false).chain(of(true)) {
            let address = || client.and_then(|client| Client::counted(client, limits, trusted));
            let counted = match &limit.by {
                RateKey::All => limit.limiter.count(&()),
                RateKey::Address => address().map_or(Ok(()), |client| limit.limiter.count(&client)),
                RateKey::Cookie(name) => match (headers::cookie(headers, name), address()) {
                    (Some(value), _) => limit.limiter.count(&value),
                    (None, Some(client)) => limit.limiter.count(&client),
                    (None, None) => Ok(()),
                },
            };
            counted.map_err(|wait| limit.refuse(client, wait))?;
        }
        Ok(())
    }
}

impl RequestLimit {
    fn refuse(&self, client: Option<IpAddr>, wait: Duration) -> GatewayError {
        let at = &self.at;
        if let Some(times) = self.notice.happened() {
            let client = client.map(tracing::field::display);
            tracing::warn!(client, times, "requests are answered 429: more come than `{at}` allows");
        }
        GatewayError::downstream(StatusCode::TOO_MANY_REQUESTS, format!("more requests than `{at}` allows"))
            .hint("It has been asked too often in a short time. Wait a moment, then try again.")
            .retry_after(wait)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::{super::tests::limits, *};

    fn count(requests: &Requests, limits: &LimitsPlan, client: &str, cookie: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_str(cookie).unwrap());
        let counted = requests.count(client.parse().ok(), &headers, limits, &TrustedProxies::default());
        counted.err().map(|error| error.retry_after.unwrap())
    }

    #[test]
    fn one_request_too_many_is_told_when_the_next_one_may_come() {
        let limits = limits("requests: [{ count: 2, per: 60s }]");
        let requests = Requests::new(&limits.requests, "limits.requests", None);
        let ask = |client| count(&requests, &limits, client, "");

        assert_eq!((ask("192.0.2.1"), ask("192.0.2.1")), (None, None));
        let wait = ask("192.0.2.1").unwrap();
        assert!((29..=30).contains(&wait.as_secs()), "half of the time that two are replenished in: {wait:?}");
        assert_eq!(ask("192.0.2.2"), None, "another client has its own");
        assert!((0..4).all(|_| ask("10.1.2.3").is_none()), "behind a private address there may be many");
    }

    #[test]
    fn requests_are_counted_by_cookie_or_else_by_address_or_all_together() {
        let limits = limits("requests: [{ by: 'cookie:s', count: 1, per: 60s }, { by: all, count: 4, per: 60s }]");
        let requests = Requests::new(&limits.requests, "limits.requests", None);
        let ask = |client, cookie| count(&requests, &limits, client, cookie).is_none();

        assert!(ask("192.0.2.1", "a=b; s=one"));
        assert!(!ask("192.0.2.2", "s=one"));
        assert!(ask("192.0.2.2", "s=two"));
        assert!(ask("192.0.2.3", "t=three"));
        assert!(!ask("192.0.2.3", "s2=x"), "without the cookie it is the address");
        assert!(ask("10.0.0.1", ""));
        assert!(!ask("10.0.0.1", ""), "the fifth of all");
    }

    #[test]
    fn counts_go_on_through_a_reload_that_says_the_same() {
        let limits = limits("requests: [{ count: 1, per: 60s }]");
        let first = Requests::new(&limits.requests, "limits.requests", None);
        count(&first, &limits, "192.0.2.1", "");

        let same = Requests::new(&limits.requests, "limits.requests", Some(&first));
        let new = Requests::new(&limits.requests, "limits.requests", None);

        assert!(count(&same, &limits, "192.0.2.1", "").is_some());
        assert!(count(&new, &limits, "192.0.2.1", "").is_none());
    }

    #[test]
    fn a_client_that_has_made_its_handshakes_leaves_those_of_others() {
        let limits = limits("handshakes: { count: 2, per: 60s }, handshakes_per_address: { count: 1, per: 60s }");
        let handshakes = Handshakes::new(&limits, None);
        let client = |text: &str| Some(Client::new(text.parse().unwrap()));

        assert!(handshakes.count(client("192.0.2.1")));
        assert!(!handshakes.count(client("192.0.2.1")));
        assert!(handshakes.count(client("192.0.2.2")));
        assert!(!handshakes.count(client("192.0.2.3")), "the third of all");
    }
}
