use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A job that is a closure.
struct Each<F>(F);

impl<F: FnMut(Events, &Watched<'_>) -> Option<Instant> + Send> Job for Each<F> {
    fn run(&mut self, events: Events, watched: &Watched<'_>) -> Option<Instant> {
        self.0(events, watched)
    }
}

fn job(body: impl FnMut(Events, &Watched<'_>) -> Option<Instant> + Send + 'static) -> Box<dyn Job> {
    Box::new(Each(body))
}

fn workers(pool: &Pool) -> usize {
    pool.shared().unwrap().state().workers
}

fn in_ms(ms: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(ms))
}

#[test]
fn a_job_runs_at_once_and_then_each_time_that_it_asks_for() {
    let pool = Pool::default();
    let (tell, told) = channel();
    let begun = Instant::now();
    pool.add(job(move |events, _| {
        tell.send((begun.elapsed(), events)).unwrap();
        in_ms(50)
    }))
    .unwrap();
    let runs: Vec<_> = (0..4).map(|_| told.recv_timeout(LIMIT).unwrap()).collect();
    assert!(runs.iter().all(|(_, events)| *events == Events::default()));
    for (index, (at, _)) in runs.iter().enumerate() {
        let least = Duration::from_millis(50) * u32::try_from(index).unwrap();
        assert!(*at >= least, "{runs:?}: never too early");
    }
}

#[test]
fn what_happens_wakes_a_job_and_says_what_it_was() {
    let pool = Pool::default();
    let (tell, told) = channel();
    let wakeup = Arc::new(Wakeup::new().unwrap());
    let watched_wakeup = Arc::clone(&wakeup);
    let mut is_first = true;
    pool.add(job(move |events, watched| {
        if std::mem::take(&mut is_first) {
            let fd = watched_wakeup.as_raw_fd();
            watched.watch(fd, Interest::Readable, 2).unwrap();
        }
        watched_wakeup.clear();
        tell.send(events).unwrap();
        None
    }))
    .unwrap();
    assert_eq!(told.recv_timeout(LIMIT).unwrap(), Events::default());
    for _ in 0..3 {
        wakeup.set();
        let events = told.recv_timeout(LIMIT).unwrap();
        assert!(
            events.has(2) && !events.has(0) && !events.has(1),
            "{events:?}"
        );
    }
    assert!(told.try_recv().is_err(), "nothing happened since");
}

/// A job that blocks until it is let go.
fn hanging(pool: &Pool) -> (Receiver<()>, Sender<()>, JobId) {
    let ((tell, told), (free, freed)) = (channel(), channel::<()>());
    let id = pool.add(job(move |_, _| {
        tell.send(()).unwrap();
        let _ = freed.recv();
        None
    }));
    (told, free, id.unwrap())
}

#[test]
fn jobs_that_hang_hold_nobody_up() {
    let pool = Pool::default();
    let hung: Vec<_> = (0..20).map(|_| hanging(&pool)).collect();
    for (told, ..) in &hung {
        told.recv_timeout(LIMIT).unwrap();
    }
    let (tell, told) = channel();
    pool.add(job(move |_, _| {
        tell.send(()).unwrap();
        in_ms(1)
    }))
    .unwrap();
    for _ in 0..10 {
        told.recv_timeout(LIMIT).unwrap();
    }
    assert!(workers(&pool) > 20);
}

#[test]
fn removing_waits_for_a_job_that_runs_and_it_never_runs_again() {
    let pool = Arc::new(Pool::default());
    let (told, free, id) = hanging(&pool);
    told.recv_timeout(LIMIT).unwrap();
    let is_removed = Arc::new(AtomicBool::new(false));
    let (remover, flag) = (Arc::clone(&pool), Arc::clone(&is_removed));
    let removing = thread::spawn(move || {
        let job = remover.remove(id);
        flag.store(true, Ordering::SeqCst);
        job.is_some()
    });
    thread::sleep(Duration::from_millis(50));
    assert!(!is_removed.load(Ordering::SeqCst), "it still runs");
    free.send(()).unwrap();
    assert!(removing.join().unwrap());
    assert!(pool.remove(id).is_none());
}

#[test]
fn an_event_while_a_job_runs_makes_it_run_again() {
    let pool = Pool::default();
    let wakeup = Arc::new(Wakeup::new().unwrap());
    let ((tell, told), (free, freed)) = (channel(), channel::<()>());
    let of_job = Arc::clone(&wakeup);
    let mut is_first = true;
    pool.add(job(move |_, watched| {
        if std::mem::take(&mut is_first) {
            watched
                .watch(of_job.as_raw_fd(), Interest::Readable, 0)
                .unwrap();
        }
        of_job.clear();
        tell.send(()).unwrap();
        let _ = freed.recv();
        None
    }))
    .unwrap();
    told.recv_timeout(LIMIT).unwrap();
    wakeup.set();
    free.send(()).unwrap();
    told.recv_timeout(LIMIT).unwrap();
    free.send(()).unwrap();
}

#[test]
fn a_job_that_panics_is_gone_and_the_others_run_on() {
    let pool = Pool::default();
    let id = pool
        .add(job(|_, _| panic!("as the test wants it")))
        .unwrap();
    let (tell, told) = channel();
    pool.add(job(move |_, _| {
        let _ = tell.send(());
        in_ms(1)
    }))
    .unwrap();
    for _ in 0..5 {
        told.recv_timeout(LIMIT).unwrap();
    }
    let until = Instant::now() + LIMIT;
    while pool.remove(id).is_some() {
        assert!(Instant::now() < until);
    }
}

#[test]
fn a_thousand_jobs_share_a_few_threads() {
    let pool = Pool::default();
    let runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let runs = Arc::clone(&runs);
        let counted = job(move |_, _| {
            runs.fetch_add(1, Ordering::SeqCst);
            in_ms(20)
        });
        pool.add(counted).unwrap();
    }
    let until = Instant::now() + LIMIT;
    while runs.load(Ordering::SeqCst) < 5000 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(5));
    }
    let workers = workers(&pool);
    assert!(workers < 100, "{workers}");
}

#[test]
fn jobs_that_are_left_end_with_the_pool() {
    struct Tells(Sender<()>);
    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let pool = Pool::default();
    let (tell, told) = channel();
    let tells = Tells(tell);
    pool.add(job(move |_, _| {
        let _ = &tells;
        in_ms(1)
    }))
    .unwrap();
    drop(pool);
    told.recv_timeout(LIMIT).unwrap();
}
