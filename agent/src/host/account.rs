//! The books of a host as one of its instances sees them.

use std::sync::Arc;

use concertina_api::policy::Axis;

use super::books::HostBooks;
use crate::journal::{Answer, EndedResize, IntentId, PolicyMark, Record, UsageMark};
use crate::ledger::Need;
use crate::policy::{PolicyState, Size};
use crate::resize::books::{Books, Done, Step};

/// One instance's account.
#[derive(Debug)]
pub struct Account {
    name: String,
    books: Arc<HostBooks>,
}

impl Account {
    /// Of the instance with this name.
    pub fn new(name: &str, books: Arc<HostBooks>) -> Self {
        Self {
            name: name.to_owned(),
            books,
        }
    }
}

impl Books for Account {
    fn begin(&self, step: &Step<'_>) -> Result<Option<IntentId>, String> {
        self.books.begin_change(&self.name, step).map(Some)
    }

    fn end(&self, intent: Option<IntentId>, done: &Done<'_>) {
        if let Some(intent) = intent {
            self.books.end_change(&self.name, intent, done);
        }
    }

    fn seen(&self, size: Size) {
        self.books.seen(&self.name, size);
    }

    fn remember(&self, version: u64, state: &PolicyState) {
        self.books.write(Record::Policy {
            instance: self.name.clone(),
            version,
            state: Box::new(state.clone()),
        });
    }

    fn remembered(&self) -> (Option<PolicyMark>, Vec<EndedResize>) {
        self.books
            .book(|book| match book.instances().get(&self.name) {
                Some(book) => (
                    book.policy.clone(),
                    book.unremembered.iter().cloned().collect(),
                ),
                None => (None, Vec::new()),
            })
    }

    fn size(&self) -> Option<Size> {
        self.books
            .book(|book| Some(book.instances().get(&self.name)?.size))
    }

    fn used(&self, mark: UsageMark) {
        self.books.write(Record::Usage {
            instance: self.name.clone(),
            mark,
        });
    }

    fn usage(&self) -> Option<UsageMark> {
        self.books
            .book(|book| book.instances().get(&self.name)?.usage.clone())
    }

    fn answers(&self, key: &str) -> Vec<Answer> {
        self.books
            .book(|book| book.answers(&self.name, key).cloned().collect())
    }

    fn need(&self, needs: [(Axis, Option<Need>); 2]) {
        self.books.need(&self.name, needs);
    }

    fn content(&self, axis: Axis) {
        self.books.content(&self.name, axis);
    }

    fn awaited(&self, axis: Axis) -> Option<u64> {
        self.books.awaited(&self.name, axis)
    }
}
