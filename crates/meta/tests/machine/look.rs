//! A look through a block store concludes what it finds from a whole listing, and nothing from a part of one.

use super::collect::with_an_object_over;
use super::leave::with_files;
use super::*;
use bytes::Bytes;
use chronofs_blocks::{ListPage, ObjectPort, StoreError, StorePort, object_name};
use chronofs_core::{ObjectId, VolumeIndex};
use chronofs_meta::collect::{Collector, Rhythm};
use chronofs_meta::executor::Input;
use chronofs_meta::server::objects::Stores;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// A page of a listing; `None` is one that cannot be had.
type Page = Option<Vec<(String, u64)>>;

/// A store whose listings have these pages: each listing the next ones, and in the end always the last ones.
struct Pages {
    listings: Vec<Vec<Page>>,
    /// When they were asked for.
    asked: Mutex<Vec<Instant>>,
}

/// A store whose listing has these pages.
fn pages(pages: Vec<Page>) -> Arc<Pages> {
    Arc::new(Pages { listings: vec![pages], asked: Mutex::default() })
}

fn away(name: &str) -> StoreError {
    StoreError::unavailable(name, Errno::EIO, "the store answers 500")
}

impl ObjectPort for Pages {
    fn put<'a>(&'a self, name: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { Err(away(name)) }.boxed()
    }

    fn get<'a>(&'a self, name: &'a str, _: u64, _: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move { Err(away(name)) }.boxed()
    }
}

impl StorePort for Pages {
    fn whole<'a>(&'a self, name: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move { Err(away(name)) }.boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { Err(away(name)) }.boxed()
    }

    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
        let mut asked = self.asked.lock().unwrap();
        if from.is_none() {
            asked.push(Instant::now());
        }
        let pages = &self.listings[asked.len().min(self.listings.len()) - 1];
        let n: usize = from.map_or(0, |from| from.parse().unwrap());
        let next = (n + 1 < pages.len()).then(|| (n + 1).to_string());
        let page = pages[n].clone().map(|names| ListPage { names, next });
        async move { page.ok_or_else(|| away("objects")) }.boxed()
    }

    fn put_note<'a>(&'a self, name: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { Err(away(name)) }.boxed()
    }

    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { Err(away(name)) }.boxed()
    }

    fn notes<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
        async move { Ok(Vec::new()) }.boxed()
    }
}

/// Has a store with these pages looked through. Gives what the machine is to be told of it, and why the look ended early.
async fn heard(server: &mut Server, pages: Arc<Pages>) -> (Vec<Event>, Option<String>) {
    let (queue, mut inputs) = tokio::sync::mpsc::channel(16);
    let stores = Stores::default();
    stores.set([(common::VOLUME, pages as Arc<dyn StorePort>)].into());
    let collector = Collector::new(queue, stores, Rhythm::default());
    let wanted = collector.look_soon();
    let running = tokio::spawn(collector.clone().run());
    let mut told = Vec::new();
    let serve = async {
        while let Some(input) = inputs.recv().await {
            match input {
                Input::Ask(ask) => ask(&mut server.core, server.now_ns.into()),
                Input::Events(events) => told.extend(events),
                _ => panic!("a look only asks and tells"),
            }
        }
    };
    let looked = async {
        loop {
            let status = collector.status(false).await.unwrap();
            if status.looks >= wanted {
                return status.stores[0].error.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let error = tokio::select! {
        error = looked => error,
        () = serve => panic!("the collector ended"),
    };
    running.abort();
    (told, error)
}

/// The same in words.
async fn look(server: &mut Server, pages: Arc<Pages>) -> (BTreeSet<&'static str>, Option<String>) {
    let (events, error) = heard(server, pages).await;
    let told = events.iter().map(|event| match event {
        Event::Garbage(..) => "garbage",
        Event::Poor(_, objects) if objects.is_empty() => "nothing is poor",
        Event::Poor(..) => "poor",
        Event::NoneFound(_) => "none found",
        Event::Deleted(_) => "deleted",
        Event::Pins(_) => "pins",
        other => panic!("{other:?}"),
    });
    let mut told: BTreeSet<&str> = told.collect();
    assert!(told.remove("pins"));
    (told, error)
}

#[tokio::test]
async fn from_a_listing_that_fails_in_the_middle_nothing_is_concluded() {
    let (mut server, over) = with_an_object_over();
    while server.collection().deleted == 0 {
        server.pass(20, true);
    }
    server.frame(1, ToServer::Goodbye);
    server.pass(1400, true);
    let name = |n| object_name(common::VOLUME, ObjectId { n, ..over });
    // One that rows need little of, and one that nothing names. A third is deleted, and its row stays till it is known
    // that nothing of it is there.
    let first = || Some(vec![(name(6), 1_000_000), (name(9), 100)]);
    let nothing = || Some(Vec::new());

    let all: BTreeSet<&str> = ["garbage", "poor", "deleted"].into();
    assert_eq!(look(&mut server, pages(vec![first(), nothing()])).await, (all, None));
    let none: BTreeSet<&str> = ["nothing is poor", "deleted"].into();
    assert_eq!(look(&mut server, pages(vec![nothing(), nothing()])).await, (none, None));
    for listing in [vec![first(), None], vec![nothing(), None], vec![nothing(), first(), None, nothing()]] {
        let (told, error) = look(&mut server, pages(listing)).await;
        assert_eq!(told, BTreeSet::new());
        assert!(error.unwrap().contains("the store answers 500"));
    }
}

#[tokio::test]
async fn a_listing_whose_second_page_fails_condemns_nothing_and_the_next_whole_one_does() {
    let (mut server, named) = with_an_object_over();
    server.frame(1, ToServer::Goodbye);
    server.pass(1400, true);
    let garbage = ObjectId { n: 9, ..named };
    let name = |object| object_name(common::VOLUME, object);
    let first = || Some(vec![(name(named), 100), (name(garbage), 100)]);
    let going = |server: &Server| {
        let tally = server.tally();
        (tally.held.count, tally.retired.count, tally.condemned.count)
    };
    assert_eq!(going(&server), (2, 0, 0));
    for _ in 0..3 {
        let (told, error) = heard(&mut server, pages(vec![first(), None])).await;
        assert!(error.is_some());
        told.into_iter().for_each(|event| drop(server.run(event)));
        assert_eq!(server.pass(40, true), []);
        assert_eq!(going(&server), (2, 0, 0));
    }
    let (told, error) = heard(&mut server, pages(vec![first(), Some(Vec::new())])).await;
    assert_eq!(error, None);
    told.into_iter().for_each(|event| drop(server.run(event)));
    assert_eq!(going(&server), (2, 0, 1));
    assert_eq!(server.pass(40, true), [garbage]);
    server.verify();
}

/// Has a store with these listings looked through until a volume that is given up is said to be gone. They are made of something
/// that lies there. Gives when they were asked for.
async fn until_none_is_found(listings: impl FnOnce((String, u64)) -> Vec<Vec<Page>>) -> Vec<Instant> {
    let (mut server, named) = with_files();
    server.deleted(false);
    server.deleted(true);
    assert_eq!(server.minutes(24), [named]);
    assert!(server.core.machine.is_emptied(&SharedView(server.core.engine.view())));
    let listings = listings((object_name(common::VOLUME, ObjectId { n: 9, ..named }), 100));
    let store = Arc::new(Pages { listings, asked: Mutex::default() });
    let (queue, mut inputs) = tokio::sync::mpsc::channel(16);
    let stores = Stores::default();
    stores.set([(common::VOLUME, store.clone() as Arc<dyn StorePort>)].into());
    let running = tokio::spawn(Collector::new(queue, stores, Rhythm::default()).run());
    let ended = loop {
        match inputs.recv().await.expect("the collector runs") {
            Input::Ask(ask) => ask(&mut server.core, server.now_ns.into()),
            Input::Events(events) if events.iter().any(|event| matches!(event, Event::NoneFound(_))) => {
                break events;
            }
            Input::Events(_) => {}
            _ => panic!("a look only asks and tells"),
        }
    };
    running.abort();
    let asked = store.asked.lock().unwrap().clone();
    ended.into_iter().for_each(|event| drop(server.run(event)));
    server.durable();
    assert!(server.core.machine.volume(VolumeIndex(1)).unwrap().row.is_gone());
    asked
}

fn nothing() -> Vec<Page> {
    vec![Some(Vec::new())]
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_given_up_ends_when_two_listings_ten_minutes_apart_show_nothing_of_it() {
    // The first one leaves out what lies there, one cannot be had, and then it is gone.
    let listings =
        |left| vec![nothing(), vec![Some(vec![left])], nothing(), vec![None], nothing(), nothing()];
    let asked = until_none_is_found(listings).await;
    assert_eq!(asked.len(), 5, "the one before the last that was had is the first of the two");
    assert!(asked[4] - asked[2] >= Duration::from_secs(600));
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_shows_something_of_a_volume_that_is_given_up_and_fails_then_has_shown_it() {
    let listings = |left| vec![nothing(), vec![Some(vec![left]), None], nothing(), nothing()];
    let asked = until_none_is_found(listings).await;
    assert_eq!(asked.len(), 4, "what the first one had left out was there");
}
