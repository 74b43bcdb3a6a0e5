//! One door for pages and requests: who comes in is checked, and what goes out says what a browser
//! may do with it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use super::api::{self, Context, error};
use super::gate::{Gate, Refusal};
use super::pages;
use crate::id::Id;

/// Told the token of each new link.
pub type NewLink = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Clone)]
pub struct Door {
    pub gate: Arc<Gate>,
    pub new_link: NewLink,
}

pub fn router(door: Door, context: Context) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{*file}", get(asset))
        // Browsers ask for it on their own.
        .route("/favicon.ico", get(async || asset(UrlPath("icon.svg".into())).await))
        .merge(api::router(context))
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path"))
        .layer(from_fn_with_state(door, check))
}

async fn index() -> Response {
    match Id::random() {
        Ok(nonce) => pages::index(&nonce.to_string()),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

async fn asset(UrlPath(name): UrlPath<String>) -> Response {
    pages::file(&name).unwrap_or_else(|| error(StatusCode::NOT_FOUND, "no such file"))
}

#[derive(Deserialize)]
struct LinkQuery {
    token: Option<String>,
}

/// Everything that is answered goes through here.
async fn check(State(door): State<Door>, request: Request, next: Next) -> Response {
    let mut response = match door.gate.check_source(request.method(), request.headers()) {
        Err(refusal) => refuse(&request, refusal),
        Ok(()) => match token(&request) {
            Some(token) => welcome(&door, &request, &token),
            None => match door.gate.check_session(request.headers()) {
                Err(refusal) => refuse(&request, refusal),
                Ok(()) => next.run(request).await,
            },
        },
    };
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    default(CONTENT_SECURITY_POLICY, pages::POLICY);
    default(X_FRAME_OPTIONS, "DENY");
    default(X_CONTENT_TYPE_OPTIONS, "nosniff");
    default(REFERRER_POLICY, "no-referrer");
    default(CACHE_CONTROL, "no-store");
    default(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    default(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    response
}

/// Of a request that comes by a link.
fn token(request: &Request) -> Option<String> {
    if request.uri().path() != "/" {
        return None;
    }
    let query = Query::<LinkQuery>::try_from_uri(request.uri()).ok()?;
    query.0.token
}

fn welcome(door: &Door, request: &Request, token: &str) -> Response {
    let cookie = match door.gate.let_in(token) {
        Ok(Some(cookie)) => cookie,
        // Who has been let in already may have gone back to the link.
        Ok(None) if door.gate.check_session(request.headers()).is_ok() => return pages::welcome(),
        Ok(None) => return refuse(request, Refusal::Link),
        Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    };
    match door.gate.new_link() {
        Ok(token) => (door.new_link)(&token),
        Err(e) => log::warn!("there is no link for another browser: {e}"),
    }
    let mut response = pages::welcome();
    match HeaderValue::from_str(&cookie) {
        Ok(cookie) => drop(response.headers_mut().insert(SET_COOKIE, cookie)),
        Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
    response
}

/// As a page to who wants a page.
fn refuse(request: &Request, refusal: Refusal) -> Response {
    if request.uri().path() == "/" {
        return pages::sentence(refusal.status(), &refusal.to_string());
    }
    error(refusal.status(), refusal.to_string()).into_response()
}
