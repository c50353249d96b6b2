//! The threads of one backend: never rayon's global pool, so that hosts in one process keep to their own cores.
//! What the items compute is unknown here; how threads wait for work is `crew`'s.

mod crew;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crew::Crew;

use crate::KernelError;

/// Work below this many floating-point operations runs on the calling thread: waking the others takes some
/// 10 µs, in which one core does about as much.
pub(crate) const INLINE_FLOPS: usize = 1 << 19;

/// The calling thread and helpers for it, none where one thread is enough.
pub(crate) struct Pool {
    threads: usize,
    cpus: Vec<usize>,
    crew: Option<Crew>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// `threads` threads (0: one per listed core, or per core of the machine), pinned to `cpus` in turn unless
    /// the list is empty. The first of them is the caller's own: see [`Pool::attach`].
    pub(crate) fn new(name: &str, threads: usize, cpus: &[usize]) -> Result<Self, KernelError> {
        check_cpus(cpus)?;
        let threads = match (threads, cpus.len()) {
            (0, 0) => std::thread::available_parallelism().map_or(1, usize::from),
            (0, listed) => listed,
            (given, _) => given,
        };
        let cpus = cpus.to_vec();
        if threads == 1 {
            return Ok(Self { threads, cpus, crew: None });
        }
        let cores = cpus.clone();
        let pin = move |index: usize| {
            let core = cores.get((index + 1) % cores.len().max(1));
            core.is_none_or(|&id| core_affinity::set_for_current(core_affinity::CoreId { id }))
        };
        let crew = Crew::new(threads - 1, |index| format!("{name}-{}", index + 1), pin)
            .map_err(|source| KernelError::Threads { threads, source })?;
        match crew {
            Some(crew) => Ok(Self { threads, cpus, crew: Some(crew) }),
            None => Err(KernelError::Pinning { cpus }),
        }
    }

    /// Binds the calling thread, which does its part of all work, to the first of the listed cores.
    pub(crate) fn attach(&self) {
        if let Some(&id) = self.cpus.first() {
            // The core was there when the pool was made; without it the thread is merely free to move.
            let _ = core_affinity::set_for_current(core_affinity::CoreId { id });
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` once for every item below `items`, in order per thread, and returns when all are done.
    ///
    /// `flops` is the size of the whole: small work stays on the calling thread.
    pub(crate) fn run(&self, items: usize, flops: usize, work: impl Fn(usize) + Sync) {
        match &self.crew {
            Some(crew) if items > 1 && flops >= INLINE_FLOPS => {
                let next = AtomicUsize::new(0);
                crew.run(&|| {
                    loop {
                        let item = next.fetch_add(1, Ordering::Relaxed);
                        if item >= items {
                            break;
                        }
                        work(item);
                    }
                });
            }
            _ => (0..items).for_each(work),
        }
    }

    /// Runs `work` over pieces of `data` that are whole rows of `row_len` values and about `piece_len` long, with
    /// the index of each piece's first value.
    pub(crate) fn run_rows<T: Send>(
        &self,
        data: &mut [T],
        row_len: usize,
        piece_len: usize,
        flops_per_value: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let flops = data.len() * flops_per_value;
        let piece_len = (piece_len / row_len).max(1) * row_len;
        let count = data.len().div_ceil(piece_len);
        let pieces = Mutex::new(data.chunks_mut(piece_len).enumerate());
        self.run(count, flops, |_| {
            let piece = pieces.lock().expect("taking a piece does not panic").next();
            if let Some((index, piece)) = piece {
                work(index * piece_len, piece);
            }
        });
    }
}

fn check_cpus(cpus: &[usize]) -> Result<(), KernelError> {
    if cpus.is_empty() {
        return Ok(());
    }
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let available: Vec<usize> = ids.into_iter().map(|core| core.id).collect();
    match cpus.iter().find(|cpu| !available.contains(cpu)) {
        Some(cpu) => Err(KernelError::UnknownCpu { cpu: *cpu, available }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new("test", threads, &[]).unwrap();
            for flops in [0, INLINE_FLOPS] {
                let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
                pool.run(100, flops, |item| {
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused_by_number() {
        let error = Pool::new("test", 2, &[0, 100_000]).unwrap_err();
        assert!(error.to_string().starts_with("core 100000 is not available"), "{error}");
    }

    #[test]
    fn listed_cores_give_the_number_of_threads() {
        let first = core_affinity::get_core_ids().unwrap()[0].id;
        assert_eq!(Pool::new("test", 0, &[first, first]).unwrap().threads(), 2);
    }
}
