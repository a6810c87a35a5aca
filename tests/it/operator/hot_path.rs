//! What requests wait for goes to one shard: every statement names its primary key.

/// The statements of clients and requests.
const HOT: [(&str, &str); 3] = [
    (
        "clients",
        include_str!("../../../src/store/postgres/clients.rs"),
    ),
    (
        "credentials",
        include_str!("../../../src/store/postgres/credentials.rs"),
    ),
    (
        "grants",
        include_str!("../../../src/store/postgres/grants.rs"),
    ),
];

/// What nobody waits for, or what a replica asks at its start.
const FURTHER: [(&str, &str); 3] = [
    (
        "notify",
        include_str!("../../../src/store/postgres/notify.rs"),
    ),
    (
        "revocations",
        include_str!("../../../src/store/postgres/revocations.rs"),
    ),
    (
        "upkeep",
        include_str!("../../../src/store/postgres/upkeep.rs"),
    ),
];

#[test]
fn every_statement_of_the_hot_path_names_its_primary_key() {
    let mut count = 0;
    for (file, source) in HOT {
        for sql in statements(source) {
            count += 1;
            let is_one_row = if sql.starts_with("INSERT") {
                sql.contains(" (id, ") && sql.contains("VALUES ($1, ")
            } else {
                sql.contains(" WHERE id = $1")
            };
            // A few rows, copied to every worker.
            let is_copied = sql.starts_with("SELECT ") && sql.ends_with(" FROM sealing_keys");
            assert!(is_one_row || is_copied, "{file}: {sql}");
            assert!(
                !sql.contains(" JOIN ") && !sql.contains("FOR UPDATE"),
                "{file}: {sql}"
            );
        }
    }
    assert!(count >= 20, "{count} statements were found");
}

#[test]
fn no_statement_has_what_citus_refuses() {
    for (file, source) in HOT.into_iter().chain(FURTHER) {
        let found = statements(source);
        assert!(!found.is_empty(), "{file}");
        for sql in found {
            assert!(!sql.contains("clock_timestamp"), "{file}: {sql}");
            assert!(!sql.contains("advisory"), "{file}: {sql}");
            // Inside another statement it would be said on a worker, to nobody.
            let is_alone = sql.starts_with("SELECT pg_notify(") && !sql.contains(" FROM ");
            assert!(is_alone || !sql.contains("pg_notify"), "{file}: {sql}");
        }
    }
}

/// The string literals of a source file that are SQL, with single blanks.
fn statements(source: &str) -> Vec<String> {
    let code = source.split("\n#[cfg(test)]").next().unwrap_or(source);
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let literals = code.split('"').skip(1).step_by(2);
    let text = literals.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    text.filter(|text| {
        ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "]
            .iter()
            .any(|verb| text.starts_with(verb))
    })
    .collect()
}
