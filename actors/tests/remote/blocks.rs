//! Blocks that move between nodes.

use std::sync::{Arc, Mutex};

use ractor::call;
use stellate_actors::KvFormat;
use stellate_actors::budget::{BudgetedBlock, KvBudget};
use stellate_actors::checksum::Checksum;
use stellate_actors::context_host::{ContextHostHandle, ContextHostMsg};
use stellate_actors::link::{Fold, HostId, HostLink};
use stellate_actors::remote::frames::{BLOCK, BlockHead, DONE, Done, FETCH, Fetch, PIECE, Piece};
use stellate_actors::remote::{FetchError, Landing, PutError, fetch_block, put_block};
use stellate_model::block::BlockId;
use stellate_runtime::transport::{Connection, FrameLimits, WIRE_VERSION, encode_head};

use crate::support::{Asked, Asker, HOST, Model, queries, real_node, request};

pub(crate) async fn held(host: &ContextHostHandle, id: BlockId) -> Option<Arc<BudgetedBlock>> {
    call!(host.actor, ContextHostMsg::Share, id).unwrap().unwrap()
}

fn landing(model: &Model, block: &BudgetedBlock) -> Landing {
    let shape = model.decoder.kv_shape(model.format);
    let budget = KvBudget::new(shape, usize::MAX);
    Landing::new(budget.allocate(block.len()).unwrap(), block.len())
}

#[test]
fn a_block_that_was_copied_to_another_node_answers_as_the_original() {
    for format in KvFormat::ALL {
        let asker = Asker::new();
        let model = Model::new(format);
        let (origin, target) = asker.runtime.block_on(async {
            let origin = model.host(HOST).await;
            model.encode(&origin).await;
            (origin, model.host(HostId(1)).await)
        });
        let from = real_node(&asker, "origin", &model, &origin);
        let to = real_node(&asker, "target", &model, &target);
        let (fetching, putting) = (asker.bulk(&from), asker.bulk(&to));
        asker.runtime.block_on(async {
            for id in &model.blocks {
                let original = held(&origin, *id).await.unwrap();
                let mut landing = landing(&model, &original);
                fetch_block(&fetching, HOST, *id, &mut landing, None).await.unwrap();
                let copy = Arc::new(landing.into_block().unwrap());
                assert_eq!((copy.len(), copy.raw()), (original.len(), original.raw()), "{format}");
                // Twice: the second time the host holds it.
                for _ in 0..2 {
                    put_block(&putting, HostId(1), *id, Arc::clone(&copy), None).await.unwrap();
                }
                assert_eq!(held(&target, *id).await.unwrap().raw(), original.raw());
            }
        });
        let (mut one, mut other) = (origin.link(), target.link());
        let blocks: Arc<[BlockId]> = model.blocks.clone().into();
        let ask = |layer| request(&blocks, layer, Fold::ByHost, queries(model.shape(), 3, layer));
        for layer in 0..model.shape().layers {
            one.post(ask(layer)).unwrap();
            other.post(ask(layer)).unwrap();
            assert_eq!(one.wait().unwrap().partials, other.wait().unwrap().partials, "{format}");
        }
    }
}

#[test]
fn a_block_that_is_not_held_or_does_not_fit_is_refused_by_name() {
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let host = asker.runtime.block_on(model.host(HOST));
    let node = real_node(&asker, "asked", &model, &host);
    let connection = asker.bulk(&node);
    asker.runtime.block_on(async {
        let budget = KvBudget::new(model.decoder.kv_shape(model.format), usize::MAX);
        let mut landing = Landing::new(budget.allocate(10).unwrap(), 10);
        let fetched = fetch_block(&connection, HOST, model.blocks[0], &mut landing, None).await;
        assert!(matches!(fetched, Err(FetchError::Refused(_))), "{fetched:?}");
        let fetched = fetch_block(&connection, HostId(7), model.blocks[0], &mut landing, None).await;
        assert!(matches!(fetched, Err(FetchError::Refused(_))), "{fetched:?}");

        let large = |format| {
            let budget = KvBudget::new(model.decoder.kv_shape(format), usize::MAX);
            let mut block = budget.allocate(100_000).unwrap();
            block.set_len(100_000);
            Arc::new(block)
        };
        let put = put_block(&connection, HOST, model.blocks[0], large(KvFormat::F32), None).await;
        assert!(matches!(put, Err(PutError::Full(_))), "{put:?}");
        let put = put_block(&connection, HOST, model.blocks[0], large(KvFormat::Q8), None).await;
        assert!(matches!(put, Err(PutError::Refused(_))), "{put:?}");
        assert!(held(&host, model.blocks[0]).await.is_none());
        assert_eq!(host.budget.used_bytes(), 0);
    });
}

/// What goes wrong with a copy, and only with the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    Reset,
    OtherBytes,
    SkipsAPiece,
}

/// Serves `block` in small pieces; of the first copy half of them. Notes the offsets that were asked for.
pub(crate) fn limping(
    asker: &Asker,
    block: Arc<BudgetedBlock>,
    fault: Fault,
) -> (Asked, Arc<Mutex<Vec<u64>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, fault) = (Arc::clone(&asked), Arc::new(Mutex::new(fault)));
    let node = asker.node("limping", move |connection: Connection| {
        let (block, noted, fault) = (Arc::clone(&block), Arc::clone(&noted), Arc::clone(&fault));
        async move {
            while let Ok((mut sender, mut receiver)) = connection.accept().await {
                let fetch: Fetch = receiver.expect().await.unwrap().expect(FETCH).unwrap();
                noted.lock().unwrap().push(fetch.offset);
                let fault = std::mem::replace(&mut *fault.lock().unwrap(), Fault::None);
                let head = BlockHead::new(block.shape(), block.len(), fetch.offset);
                sender.send(BLOCK, &head, &[]).await.unwrap();
                let (raw, step) = (block.raw(), block.bytes() / 8);
                for at in (fetch.offset as usize..raw.len()).step_by(step) {
                    let mut piece = raw[at..(at + step).min(raw.len())].to_vec();
                    let mut offset = at as u64;
                    if at == 4 * step {
                        match fault {
                            Fault::None => {}
                            Fault::Reset => break,
                            Fault::OtherBytes => piece[5] ^= 4,
                            Fault::SkipsAPiece => offset += step as u64,
                        }
                    }
                    if sender.send(PIECE, &Piece { offset }, &[&piece]).await.is_err() {
                        break;
                    }
                }
                if fault == Fault::Reset {
                    // Ends within the transfer: what was sent arrives, and nothing after it.
                    sender.finish();
                    continue;
                }
                let _ = sender.send(DONE, &Done { checksum: Checksum::of(raw) }, &[]).await;
                sender.finish();
            }
        }
    });
    (node, asked)
}

fn copy_with(fault: Fault, check: impl Fn(&FetchError) -> bool) -> (Vec<u64>, u64) {
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let block = asker.runtime.block_on(async {
        let host = model.host(HOST).await;
        model.encode(&host).await;
        held(&host, model.blocks[0]).await.unwrap()
    });
    let (node, asked) = limping(&asker, Arc::clone(&block), fault);
    let connection = asker.bulk(&node);
    let mut landing = landing(&model, &block);
    asker.runtime.block_on(async {
        let fetch = fetch_block(&connection, HOST, model.blocks[0], &mut landing, None).await;
        assert!(check(fetch.as_ref().unwrap_err()), "{fetch:?}");
        fetch_block(&connection, HOST, model.blocks[0], &mut landing, None).await.unwrap();
    });
    assert_eq!(landing.into_block().unwrap().raw(), block.raw());
    let asked = asked.lock().unwrap().clone();
    (asked, block.bytes() as u64)
}

#[test]
fn a_copy_that_was_cut_off_goes_on_where_it_stood() {
    let (asked, bytes) = copy_with(Fault::Reset, |error| matches!(error, FetchError::Interrupted(_)));
    assert_eq!(asked, [0, bytes / 2]);
}

#[test]
fn a_copy_that_was_cut_off_within_a_piece_goes_on_within_it() {
    const PIECE_BYTES: usize = 300_000;
    const CUT: usize = 200_000;
    let asker = Asker::new();
    let model = Model::new(KvFormat::F32);
    let mut block = KvBudget::new(model.decoder.kv_shape(model.format), usize::MAX).allocate(10_000).unwrap();
    block.set_len(10_000);
    block.raw_mut().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
    assert!(block.bytes() > 2 * PIECE_BYTES);
    let (block, asked) = (Arc::new(block), Arc::new(Mutex::new(Vec::new())));
    let (served, noted) = (Arc::clone(&block), Arc::clone(&asked));
    let node = asker.node("cutting", move |connection: Connection| {
        let (block, noted) = (Arc::clone(&served), Arc::clone(&noted));
        async move {
            while let Ok((mut sender, mut receiver)) = connection.accept().await {
                let fetch: Fetch = receiver.expect().await.unwrap().expect(FETCH).unwrap();
                noted.lock().unwrap().push(fetch.offset as usize);
                let head = BlockHead::new(block.shape(), block.len(), fetch.offset);
                sender.send(BLOCK, &head, &[]).await.unwrap();
                let raw = block.raw();
                if fetch.offset == 0 {
                    let mut cut = Vec::new();
                    let (piece, limits) = (Piece { offset: 0 }, FrameLimits::default());
                    encode_head(WIRE_VERSION, PIECE, &piece, PIECE_BYTES, &limits, &mut cut).unwrap();
                    cut.extend_from_slice(&raw[..CUT]);
                    let mut stream = sender.into_inner();
                    stream.write_all(&cut).await.unwrap();
                    stream.finish().unwrap();
                    continue;
                }
                for at in (fetch.offset as usize..raw.len()).step_by(PIECE_BYTES) {
                    let piece = &raw[at..(at + PIECE_BYTES).min(raw.len())];
                    sender.send(PIECE, &Piece { offset: at as u64 }, &[piece]).await.unwrap();
                }
                sender.send(DONE, &Done { checksum: Checksum::of(raw) }, &[]).await.unwrap();
                sender.finish();
            }
        }
    });
    let (connection, mut landing) = (asker.bulk(&node), landing(&model, &block));
    asker.runtime.block_on(async {
        let cut_off = fetch_block(&connection, HOST, model.blocks[0], &mut landing, None).await;
        assert!(matches!(cut_off, Err(FetchError::Interrupted(_))), "{cut_off:?}");
        fetch_block(&connection, HOST, model.blocks[0], &mut landing, None).await.unwrap();
    });
    assert_eq!(landing.into_block().unwrap().raw(), block.raw());
    let asked = asked.lock().unwrap();
    assert!(asked.len() == 2 && (100_000..=CUT).contains(&asked[1]), "{asked:?}");
}

#[test]
fn a_copy_of_other_bytes_is_thrown_away_and_made_again() {
    let (asked, _) = copy_with(Fault::OtherBytes, |error| matches!(error, FetchError::Checksum));
    assert_eq!(asked, [0, 0]);
}

#[test]
fn a_copy_that_leaves_a_piece_out_is_noticed_at_once() {
    let (asked, bytes) = copy_with(Fault::SkipsAPiece, |error| matches!(error, FetchError::Protocol(_)));
    assert_eq!(asked, [0, bytes / 2]);
}

#[test]
fn a_copy_that_never_became_whole_gives_no_block() {
    let model = Model::new(KvFormat::F32);
    let budget = KvBudget::new(model.decoder.kv_shape(model.format), usize::MAX);
    assert!(Landing::new(budget.allocate(10).unwrap(), 10).into_block().is_none());
}
