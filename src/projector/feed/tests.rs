//! What whoever follows the changes is told, and in which order.

use super::*;

fn feed(name: &str) -> Feed {
    Feed::new(name.to_owned())
}

fn change(n: u64) -> Change {
    Change { what: What::Opened, account: "shop".into(), kind: "service".into(), session: n.to_string() }
}

/// A stretch of partition 0 with these changes.
fn batch(from: u64, to: u64, changes: &[u64]) -> Batch {
    let changes = changes.iter().copied().map(change).collect();
    Batch { partition: 0, rebuild: 0, since: from, from, to, changes, open: Vec::new(), is_whole: false }
}

/// What is told from a place on: changes by number, resets as 0.
fn told(feed: &Feed, cursor: &mut Cursor) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let Some(found) = feed.since(cursor) else {
            all.push(0);
            continue;
        };
        if found.is_empty() {
            return all;
        }
        for news in found {
            match news {
                News::Reset => all.push(0),
                News::Counted => {}
                News::Batch(batch) => {
                    let new = batch.changes.iter().skip(std::mem::take(&mut cursor.within));
                    all.extend(new.map(|change| change.session.parse::<u64>().unwrap()));
                }
            }
            cursor.next += 1;
        }
    }
}

#[test]
fn a_cursor_is_read_as_it_is_written() {
    for (next, within, text) in [(0, 0, "ab12-0"), (77, 0, "ab12-77"), (77, 5, "ab12-77.5")] {
        let cursor = Cursor { feed: "ab12".into(), next, within };
        assert_eq!(cursor.to_string(), text);
        assert_eq!(text.parse(), Ok(cursor));
    }
    for bad in ["", "-", "ab12", "-7", "ab12-", "ab12-x", "ab12-7.", "ab12-7.x", "ab 12-7", "ab12--7", "ab12-7.5.5"] {
        assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad}");
    }
}

#[test]
fn each_is_told_what_has_come_since() {
    let feed = feed("a");
    let mut from_the_beginning = feed.newest();
    feed.take(batch(100, 103, &[1, 2]));
    feed.take(batch(103, 104, &[]));
    let mut later = feed.newest();
    feed.take(batch(104, 106, &[3]));
    let mut within = Cursor { next: 0, within: 1, ..feed.newest() };
    assert_eq!(told(&feed, &mut from_the_beginning), [1, 2, 3]);
    assert_eq!(told(&feed, &mut later), [3]);
    assert_eq!(told(&feed, &mut within), [2, 3]);
    assert_eq!(told(&feed, &mut later), [0; 0]);
    let mut foreign = Cursor { feed: "b".into(), next: 1, within: 0 };
    assert_eq!(told(&feed, &mut foreign), [0]);
    assert_eq!(foreign, feed.newest());
    let mut future = Cursor { next: 9, ..feed.newest() };
    assert_eq!(told(&feed, &mut future), [0]);
}

#[test]
fn what_is_folded_anew_or_between_is_told_of() {
    let feed = feed("a");
    let mut cursor = feed.newest();
    feed.take(batch(100, 110, &[1]));
    feed.take(batch(103, 108, &[8]));
    feed.take(batch(108, 110, &[8]));
    assert_eq!(told(&feed, &mut cursor), [1], "all of it is known");
    feed.take(batch(105, 112, &[2]));
    assert_eq!(told(&feed, &mut cursor), [0, 2], "some of it may be told again");
    feed.take(batch(113, 114, &[3]));
    assert_eq!(told(&feed, &mut cursor), [0, 3], "something lies between");
    feed.take(Batch { rebuild: 1, ..batch(100, 101, &[4]) });
    feed.take(batch(114, 115, &[8]));
    assert_eq!(told(&feed, &mut cursor), [0, 4], "other tables, and no way back");
}

#[test]
fn what_is_not_kept_is_missed() {
    let feed = feed("a");
    let (mut first, mut second) = (feed.newest(), Cursor { next: 1, ..feed.newest() });
    for n in 0..=MOST as u64 {
        feed.take(batch(n, n + 1, &[n + 1]));
    }
    assert_eq!(told(&feed, &mut second).len(), MOST);
    assert_eq!(told(&feed, &mut first), [0]);
    let all: Vec<u64> = (1..=MOST as u64 + 1).collect();
    feed.take(batch(MOST as u64 + 1, MOST as u64 + 2, &all));
    assert_eq!(told(&feed, &mut second), [0], "too much at once");
    assert_eq!(feed.lock().held, MOST);
}

/// Has one feed follow another, up to its end.
fn follow(there: &Feed, here: &Feed, after: &mut Option<Cursor>) {
    loop {
        let answer = there.answer(after.as_ref(), &[0]);
        let is_over = answer.cursor == there.newest();
        *after = Some(answer.cursor.clone());
        here.follow(answer);
        if is_over {
            return;
        }
    }
}

#[test]
fn another_process_follows() {
    let (here, there, third) = (feed("here"), feed("there"), feed("third"));
    let open = |n| vec![("shop".to_owned(), "service".to_owned(), n)];
    let (mut after, mut cursor) = (None, here.newest());
    there.take(Batch { open: open(3), ..batch(100, 103, &[1]) });
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [0], "what it was before is not known");
    assert_eq!(here.counters(|_| true)[0].open_service, 3);
    // Nothing has changed in between, whether the follower has asked then or not.
    there.take(batch(103, 104, &[]));
    there.take(Batch { open: open(4), ..batch(104, 105, &[2]) });
    follow(&there, &here, &mut after);
    there.take(batch(105, 107, &[]));
    follow(&there, &here, &mut after);
    there.take(batch(107, 109, &[3]));
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [2, 3]);
    assert_eq!(here.counters(|_| true)[0].open_service, 4);

    // In order: the next owner goes on where the first one has ended.
    let mut of_third = None;
    follow(&third, &here, &mut of_third);
    told(&here, &mut cursor);
    third.take(Batch { open: open(4), ..batch(109, 110, &[4]) });
    follow(&third, &here, &mut of_third);
    assert_eq!(told(&here, &mut cursor), [4]);
    // Out of order: it folds anew what the first one has told, in other words.
    third.take(batch(110, 113, &[5]));
    follow(&third, &here, &mut of_third);
    there.take(batch(109, 112, &[9]));
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [5]);
    // Nobody tells others what it has been told itself.
    assert_eq!(here.answer(Some(&Cursor { next: 0, ..here.newest() }), &[0]).batches, []);
    // Away for too long.
    let far = Some(Cursor { feed: "there".into(), next: 99, within: 0 });
    assert!(there.answer(far.as_ref(), &[0]).is_anew);
}

#[test]
fn nothing_is_kept_for_nobody() {
    let feed = feed("a");
    feed.want();
    feed.take(batch(1, 2, &[1]));
    let mut cursor = Cursor { next: 0, ..feed.newest() };
    feed.rest();
    assert!(feed.is_wanted());
    feed.want();
    feed.rest();
    assert!(feed.is_wanted(), "somebody has asked again");
    let mut newest = feed.newest();
    feed.rest();
    assert!(!feed.is_wanted());
    assert_eq!(told(&feed, &mut cursor), [0]);
    assert_eq!(told(&feed, &mut newest), [0], "what has come since it was forgotten is not known");
}

#[test]
fn how_many_are_open_is_counted_anew() {
    let (here, there) = (feed("here"), feed("there"));
    let open = |account: &str, n| (account.to_owned(), "service".to_owned(), n);
    let counted = |feed: &Feed| feed.counters(|_| true).iter().map(|of| of.open_service).collect::<Vec<_>>();
    let mut after = None;
    follow(&there, &here, &mut after);
    // The first that is heard of a partition has not changed anything.
    let whole = |from, to| Batch { is_whole: true, ..batch(from, to, &[]) };
    there.take(Batch { open: vec![open("a", 3), open("b", 2)], ..whole(100, 100) });
    follow(&there, &here, &mut after);
    assert_eq!((counted(&there), counted(&here)), (vec![3, 2], vec![3, 2]));
    there.take(Batch { open: vec![open("a", 4)], ..batch(100, 101, &[1]) });
    follow(&there, &here, &mut after);
    assert_eq!(counted(&here), [4, 2]);
    // The tables of a rebuild have none of one account.
    there.take(Batch { rebuild: 1, open: vec![open("a", 5)], ..whole(101, 102) });
    follow(&there, &here, &mut after);
    assert_eq!((counted(&there), counted(&here)), (vec![5, 0], vec![5, 0]));
    assert_eq!(here.counters(|account| account == "b").len(), 1);
}

#[test]
fn who_follows_is_told_of_what_is_not_known_there_either() {
    let (here, there, third) = (feed("here"), feed("there"), feed("third"));
    let (mut after, mut of_third, mut cursor) = (None, None, here.newest());
    there.take(batch(100, 101, &[1]));
    follow(&there, &here, &mut after);
    follow(&third, &here, &mut of_third);
    assert_eq!(told(&here, &mut cursor), [0, 0]);
    // A rebuild's first stretch changes nothing.
    there.take(Batch { rebuild: 1, ..batch(101, 102, &[]) });
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [0]);
    // More than anybody is told.
    let many: Vec<u64> = (0..=MOST as u64).collect();
    there.take(Batch { rebuild: 1, ..batch(102, 103, &many) });
    there.take(Batch { rebuild: 1, ..batch(103, 104, &[2]) });
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [0]);
    there.take(Batch { rebuild: 1, ..batch(104, 105, &[3]) });
    follow(&there, &here, &mut after);
    assert_eq!(told(&here, &mut cursor), [3]);
    // The next owner begins further on, with a stretch that changes nothing.
    third.take(Batch { rebuild: 1, ..batch(107, 109, &[]) });
    follow(&third, &here, &mut of_third);
    assert_eq!(told(&here, &mut cursor), [0]);
    third.take(Batch { rebuild: 1, ..batch(109, 110, &[4]) });
    follow(&third, &here, &mut of_third);
    assert_eq!(told(&here, &mut cursor), [4]);
    // The next one goes on from where it was told: others have heard less.
    let (next, behind) = (feed("next"), feed("behind"));
    let (mut of_third, mut of_next, mut cursor) = (None, None, behind.newest());
    behind.take(Batch { rebuild: 1, ..batch(104, 105, &[3]) });
    follow(&third, &next, &mut of_third);
    follow(&next, &behind, &mut of_next);
    assert_eq!(told(&behind, &mut cursor), [3, 0]);
    next.take(Batch { rebuild: 1, ..batch(110, 111, &[5]) });
    follow(&next, &behind, &mut of_next);
    assert_eq!(told(&behind, &mut cursor), [0, 5]);
}
