//! What a person reads when a step fails.

use nix::errno::Errno;

/// Says what failed and why, in the words that users of Kubernetes know from other runtimes. `steps` are
/// those of the [`Compiled`](super::Compiled) Plan.
#[must_use]
pub fn describe_failure(steps: &[String], step: u32, errno: i32) -> String {
    let what = usize::try_from(step).ok().and_then(|step| steps.get(step));
    if errno & carpel_wire::ENDED != 0 {
        let status = errno & !carpel_wire::ENDED;
        let how = match status & 0x7f {
            0 => format!("exit status {}", status >> 8),
            signal => format!("killed by signal {signal}"),
        };
        return match what {
            Some(what) => format!("{what}: {how}"),
            None => format!("step {step} of the plan: {how}"),
        };
    }
    let error = Errno::from_raw(errno);
    let reason = reason(error, errno);
    let Some(what) = what else {
        return format!("step {step} of the plan: {reason}");
    };
    let Some(program) = what.strip_prefix("exec: ") else {
        return format!("{what}: {reason}");
    };
    let path = program.trim_matches('"');
    match error {
        Errno::ENOENT if !path.contains('/') => {
            format!("{what}: executable file not found in $PATH")
        }
        Errno::ENOENT | Errno::ENOTDIR => format!("{what}: stat {path}: {reason}"),
        _ => format!("{what}: {reason}"),
    }
}

/// "permission denied" rather than "Permission denied".
fn reason(error: Errno, raw: i32) -> String {
    match error {
        Errno::UnknownErrno => return format!("error {raw}"),
        // Of a hook, which has been killed then. No connection was about it.
        Errno::ETIMEDOUT => return "killed: timed out".to_owned(),
        _ => {}
    }
    let text = error.desc();
    let acronym = text
        .chars()
        .nth(1)
        .is_some_and(|second| second.is_uppercase() || second == '/');
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !acronym => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_like_the_peers() {
        let steps = [
            "mount \"/a\" on \"/b\"",
            "exec: \"foo\"",
            "exec: \"/bin/foo\"",
        ]
        .map(String::from);
        for (step, errno, text) in [
            (0, libc::ENOTDIR, "mount \"/a\" on \"/b\": not a directory"),
            (0, libc::EIO, "mount \"/a\" on \"/b\": I/O error"),
            (
                1,
                libc::ENOENT,
                "exec: \"foo\": executable file not found in $PATH",
            ),
            (1, libc::EACCES, "exec: \"foo\": permission denied"),
            (
                2,
                libc::ENOENT,
                "exec: \"/bin/foo\": stat /bin/foo: no such file or directory",
            ),
            (2, libc::ENOEXEC, "exec: \"/bin/foo\": exec format error"),
            (
                7,
                libc::EPERM,
                "step 7 of the plan: operation not permitted",
            ),
            (
                0,
                carpel_wire::ENDED | 3 << 8,
                "mount \"/a\" on \"/b\": exit status 3",
            ),
            (
                9,
                carpel_wire::ENDED | 9,
                "step 9 of the plan: killed by signal 9",
            ),
            (
                0,
                libc::ETIMEDOUT,
                "mount \"/a\" on \"/b\": killed: timed out",
            ),
            (0, 4000, "mount \"/a\" on \"/b\": error 4000"),
        ] {
            assert_eq!(describe_failure(&steps, step, errno), text);
        }
    }
}
