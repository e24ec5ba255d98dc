//! Lists in pages. A cursor names the last thing of a page; what is added or removed meanwhile neither
//! repeats nor hides others.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::problem::{Answer, Problem};
use crate::registry::{Entry, Listing, Registry};

/// Most things on a page.
pub const PAGE_MAX: usize = 500;
const PAGE_DEFAULT: usize = 50;

/// Which page.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Most things on the page.
    #[serde(default)]
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[serde(default)]
    #[param(max_length = 512)]
    pub cursor: Option<String>,
}

/// A page.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    /// The things.
    pub items: Vec<T>,
    /// Where the next page begins; absent: this is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl PageQuery {
    /// How many.
    ///
    /// # Errors
    /// Out of range.
    pub fn limit(&self) -> Answer<usize> {
        let limit = self.limit.unwrap_or(PAGE_DEFAULT);
        if (1..=PAGE_MAX).contains(&limit) {
            return Ok(limit);
        }
        Err(Problem::invalid("limit", limit, "1 to 500").into())
    }

    /// The key after which the page begins.
    fn after(&self, prefix: &str) -> Answer<Option<String>> {
        let Some(cursor) = &self.cursor else {
            return Ok(None);
        };
        let decoded = URL_SAFE_NO_PAD.decode(cursor).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        // Only within the list that it belongs to, and no NUL, which no key has.
        let is_good =
            |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        match text.filter(is_good) {
            Some(text) => Ok(Some(format!("{prefix}{text}"))),
            None => {
                let detail = "The cursor is none that this API gave";
                Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_cursor", detail).into())
            }
        }
    }

    /// Lists a page of entries under a prefix.
    ///
    /// # Errors
    /// The cursor or the limit is wrong, or the registry does not work.
    pub async fn list(
        &self,
        registry: &dyn Registry,
        prefix: &str,
    ) -> Answer<(Vec<Entry>, Option<String>)> {
        let after = self.after(prefix)?;
        let listing = registry
            .list(prefix, after.as_deref(), self.limit()?)
            .await?;
        Ok(cut(prefix, listing))
    }

    /// The same from the last one backwards.
    ///
    /// # Errors
    /// The cursor or the limit is wrong, or the registry does not work.
    pub async fn list_back(
        &self,
        registry: &dyn Registry,
        prefix: &str,
    ) -> Answer<(Vec<Entry>, Option<String>)> {
        let before = self.after(prefix)?;
        let listing = registry
            .list_back(prefix, before.as_deref(), self.limit()?)
            .await?;
        Ok(cut(prefix, listing))
    }
}

fn cut(prefix: &str, listing: Listing) -> (Vec<Entry>, Option<String>) {
    let last = listing.entries.last().filter(|_| listing.has_more);
    let next = last
        .and_then(|entry| entry.key.strip_prefix(prefix))
        .map(|rest| URL_SAFE_NO_PAD.encode(rest));
    (listing.entries, next)
}
