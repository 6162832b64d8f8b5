//! The assembler: a policy as classic BPF.
//!
//! The architecture is looked at first, then a binary search over the ranges of call numbers ends in a
//! return, or in comparisons of arguments that end in one. Code is built from its end: each piece knows
//! how long what follows it is, so jumps need no labels.

use oci_spec::runtime::LinuxSeccompOperator;

use super::rules::{Alternative, Condition, Policy, Verdict};

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    /// How many instructions to skip if a comparison holds, and if not.
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl Instruction {
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.jt;
        bytes[3] = self.jf;
        bytes[4..].copy_from_slice(&self.k.to_ne_bytes());
        bytes
    }
}

// BPF_LD|BPF_W|BPF_ABS and so on: `linux/bpf_common.h`.
pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQ: u16 = 0x15;
pub(super) const JUMP_GT: u16 = 0x25;
pub(super) const JUMP_GE: u16 = 0x35;
pub(super) const AND: u16 = 0x54;
pub(super) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

pub(super) fn assemble(policy: &Policy) -> Vec<Instruction> {
    let mut code = vec![plain(RETURN, policy.foreign)];
    for table in policy.tables.iter().rev() {
        let mut body = vec![plain(LOAD, NUMBER)];
        search(&mut body, &table.ranges, table.wide, policy.default);
        // The bodies are longer than a conditional jump reaches.
        let mut head = vec![
            Instruction {
                code: JUMP_EQ,
                jt: 1,
                jf: 0,
                k: table.audit,
            },
            plain(JUMP, body.len() as u32),
        ];
        head.append(&mut body);
        head.append(&mut code);
        code = head;
    }
    code.insert(0, plain(LOAD, ARCH));
    code
}

/// Appends a binary search for the range that the accumulator is in.
fn search(code: &mut Vec<Instruction>, ranges: &[(u32, Verdict)], wide: bool, default: u32) {
    match ranges {
        [] => code.push(plain(RETURN, default)),
        [(_, Verdict::Return(value))] => code.push(plain(RETURN, *value)),
        [(_, Verdict::First(alternatives))] => {
            for alternative in alternatives {
                code.extend(check(alternative, wide));
            }
            code.push(plain(RETURN, default));
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            search(&mut below, low, wide, default);
            let at_least = high[0].0;
            match u8::try_from(below.len()) {
                Ok(skip) => code.push(Instruction {
                    code: JUMP_GE,
                    jt: skip,
                    jf: 0,
                    k: at_least,
                }),
                Err(_) => {
                    code.push(Instruction {
                        code: JUMP_GE,
                        jt: 0,
                        jf: 1,
                        k: at_least,
                    });
                    code.push(plain(JUMP, below.len() as u32));
                }
            }
            code.append(&mut below);
            search(code, high, wide, default);
        }
    }
}

/// All conditions, then the return; what fails jumps behind it.
fn check(alternative: &Alternative, wide: bool) -> Vec<Instruction> {
    let mut code = vec![plain(RETURN, alternative.returns)];
    for condition in alternative.conditions.iter().rev() {
        let mut block = compare(condition, wide).resolve(code.len());
        block.append(&mut code);
        code = block;
    }
    code
}

/// Where a comparison goes.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// Behind the block: the condition holds.
    Pass,
    /// Behind what follows the block too: it does not.
    Fail,
}

/// Instructions whose jumps are not resolved yet.
struct Block(Vec<(u16, u32, To, To)>);

impl Block {
    fn load(&mut self, offset: u32) {
        self.0.push((LOAD, offset, To::Next, To::Next));
    }

    fn and(&mut self, mask: u32) {
        self.0.push((AND, mask, To::Next, To::Next));
    }

    fn jump(&mut self, code: u16, k: u32, yes: To, no: To) {
        self.0.push((code, k, yes, no));
    }

    /// `tail`: instructions between the block and the place for failures. At most six blocks of six
    /// instructions and a return follow one another, so a jump's 8 bits are enough.
    fn resolve(self, tail: usize) -> Vec<Instruction> {
        let length = self.0.len();
        let resolve = |(at, (code, k, yes, no)): (usize, (u16, u32, To, To))| {
            let distance = |to| match to {
                To::Next => 0,
                To::Pass => length - at - 1,
                To::Fail => length - at - 1 + tail,
            };
            Instruction {
                code,
                jt: distance(yes) as u8,
                jf: distance(no) as u8,
                k,
            }
        };
        self.0.into_iter().enumerate().map(resolve).collect()
    }
}

/// Compares an argument: its high word first, then, if that does not decide, its low word.
fn compare(condition: &Condition, wide: bool) -> Block {
    use LinuxSeccompOperator as Op;
    use To::{Fail, Next, Pass};
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let high_at = low_at + 4;
    let (value, two) = (condition.value, condition.value_two);
    let (high, low) = ((value >> 32) as u32, value as u32);
    let mut block = Block(Vec::new());
    if wide {
        block.load(high_at);
        match condition.operator {
            Op::ScmpCmpEq => block.jump(JUMP_EQ, high, Next, Fail),
            Op::ScmpCmpNe => block.jump(JUMP_EQ, high, Next, Pass),
            Op::ScmpCmpGt | Op::ScmpCmpGe => {
                block.jump(JUMP_GT, high, Pass, Next);
                block.jump(JUMP_EQ, high, Next, Fail);
            }
            Op::ScmpCmpLt | Op::ScmpCmpLe => {
                block.jump(JUMP_GT, high, Fail, Next);
                block.jump(JUMP_EQ, high, Next, Pass);
            }
            Op::ScmpCmpMaskedEq => {
                block.and(high);
                block.jump(JUMP_EQ, (two >> 32) as u32, Next, Fail);
            }
        }
    }
    block.load(low_at);
    match condition.operator {
        Op::ScmpCmpEq => block.jump(JUMP_EQ, low, Pass, Fail),
        Op::ScmpCmpNe => block.jump(JUMP_EQ, low, Fail, Pass),
        Op::ScmpCmpGt => block.jump(JUMP_GT, low, Pass, Fail),
        Op::ScmpCmpGe => block.jump(JUMP_GE, low, Pass, Fail),
        Op::ScmpCmpLt => block.jump(JUMP_GE, low, Fail, Pass),
        Op::ScmpCmpLe => block.jump(JUMP_GT, low, Fail, Pass),
        Op::ScmpCmpMaskedEq => {
            block.and(low);
            block.jump(JUMP_EQ, two as u32, Pass, Fail);
        }
    }
    block
}
