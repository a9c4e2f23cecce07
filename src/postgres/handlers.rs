//! What the protocol's messages do.

use super::copy;
use super::error::{error, fatal, state};
use super::session::{Done, Session, Statement};
use super::settings::REPORTED;
use async_trait::async_trait;
use datafusion::common::ScalarValue;
use futures::{Sink, SinkExt};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, send_execution_response, send_partial_query_response, send_query_response,
    send_ready_for_query,
};
use pgwire::api::results::Response;
use pgwire::api::store::{Entry, MemPortalStore, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, METADATA_APPLICATION_NAME, PgWireConnectionState};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::response::EmptyQueryResponse;
use pgwire::messages::startup::ParameterStatus;
use std::fmt::Debug;
use std::sync::Arc;

/// Of one client.
pub struct Handlers(pub Arc<Session>);

impl Handlers {
    /// Answers a text of statements, one after the other until one fails.
    pub async fn query<C>(&self, client: &mut C, text: &str) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        let statements = Session::read(text)?;
        if statements.is_empty() {
            client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        }
        for statement in &statements {
            match self.run(client, statement, Vec::new(), &Format::UnifiedText).await? {
                Done::Rows(answer) => send_query_response(client, answer, true).await?,
                done => tell(client, done).await?,
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        send_ready_for_query(client, client.transaction_status()).await
    }

    /// Runs a statement, and tells the client of settings that it changed.
    async fn run<C>(
        &self,
        client: &mut C,
        statement: &Statement,
        values: Vec<ScalarValue>,
        format: &Format,
    ) -> PgWireResult<Done>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let application = client.metadata().get(METADATA_APPLICATION_NAME).cloned().unwrap_or_default();
        let status = client.transaction_status();
        let portals = client.portal_store().as_any().downcast_ref::<MemPortalStore<Statement>>();
        let done = self.0.run(statement, values, format, status, &application, portals).await?;
        let Some((name, value)) = statement.sets().and_then(|name| self.0.setting(name)) else { return Ok(done) };
        if name == METADATA_APPLICATION_NAME {
            client.metadata_mut().insert(name.to_owned(), value.clone());
        }
        if REPORTED.contains(&name) {
            let told = ParameterStatus::new(name.to_owned(), value);
            client.feed(PgWireBackendMessage::ParameterStatus(told)).await?;
        }
        Ok(done)
    }
}

/// Tells a client what was done, whatever has no rows.
async fn tell<C>(client: &mut C, done: Done) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    match done {
        Done::Tag(tag) => send_execution_response(client, tag).await,
        Done::Status(tag, status) => {
            client.set_transaction_status(status);
            send_execution_response(client, tag).await
        }
        Done::Copy(answer) => copy::send(client, answer).await,
        Done::Rows(answer) => send_query_response(client, answer, false).await,
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handlers {
    type Statement = Statement;
    type QueryParser = Session;

    fn query_parser(&self) -> Arc<Session> {
        self.0.clone()
    }

    /// Sends rows as they are found: the library would gather them before, in as much memory as the client says.
    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
                return Ok(());
            }
            None => return Err(error(state::NO_CURSOR, format!("portal \"{name}\" does not exist"))),
        };
        let state = portal.state();
        let mut state = state.lock().await;
        if matches!(*state, PortalExecutionState::Initial) {
            // Whatever comes of it, it is not run again.
            *state = PortalExecutionState::Finished;
            let values = Session::values(&portal)?;
            let statement = &portal.statement.statement;
            match self.run(client, statement, values, &portal.result_column_format).await? {
                Done::Rows(answer) => *state = PortalExecutionState::Suspended(answer),
                done => return tell(client, done).await,
            }
        }
        let PortalExecutionState::Suspended(answer) = &mut *state else {
            return Err(error(state::BAD_STATE, format!("portal \"{name}\" cannot be run again")));
        };
        // All of them without a number.
        let most = usize::try_from(message.max_rows).unwrap_or(0);
        let sent = send_partial_query_response(client, answer, most).await;
        if !matches!(sent, Ok(true)) {
            *state = PortalExecutionState::Finished;
        }
        sent.map(|_| ())
    }

    /// Nobody asks for it: executing is all done above.
    async fn do_query<C>(&self, _client: &mut C, _portal: &Portal<Statement>, _most: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(error(state::INTERNAL, "a portal is run by its message"))
    }
}

#[async_trait]
impl CancelHandler for Handlers {
    async fn on_cancel_request(&self, request: CancelRequest) {
        self.0.server.cancels.cancel(request.pid, &request.secret_key);
    }
}

/// An error of the start ends the connection, whatever it is.
pub fn ending(failed: PgWireError) -> PgWireError {
    let info = ErrorInfo::from(failed);
    fatal(&info.code.clone(), info.message)
}
