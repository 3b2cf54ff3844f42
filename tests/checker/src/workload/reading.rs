//! Reads.

use location_service::proto::location::v1;
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{PUBLISHED, Worker, calling::READ_DEADLINE};
use crate::history::{
    Content, Event, Item, Kind, Name, Operation, Page, Query, Read, Reply, Row, search_text,
};

/// Maximum number of pages of a read.
const MAX_PAGES: usize = 20;

impl Worker {
    /// Makes a random read.
    pub(super) async fn read(&mut self, rng: &mut StdRng) {
        let roll = rng.random_range(0..100);
        // The first queries are the most frequent.
        let queries = &self.settings.queries;
        let last = rng.random_range(0..queries.len());
        let last = rng.random_range(0..=last);
        let mut query = queries[rng.random_range(0..=last)].clone();
        if !self.admin {
            query.owner = rng.random_ratio(1, 4).then(|| self.subject.clone());
        }
        if rng.random_ratio(1, 3) && query.page_size == 1_000 {
            // A list that is rarely in the cache, next to cached lists with the same tag.
            query.page_size = rng.random_range(800..1_000);
        }
        let place = rng.random_range(0..PUBLISHED);
        match roll {
            0..15 => {
                let published = self.fleet.published()[place].clone();
                if let Some((name, id)) = published {
                    let fresh = rng.random_ratio(1, 20);
                    // The response is recorded.
                    let _ = self.get(rng, name, &id, fresh).await;
                }
            }
            15..20 => self.reports(rng, query).await,
            20..24 => {
                query.page_size = rng.random_range(3..9);
                self.list(rng, query, true).await;
            }
            24 if !self.admin => {
                query.owner = Some(self.settings.owner(rng));
                self.list(rng, query, false).await;
            }
            _ => self.list(rng, query, false).await,
        }
    }

    /// After half of the writes, reads the location, or a list or report that covers it, as interactive
    /// clients do.
    pub(super) async fn echo(&mut self, rng: &mut StdRng, name: Name, before: Option<Content>) {
        if rng.random_ratio(1, 2) {
            return;
        }
        let now = self.owned.iter().find(|owned| owned.name == name);
        let id = now.map(|owned| owned.id.clone());
        let now = now.map(|owned| owned.content.clone());
        let images: Vec<_> = before.into_iter().chain(now).collect();
        let Some(image) = images.choose(rng).cloned() else {
            return;
        };
        // Preferably a query that other clients make at the same time.
        let queries = self.settings.queries.iter();
        let usual: Vec<_> = queries.filter(|it| it.matches(name, &image)).collect();
        let named = !self.settings.own_database || rng.random_ratio(1, 2);
        let query = match usual.first() {
            Some(&query) if rng.random_ratio(2, 3) => query.clone(),
            _ => Query {
                kind: rng.random_ratio(1, 2).then_some(image.kind),
                run: named.then_some(image.run),
                owner: rng.random_ratio(1, 3).then_some(image.owner),
                page_size: 1_000,
                ..Query::default()
            },
        };
        match rng.random_range(0..6) {
            0 => {
                if let Some(id) = id {
                    let _ = self.get(rng, name, &id, false).await;
                }
            }
            1 => self.reports(rng, query).await,
            _ => self.list(rng, query, false).await,
        }
    }

    async fn list(&self, rng: &mut StdRng, query: Query, all_pages: bool) {
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let fresh = rng.random_ratio(1, 50);
        let mut request = v1::ListLocationsRequest {
            page_size: query.page_size,
            r#type: query.kind.map_or(0, |kind| kind.proto().into()),
            production_run_id: query.run.clone(),
            owner_id: query.owner.clone().unwrap_or_default(),
            state: match query.active {
                None => v1::LocationState::Unspecified,
                Some(true) => v1::LocationState::Active,
                Some(false) => v1::LocationState::Inactive,
            }
            .into(),
            query: query.client.map(search_text).unwrap_or_default(),
            order_by: query.order.clone(),
            ..v1::ListLocationsRequest::default()
        };
        let mut pages = Vec::new();
        loop {
            let start = self.recorder.now();
            let mut stub = self.stubs[replica].clone();
            let sending = self.request(request.clone(), deadline, fresh);
            let called = self
                .call(replica, deadline, stub.list_locations(sending))
                .await;
            let page = self.page(replica, start, called, |response| {
                self.listed(&request, response)
            });
            let has_next = matches!(page.0.reply, Reply::Locations { last: false, .. });
            pages.push(page.0);
            match page.1 {
                Some(response) if all_pages && has_next && pages.len() < MAX_PAGES => {
                    request.page_token = response.next_page_token;
                }
                _ => break,
            }
        }
        self.record(replica, Operation::List(query), pages).await;
    }

    /// The reply of a list.
    fn listed(
        &self,
        request: &v1::ListLocationsRequest,
        response: &v1::ListLocationsResponse,
    ) -> Reply {
        let locations = &response.locations;
        if !is_sorted(locations, &request.order_by) {
            return Reply::Invalid(format!("not in order: {locations:?}"));
        }
        let most = usize::try_from(request.page_size).unwrap_or_default();
        if most > 0 && locations.len() > most {
            return Reply::Invalid(format!("{} locations", locations.len()));
        }
        self.items(locations, response.next_page_token.is_empty())
    }

    /// Gets a location; `None` if there is none.
    pub(super) async fn get(
        &self,
        rng: &mut StdRng,
        name: Name,
        id: &str,
        fresh: bool,
    ) -> Result<Option<v1::Location>, ()> {
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let request = v1::GetLocationRequest { id: id.to_owned() };
        let start = self.recorder.now();
        let mut stub = self.stubs[replica].clone();
        let sending = self.request(request, deadline, fresh);
        let called = self
            .call(replica, deadline, stub.get_location(sending))
            .await;
        let (page, location) = self.page(replica, start, called, |location| {
            if location.id == id {
                self.items(std::slice::from_ref(location), true)
            } else {
                Reply::Invalid(format!("another id: {location:?}"))
            }
        });
        let found = match &page.reply {
            Reply::Missing => Ok(None),
            Reply::Locations { .. } => Ok(location),
            _ => Err(()),
        };
        self.record(replica, Operation::Get(name), vec![page]).await;
        found
    }

    async fn reports(&self, rng: &mut StdRng, query: Query) {
        // The only fields of a report request.
        let query = Query {
            kind: query.kind,
            run: query.run,
            owner: query.owner,
            page_size: 1_000,
            ..Query::default()
        };
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, READ_DEADLINE);
        let request = v1::ListLocationReportsRequest {
            r#type: query.kind.map_or(0, |kind| kind.proto().into()),
            production_run_id: query.run.clone(),
            owner_id: query.owner.clone().unwrap_or_default(),
            page_size: query.page_size,
            page_token: String::new(),
        };
        let start = self.recorder.now();
        let mut stub = self.stubs[replica].clone();
        let sending = self.request(request, deadline, false);
        let called = self
            .call(replica, deadline, stub.list_location_reports(sending))
            .await;
        let (page, _) = self.page(replica, start, called, |response| {
            let row = |report: &v1::LocationReport| {
                Some(Row {
                    kind: Kind::of(report.r#type())?,
                    run: report.production_run_id.clone(),
                    sums: [
                        report.location_count,
                        report.active_count,
                        report.total_capacity,
                    ],
                })
            };
            let rows: Option<Vec<_>> = response.reports.iter().map(row).collect();
            rows.map_or_else(|| Reply::Invalid(format!("{response:?}")), Reply::Reports)
        });
        self.record(replica, Operation::Reports(query), vec![page])
            .await;
    }

    /// The reply for locations. In a database of the checker, it must have written each of them.
    fn items(&self, locations: &[v1::Location], last: bool) -> Reply {
        let mut items = Vec::with_capacity(locations.len());
        for location in locations {
            match Item::of(location) {
                Some(item) => items.push(item),
                None if self.settings.own_database => {
                    return Reply::Invalid(format!("{location:?}"));
                }
                None => {}
            }
        }
        Reply::Locations { items, last }
    }

    /// Records a read.
    pub(super) async fn record(&self, replica: usize, operation: Operation, pages: Vec<Page>) {
        let scope = (!self.admin).then(|| self.subject.clone());
        self.recorder
            .record(Event::Read(Read {
                client: self.number,
                replica,
                scope,
                operation,
                pages,
            }))
            .await;
    }
}

fn is_sorted(locations: &[v1::Location], order: &str) -> bool {
    let time = |time: &Option<prost_types::Timestamp>| time.map(|it| (it.seconds, it.nanos));
    let created = |it: &v1::Location| time(&it.create_time);
    let updated = |it: &v1::Location| time(&it.update_time);
    match order {
        "" => locations.is_sorted_by(|a, b| created(a) >= created(b)),
        "create_time" => locations.is_sorted_by(|a, b| created(a) <= created(b)),
        "update_time desc" => locations.is_sorted_by(|a, b| updated(a) >= updated(b)),
        "display_name" => locations.is_sorted_by(|a, b| a.display_name <= b.display_name),
        "capacity desc" => locations.is_sorted_by(|a, b| a.capacity >= b.capacity),
        "capacity" => locations.is_sorted_by(|a, b| a.capacity <= b.capacity),
        _ => true,
    }
}
