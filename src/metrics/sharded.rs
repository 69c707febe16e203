//! Counters that several cores add to without taking the cache line from each other.
//!
//! Each thread adds, relaxed, to a shard of its own; a reader sums them up. With more threads than [`SHARDS`] some
//! share. A counter takes 64 bytes a shard, a histogram 192.

use std::{
    array, fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Counts events or bytes; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<[Cell; SHARDS]>);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, count: u64) {
        self.0[shard()].0.fetch_add(count, Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        sum(self.0.iter())
    }

    /// How many clones there are.
    pub(super) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Counter {
    const TYPE: MetricType = MetricType::Counter;
}

/// How many there are of something right now; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<[Cell; SHARDS]>);

impl Gauge {
    /// Counts one until the guard is dropped, on whatever thread that is.
    #[must_use]
    pub fn hold(&self) -> Held {
        self.add(1);
        Held(self.clone())
    }

    pub fn add(&self, count: u64) {
        self.0[shard()].0.fetch_add(count, Relaxed);
    }

    pub fn sub(&self, count: u64) {
        self.0[shard()].0.fetch_sub(count, Relaxed);
    }

    /// Never negative: while a count moves between threads a reader may see it in neither.
    #[must_use]
    pub fn get(&self) -> u64 {
        // One thread may take away what another added, so that a single shard means nothing and may have wrapped.
        u64::try_from(sum(self.0.iter()).cast_signed()).unwrap_or(0)
    }

    /// How many clones there are, and how many [`Held`].
    pub(super) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        encoder.encode_gauge(&i64::try_from(self.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Gauge {
    const TYPE: MetricType = MetricType::Gauge;
}

/// One of what a [`Gauge`] counts.
#[derive(Debug)]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

/// How long something took; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<[Observations; SHARDS]>);

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&(bound, _)| bound < micros);
        let shard = &self.0[shard()];
        shard.buckets[bucket].fetch_add(1, Relaxed);
        shard.micros.fetch_add(micros, Relaxed);
    }

    /// Observations so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets().iter().sum()
    }

    fn buckets(&self) -> [u64; BUCKETS] {
        array::from_fn(|bucket| self.0.iter().map(|shard| shard.buckets[bucket].load(Relaxed)).sum())
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let counts = self.buckets();
        let bounds = BOUNDS.iter().map(|&(_, seconds)| seconds).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let micros: u64 = self.0.iter().map(|shard| shard.micros.load(Relaxed)).fold(0, u64::wrapping_add);
        let seconds = Duration::from_micros(micros).as_secs_f64();
        // The count is the sum of these buckets, not a number of its own: the two always agree.
        encoder.encode_histogram::<NoLabelSet>(seconds, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// A number on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell(AtomicU64);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Observations {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

fn sum<'c>(cells: impl Iterator<Item = &'c Cell>) -> u64 {
    cells.map(|cell| cell.0.load(Relaxed)).fold(0, u64::wrapping_add)
}

/// The shard of this thread.
fn shard() -> usize {
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Relaxed) % SHARDS;
    }
    // A thread that is being torn down has no thread-locals any more; any shard is right for it.
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

// Deals shards to threads, nothing more: what is counted belongs to the metrics of one gateway.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Threads that can count without sharing a cache line.
const SHARDS: usize = 8;

/// Upper bounds of the buckets, in microseconds and in seconds.
const BOUNDS: [(u64, f64); 15] = [
    (1_000, 0.001),
    (2_500, 0.0025),
    (5_000, 0.005),
    (10_000, 0.01),
    (25_000, 0.025),
    (50_000, 0.05),
    (100_000, 0.1),
    (250_000, 0.25),
    (500_000, 0.5),
    (1_000_000, 1.0),
    (2_500_000, 2.5),
    (5_000_000, 5.0),
    (10_000_000, 10.0),
    (30_000_000, 30.0),
    (60_000_000, 60.0),
];

/// One more than [`BOUNDS`]: what takes longer.
const BUCKETS: usize = BOUNDS.len() + 1;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_counter_has_what_every_thread_added() {
        let counter = Counter::default();

        thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..1000).for_each(|_| counter.inc()));
            }
        });

        assert_eq!(counter.get(), 2 * SHARDS as u64 * 1000);
    }

    #[test]
    fn a_gauge_may_be_released_on_another_thread() {
        let gauge = Gauge::default();
        let (kept, moved) = (gauge.hold(), gauge.hold());
        assert_eq!(gauge.get(), 2);

        thread::spawn(move || drop(moved)).join().unwrap();

        assert_eq!(gauge.get(), 1);
        drop(kept);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_bucket_includes_its_upper_bound() {
        for (micros, bucket) in [(0, 0), (1_000, 0), (1_001, 1), (60_000_000, 14), (60_000_001, 15), (u64::MAX, 15)] {
            let histogram = Histogram::default();

            histogram.observe(Duration::from_micros(micros));

            assert_eq!(histogram.buckets().iter().position(|&count| count == 1), Some(bucket), "{micros}");
        }
    }

    #[test]
    fn the_bounds_in_microseconds_are_those_in_seconds() {
        for (micros, seconds) in BOUNDS {
            assert!((Duration::from_micros(micros).as_secs_f64() - seconds).abs() < 1e-9, "{micros} {seconds}");
        }
    }
}
