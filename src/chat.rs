//! Conversations: messages become one text by the model's own template, which comes from a file and is not trusted. It may
//! run for so many steps, nest so deep and write so much; it reaches no file and no clock but today's date.
//!
//! The whole conversation is rendered for every turn, as the reference does, and what the session holds of it already is not
//! run again. What the user wrote is kept from being taken for special tokens: see [`Conversation::part`].

mod date;
mod python;

use anyhow::anyhow;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};
use std::io::Write;
use tidbit_runtime::format::Chat;
use tidbit_runtime::session::Model;
use tidbit_runtime::tokenizer::Tokenizer;

/// Steps of a template. Real ones take some tens for each message.
const FUEL: u64 = 5_000_000;

/// How deep a template may nest.
const DEPTH: usize = 100;

/// The most text that a template may write, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// Stands between characters that would be a special token otherwise. No text has it: it is no character.
const APART: char = '\u{FDD0}';

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A conversation with a model.
pub(crate) struct Conversation<'a> {
    chat: &'a Chat,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    messages: Vec<(Role, String)>,
    /// Messages that it begins with: that of the system, if there is one.
    first: usize,
}

impl<'a> Conversation<'a> {
    /// A conversation that begins with the system's message, if there is one.
    ///
    /// # Errors
    /// When the model has no template, or the message cannot be taken.
    pub(crate) fn new(model: &'a Model, tokenizer: &'a Tokenizer, system: Option<&str>) -> anyhow::Result<Self> {
        let path = model.file().path().display();
        let Some(chat) = model.file().chat() else {
            return Err(anyhow!("{path}: the model has no chat template: it was not made for conversations"));
        };
        let mut new = Self { chat, model, tokenizer, messages: Vec::new(), first: 0 };
        if let Some(system) = system {
            new.messages.push((Role::System, new.part(system)?));
            new.first = 1;
        }
        Ok(new)
    }

    /// Adds the user's message; the tokens of the whole conversation, up to where the model answers.
    ///
    /// # Errors
    /// When the template fails, or the message cannot be taken.
    pub(crate) fn ask(&mut self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.messages.push((Role::User, self.part(text)?));
        let path = self.model.file().path().display();
        let text = render(self.chat, &self.messages).map_err(|e| anyhow!("{path}: the chat template fails: {e}"))?;
        self.encode(&text)
    }

    /// Adds what the model answered.
    pub(crate) fn answered(&mut self, text: &str) {
        self.messages.push((Role::Assistant, text.into()));
    }

    /// Takes the user's last message back.
    pub(crate) fn take_back(&mut self) {
        self.messages.pop();
    }

    /// Begins again.
    pub(crate) fn clear(&mut self) {
        self.messages.truncate(self.first);
    }

    /// The tokens that end an answer: those that end a text, and the one that the template ends a message with.
    pub(crate) fn ends(&self) -> anyhow::Result<Vec<u32>> {
        let mut ends = self.model.spec().eos_ids.clone();
        if let Some(token) = self.chat.tokens.get("eos_token")
            && let [id] = self.tokenizer.encode(token)?[..]
            && self.tokenizer.is_special(id)
            && !ends.contains(&id)
        {
            ends.push(id);
        }
        Ok(ends)
    }

    /// A message as the template gets it: where it has the text of a special token, this is taken apart, and
    /// [`encode`](Self::encode) does not put it together again. So nobody who writes a message can end it and begin another
    /// one in somebody else's name.
    fn part(&self, text: &str) -> anyhow::Result<String> {
        let mut text = text.replace(APART, "");
        // Once is enough but where tokens overlap.
        for _ in 0..16 {
            let ids = self.encode(&text)?;
            let special: Vec<_> = ids.into_iter().filter(|&id| self.tokenizer.is_special(id)).collect();
            if special.is_empty() {
                return Ok(text);
            }
            for token in special.into_iter().map(|id| self.tokenizer.decode(&[id])) {
                let at = token.chars().next().map_or(0, char::len_utf8);
                text = text.replace(&token, &format!("{}{APART}{}", &token[..at], &token[at..]));
            }
        }
        Err(anyhow!("the message is made of special tokens"))
    }

    /// The tokens of a rendered text.
    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for part in text.split(APART).filter(|part| !part.is_empty()) {
            ids.extend(self.tokenizer.encode(part)?);
        }
        Ok(ids)
    }
}

/// The text that a template makes of messages, up to where the model answers. The settings are those of transformers.
fn render(chat: &Chat, messages: &[(Role, String)]) -> Result<String, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| describe(&e))?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    environment.add_filter("tojson", python::to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| date::strftime(date::now(), &format));
    let message = |(role, content): &(Role, String)| {
        Value::from_pairs([("role", Value::from(role.name())), ("content", Value::from(content.as_str()))])
    };
    let tokens = chat.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
    let context = Value::from_pairs(tokens.chain([
        ("messages", Value::from(messages.iter().map(message).collect::<Vec<_>>())),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(true)),
    ]));
    let source = python::without_generation_blocks(&chat.template);
    let template = environment.template_from_str(&source).map_err(|e| describe(&e))?;
    let mut out = Bounded(Vec::new());
    match template.render_captured_to(context, &mut out) {
        Ok(_) => String::from_utf8(out.0).map_err(|e| e.to_string()),
        Err(e) if e.kind() == ErrorKind::WriteFailure => Err(format!("it writes more than {MAX_TEXT} bytes")),
        Err(e) => Err(describe(&e)),
    }
}

/// One line: what is wrong, and where.
fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    let shown: String = what.chars().take(300).collect();
    error.line().map_or(shown.clone(), |line| format!("{shown} (line {line})"))
}

/// Takes text up to a limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
