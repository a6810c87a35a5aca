//! What is read from what is answered.

use std::time::Duration;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::super::super::Expiry;
use super::super::super::http::Body;
use super::*;

fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: None,
        body: Body {
            bytes: Zeroizing::new(body.as_bytes().to_vec()),
            broken: None,
        },
    }
}

/// The answer to a refresh.
fn read(shape: &ResponseShape, answer: Answer) -> Result<TokenResponse, ProviderError> {
    shape.read(answer, Sent::RefreshToken("rt-secret"))
}

fn ok(shape: &ResponseShape, body: &str) -> TokenResponse {
    read(shape, answer(200, body)).unwrap()
}

fn plain() -> ResponseShape {
    ResponseShape::default()
}

fn after(seconds: f64) -> Expiry {
    Expiry::After(Duration::from_secs_f64(seconds))
}

fn at(seconds: u64) -> Expiry {
    Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[test]
fn expiry_is_read_in_every_unit_and_never_invented() {
    for (member, want) in [
        (r#""expires_in":3600"#, after(3600.0)),
        (r#""expires_in":"3600""#, after(3600.0)),
        (r#""expires_in":" 3600 ""#, after(3600.0)),
        (r#""expires_in":3599.5"#, after(3599.5)),
        (r#""expiresIn":60"#, after(60.0)),
        (r#""data":{"expires_in":60}"#, after(60.0)),
        (r#""expires_in":1800000000"#, at(1_800_000_000)),
        (r#""expires_in":1800000000000"#, at(1_800_000_000)),
        (r#""expires_at":1800000000"#, at(1_800_000_000)),
        (r#""expires_at":"1800000000000""#, at(1_800_000_000)),
        (r#""expires_at":"2027-01-15T08:00:00Z""#, at(1_800_000_000)),
        (
            r#""expiresAt":"2027-01-15T08:00:00.25z""#,
            Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_250)),
        ),
        (
            r#""expires_at":"2027-01-15T09:30:00+01:30""#,
            at(1_800_000_000),
        ),
        (
            r#""expires_at":"2027-01-14T23:00:00-0900""#,
            at(1_800_000_000),
        ),
        (r#""expires_at":"2027-01-15 08:00:00""#, at(1_800_000_000)),
        (r#""expires_at":"2028-02-29T00:00:00Z""#, at(1_835_395_200)),
        (r#""expires_at":"2028-03-01T00:00:00Z""#, at(1_835_481_600)),
        (r#""expires_at":"2027-13-15T08:00:00Z""#, Expiry::Unknown),
        (r#""expires_at":"2027-01-15T25:00:00Z""#, Expiry::Unknown),
        (r#""expires_at":"2027-01-15T08:00:00+é1""#, Expiry::Unknown),
        (r#""expires_at":"0000-00-00T00:00:00Z""#, Expiry::Unknown),
        (r#""expires_at":"tomorrow, 8 T""#, Expiry::Unknown),
        (r#""expires_in":"0:02:00""#, after(7_200.0)),
        (r#""expires_in":"1:00:30""#, after(88_200.0)),
        (r#""expires_in":"0:00:00""#, Expiry::Unknown),
        (r#""expires_in":"a:b:c""#, Expiry::Unknown),
        (r#""expires_in":0"#, Expiry::Unknown),
        (
            r#""expires_in":0,"expires_at":1800000000"#,
            at(1_800_000_000),
        ),
        (
            r#""expires_in":{},"expires_at":1800000000"#,
            at(1_800_000_000),
        ),
        (r#""expires_in":-1"#, Expiry::Unknown),
        (r#""expires_in":null"#, Expiry::Unknown),
        (r#""expires_in":"""#, Expiry::Unknown),
        (r#""expires_in":"soon""#, Expiry::Unknown),
        (r#""expires_in":"NaN""#, Expiry::Unknown),
        (r#""expires_in":[60]"#, Expiry::Unknown),
        (r#""expires_in":true"#, Expiry::Unknown),
        (r#""expires_in":1e300"#, Expiry::Unknown),
        (r#""token_type":"x""#, Expiry::Unknown),
    ] {
        let response = ok(&plain(), &format!(r#"{{"access_token":"a",{member}}}"#));
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[test]
fn what_no_guess_finds_out_is_data() {
    let never = || plain().expiry_if_missing(Expiry::Never);
    let hour = || plain().expiry_if_missing(after(3_600.0));
    for (shape, member, want) in [
        (
            plain().milliseconds(),
            r#""expires_in":3600000"#,
            after(3_600.0),
        ),
        (
            plain().milliseconds(),
            r#""expires_in":1800000000000"#,
            at(1_800_000_000),
        ),
        (
            plain().expiry_at("exp"),
            r#""exp":1800000000"#,
            at(1_800_000_000),
        ),
        (plain().expiry_at("t.ttl"), r#""t":{"ttl":60}"#, after(60.0)),
        (plain().expiry_at("ttl"), r#""expires_in":60"#, after(60.0)),
        (
            plain().expiry_always(after(60.0)),
            r#""expires_in":3600"#,
            after(60.0),
        ),
        (hour(), r#""expires_in":60"#, after(60.0)),
        (hour(), r#""scope":"x""#, after(3_600.0)),
        (hour(), r#""expires_in":"soon""#, after(3_600.0)),
        (never(), r#""expires_in":60"#, after(60.0)),
        (never(), r#""scope":"x""#, Expiry::Never),
        (never(), r#""expires_in":null"#, Expiry::Never),
        (never(), r#""expires_in":0"#, Expiry::Never),
        // It is an expiry, and nobody can read it.
        (never(), r#""expires_in":"soon""#, Expiry::Unknown),
    ] {
        let response = ok(&shape, &format!(r#"{{"access_token":"a",{member}}}"#));
        assert_eq!(response.expiry, want, "{member} {shape:?}");
    }
}

#[test]
fn a_jwt_tells_its_own_expiry_where_the_answer_does_not() {
    let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":1800000000}"#);
    let jwt = format!("e30.{claims}.c2ln");
    for (member, want) in [
        (r#""expires_in":60"#, after(60.0)),
        (r#""expires_in":0"#, at(1_800_000_000)),
        (r#""expires_in":"soon""#, at(1_800_000_000)),
        (r#""scope":"x""#, at(1_800_000_000)),
    ] {
        let shape = plain().expiry_if_missing(Expiry::Never);
        let response = ok(&shape, &format!(r#"{{"access_token":"{jwt}",{member}}}"#));
        assert_eq!(response.expiry, want, "{member}");
    }
}

#[test]
fn tokens_are_found_in_every_place_and_encoding() {
    let shape = plain().access_token("token").refresh_token("t.renew");
    for body in [
        r#"{"access_token":"a","refresh_token":"r"}"#,
        r#"{"accessToken":"a","refreshToken":"r"}"#,
        r#"{"data":{"access_token":"a","refresh_token":"r"}}"#,
        r#"{"data":{"accessToken":"a","refreshToken":"r"},"code":0}"#,
        r#"{"access_token":" a\n","refresh_token":"r\n"}"#,
        "access_token=a&refresh_token=r&token_type=bearer",
        r#"{"token":"a","t":{"renew":"r"}}"#,
        r#"{"token":"a","access_token":"other","t":{"renew":"r"}}"#,
        "\u{feff}{\"access_token\":\"a\",\"refresh_token\":\"r\"}\n",
        r#"{"access_token":"a","refresh_token":"r"} trailing"#,
    ] {
        let response = ok(&shape, body);
        assert_eq!(response.access_token.expose(), "a", "{body}");
        assert_eq!(response.refresh_token.unwrap().expose(), "r", "{body}");
    }
}

#[test]
fn a_spent_token_is_not_lost_to_a_member_that_cannot_be_read() {
    for member in [
        r#""expires_in":{"a":[1]}"#,
        r#""expires_in":1e999"#,
        r#""expires_at":"yesterday","scope":["a","b"]"#,
        r#""scope":{"a":1},"token_type":7"#,
        r#""error":null"#,
        r#""error":"","error_description":5"#,
        r#""error":"a_warning""#,
        r#""user":{"name":"half an emoji \ud83d"}"#,
        "\"user\":{\"name\":\"a raw\nbreak, and \\\"quotes\\\"\",\"refresh_token\":\"not mine\"}",
        r#""user":{"access_token":"not mine"},"n":1e999"#,
        r#""id_token":false,"refresh_token_expires_in":[]"#,
    ] {
        for body in [
            format!(r#"{{{member},"access_token":"a","refresh_token":"r\u0021"}}"#),
            format!(r#"{{"access_token":"a","refresh_token":"r!",{member}}}"#),
        ] {
            let response = ok(&plain(), &body);
            assert_eq!(response.access_token.expose(), "a", "{body}");
            assert_eq!(response.refresh_token.unwrap().expose(), "r!", "{body}");
        }
    }
    let mut latin_1 = br#"{"name":"Andr"#.to_vec();
    latin_1.extend(b"\xe9\",\"access_token\":\"a\",\"expires_in\":60}");
    let mut in_latin_1 = answer(200, "");
    in_latin_1.body.bytes = Zeroizing::new(latin_1);
    let response = read(&plain(), in_latin_1).unwrap();
    assert_eq!(response.expiry, after(60.0));
    let numeric = ok(&plain(), r#"{"access_token":7,"refresh_token":8}"#);
    assert_eq!(numeric.refresh_token.unwrap().expose(), "8");
    let broken = ok(
        &plain(),
        r#"{"access_token":"a","expires_in":60,"n":1e999}"#,
    );
    assert_eq!(broken.expiry, after(60.0));
}

#[test]
fn an_omitted_refresh_token_is_none_not_blank() {
    for body in [
        r#"{"access_token":"a"}"#,
        r#"{"access_token":"a","refresh_token":""}"#,
        r#"{"access_token":"a","refresh_token":null}"#,
        r#"{"access_token":"a","refresh_token":{}}"#,
    ] {
        assert!(ok(&plain(), body).refresh_token.is_none(), "{body}");
    }
    let shape = plain().ignore_refresh_token();
    let body = r#"{"access_token":"a","refresh_token":"r"}"#;
    assert!(ok(&shape, body).refresh_token.is_none());
}

#[test]
fn the_expiry_of_the_refresh_token_is_read_where_it_is_said() {
    for (member, want) in [
        (
            r#""refresh_token_expires_in":15811200"#,
            after(15_811_200.0),
        ),
        (r#""refresh_token_expires_in":"60""#, after(60.0)),
        (r#""refresh_expires_in":60"#, after(60.0)),
        (r#""refresh_expires_in":0"#, Expiry::Unknown),
        (r#""expires_in":60"#, Expiry::Unknown),
    ] {
        let response = ok(&plain(), &format!(r#"{{"access_token":"a",{member}}}"#));
        assert_eq!(response.refresh_expiry, want, "{member}");
    }
}

#[test]
fn only_a_refusal_ends_a_login() {
    use ProviderErrorKind::Ambiguous;
    use ProviderErrorKind::Misconfigured;
    use ProviderErrorKind::Terminal;
    use ProviderErrorKind::Transient;

    let shape = plain()
        .error("code")
        .error_kind("gone", Terminal)
        .error_kind("invalid_request", Misconfigured)
        .error_kind("invalid_request", Terminal)
        .error_kind("70011", Misconfigured);
    for (status, body, want) in [
        (400, r#"{"error":"invalid_grant"}"#, Terminal),
        (401, r#"{"error":"invalid_grant"}"#, Terminal),
        (403, r#"{"error":"invalid_grant"}"#, Terminal),
        (200, r#"{"error":"invalid_grant"}"#, Terminal),
        (200, r#"{"ok":false,"error":"gone"}"#, Terminal),
        (400, r#"{"error":{"code":"invalid_grant"}}"#, Terminal),
        (400, "error=invalid_grant&error_description=x", Terminal),
        (400, r#"{"errorCode":"gone"}"#, Terminal),
        (400, r#"{"code":"gone"}"#, Terminal),
        (400, r#"{"error":"invalid_request"}"#, Terminal),
        (400, r#"{"code":70011}"#, Misconfigured),
        (
            400,
            r#"{"error":"invalid_grant","access_token":"a"}"#,
            Terminal,
        ),
        (500, r#"{"error":"invalid_grant"}"#, Transient),
        (429, r#"{"error":"invalid_grant"}"#, Transient),
        (408, r#"{"error":"invalid_grant"}"#, Transient),
        (404, r#"{"error":"invalid_grant"}"#, Transient),
        (503, r#"{"error":"gone"}"#, Transient),
        (404, r#"{"error":"gone"}"#, Transient),
        (408, r#"{"error":"invalid_client"}"#, Transient),
        (401, r#"{"error":"invalid_client"}"#, Misconfigured),
        (400, r#"{"error":"unauthorized_client"}"#, Misconfigured),
        (503, r#"{"error":"invalid_client"}"#, Transient),
        (
            400,
            r#"{"error":"something_new"}"#,
            ProviderErrorKind::Rejected,
        ),
        (400, "<html>Bad Request</html>", Transient),
        (401, "", Transient),
        (302, "", Transient),
        (429, "", Transient),
        (502, "<html></html>", Transient),
        (500, r#"{"access_token":"a"}"#, Transient),
        (200, "<html>maintenance=1</html>", Ambiguous),
        (200, r#"{"access_tok"#, Ambiguous),
        (
            200,
            r#"{"access_token":"a","refresh_token":"cut sho"#,
            Ambiguous,
        ),
        (200, r#"{"access_token":{}}"#, Ambiguous),
        (200, "[]", Ambiguous),
        (204, "", Ambiguous),
    ] {
        let error = read(&shape, answer(status, body)).unwrap_err();
        assert_eq!(error.kind(), want, "{status} {body}");
    }
}

#[test]
fn an_answer_of_which_only_the_status_came_is_read_by_the_status() {
    for (status, want) in [
        (200, ProviderErrorKind::Ambiguous),
        (201, ProviderErrorKind::Ambiguous),
        (400, ProviderErrorKind::Transient),
        (429, ProviderErrorKind::Transient),
        (500, ProviderErrorKind::Transient),
    ] {
        let retry_after = Some(Duration::from_secs(7));
        let mut broken = answer(status, "");
        broken.retry_after = retry_after;
        broken.body.broken = Some("it broke off".into());
        let error = read(&plain(), broken).unwrap_err();
        assert_eq!(error.kind(), want, "{status}");
        assert_eq!(error.retry_after(), retry_after);
    }
}

#[test]
fn what_the_provider_wrote_is_logged_only_if_it_looks_like_a_code() {
    let longest = "a".repeat(64);
    for (code, want) in [
        ("invalid_grant", "invalid_grant"),
        ("AADSTS:50.1-2_x", "AADSTS:50.1-2_x"),
        (&*longest, &*longest),
        (&format!("{longest}a"), "unprintable"),
        ("a\\u001b[31mb\\u2028", "unprintable"),
        ("é", "unprintable"),
        ("unknown refresh token rt-secret", "unprintable"),
        ("unknown:rt-secret", "unprintable"),
    ] {
        let body = format!(r#"{{"error":"{code}"}}"#);
        let error = read(&plain(), answer(400, &body)).unwrap_err();
        assert_eq!(error.code(), Some(want), "{code}");
    }
}

#[test]
fn what_is_salvaged_includes_data_and_nothing_beside_it() {
    for member in [
        r#""name":"half an emoji \ud83d""#,
        r#""user":{"access_token":"not mine","n":1e999}"#,
        r#""n":1e999,"users":[{"access_token":"not mine"}]"#,
    ] {
        for body in [
            format!(
                r#"{{{member},"data":{{"access_token":"a","refresh_token":"r","expires_in":60}}}}"#
            ),
            format!(
                r#"{{"data":{{"access_token":"a","refresh_token":"r","expires_in":60}},{member}}}"#
            ),
            format!(
                r#"{{"data":{{"access_token":"a",{member},"refresh_token":"r","expires_in":60}}}}"#
            ),
        ] {
            let response = ok(&plain(), &body);
            assert_eq!(response.access_token.expose(), "a", "{body}");
            assert_eq!(response.refresh_token.unwrap().expose(), "r", "{body}");
            assert_eq!(response.expiry, after(60.0), "{body}");
        }
    }
}

#[test]
fn what_a_code_means_may_hang_on_another_member() {
    use ProviderErrorKind::Rejected;
    use ProviderErrorKind::Terminal;
    use ProviderErrorKind::Transient;

    let shape = plain()
        .error_kind("c", ProviderErrorKind::Misconfigured)
        .error_kind_if("c", "why.text", "Busy", Transient)
        .error_kind_if("c", "why.codes", "50196", Transient)
        .error_kind_if("c", "why.text", "busy elsewhere", Rejected);
    for (status, why, want) in [
        (400, r#"{"text":"we are BUSY now"}"#, Transient),
        (400, r#"{"text":["other","Busy"]}"#, Transient),
        (400, r#"{"text":"busy elsewhere"}"#, Rejected),
        (400, r#"{"codes":50196}"#, Transient),
        (400, r#"{"codes":[1,50196]}"#, Transient),
        (400, r#"{"codes":["AADSTS50196"]}"#, Transient),
        (
            400,
            r#"{"codes":[150196]}"#,
            ProviderErrorKind::Misconfigured,
        ),
        (
            400,
            r#"{"text":{"a":"busy"}}"#,
            ProviderErrorKind::Misconfigured,
        ),
        (400, "{}", ProviderErrorKind::Misconfigured),
        (503, r#"{"text":"busy elsewhere"}"#, Transient),
    ] {
        let body = format!(r#"{{"error":"c","why":{why}}}"#);
        let error = read(&shape, answer(status, &body)).unwrap_err();
        assert_eq!(error.kind(), want, "{status} {body}");
    }
    let dead = plain().error_kind_if("c", "why", "dead", Terminal);
    for (status, want) in [(403, Terminal), (404, Transient), (500, Transient)] {
        let body = r#"{"error":"c","why":"dead"}"#;
        let error = read(&dead, answer(status, body)).unwrap_err();
        assert_eq!(error.kind(), want, "{status}");
    }
}
