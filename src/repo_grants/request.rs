//! What a caller asks for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use super::error::MintError;
use super::minted::Repository;
use super::permissions;
use crate::provider::github::InstallationScope;

/// A request for a token of one repository. As JSON its members are
/// `installationId`, `owner`, `repo`, `repositoryId` and `permissions`, of which
/// the last two are optional.
///
/// ```
/// use regrant::repo_grants::MintRequest;
///
/// let request = MintRequest::new(17, "octocat", "hello-world").permission("contents", "read");
/// let same: MintRequest = serde_json::from_str(
///     r#"{"installationId": 17, "owner": "octocat", "repo": "hello-world",
///         "permissions": {"contents": "read"}}"#,
/// )?;
/// assert_eq!(request, same);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
#[must_use = "a request does nothing until a token is minted for it"]
pub struct MintRequest {
    pub(super) installation_id: u64,
    pub(super) owner: String,
    pub(super) repo: String,
    pub(super) repository_id: Option<u64>,
    permissions: Option<BTreeMap<String, String>>,
    #[serde(skip)]
    pub(super) subject: Option<String>,
}

impl MintRequest {
    /// A token for the repository `repo` (its bare name) of the account `owner`,
    /// through this installation of the App there, with the permissions of the
    /// default: `contents: write`, `metadata: read`, `pull_requests: write`.
    pub fn new(installation_id: u64, owner: impl Into<String>, repo: impl Into<String>) -> Self {
        Self {
            installation_id,
            owner: owner.into(),
            repo: repo.into(),
            repository_id: None,
            permissions: None,
            subject: None,
        }
    }

    /// The id that the repository must have: a name may have passed to another
    /// repository since. The default is not to look.
    pub fn repository_id(mut self, id: u64) -> Self {
        self.repository_id = Some(id);
        self
    }

    /// One permission, `contents`, `metadata`, `pull_requests`, `issues` or
    /// `checks`, and the access to it, `read` or `write`, instead of the
    /// default. `metadata` is always `read`.
    pub fn permission(mut self, name: impl Into<String>, access: impl Into<String>) -> Self {
        self.permissions
            .get_or_insert_default()
            .insert(name.into(), access.into());
        self
    }

    /// The user that the grant is for, as the gateway knows it: for audit events
    /// and operators. It is no member of the JSON. The default is the
    /// installation.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Whether this can be asked of GitHub at all. Minting looks at it too.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](super::MintErrorKind::InvalidInput) if an id is zero, or
    /// a name is empty, too long or has characters that GitHub's have not.
    /// [`PermissionDenied`](super::MintErrorKind::PermissionDenied) if a
    /// permission is asked for that is not given.
    pub fn validate(&self) -> Result<(), MintError> {
        self.capped().map(|_permissions| ())
    }

    /// What to mint by for this repository.
    pub(super) fn scope(&self, repository: &Repository) -> Result<InstallationScope, MintError> {
        let scope = InstallationScope::new(self.installation_id).repository(repository.id);
        let permissions = self.capped()?.into_iter();
        Ok(permissions.fold(scope, |scope, (name, access)| {
            scope.permission(name, access)
        }))
    }

    /// The JSON Schema of the input of an MCP tool that mints.
    ///
    /// ```
    /// let schema = regrant::repo_grants::MintRequest::input_schema();
    /// assert_eq!(schema["required"][0], "installationId");
    /// ```
    pub fn input_schema() -> Value {
        let access = json!({"type": "string", "enum": permissions::ACCESSES});
        let names = permissions::NAMES.iter();
        let given: BTreeMap<_, _> = names.map(|name| (*name, access.clone())).collect();
        json!({
            "type": "object",
            "properties": {
                "installationId": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "The id of the installation of the GitHub App.",
                },
                "owner": {
                    "type": "string",
                    "description": "The login of the account that the App is installed on and that owns the repository.",
                },
                "repo": {
                    "type": "string",
                    "description": "The bare name of the repository, without its owner.",
                },
                "repositoryId": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "The id of the repository. If it is given, the name must be of this one.",
                },
                "permissions": {
                    "type": "object",
                    "properties": given,
                    "additionalProperties": false,
                    "description": "What the token may do. The default is contents: write, metadata: read, pull_requests: write; metadata is always read.",
                },
            },
            "required": ["installationId", "owner", "repo"],
        })
    }

    pub(super) fn capped(&self) -> Result<BTreeMap<String, String>, MintError> {
        if self.installation_id == 0 {
            return Err(MintError::invalid("installationId must not be 0"));
        }
        if self.repository_id == Some(0) {
            return Err(MintError::invalid("repositoryId must not be 0"));
        }
        if !is_name(&self.owner, "-_") {
            return Err(MintError::invalid("owner must be the login of an account"));
        }
        // Two of these are no name, but the way out of a path.
        if !is_name(&self.repo, "-_.") || self.repo == "." || self.repo == ".." {
            return Err(MintError::invalid(
                "repo must be the bare name of a repository, without its owner",
            ));
        }
        permissions::capped(self.permissions.as_ref())
    }
}

/// Letters and digits of ASCII and these marks, as GitHub has it in names. Logins
/// of managed users have an underscore.
fn is_name(text: &str, marks: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(is_allowed)
}

/// Of repositories; accounts have less.
const LONGEST_NAME: usize = 100;

#[cfg(test)]
mod tests {
    use super::super::error::MintErrorKind;
    use super::*;

    #[test]
    fn names_and_ids_that_cannot_be_are_invalid_input() {
        let good = || MintRequest::new(1, "octo-cat_x", "hello.world_1-2");
        assert!(good().validate().is_ok());
        assert!(good().repository_id(7).validate().is_ok());
        let long = "a".repeat(101);
        let named = |owner: &str, repo: &str| MintRequest::new(1, owner, repo);
        for request in [
            MintRequest::new(0, "octocat", "hello"),
            good().repository_id(0),
            named("", "hello"),
            named(" ", "hello"),
            named("octo.cat", "hello"),
            named("octo/cat", "hello"),
            named("octö", "hello"),
            named(&long, "hello"),
            named("octocat", ""),
            named("octocat", "octocat/hello"),
            named("octocat", "hello world"),
            named("octocat", "hello?x=1"),
            named("octocat", "hello\n"),
            named("octocat", "héllo"),
            named("octocat", "."),
            named("octocat", ".."),
            named("octocat", &long),
        ] {
            let error = request.validate().unwrap_err();
            assert_eq!(error.kind(), MintErrorKind::InvalidInput, "{request:?}");
        }
    }

    #[test]
    fn a_permission_that_is_not_given_is_found_before_anything_is_asked() {
        let request = MintRequest::new(1, "octocat", "hello").permission("secrets", "read");
        let error = request.validate().unwrap_err();
        assert_eq!(error.kind(), MintErrorKind::PermissionDenied);
    }

    #[test]
    fn json_names_the_members_as_tools_do_and_may_leave_out_two() {
        let short = r#"{"installationId":1,"owner":"a","repo":"b"}"#;
        let null = r#"{"installationId":1,"owner":"a","repo":"b","permissions":null,"later":1}"#;
        for text in [short, null] {
            let request: MintRequest = serde_json::from_str(text).unwrap();
            assert_eq!(request, MintRequest::new(1, "a", "b"), "{text}");
        }
        let full = r#"{"installationId":1,"owner":"a","repo":"b","repositoryId":2,"permissions":{"issues":"read"}}"#;
        let request: MintRequest = serde_json::from_str(full).unwrap();
        let want = MintRequest::new(1, "a", "b").repository_id(2);
        assert_eq!(request, want.permission("issues", "read"));
        for text in [
            r#"{"owner":"a","repo":"b"}"#,
            r#"{"installationId":-1,"owner":"a","repo":"b"}"#,
            r#"{"installationId":1,"owner":"a","repo":"b","permissions":{"issues":1}}"#,
        ] {
            assert!(serde_json::from_str::<MintRequest>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_schema_describes_every_member() {
        let schema = MintRequest::input_schema();
        let members = schema["properties"].as_object().unwrap();
        assert_eq!(members.len(), 5);
        assert!(
            members
                .values()
                .all(|member| member["description"].is_string())
        );
        let permissions = &members["permissions"]["properties"];
        assert_eq!(permissions["checks"]["enum"], json!(["read", "write"]));
    }
}
