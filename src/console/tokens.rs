//! Who may ask the console: whoever has one of `[console] tokens`, or the token that the server made for this machine.

use super::problem::Problem;
use crate::config::{ConsoleToken, Scram};
use axum::Router;
use axum::extract::{Request, State};
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
    /// Compared in constant time.
    sha256: CtOutput<Sha256>,
}

impl Tokens {
    /// Those of the config and the one of this machine.
    pub fn new(configured: &[ConsoleToken], local: &Token) -> Self {
        let known = |name: &str, sha256: [u8; 32]| Known { name: name.into(), sha256: CtOutput::new(sha256.into()) };
        let configured = configured.iter().map(|token| known(&token.name, token.sha256));
        Tokens(configured.chain([known(LOCAL, local.sha256())]).collect())
    }

    /// Lets nobody without a token to these routes, and tells the log of everybody else.
    pub fn guard(self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self, admit))
    }

    /// The name of the token that a request carries; `None` where it carries none that is taken.
    fn name(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let sha256 = CtOutput::new(Sha256::digest(token.trim()));
        self.0.iter().find(|known| known.sha256 == sha256).map(|known| known.name.clone())
    }
}

async fn admit(State(tokens): State<Tokens>, request: Request, next: Next) -> Response {
    let Some(token) = tokens.name(request.headers()) else {
        let problem = Problem::new(
            StatusCode::UNAUTHORIZED,
            "the request carries none of the tokens in [console] tokens: send `authorization: Bearer <token>`",
        );
        return ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response();
    };
    let mut visit =
        Visit { token, method: request.method().clone(), path: request.uri().path().to_owned(), status: None };
    let response = next.run(request).await;
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
        let configured = ConsoleToken { name: "grafana".into(), sha256: grafana.sha256(), scram: None };
        let tokens = Tokens::new(&[configured], &local);
        let name = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            tokens.name(&headers).map(|name| name.to_string())
        };
        let (grafana, local) = (grafana.reveal(), local.reveal());
        assert_eq!(name(&format!("Bearer {grafana}")).as_deref(), Some("grafana"));
        assert_eq!(name(&format!("bearer  {local} ")).as_deref(), Some(LOCAL));
        assert_eq!(tokens.name(&HeaderMap::new()), None);
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
