//! Loads compiled seccomp profiles into the running kernel and makes system calls under them.
//!
//! A filter is a thread's: each test loads it in a thread of its own, with no_new_privs, and ends that
//! thread.

use std::io::Error;

use carpel::seccomp::{Program, compile, default_profile, load_profile};
use carpel::spec::capability;

/// Loads `program` into this thread.
fn load(program: &Program) -> Result<(), Error> {
    let length =
        u16::try_from(program.instructions.len() / 8).expect("the kernel takes at most 4096");
    let fprog = libc::sock_fprog {
        len: length,
        filter: program.instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `fprog` describes a live array of `length` instructions, which the kernel copies; neither
    // call touches other memory.
    let result = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags,
            &raw const fprog,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// Makes a system call that has no effect on memory. Returns its errno, 0 if it succeeded.
fn call(number: libc::c_long, arguments: [u64; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: every call of these tests has only numbers for arguments, and null pointers.
    let result = unsafe { libc::syscall(number, a, b, c) };
    if result < 0 {
        Error::last_os_error().raw_os_error().unwrap_or(0)
    } else {
        0
    }
}

fn under(program: std::sync::Arc<Program>, body: impl FnOnce() + Send + 'static) {
    let run = move || {
        load(&program).expect("the kernel takes the filter");
        body();
    };
    std::thread::spawn(run).join().expect("the thread ends");
}

#[test]
fn the_default_profile_holds_in_the_kernel() {
    let program = compile(&default_profile(capability::DEFAULT)).expect("it compiles");
    under(program, || {
        assert_eq!(call(libc::SYS_getpid, [0; 3]), 0);
        assert_eq!(
            call(libc::SYS_unshare, [libc::CLONE_NEWUTS as u64, 0, 0]),
            libc::EPERM
        );
        assert_eq!(call(libc::SYS_clone3, [0; 3]), libc::ENOSYS);
        assert_eq!(call(libc::SYS_keyctl, [0; 3]), libc::EPERM);
        assert_eq!(call(libc::SYS_bpf, [0; 3]), libc::EPERM);
        let socket = |family: libc::c_int| {
            let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
            call(libc::SYS_socket, [family as u64, kind, 0])
        };
        assert_eq!(socket(libc::AF_UNIX), 0);
        assert_eq!(socket(libc::AF_VSOCK), libc::EPERM);
        assert_eq!(socket(libc::AF_ALG), libc::EPERM);
        assert_eq!(call(libc::SYS_personality, [0xffff_ffff, 0, 0]), 0);
        assert_eq!(call(libc::SYS_personality, [0x4_0000, 0, 0]), libc::EPERM);
        assert_eq!(call(5000, [0; 3]), libc::ENOSYS);
        // The profile lets a thread end: what follows is this thread's exit.
    });
}

#[test]
fn a_profile_of_the_node_holds_in_the_kernel() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let profile = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 4294967296, "op": "SCMP_CMP_GE"}]}
        ]}"#;
    std::fs::write(file.path(), profile).expect("a profile");
    let profile = load_profile(file.path(), 0).expect("it is read");
    under(compile(&profile).expect("it compiles"), || {
        assert_eq!(call(libc::SYS_mkdirat, [0; 3]), libc::EROFS);
        assert_eq!(call(libc::SYS_dup, [1 << 32, 0, 0]), libc::EPERM);
        assert_eq!(call(libc::SYS_dup, [0xffff_ffff, 0, 0]), libc::EBADF);
    });
}
