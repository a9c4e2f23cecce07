//! What the protocol's messages do.

use super::command::Command;
use super::error::fatal;
use super::session::{Session, Statement};
use super::settings::REPORTED;
use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::cancel::CancelHandler;
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler, send_query_response};
use pgwire::api::results::Response;
use pgwire::api::store::{Entry, MemPortalStore, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, METADATA_APPLICATION_NAME, PgWireConnectionState};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::response::TransactionStatus;
use pgwire::messages::startup::ParameterStatus;
use std::fmt::Debug;
use std::sync::Arc;

/// Of one client.
pub struct Handlers(pub Arc<Session>);

fn application<C: ClientInfo>(client: &C) -> String {
    client.metadata().get(METADATA_APPLICATION_NAME).cloned().unwrap_or_default()
}

impl Handlers {
    /// Runs a statement, and tells the client of settings that it changed.
    async fn run<C>(
        &self,
        client: &mut C,
        statement: &Statement,
        values: Vec<datafusion::common::ScalarValue>,
        format: &Format,
        status: TransactionStatus,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let application = application(client);
        let portals = client.portal_store().as_any().downcast_ref::<MemPortalStore<Statement>>();
        let done = self.0.run(statement, values, format, status, &application, portals).await?;
        if let Command::Set { name, .. } = &statement.command
            && let Some((name, value)) = self.0.setting(name)
        {
            if name == METADATA_APPLICATION_NAME {
                client.metadata_mut().insert(name.to_owned(), value.clone());
            }
            if REPORTED.contains(&name) {
                let told = ParameterStatus::new(name.to_owned(), value);
                client.feed(PgWireBackendMessage::ParameterStatus(told)).await?;
            }
        }
        Ok(done)
    }
}

#[async_trait]
impl SimpleQueryHandler for Handlers {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = Session::read(query)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut status = client.transaction_status();
        let mut done = Vec::with_capacity(statements.len());
        for statement in &statements {
            let response = match self.run(client, statement, Vec::new(), &Format::UnifiedText, status).await {
                Ok(response) => response,
                Err(failed) if done.is_empty() => return Err(failed),
                // What was done before is told before.
                Err(failed) => {
                    done.push(Response::Error(Box::new(ErrorInfo::from(failed))));
                    break;
                }
            };
            status = match response {
                Response::TransactionStart(_) => TransactionStatus::Transaction,
                Response::TransactionEnd(_) => TransactionStatus::Idle,
                _ => status,
            };
            done.push(response);
        }
        Ok(done)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handlers {
    type Statement = Statement;
    type QueryParser = Session;

    fn query_parser(&self) -> Arc<Session> {
        self.0.clone()
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) if message.max_rows <= 0 => portal,
            _ => return self._on_execute(client, message).await,
        };
        let is_new = matches!(*portal.state().lock().await, PortalExecutionState::Initial);
        if !is_new || portal.statement.statement.command != Command::Query {
            return self._on_execute(client, message).await;
        }
        // The rows go out as they are found: the library would gather them all before.
        client.set_state(PgWireConnectionState::QueryInProgress);
        if let Response::Query(answer) = ExtendedQueryHandler::do_query(self, client, &portal, 0).await? {
            *portal.state().lock().await = PortalExecutionState::Finished;
            send_query_response(client, answer, false).await?;
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Statement>, _max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let (values, status) = (Session::values(portal)?, client.transaction_status());
        self.run(client, &portal.statement.statement, values, &portal.result_column_format, status).await
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
