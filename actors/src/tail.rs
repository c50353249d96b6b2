//! A tail: keys and values that grow token by token behind a context. A session keeps its questions and answers in
//! one; an `exact` block is one while it is encoded, and is sealed after. It grows by whole blocks of a store.

use std::ops::Range;
use std::sync::Arc;

use stellate_kernels::{Backend, KvSpan, Visible};

use crate::budget::{BudgetedBlock, KvBudget, StoreFull};

/// Tokens by which a session's tail grows: four tiles, small beside a context and large beside a question.
pub const TAIL_GROWTH_TOKENS: usize = 256;

/// Keys and values behind a context, in order.
#[derive(Debug)]
pub struct Tail {
    growth: Option<Arc<KvBudget>>,
    width: usize,
    pieces: Vec<BudgetedBlock>,
    piece_tokens: usize,
    len: usize,
}

impl Tail {
    /// An empty tail that grows within `budget`.
    pub fn growing(budget: Arc<KvBudget>) -> Self {
        let width = budget.shape().kv_heads * budget.shape().head_dim;
        Self { growth: Some(budget), width, pieces: Vec::new(), piece_tokens: TAIL_GROWTH_TOKENS, len: 0 }
    }

    /// An empty tail within one block, which [`into_block`](Self::into_block) gives back filled.
    pub fn within(block: BudgetedBlock) -> Self {
        let width = block.shape().kv_heads * block.shape().head_dim;
        Self { growth: None, width, piece_tokens: block.capacity_tokens(), pieces: vec![block], len: 0 }
    }

    /// Tokens whose keys and values are complete in every layer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated for it.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes()).sum()
    }

    /// Makes room for `tokens` more. On an error the tail is as it was.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), StoreFull> {
        let (before, pieces) = (self.pieces.len(), (self.len + tokens).div_ceil(self.piece_tokens));
        if pieces <= before {
            return Ok(());
        }
        let budget = self.growth.as_ref().expect("a tail within one block is not outgrown");
        for _ in before..pieces {
            match budget.allocate(self.piece_tokens) {
                Ok(piece) => self.pieces.push(piece),
                Err(_) => {
                    self.pieces.truncate(before);
                    let needed_tokens = (pieces - before) * self.piece_tokens;
                    return Err(StoreFull { needed_tokens, free_tokens: budget.free_tokens() });
                }
            }
        }
        Ok(())
    }

    /// Writes one layer's keys and values `[tokens, kv_heads, head_dim]` behind the complete tokens. The room must
    /// have been reserved; [`advance`](Self::advance) completes them once every layer is written.
    pub fn write(&mut self, backend: &dyn Backend, layer: usize, keys: &[f32], values: &[f32]) {
        let width = self.width;
        let tokens = keys.len() / width;
        let mut done = 0;
        while done < tokens {
            let (piece, at) = ((self.len + done) / self.piece_tokens, (self.len + done) % self.piece_tokens);
            let run = (self.piece_tokens - at).min(tokens - done);
            let range = done * width..(done + run) * width;
            backend.write(&mut self.pieces[piece], layer, at, &keys[range.clone()], &values[range]);
            done += run;
        }
    }

    /// Adds to `spans` one layer's keys and values as those of `rows` of the queries behind the complete tokens see them:
    /// causally.
    pub fn add_spans<'a>(&'a self, layer: usize, rows: Range<usize>, spans: &mut Vec<KvSpan<'a>>) {
        let total = self.len + rows.end;
        let pieces = self.pieces.iter().enumerate();
        let pieces = pieces
            .map(|(index, piece)| (index * self.piece_tokens, piece))
            .take_while(|&(start, _)| start < total)
            .map(|(start, piece)| KvSpan {
                keys: piece.view(layer, (total - start).min(self.piece_tokens)),
                visible: Visible::Causal { offset: (self.len + rows.start) as i64 - start as i64 },
            });
        spans.extend(pieces);
    }

    /// Completes `tokens` tokens that every layer has written.
    pub fn advance(&mut self, tokens: usize) {
        self.set_len(self.len + tokens);
    }

    /// Forgets all but the first `tokens` tokens and frees what only they needed.
    pub fn truncate(&mut self, tokens: usize) {
        assert!(tokens <= self.len, "a tail is cut, not stretched");
        self.set_len(tokens);
        self.pieces.truncate(tokens.div_ceil(self.piece_tokens));
    }

    /// The one block of a tail made by [`within`](Self::within).
    pub fn into_block(mut self) -> BudgetedBlock {
        assert_eq!(self.pieces.len(), 1, "only a tail of one block can be sealed");
        self.pieces.remove(0)
    }

    fn set_len(&mut self, tokens: usize) {
        self.len = tokens;
        for (index, piece) in self.pieces.iter_mut().enumerate() {
            piece.set_len(tokens.saturating_sub(index * self.piece_tokens).min(self.piece_tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use stellate_kernels::{KvFormat, KvShape, Reference};

    use super::*;

    fn budget(tokens: usize) -> Arc<KvBudget> {
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 8, format: KvFormat::F32 };
        KvBudget::new(shape, shape.bytes_for(tokens))
    }

    fn numbers(tokens: usize) -> Vec<f32> {
        (0..tokens * 16).map(|i| i as f32).collect()
    }

    #[test]
    fn tokens_written_across_pieces_are_read_back_in_order() {
        let mut tail = Tail::growing(budget(1024));
        let all = numbers(600);
        for chunk in all.chunks(16 * 150) {
            tail.reserve(chunk.len() / 16).unwrap();
            tail.write(&Reference, 0, chunk, chunk);
            tail.advance(chunk.len() / 16);
        }
        let mut read = Vec::new();
        for piece in &tail.pieces {
            read.extend(piece.read(0, 0, piece.len()).0);
        }
        assert_eq!(read, all);
    }

    #[test]
    fn a_query_sees_the_tail_and_itself_and_nothing_later() {
        let mut tail = Tail::growing(budget(1024));
        tail.reserve(300).unwrap();
        tail.advance(300);
        let seen = |rows| {
            let mut spans = Vec::new();
            tail.add_spans(0, rows, &mut spans);
            spans.iter().map(|span| (span.keys.keys(), span.visible)).collect::<Vec<_>>()
        };
        let causal = |offset| Visible::Causal { offset };
        assert_eq!(seen(0..3), [(256, causal(300)), (47, causal(44))]);
        assert_eq!(seen(2..3), [(256, causal(302)), (47, causal(46))], "the last of them alone");
    }

    #[test]
    fn a_full_store_leaves_the_tail_as_it_was() {
        let budget = budget(512);
        let mut tail = Tail::growing(Arc::clone(&budget));
        tail.reserve(200).unwrap();
        tail.advance(200);
        let used = budget.used_bytes();
        assert_eq!(tail.reserve(600), Err(StoreFull { needed_tokens: 768, free_tokens: 256 }));
        assert_eq!((tail.len(), budget.used_bytes()), (200, used));
        tail.truncate(0);
        assert_eq!(budget.used_bytes(), 0);
    }
}
