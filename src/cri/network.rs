//! carpel.v1 Network: whether a pod's network is as its plugins left it.

use std::sync::Arc;

use carpel_api::carpel::network_server::Network;
use carpel_api::carpel::{CheckNetworkRequest, CheckNetworkResponse};
use tonic::{Request, Response, Status};

use super::domain::Domain;
use super::status::{answer, require_sandbox};
use super::validate;
use crate::network::Checked;

/// The service, over one domain.
#[derive(Debug)]
pub struct OwnNetwork<D>(pub Arc<D>);

#[tonic::async_trait]
impl<D: Domain> Network for OwnNetwork<D> {
    async fn check(
        &self,
        request: Request<CheckNetworkRequest>,
    ) -> Result<Response<CheckNetworkResponse>, Status> {
        let request = request.into_inner();
        let span = tracing::info_span!("CheckNetwork", sandbox.id = request.pod_sandbox_id);
        answer(span, check(&*self.0, request)).await
    }
}

async fn check<D: Domain>(
    domain: &D,
    request: CheckNetworkRequest,
) -> Result<CheckNetworkResponse, Status> {
    let id = validate::sandbox_id(&request.pod_sandbox_id)?;
    let id = require_sandbox(domain, &id)?;
    let answer = CheckNetworkResponse::default();
    Ok(match domain.check_network(&id).await? {
        None => CheckNetworkResponse {
            not_checked: "the pod has no network of its own".into(),
            ..answer
        },
        Some(Checked::Fine { network }) => CheckNetworkResponse { network, ..answer },
        Some(Checked::NotChecked { network, why }) => CheckNetworkResponse {
            network,
            not_checked: why.into(),
            ..answer
        },
        Some(Checked::Wrong { network, problem }) => CheckNetworkResponse {
            network,
            problem,
            ..answer
        },
    })
}
