//! Going through the pages of a table until so many rows were found.

use clap::Args;
use regrant::store::Page;
use regrant::store::StoreError;

/// How much of a list is wanted.
#[derive(Args)]
pub(crate) struct Extent {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = limit)]
    pub(crate) limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was found.
pub(crate) struct Listed<T, Id> {
    pub(crate) rows: Vec<T>,
    /// After which row to go on; `None` if nothing can follow.
    pub(crate) next: Option<Id>,
}

/// The first `limit` rows after `after` that `is_wanted` admits.
pub(crate) async fn collect<T, Id: Copy>(
    limit: u32,
    mut after: Option<Id>,
    mut page: impl AsyncFnMut(Option<Id>, u32) -> Result<Page<T, Id>, StoreError>,
    is_wanted: impl Fn(&T) -> bool,
    id: impl Fn(&T) -> Id,
) -> Result<Listed<T, Id>, StoreError> {
    let limit = limit as usize;
    let mut rows = Vec::new();
    loop {
        let found = page(after, PAGE).await?;
        let mut wanted = found.rows.into_iter().filter(&is_wanted);
        rows.extend(wanted.by_ref().take(limit - rows.len()));
        if rows.len() == limit && (wanted.next().is_some() || found.next.is_some()) {
            let next = rows.last().map(&id);
            return Ok(Listed { rows, next });
        }
        after = found.next;
        if after.is_none() {
            return Ok(Listed { rows, next: None });
        }
    }
}

/// Rows that are looked at in one statement.
pub(crate) const PAGE: u32 = 1_000;

/// clap's own repeats the number.
fn limit(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.ok_or_else(|| format!("must be a number from 1 to {}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers up to 25, by pages of ten.
    async fn listed(limit: u32, after: Option<u32>) -> (Vec<u32>, Option<u32>) {
        let page = async |after: Option<u32>, _limit| {
            let first = after.map_or(1, |last| last + 1);
            let last = (first + 9).min(25);
            Ok(Page {
                rows: (first..=last).collect(),
                next: (last < 25).then_some(last),
            })
        };
        let even = |number: &u32| number.is_multiple_of(2);
        let listed = collect(limit, after, page, even, |number| *number)
            .await
            .unwrap();
        (listed.rows, listed.next)
    }

    #[tokio::test]
    async fn a_list_goes_over_pages_and_says_where_it_stopped() {
        let (rows, next) = listed(7, None).await;
        assert_eq!((rows, next), (vec![2, 4, 6, 8, 10, 12, 14], Some(14)));
        let (rows, next) = listed(7, next).await;
        assert_eq!((rows, next), (vec![16, 18, 20, 22, 24], None));
        assert_eq!(listed(5, None).await.1, Some(10), "the end of a page");
        assert_eq!(listed(12, None).await.1, None, "the end of all");
    }
}
