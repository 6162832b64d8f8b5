//! Device rules: what a container may open and make, as lines for v1 and as a program for v2.
//!
//! Rules only allow. On top of them every container may make any device node (which does not help it to
//! open one) and use the harmless devices of [`DEFAULT`].

use std::str::FromStr;

use crate::sys::BpfInstruction;

/// What the processes of a cgroup may do with devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevicePolicy {
    /// What the parent cgroup may.
    AllowAll,
    /// The default list and these.
    Rules(Vec<DeviceRule>),
}

/// Allows something with the devices it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub kind: DeviceKind,
    /// `None`: any.
    pub major: Option<u32>,
    /// `None`: any.
    pub minor: Option<u32>,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Block,
    Char,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl Access {
    pub const ALL: Self = Self {
        read: true,
        write: true,
        mknod: true,
    };
    const MKNOD: Self = Self {
        read: false,
        write: false,
        mknod: true,
    };

    fn union(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            write: self.write || other.write,
            mknod: self.mknod || other.mknod,
        }
    }

    /// As BPF_DEVCG_ACC_* bits.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// A string of permissions with something else than "r", "w" and "m" in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device permissions are some of r, w and m")]
pub struct InvalidAccess;

impl FromStr for Access {
    type Err = InvalidAccess;

    fn from_str(text: &str) -> Result<Self, InvalidAccess> {
        let mut access = Self::default();
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => return Err(InvalidAccess),
            }
        }
        Ok(access)
    }
}

const fn device(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule {
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        access: Access::ALL,
    }
}

const fn any_mknod(kind: DeviceKind) -> DeviceRule {
    DeviceRule {
        kind,
        major: None,
        minor: None,
        access: Access::MKNOD,
    }
}

/// What every container may.
const DEFAULT: [DeviceRule; 11] = [
    any_mknod(DeviceKind::Char),
    any_mknod(DeviceKind::Block),
    device(1, Some(3)), // null
    device(1, Some(5)), // zero
    device(1, Some(7)), // full
    device(1, Some(8)), // random
    device(1, Some(9)), // urandom
    device(5, Some(0)), // tty
    device(5, Some(1)), // console
    device(5, Some(2)), // ptmx
    device(136, None),  // pts/*
];

/// The default list and `rules`, one rule for each device: the kernel asks for all of an access at once,
/// which one rule must grant.
fn merged(rules: &[DeviceRule]) -> Vec<DeviceRule> {
    let mut merged = DEFAULT.to_vec();
    for rule in rules {
        let same = |other: &&mut DeviceRule| {
            (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor)
        };
        match merged.iter_mut().find(same) {
            Some(other) => other.access = other.access.union(rule.access),
            None => merged.push(*rule),
        }
    }
    merged
}

/// A line for `devices.allow`.
pub(super) struct Line {
    pub text: String,
    /// One of the default list: where the parent forbids it, the container goes without.
    pub default: bool,
}

/// The lines for v1, to be written after "a" to `devices.deny`.
pub(super) fn lines(rules: &[DeviceRule]) -> Vec<Line> {
    let number =
        |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    merged(rules)
        .iter()
        .filter(|rule| rule.access != Access::default())
        .map(|rule| {
            let kind = match rule.kind {
                DeviceKind::Block => 'b',
                DeviceKind::Char => 'c',
            };
            let mut text = format!("{kind} {}:{} ", number(rule.major), number(rule.minor));
            for (allowed, letter) in [
                (rule.access.read, 'r'),
                (rule.access.write, 'w'),
                (rule.access.mknod, 'm'),
            ] {
                text.extend(allowed.then_some(letter));
            }
            Line {
                text,
                default: DEFAULT.contains(rule),
            }
        })
        .collect()
}

/// Classes, modes and operations of the eBPF instructions that are used.
mod op {
    pub const LOAD_WORD: u8 = 0x61;
    pub const MOVE: u8 = 0xbf;
    pub const MOVE_IMMEDIATE: u8 = 0xb7;
    pub const AND_IMMEDIATE: u8 = 0x57;
    pub const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
    /// 32 bits wide: numbers of devices are unsigned.
    pub const JUMP_NOT_EQUAL: u8 = 0x56;
    pub const EXIT: u8 = 0x95;
}

const RESULT: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program for v2. It gets a `struct bpf_cgroup_dev_ctx` (kind in the low and access in the high
/// 16 bits of a word, then major and minor number) and returns 1 to allow.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<BpfInstruction> {
    let instruction = |code, destination: u8, source: u8, offset, immediate| BpfInstruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    };
    let mut program = vec![
        instruction(op::LOAD_WORD, KIND, SCRATCH, 0, 0),
        instruction(op::LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(op::LOAD_WORD, MINOR, SCRATCH, 8, 0),
        instruction(op::MOVE, ACCESS, KIND, 0, 0),
        instruction(op::SHIFT_RIGHT_IMMEDIATE, ACCESS, 0, 0, 16),
        instruction(op::AND_IMMEDIATE, KIND, 0, 0, 0xffff),
    ];
    for rule in merged(rules) {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        };
        let mut conditions = vec![(KIND, kind)];
        conditions.extend(rule.major.map(|major| (MAJOR, major.cast_signed())));
        conditions.extend(rule.minor.map(|minor| (MINOR, minor.cast_signed())));
        let mut body = Vec::new();
        if rule.access != Access::ALL {
            // Nothing may be asked for that is not allowed.
            body.push(instruction(op::MOVE, SCRATCH, ACCESS, 0, 0));
            body.push(instruction(
                op::AND_IMMEDIATE,
                SCRATCH,
                0,
                0,
                !rule.access.bits() & 7,
            ));
            conditions.push((SCRATCH, 0));
        }
        // Each condition that fails jumps over the rest of the rule and the two instructions that allow.
        let mut left = i16::try_from(conditions.len()).unwrap_or(i16::MAX);
        for (register, value) in conditions {
            left -= 1;
            body.push(instruction(
                op::JUMP_NOT_EQUAL,
                register,
                0,
                left + 2,
                value,
            ));
        }
        program.extend(body);
        program.push(instruction(op::MOVE_IMMEDIATE, RESULT, 0, 0, 1));
        program.push(instruction(op::EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(op::MOVE_IMMEDIATE, RESULT, 0, 0, 0));
    program.push(instruction(op::EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: DeviceKind, major: u32, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule {
            kind,
            major: Some(major),
            minor,
            access: access.parse().unwrap(),
        }
    }

    /// Runs a program as the kernel does.
    fn allows(program: &[BpfInstruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let mut registers = [0_u64; 16];
        let context = [
            u64::from((access << 16 | kind).cast_unsigned()),
            major.into(),
            minor.into(),
        ];
        let mut at = 0_usize;
        loop {
            let BpfInstruction {
                code,
                registers: pair,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            match code {
                op::LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                op::MOVE => registers[to] = registers[from],
                op::MOVE_IMMEDIATE => registers[to] = u64::try_from(immediate).unwrap(),
                op::AND_IMMEDIATE => registers[to] &= u64::try_from(immediate).unwrap(),
                op::SHIFT_RIGHT_IMMEDIATE => registers[to] >>= immediate,
                op::JUMP_NOT_EQUAL if registers[to] as u32 != immediate.cast_unsigned() => {
                    at += usize::try_from(offset).unwrap();
                }
                op::JUMP_NOT_EQUAL => {}
                op::EXIT => return registers[usize::from(RESULT)] == 1,
                _ => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_do() {
        const BLOCK: i32 = 1;
        const CHAR: i32 = 2;
        let (mknod, read, write) = (1, 2, 4);
        let program = program(&[
            rule(DeviceKind::Block, 8, Some(1), "r"),
            rule(DeviceKind::Block, 8, Some(1), "w"),
            rule(DeviceKind::Char, 10, None, "r"),
            rule(DeviceKind::Char, u32::MAX, Some(u32::MAX), "rw"),
        ]);
        let allows = |kind, access, major, minor| allows(&program, kind, access, major, minor);
        assert!(allows(CHAR, read | write | mknod, 1, 3));
        assert!(allows(CHAR, read | write, 136, 77));
        assert!(allows(CHAR, mknod, 200, 1) && allows(BLOCK, mknod, 200, 1));
        assert!(!allows(CHAR, read | mknod, 200, 1) && !allows(BLOCK, write, 1, 3));
        assert!(!allows(CHAR, read, 1, 1), "memory");
        assert!(allows(BLOCK, read | write, 8, 1), "merged");
        assert!(
            !allows(BLOCK, read, 8, 2) && !allows(BLOCK, read, 9, 1) && !allows(CHAR, read, 8, 1)
        );
        assert!(allows(CHAR, read, 10, 5) && !allows(CHAR, write, 10, 5));
        assert!(allows(CHAR, read | write, u32::MAX, u32::MAX));
    }

    #[test]
    fn lines_are_as_v1_reads_them() {
        let rules = [
            rule(DeviceKind::Block, 8, None, "rw"),
            rule(DeviceKind::Char, 1, Some(3), "r"),
            rule(DeviceKind::Char, 9, Some(9), ""),
        ];
        let lines = lines(&rules);
        let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(text[0..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(text[10..], ["c 136:* rwm", "b 8:* rw"]);
        assert!(lines[2].default && !lines[11].default);
    }

    #[test]
    fn access_is_letters() {
        assert_eq!("mrw".parse(), Ok(Access::ALL));
        assert_eq!("".parse(), Ok(Access::default()));
        assert_eq!("rx".parse::<Access>(), Err(InvalidAccess));
    }
}
