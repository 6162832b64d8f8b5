//! The requests for a client's streams: exec, attach, port-forward.

use carpel_api::cri;

use super::calls::{IdText, container_and_command, container_id, sandbox_id};
use super::{Field, Rejected};
use crate::streaming::Wanted;

/// Most ports of a request.
const MOST_PORTS: usize = 1024;

/// A checked Exec request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub container: IdText,
    /// Not empty, and neither is the first.
    pub command: Vec<String>,
    pub wanted: Wanted,
}

/// Checks an Exec request.
///
/// # Errors
/// The first field that is wrong.
pub fn exec(request: cri::ExecRequest) -> Result<Exec, Rejected> {
    let container = container_and_command(&request.container_id, &request.cmd)?;
    let about = |rejected: Rejected| rejected.about(&format_args!("container {container}"));
    let wanted = wanted(Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })
    .map_err(about)?;
    Ok(Exec {
        command: request.cmd,
        wanted,
        container,
    })
}

/// Checks an Attach request.
///
/// # Errors
/// The first field that is wrong.
pub fn attach(request: &cri::AttachRequest) -> Result<(IdText, Wanted), Rejected> {
    let container = container_id(&request.container_id)?;
    let wanted = wanted(Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    });
    let wanted = wanted.map_err(|rejected| rejected.about(&format_args!("container {container}")));
    Ok((container.clone(), wanted?))
}

fn wanted(wanted: Wanted) -> Result<Wanted, Rejected> {
    if wanted.tty && wanted.stderr {
        let field = Field::root("stderr");
        return Err(field.invalid("a terminal has no stream of its own for errors"));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let field = Field::root("stdout");
        return Err(field.invalid("one of stdin, stdout and stderr must be asked for"));
    }
    Ok(wanted)
}

/// Checks a PortForward request. No ports: the client names them when it comes.
///
/// # Errors
/// The first field that is wrong.
pub fn port_forward(request: &cri::PortForwardRequest) -> Result<(IdText, Vec<u16>), Rejected> {
    let sandbox = sandbox_id(&request.pod_sandbox_id)?;
    let about = |rejected: Rejected| rejected.about(&format_args!("sandbox {sandbox}"));
    let field = Field::root("port");
    if request.port.len() > MOST_PORTS {
        let count = request.port.len();
        let problem = format_args!("has {count} entries, more than {MOST_PORTS}");
        return Err(about(field.invalid(problem)));
    }
    let ports = request.port.iter().enumerate().map(|(index, &raw)| {
        let port = u16::try_from(raw).ok().filter(|&port| port > 0);
        port.ok_or_else(|| {
            let field = field.index(index);
            about(field.invalid(format_args!("{raw} is no port: 1 to 65535")))
        })
    });
    let ports = ports.collect::<Result<_, _>>()?;
    Ok((sandbox, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: std::fmt::Debug>(result: Result<T, Rejected>) -> String {
        result.expect_err("must be refused").to_string()
    }

    fn request(cmd: &[&str]) -> cri::ExecRequest {
        cri::ExecRequest {
            container_id: "ab".into(),
            cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
            stdout: true,
            ..Default::default()
        }
    }

    #[test]
    fn an_exec_needs_a_program_and_a_stream() {
        let checked = exec(request(&["ls", ""])).expect("a good request");
        assert_eq!(checked.command, ["ls", ""]);
        assert!(checked.wanted.stdout && !checked.wanted.tty);
        assert_eq!(
            text(exec(request(&[]))),
            "cmd: must not be empty (container ab)"
        );
        assert_eq!(
            text(exec(request(&["a", "b\0"]))),
            "cmd[1]: must not contain NUL (container ab)"
        );
        let nowhere = cri::ExecRequest {
            stdout: false,
            ..request(&["ls"])
        };
        assert_eq!(
            text(exec(nowhere)),
            "stdout: one of stdin, stdout and stderr must be asked for (container ab)"
        );
        let unknown = cri::ExecRequest {
            container_id: String::new(),
            ..request(&["ls"])
        };
        assert_eq!(text(exec(unknown)), "container_id: must not be empty");
    }

    #[test]
    fn a_terminal_has_one_output() {
        let both = cri::ExecRequest {
            tty: true,
            stderr: true,
            ..request(&["sh"])
        };
        let refused = "stderr: a terminal has no stream of its own for errors (container ab)";
        assert_eq!(text(exec(both)), refused);
        let mut attached = cri::AttachRequest {
            container_id: "ab".into(),
            stdin: true,
            tty: true,
            stderr: true,
            ..Default::default()
        };
        assert_eq!(text(attach(&attached)), refused);
        attached.stderr = false;
        let (_, wanted) = attach(&attached).expect("a good request");
        assert!(wanted.stdin && wanted.tty && !wanted.stdout);
    }

    #[test]
    fn ports_are_in_range() {
        let request = |port: &[i32]| cri::PortForwardRequest {
            pod_sandbox_id: "ab".into(),
            port: port.to_vec(),
        };
        let (_, ports) = port_forward(&request(&[1, 65535])).expect("a good request");
        assert_eq!(ports, [1, 65535]);
        assert_eq!(
            port_forward(&request(&[])).expect("a good request").1,
            Vec::<u16>::new()
        );
        for bad in [0, -1, 65536] {
            assert_eq!(
                text(port_forward(&request(&[80, bad]))),
                format!("port[1]: {bad} is no port: 1 to 65535 (sandbox ab)")
            );
        }
        assert_eq!(
            text(port_forward(&request(&[1; 1025]))),
            "port: has 1025 entries, more than 1024 (sandbox ab)"
        );
    }
}
