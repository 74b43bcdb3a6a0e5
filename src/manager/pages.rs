//! The pages: files that are part of the program.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Nothing but what is here, and nothing that is written into a page.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal $kind:ident),* $(,)?) => {
        const FILES: &[(&str, &str, &[u8])] =
            &[$(($name, $kind, include_bytes!(concat!("web/", $name)))),*];
    };
}

files! {
    "actions.js" SCRIPT,
    "app.js" SCRIPT,
    "apply.js" SCRIPT,
    "checkpoint.js" SCRIPT,
    "checkpoints.js" SCRIPT,
    "compare.js" SCRIPT,
    "console.js" SCRIPT,
    "dialogs.js" SCRIPT,
    "dom.js" SCRIPT,
    "list.js" SCRIPT,
    "newvm.js" SCRIPT,
    "prune.js" SCRIPT,
    "settings.js" SCRIPT,
    "store.js" SCRIPT,
    "style.css" STYLE,
    "text.js" SCRIPT,
    "timeline.js" SCRIPT,
    "trash.js" SCRIPT,
    "tree.js" SCRIPT,
    "vm.js" SCRIPT,
    "vmbits.js" SCRIPT,
    "xterm/addon-fit.mjs" SCRIPT,
    "xterm/xterm.css" STYLE,
    "xterm/xterm.mjs" SCRIPT,
}

const ICON: &str = include_str!("web/icon.svg");
const INDEX: &str = include_str!("web/index.html");
const NONCE: &str = "{{nonce}}";

/// The one page. xterm.js makes style elements, which have to carry this page's `nonce`.
pub fn index(nonce: &str) -> Response {
    let mut response = html(StatusCode::OK, INDEX.replace(NONCE, nonce));
    let policy = POLICY.replace("style-src 'self'", &format!("style-src 'self' 'nonce-{nonce}'"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

pub fn file(name: &str) -> Option<Response> {
    if name == "icon.svg" {
        return Some(whole("image/svg+xml", ICON.as_bytes()));
    }
    let (_, kind, bytes) = FILES.iter().find(|(known, ..)| *known == name)?;
    Some(whole(kind, bytes))
}

fn whole(kind: &'static str, bytes: &'static [u8]) -> Response {
    // Another piton may have others under the same name.
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], Body::from(bytes)).into_response()
}

fn html(status: StatusCode, text: String) -> Response {
    (status, [(CONTENT_TYPE, HTML), (CACHE_CONTROL, "no-store")], text).into_response()
}

/// A page without anything but a sentence, which has to be free of markup.
pub fn sentence(status: StatusCode, text: &str) -> Response {
    html(
        status,
        format!(
            "<!doctype html><html lang=en><meta name=color-scheme content=\"light dark\"><title>piton</title><p>{text}</p></html>"
        ),
    )
}

/// Lets the browser go on to the page by itself. To a redirect it would not add the cookie if a page
/// elsewhere led to the link.
pub fn welcome() -> Response {
    html(
        StatusCode::OK,
        "<!doctype html><html lang=en><meta http-equiv=refresh content=\"0;url=/\"><title>piton</title><p><a href=\"/\">piton</a></p></html>"
            .into(),
    )
}
