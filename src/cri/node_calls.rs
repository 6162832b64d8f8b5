//! The calls about the runtime as a whole.

use carpel_api::cri;
use tonic::Status;

use super::domain::{Domain, NotReady};
use super::validate::{self, Platform};
use super::verbose;

/// What the kubelet wants as the version of its own runtime API.
const KUBELET_API_VERSION: &str = "0.1.0";

pub async fn version() -> Result<cri::VersionResponse, Status> {
    Ok(cri::VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: "carpel".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    })
}

pub async fn status<D: Domain>(
    domain: &D,
    platform: Platform,
    request: cri::StatusRequest,
) -> Result<cri::StatusResponse, Status> {
    let condition = |name: &str, status: Result<(), NotReady>| {
        let (status, why) = match status {
            Ok(()) => (true, NotReady::default()),
            Err(why) => (false, why),
        };
        cri::RuntimeCondition {
            r#type: name.into(),
            status,
            reason: why.reason,
            message: why.message,
        }
    };
    let runtime = condition("RuntimeReady", domain.runtime_status());
    let mut network = condition("NetworkReady", domain.network_status());
    let warnings = domain.network_warnings();
    if network.status && !warnings.is_empty() {
        network.reason = "InvalidConfigPassedOver".into();
        network.message = format!("passed over: {}", warnings.join("; "));
    }
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![runtime, network],
        }),
        info: if request.verbose {
            let mut info = verbose::info("config", &domain.configuration())?;
            info.extend(verbose::info(
                "securityModules",
                &domain.security_modules(),
            )?);
            info
        } else {
            verbose::none()
        },
        runtime_handlers: vec![cri::RuntimeHandler {
            // The default has no name.
            name: String::new(),
            features: Some(cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: platform.recursive_read_only,
                user_namespaces: domain.user_namespaces(),
            }),
        }],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: domain.user_namespaces(),
            // Each option is a bit that mount_setattr(2) sets, without which no mount is made at all.
            mount_options: platform.recursive_read_only,
        }),
    })
}

pub async fn runtime_config() -> Result<cri::RuntimeConfigResponse, Status> {
    Ok(cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration {
            cgroup_driver: cri::CgroupDriver::Cgroupfs.into(),
        }),
    })
}

pub async fn update_runtime_config<D: Domain>(
    domain: &D,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Status> {
    if let Some(cidr) = validate::pod_cidr(request)? {
        domain.set_pod_cidr(&cidr)?;
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}
