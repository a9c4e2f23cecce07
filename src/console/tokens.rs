//! Who may ask the console, and for what: whoever has one of `[console] tokens`, or the token that the server made for this
//! machine. Viewers ask; the rest is for operators.

use super::problem::Problem;
use super::{explain, health, sessions, sql, stream, users};
use crate::config::{ConsoleToken, Scram, TokenRole};
use crate::query::{Asker, Sight};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hmac::digest::CtOutput;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// What every token begins with, so that one that got lost is known for what it is.
const PREFIX: &str = "cbt_";
/// Of SCRAM. More would protect passwords that can be guessed, which tokens of 256 random bits cannot.
const ITERATIONS: u32 = 4096;
/// What the log calls the token of this machine. No name in the config has brackets.
const LOCAL: &str = "(local)";

/// The text that lets somebody ask. It is never shown by `{:?}`, and written only to where its owner reads it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// A new one, of 256 random bits.
    pub fn random() -> Self {
        Token(format!("{PREFIX}{}", hex::encode(rand::random::<[u8; 32]>())))
    }

    /// The text itself. Only for handing it to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the config knows it by.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// What the config knows it by where it is the password of a client of PostgreSQL (RFC 5802, RFC 7677).
    pub fn scram(&self) -> Scram {
        self.salted(rand::random(), ITERATIONS)
    }

    fn salted(&self, salt: [u8; 16], iterations: u32) -> Scram {
        let mut block = hmac(self.0.as_bytes(), &[&salt, &1_u32.to_be_bytes()]);
        let mut salted = block;
        for _ in 1..iterations {
            block = hmac(self.0.as_bytes(), &[&block]);
            salted.iter_mut().zip(block).for_each(|(all, one)| *all ^= one);
        }
        Scram {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(hmac(&salted, &[b"Client Key"])).into(),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }
}

/// HMAC-SHA-256 of the parts.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // Keys of any length are taken.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The tokens that are taken.
#[derive(Clone)]
pub struct Tokens(Arc<[Known]>);

struct Known {
    name: Arc<str>,
    role: TokenRole,
    asker: Arc<Asker>,
    /// Compared in constant time.
    sha256: CtOutput<Sha256>,
}

impl Tokens {
    /// Those of the config and the one of this machine.
    pub fn new(configured: &[ConsoleToken], local: &Token) -> Self {
        let known = |name: &str, sha256: [u8; 32], role, asker| Known {
            name: name.into(),
            sha256: CtOutput::new(sha256.into()),
            role,
            asker: Arc::new(asker),
        };
        let local = known(LOCAL, local.sha256(), TokenRole::Operator, Asker::ANYBODY);
        let configured = configured.iter().map(|token| known(&token.name, token.sha256, token.role, asker(token)));
        Tokens(configured.chain([local]).collect())
    }

    /// Lets nobody without a token to these routes, and tells the log of everybody else.
    pub fn guard(self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self, admit))
    }

    /// The token that a request carries; `None` where it carries none that is taken.
    fn known(&self, headers: &HeaderMap) -> Option<&Known> {
        let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let sha256 = CtOutput::new(Sha256::digest(token.trim()));
        self.0.iter().find(|known| known.sha256 == sha256)
    }
}

/// As whom whoever has this token asks.
pub fn asker(token: &ConsoleToken) -> Asker {
    let accounts = (!token.accounts.is_empty()).then(|| token.accounts.iter().cloned().collect());
    let sight = Sight { accounts, data: token.data };
    Asker { sight, max_rows: token.max_rows, timeout: token.timeout.map(|span| span.0) }
}

impl Known {
    /// Why it may not ask at this route, where it may not.
    fn refusal(&self, route: &str) -> Option<&'static str> {
        // Nothing is at an address without a route.
        let asks = [sql::ROUTES, sessions::ROUTES, users::ROUTES, stream::ROUTES].concat();
        if self.role == TokenRole::Operator || route.is_empty() || asks.contains(&route) {
            return None;
        }
        if route == health::METRICS {
            return self.asker.sight.accounts.is_some().then_some("metrics are of all accounts, the token is of some");
        }
        if explain::ROUTES.contains(&route) {
            let is_whole = self.asker.sight == Sight::WHOLE;
            return (!is_whole).then_some("explain shows data of all accounts, which the token does not");
        }
        Some("this is for operators: the token's role is viewer")
    }
}

async fn admit(State(tokens): State<Tokens>, mut request: Request, next: Next) -> Response {
    let Some(known) = tokens.known(request.headers()) else {
        let (method, path) = (request.method(), request.uri().path());
        tracing::warn!(target: "counterbat::access", %method, path, "turned away: no token that is taken");
        let problem = Problem::new(
            StatusCode::UNAUTHORIZED,
            "the request carries none of the tokens in [console] tokens: send `authorization: Bearer <token>`",
        );
        return ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response();
    };
    let (token, method, path) = (known.name.clone(), request.method().clone(), request.uri().path().to_owned());
    let mut visit = Visit { token, method, path, status: None };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let response = match known.refusal(route) {
        Some(why) => Problem::new(StatusCode::FORBIDDEN, why).into_response(),
        None => {
            request.extensions_mut().insert(known.asker.clone());
            next.run(request).await
        }
    };
    visit.status = Some(response.status().as_u16());
    response
}

/// A request with a token. The log is told at its end, whether it was answered or the client left before.
struct Visit {
    token: Arc<str>,
    method: Method,
    path: String,
    status: Option<u16>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Visit { token, method, path, status } = self;
        tracing::info!(target: "counterbat::access", %token, %method, %path, status, "asked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer(name: &str, token: &Token) -> ConsoleToken {
        ConsoleToken {
            name: name.into(),
            sha256: token.sha256(),
            scram: None,
            role: TokenRole::Viewer,
            accounts: Vec::new(),
            data: false,
            max_rows: None,
            timeout: None,
        }
    }

    #[test]
    fn a_viewer_asks_and_an_operator_acts() {
        let token = Token::random();
        let of = |change: &dyn Fn(&mut ConsoleToken)| {
            let mut configured = viewer("one", &token);
            change(&mut configured);
            Tokens::new(&[configured], &Token::random())
        };
        let routes = ["/api/v1/sql", health::METRICS, "/api/v1/explain", "/api/v1/rebuilds", "/api/v1/export"];
        let allowed = |tokens: Tokens| routes.map(|route| tokens.0[0].refusal(route).is_none());
        assert_eq!(allowed(of(&|_| {})), [true, true, false, false, false]);
        assert_eq!(allowed(of(&|token| token.data = true)), [true, true, true, false, false]);
        assert_eq!(allowed(of(&|token| token.accounts = vec!["a".into()])), [true, false, false, false, false]);
        assert_eq!(allowed(of(&|token| token.role = TokenRole::Operator)), [true; 5]);
    }

    #[test]
    fn a_token_is_random_and_not_shown() {
        let token = Token::random();
        assert_ne!(token, Token::random());
        let bits = token.reveal().strip_prefix("cbt_").unwrap();
        assert_eq!(hex::decode(bits).unwrap().len(), 32);
        assert!(!format!("{token:?}").contains(bits));
        let written = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&written).unwrap(), token);
        // `printf %s cbt_x | sha256sum`
        let known = "589e4f861b15d97ca00e20d5bac111547485ee02b9e7686e9203f2fbbb4ec53b";
        assert_eq!(hex::encode(Token("cbt_x".into()).sha256()), known);
    }

    #[test]
    fn a_password_is_salted_as_the_standard_has_it() {
        // RFC 7677, section 3; the keys by Python's hashlib.pbkdf2_hmac and hmac.
        let salt =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, "W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let scram = Token("pencil".into()).salted(salt.try_into().unwrap(), 4096);
        let known = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(scram.to_string(), known);
    }

    #[test]
    fn a_request_is_known_by_its_token() {
        let (grafana, local) = (Token::random(), Token::random());
        let configured = viewer("grafana", &grafana);
        let tokens = Tokens::new(&[configured], &local);
        let name = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            tokens.known(&headers).map(|known| known.name.to_string())
        };
        let (grafana, local) = (grafana.reveal(), local.reveal());
        assert_eq!(name(&format!("Bearer {grafana}")).as_deref(), Some("grafana"));
        assert_eq!(name(&format!("bearer  {local} ")).as_deref(), Some(LOCAL));
        assert!(tokens.known(&HeaderMap::new()).is_none());
        for wrong in [
            grafana.to_owned(),
            format!("Basic {grafana}"),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            format!("Bearer {grafana}0"),
            format!("Bearer {}", &grafana[..grafana.len() - 1]),
            format!("Bearer {}", grafana.to_uppercase()),
            format!("Bearer {grafana} {local}"),
            format!("Bearer {}", Token::random().reveal()),
        ] {
            assert_eq!(name(&wrong), None, "{wrong}");
        }
    }
}
