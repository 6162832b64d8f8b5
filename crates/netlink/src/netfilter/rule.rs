//! Rules: adding, listing, removing.

use rustix::io::{self, Errno};

use super::{
    HEADER, NLM_F_CREATE, Table, Transaction,
    expression::{self, Expression},
    kind, payload,
    userdata::{COMMENT, LABEL, append, find},
};
use crate::{Answer, Socket, attributes, message::Attributes};

const NEWRULE: u8 = 6;
pub(super) const GETRULE: u8 = 7;
const DELRULE: u8 = 8;

const NLM_F_APPEND: u16 = 0x800;

/// What is kept with a rule; empty texts are not.
#[derive(Clone, Copy, Default)]
pub struct Notes<'a> {
    pub comment: &'a str,
    pub label: &'a str,
}

/// A rule that the kernel has.
pub struct Rule {
    handle: Vec<u8>,
    expressions: Vec<u8>,
    pub label: Option<String>,
}

impl Rule {
    /// The steps of a name, each as its attributes.
    fn steps(&self, wanted: &str) -> impl Iterator<Item = Vec<u8>> {
        attributes(&self.expressions, 0).filter_map(move |step| {
            let name = nested(step.value(), &[1])?;
            let is_it = name.strip_suffix(&[0]).unwrap_or(&name) == wanted.as_bytes();
            is_it.then(|| nested(step.value(), &[2])).flatten()
        })
    }

    /// Whether it ends with a jump to a chain.
    pub fn jumps_to(&self, chain: &str) -> bool {
        self.steps("immediate").any(|step| {
            nested(&step, &[2, 2, 2])
                .is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(&name) == chain.as_bytes())
        })
    }

    /// Whether it compares something with the value.
    pub fn compares_with(&self, value: &[u8]) -> bool {
        self.steps("cmp")
            .any(|step| nested(&step, &[3, 1]).as_deref() == Some(value))
    }
}

/// The value of an attribute in an attribute.
pub(super) fn nested(value: &[u8], path: &[u16]) -> Option<Vec<u8>> {
    let Some((first, rest)) = path.split_first() else {
        return Some(value.into());
    };
    let found = attributes(value, 0).find(|attribute| attribute.kind() == *first)?;
    nested(found.value(), rest)
}

impl Transaction {
    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, expressions: Vec<Expression>) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.push_rule(table, chain, expressions, Notes::default(), flags);
    }

    /// The same with notes.
    pub fn add_noted_rule(
        &mut self,
        table: &Table,
        chain: &str,
        expressions: Vec<Expression>,
        notes: Notes<'_>,
    ) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.push_rule(table, chain, expressions, notes, flags);
    }

    /// Puts a rule before all others of a chain.
    pub fn insert_rule(
        &mut self,
        table: &Table,
        chain: &str,
        expressions: Vec<Expression>,
        notes: Notes<'_>,
    ) {
        self.push_rule(table, chain, expressions, notes, NLM_F_CREATE);
    }

    fn push_rule(
        &mut self,
        table: &Table,
        chain: &str,
        expressions: Vec<Expression>,
        notes: Notes<'_>,
        flags: u16,
    ) {
        let mut attributes = Attributes::default()
            .text(1, &table.name)
            .text(2, chain)
            .nest(4, expression::expressions(expressions));
        let mut data = Vec::new();
        for (tag, text) in [(COMMENT, notes.comment), (LABEL, notes.label)] {
            if !text.is_empty() {
                data = append(data, tag, text);
            }
        }
        if !data.is_empty() {
            attributes = attributes.bytes(7, &data);
        }
        self.push(NEWRULE, flags, table.family, attributes);
    }

    pub fn delete_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let attributes = Attributes::default()
            .text(1, &table.name)
            .text(2, chain)
            .bytes(3, &rule.handle);
        self.push(DELRULE, 0, table.family, attributes);
    }
}

/// The rules of a chain, in order; none if there is no such chain.
pub fn rules(socket: &mut Socket, table: &Table, chain: &str) -> io::Result<Vec<Rule>> {
    let of = Attributes::default().text(1, &table.name).text(2, chain);
    let asked = payload(Some(table.family), of);
    let answers = match socket.dump_bytes(kind(GETRULE), &asked) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        answers => answers?,
    };
    let parse = |answer: &Answer| {
        let get = |wanted| nested(answer.payload.get(HEADER..)?, &[wanted]);
        let is = |wanted, text: &str| {
            get(wanted).is_some_and(|value| value.strip_suffix(&[0]) == Some(text.as_bytes()))
        };
        // A chain that is not there may be answered with all rules.
        (is(1, &table.name) && is(2, chain)).then_some(())?;
        Some(Rule {
            handle: get(3)?,
            expressions: get(4).unwrap_or_default(),
            label: get(7).and_then(|data| find(&data, LABEL)),
        })
    };
    Ok(answers.iter().filter_map(parse).collect())
}
