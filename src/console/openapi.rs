//! `GET /openapi.json`: the console's interface as OpenAPI 3.1, made from the handlers themselves.

use super::problem::Document;
use super::{accounts, explain, health, rebuilds, redeliver, sessions, sql, stream, transfer, users, verify};
use axum::Router;
use axum::http::header;
use axum::routing::get;
use std::sync::LazyLock;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, OpenApi as Described};
use utoipa::{Modify, OpenApi};

/// The routes.
pub const ROUTES: &[&str] = &["/openapi.json"];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Counterbat",
        description = "SQL over billing sessions, how things stand with a user now, and what operators do. Where [console] tokens \
                       are set, each request carries one of them: `authorization: Bearer <token>`. message_token is a u64, and \
                       a text in JSON so that nothing rounds it; money is a decimal number as text; times are RFC 3339 in UTC."
    ),
    paths(
        sql::answer,
        sessions::list,
        sessions::one,
        users::user,
        users::quote,
        stream::follow,
        explain::explain,
        transfer::import,
        transfer::export,
        redeliver::redeliver,
        rebuilds::list,
        rebuilds::ask,
        rebuilds::one,
        rebuilds::remove,
        verify::verify,
        accounts::list,
        accounts::add,
        accounts::show,
        accounts::adjust,
        accounts::remove,
        accounts::rotate,
        health::healthz,
        health::ready,
        health::render,
    ),
    components(schemas(Document)),
    tags(
        (name = "ask", description = "For everybody with a token"),
        (name = "operate", description = "For tokens with role = \"operator\""),
        (name = "watch", description = "For whatever watches the process"),
    ),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Api;

struct Token;

impl Modify for Token {
    fn modify(&self, api: &mut Described) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        api.components.get_or_insert_with(Components::new).add_security_scheme("token", scheme);
    }
}

/// The document.
fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        // Texts, numbers, lists and maps: nothing that JSON could not say.
        Api::openapi().to_pretty_json().unwrap_or_default()
    });
    &DOCUMENT
}

/// The route.
pub fn router() -> Router {
    Router::new().route(ROUTES[0], get(async || ([(header::CONTENT_TYPE, "application/json")], document())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_described() {
        let all = [
            accounts::ROUTES,
            explain::ROUTES,
            rebuilds::ROUTES,
            redeliver::ROUTES,
            sessions::ROUTES,
            sql::ROUTES,
            stream::ROUTES,
            transfer::ROUTES,
            users::ROUTES,
            verify::ROUTES,
            &["/healthz", "/readyz", health::METRICS],
        ];
        let described: BTreeSet<String> = Api::openapi().paths.paths.into_keys().collect();
        assert_eq!(described, all.concat().into_iter().map(str::to_owned).collect());
        let document: serde_json::Value = serde_json::from_str(document()).unwrap();
        assert_eq!(
            (document["openapi"].as_str(), document["info"]["version"].as_str()),
            (Some("3.1.0"), Some(env!("CARGO_PKG_VERSION")))
        );
    }
}
