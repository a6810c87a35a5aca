//! What users of the library build with it.

use std::process::Command;

use serde_json::Value;

/// `rust-version` is the floor of the dependencies: no lower, or users get
/// errors from deep below; no higher, or they are kept out for nothing.
#[test]
fn rust_version_is_the_highest_of_the_dependencies() {
    let needed = needed();
    let floor = |package: &Value| {
        let version = package["rust_version"].as_str().unwrap_or("1.0");
        (minor(version), package["name"].to_string())
    };
    let ours = floor(&needed[0]).0;
    let highest = needed.iter().skip(1).map(floor).max().unwrap();
    assert_eq!(ours, highest.0, "because of {}", highest.1);
}

#[test]
fn there_is_one_tower_http_and_it_is_the_one_of_reqwest() {
    let needed = needed();
    let found: Vec<_> = needed
        .iter()
        .filter(|p| p["name"] == "tower-http")
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
}

/// The packages that a user of all features builds, ours first: no
/// dev-dependencies.
fn needed() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--all-features",
            "--format-version=1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();

    let mut needed = vec![metadata["resolve"]["root"].as_str().unwrap()];
    let mut at = 0;
    while let Some(id) = needed.get(at).copied() {
        at += 1;
        let node = nodes.iter().find(|node| node["id"] == id).unwrap();
        for dependency in node["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            let is_normal = kinds.iter().any(|kind| kind["kind"] != "dev");
            let id = dependency["pkg"].as_str().unwrap();
            if is_normal && !needed.contains(&id) {
                needed.push(id);
            }
        }
    }
    assert!(needed.len() > 50, "the graph was walked");
    let package = |id: &str| packages.iter().find(|package| package["id"] == id);
    needed
        .into_iter()
        .map(|id| package(id).unwrap().clone())
        .collect()
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).unwrap().parse().unwrap()
}
