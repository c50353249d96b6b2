//! What one process without faults answers: the same model in this process, asked the same conversation. Answers are kept by
//! what they follow from, so that each is computed once for all schedules.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::Context as _;
use stellate_actors::{
    Addition, AskOptions, Context, ContextSource, Layout, Model, ModelOptions, ModelSource, Node,
    NodeOptions, QueryInput,
};
use stellate_ops::document::Document;
use tokio::sync::Mutex;

use crate::schedule::{DOCUMENTS, FACTS};

/// Blocks are small, so that there are some on every node.
const BLOCK_TOKENS: usize = 512;
const DOCUMENT_TOKENS: usize = 2600;
/// More than a block, and no whole number of them.
const ADDITION_FACTS: usize = 2;
const ADDITION_TOKENS: usize = 700;

/// Room for all contexts that schedules ask.
const CAPACITY_BYTES: usize = 1 << 30;

/// Tokens of an answer that goes on for long.
const LONG_TOKENS: usize = 80;

/// What a context is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text {
    /// The document.
    pub document: u64,
    /// How many additions stand behind it.
    pub additions: u8,
    /// With exact attention, not star.
    pub is_exact: bool,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The fact of the document that is asked for.
    pub fact: usize,
    /// An answer that goes on for long.
    pub is_long: bool,
}

impl Question {
    /// How it is asked; the answer has at most `tokens`, if that is said.
    pub fn options(self, tokens: Option<usize>) -> AskOptions {
        let options = AskOptions::default();
        let usual = if self.is_long { LONG_TOKENS } else { options.max_tokens };
        let max_tokens = tokens.unwrap_or(usual);
        AskOptions {
            max_tokens,
            ignore_eos: self.is_long,
            // A token a step: something can happen between any two.
            guess_tokens: if self.is_long { 0 } else { options.guess_tokens },
            ..options
        }
    }
}

/// A turn of a conversation: what was asked, and how many tokens came. Fewer than there are if it was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// What was asked.
    pub question: Question,
    /// Tokens of the answer.
    pub tokens: usize,
}

type Asked = (Text, Vec<Said>, Question);

/// One process without faults.
#[derive(Debug)]
pub struct Oracle {
    node: Node,
    documents: Vec<Document>,
    additions: Vec<Document>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    contexts: BTreeMap<Text, Context>,
    answers: BTreeMap<Asked, Vec<u32>>,
}

impl Oracle {
    /// Opens the demo model in this process. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The model cannot be opened.
    pub async fn open() -> anyhow::Result<Self> {
        let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
        let options = NodeOptions { capacity_bytes: CAPACITY_BYTES, ..NodeOptions::default() };
        let node = Node::open(&model, options).await?;
        let tokenizer = node.prompter().tokenizer().context("the demo model has a tokenizer")?;
        let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
        let document = |seed| Document::generate(1 + seed, DOCUMENT_TOKENS, FACTS, count);
        let addition = |seed| Document::generate(1000 + seed, ADDITION_TOKENS, ADDITION_FACTS, count);
        let documents = (0..DOCUMENTS).map(document).collect();
        let additions = (0..u64::from(crate::schedule::ADDITIONS)).map(addition).collect();
        Ok(Self { node, documents, additions, kept: Mutex::default() })
    }

    /// Closes it.
    pub async fn close(&self) {
        self.node.close().await;
    }

    /// A document, to be encoded.
    pub fn source(&self, document: u64) -> ContextSource {
        ContextSource::Document(self.documents[document as usize].text.clone())
    }

    /// How a context is cut.
    pub fn layout(&self, is_exact: bool) -> Layout {
        if is_exact { Layout::exact(BLOCK_TOKENS) } else { Layout::star(BLOCK_TOKENS, BLOCK_TOKENS) }
    }

    /// What comes behind a context that has `additions` already.
    pub fn addition(&self, additions: u8) -> Addition {
        Addition::Text(self.additions[usize::from(additions)].text.clone())
    }

    /// A question in words.
    pub fn words(&self, document: u64, question: Question) -> String {
        self.documents[document as usize].facts[question.fact].question()
    }

    /// The tokens that answer `question` after `before`.
    ///
    /// # Errors
    /// This process cannot answer.
    pub async fn answer(&self, text: Text, before: &[Said], question: Question) -> anyhow::Result<Vec<u32>> {
        let asked = (text, before.to_vec(), question);
        let mut kept = self.kept.lock().await;
        if let Some(answer) = kept.answers.get(&asked) {
            return Ok(answer.clone());
        }
        let context = self.context(&mut kept.contexts, text).await?;
        let session = context.session().await?;
        for said in before {
            let words = self.words(text.document, said.question);
            session.ask(words, said.question.options(Some(said.tokens))).finish().await?;
        }
        let words = self.words(text.document, question);
        let answer = session.ask(words, question.options(None)).finish().await?.ids;
        kept.answers.insert(asked, answer.clone());
        Ok(answer)
    }

    /// So many tokens of a text that no other seed has.
    ///
    /// # Errors
    /// The text cannot be tokenised.
    pub fn tokens(&self, seed: u64, count: usize) -> anyhow::Result<Vec<u32>> {
        let tokenizer = self.node.prompter().tokenizer().context("the demo model has a tokenizer")?;
        let counted = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
        let text = Document::generate(seed, count + FACTS, FACTS, counted).text;
        let mut ids = tokenizer.encode(&text, false)?;
        ids.truncate(count);
        anyhow::ensure!(ids.len() == count, "{} tokens of {count}", ids.len());
        Ok(ids)
    }

    /// The tokens that answer a question over a context of `ids`; nothing of it is kept.
    ///
    /// # Errors
    /// This process cannot answer.
    pub async fn answer_to_ids(
        &self,
        ids: &[u32],
        layout: Layout,
        question: QueryInput,
        options: AskOptions,
    ) -> anyhow::Result<Vec<u32>> {
        let context = self.node.encode(ContextSource::Ids(ids.to_vec()), layout).await?;
        let session = context.session().await?;
        Ok(session.ask(question, options).finish().await?.ids)
    }

    async fn context(&self, contexts: &mut BTreeMap<Text, Context>, text: Text) -> anyhow::Result<Context> {
        let first = Text { additions: 0, ..text };
        if let Entry::Vacant(entry) = contexts.entry(first) {
            let layout = self.layout(text.is_exact);
            entry.insert(self.node.encode(self.source(text.document), layout).await?);
        }
        for additions in 1..=text.additions {
            let (shorter, longer) = (Text { additions: additions - 1, ..text }, Text { additions, ..text });
            if !contexts.contains_key(&longer) {
                let context = contexts[&shorter].append(self.addition(additions - 1)).await?;
                contexts.insert(longer, context);
            }
        }
        Ok(contexts[&text].clone())
    }
}
