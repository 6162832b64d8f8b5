//! The chains of the original and what is in them:
//!
//! ```text
//! FORWARD                -> CNI-ISOLATION-STAGE-1, then CNI-FORWARD
//! CNI-FORWARD            -> CNI-ADMIN (the administrator's), then for each container's address
//!                           to it, established or related: accept; from it: accept
//! CNI-ISOLATION-STAGE-1  from a bridge to elsewhere -> STAGE-2; isolated: from a bridge to itself: drop
//! CNI-ISOLATION-STAGE-2  to a bridge: drop
//! ```
//!
//! A container's rules carry its label where iptables does not see it. Chains stay once they are made.

use std::net::IpAddr;

use rustix::io::{self, Errno};

use crate::{
    netfilter::{
        Family, Hook, Table, Transaction,
        expression::{
            Expression, Verdict, established, established_for_iptables, interface_is, octets,
        },
        has_chain, has_table,
        rule::{Notes, Rule, rules},
    },
    netlink::Socket,
    result::AddResult,
};

const TABLE: &str = "filter";
const FORWARD: &str = "FORWARD";
const PRIVATE: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// How often it is tried again when somebody else has made the same chain meanwhile.
const TRIES: usize = 5;

/// Who may open connections to containers on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Others on the bridge, but none on another bridge with a policy.
    SameBridge,
    /// None on any bridge with a policy.
    Isolated,
}

/// The chains of a family.
pub struct Chains<'a> {
    pub table: Table,
    admin: &'a str,
}

/// A result's addresses of a family.
pub fn of_family(result: &AddResult, family: Family) -> impl Iterator<Item = IpAddr> {
    let all = result.ips.iter().map(|ip| ip.address.addr());
    all.filter(move |addr| Family::of(*addr) == family)
}

fn jump(to: &str) -> Vec<Expression> {
    vec![Expression::verdict(Verdict::Jump(to))]
}

fn comment(comment: &str) -> Notes<'_> {
    Notes { comment, label: "" }
}

impl Chains<'_> {
    pub fn new(family: Family, admin: &str) -> Chains<'_> {
        let name = TABLE.into();
        Chains {
            table: Table { family, name },
            admin,
        }
    }

    /// Lets the addresses' traffic through.
    pub fn admit(&self, socket: &mut Socket, addrs: &[IpAddr], label: &str) -> io::Result<()> {
        // A kernel without the extensions of iptables has no iptables that could be confused.
        let conditions = [
            established_for_iptables as fn() -> Vec<Expression>,
            established,
        ];
        let mut conditions = conditions.into_iter();
        let mut condition = conditions.next().expect("there are two");
        for _ in 0..TRIES {
            let transaction = self.admission(socket, addrs, label, condition)?;
            match transaction.commit(socket) {
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => match conditions.next() {
                    Some(next) => condition = next,
                    None => return Err(Errno::NOENT),
                },
                done => return done,
            }
        }
        Err(Errno::EXIST)
    }

    fn admission(
        &self,
        socket: &mut Socket,
        addrs: &[IpAddr],
        label: &str,
        established: fn() -> Vec<Expression>,
    ) -> io::Result<Transaction> {
        let table = &self.table;
        let mut transaction = Transaction::new();
        self.ensure(socket, &mut transaction, &[PRIVATE, self.admin])?;
        if !rules(socket, table, FORWARD)?
            .iter()
            .any(|rule| rule.jumps_to(PRIVATE))
        {
            let notes = comment("CNI firewall plugin rules");
            transaction.insert_rule(table, FORWARD, jump(PRIVATE), notes);
        }
        let present = rules(socket, table, PRIVATE)?;
        if !present.iter().any(|rule| rule.jumps_to(self.admin)) {
            let notes = comment("CNI firewall plugin admin overrides");
            transaction.insert_rule(table, PRIVATE, jump(self.admin), notes);
        }
        for addr in addrs {
            if is_admitted(&present, *addr, label) {
                continue;
            }
            for source in [false, true] {
                let mut rule = vec![
                    Expression::load_address(table.family, source, 0),
                    Expression::compare(0, &octets(*addr), true),
                ];
                if !source {
                    rule.extend(established());
                }
                rule.push(Expression::verdict(Verdict::Accept));
                let notes = Notes { comment: "", label };
                transaction.add_noted_rule(table, PRIVATE, rule, notes);
            }
        }
        Ok(transaction)
    }

    /// Makes the table and the chains that are not there yet.
    fn ensure(
        &self,
        socket: &mut Socket,
        transaction: &mut Transaction,
        chains: &[&str],
    ) -> io::Result<()> {
        if !has_table(socket, &self.table)? {
            transaction.add_table(&self.table);
        }
        for name in [FORWARD].iter().chain(chains) {
            if !has_chain(socket, &self.table, name)? {
                let hook = (*name == FORWARD).then_some(Hook::FORWARD);
                transaction.add_chain(&self.table, name, hook);
            }
        }
        Ok(())
    }

    /// Applies a policy to a bridge; one that is applied already stays.
    pub fn isolate(&self, socket: &mut Socket, bridge: &str, policy: Policy) -> io::Result<()> {
        for _ in 0..TRIES {
            match self.isolation(socket, bridge, policy)?.commit(socket) {
                Err(Errno::EXIST) => {}
                done => return done,
            }
        }
        Err(Errno::EXIST)
    }

    fn isolation(
        &self,
        socket: &mut Socket,
        bridge: &str,
        policy: Policy,
    ) -> io::Result<Transaction> {
        let table = &self.table;
        let mut transaction = Transaction::new();
        self.ensure(socket, &mut transaction, &[STAGE_1, STAGE_2])?;
        let shared = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
        if !rules(socket, table, FORWARD)?
            .iter()
            .any(|rule| rule.jumps_to(STAGE_1))
        {
            transaction.insert_rule(table, FORWARD, jump(STAGE_1), comment(shared));
        }
        let own = match policy {
            Policy::SameBridge => "CNI firewall plugin rules (ingressPolicy: same-bridge)",
            Policy::Isolated => "CNI firewall plugin rules (ingressPolicy: isolated)",
        };
        let (first, second) = (
            rules(socket, table, STAGE_1)?,
            rules(socket, table, STAGE_2)?,
        );
        let from = |to: bool| {
            let mut rule: Vec<_> = interface_is(true, bridge, true).into();
            rule.extend(interface_is(false, bridge, to));
            rule
        };
        for (chain, present) in [(STAGE_1, &first), (STAGE_2, &second)] {
            if present.is_empty() {
                let end = vec![Expression::verdict(Verdict::Return)];
                transaction.add_noted_rule(table, chain, end, comment(shared));
            }
        }
        let has = |rules: &[Rule], label: &str| {
            rules
                .iter()
                .any(|rule| rule.label.as_deref() == Some(label))
        };
        let mut put =
            |chain: &str, present: &[Rule], what: &str, rule: Vec<Expression>, text: &str| {
                let label = format!("{what} {bridge}");
                if !has(present, &label) {
                    let notes = Notes {
                        comment: text,
                        label: &label,
                    };
                    transaction.insert_rule(table, chain, rule, notes);
                }
            };
        let mut elsewhere = from(false);
        elsewhere.extend(jump(STAGE_2));
        put(STAGE_1, &first, "elsewhere", elsewhere, own);
        if policy == Policy::Isolated {
            let mut itself = from(true);
            itself.push(Expression::verdict(Verdict::Drop));
            put(STAGE_1, &first, "itself", itself, own);
        }
        let mut to: Vec<_> = interface_is(false, bridge, true).into();
        to.push(Expression::verdict(Verdict::Drop));
        put(STAGE_2, &second, "to", to, shared);
        Ok(transaction)
    }

    /// Whether the address's traffic is let through.
    pub fn admits(&self, socket: &mut Socket, addr: IpAddr, label: &str) -> io::Result<bool> {
        let forward = rules(socket, &self.table, FORWARD)?;
        let private = rules(socket, &self.table, PRIVATE)?;
        Ok(forward.iter().any(|rule| rule.jumps_to(PRIVATE))
            && private.iter().any(|rule| rule.jumps_to(self.admin))
            && is_admitted(&private, addr, label))
    }

    /// Removes the rules with a stale label, and those without one for the addresses: the original's.
    pub fn expel(
        &self,
        socket: &mut Socket,
        addrs: &[IpAddr],
        is_stale: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        let mut transaction = Transaction::new();
        let mut found = false;
        for rule in rules(socket, &self.table, PRIVATE)? {
            let goes = match &rule.label {
                Some(label) => is_stale(label),
                None => addrs.iter().any(|addr| rule.compares_with(&octets(*addr))),
            };
            if goes {
                found = true;
                transaction.delete_rule(&self.table, PRIVATE, &rule);
            }
        }
        if found {
            transaction.commit(socket)
        } else {
            Ok(())
        }
    }
}

/// Whether both rules of an address are there, of this label or of the original's.
fn is_admitted(rules: &[Rule], addr: IpAddr, label: &str) -> bool {
    let own = rules.iter().filter(|rule| {
        rule.label.as_deref().is_none_or(|other| other == label)
            && rule.compares_with(&octets(addr))
    });
    own.count() >= 2
}
