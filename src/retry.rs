//! Choose an endpoint, try it, blame it if it failed, and choose another one.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::Balance;
use crate::balance::health::{Attempt, HealthKey, OutlierConfig, Outliers};
use crate::observe::{Ejected, Event, Observer, notify};
use crate::route::Choice;

/// How often and for how long endpoints are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// At least 1.
    pub(crate) attempts: usize,
    /// For all attempts together.
    pub(crate) timeout: Duration,
    /// For one attempt while there are others to try and attempts left.
    pub(crate) attempt_timeout: Duration,
}

/// What is known of endpoints, and who chooses among them. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    balance: Arc<dyn Balance>,
    health: Arc<Mutex<Outliers<HealthKey>>>,
    observer: Option<Arc<dyn Observer>>,
}

/// A request that some endpoint can serve.
pub(crate) trait Request: Sync {
    /// What was chosen.
    type Endpoint: Send + Sync;
    /// What comes of it.
    type Output: Send;
    /// Why there is none.
    type Error: Send;

    /// Chooses an endpoint.
    fn choose(&self, choice: &Choice<'_>) -> Result<Self::Endpoint, Self::Error>;

    /// What an attempt at an endpoint says something about: as
    /// [`Route::health_keys`](crate::route::Route::health_keys).
    fn health_keys(&self, endpoint: &Self::Endpoint) -> Vec<HealthKey>;

    /// Whether another attempt may come to another endpoint.
    fn has_others(&self, endpoint: &Self::Endpoint) -> bool;

    /// Tries the endpoint until then.
    fn attempt(
        &self,
        endpoint: &Self::Endpoint,
        until: Instant,
    ) -> impl Future<Output = Result<Self::Output, Failure<Self::Error>>> + Send;

    /// The endpoint is about to be tried for the `attempt`th time of the request, counted from 1.
    fn on_picked(&self, endpoint: &Self::Endpoint, attempt: usize);

    /// That attempt has failed.
    fn on_failed(&self, attempt: usize, failure: &Failure<Self::Error>, is_retried: bool, elapsed: Duration);
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failure<E> {
    pub(crate) error: E,
    /// Which of the health keys it speaks against. Those before it have done their part; of those after it, nothing is
    /// known.
    pub(crate) blamed: Option<HealthKey>,
    /// Whether it says nothing new about the endpoint.
    pub(crate) is_repeated: bool,
    pub(crate) retry: RetryAt,
}

/// Where another attempt may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryAt {
    Nowhere,
    /// At another endpoint.
    Others,
    /// At another one, or at the same one if there is none.
    Any,
}

/// An endpoint, and the attempts that are begun with it.
type Chosen<R> = (<R as Request>::Endpoint, Vec<Attempt<HealthKey>>);

/// What [`Endpoints::serve`] has achieved.
pub(crate) struct Served<R: Request> {
    pub(crate) endpoint: R::Endpoint,
    pub(crate) output: R::Output,
    /// How many attempts it took.
    pub(crate) attempts: usize,
}

/// Why [`Endpoints::serve`] has failed.
#[derive(Debug)]
pub(crate) struct Unserved<E> {
    /// Of the last attempt; where there was none, why nothing could be chosen.
    pub(crate) error: E,
    /// How many attempts there were.
    pub(crate) attempts: usize,
}

impl Endpoints {
    pub(crate) fn new(balance: Arc<dyn Balance>, outliers: OutlierConfig, observer: Option<Arc<dyn Observer>>) -> Self {
        Self { balance, health: Arc::new(Mutex::new(Outliers::new(outliers))), observer }
    }

    pub(crate) fn with_balance(self, balance: Arc<dyn Balance>) -> Self {
        Self { balance, ..self }
    }

    /// Forgets what is known of endpoints.
    pub(crate) fn with_outliers(self, outliers: OutlierConfig) -> Self {
        Self { health: Arc::new(Mutex::new(Outliers::new(outliers))), ..self }
    }

    /// Tries endpoints in turn until one serves the request. Cancel safe: an attempt that is cut short says nothing.
    pub(crate) async fn serve<R: Request>(
        &self,
        request: &R,
        policy: &RetryPolicy,
    ) -> Result<Served<R>, Unserved<R::Error>> {
        let deadline = Instant::now() + policy.timeout;
        let (mut tried, mut last, mut attempts) = (Vec::new(), None, 0);
        loop {
            let (endpoint, begun) = match self.choose(request, &tried) {
                Ok(chosen) => chosen,
                // Something has changed in between. What happened before says more.
                Err(error) => return Err(Unserved { error: last.unwrap_or(error), attempts }),
            };
            attempts += 1;
            let has_others = request.has_others(&endpoint);
            let is_last = attempts >= policy.attempts;
            let began = Instant::now();
            let until = if has_others && !is_last { deadline.min(began + policy.attempt_timeout) } else { deadline };
            request.on_picked(&endpoint, attempts);
            let failure = match request.attempt(&endpoint, until).await {
                Ok(output) => {
                    begun.into_iter().for_each(|attempt| self.succeeded(attempt));
                    return Ok(Served { endpoint, output, attempts });
                }
                Err(failure) => failure,
            };
            self.failed(begun, failure.blamed.as_ref().filter(|_| !failure.is_repeated));
            let now = Instant::now();
            let is_retried = !is_last
                && now < deadline
                && match failure.retry {
                    RetryAt::Nowhere => false,
                    RetryAt::Others => has_others,
                    RetryAt::Any => true,
                };
            request.on_failed(attempts, &failure, is_retried, now - began);
            let Failure { error, blamed, .. } = failure;
            if !is_retried {
                return Err(Unserved { error, attempts });
            }
            tried.extend(blamed);
            last = Some(error);
        }
    }

    /// Locked until the attempts have begun: two requests must not become the same probe.
    fn choose<R: Request>(&self, request: &R, tried: &[HealthKey]) -> Result<Chosen<R>, R::Error> {
        let now = Instant::now();
        let mut health = self.health();
        let choice = Choice::new(&*self.balance).with_health(&health, now).with_tried(tried);
        let endpoint = request.choose(&choice)?;
        let begun = request.health_keys(&endpoint).into_iter().map(|key| health.begin(key, now)).collect();
        Ok((endpoint, begun))
    }

    fn succeeded(&self, attempt: Attempt<HealthKey>) {
        let key = attempt.key().clone();
        if self.health().success(attempt, Instant::now()) {
            notify(self.observer.as_ref(), || Event::Readmitted(&key));
        }
    }

    fn failed(&self, attempts: Vec<Attempt<HealthKey>>, blamed: Option<&HealthKey>) {
        let Some(key) = blamed else { return };
        for attempt in attempts {
            if attempt.key() != key {
                self.succeeded(attempt);
                continue;
            }
            let ejected = self.health().failure(attempt, Instant::now());
            if let Some(duration) = ejected {
                notify(self.observer.as_ref(), || Event::Ejected(Ejected { key, duration }));
            }
            return;
        }
    }

    fn health(&self) -> MutexGuard<'_, Outliers<HealthKey>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rstest::rstest;
    use tokio::time::sleep_until;

    use super::*;
    use crate::balance::WeightedRandom;

    const POLICY: RetryPolicy =
        RetryPolicy { attempts: 3, timeout: Duration::from_secs(20), attempt_timeout: Duration::from_secs(3) };

    /// What happens to an attempt.
    #[derive(Clone, Copy, Debug)]
    enum Outcome {
        Served,
        Fails(RetryAt),
        /// Nothing, for as long as it may take.
        Stalls,
    }

    /// Each attempt goes to the next of several endpoints. With the attempts and what they were told.
    struct Script {
        outcomes: Vec<Outcome>,
        others: usize,
        picked: AtomicUsize,
        log: Mutex<Vec<String>>,
    }

    impl Script {
        fn new(outcomes: &[Outcome], others: usize) -> Self {
            Self { outcomes: outcomes.to_vec(), others, picked: AtomicUsize::new(0), log: Mutex::default() }
        }

        fn key(endpoint: usize) -> HealthKey {
            HealthKey::Workload(endpoint.to_string().into())
        }

        fn log(&self, line: String) {
            self.log.lock().unwrap().push(line);
        }
    }

    impl Request for Script {
        type Endpoint = usize;
        type Output = &'static str;
        type Error = String;

        fn choose(&self, _: &Choice<'_>) -> Result<usize, String> {
            let endpoint = self.picked.fetch_add(1, Ordering::Relaxed);
            if endpoint < self.outcomes.len() { Ok(endpoint) } else { Err("nobody left".to_owned()) }
        }

        fn health_keys(&self, endpoint: &usize) -> Vec<HealthKey> {
            vec![Self::key(*endpoint)]
        }

        fn has_others(&self, endpoint: &usize) -> bool {
            *endpoint < self.others
        }

        async fn attempt(&self, endpoint: &usize, until: Instant) -> Result<&'static str, Failure<String>> {
            let retry = match self.outcomes[*endpoint] {
                Outcome::Served => return Ok("served"),
                Outcome::Fails(retry) => retry,
                Outcome::Stalls => {
                    sleep_until(until).await;
                    RetryAt::Others
                }
            };
            let error = format!("{endpoint} failed");
            Err(Failure { error, blamed: Some(Self::key(*endpoint)), is_repeated: false, retry })
        }

        fn on_picked(&self, endpoint: &usize, attempt: usize) {
            self.log(format!("{attempt}: {endpoint}"));
        }

        fn on_failed(&self, attempt: usize, failure: &Failure<String>, is_retried: bool, elapsed: Duration) {
            self.log(format!("{attempt}: {}, {is_retried} after {} s", failure.error, elapsed.as_secs()));
        }
    }

    fn endpoints(observer: Option<Arc<dyn Observer>>) -> Endpoints {
        let outliers = OutlierConfig::new().with_consecutive_failures(2).with_max_ejection_percent(100);
        Endpoints::new(Arc::new(WeightedRandom::new()), outliers, observer)
    }

    #[rstest]
    #[case::at_once(&[Outcome::Served], 0, Ok(1), 0)]
    #[case::by_another(&[Outcome::Fails(RetryAt::Others), Outcome::Served], 1, Ok(2), 0)]
    #[case::there_is_no_other(&[Outcome::Fails(RetryAt::Others), Outcome::Served], 0, Err("0 failed"), 0)]
    #[case::by_the_same(&[Outcome::Fails(RetryAt::Any), Outcome::Served], 0, Ok(2), 0)]
    #[case::for_good(&[Outcome::Fails(RetryAt::Nowhere), Outcome::Served], 1, Err("0 failed"), 0)]
    #[case::attempts_are_counted(&[Outcome::Fails(RetryAt::Any); 9], 9, Err("2 failed"), 0)]
    #[case::what_happened_says_more(&[Outcome::Fails(RetryAt::Any)], 9, Err("0 failed"), 0)]
    #[case::nothing_to_choose(&[], 0, Err("nobody left"), 0)]
    #[case::the_last_attempt_has_the_time_that_is_left(&[Outcome::Stalls; 3], 9, Err("2 failed"), 20)]
    #[case::so_has_the_only_one(&[Outcome::Stalls; 3], 0, Err("0 failed"), 20)]
    #[case::others_have_less(&[Outcome::Stalls, Outcome::Served], 9, Ok(2), 3)]
    #[tokio::test(start_paused = true)]
    async fn endpoints_are_tried_in_turn(
        #[case] outcomes: &[Outcome],
        #[case] others: usize,
        #[case] expected: Result<usize, &str>,
        #[case] seconds: u64,
    ) {
        let (script, began) = (Script::new(outcomes, others), Instant::now());
        let served = endpoints(None).serve(&script, &POLICY).await;
        let served = served.map(|served| served.attempts).map_err(|unserved| unserved.error);
        assert_eq!(served.as_ref().map_err(String::as_str).copied(), expected.as_ref().map_err(|e| *e).copied());
        assert_eq!(began.elapsed(), Duration::from_secs(seconds));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_is_told_with_its_outcome() {
        let script = Script::new(&[Outcome::Stalls, Outcome::Fails(RetryAt::Any), Outcome::Served], 9);
        let served = endpoints(None).serve(&script, &POLICY).await.unwrap_or_else(|e| panic!("{}", e.error));
        assert_eq!((served.endpoint, served.output, served.attempts), (2, "served", 3));
        let expected = ["1: 0", "1: 0 failed, true after 3 s", "2: 1", "2: 1 failed, true after 0 s", "3: 2"];
        assert_eq!(*script.log.lock().unwrap(), expected);
    }

    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<String>>);

    impl Observer for Log {
        fn event(&self, event: &Event<'_>) {
            let line = match event {
                Event::Ejected(ejected) => format!("{:?} for {:?}", ejected.key, ejected.duration),
                Event::Readmitted(key) => format!("{key:?} is back"),
                _ => return,
            };
            self.0.lock().unwrap().push(line);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_repeatedly_is_ejected_and_comes_back_with_its_first_success() {
        let log = Arc::new(Log::default());
        let endpoints = endpoints(Some(log.clone()));
        for _ in 0..3 {
            let failed = endpoints.serve(&Script::new(&[Outcome::Fails(RetryAt::Nowhere)], 0), &POLICY).await;
            assert!(failed.is_err());
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..2 {
            assert!(endpoints.serve(&Script::new(&[Outcome::Served], 0), &POLICY).await.is_ok());
        }
        let base = OutlierConfig::new().base_ejection_time();
        let expected = [format!("Workload(\"0\") for {base:?}"), "Workload(\"0\") is back".to_owned()];
        assert_eq!(*log.0.lock().unwrap(), expected);
    }
}
