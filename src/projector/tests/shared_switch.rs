//! A rebuild that takes the place of tables which several processes share: whoever is gone or asleep at whatever moment, the
//! tables are the old ones or the new ones, and everybody goes on with the same.

use super::shared::Shared;
use super::store::{Fate, Fated, paths};
use super::switching::{Place, Scene, rows_of};
use super::*;
use crate::lake::Stage;
use crate::projector::job::{Jobs, RebuildError};
use crate::projector::rebuild::Site;
use crate::state::State;
use object_store::path::Path as ObjectPath;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::runtime::Handle;

/// Another process folds all there is, and ends. Whoever has begun a switch and says nothing more is gone by then.
async fn fold(scene: &Scene, place: &Place) -> Arc<Lake> {
    let lake = scene.open(place.objects.clone()).await;
    run_by(scene.settings("vbm"), &place.path(), &lake, Shared::over(&scene.log), true).await;
    lake
}

/// A process that rebuilds, with a data directory of its own.
struct Maker {
    dir: TempDir,
    lake: Arc<Lake>,
    settings: Settings,
}

impl Maker {
    async fn new(scene: &Scene, objects: Arc<dyn object_store::ObjectStore>) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), lake: scene.open(objects).await, settings: scene.settings("vbm") }
    }

    /// The same, started again.
    async fn again(self, scene: &Scene, place: &Place) -> Self {
        Self { lake: scene.open(place.objects.clone()).await, ..self }
    }

    fn rebuilds(&self) -> OfflineRebuilds {
        OfflineRebuilds::new(self.lake.clone(), self.dir.path().to_owned(), self.settings.clone(), true)
    }

    /// What may pass is gone on with by the same command.
    async fn rebuild(&self) -> Job {
        loop {
            match self.rebuilds().rebuild(Wish::default(), |_| {}).await {
                Err(RebuildError::Projector(error)) if error.is_transient() => {}
                report => return report.unwrap().job,
            }
        }
    }

    fn job(&self) -> Option<Job> {
        Jobs::new(self.dir.path()).all().unwrap().pop()
    }
}

/// The partitions' states of a process come from this rebuild.
fn assert_states(place: &Place, lake: &Lake, when: &str) {
    let state = State::open(&place.path().join("state"), 1 << 20).unwrap();
    let rebuilds: Vec<i64> = state.meta().unwrap().unwrap().partitions.iter().map(|mark| mark.rebuild).collect();
    assert_eq!(rebuilds, [lake.rebuild(); 3], "{when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_switched_while_another_process_folds() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    let (stop, stopped) = watch::channel(false);
    let shared = Shared::over(&scene.log);
    let parts = Parts {
        log: shared.clone(),
        lake: lake.clone(),
        data_dir: place.path(),
        instance: "one".into(),
        settings: Arc::new(scene.settings("vbm")),
        stop: stopped,
    };
    let (handle, task) = start(parts).await.unwrap();
    let ends = crate::log::ends(&*shared).await.unwrap();
    handle.wait_committed(&ends).await.unwrap();
    assert!(rows_of(&lake).await != scene.all, "the first part was folded under another policy");
    for round in 0..2 {
        let maker = Maker::new(&scene, place.objects.clone()).await;
        let job = maker.rebuild().await;
        assert_eq!(job.phase, Phase::Done);
        assert!(rows_of(&lake).await == scene.all, "{round}");
        handle.wait_committed(&ends).await.unwrap();
        let status = handle.status();
        assert_eq!(status.owned(), [0, 1, 2]);
        assert_eq!((status.error, status.recovering), (None, None));
        assert!(rows_of(&lake).await == scene.all, "{round}");
        assert_eq!(lake.switch().await.unwrap().switch.unwrap().stage, Stage::Ended);
        assert!(lake.rebuild() > 0 && maker.rebuilds().drop(&job.name).await.is_err(), "it is live");
    }
    stop.send(true).unwrap();
    task.await.unwrap().unwrap();
    drop(handle);
    assert_states(&place, &lake, "gone on with");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_maker_is_gone_at_any_change() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let mixed = rows_of(&*fold(&scene, &place).await).await;
    assert!(mixed != scene.all);
    // What is changed from the first word on the switch to the last.
    let (first, seen) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicUsize::new(0)));
    let (at, last) = (first.clone(), seen.clone());
    let whole = Fated::over(&place.objects, move |n, _, path: &ObjectPath| {
        if path.as_ref().starts_with("switch/") {
            at.fetch_min(n, Ordering::SeqCst);
            last.store(n, Ordering::SeqCst);
        }
        Fate::Made
    });
    Maker::new(&scene, Arc::new(whole)).await.rebuild().await;
    let (first, last) = (first.load(Ordering::SeqCst), seen.load(Ordering::SeqCst));
    println!("the switch is changes {first} to {last}");
    assert!(last > first + 15);

    let (mut switched, mut ended) = (0, 0);
    for at in (0..first).step_by(11).chain(first..=last) {
        for fate in [Fate::GoneBefore, Fate::GoneAfter] {
            let when = format!("{fate:?} change {at}");
            let place = scene.place().await;
            fold(&scene, &place).await;
            let fated = Fated::over(&place.objects, move |n, _, _| if n == at { fate } else { Fate::Made });
            let maker = Maker::new(&scene, Arc::new(fated.clone())).await;
            let rebuilds = maker.rebuilds();
            let task = tokio::spawn(async move { rebuilds.rebuild(Wish::default(), |_| {}).await });
            tokio::select! {
                () = fated.gone() => task.abort(),
                // What is removed last can be in another order.
                () = tokio::time::sleep(Duration::from_secs(20)) => panic!("{when}: it is never gone"),
            }
            let _ = task.await;

            let lake = fold(&scene, &place).await;
            let rows = rows_of(&lake).await;
            assert!(rows == mixed || rows == scene.all, "{when}: half of it is switched to");
            *(if rows == mixed { &mut ended } else { &mut switched }) += 1;
            assert_states(&place, &lake, &when);

            let maker = maker.again(&scene, &place).await;
            let (job, before) = (maker.rebuild().await, maker.job().map(|job| job.name));
            assert_eq!((job.phase, Some(job.name)), (Phase::Done, before), "{when}");
            let lake = fold(&scene, &place).await;
            assert!(rows_of(&lake).await == scene.all, "{when}: in the end");
            assert_states(&place, &lake, &when);
        }
    }
    println!("{switched} were switched, {ended} were not");
    assert!(switched > 4 && ended > 10);
}

/// A rebuild that sleeps so many changes after its switch has begun, before the change or once it is made, until another
/// process has gone on: whether it came to that, and how often the rebuild began.
async fn rebuild_asleep(scene: &Arc<Scene>, at: usize, unheard: bool) -> (bool, usize) {
    let place = Arc::new(scene.place().await);
    fold(scene, &place).await;
    let (begun, begins) = (AtomicUsize::new(usize::MAX), Arc::new(AtomicUsize::new(0)));
    // The number of the change it sleeps at.
    let asleep = Arc::new(AtomicUsize::new(usize::MAX));
    let (scene_of, place_of, counting, sleeping) = (scene.clone(), place.clone(), begins.clone(), asleep.clone());
    let awake = Mutex::new(());
    let decide = move |n: usize, removes: bool, path: &ObjectPath| {
        let path = path.as_ref();
        // While it sleeps nothing of it goes on.
        let _awake = tokio::task::block_in_place(|| awake.lock());
        if !removes
            && path.starts_with("sessions/generation-")
            && path.ends_with("_delta_log/00000000000000000000.json")
        {
            counting.fetch_add(1, Ordering::SeqCst);
        }
        let begun = match path.starts_with("switch/") {
            true => begun.fetch_min(n, Ordering::SeqCst).min(n),
            false => begun.load(Ordering::SeqCst),
        };
        let is_asleep = sleeping.load(Ordering::SeqCst);
        if n < begun || n - begun <= at || is_asleep != usize::MAX && is_asleep != n {
            return Fate::Made;
        }
        sleeping.store(n, Ordering::SeqCst);
        if unheard && is_asleep == usize::MAX {
            return Fate::MadeUnheard;
        }
        tokio::task::block_in_place(|| Handle::current().block_on(fold(&scene_of, &place_of)));
        Fate::Made
    };
    let maker = Maker::new(scene, Arc::new(Fated::over(&place.objects, decide))).await;
    let job = maker.rebuild().await;
    let when = format!("asleep {at} changes after it began, heard of it: {}", !unheard);
    assert_eq!(job.phase, Phase::Done, "{when}");
    let lake = fold(scene, &place).await;
    assert!(rows_of(&lake).await == scene.all, "{when}");
    assert_states(&place, &lake, &when);
    (asleep.load(Ordering::SeqCst) != usize::MAX, begins.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maker_that_slept_is_not_believed() {
    let scene = Arc::new(Scene::new().await);
    for unheard in [false, true] {
        let (mut moments, mut anew) = (0, 0);
        loop {
            let (slept, begins) = rebuild_asleep(&scene, moments, unheard).await;
            if !slept {
                break;
            }
            moments += 1;
            anew += usize::from(begins > 1);
        }
        println!("{moments} moments, {anew} times it began anew");
        assert!(anew > 5 && moments > anew + 3, "of {moments} {anew}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_a_moment_costs_nothing_or_little() {
    let scene = Scene::new().await;
    for at in 0.. {
        let place = scene.place().await;
        fold(&scene, &place).await;
        let (begun, failed) = (AtomicUsize::new(usize::MAX), Arc::new(AtomicBool::new(false)));
        let failing = failed.clone();
        let decide = move |n: usize, _: bool, path: &ObjectPath| {
            if path.as_ref().starts_with("switch/") {
                begun.fetch_min(n, Ordering::SeqCst);
            }
            let begun = begun.load(Ordering::SeqCst);
            match n >= begun && n - begun >= at && !failing.swap(true, Ordering::SeqCst) {
                true => Fate::Refused,
                false => Fate::Made,
            }
        };
        let maker = Maker::new(&scene, Arc::new(Fated::over(&place.objects, decide))).await;
        maker.rebuild().await;
        let lake = fold(&scene, &place).await;
        assert!(rows_of(&lake).await == scene.all, "{at}");
        assert_states(&place, &lake, &at.to_string());
        if !failed.load(Ordering::SeqCst) {
            break;
        }
    }
}

/// A rebuild whose process is gone when all but the switch is done.
async fn gone_before_its_switch(scene: &Scene, place: &Place) -> Maker {
    let fated = Fated::over(&place.objects, |_, _, path| match path.as_ref().starts_with("switch/") {
        true => Fate::GoneBefore,
        false => Fate::Made,
    });
    let maker = Maker::new(scene, Arc::new(fated.clone())).await;
    let rebuilds = maker.rebuilds();
    let task = tokio::spawn(async move { rebuilds.rebuild(Wish::default(), |_| {}).await });
    fated.gone().await;
    task.abort();
    let _ = task.await;
    maker
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_built_is_not_tidied_away_by_others() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let maker = gone_before_its_switch(&scene, &place).await;
    let built =
        || async { paths(&place.objects).await.into_iter().filter(|path| path.contains("/generation-")).count() };
    let before = built().await;
    assert!(before > 4);
    let other = scene.open(place.objects.clone()).await;
    let day_ms = |days: i64| now_us() / 1000 + days * 86_400_000;
    for days in [0, 2, 9] {
        other.tidy(day_ms(days), &BTreeMap::new()).await.unwrap();
    }
    assert_eq!(built().await, before);
    let maker = maker.again(&scene, &place).await;
    maker.rebuild().await;
    assert!(rows_of(&*fold(&scene, &place).await).await == scene.all);
    // One that nobody comes back to goes in the end.
    let given_up = other.generation(&format!("{:x}", now_us() + 1_000_000)).await.unwrap();
    drop(given_up);
    let another = scene.open(place.objects.clone()).await;
    for days in [31, 33] {
        another.tidy(day_ms(days), &BTreeMap::new()).await.unwrap();
    }
    let live = |path: &String| path.contains("/generation-") && path.contains("_delta_log");
    assert_eq!(paths(&place.objects).await.iter().filter(|path| live(path)).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_a_later_one_has_overtaken_is_given_up() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let maker = gone_before_its_switch(&scene, &place).await;
    let later = Maker::new(&scene, place.objects.clone()).await.rebuild().await;
    let maker = maker.again(&scene, &place).await;
    let error = maker.rebuilds().rebuild(Wish::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("a later rebuild"), "{error}");
    let lake = fold(&scene, &place).await;
    assert!(rows_of(&lake).await == scene.all);
    assert_eq!(crate::lake::rebuild_name(lake.rebuild()), later.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tables_are_switched_nobody_else_claims_or_switches() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let maker = Maker::new(&scene, place.objects.clone()).await;
    let begun = crate::lake::Switch {
        rebuild: "7f".into(),
        follows: 0,
        stage: Stage::Begun,
        maker: "another process".into(),
        voice: "it".into(),
        told_us: now_us(),
    };
    maker.lake.tell_switch(0, begun).await.unwrap().unwrap();
    let error = maker.rebuilds().rebuild(Wish::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    let owners = |lake: &Lake| lake.table(TableName::Events).snapshot().owners;
    let lake = scene.open(place.objects.clone()).await;
    let (stop, stopped) = watch::channel(false);
    let parts = Parts {
        log: Shared::over(&scene.log),
        lake: lake.clone(),
        data_dir: place.path(),
        instance: "one".into(),
        settings: Arc::new(scene.settings("vbm")),
        stop: stopped,
    };
    let (handle, task) = start(parts).await.unwrap();
    let mut changes = handle.live.changes();
    while handle.status().recovering.is_none() {
        changes.changed().await.unwrap();
    }
    assert!(owners(&lake).is_empty());
    stop.send(true).unwrap();
    task.await.unwrap().unwrap();
    // Its own start would have ended one of its own.
    let site = Site::new(lake.clone(), place.path(), Arc::new(scene.settings("vbm")), None);
    site.settle().await.unwrap();
    assert_eq!(lake.switch().await.unwrap().switch.unwrap().stage, Stage::Begun);
}
