//! A network configuration with gaps, as containerd's `conf_template` is: a Go template over the node's ranges of
//! pod addresses, `.PodCIDR` (the first), `.PodCIDRRanges` (all) and `.Routes` (everything, in each family).
//!
//! Known is what such files are made of: fields, variables, `range`, `if`, `with`, `else`, `end`, the functions
//! `len`, `index`, `eq`, `ne`, `not`, `and`, `or`, and `{{-`/`-}}`. Anything else is an error that names its line.

use std::iter::Peekable;
use std::vec::IntoIter;

/// The most that a template may become, in bytes.
const MAX_OUTPUT: usize = 1 << 20;
/// How deep blocks may lie in each other.
const MAX_DEPTH: usize = 32;

/// Why a text is no template, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Invalid {
    line: usize,
    why: String,
}

/// What a template says of the node.
#[derive(Debug, Clone)]
pub(super) struct Values {
    pub ranges: Vec<String>,
    pub routes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(usize),
    Bool(bool),
    List(Vec<Value>),
    /// What the template is about.
    Node,
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Bool(value) => *value,
            Self::List(list) => !list.is_empty(),
            Self::Node => true,
        }
    }

    fn texts(texts: &[String]) -> Self {
        Self::List(texts.iter().cloned().map(Self::Text).collect())
    }
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Action { line: usize, words: Vec<String> },
}

#[derive(Debug)]
enum Node {
    Text(String),
    Show(usize, Vec<String>),
    Set(usize, String, Vec<String>),
    If(usize, Vec<String>, Vec<Node>, Vec<Node>),
    With(usize, Vec<String>, Vec<Node>, Vec<Node>),
    Range {
        line: usize,
        names: Vec<String>,
        of: Vec<String>,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Fills a template in.
pub(super) fn render(template: &str, values: &Values) -> Result<String, Invalid> {
    let mut pieces = pieces(template)?.into_iter().peekable();
    let (nodes, end) = parse(&mut pieces, 0)?;
    if let Some((line, words)) = end {
        return Err(wrong(
            line,
            format!("{{{{{}}}}} without a beginning", words[0]),
        ));
    }
    let mut filling = Filling {
        values,
        variables: vec![("$".to_owned(), Value::Node)],
        out: String::new(),
    };
    filling.fill(&nodes, &Value::Node)?;
    Ok(filling.out)
}

fn wrong(line: usize, why: impl Into<String>) -> Invalid {
    let why = why.into();
    Invalid { line, why }
}

/// Cuts the text at its actions.
fn pieces(template: &str) -> Result<Vec<Piece>, Invalid> {
    let mut pieces = Vec::new();
    let (mut rest, mut line, mut trims) = (template, 1, false);
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        line += text.matches('\n').count();
        let trims_before = after.is_some_and(|after| after.starts_with("- "));
        let mut kept = if trims { text.trim_start() } else { text };
        if trims_before {
            kept = kept.trim_end();
        }
        pieces.push(Piece::Text(kept.to_owned()));
        let Some(after) = after else {
            return Ok(pieces);
        };
        let end = action_end(after).ok_or_else(|| wrong(line, "{{ without }}"))?;
        let (inside, beyond) = (&after[..end], &after[end + 2..]);
        trims = inside.ends_with(" -");
        let inside = if trims_before { &inside[1..] } else { inside };
        let inside = if trims {
            &inside[..inside.len() - 1]
        } else {
            inside
        };
        if !(inside.trim().starts_with("/*") && inside.trim().ends_with("*/")) {
            let words = words(inside).map_err(|why| wrong(line, why))?;
            if words.is_empty() {
                return Err(wrong(line, "{{}} says nothing"));
            }
            pieces.push(Piece::Action { line, words });
        }
        line += inside.matches('\n').count();
        rest = beyond;
    }
}

/// Where an action's `}}` is: not in a text or a comment.
fn action_end(text: &str) -> Option<usize> {
    let start = text.strip_prefix("- ").unwrap_or(text).trim_start();
    if let Some(comment) = start.strip_prefix("/*") {
        let after = comment.find("*/")? + "*/".len();
        let at = text.len() - comment.len() + after;
        return text[at..].find("}}").map(|end| at + end);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted && text[at..].starts_with("}}") => return Some(at),
            _ => {}
        }
    }
    None
}

/// The words of an action. A text keeps its first quote, to be told from other words.
fn words(action: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut chars = action.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' | ')' | ',' => words.push(c.to_string()),
            ':' if chars.next_if_eq(&'=').is_some() => words.push(":=".to_owned()),
            '"' => {
                let mut text = String::from("\"");
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => text.extend(chars.next()),
                        Some(c) => text.push(c),
                        None => return Err("a text without an end".to_owned()),
                    }
                }
                words.push(text);
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !"(),:\"".contains(*c))
                {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

type End = Option<(usize, Vec<String>)>;

/// Reads up to the `end` or `else` of the block that has been begun.
fn parse(
    pieces: &mut Peekable<IntoIter<Piece>>,
    depth: usize,
) -> Result<(Vec<Node>, End), Invalid> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let (line, words) = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action { line, words } => (line, words),
        };
        match words[0].as_str() {
            "end" | "else" => return Ok((nodes, Some((line, words)))),
            "if" | "with" | "range" => nodes.push(block(pieces, line, &words, depth + 1)?),
            "template" | "define" | "block" | "break" | "continue" => {
                return Err(wrong(line, format!("{:?} is not supported", words[0])));
            }
            name if name.starts_with('$') && words.get(1).is_some_and(|word| word == ":=") => {
                nodes.push(Node::Set(line, name.to_owned(), words[2..].to_vec()));
            }
            _ => nodes.push(Node::Show(line, words)),
        }
    }
    Ok((nodes, None))
}

fn block(
    pieces: &mut Peekable<IntoIter<Piece>>,
    line: usize,
    words: &[String],
    depth: usize,
) -> Result<Node, Invalid> {
    if depth > MAX_DEPTH {
        return Err(wrong(line, "too many blocks in each other"));
    }
    let without_end = || wrong(line, format!("{{{{{}}}}} without {{{{end}}}}", words[0]));
    let (body, end) = parse(pieces, depth)?;
    let otherwise = match end {
        None => return Err(without_end()),
        Some((_, end)) if end[0] == "end" => Vec::new(),
        Some((line, end)) if end.len() > 1 => {
            // `else if`: a block in the place of the rest, which shares its `end`.
            vec![block(pieces, line, &end[1..], depth + 1)?]
        }
        Some(_) => match parse(pieces, depth)? {
            (nodes, Some((_, end))) if end[0] == "end" => nodes,
            _ => return Err(without_end()),
        },
    };
    let of = words[1..].to_vec();
    Ok(match words[0].as_str() {
        "if" => Node::If(line, of, body, otherwise),
        "with" => Node::With(line, of, body, otherwise),
        "range" => {
            let (names, of) = match of.iter().position(|word| word == ":=") {
                Some(at) => (of[..at].to_vec(), of[at + 1..].to_vec()),
                None => (Vec::new(), of),
            };
            let names: Vec<_> = names.into_iter().filter(|word| word != ",").collect();
            if names.len() > 2 || names.iter().any(|name| !name.starts_with('$')) {
                return Err(wrong(line, "range takes one or two variables"));
            }
            Node::Range {
                line,
                names,
                of,
                body,
                otherwise,
            }
        }
        other => return Err(wrong(line, format!("else {other:?} is not supported"))),
    })
}

struct Filling<'a> {
    values: &'a Values,
    variables: Vec<(String, Value)>,
    out: String,
}

impl Filling<'_> {
    fn fill(&mut self, nodes: &[Node], dot: &Value) -> Result<(), Invalid> {
        let known = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(known);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), Invalid> {
        match node {
            Node::Text(text) => self.write(text, 0),
            Node::Show(line, words) => {
                let text = match self.value(words, dot, *line)? {
                    Value::Text(text) => text,
                    Value::Number(number) => number.to_string(),
                    Value::Bool(value) => value.to_string(),
                    Value::List(_) | Value::Node => {
                        return Err(wrong(*line, format!("{:?} is no text", words.join(" "))));
                    }
                };
                self.write(&text, *line)
            }
            Node::Set(line, name, words) => {
                let value = self.value(words, dot, *line)?;
                self.variables.push((name.clone(), value));
                Ok(())
            }
            Node::If(line, words, body, otherwise) => {
                let chosen = self.value(words, dot, *line)?.is_true();
                self.fill(if chosen { body } else { otherwise }, dot)
            }
            Node::With(line, words, body, otherwise) => {
                let value = self.value(words, dot, *line)?;
                if value.is_true() {
                    self.fill(body, &value)
                } else {
                    self.fill(otherwise, dot)
                }
            }
            Node::Range {
                line,
                names,
                of,
                body,
                otherwise,
            } => {
                let Value::List(list) = self.value(of, dot, *line)? else {
                    return Err(wrong(*line, "range is over something that is no list"));
                };
                if list.is_empty() {
                    return self.fill(otherwise, dot);
                }
                for (at, item) in list.into_iter().enumerate() {
                    let known = self.variables.len();
                    match names.as_slice() {
                        [value] => self.variables.push((value.clone(), item.clone())),
                        [index, value] => {
                            self.variables.push((index.clone(), Value::Number(at)));
                            self.variables.push((value.clone(), item.clone()));
                        }
                        _ => {}
                    }
                    self.fill(body, &item)?;
                    self.variables.truncate(known);
                }
                Ok(())
            }
        }
    }

    fn write(&mut self, text: &str, line: usize) -> Result<(), Invalid> {
        self.out.push_str(text);
        if self.out.len() > MAX_OUTPUT {
            return Err(wrong(line, format!("becomes more than {MAX_OUTPUT} bytes")));
        }
        Ok(())
    }

    /// What an expression stands for.
    fn value(&self, words: &[String], dot: &Value, line: usize) -> Result<Value, Invalid> {
        let mut words = words.iter().map(String::as_str).peekable();
        let value = self.call(&mut words, dot, 0);
        let value = value.map_err(|why| wrong(line, why))?;
        match words.next() {
            None => Ok(value),
            Some(word) => Err(wrong(line, format!("{word:?} is not supported"))),
        }
    }

    /// A function with its arguments, or one value.
    fn call<'w>(
        &self,
        words: &mut Peekable<impl Iterator<Item = &'w str>>,
        dot: &Value,
        depth: usize,
    ) -> Result<Value, String> {
        let first = words.next().ok_or("something is missing")?;
        if !first.starts_with(|c: char| c.is_ascii_alphabetic())
            || ["true", "false"].contains(&first)
        {
            return self.operand(first, words, dot, depth);
        }
        let mut arguments = Vec::new();
        while words.peek().is_some_and(|word| *word != ")") {
            let word = words.next().expect("peeked");
            arguments.push(self.operand(word, words, dot, depth)?);
        }
        match (first, arguments.as_slice()) {
            ("len", [Value::List(list)]) => Ok(Value::Number(list.len())),
            ("len", [Value::Text(text)]) => Ok(Value::Number(text.len())),
            ("index", [Value::List(list), Value::Number(at)]) => {
                let found = list.get(*at).cloned();
                found.ok_or_else(|| format!("index {at} of a list of {}", list.len()))
            }
            ("eq", [first, others @ ..]) if !others.is_empty() => {
                Ok(Value::Bool(others.contains(first)))
            }
            ("ne", [a, b]) => Ok(Value::Bool(a != b)),
            ("not", [value]) => Ok(Value::Bool(!value.is_true())),
            ("and", [.., last]) => {
                let first_false = arguments.iter().find(|value| !value.is_true());
                Ok(first_false.unwrap_or(last).clone())
            }
            ("or", [.., last]) => {
                let first_true = arguments.iter().find(|value| value.is_true());
                Ok(first_true.unwrap_or(last).clone())
            }
            ("len" | "index" | "eq" | "ne" | "not" | "and" | "or", _) => {
                Err(format!("{first} does not take these arguments"))
            }
            _ => Err(format!("the function {first:?} is not supported")),
        }
    }

    fn operand<'w>(
        &self,
        word: &str,
        words: &mut Peekable<impl Iterator<Item = &'w str>>,
        dot: &Value,
        depth: usize,
    ) -> Result<Value, String> {
        if word == "(" {
            if depth > MAX_DEPTH {
                return Err("too many brackets in each other".to_owned());
            }
            // The kind of iterator must not grow with each bracket.
            let words: &mut Peekable<_> = words;
            let value = self.call(words, dot, depth + 1)?;
            return match words.next() {
                Some(")") => Ok(value),
                _ => Err("a bracket is not closed".to_owned()),
            };
        }
        match word {
            "true" | "false" => return Ok(Value::Bool(word == "true")),
            "." => return Ok(dot.clone()),
            _ => {}
        }
        if let Some(text) = word.strip_prefix('"') {
            return Ok(Value::Text(text.to_owned()));
        }
        if let Ok(number) = word.parse() {
            return Ok(Value::Number(number));
        }
        if let Some((name, fields)) =
            word.strip_prefix('$')
                .map(|rest| match rest.split_once('.') {
                    Some((name, field)) => (name, Some(field)),
                    None => (rest, None),
                })
        {
            let name = format!("${name}");
            let found = self
                .variables
                .iter()
                .rev()
                .find(|(known, _)| *known == name);
            let value = found
                .map(|(_, value)| value)
                .ok_or(format!("{name} is not set"))?;
            return fields.map_or(Ok(value.clone()), |field| self.field(value, field));
        }
        match word.strip_prefix('.') {
            Some(field) => self.field(dot, field),
            None => Err(format!("{word:?} is not supported")),
        }
    }

    fn field(&self, of: &Value, name: &str) -> Result<Value, String> {
        match (of, name) {
            (Value::Node, "PodCIDR") => Ok(Value::Text(
                self.values.ranges.first().cloned().unwrap_or_default(),
            )),
            (Value::Node, "PodCIDRRanges") => Ok(Value::texts(&self.values.ranges)),
            (Value::Node, "Routes") => Ok(Value::texts(&self.values.routes)),
            _ => Err(format!("there is no .{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> Result<String, String> {
        let values = Values {
            ranges: vec!["10.1.0.0/24".into(), "fd00::/64".into()],
            routes: vec!["0.0.0.0/0".into(), "::/0".into()],
        };
        render(template, &values).map_err(|error| error.to_string())
    }

    #[test]
    fn containerds_own_templates_are_filled_in() {
        // The shapes that are in use: one range, and a list with commas between.
        let one = r#"{"ipam":{"subnet":"{{.PodCIDR}}"}}"#;
        assert_eq!(fill(one).unwrap(), r#"{"ipam":{"subnet":"10.1.0.0/24"}}"#);
        let all = r#"[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]"#;
        let expected = r#"[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]"#;
        assert_eq!(fill(all).unwrap(), expected);
        let routes =
            "{{- range $i,$r:=.Routes -}} {{ if ne $i 0 -}} , {{- end -}} {{ $r }} {{- end }}\n";
        assert_eq!(fill(routes).unwrap(), "0.0.0.0/0,::/0\n");
    }

    #[test]
    fn blocks_variables_and_functions() {
        for (template, expected) in [
            ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
            (
                "{{if eq (len .PodCIDRRanges) 2}}dual{{else}}single{{end}}",
                "dual",
            ),
            (
                "{{if false}}a{{else if not true}}b{{else if .PodCIDR}}c{{else}}d{{end}}",
                "c",
            ),
            (
                "{{with index .Routes 1}}{{.}} of {{$.PodCIDR}}{{end}}",
                "::/0 of 10.1.0.0/24",
            ),
            (
                "{{$first := .PodCIDR}}{{/* a }} comment */}}{{$first}}",
                "10.1.0.0/24",
            ),
            ("{{and 1 \"x\"}}{{or \"\" \"y}}\"}}", "xy}}"),
            (
                "{{range $x := .PodCIDRRanges}}{{$x}} {{else}}none{{end}}",
                "10.1.0.0/24 fd00::/64 ",
            ),
            ("no gaps", "no gaps"),
        ] {
            assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (template, expected) in [
            ("\n{{.Pod}}", "line 2: there is no .Pod"),
            ("a\n\n{{if .PodCIDR}}", "line 3: {{if}} without {{end}}"),
            ("{{end}}", "line 1: {{end}} without a beginning"),
            ("{{", "line 1: {{ without }}"),
            ("{{}}", "line 1: {{}} says nothing"),
            ("{{.Routes}}", "line 1: \".Routes\" is no text"),
            ("{{$x}}", "line 1: $x is not set"),
            (
                "{{range .PodCIDR}}{{end}}",
                "line 1: range is over something that is no list",
            ),
            (
                "{{printf \"%s\" .PodCIDR}}",
                "line 1: the function \"printf\" is not supported",
            ),
            (
                "{{template \"x\"}}",
                "line 1: \"template\" is not supported",
            ),
            ("{{.PodCIDR | len}}", "line 1: \"|\" is not supported"),
            ("{{index .Routes 7}}", "line 1: index 7 of a list of 2"),
            ("{{len (.Routes}}", "line 1: a bracket is not closed"),
            ("{{\"x}}", "line 1: {{ without }}"),
        ] {
            assert_eq!(fill(template).unwrap_err(), expected, "{template}");
        }
        let deep = "{{if 1}}".repeat(100);
        assert!(fill(&deep).unwrap_err().contains("too many blocks"));
        let brackets = format!("{{{{len {}", "(len ".repeat(100)) + "}}";
        assert!(fill(&brackets).unwrap_err().contains("too many brackets"));
        let long = "{{range $.Routes}}".repeat(25) + "x" + &"{{end}}".repeat(25);
        assert!(fill(&long).unwrap_err().contains("more than"), "bounded");
    }
}
