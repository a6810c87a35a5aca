//! What a history is made of, and how it is drawn.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::strategy::Just;
use proptest::strategy::Strategy;

use super::model::Policy;
use super::model::Rules;
use super::model::Scope;

/// One thing that somebody does. Grants are counted from the newest, tokens of
/// a grant too; who is too few takes the oldest.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Issue {
        at: Replica,
        policy: Policy,
    },
    IssueCode {
        at: Replica,
        policy: Policy,
    },
    Redeem {
        at: Replica,
        grant: usize,
        verifies: bool,
        client: Sender,
    },
    Refresh {
        at: Replica,
        grant: usize,
        token: Token,
        client: Sender,
        scope: Scope,
    },
    Use {
        at: Replica,
        grant: usize,
        token: usize,
    },
    RevokeRefresh {
        at: Replica,
        grant: usize,
        token: u64,
        client: Sender,
    },
    RevokeAccess {
        at: Replica,
        grant: usize,
        token: usize,
        client: Sender,
    },
    /// One replica starts anew, sealing with this key; both know all keys.
    Rekey {
        at: Replica,
        key: usize,
    },
    Pass(Span),
}

/// Of two.
pub(super) type Replica = usize;

/// A refresh token, by how many rotations ago it was the newest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Issued(u64),
    /// With a true tag and a secret that was never issued: the work of a thief
    /// who has the keys and not the rows. -1 is one that is yet to come.
    Counterfeit(i64),
}

/// Who a request says it is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sender {
    Owner,
    /// Nobody says; who has the token is good enough.
    Silent,
    Mallory,
}

/// How much time passes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Span {
    Seconds(u64),
    /// To this moment of a grant and as many seconds past it, if it lies ahead.
    To {
        edge: Edge,
        grant: usize,
        past: i64,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Edge {
    Grace,
    Access,
    Leeway,
    Idle,
    Absolute,
    Code,
}

/// A history: what its settings are, and what happens.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) rules: Rules,
    pub(super) steps: Vec<Step>,
}

pub(super) fn history() -> impl Strategy<Value = History> {
    let rules = prop_oneof![Just(ROOMY), Just(TIGHT)];
    let phrases = prop_oneof![24 => step().prop_map(|step| vec![step]), 1 => replay()];
    (rules, vec(phrases, 1..=2 * MEAN_PHRASES - 1)).prop_map(|(rules, phrases)| History {
        rules,
        steps: phrases.concat(),
    })
}

/// What is seldom drawn in one go: a new pair, perhaps in use, and it or its
/// predecessor at one of the grant's moments.
fn replay() -> impl Strategy<Value = Vec<Step>> {
    let chances = (any::<bool>(), mostly(false, true));
    let drawn = (replica(), replica(), edge(), -1..=1_i64, chances);
    drawn.prop_map(|(here, there, edge, past, (is_used, is_last_used))| {
        let refresh = |at, token| Step::Refresh {
            at,
            grant: 0,
            token: Token::Issued(token),
            client: Sender::Owner,
            scope: Scope::Whole,
        };
        let mut steps = vec![refresh(here, 0)];
        let (at, grant, token) = (there, 0, 0);
        let call = Step::Use { at, grant, token };
        steps.extend(is_used.then(|| call.clone()));
        steps.push(Step::Pass(Span::To { edge, grant, past }));
        steps.push(if is_last_used {
            call
        } else {
            refresh(there, 1)
        });
        steps
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (replica(), policy()).prop_map(|(at, policy)| Step::Issue { at, policy }),
        3 => (replica(), policy()).prop_map(|(at, policy)| Step::IssueCode { at, policy }),
        5 => (replica(), grant(), mostly(true, false), sender())
            .prop_map(|(at, grant, verifies, client)| Step::Redeem { at, grant, verifies, client }),
        30 => (replica(), grant(), token(), sender(), scope()).prop_map(
            |(at, grant, token, client, scope)| Step::Refresh { at, grant, token, client, scope }
        ),
        14 => (replica(), grant(), recent())
            .prop_map(|(at, grant, token)| Step::Use { at, grant, token }),
        1 => (replica(), grant(), 0..4_u64, sender())
            .prop_map(|(at, grant, token, client)| Step::RevokeRefresh { at, grant, token, client }),
        3 => (replica(), grant(), recent(), sender())
            .prop_map(|(at, grant, token, client)| Step::RevokeAccess { at, grant, token, client }),
        2 => (replica(), 0..KEYS).prop_map(|(at, key)| Step::Rekey { at, key }),
        9 => span().prop_map(Step::Pass),
    ]
}

fn replica() -> impl Strategy<Value = Replica> {
    0..2_usize
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![2 => Just(Policy::Default), 1 => Just(Policy::Strict), 1 => Just(Policy::Sticky)]
}

/// Mostly the newest, or what a history does to one grant is soon forgotten.
fn grant() -> impl Strategy<Value = usize> {
    prop_oneof![6 => Just(0_usize), 3 => Just(1), 1 => 0..8_usize]
}

fn recent() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0_usize), 3 => Just(1), 2 => 0..16_usize]
}

fn token() -> impl Strategy<Value = Token> {
    prop_oneof![
        24 => Just(Token::Issued(0)),
        14 => Just(Token::Issued(1)),
        2 => (2..6_u64).prop_map(Token::Issued),
        1 => (-1..3_i64).prop_map(Token::Counterfeit),
    ]
}

fn sender() -> impl Strategy<Value = Sender> {
    prop_oneof![
        12 => Just(Sender::Owner),
        6 => Just(Sender::Silent),
        1 => Just(Sender::Mallory)
    ]
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        12 => Just(Scope::Whole),
        4 => Just(Scope::Narrowed),
        1 => Just(Scope::Foreign)
    ]
}

fn mostly<T: Clone + std::fmt::Debug>(one: T, other: T) -> impl Strategy<Value = T> {
    prop_oneof![6 => Just(one), 1 => Just(other)]
}

fn span() -> impl Strategy<Value = Span> {
    prop_oneof![
        8 => (1..40_u64).prop_map(Span::Seconds),
        2 => (60..4_000_u64).prop_map(Span::Seconds),
        // Under the idle deadline and over half of it: a grant that is used now
        // and then meets the absolute one.
        2 => any::<bool>().prop_map(|roomy| Span::Seconds(if roomy { 9 * DAY } else { 4_500 })),
        10 => (edge(), grant(), -1..=1_i64)
            .prop_map(|(edge, grant, past)| Span::To { edge, grant, past }),
    ]
}

fn edge() -> impl Strategy<Value = Edge> {
    prop_oneof![
        8 => Just(Edge::Grace),
        3 => Just(Edge::Access),
        3 => Just(Edge::Leeway),
        2 => Just(Edge::Idle),
        2 => Just(Edge::Absolute),
        2 => Just(Edge::Code),
    ]
}

/// Of a history, on average; a little more steps.
const MEAN_PHRASES: usize = 100;
/// In the keyring of every replica.
pub(super) const KEYS: usize = 3;
const DAY: u64 = 86_400;

pub(super) const ROOMY: Rules = Rules {
    access: 3_600,
    idle: 10 * DAY,
    absolute: 25 * DAY,
    grace: 120,
    leeway: 10,
    code: 300,
};
/// The deadlines of the grant cut its access tokens short.
const TIGHT: Rules = Rules {
    access: 3_600,
    idle: 5_400,
    absolute: 9_000,
    grace: 120,
    leeway: 10,
    code: 60,
};
