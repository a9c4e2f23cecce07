//! Generations that are kept, of which one process makes each, and what rebuilds leave.

use super::job::RebuildError;
use super::rebuild::{AGAIN, Site};
use super::store::{Fate, Fated, paths};
use super::switching::{Place, Scene, message_of, rows_of};
use super::*;
use crate::lake::{Change, Claim};
use crate::projector::job::Jobs;
use crate::state::State;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tokio::runtime::Handle;

const MINUTE_US: i64 = 60_000_000;

fn wish() -> Wish {
    Wish { keep_as: Some("g".into()), ..Wish::default() }
}

/// The same settings with another clock.
fn later(settings: Settings, minutes: i64) -> Settings {
    Settings { clock: Arc::new(move || now_us() + minutes * MINUTE_US), ..settings }
}

async fn traces(place: &Place, of: &str) -> Vec<String> {
    paths(&place.objects).await.into_iter().filter(|path| path.starts_with(of)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_one_makes_a_generation() {
    let scene = Scene::new().await;
    let (one, other) = (scene.place().await, scene.place().await);
    // It stands still in the middle of its work.
    let fated = Fated::over(&one.objects, |n, _, _| if n == 30 { Fate::GoneBefore } else { Fate::Made });
    let slow = scene.open(Arc::new(fated.clone())).await;
    let making = one.rebuilds(&slow, scene.settings("vbm"));
    let task = tokio::spawn(async move { making.rebuild(wish(), |_| {}).await });
    fated.gone().await;

    // The other has a data directory of its own, and the tables in common.
    let lake = scene.open(one.objects.clone()).await;
    let rebuilds = |minutes| other.rebuilds(&lake, later(scene.settings("vbm"), minutes));
    for refused in [rebuilds(0).rebuild(wish(), |_| {}).await.map(drop), rebuilds(0).drop("g").await] {
        let error = refused.unwrap_err();
        assert!(matches!(error, RebuildError::Taken { .. }), "{error}");
        assert!(error.to_string().contains(&one.path().display().to_string()), "{error}");
    }
    assert_eq!(rebuilds(0).list().await.unwrap(), Listing::default(), "nothing is noted of what was refused");
    assert!(!traces(&one, "generations/g/sessions/").await.is_empty(), "nothing is taken away from under it");

    task.abort();
    let _ = task.await;
    // It has been silent for long.
    let made = rebuilds(6).rebuild(wish(), |_| {}).await.unwrap();
    assert_eq!(made.job.phase, Phase::Done);
    let kept = lake.kept("g").await.unwrap().unwrap();
    assert!(rows_of(&kept.lake).await == scene.new, "some of the one's is in it");
    assert_eq!(lake.claim_of("g").await.unwrap(), None);
    // The one wakes up: the generation is not its any more.
    let error = one.rebuilds(&lake, scene.settings("vbm")).rebuild(wish(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("there is a generation g already"), "{error}");
    assert_eq!(lake.generation_info("g").await.unwrap().unwrap(), kept.info);
    assert!(rows_of(&kept.lake).await == scene.new);
    rebuilds(0).drop("g").await.unwrap();
    assert_eq!(traces(&one, "generations/").await, [""; 0]);
    assert!(matches!(rebuilds(0).drop("g").await, Err(RebuildError::Unknown(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_was_dropped_meanwhile_is_begun_anew() {
    let scene = Scene::new().await;
    let (one, other) = (scene.place().await, scene.place().await);
    // Once messages are committed, so that its state has let go of their rows.
    let decide = |_, _, path: &object_store::path::Path| {
        let is_of_sessions =
            path.as_ref().starts_with("generations/g/sessions/") && path.as_ref().ends_with(".parquet");
        if is_of_sessions { Fate::GoneBefore } else { Fate::Made }
    };
    let fated = Fated::over(&one.objects, decide);
    let lake = scene.open(Arc::new(fated.clone())).await;
    let making = one.rebuilds(&lake, scene.settings("vbm"));
    let task = tokio::spawn(async move { making.rebuild(wish(), |_| {}).await });
    fated.gone().await;
    task.abort();
    let _ = task.await;
    let lake = scene.open(one.objects.clone()).await;
    other.rebuilds(&lake, later(scene.settings("vbm"), 6)).drop("g").await.unwrap();
    // Its own state still says that rows are written.
    let made = one.rebuilds(&lake, scene.settings("vbm")).rebuild(wish(), |_| {}).await.unwrap();
    assert_eq!(made.job.phase, Phase::Done);
    assert!(rows_of(&lake.kept("g").await.unwrap().unwrap().lake).await == scene.new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rebuilds_have_left_is_removed_at_the_next_start() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    let jobs = Jobs::new(&place.path());
    // One that was given up, of which not all could be removed.
    let fated = Fated::over(&place.objects, |n, _, _| if n == 25 { Fate::GoneBefore } else { Fate::Made });
    let cut = scene.open(Arc::new(fated.clone())).await;
    let making = place.rebuilds(&cut, scene.settings("vbm"));
    let task = tokio::spawn(async move { making.rebuild(Wish::default(), |_| {}).await });
    fated.gone().await;
    task.abort();
    let _ = task.await;
    let job = jobs.unfinished().unwrap().unwrap();
    let failed = job.name.clone();
    jobs.put(&Job { phase: Phase::Clearing, error: Some("no room".into()), ended_us: Some(1), ..job }).unwrap();
    // States of which nobody knows, and the generations of processes that are gone, and that are not.
    std::fs::create_dir_all(jobs.state_dir("unknown").join("keyspaces")).unwrap();
    std::fs::create_dir_all(jobs.old_state_dir("18")).unwrap();
    for (name, minutes) in [("dead", -6), ("alive", -4)] {
        let told_us = now_us() + minutes * MINUTE_US;
        lake.claim_name(name, &Claim { id: name.into(), maker: "elsewhere".into(), told_us }).await.unwrap();
        lake.generation_to_keep(name).await.unwrap();
    }
    assert!(!traces(&place, &format!("sessions/generation-{failed}/")).await.is_empty());

    let (rebuilds, _) = place.rebuilds_beside(&lake, scene.settings("vbm")).await;
    let left = || -> Vec<String> {
        let entries = std::fs::read_dir(place.path().join("rebuilds")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let began = std::time::Instant::now();
    while left() != [format!("{failed}.json")] {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?} is left", left());
        tokio::time::sleep(AGAIN).await;
    }
    rebuilds.stop().await;
    assert_eq!(jobs.get(&failed).unwrap().unwrap().phase, Phase::Failed);
    for table in ["sessions", "messages"] {
        assert_eq!(traces(&place, &format!("{table}/generation-")).await, [""; 0]);
    }
    for name in ["alive", "dead"] {
        assert!(traces(&place, &format!("generations/{name}/")).await.len() > 2, "it is another's work");
    }
    // Nothing stands in the way of the next one.
    let site = Site::new(lake.clone(), place.path(), Arc::new(scene.settings("vbm")), None);
    assert!(!site.is_marked());
    site.forget("dead").await.unwrap();
    assert_eq!(traces(&place, "generations/dead/").await, [""; 0]);
    let refused = site.forget("alive").await.unwrap_err();
    assert!(matches!(&refused, RebuildError::Taken { .. }), "{refused}");
    let made = place.rebuilds(&lake, scene.settings("vbm"));
    made.rebuild(wish(), |_| {}).await.unwrap();
    let name = wish().keep_as.unwrap();
    let record = jobs.get(&name).unwrap().unwrap();
    let refused = made.rebuild(wish(), |_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("drop it first"), "{refused}");
    assert_eq!(jobs.get(&name).unwrap().unwrap().claim, record.claim, "what is refused leaves no trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_whose_removal_takes_long_is_not_made_meanwhile() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
    let (log, minute) = (open_log(dir.path()).await, Arc::new(AtomicI64::new(0)));
    let now = minute.clone();
    let clock = Arc::new(move || now.load(Ordering::SeqCst) * MINUTE_US);
    let settings = Arc::new(Settings { clock, ..settings(&*log) });
    let is_held = AtomicBool::new(false);
    let decide = move |_, removes, path: &object_store::path::Path| {
        let is_row = removes && path.as_ref().starts_with("generations/g/sessions/");
        if is_row && !is_held.swap(true, Ordering::SeqCst) { Fate::Held } else { Fate::Made }
    };
    let fated = Fated::over(&objects, decide);
    let site = async |objects: Arc<dyn ObjectStore>, name: &str| {
        let lake = Arc::new(Lake::over(objects, log.id(), 3).await.unwrap());
        Site::new(lake, dir.path().join(name), settings.clone(), None)
    };
    let (one, other) = (site(Arc::new(fated.clone()), "one").await, site(objects.clone(), "other").await);
    one.lake
        .claim_name("g", &Claim { id: "gone".into(), maker: "gone".into(), told_us: -9 * MINUTE_US })
        .await
        .unwrap();
    one.lake.generation_to_keep("g").await.unwrap();
    let removing = tokio::spawn(async move { one.forget("g").await });
    fated.gone().await;
    let began = std::time::Instant::now();
    for now in [4, 8, 12] {
        minute.store(now, Ordering::SeqCst);
        while other.lake.claim_of("g").await.unwrap().unwrap().told_us < now * MINUTE_US {
            assert!(began.elapsed() < Duration::from_secs(60), "in minute {now} it says nothing");
            tokio::time::sleep(AGAIN).await;
        }
        let refused = other.claim("g", "other").await.unwrap_err();
        assert!(matches!(refused, RebuildError::Taken { .. }), "{refused}");
    }
    fated.let_go();
    removing.await.unwrap().unwrap();
    let left: Vec<String> = paths(&objects).await.into_iter().filter(|path| path.starts_with("generations/")).collect();
    assert_eq!(left, [""; 0]);
}

/// Whether a path is that of a claim of the generation, once it is made.
fn is_given_back(jobs: &Jobs, path: &object_store::path::Path) -> bool {
    let is_done = || jobs.get("g").unwrap().is_some_and(|job| job.phase == Phase::Done);
    path.as_ref().starts_with("generations/g/claims/") && is_done()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_not_given_back_is_before_it_is_asked_for_again() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let jobs = Jobs::new(&place.path());
    let decide = move |_, removes, path: &object_store::path::Path| {
        if removes && is_given_back(&jobs, path) { Fate::GoneBefore } else { Fate::Made }
    };
    let fated = Fated::over(&place.objects, decide);
    let cut = scene.open(Arc::new(fated.clone())).await;
    let making = place.rebuilds(&cut, scene.settings("vbm"));
    let task = tokio::spawn(async move { making.rebuild(wish(), |_| {}).await });
    fated.gone().await;
    task.abort();
    let _ = task.await;
    let lake = scene.open(place.objects.clone()).await;
    assert!(lake.claim_of("g").await.unwrap().is_some());
    let (rebuilds, _) = place.rebuilds_beside(&lake, scene.settings("vbm")).await;
    let refused = rebuilds.ask(wish()).await.unwrap_err();
    assert!(refused.to_string().contains("drop it first"), "{refused}");
    assert_eq!(lake.claim_of("g").await.unwrap(), None);
    rebuilds.drop("g").await.unwrap();
    rebuilds.ask(wish()).await.unwrap();
    rebuilds.drop("g").await.unwrap();
    assert_eq!(traces(&place, "generations/").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_while_it_is_put_in_order_stays_dropped() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let (jobs, is_held) = (Jobs::new(&place.path()), AtomicBool::new(false));
    let decide = move |_, removes, path: &object_store::path::Path| {
        let is_first = || !is_held.swap(true, Ordering::SeqCst);
        if removes && is_given_back(&jobs, path) && is_first() { Fate::Held } else { Fate::Made }
    };
    let fated = Fated::over(&place.objects, decide);
    let lake = scene.open(Arc::new(fated.clone())).await;
    let rebuilds = Arc::new(place.rebuilds(&lake, scene.settings("vbm")));
    let making = rebuilds.clone();
    let making = tokio::spawn(async move { making.rebuild(wish(), |_| {}).await });
    fated.gone().await;
    let mut dropping = tokio::spawn(async move { OfflineRebuilds::drop(&rebuilds, "g").await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut dropping).await;
    assert!(early.is_err(), "it does not wait for its turn");
    fated.let_go();
    // Its record may be gone when it wants to tell of it.
    let _ = making.await.unwrap();
    dropping.await.unwrap().unwrap();
    assert_eq!(Jobs::new(&place.path()).get("g").unwrap(), None);
    assert_eq!(traces(&place, "generations/").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_is_outdated_where_rows_were_made_under_something_else() {
    let scene = Scene::new().await;
    let lose = |place: &Place| std::fs::remove_dir_all(place.path().join("state")).unwrap();
    let outdated = async |place: &Place, lake: &Arc<Lake>, policy: &str| {
        let settings = scene.settings(policy);
        run_by(settings.clone(), &place.path(), lake, scene.log.clone(), true).await;
        let state = State::open(&place.path().join("state"), 1 << 20).unwrap();
        let marks = state.meta().unwrap().unwrap().partitions;
        let metrics = String::from_utf8(settings.metrics.render().unwrap()).unwrap();
        let needed = metrics.contains("\ncounterbat_rebuild_needed 1\n");
        assert_eq!(needed, marks.iter().any(|mark| mark.is_outdated));
        needed
    };
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    assert!(!outdated(&place, &lake, "counterbat").await);
    lose(&place);
    assert!(!outdated(&place, &lake, "counterbat").await, "the rows are the same");
    lose(&place);
    assert!(outdated(&place, &lake, "vbm").await, "lost, and another policy");
    lose(&place);
    assert!(outdated(&place, &lake, "vbm").await, "lost again, it is remembered");
    place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap();
    lose(&place);
    assert!(!outdated(&place, &lake, "vbm").await, "lost right after the rebuild");
    assert!(!outdated(&place, &lake, "vbm").await);
    lose(&place);
    std::fs::remove_file(place.path().join("made-under.json")).unwrap();
    assert!(outdated(&place, &lake, "vbm").await, "nobody knows what the rows were made under");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_of_tables_that_are_rebuilt_meanwhile_says_so() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    append(&scene.log, &[message_of("late==")]).await;
    let (_stop, stopped) = watch::channel(false);
    let settings = Arc::new(scene.settings("counterbat"));
    let parts = Parts {
        log: scene.log.clone(),
        lake: lake.clone(),
        data_dir: place.path(),
        instance: "one".into(),
        settings: settings.clone(),
        stop: stopped,
    };
    let (projector, task) = start(parts).await.unwrap();
    let generation = lake.generation("7f").await.unwrap();
    for name in [TableName::Messages, TableName::Sessions] {
        let positions = BTreeMap::from([(0, (None, 1))]);
        generation.table(name).commit(Change { positions, ..Change::default() }).await.unwrap();
    }
    let is_adopted = AtomicBool::new(false);
    let tell = |told: verify::report::Told| {
        // The first word of it comes in the middle.
        if matches!(told, verify::report::Told::TooLate(_)) && !is_adopted.swap(true, Ordering::SeqCst) {
            tokio::task::block_in_place(|| Handle::current().block_on(lake.adopt("7f", 0))).unwrap();
        }
    };
    let (log, data_dir) = (scene.log.clone(), place.path());
    let verifier = verify::Verifier { log, projector, settings, data_dir, busy: Arc::default() };
    let error = verifier.run(3, &tell).await.unwrap_err();
    assert!(error.to_string().contains("rebuilt meanwhile"), "{error}");
    assert!(is_adopted.load(Ordering::SeqCst));
    task.abort();
}
