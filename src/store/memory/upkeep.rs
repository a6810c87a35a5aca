//! The part that no request waits for, in memory.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

use super::MemoryStore;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::seal::key_id;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::Deadlines;
use crate::store::Grant;
use crate::store::GrantFilter;
use crate::store::KeyUsage;
use crate::store::Outlived;
use crate::store::Page;
use crate::store::StoreError;
use crate::store::Swept;
use crate::store::Upkeep;

impl Upkeep for MemoryStore {
    fn grants(
        &self,
        filter: GrantFilter,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Grant, GrantId>, StoreError>> {
        self.with(move |tables| {
            let (ids, next) = page(&tables.grants, after, limit);
            let rows = ids.iter().filter_map(|id| tables.grants.get(id));
            let rows = rows.filter(|grant| filter.admits(grant)).cloned();
            Ok(Page {
                rows: rows.collect(),
                next,
            })
        })
    }

    fn credentials(
        &self,
        filter: CredentialFilter,
        after: Option<CredentialId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Page<Credential, CredentialId>, StoreError>> {
        self.with(move |tables| {
            let (ids, next) = page(&tables.credentials, after, limit);
            let rows = ids.iter().filter_map(|id| tables.credentials.get(id));
            let rows = rows.map(|leased| &leased.row);
            let rows = rows.filter(|credential| filter.admits(credential)).cloned();
            Ok(Page {
                rows: rows.collect(),
                next,
            })
        })
    }

    fn key_usage(&self) -> BoxFuture<'_, Result<Vec<KeyUsage>, StoreError>> {
        self.with(|tables| {
            let mut usage = BTreeMap::new();
            for leased in tables.credentials.values() {
                let id = key_id(&leased.row.sealed).unwrap_or_default();
                entry(&mut usage, id).credentials += 1;
            }
            let living = |grant: &&Grant| grant.revoked.is_none();
            for grant in tables.grants.values().filter(living) {
                let used = entry(&mut usage, &grant.key_id);
                used.grants += 1;
                used.access_until = used.access_until.max(Some(grant.access_expires_at));
            }
            Ok(usage.into_values().collect())
        })
    }

    fn reseal(
        &self,
        id: CredentialId,
        generation: u64,
        before: Vec<u8>,
        after: Vec<u8>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(move |tables| {
            let row = tables
                .credentials
                .get_mut(&id)
                .map(|leased| &mut leased.row);
            let found = row.filter(|row| row.generation == generation && row.sealed == before);
            Ok(found.map(|row| row.sealed = after).is_some())
        })
    }

    fn retire_key<'a>(
        &'a self,
        id: &'a str,
        at: SystemTime,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.with(|tables| {
            if let Some(known) = tables.keys.iter_mut().find(|key| key.id == id) {
                known.retired_at.get_or_insert(at);
            }
            Ok(())
        })
    }

    fn raise_deadlines(
        &self,
        deadlines: Deadlines,
    ) -> BoxFuture<'_, Result<Deadlines, StoreError>> {
        self.with(move |tables| {
            let raised = match tables.deadlines {
                Some(kept) => deadlines.or_longer(kept),
                None => deadlines,
            };
            tables.deadlines = Some(raised);
            Ok(raised)
        })
    }

    fn sweep_grants(
        &self,
        outlived: Outlived,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>> {
        self.with(move |tables| {
            Ok(sweep(&mut tables.grants, after, limit, |it| {
                outlived.is_by(it)
            }))
        })
    }

    fn sweep_codes(
        &self,
        expired_before: SystemTime,
        after: Option<GrantId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Swept<GrantId>, StoreError>> {
        self.with(move |tables| {
            Ok(sweep(&mut tables.codes, after, limit, |code| {
                code.expires_at < expired_before
            }))
        })
    }

    fn referred_to(
        &self,
        ids: Vec<CredentialId>,
    ) -> BoxFuture<'_, Result<Vec<CredentialId>, StoreError>> {
        self.with(move |tables| {
            let grants = tables.grants.values().map(|grant| &grant.credentials);
            let codes = tables.codes.values().map(|code| &code.credentials);
            let named: HashSet<_> = grants.chain(codes).flatten().map(|held| held.id).collect();
            Ok(ids.into_iter().filter(|id| named.contains(id)).collect())
        })
    }

    fn delete_credentials(&self, ended: Vec<Claim>) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.with(move |tables| {
            let mut deleted = 0;
            for Claim {
                id,
                generation,
                fence,
            } in ended
            {
                let row = tables.credentials.get(&id).map(|leased| &leased.row);
                let is_it = row.is_some_and(|row| {
                    let is_at = (row.generation, row.fence) == (generation, fence);
                    is_at && row.terminal.is_some() && !row.linked
                });
                deleted += u64::from(is_it && tables.credentials.remove(&id).is_some());
            }
            Ok(deleted)
        })
    }
}

/// The ids of a page, and after which one the next page begins.
fn page<Id: Copy + Ord, T>(
    rows: &HashMap<Id, T>,
    after: Option<Id>,
    limit: u32,
) -> (Vec<Id>, Option<Id>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let later = rows.keys().copied().filter(|id| after < Some(*id));
    let mut ids: Vec<_> = later.collect();
    ids.sort_unstable();
    ids.truncate(limit);
    let next = ids.last().copied().filter(|_last| ids.len() == limit);
    (ids, next)
}

fn sweep<T>(
    rows: &mut HashMap<GrantId, T>,
    after: Option<GrantId>,
    limit: u32,
    is_done: impl Fn(&T) -> bool,
) -> Swept<GrantId> {
    let (ids, next) = page(rows, after, limit);
    let mut deleted = 0;
    for id in ids {
        if rows.get(&id).is_some_and(&is_done) {
            rows.remove(&id);
            deleted += 1;
        }
    }
    Swept { deleted, next }
}

fn entry<'a>(usage: &'a mut BTreeMap<String, KeyUsage>, id: &str) -> &'a mut KeyUsage {
    usage.entry(id.to_owned()).or_insert_with(|| KeyUsage {
        id: id.to_owned(),
        credentials: 0,
        grants: 0,
        access_until: None,
    })
}
