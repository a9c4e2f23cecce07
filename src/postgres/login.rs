//! Lets clients in: everybody where no tokens are asked for, else whoever proves to have one (SCRAM-SHA-256).

use super::Server;
use super::error::{fatal, state};
use super::handlers::{Handlers, ending};
use super::scram::{Challenge, MECHANISM, Refused};
use super::session::{Login, held};
use super::settings::REPORTED;
use crate::config::Scram;
use crate::console::tokens::{asker, hmac};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::{Sink, SinkExt};
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_APPLICATION_NAME, METADATA_USER, PgWireConnectionState, PidSecretKeyGenerator};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::startup::{Authentication, PasswordMessageFamily};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

impl Server {
    /// What is known of a user. Where nothing is it is made up, the same each time: nobody finds out names by asking.
    fn scram(&self, user: &str) -> Scram {
        let known = self.tokens.iter().find(|token| token.name == user).and_then(|token| token.scram.clone());
        known.unwrap_or_else(|| {
            let made_up = |what: &str| hmac(&self.disguise, &[what.as_bytes(), user.as_bytes()]);
            let salt = made_up("salt")[..16].to_vec();
            Scram { iterations: 4096, salt, stored_key: made_up("stored"), server_key: made_up("server") }
        })
    }

    /// Tells the log of somebody who was not let in, and why where the config is the reason.
    fn tell_refused(&self, user: &str) {
        // Somebody may have given the token for the name.
        let token = self.tokens.iter().find(|token| token.name == user);
        let no_scram = token.is_some_and(|token| token.scram.is_none());
        let why =
            no_scram.then_some("its entry in [console] tokens has no scram: `counterbat token new` makes one that has");
        let user = token.map(|token| &*token.name);
        tracing::warn!(target: "counterbat::access", user, why, "a PostgreSQL client was not let in");
    }
}

/// What a client says first, after the mechanism that it has chosen (PostgreSQL, protocol, SASLInitialResponse).
fn first(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(MECHANISM.as_bytes())?.strip_prefix(b"\0")?;
    let (length, said) = rest.split_first_chunk()?;
    (usize::try_from(i32::from_be_bytes(*length)) == Ok(said.len())).then_some(said)
}

impl Handlers {
    async fn start<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => {
                protocol_negotiation(client, &startup).await?;
                save_startup_parameters_to_metadata(client, &startup);
                for (name, value) in &startup.parameters {
                    self.0.set_at_start(name, value)?;
                }
                if self.0.server.tokens.is_empty() {
                    return self.admit(client).await;
                }
                client.set_state(PgWireConnectionState::AuthenticationInProgress);
                let mechanisms = Authentication::SASL(vec![MECHANISM.to_owned()]);
                client.send(PgWireBackendMessage::Authentication(mechanisms)).await?;
                Ok(())
            }
            PgWireFrontendMessage::PasswordMessageFamily(message) => self.prove(client, message).await,
            _ => Err(fatal(state::PROTOCOL, "a message that does not belong to the start")),
        }
    }

    async fn prove<C>(&self, client: &mut C, message: PasswordMessageFamily) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let user = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
        let refused = |why: Refused| match why {
            Refused::Malformed => fatal(state::PROTOCOL, "malformed SCRAM message"),
            Refused::Wrong => {
                self.0.server.tell_refused(&user);
                fatal(state::NOT_ADMITTED, format!("password authentication failed for user \"{user}\""))
            }
        };
        // What kind of answer it is is known by who reads it.
        let PasswordMessageFamily::Raw(body) = message else { return Err(refused(Refused::Malformed)) };
        let login = held(&self.0.login).clone();
        match login {
            Login::Started => {
                let first = first(&body).ok_or(Refused::Malformed).map_err(refused)?;
                let nonce = BASE64.encode(rand::random::<[u8; 18]>());
                let scram = self.0.server.scram(&user);
                let challenge = Challenge::new(scram, first, &nonce).map_err(refused)?;
                let question = challenge.question().to_owned();
                *held(&self.0.login) = Login::Asked(Box::new(challenge));
                let question = Authentication::SASLContinue(question.into());
                client.send(PgWireBackendMessage::Authentication(question)).await?;
                Ok(())
            }
            Login::Asked(challenge) => {
                let proof = challenge.check(&body).map_err(refused)?;
                client.feed(PgWireBackendMessage::Authentication(Authentication::SASLFinal(proof.into()))).await?;
                if let Some(token) = self.0.server.tokens.iter().find(|token| token.name == user) {
                    *held(&self.0.asker) = Arc::new(asker(token));
                }
                *held(&self.0.token) = Some(user);
                self.admit(client).await
            }
        }
    }

    async fn admit<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let Some(token) = &*held(&self.0.token) {
            let application = client.metadata().get(METADATA_APPLICATION_NAME).map_or("", String::as_str);
            tracing::info!(target: "counterbat::access", token, application, "a PostgreSQL client was let in");
        }
        let server = &self.0.server;
        let (pid, key) = server.keys.generate(client);
        client.set_pid_and_secret_key(pid, key.clone());
        server.cancels.add(pid, key, self.0.cancelled.clone());
        *held(&self.0.pid) = Some(pid);
        finish_authentication(client, self).await
    }
}

impl ServerParameterProvider for Handlers {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let told = REPORTED.iter().filter_map(|name| self.0.setting(name));
        let mut told: HashMap<String, String> = told.map(|(name, value)| (name.to_owned(), value)).collect();
        let user = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
        told.insert("session_authorization".to_owned(), user);
        Some(told)
    }
}

#[async_trait]
impl StartupHandler for Handlers {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.start(client, message).await.map_err(ending)
    }
}
