//! The private key of an App, in every form in which deployments carry it.
//!
//! GitHub gives a PEM file (PKCS #1). On its way through environment variables,
//! secret managers and YAML it loses its line breaks, gains quotes or a layer of
//! base64, or becomes a member of a JSON object.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use zeroize::Zeroizing;

use super::super::signature::signed;
use crate::error::ConfigError;
use crate::secret::PrivateKey;

/// The key, which has signed once.
pub(super) fn signing_key(key: &PrivateKey) -> Result<EncodingKey, ConfigError> {
    let text = key.expose();
    read(text, DEPTH).ok_or_else(|| {
        let header = if text.contains(PEM_BEGIN) {
            "with"
        } else {
            "without"
        };
        let length = text.chars().count();
        ConfigError::new(
            "private key",
            format!(
                "is no RSA key that signs: it has {length} characters, {header} a PEM header; \
                 give the PEM file that GitHub generated for the App"
            ),
        )
    })
}

fn read(text: &str, depth: u8) -> Option<EncodingKey> {
    let depth = depth.checked_sub(1)?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    if text.starts_with('{')
        && let Some(key) = read_member(text, depth)
    {
        return Some(key);
    }
    let text = Zeroizing::new(text.replace(r"\\", r"\"));
    let text = Zeroizing::new(text.replace(r"\r", "\r").replace(r"\n", "\n"));
    if text.contains(PEM_BEGIN) {
        let mut blocks = text.split(PEM_BEGIN).skip(1);
        return blocks.find_map(|block| {
            let (_label, block) = block.split_once("-----")?;
            let (body, _end) = block.split_once("-----END")?;
            usable(&decode(body)?)
        });
    }
    let bytes = decode(&text)?;
    match str::from_utf8(&bytes) {
        Ok(inner) => read(inner, depth),
        // The length of a DER structure of this size is never UTF-8.
        Err(_) => usable(&bytes),
    }
}

/// A member of a JSON object: one of the usual names, or else any.
fn read_member(text: &str, depth: u8) -> Option<EncodingKey> {
    let members: Map<String, Value> = serde_json::from_str(text).ok()?;
    let usual = NAMES.iter().filter_map(|name| members.get(*name));
    usual
        .chain(members.values())
        .filter_map(Value::as_str)
        .find_map(|member| read(member, depth))
}

/// Base64 of either alphabet, with white space wherever it came to be.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let is_kept = |c: &char| !c.is_whitespace() && *c != '\\';
    let text: Zeroizing<String> = Zeroizing::new(text.chars().filter(is_kept).collect());
    let alphabet = if text.contains(['-', '_']) {
        &URL_SAFE
    } else {
        &STANDARD
    };
    let base64 = GeneralPurpose::new(
        alphabet,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = base64.decode(text.as_bytes()).ok()?;
    (!bytes.is_empty()).then(|| Zeroizing::new(bytes))
}

/// The key in this DER, PKCS #1 or PKCS #8, if it signs. What the label of a PEM
/// block says of that is often wrong.
fn usable(der: &[u8]) -> Option<EncodingKey> {
    let base64 = GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new());
    let body = Zeroizing::new(base64.encode(der));
    ["RSA PRIVATE KEY", "PRIVATE KEY"]
        .into_iter()
        .find_map(|label| {
            let body = body.as_str();
            let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
            let pem = Zeroizing::new(pem);
            let key = EncodingKey::from_rsa_pem(pem.as_bytes()).ok()?;
            // The parser does not look at the numbers of the key.
            let proof = signed(&Header::new(Algorithm::RS256), &json!({}), &key);
            proof.is_ok().then_some(key)
        })
}

const PEM_BEGIN: &str = "-----BEGIN ";
const NAMES: [&str; 4] = ["private_key", "privateKey", "pem", "key"];
/// JSON with base64 of PEM in it is the deepest that makes sense.
const DEPTH: u8 = 4;

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::Ed25519KeyPair;
    use aws_lc_rs::signature::RsaKeyPair;
    use base64::engine::general_purpose::STANDARD;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn armoured(label: &str, der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).collect();
        let lines = lines.iter().map(|line| str::from_utf8(line).unwrap());
        let lines = lines.collect::<Vec<_>>().join("\n");
        format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
    }

    #[test]
    fn a_key_is_read_in_every_form_in_which_deployments_carry_it() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = pair.as_der().unwrap();
        let pkcs8 = pkcs8.as_ref();
        // Version, algorithm and the header of the octet string go before it.
        let pkcs1 = &pkcs8[26..];
        let want = signature(pkcs1);
        for (name, pem) in [
            ("PKCS #1", armoured("RSA PRIVATE KEY", pkcs1)),
            ("PKCS #8", armoured("PRIVATE KEY", pkcs8)),
            (
                "PKCS #8 by the label of PKCS #1",
                armoured("RSA PRIVATE KEY", pkcs8),
            ),
        ] {
            let escaped = pem.replace('\n', "\\n");
            let json = |member: &str, text: &str| json!({"app_id": "17", member: text}).to_string();
            for (form, text) in [
                ("PEM", pem.clone()),
                ("CRLF", pem.replace('\n', "\r\n")),
                ("\\n", escaped.clone()),
                ("\\r\\n", pem.replace('\n', "\\r\\n")),
                ("\\\\n", pem.replace('\n', "\\\\n")),
                ("spaces", pem.replace('\n', " ")),
                ("no line breaks", pem.replace('\n', "")),
                ("double quotes", format!("\"{escaped}\"")),
                ("single quotes", format!(" '{pem}' \n")),
                ("white space", format!("\n\t {pem} \n")),
                ("tabs", pem.replace('\n', "\t")),
                ("indented", pem.replace('\n', "\n    ")),
                ("continued lines", pem.replace('\n', "\\\n")),
                ("byte order mark", format!("\u{feff}{pem}")),
                (
                    "after a certificate",
                    format!("{}{pem}", armoured("CERTIFICATE", b"x")),
                ),
                ("base64 of PEM", STANDARD.encode(&pem)),
                ("base64url of PEM", URL_SAFE_NO_PAD.encode(&pem)),
                ("base64 of \\n", STANDARD.encode(&escaped)),
                (
                    "base64 of base64 of PEM",
                    STANDARD.encode(STANDARD.encode(&pem)),
                ),
                ("JSON", json("private_key", &pem)),
                ("JSON, camelCase", json("privateKey", &escaped)),
                ("JSON, pem", json("pem", &pem)),
                ("JSON, another name", json("signing", &pem)),
                ("JSON, base64", json("key", &STANDARD.encode(&pem))),
                ("base64 of JSON", STANDARD.encode(json("key", &pem))),
                (
                    "JSON, raw line breaks",
                    format!("{{\"private_key\": \"{pem}\"}}"),
                ),
                (
                    "JSON after a byte order mark",
                    format!("\u{feff}{}", json("key", &pem)),
                ),
                (
                    "JSON in JSON",
                    json!({"github": {"private_key": pem}}).to_string(),
                ),
                ("a string of JSON", json!(pem).to_string()),
                (
                    "JSON in a string of JSON",
                    json!(json("key", &pem)).to_string(),
                ),
            ] {
                let key = signing_key(&PrivateKey::new(text));
                let key = key.unwrap_or_else(|error| panic!("{name}, {form}: {error}"));
                assert!(sign(&key) == want, "{name}, {form}");
            }
        }
        for der in [pkcs1, pkcs8] {
            for text in [STANDARD.encode(der), URL_SAFE_NO_PAD.encode(der)] {
                let key = signing_key(&PrivateKey::new(text)).unwrap();
                assert!(sign(&key) == want);
            }
        }
    }

    #[test]
    fn of_a_bad_key_only_its_length_and_whether_it_had_a_header_are_told() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        let half = &der.as_ref()[..600];
        // It parses, and its modulus is of other primes.
        let mut changed = der.as_ref()[26..].to_vec();
        changed[100] ^= 1;
        let ed25519 = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
        for (text, header) in [
            (String::new(), "without"),
            ("canary".to_owned(), "without"),
            ("ghp_canary!".to_owned(), "without"),
            (json!({"private_key": "canary"}).to_string(), "without"),
            ("{canary".to_owned(), "without"),
            ("-----BEGIN PRIVATE KEY-----\ncanary".to_owned(), "with"),
            (armoured("PRIVATE KEY", half), "with"),
            (armoured("RSA PRIVATE KEY", b"canary"), "with"),
            (armoured("RSA PRIVATE KEY", &changed), "with"),
            (armoured("PRIVATE KEY", ed25519.as_ref()), "with"),
            (armoured("PUBLIC KEY", b"canary"), "with"),
            (STANDARD.encode(half), "without"),
            (STANDARD.encode(STANDARD.encode("é canary")), "without"),
        ] {
            let error = signing_key(&PrivateKey::new(&*text)).unwrap_err();
            let told = error.to_string();
            let length = text.chars().count();
            let want = format!("it has {length} characters, {header} a PEM header");
            assert!(told.contains(&want), "{told}");
            assert_eq!(error.setting(), "private key");
            let told = format!("{error:?}");
            assert!(!told.contains("canary") && !told.contains("MII"), "{told}");
        }
    }

    fn signature(pkcs1: &[u8]) -> String {
        sign(&EncodingKey::from_rsa_der(pkcs1))
    }

    /// RS256 has no randomness: the same key gives the same signature.
    fn sign(key: &EncodingKey) -> String {
        signed(&Header::new(Algorithm::RS256), &json!({"a": 1}), key).unwrap()
    }
}
