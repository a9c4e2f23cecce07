//! A rebuild that takes the place of tables which several processes share: whoever is gone or asleep at whatever moment, the
//! tables are the old ones or the new ones, and everybody goes on with the same.

use super::shared::Shared;
use super::store::{Fate, Fated};
use super::switching::{Place, Scene, rows_of};
use super::*;
use crate::lake::Stage;
use crate::projector::job::Jobs;
use crate::projector::rebuild::Site;
use crate::state::State;
use object_store::path::Path as ObjectPath;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::runtime::Handle;

/// After this whoever has begun a switch and said nothing more is gone.
const LATER_US: i64 = 600_000_000;

/// What another process folds by, to whom it is so much later.
fn other(scene: &Scene, later_us: i64) -> Settings {
    Settings { clock: Arc::new(move || now_us() + later_us), ..scene.settings("vbm") }
}

/// Another process folds all there is, and ends.
async fn fold(scene: &Scene, place: &Place, later_us: i64) -> Arc<Lake> {
    let lake = scene.open(place.objects.clone()).await;
    run_by(other(scene, later_us), &place.path(), &lake, Shared::over(&scene.log), true).await;
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

    async fn rebuild(&self) -> Job {
        self.rebuilds().rebuild(Wish::default(), |_| {}).await.unwrap().job
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
        settings: Arc::new(other(&scene, 0)),
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
        assert_eq!(lake.switch().await.unwrap().1.unwrap().stage, Stage::Ended);
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
    let mixed = rows_of(&*fold(&scene, &place, 0).await).await;
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
            fold(&scene, &place, 0).await;
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

            let lake = fold(&scene, &place, LATER_US).await;
            let rows = rows_of(&lake).await;
            assert!(rows == mixed || rows == scene.all, "{when}: half of it is switched to");
            *(if rows == mixed { &mut ended } else { &mut switched }) += 1;
            assert_states(&place, &lake, &when);

            let maker = maker.again(&scene, &place).await;
            let (job, before) = (maker.rebuild().await, maker.job().map(|job| job.name));
            assert_eq!((job.phase, Some(job.name)), (Phase::Done, before), "{when}");
            let lake = fold(&scene, &place, 0).await;
            assert!(rows_of(&lake).await == scene.all, "{when}: in the end");
            assert_states(&place, &lake, &when);
        }
    }
    println!("{switched} were switched, {ended} were not");
    assert!(switched > 4 && ended > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maker_that_slept_is_not_believed() {
    let scene = Arc::new(Scene::new().await);
    let mut anew = 0;
    for at in 0.. {
        let place = Arc::new(scene.place().await);
        fold(&scene, &place, 0).await;
        let (begun, slept) = (AtomicUsize::new(usize::MAX), Arc::new(AtomicBool::new(false)));
        let (scene_of, place_of, sleeping) = (scene.clone(), place.clone(), slept.clone());
        let one = Mutex::new(());
        let decide = move |n: usize, _: bool, path: &ObjectPath| {
            let begun =
                begun.fetch_min(if path.as_ref().starts_with("switch/") { n } else { usize::MAX }, Ordering::SeqCst);
            if n > begun && n - begun > at && !sleeping.swap(true, Ordering::SeqCst) {
                // It sleeps before this change, and others find the switch left behind, or decided.
                let _one = one.lock();
                tokio::task::block_in_place(|| Handle::current().block_on(fold(&scene_of, &place_of, LATER_US)));
            }
            Fate::Made
        };
        let maker = Maker::new(&scene, Arc::new(Fated::over(&place.objects, decide))).await;
        let job = maker.rebuild().await;
        let when = format!("asleep {at} changes after it began");
        assert_eq!(job.phase, Phase::Done, "{when}");
        let slept = slept.load(Ordering::SeqCst);
        let word = maker.lake.switch().await.unwrap().0;
        anew += usize::from(slept && word > 4);
        let lake = fold(&scene, &place, 0).await;
        assert!(rows_of(&lake).await == scene.all, "{when}");
        assert_states(&place, &lake, &when);
        if !slept {
            println!("{at} moments, {anew} times it began anew");
            break;
        }
    }
    assert!(anew > 5);
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
        settings: Arc::new(other(&scene, 0)),
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
    let site = Site::new(lake.clone(), place.path(), Arc::new(other(&scene, 0)), None);
    site.settle().await.unwrap();
    assert_eq!(lake.switch().await.unwrap().1.unwrap().stage, Stage::Begun);
}
