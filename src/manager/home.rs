//! The socket of a home, for programs: what the pages of the manager ask, and the control socket of each VM
//! that runs under its name.
//!
//! | request | answer |
//! | --- | --- |
//! | all of [`api`] | |
//! | `GET /vms` | all VMs |
//! | `/vms/{vm}`, `/vms/{vm}/...` | what the VM's control socket answers to `/vm`, `/vm/...`; `/vms/{vm}/metrics`: to `/metrics` |
//!
//! Of a VM that is off, its folder answers `GET` of `/vms/{vm}` and of its checkpoints and trash.

use axum::Router;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::header::ORIGIN;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde::Deserialize;

use super::api::{self, Context, Outcome, Problem, error};
use crate::control::client::ClientError;
use crate::control::forward::forward;

pub fn router(context: Context) -> Router {
    let vms = Router::new()
        .route("/vms", get(api::all))
        .route("/vms/{vm}", any(pass_on))
        .route("/vms/{vm}/{*rest}", any(pass_on))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed for this path")
        })
        .with_state(context.clone());
    api::router(context)
        .merge(vms)
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path"))
        .layer(from_fn(no_browser))
}

/// A socket that somebody forwarded to a port must not serve any page that a browser shows.
async fn no_browser(request: Request, next: Next) -> Response {
    if request.headers().contains_key(ORIGIN) || request.headers().contains_key("sec-fetch-site") {
        return error(StatusCode::FORBIDDEN, "browsers are not served here: use `piton manager`")
            .into_response();
    }
    next.run(request).await
}

/// A VM, and what is asked of it.
#[derive(Deserialize)]
struct Place {
    vm: String,
    #[serde(default)]
    rest: String,
}

/// What follows the VM's name.
fn as_it_stands(uri: &Uri) -> &str {
    let path = uri.path().strip_prefix("/vms/").unwrap_or_default();
    path.find('/').map_or("", |at| &path[at..])
}

async fn pass_on(
    State(context): State<Context>,
    UrlPath(decoded): UrlPath<Place>,
    request: Request,
) -> Outcome<Response> {
    let Place { vm, rest } = decoded;
    let folder = api::existing(&context, &vm).await?;
    let path = match as_it_stands(request.uri()) {
        "/metrics" => "/metrics".to_owned(),
        rest => format!("/vm{rest}"),
    };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let target: Uri = format!("{path}{query}")
        .parse()
        .map_err(|_| Problem(StatusCode::BAD_REQUEST, "the path is not one of a URL".into()))?;
    let looks = request.method() == Method::GET;
    match forward(&folder.socket(), target, request).await {
        Err(ClientError::NotRunning) if looks => off(context, vm, &rest).await,
        Err(ClientError::NotRunning) => Err(stopped(&vm)),
        done => Ok(done?),
    }
}

/// What can be said of a VM that is off.
async fn off(context: Context, vm: String, rest: &str) -> Outcome<Response> {
    let (context, name) = (State(context), UrlPath(vm.clone()));
    match rest {
        "" => api::one(context, name).await,
        "checkpoints" => api::tree(context, name).await,
        "trash" => api::trash(context, name).await,
        rest => match rest.strip_prefix("checkpoints/") {
            Some(reference) => api::checkpoint(context, UrlPath((vm, reference.to_owned()))).await,
            None => Err(stopped(&vm)),
        },
    }
}

fn stopped(vm: &str) -> Problem {
    Problem(StatusCode::CONFLICT, format!("the VM `{vm}` is stopped: POST /api/actions starts it"))
}
