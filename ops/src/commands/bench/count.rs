//! The operations that encoding a context takes, counted from the sizes of the model and the layout of the context, so
//! that a measured ratio can stand beside the one that arithmetic predicts.
//!
//! Counted are multiply-adds of the two things that grow: the matrix products of every token and layer, and the pairs
//! of a query and a key that it may see, under the causal mask and behind the anchor, for scores and values. Of the
//! last layer only keys and values are kept, so it ends with its first three products. Norms, rotations, softmax and
//! merging are not counted: they are some operations per number where products and attention are hundreds.

use std::iter::Sum;
use std::ops::{Add, Mul};

use serde::Serialize;
use stellate_actors::{Attention, Layout};
use stellate_model::config::ModelConfig;

/// Multiply-adds, each two floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Of matrix products.
    pub(super) products: u128,
    /// Of attention.
    pub(super) attention: u128,
}

/// [`Work`] as it is told: thousands of millions of floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Gflop {
    pub(super) products: f64,
    pub(super) attention: f64,
    pub(super) total: f64,
}

/// How often an anchor is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchors {
    /// Once on each of so many hosts; the host of the first block has it with that.
    OncePerHost(usize),
    /// Again for every block behind it, as in the paper.
    BehindEveryBlock,
}

impl Work {
    pub(super) fn gflop(self) -> Gflop {
        let gflop = |multiply_adds: u128| 2.0 * multiply_adds as f64 / 1e9;
        Gflop {
            products: gflop(self.products),
            attention: gflop(self.attention),
            total: gflop(self.products + self.attention),
        }
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { products: self.products + other.products, attention: self.attention + other.attention }
    }
}

impl Mul<usize> for Work {
    type Output = Self;

    fn mul(self, times: usize) -> Self {
        let times = times as u128;
        Self { products: self.products * times, attention: self.attention * times }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), Add::add)
    }
}

/// What encoding a context of `tokens` tokens takes.
pub(super) fn encode(config: &ModelConfig, layout: &Layout, tokens: usize, anchors: Anchors) -> Work {
    if layout.attention == Attention::Exact {
        return run(config, tokens, 0);
    }
    let anchor_tokens = layout.anchor_tokens(tokens);
    let behind = |start: usize| if start == 0 { 0 } else { anchor_tokens };
    let blocks: Work = layout.cut(tokens).map(|block| run(config, block.len(), behind(block.start))).sum();
    let count = layout.cut(tokens).count();
    let anchors = match anchors {
        Anchors::OncePerHost(hosts) => hosts.min(count).saturating_sub(1),
        Anchors::BehindEveryBlock => count.saturating_sub(1),
    };
    blocks + run(config, anchor_tokens, 0) * anchors
}

/// What a run of `tokens` tokens takes, each of which sees `before` tokens, itself and the earlier ones of the run.
fn run(config: &ModelConfig, tokens: usize, before: usize) -> Work {
    let (tokens, before) = (tokens as u128, before as u128);
    let pairs = tokens * before + tokens * (tokens + 1) / 2;
    // One multiply-add for the score and one for the value, per head and number of a head.
    let per_pair = 2 * (config.heads * config.head_dim) as u128;
    let whole_layers = config.layers as u128 - 1;
    let (first, second) = layer_products(config);
    Work {
        products: tokens * (whole_layers * (first + second) + first),
        attention: whole_layers * pairs * per_pair,
    }
}

/// Multiply-adds of one token's products in a layer: those before its attention, which give queries, keys and values, and
/// those after it: attention's output, gate, up and down.
fn layer_products(config: &ModelConfig) -> (u128, u128) {
    let ModelConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, .. } = *config;
    let first = hidden_size * (heads + 2 * kv_heads) * head_dim;
    let second = heads * head_dim * hidden_size + 3 * hidden_size * intermediate_size;
    (first as u128, second as u128)
}

#[cfg(test)]
mod tests {
    use stellate_model::random::RandomModel;

    use super::*;

    /// The same by going through every layer, token and key, and through the rows and columns of every matrix.
    fn by_hand(config: &ModelConfig, layout: &Layout, tokens: usize, anchors: Anchors) -> Work {
        let mut work = Work::default();
        let mut compute = |positions: &[usize], sees: &dyn Fn(usize, usize) -> bool| {
            for layer in 0..config.layers {
                let is_last = layer + 1 == config.layers;
                for &query in positions {
                    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
                    let (all, own) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
                    let mut matrices = vec![(hidden, all), (hidden, own), (hidden, own)];
                    if !is_last {
                        matrices.extend([(all, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]);
                    }
                    work.products += matrices.iter().map(|(rows, cols)| (rows * cols) as u128).sum::<u128>();
                    let seen = (0..tokens).filter(|&key| sees(query, key)).count();
                    for _ in 0..if is_last { 0 } else { seen * config.heads } {
                        // A score is the product of two rows; a value is added row by row.
                        work.attention += 2 * config.head_dim as u128;
                    }
                }
            }
        };
        let is_exact = layout.attention == Attention::Exact;
        let anchor = layout.anchor_tokens(tokens);
        for (index, block) in layout.cut(tokens).enumerate() {
            let positions: Vec<_> = block.clone().collect();
            compute(&positions, &|query, key| {
                key <= query && (is_exact || block.contains(&key) || key < anchor)
            });
            let again = match anchors {
                Anchors::BehindEveryBlock => index > 0,
                // Blocks go to the hosts in turn.
                Anchors::OncePerHost(hosts) => index > 0 && index < hosts,
            };
            if again && !is_exact {
                compute(&(0..anchor).collect::<Vec<_>>(), &|query, key| key <= query);
            }
        }
        work
    }

    #[test]
    fn every_pair_and_every_product_is_counted_once() {
        let config = RandomModel::named("tiny").unwrap();
        let layouts = [Layout::exact(8), Layout::star(8, 8), Layout::star(8, 3), Layout::star(8, 0)];
        let anchors = [Anchors::OncePerHost(1), Anchors::OncePerHost(3), Anchors::BehindEveryBlock];
        for layout in &layouts {
            for anchors in anchors {
                for tokens in [1, 7, 8, 9, 16, 37] {
                    assert_eq!(
                        encode(&config, layout, tokens, anchors),
                        by_hand(&config, layout, tokens, anchors),
                        "{layout:?} of {tokens} tokens, {anchors:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_token_of_the_1b_shape_takes_a_multiply_add_for_every_weight_of_its_layers() {
        let mut config = RandomModel::named("llama-3.2-1b").unwrap();
        // One layer more, of which only queries, keys and values are counted.
        config.layers += 1;
        let token = encode(&config, &Layout::exact(1), 1, Anchors::OncePerHost(1));
        let first = 2048 * (2048 + 2 * 512);
        // The published model has 1,235,814,400 parameters: 128,256 rows of embeddings and 33 norms among them.
        assert_eq!(token.products - first, 1_235_814_400 - 2048 * (128_256 + 33));
    }

    #[test]
    fn computing_the_anchor_behind_each_of_many_blocks_takes_less_than_twice_the_work() {
        let config = RandomModel::named("llama-3.2-1b").unwrap();
        for (block, ratio) in [(2048, 1.79), (8192, 1.63)] {
            let work =
                |anchors| encode(&config, &Layout::star(block, block), 8 * block, anchors).gflop().total;
            let counted = work(Anchors::BehindEveryBlock) / work(Anchors::OncePerHost(1));
            assert!((counted - ratio).abs() < 0.01, "blocks of {block}: {counted}");
        }
    }
}
