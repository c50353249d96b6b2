//! Cutting a rendered conversation into the text before a context, the text behind it, and the text between turns:
//! the context is encoded once, long before any question is known, so a prompt must come in pieces.

use std::fmt;
use std::str::FromStr;

use super::{ChatError, ChatTemplate, Message};

/// What stands between the context and the question when both are in the user's message.
const USER_SEPARATOR: &str = "\n\n";

/// What stands between the caller's system text and the context in the same message.
const SYSTEM_SEPARATOR: &str = "\n\n";

/// Which message carries the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContextRole {
    /// The system message where the template shows one in place, before the question; else the user's.
    #[default]
    Auto,
    /// The system message, behind the caller's system text.
    System,
    /// The head of the first user message, before the question.
    User,
}

/// A name that is no [`ContextRole`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no context role; use auto, system or user")]
pub struct ParseContextRoleError {
    /// What was given.
    pub name: String,
}

/// A prompt in pieces. The first prompt is `before_context + context + between_context_and_question + question +
/// after_question`; each later turn adds `turn_glue + question + after_question`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptSplit {
    /// From the beginning (with the begin-of-text token, if the template writes it) up to the context.
    pub before_context: String,
    /// From the context to the first question.
    pub between_context_and_question: String,
    /// From a question to where the answer begins.
    pub after_question: String,
    /// From an answer to the next question. It begins with the template's end-of-turn token, so the end token that
    /// the model itself sampled is not fed in again.
    pub turn_glue: String,
}

/// Where the caller's system text and the context go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Both in the system message.
    System,
    /// The system text in a system message, the context in the user's.
    User,
    /// Both in the user's message: there is no other.
    UserOnly,
}

/// Texts that stand in for context, questions and answer. They are letters and digits, so trimming and escaping leave
/// them alone, and they hold a hash of the template and the system text, so neither can contain them.
struct Sentinels {
    context: String,
    question: String,
    answer: String,
    next_question: String,
}

impl PromptSplit {
    /// The prompt of a model without a chat template: `bos`, the context, the question as it is.
    pub fn plain(bos: &str) -> Self {
        Self { before_context: bos.to_owned(), ..Self::default() }
    }
}

impl ChatTemplate {
    /// Cuts the template's prompt around the context, which `role` places. `system` is the caller's system text: it
    /// stands before the context in the system message; with the context in the user's message it has the system
    /// message for itself, or the head of the user's where the template keeps no system message in place (Mistral).
    ///
    /// # Errors
    /// [`ChatError::Render`] if the template refuses such a conversation, [`ChatError::NotInPlace`] if it does not
    /// show context and question once each and in that order, [`ChatError::NotAppendOnly`] if a second turn changes
    /// what the first one said. With [`ContextRole::Auto`] the errors are those of the user's message, tried last.
    pub fn split(&self, role: ContextRole, system: Option<&str>) -> Result<PromptSplit, ChatError> {
        let in_system = || self.split_in(Layout::System, system);
        let in_user = || match system {
            None => self.split_in(Layout::UserOnly, None),
            Some(_) => {
                self.split_in(Layout::User, system).or_else(|_| self.split_in(Layout::UserOnly, system))
            }
        };
        match role {
            ContextRole::System => in_system(),
            ContextRole::User => in_user(),
            ContextRole::Auto => in_system().or_else(|_| in_user()),
        }
    }

    fn split_in(&self, layout: Layout, system: Option<&str>) -> Result<PromptSplit, ChatError> {
        let other = if layout == Layout::System { ContextRole::User } else { ContextRole::System };
        let sentinels = Sentinels::new(&self.source, system.unwrap_or_default());
        let Sentinels { context, question, answer, next_question } = &sentinels;
        let first_turn = sentinels.first_turn(layout, system);
        let first = self.render(&first_turn, true)?;
        let (before, rest) = cut(&first, context, "context", other)?;
        let (between, after) = cut(rest, question, "question", other)?;

        let mut conversation = first_turn;
        conversation.push(Message::new("assistant", answer.as_str()));
        conversation.push(Message::new("user", next_question.as_str()));
        let second = self.render(&conversation, true)?;
        let (kept, rest) = cut(&second, answer, "answer", other)?;
        let (glue, after_next) = cut(rest, next_question, "question", other)?;
        let stable = format!("{before}{context}{between}{question}");
        if !kept.starts_with(&stable) || glue.contains(context) || after_next.contains(context) {
            return Err(ChatError::NotAppendOnly { reason: "what stands before the first answer", other });
        }
        if after_next != after {
            return Err(ChatError::NotAppendOnly { reason: "what stands behind a question", other });
        }
        Ok(PromptSplit {
            before_context: before.to_owned(),
            between_context_and_question: between.to_owned(),
            after_question: after.to_owned(),
            turn_glue: glue.to_owned(),
        })
    }
}

impl Sentinels {
    fn new(template: &str, system: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(template.len() as u64).to_le_bytes());
        hasher.update(template.as_bytes());
        hasher.update(system.as_bytes());
        let hash = hasher.finalize().to_hex();
        // The last letter keeps each from being the head of another.
        let sentinel = |letter: char| format!("x{hash}{letter}");
        Self {
            context: sentinel('c'),
            question: sentinel('q'),
            answer: sentinel('r'),
            next_question: sentinel('s'),
        }
    }

    fn first_turn(&self, layout: Layout, system: Option<&str>) -> Vec<Message> {
        let (context, question) = (&self.context, &self.question);
        let head = system.map(|text| format!("{text}{SYSTEM_SEPARATOR}")).unwrap_or_default();
        let both = format!("{context}{USER_SEPARATOR}{question}");
        match layout {
            Layout::System => vec![
                Message::new("system", format!("{head}{context}")),
                Message::new("user", question.as_str()),
            ],
            Layout::User => {
                vec![Message::new("system", system.unwrap_or_default()), Message::new("user", both)]
            }
            Layout::UserOnly => vec![Message::new("user", format!("{head}{both}"))],
        }
    }
}

/// The text before and behind the only place where `sentinel` stands.
fn cut<'a>(
    text: &'a str,
    sentinel: &str,
    name: &'static str,
    other: ContextRole,
) -> Result<(&'a str, &'a str), ChatError> {
    match text.matches(sentinel).count() {
        1 => Ok(text.split_once(sentinel).expect("counted once above")),
        count => Err(ChatError::NotInPlace { text: name, count, other }),
    }
}

impl fmt::Display for ContextRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::System => "system",
            Self::User => "user",
        })
    }
}

impl FromStr for ContextRole {
    type Err = ParseContextRoleError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            _ => Err(ParseContextRoleError { name: name.to_owned() }),
        }
    }
}
