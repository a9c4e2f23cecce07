//! A rebuild that is cut off anywhere, in the object store or on the disk: the next start completes it or leaves nothing of
//! it, and the tables are the old ones or the new ones, whole.

use super::rebuild::{AGAIN, Pause, Site};
use super::refold::{Folded, Refold};
use super::store::{Fate, Fated, copy, paths};
use super::*;
use crate::durable_file;
use crate::projector::job::Jobs;
use crate::state::State;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;

type Rows = (BTreeMap<String, String>, BTreeMap<(String, String, i64), String>);

/// Tables made under one policy, that are to be rebuilt under another.
pub(super) struct Scene {
    dir: TempDir,
    pub log: Arc<EmbeddedLog>,
    objects: Arc<InMemory>,
    old: Rows,
    pub new: Rows,
    /// With the events that come after the rebuild.
    pub all: Rows,
}

/// A process with a data directory and an object store of its own.
pub(super) struct Place {
    dir: TempDir,
    pub objects: Arc<InMemory>,
}

pub(super) async fn rows_of(lake: &Lake) -> Rows {
    lake.refresh().await.unwrap();
    (sessions(lake).await, messages(lake).await)
}

impl Scene {
    pub async fn new() -> Self {
        let (dir, objects) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let log = open_log(dir.path()).await;
        let open = async |objects: &Arc<InMemory>| Arc::new(Lake::over(objects.clone(), log.id(), 3).await.unwrap());
        let events = events("small");
        let (first, later) = events.split_at(events.len() * 2 / 3);
        append(&log, first).await;
        let lake = open(&objects).await;
        run_once(&dir.path().join("data"), &lake, log.clone(), true).await;
        let old = rows_of(&lake).await;
        let mut scene = Self { dir, log: log.clone(), objects, old, new: Rows::default(), all: Rows::default() };
        let place = scene.place().await;
        let lake = open(&place.objects).await;
        place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap();
        scene.new = rows_of(&lake).await;
        assert!(scene.old.0 != scene.new.0 && scene.old.1 != scene.new.1, "the policies make the same rows");
        append(&log, later).await;
        let straight = tempfile::tempdir().unwrap();
        let lake = open(&Arc::new(InMemory::new())).await;
        run_by(scene.settings("vbm"), straight.path(), &lake, log, true).await;
        scene.all = rows_of(&lake).await;
        scene
    }

    pub fn settings(&self, policy: &str) -> Settings {
        Settings { default_policy: PolicyChain::always(Policy::named(policy).unwrap()), ..settings(&*self.log) }
    }

    pub async fn open(&self, objects: Arc<dyn ObjectStore>) -> Arc<Lake> {
        Arc::new(Lake::over(objects, self.log.id(), 3).await.unwrap())
    }

    /// A process that finds everything as it is before the rebuild.
    pub async fn place(&self) -> Place {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&self.dir.path().join("data"), dir.path());
        Place { dir, objects: copy(&self.objects).await }
    }

    /// Begins the rebuild in a store where its process is gone at some change.
    async fn cut_off(&self, place: &Place, policy: &str, fated: &Fated) {
        let lake = self.open(Arc::new(fated.clone())).await;
        let rebuilds = place.rebuilds(&lake, self.settings(policy));
        let task = tokio::spawn(async move { rebuilds.rebuild(Wish::default(), |_| {}).await });
        fated.gone().await;
        task.abort();
        let _ = task.await;
    }

    /// What a start does first; who is gone may hold the state for another moment.
    async fn settle(&self, place: &Place, policy: &str) -> (Arc<Lake>, Result<(), ProjectorError>) {
        let lake = self.open(place.objects.clone()).await;
        let site = Site::new(lake.clone(), place.path(), Arc::new(self.settings(policy)), None);
        for _ in 0..200 {
            match site.settle().await {
                Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(5)).await,
                settled => {
                    site.sweep().await;
                    return (lake, settled);
                }
            }
        }
        panic!("it is never settled");
    }

    async fn assert_goes_on(&self, place: &Place, lake: &Arc<Lake>, when: &str) {
        run_by(self.settings("vbm"), &place.path(), lake, self.log.clone(), true).await;
        assert!(rows_of(lake).await == self.all, "{when}: what comes later is not folded on");
    }
}

impl Place {
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn rebuilds(&self, lake: &Arc<Lake>, settings: Settings) -> OfflineRebuilds {
        OfflineRebuilds::new(lake.clone(), self.path(), settings, false)
    }

    /// Rebuilds beside a projector, and where they ask it to rest.
    pub async fn rebuilds_beside(&self, lake: &Arc<Lake>, settings: Settings) -> (Rebuilds, mpsc::Receiver<Pause>) {
        let (requests, _inbox) = mpsc::channel(1);
        let (pauses, wanted) = mpsc::channel(1);
        let handle = ProjectorHandle { live: Arc::new(Live::new(3)), lake: lake.clone(), requests, pauses };
        (Rebuilds::start(&handle, &self.path(), Arc::new(settings), false).await.unwrap(), wanted)
    }

    fn marker(&self) -> PathBuf {
        self.path().join("state.switch")
    }

    fn job(&self) -> Job {
        Jobs::new(&self.path()).all().unwrap().pop().unwrap()
    }

    /// Nothing is left of a rebuild but its rows and its record.
    async fn assert_clean(&self, when: &str) {
        let entries = std::fs::read_dir(self.path().join("rebuilds")).unwrap();
        let dirs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        assert!(dirs.is_empty(), "{when}: {dirs:?}");
        let paths = paths(&self.objects).await;
        let logs = paths.iter().filter(|path| path.contains("/generation-") && path.contains("_delta_log"));
        assert_eq!(logs.collect::<Vec<_>>(), [""; 0], "{when}");
        assert!(!self.marker().exists(), "{when}");
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_cut_off_at_any_change_is_completed_or_cleared() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let whole = Fated::over(&place.objects, |_, _, _| Fate::Made);
    let lake = scene.open(Arc::new(whole.clone())).await;
    let (switching, seen) = (Arc::new(AtomicUsize::new(0)), whole.clone());
    let at = switching.clone();
    let tell = move |progress| {
        if progress == Progress::Switching {
            at.store(seen.changes(), Ordering::SeqCst);
        }
    };
    place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), tell).await.unwrap();
    assert!(rows_of(&lake).await == scene.new);
    place.assert_clean("never cut off").await;
    let (switching, total) = (switching.load(Ordering::SeqCst), whole.changes());
    println!("{total} changes, the switch from {switching} on");
    assert!(switching > 20 && total >= switching + 8);

    let (mut completed, mut cleared) = (0, 0);
    for at in (0..switching).step_by(7).chain(switching..total) {
        for fate in [Fate::GoneBefore, Fate::GoneAfter] {
            let when = format!("{fate:?} change {at} of {total}");
            let place = scene.place().await;
            let fated = Fated::over(&place.objects, move |n, _, _| if n == at { fate } else { Fate::Made });
            scene.cut_off(&place, "vbm", &fated).await;
            let (lake, settled) = scene.settle(&place, "vbm").await;
            settled.unwrap();
            let rows = rows_of(&lake).await;
            assert!(rows == scene.old || rows == scene.new, "{when}: half of it is switched to");
            if rows == scene.new {
                completed += 1;
                assert_eq!(place.job().phase, Phase::Done, "{when}");
                place.assert_clean(&when).await;
            } else {
                cleared += 1;
                place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap();
                assert!(rows_of(&lake).await == scene.new, "{when}: rebuilt in the end");
                place.assert_clean(&when).await;
            }
            if at % 3 == 0 {
                scene.assert_goes_on(&place, &lake, &when).await;
            }
        }
    }
    assert!(completed > 8 && cleared > 8, "{completed} completed, {cleared} cleared");
}

/// A rebuild whose process is gone once the generation's rows are those of the live tables.
async fn adopted(scene: &Scene) -> Place {
    let place = scene.place().await;
    let marker = place.marker();
    let decide = move |_, _, path: &object_store::path::Path| match marker.exists() {
        true if path.as_ref().starts_with("sessions/_delta_log/") => Fate::GoneAfter,
        _ => Fate::Made,
    };
    scene.cut_off(&place, "vbm", &Fated::over(&place.objects, decide)).await;
    assert!(place.marker().exists());
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_cut_off_between_any_two_steps_on_disk_is_completed() {
    let scene = Scene::new().await;
    for steps in 0..=4 {
        let when = format!("after {steps} steps");
        let place = adopted(&scene).await;
        let (dir, jobs, mut job) = (place.path(), Jobs::new(&place.path()), place.job());
        if steps >= 1 {
            std::fs::rename(dir.join("state"), jobs.old_state_dir(&job.name)).unwrap();
        }
        if steps >= 2 {
            std::fs::rename(jobs.state_dir(&job.name), dir.join("state")).unwrap();
        }
        if steps >= 3 {
            (job.phase, job.leaves) = (Phase::Done, true);
            jobs.put(&job).unwrap();
        }
        if steps >= 4 {
            durable_file::remove(&place.marker()).unwrap();
        }
        let (lake, settled) = scene.settle(&place, "vbm").await;
        settled.unwrap();
        assert!(rows_of(&lake).await == scene.new, "{when}");
        assert_eq!((place.job().phase, place.job().leaves), (Phase::Done, false), "{when}");
        place.assert_clean(&when).await;
        let state = State::open(&dir.join("state"), 1 << 20).unwrap();
        let rebuilds: Vec<i64> = state.meta().unwrap().unwrap().partitions.iter().map(|mark| mark.rebuild).collect();
        drop(state);
        let number = lake.rebuild();
        assert!(number > 0 && rebuilds == [number; 3], "{when}: the state is not the rebuild's");
        scene.assert_goes_on(&place, &lake, &when).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_switch_has_left_does_not_hold_up_the_next_start() {
    let scene = Scene::new().await;
    let place = adopted(&scene).await;
    // The first removal takes its time.
    let is_held = AtomicBool::new(false);
    let decide = move |_, removes, path: &object_store::path::Path| {
        let is_left = removes && path.as_ref().contains("/generation-");
        if is_left && !is_held.swap(true, Ordering::SeqCst) { Fate::Held } else { Fate::Made }
    };
    let fated = Fated::over(&place.objects, decide);
    let lake = scene.open(Arc::new(fated.clone())).await;
    let (path, in_time) = (place.path(), Duration::from_secs(60));
    let run = run_by(scene.settings("vbm"), &path, &lake, scene.log.clone(), true);
    tokio::time::timeout(in_time, run).await.expect("the fold waits for a removal");
    assert!(rows_of(&lake).await == scene.all);
    let starting = place.rebuilds_beside(&lake, scene.settings("vbm"));
    let (rebuilds, _) = tokio::time::timeout(in_time, starting).await.expect("the start waits for a removal");
    fated.gone().await;
    assert!(place.job().leaves);
    fated.let_go();
    while place.job().leaves {
        tokio::time::sleep(AGAIN).await;
    }
    rebuilds.stop().await;
    place.assert_clean("in the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_marker_of_a_switch_is_whole_or_not_there() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    // It cannot be written: nothing is switched.
    let obstacle = place.path().join("state.switch.partial");
    std::fs::create_dir(&obstacle).unwrap();
    let lake = scene.open(place.objects.clone()).await;
    let error = place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("state.switch"), "{error}");
    assert!(rows_of(&lake).await == scene.old && !place.marker().exists());
    std::fs::remove_dir(&obstacle).unwrap();
    // As a kill in the middle of writing it leaves it.
    std::fs::write(&obstacle, "\"18").unwrap();
    let (lake, settled) = scene.settle(&place, "vbm").await;
    settled.unwrap();
    assert!(rows_of(&lake).await == scene.old && !place.marker().exists());
    let name = place.job().name;
    place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap();
    assert!(rows_of(&lake).await == scene.new);
    assert_eq!((place.job().name, place.job().phase), (name, Phase::Done));
    place.assert_clean("in the end").await;
    assert!(!obstacle.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_not_complete_is_not_switched_to() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let fated = Fated::over(&place.objects, |n, _, _| if n == 20 { Fate::GoneBefore } else { Fate::Made });
    scene.cut_off(&place, "vbm", &fated).await;
    durable_file::write(&place.marker(), &place.job().name).unwrap();
    let (lake, settled) = scene.settle(&place, "vbm").await;
    let error = settled.unwrap_err();
    assert!(error.to_string().contains("is not complete"), "{error}");
    assert!(rows_of(&lake).await == scene.old);
    assert!(place.path().join("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_removed_is_never_gone_on_with() {
    let scene = Scene::new().await;
    for removals in [1, 2, 5, 11] {
        let place = scene.place().await;
        // Some files are written, and the state knows of them.
        let written = AtomicUsize::new(0);
        let decide = move |_, _, path: &object_store::path::Path| {
            let is_commit = path.as_ref().contains("sessions/generation-") && path.as_ref().ends_with("1.json");
            match is_commit && written.fetch_add(1, Ordering::SeqCst) == 0 {
                true => Fate::GoneAfter,
                false => Fate::Made,
            }
        };
        scene.cut_off(&place, "vbm", &Fated::over(&place.objects, decide)).await;
        let name = place.job().name;
        // Under another policy it begins anew, and is cut off while the old one is removed.
        let removed = AtomicUsize::new(0);
        let decide = move |_, removes, _: &object_store::path::Path| match removes
            && removed.fetch_add(1, Ordering::SeqCst) + 1 == removals
        {
            true => Fate::GoneAfter,
            false => Fate::Made,
        };
        let (_, settled) = scene.settle(&place, "gupshup").await;
        settled.unwrap();
        scene.cut_off(&place, "gupshup", &Fated::over(&place.objects, decide)).await;
        assert_eq!((place.job().name, place.job().phase), (name.clone(), Phase::Clearing), "{removals} removed");
        // And then under the first one again.
        let (lake, settled) = scene.settle(&place, "vbm").await;
        settled.unwrap();
        place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), |_| {}).await.unwrap();
        assert_eq!((place.job().name, place.job().phase), (name, Phase::Done));
        assert!(rows_of(&lake).await == scene.new, "{removals} removed");
        place.assert_clean("in the end").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_does_not_cost_the_switch() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let is_switching = Arc::new(Mutex::new(false));
    let (told, refused) = (is_switching.clone(), AtomicUsize::new(0));
    let decide = move |_, _, path: &object_store::path::Path| {
        let is_new = path.as_ref().contains("/generation-");
        match *is_switching.lock().unwrap() && is_new && refused.fetch_add(1, Ordering::SeqCst) < 3 {
            true => Fate::Refused,
            false => Fate::Made,
        }
    };
    let fated = Fated::over(&place.objects, decide);
    let lake = scene.open(Arc::new(fated)).await;
    let tell = move |progress| *told.lock().unwrap() |= progress == Progress::Switching;
    place.rebuilds(&lake, scene.settings("vbm")).rebuild(Wish::default(), tell).await.unwrap();
    assert!(rows_of(&lake).await == scene.new);
    scene.assert_goes_on(&place, &lake, "switched").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_that_does_not_come_to_rest_is_asked_again() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    let (rebuilds, mut wanted) = place.rebuilds_beside(&lake, scene.settings("vbm")).await;
    let name = rebuilds.ask(Wish::default()).await.unwrap().job.name;
    let mut asked = async || tokio::time::timeout(Duration::from_secs(60), wanted.recv()).await.unwrap().unwrap();
    for _ in 0..2 {
        // Its run ends otherwise, and nobody does what was to be done.
        drop(asked().await);
    }
    let work = asked().await;
    assert_eq!(rebuilds.get(&name).unwrap().job.phase, Phase::Folding, "that is no reason to give up");
    work().await;
    while !rebuilds.get(&name).unwrap().job.has_ended() {
        tokio::time::sleep(AGAIN).await;
    }
    assert_eq!(rebuilds.get(&name).unwrap().job.phase, Phase::Done);
    rebuilds.stop().await;
    assert!(rows_of(&lake).await == scene.new);
    assert!(ProjectorError::Restless.is_transient());
}

/// A message that comes later than any other.
pub(super) fn message_of(user: &str) -> Event {
    let mut late = events("small").into_iter().find(|event| event.kind == "com.viber.callback.message").unwrap();
    let t_us = late.time_us.unwrap() - 90 * DAY * 1000;
    (late.id, late.subject, late.time_us) = (format!("message/77/{user}"), Some(user.into()), Some(t_us));
    late.data = format!(
        r#"{{"event":"message","timestamp":{},"message_token":77,"sender":{{"id":"{user}"}},"message":{{"type":"text","text":"x"}}}}"#,
        t_us / 1000
    )
    .into_bytes();
    late
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_for_a_rebuild_under_way_is_folded_in_all_the_same() {
    let scene = Scene::new().await;
    let (cut, whole) = (scene.place().await, scene.place().await);
    let fated = Fated::over(&cut.objects, |n, _, _| if n == 30 { Fate::GoneBefore } else { Fate::Made });
    scene.cut_off(&cut, "counterbat", &fated).await;
    let name = cut.job().name;
    // Later than anything that was archived when it began.
    let user = "late==";
    append(&scene.log, &[message_of(user)]).await;
    for place in [&cut, &whole] {
        let (lake, settled) = scene.settle(place, "counterbat").await;
        settled.unwrap();
        run_by(scene.settings("counterbat"), &place.path(), &lake, scene.log.clone(), true).await;
        assert!(!rows_of(&lake).await.0.values().any(|row| row.contains(user)), "it is too late");
        place.rebuilds(&lake, scene.settings("counterbat")).rebuild(Wish::default(), |_| {}).await.unwrap();
        assert!(rows_of(&lake).await.0.values().any(|row| row.contains(user)));
    }
    assert_eq!(cut.job().name, name);
    let (one, other) = (scene.open(cut.objects.clone()).await, scene.open(whole.objects.clone()).await);
    assert!(rows_of(&one).await == rows_of(&other).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_not_archived_do_not_keep_a_rebuild_behind() {
    let scene = Scene::new().await;
    let place = scene.place().await;
    let lake = scene.open(place.objects.clone()).await;
    let tick = events("busy").into_iter().rfind(Event::is_tick).unwrap();
    append(&scene.log, &[tick]).await;
    run_by(scene.settings("vbm"), &place.path(), &lake, scene.log.clone(), true).await;
    let archived = lake.table(TableName::Events).snapshot();
    let (generation, settings) = (lake.generation("7").await.unwrap(), Arc::new(scene.settings("vbm")));
    let (dir, room) = (place.path().join("refold"), place.path().join("room"));
    let refold = Refold::open(lake.clone(), generation, &dir, &room, settings, Scope::default(), 1);
    let refold = refold.unwrap().unwrap();
    assert_eq!(refold.fold(&archived, Arc::new(|_, _| {})).await.unwrap(), Folded::All);
    assert_eq!((refold.behind(&archived), refold.position()), (0, archived.positions.values().sum()));
}
