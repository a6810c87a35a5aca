//! `rust-version` is the floor of the dependencies: no lower, or users get
//! errors from deep below; no higher, or they are kept out for nothing.

use std::process::Command;

use serde_json::Value;

#[test]
fn rust_version_is_the_highest_of_the_dependencies() {
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
    let root = metadata["resolve"]["root"].as_str().unwrap();

    // All that a user of the library builds: no dev-dependencies.
    let mut needed = vec![root];
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

    let floor = |id: &str| {
        let package = packages.iter().find(|package| package["id"] == id).unwrap();
        let version = package["rust_version"].as_str().unwrap_or("1.0").to_owned();
        (
            minor(&version),
            package["name"].as_str().unwrap().to_owned(),
        )
    };
    let ours = floor(root).0;
    let highest = needed.iter().skip(1).map(|id| floor(id)).max().unwrap();
    assert_eq!(ours, highest.0, "because of {}", highest.1);
}

fn minor(version: &str) -> u32 {
    version.split('.').nth(1).unwrap().parse().unwrap()
}
