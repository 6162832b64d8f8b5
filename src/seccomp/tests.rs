use std::collections::BTreeSet;
use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscallBuilder,
};
use proptest::prelude::*;

use super::arch::{Abi, X32_BIT};
use super::bpf::{AND, ARCH, ARGUMENTS, JUMP, JUMP_EQ, JUMP_GE, JUMP_GT, LOAD, NUMBER, RETURN};
use super::*;
use crate::spec::capability;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;

fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    arguments: [u64; 6],
}

impl Call {
    fn load(&self, offset: u32) -> u32 {
        match offset {
            NUMBER => self.number,
            ARCH => self.arch,
            offset => {
                let at = offset - ARGUMENTS;
                assert!(at < 48 && at.is_multiple_of(4), "offset {offset}");
                let argument = self.arguments[at as usize / 8];
                if at.is_multiple_of(8) {
                    argument as u32
                } else {
                    (argument >> 32) as u32
                }
            }
        }
    }
}

/// Runs a filter as the kernel does: jumps only go forward, and a return is reached.
fn run(program: &Program, call: &Call) -> u32 {
    let (instructions, rest) = program.instructions.as_chunks::<8>();
    assert!(rest.is_empty());
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let bytes = instructions[at];
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let (jt, jf) = (usize::from(bytes[2]), usize::from(bytes[3]));
        let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let jump = |holds| if holds { jt } else { jf };
        at += 1 + match code {
            LOAD => {
                accumulator = call.load(k);
                0
            }
            AND => {
                accumulator &= k;
                0
            }
            JUMP => k as usize,
            JUMP_EQ => jump(accumulator == k),
            JUMP_GT => jump(accumulator > k),
            JUMP_GE => jump(accumulator >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        };
    }
}

fn compare(argument: &LinuxSeccompArg, call: &Call, wide: bool) -> bool {
    use LinuxSeccompOperator as Op;
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let actual = cut(call.arguments[argument.index()]);
    let value = cut(argument.value());
    match argument.op() {
        Op::ScmpCmpNe => actual != value,
        Op::ScmpCmpLt => actual < value,
        Op::ScmpCmpLe => actual <= value,
        Op::ScmpCmpEq => actual == value,
        Op::ScmpCmpGe => actual >= value,
        Op::ScmpCmpGt => actual > value,
        Op::ScmpCmpMaskedEq => actual & value == cut(argument.value_two().unwrap_or(0)),
    }
}

/// The value of a rule's action, written down a second time.
fn value(action: LinuxSeccompAction, number: Option<u32>) -> u32 {
    let number = number.unwrap_or(libc::EPERM as u32);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActTrap => 0x3_0000,
        LinuxSeccompAction::ScmpActErrno => 0x5_0000 | number,
        LinuxSeccompAction::ScmpActNotify => unreachable!(),
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | number,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
    }
}

/// What a profile says of a call, by reading it from the first line to the last.
fn evaluate(profile: &LinuxSeccomp, machine: Machine, call: &Call) -> u32 {
    let mut abis = vec![Abi::native(machine)];
    abis.extend(
        profile
            .architectures()
            .iter()
            .flatten()
            .filter_map(|arch| Abi::on(machine, *arch)),
    );
    let x32 = call.number >= X32_BIT && call.number != u32::MAX;
    let matches = |abi: &&Abi| match abi {
        Abi::X86_64 => !x32 && call.arch == abi.audit(),
        Abi::X32 => x32 && call.arch == abi.audit(),
        _ => call.arch == abi.audit(),
    };
    let Some(abi) = abis.iter().find(matches) else {
        return KILL;
    };
    let default = value(profile.default_action(), profile.default_errno_ret());
    let numbers = abi.numbers();
    let rules: Vec<_> = profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| value(rule.action(), rule.errno_ret()) != default)
        .collect();
    let highest = rules
        .iter()
        .flat_map(|rule| rule.names())
        .filter_map(|name| numbers.get(name.as_str()))
        .max();
    let permissive = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    let first = if *abi == Abi::X32 { X32_BIT } else { 0 };
    if !permissive && default != errno(libc::ENOSYS) && call.number > highest.copied().unwrap_or(0)
        || !permissive && highest.is_none() && call.number >= first
    {
        return errno(libc::ENOSYS);
    }
    let rules = rules.iter().filter(|rule| {
        rule.names()
            .iter()
            .any(|name| numbers.get(name.as_str()) == Some(&call.number))
    });
    let mut found = None;
    for rule in rules {
        let arguments = rule.args().as_deref().unwrap_or_default();
        let distinct: BTreeSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
        let mut holds = arguments
            .iter()
            .map(|argument| compare(argument, call, abi.wide()));
        let value = value(rule.action(), rule.errno_ret());
        if arguments.is_empty() {
            return value;
        }
        let holds = if distinct.len() == arguments.len() {
            holds.all(|held| held)
        } else {
            holds.any(|held| held)
        };
        if holds && found.is_none() {
            found = Some(value);
        }
    }
    found.unwrap_or(default)
}

fn argument(index: usize, op: LinuxSeccompOperator, value: u64, two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(two)
        .build()
        .unwrap()
}

/// Values that meet at the borders of 32 and 64 bits.
fn word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![
        Just(0_u64),
        Just(1),
        Just(2),
        Just(0x7fff_ffff),
        Just(0xffff_ffff)
    ];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

fn action() -> impl Strategy<Value = LinuxSeccompAction> {
    use LinuxSeccompAction as Action;
    prop::sample::select(vec![
        Action::ScmpActKill,
        Action::ScmpActKillProcess,
        Action::ScmpActTrap,
        Action::ScmpActErrno,
        Action::ScmpActTrace,
        Action::ScmpActLog,
        Action::ScmpActAllow,
    ])
}

const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "close",
    "clone",
    "clone3",
    "socket",
    "personality",
    "execve",
    "ioctl",
    "mseal",
    "cacheflush",
    "stat64",
    "no_such_call",
];

fn conditions() -> impl Strategy<Value = Vec<LinuxSeccompArg>> {
    use LinuxSeccompOperator as Op;
    let operator = prop::sample::select(vec![
        Op::ScmpCmpNe,
        Op::ScmpCmpLt,
        Op::ScmpCmpLe,
        Op::ScmpCmpEq,
        Op::ScmpCmpGe,
        Op::ScmpCmpGt,
        Op::ScmpCmpMaskedEq,
    ]);
    let one = (0..6_usize, operator, word(), word())
        .prop_map(|(index, op, value, two)| argument(index, op, value, two));
    prop::collection::vec(one, 0..5)
}

fn profile() -> impl Strategy<Value = LinuxSeccomp> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..6);
    let rule = (names, action(), prop::option::of(0..4096_u32), conditions());
    let archs = prop::sample::subsequence(
        vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
            Arch::ScmpArchAarch64,
            Arch::ScmpArchArm,
        ],
        0..=5,
    );
    (
        action(),
        prop::option::of(0..50_u32),
        archs,
        prop::collection::vec(rule, 0..8),
    )
        .prop_map(|(default, number, archs, rules)| {
            let rules: Vec<_> = rules
                .into_iter()
                .map(|(names, action, number, args)| {
                    let mut rule = LinuxSyscallBuilder::default()
                        .names(names.into_iter().map(str::to_owned).collect::<Vec<_>>())
                        .action(action)
                        .build()
                        .unwrap();
                    rule.set_errno_ret(number).set_args(Some(args));
                    rule
                })
                .collect();
            let mut profile = LinuxSeccompBuilder::default()
                .default_action(default)
                .architectures(archs)
                .syscalls(rules)
                .build()
                .unwrap();
            profile.set_default_errno_ret(number);
            profile
        })
}

/// Calls that a profile is likely to say something of.
fn call() -> impl Strategy<Value = Call> {
    let abi = prop::sample::select(vec![
        Abi::X86_64,
        Abi::X32,
        Abi::X86,
        Abi::Aarch64,
        Abi::Arm,
    ]);
    let number = (
        abi,
        prop::sample::select(NAMES.to_vec()),
        any::<u32>(),
        0..4_u8,
    )
        .prop_map(|(abi, name, any, pick)| {
            let number = match pick {
                0 => any,
                1 => any % 600,
                _ => abi.numbers().get(name).copied().unwrap_or(u32::MAX),
            };
            (abi.audit(), number)
        });
    let number = prop_oneof![9 => number, 1 => any::<(u32, u32)>()];
    (number, prop::array::uniform6(word())).prop_map(|((arch, number), arguments)| Call {
        arch,
        number,
        arguments,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_filter_does_what_its_profile_says(profile in profile(), calls in prop::collection::vec(call(), 40)) {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            let program = compile_for(&profile, machine).unwrap();
            for call in &calls {
                let (got, wanted) = (run(&program, call), evaluate(&profile, machine, call));
                prop_assert_eq!(got, wanted, "{:x} {:x} {:?} on {:?}", got, wanted, call, machine);
            }
        }
    }

    #[test]
    fn the_default_filter_does_what_its_profile_says(capabilities: u64, calls in prop::collection::vec(call(), 40)) {
        let profile = default_profile(capabilities);
        let program = compile_for(&profile, Machine::NATIVE).unwrap();
        for call in &calls {
            prop_assert_eq!(run(&program, call), evaluate(&profile, Machine::NATIVE, call), "{:?}", call);
        }
    }

    #[test]
    fn no_text_is_more_than_an_error(text in ".{0,200}") {
        let _ = profile::parse(text.as_bytes(), 0);
    }
}

/// The verdict of the default profile on a native call.
fn default_verdict(capabilities: u64, name: &str, arguments: [u64; 6]) -> u32 {
    let program = compile_for(&default_profile(capabilities), Machine::NATIVE).unwrap();
    let abi = Abi::native(Machine::NATIVE);
    run(
        &program,
        &Call {
            arch: abi.audit(),
            number: abi.numbers()[name],
            arguments,
        },
    )
}

#[test]
fn the_default_profile() {
    let usual = capability::DEFAULT;
    let admin = usual | capability::SYS_ADMIN;
    let first = |value: u64| [value, 0, 0, 0, 0, 0];
    let (denied, absent) = (errno(libc::EPERM), errno(libc::ENOSYS));
    for (capabilities, name, arguments, verdict) in [
        (usual, "read", first(0), ALLOW),
        (usual, "ptrace", first(0), ALLOW),
        (usual, "chroot", first(0), ALLOW),
        (0, "chroot", first(0), denied),
        (usual, "mount", first(0), denied),
        (admin, "mount", first(0), ALLOW),
        (usual, "bpf", first(0), denied),
        (usual | 1 << 39, "bpf", first(0), ALLOW),
        (usual, "keyctl", first(0), denied),
        (usual, "io_uring_setup", first(0), denied),
        (usual, "userfaultfd", first(0), denied),
        (admin, "userfaultfd", first(0), denied),
        (usual, "unshare", first(0), denied),
        (usual, "clone", first(0x11), ALLOW),
        (usual, "clone", first(libc::CLONE_NEWUSER as u64), denied),
        (admin, "clone", first(libc::CLONE_NEWUSER as u64), ALLOW),
        (usual, "clone3", first(0), absent),
        (admin, "clone3", first(0), ALLOW),
        (usual, "socket", first(2), ALLOW),
        (usual, "socket", first(37), ALLOW),
        (usual, "socket", first(38), denied),
        (usual, "socket", first(39), ALLOW),
        (usual, "socket", first(40), denied),
        (usual, "socket", first(41), ALLOW),
        (usual, "personality", first(0xffff_ffff), ALLOW),
        (usual, "personality", first(0x40000), denied),
        // Newer than the profile: a C library shall fall back.
        (usual, "file_getattr", first(0), absent),
    ] {
        assert_eq!(
            default_verdict(capabilities, name, arguments),
            verdict,
            "{name} {arguments:?}"
        );
    }
}

#[test]
fn what_cannot_be_carried_out_is_an_error() {
    let parse = |text: &str| {
        compile_for(
            &profile::parse(text.as_bytes(), 0).unwrap(),
            Machine::NATIVE,
        )
    };
    let error = |text: &str| parse(text).unwrap_err().to_string();
    let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
    assert_eq!(
        error(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
        "seccomp profile: action SCMP_ACT_NOTIFY is not supported"
    );
    assert_eq!(
        error(&rule(
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}"#
        )),
        "seccomp profile: errno 5000 of read is out of range"
    );
    let index = r#"{"names":["a","b"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#;
    assert_eq!(
        error(&rule(index)),
        "seccomp profile: syscall a, b: argument index 6 is out of range"
    );
    let long = r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]}"#;
    assert!(error(&rule(&vec![long; 2000].join(","))).contains("more than the kernel takes"));
    assert!(profile::parse(br#"{"syscalls":[]}"#, 0).is_err());
    assert!(profile::parse(br#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, 0).is_err());
}

#[test]
fn dockers_conditions_are_understood() {
    let text = br#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "", "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
        ]}"#;
    let names = |capabilities| {
        let profile = profile::parse(text, capabilities).unwrap();
        assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
        let rules = profile.syscalls().clone().unwrap();
        rules
            .iter()
            .flat_map(|rule| rule.names().clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(0), ["read", "clone", "ptrace"]);
    assert_eq!(names(capability::SYS_ADMIN), ["read", "mount", "ptrace"]);
}

#[test]
fn only_regular_files_are_profiles() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for (path, text) in [
        (path.as_path(), "not a regular file"),
        (Path::new("/dev/zero"), "not a regular file"),
        (Path::new("/none/such"), "No such file"),
    ] {
        let error = load_profile(path, 0).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("seccomp profile {}: {text}", path.display())),
            "{error}"
        );
    }
}

#[test]
fn compiling_is_fast_and_done_once() {
    let profile = default_profile(capability::DEFAULT);
    compile_for(&profile, Machine::NATIVE).unwrap();
    let start = std::time::Instant::now();
    let program = compile_for(&profile, Machine::NATIVE).unwrap();
    let took = start.elapsed();
    let first = compile(&profile).unwrap();
    let start = std::time::Instant::now();
    let second = compile(&profile).unwrap();
    println!(
        "{} instructions in {took:?}, again {:?}",
        program.instructions.len() / 8,
        start.elapsed()
    );
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(*first, program);
    assert!(took < std::time::Duration::from_millis(50), "{took:?}");
}
