//! The helpers of a pool: threads that wait for a job, first awake and then asleep, and join it while it is open. Whoever has
//! the job works along and leaves when all of it is done; helpers that were slow to wake are not waited for.
//!
//! A thread pool of a library wakes all of its threads for every job and waits for each: that took longer than the small
//! products of a decode step. Nothing is allocated per job.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a helper stays awake for the next job, and a caller for the last helper: longer than what a decoder does
/// between two products of one token, and short beside anything that a person could notice.
const AWAKE: Duration = Duration::from_micros(60);

/// Looks at memory between two looks at the clock.
const LOOKS: usize = 16;

/// Set in `Shared::gate` while the job may be joined. The other bits count who has.
const OPEN: usize = 1 << (usize::BITS - 1);

/// Helpers, stopped and joined when this is dropped.
pub(super) struct Crew {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held while a job runs: callers take turns.
    turn: Mutex<()>,
}

struct Shared {
    /// Who is in the job, and whether others may join.
    gate: AtomicUsize,
    /// Counts the jobs: what waiting helpers look at.
    jobs: AtomicUsize,
    stopping: AtomicBool,
    /// Whether each helper sleeps, or is about to.
    asleep: Vec<AtomicBool>,
    job: UnsafeCell<Option<Job>>,
    /// Why a helper's work broke off.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all but `job` is `Sync` by itself. `job` is written by the caller whose turn it is while nobody is in the job
// (the gate is closed and its count 0), and read by helpers in the job only. A `Job` may be used on any thread.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// What helpers run, and whom the last one wakes.
struct Job {
    /// Borrowed for as long as the caller's [`Crew::run`] lasts, which outlasts every helper in the job.
    work: *const (dyn Fn() + Sync),
    caller: Thread,
}

impl Crew {
    /// `helpers` threads; `prepare` runs first on each, with its number, and all must give `true`: `Ok(None)` else.
    pub(super) fn new(
        helpers: usize,
        name: impl Fn(usize) -> String,
        prepare: impl Fn(usize) -> bool + Clone + Send + 'static,
    ) -> io::Result<Option<Self>> {
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(0),
            jobs: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let mut crew = Self { shared, helpers: Vec::with_capacity(helpers), turn: Mutex::new(()) };
        let (tell, prepared) = std::sync::mpsc::channel();
        for index in 0..helpers {
            let (shared, prepare, tell) = (Arc::clone(&crew.shared), prepare.clone(), tell.clone());
            // Where one does not start, the others are stopped as the crew is dropped.
            let helper = thread::Builder::new().name(name(index)).spawn(move || {
                let _ = tell.send(prepare(index));
                drop(tell);
                shared.help(index);
            })?;
            crew.helpers.push(helper);
        }
        drop(tell);
        let ready = prepared.iter().all(|ready| ready);
        Ok(ready.then_some(crew))
    }

    /// Runs `work` on the calling thread, and at the same time on each helper that comes in time, perhaps more than once;
    /// returns when all are done. `work` is to take its share until nothing is left.
    ///
    /// Panics as `work` does, after the last helper has left: as the caller's part did, where several have.
    pub(super) fn run(&self, work: &(dyn Fn() + Sync)) {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What a helper panicked with is nobody's any more, where its caller's own panic went first.
        drop(self.shared.take_panic());
        // SAFETY: the same reference but for its lifetime; `Leave` waits for all who may use it before `run` returns.
        let borrowed =
            unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(work) };
        // SAFETY: it is this caller's turn, and nobody is in the job.
        unsafe { *self.shared.job.get() = Some(Job { work: borrowed, caller: thread::current() }) };
        self.shared.gate.store(OPEN, Ordering::Release);
        self.shared.jobs.fetch_add(1, Ordering::SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&self.shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        {
            let _leave = Leave(&self.shared);
            work();
        }
        let panic = self.shared.take_panic();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // Panics of their work were caught.
            let _ = helper.join();
        }
    }
}

/// Closes the job and waits until nobody is in it, also where the caller's own work panics.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate;
        gate.fetch_and(!OPEN, Ordering::AcqRel);
        if !look(|| gate.load(Ordering::Acquire) == 0) {
            while gate.load(Ordering::Acquire) != 0 {
                // The last one to leave wakes this thread.
                thread::park();
            }
        }
    }
}

impl Shared {
    /// A helper's life.
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            let is_called =
                || self.jobs.load(Ordering::SeqCst) != seen || self.stopping.load(Ordering::SeqCst);
            if !look(is_called) {
                self.asleep[index].store(true, Ordering::SeqCst);
                // Whoever calls after this look finds this helper asleep and wakes it.
                while !is_called() {
                    thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            seen = self.jobs.load(Ordering::SeqCst);
            if self.join() {
                self.take_part();
            }
        }
    }

    /// What a helper's work panicked with since this was asked last.
    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Joins the job if it is open.
    fn join(&self) -> bool {
        let more = |gate: usize| (gate & OPEN != 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// Does the job, which this helper has joined, and leaves it.
    fn take_part(&self) {
        // SAFETY: the job is not written while this helper is counted at the gate, and was there before it opened.
        let Some(job) = (unsafe { &*self.job.get() }) else { unreachable!("an open gate has a job") };
        let caller = job.caller.clone();
        // SAFETY: the caller stays in `run`, and what it borrows alive, until this helper is no more counted.
        let work = unsafe { &*job.work };
        if let Err(cause) = catch_unwind(AssertUnwindSafe(work)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        }
        if self.gate.fetch_sub(1, Ordering::AcqRel) == 1 {
            caller.unpark();
        }
    }
}

/// Looks for a while whether `is_so`, and says whether it has become so.
fn look(is_so: impl Fn() -> bool) -> bool {
    if is_so() {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < AWAKE {
        for _ in 0..LOOKS {
            if is_so() {
                return true;
            }
            std::hint::spin_loop();
        }
        // Where threads are more than cores, whoever has work goes first.
        thread::yield_now();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew(helpers: usize) -> Crew {
        Crew::new(helpers, |index| format!("test-{index}"), |_| true).unwrap().unwrap()
    }

    #[test]
    fn many_short_jobs_of_several_callers_all_run_whole() {
        let (crew, done) = (crew(3), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let next = AtomicUsize::new(0);
                        crew.run(&|| {
                            while next.fetch_add(1, Ordering::Relaxed) < 5 {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 3 * 2000 * 5);
    }

    #[test]
    fn a_helper_asleep_is_woken_for_a_job() {
        let crew = crew(1);
        while !crew.shared.asleep[0].load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let caller = thread::current().id();
        let helped = AtomicBool::new(false);
        crew.run(&|| {
            if thread::current().id() == caller {
                while !helped.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            } else {
                helped.store(true, Ordering::SeqCst);
            }
        });
    }

    #[test]
    fn panics_reach_the_caller_and_leave_the_crew_able_to_work() {
        let crew = crew(1);
        let caller = thread::current().id();
        // Whose work breaks off: the caller's, the helper's, or that of both.
        for (callers, helpers) in [(true, false), (false, true), (true, true)] {
            let joined = AtomicBool::new(false);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                crew.run(&|| {
                    let here = thread::current().id() == caller;
                    if !here {
                        joined.store(true, Ordering::SeqCst);
                    }
                    while !joined.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    let breaks_off = if here { callers } else { helpers };
                    assert!(!breaks_off, "the work breaks off");
                });
            }));
            assert!(caught.is_err());
            let ran = AtomicBool::new(false);
            // Also where the caller's own panic went first and nobody has asked for the helper's.
            crew.run(&|| ran.store(true, Ordering::SeqCst));
            assert!(ran.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn a_crew_whose_threads_cannot_be_prepared_is_none() {
        let crew = Crew::new(2, |index| index.to_string(), |index| index == 0).unwrap();
        assert!(crew.is_none());
    }
}
