//! A profile resolved to numbers: for each ABI, what happens to each range of system call numbers.
//!
//! Of several rules for one call an unconditional one wins; else the first in the profile's order whose
//! conditions hold. Rules that only repeat the default action are passed over. Conditions of one rule on
//! different arguments must all hold; if two are on the same argument, any one of the rule's is enough.
//! All this is what libseccomp and runc do with a profile.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::arch::{Abi, Machine, X32_BIT};
use super::{Error, return_value};

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub argument: u8,
    pub operator: LinuxSeccompOperator,
    /// For MASKED_EQ: the mask.
    pub value: u64,
    /// For MASKED_EQ: what the masked argument must be.
    pub value_two: u64,
}

/// Conditions that must all hold, and what is returned then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alternative {
    pub conditions: Vec<Condition>,
    pub returns: u32,
}

/// What happens to a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Return(u32),
    /// The first that holds; else the default.
    First(Vec<Alternative>),
}

/// The verdicts for one AUDIT_ARCH.
#[derive(Debug)]
pub(super) struct Table {
    pub audit: u32,
    pub wide: bool,
    /// First number and verdict of each range, in order; the first begins at 0, each ends where the next
    /// begins.
    pub ranges: Vec<(u32, Verdict)>,
}

#[derive(Debug)]
pub(super) struct Policy {
    /// Nobody else's ABI is let in.
    pub foreign: u32,
    pub default: u32,
    pub tables: Vec<Table>,
}

impl Policy {
    pub(super) fn of(profile: &LinuxSeccomp, machine: Machine) -> Result<Policy, Error> {
        let default = return_value(
            profile.default_action(),
            profile.default_errno_ret(),
            &|| "the default action".into(),
        )?;
        let rules = alternatives(profile, default)?;
        let mut abis = vec![Abi::native(machine)];
        for arch in profile.architectures().iter().flatten() {
            match Abi::on(machine, *arch) {
                Some(abi) if !abis.contains(&abi) => abis.push(abi),
                _ => {}
            }
        }
        let beyond = if hides_new_calls(profile.default_action(), default) {
            ENOSYS
        } else {
            default
        };
        let foreign = libc::SECCOMP_RET_KILL_THREAD;
        let x32 = abis.contains(&Abi::X32);
        let tables = abis
            .iter()
            .filter(|abi| **abi != Abi::X32)
            .map(|abi| {
                let mut ranges = ranges(0, &verdicts(*abi, &rules), default, beyond);
                if *abi == Abi::X86_64 && x32 {
                    ranges.extend(self::ranges(
                        X32_BIT,
                        &verdicts(Abi::X32, &rules),
                        default,
                        beyond,
                    ));
                } else if *abi == Abi::X86_64 {
                    ranges.push((X32_BIT, Verdict::Return(foreign)));
                    // -1: a call that a tracer has skipped.
                    ranges.push((u32::MAX, Verdict::Return(beyond)));
                }
                ranges.dedup_by(|next, kept| next.1 == kept.1);
                Table {
                    audit: abi.audit(),
                    wide: abi.wide(),
                    ranges,
                }
            })
            .collect();
        Ok(Policy {
            foreign,
            default,
            tables,
        })
    }
}

/// Whether calls newer than all that the profile names get ENOSYS, so that a C library that tries them
/// falls back. With a permissive default they need not; with ENOSYS as default they have it.
fn hides_new_calls(action: LinuxSeccompAction, default: u32) -> bool {
    default != ENOSYS
        && !matches!(
            action,
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        )
}

/// A rule's names, and when it applies: without conditions always.
struct Rule<'a> {
    names: &'a [String],
    alternatives: Vec<Alternative>,
}

fn alternatives(profile: &LinuxSeccomp, default: u32) -> Result<Vec<Rule<'_>>, Error> {
    let mut rules = Vec::new();
    for syscall in profile.syscalls().iter().flatten() {
        let object = || names(syscall);
        let returns = return_value(syscall.action(), syscall.errno_ret(), &object)?;
        let arguments = syscall.args().as_deref().unwrap_or_default();
        let conditions = arguments
            .iter()
            .map(|argument| condition(argument, &object))
            .collect::<Result<Vec<_>, _>>()?;
        if returns == default {
            continue;
        }
        let repeated = (1..conditions.len()).any(|i| {
            conditions[..i]
                .iter()
                .any(|c| c.argument == conditions[i].argument)
        });
        let alternatives = if repeated {
            let single = |condition| Alternative {
                conditions: vec![condition],
                returns,
            };
            conditions.into_iter().map(single).collect()
        } else {
            vec![Alternative {
                conditions,
                returns,
            }]
        };
        rules.push(Rule {
            names: syscall.names(),
            alternatives,
        });
    }
    Ok(rules)
}

/// The first few names of a rule, for an error.
fn names(syscall: &LinuxSyscall) -> String {
    let mut text = syscall
        .names()
        .iter()
        .take(3)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if syscall.names().len() > 3 {
        text.push_str(", …");
    }
    text
}

fn condition(argument: &LinuxSeccompArg, names: &dyn Fn() -> String) -> Result<Condition, Error> {
    let index = argument.index();
    if index > 5 {
        return Err(Error::ArgumentIndex {
            names: names(),
            index,
        });
    }
    Ok(Condition {
        argument: index as u8,
        operator: argument.op(),
        value: argument.value(),
        value_two: argument.value_two().unwrap_or(0),
    })
}

/// The verdict for every number that a rule names.
fn verdicts(abi: Abi, rules: &[Rule<'_>]) -> BTreeMap<u32, Verdict> {
    let numbers = abi.numbers();
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    for rule in rules {
        let unconditional = match rule.alternatives.as_slice() {
            [only] if only.conditions.is_empty() => Some(only.returns),
            _ => None,
        };
        for name in rule.names {
            let Some(number) = numbers.get(name.as_str()) else {
                continue;
            };
            let known = verdicts
                .entry(*number)
                .or_insert_with(|| Verdict::First(Vec::new()));
            match (known, unconditional) {
                (Verdict::Return(_), _) => {}
                (known, Some(returns)) => *known = Verdict::Return(returns),
                (Verdict::First(list), None) => list.extend(rule.alternatives.iter().cloned()),
            }
        }
    }
    verdicts
}

/// Fills the gaps between the named numbers with the default, and what comes after them with `beyond`.
fn ranges(
    start: u32,
    verdicts: &BTreeMap<u32, Verdict>,
    default: u32,
    beyond: u32,
) -> Vec<(u32, Verdict)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut next = start;
    for (number, verdict) in verdicts {
        if *number > next {
            ranges.push((next, Verdict::Return(default)));
        }
        ranges.push((*number, verdict.clone()));
        next = number + 1;
    }
    ranges.push((next, Verdict::Return(beyond)));
    ranges.dedup_by(|next, kept| next.1 == kept.1);
    ranges
}
