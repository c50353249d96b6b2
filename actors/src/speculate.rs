//! Prompt lookup: guesses at the next tokens, copied from where the last ones stood before, in the conversation or in the
//! context. A guess costs nothing but its place in the next step, which verifies it; what is answered never depends on it.
//! How many are made is decided in [`crate::pace`].
//! Source: prompt lookup decoding (A. Saxena, 2023), which for answers over documents often copies whole passages.

/// Lengths of the runs that are looked up, longest first: a longer run is the better guess.
const GRAMS: [usize; 2] = [3, 2];

/// Slots of an index at most, per length: 16 MiB. Beyond as many tokens, later runs push out earlier ones.
const MAX_SLOTS: usize = 1 << 22;

/// Tokens of the conversation that are searched, from its end.
pub const RECENT_TOKENS: usize = 4096;

/// Where runs of tokens stand in a context: the last place of each, as far as there are slots.
#[derive(Clone, Debug, Default)]
pub struct ContextIndex {
    /// By length of run, then by hash: the position behind the run, 0 for none.
    slots: [Vec<u32>; GRAMS.len()],
}

impl ContextIndex {
    /// Indexes a context. Bounded memory, whatever its length.
    pub fn new(ids: &[u32]) -> Self {
        // Four slots a token leave few runs without a place of their own.
        let count = (4 * ids.len()).next_power_of_two().min(MAX_SLOTS);
        let index = |gram: usize| {
            let mut slots = vec![0; count];
            for (start, run) in ids.windows(gram).enumerate() {
                slots[slot(run, count)] = (start + gram) as u32;
            }
            slots
        };
        Self { slots: GRAMS.map(index) }
    }

    /// What follows `run` in `ids`, the context that was indexed, where it stands last.
    fn behind(&self, length: usize, run: &[u32], ids: &[u32]) -> Option<usize> {
        let slots = &self.slots[length];
        let end = *slots.get(slot(run, slots.len()))? as usize;
        // Other runs share the slot.
        (end > 0 && &ids[end - run.len()..end] == run).then_some(end)
    }
}

/// The slot of a run among a power of two of them: multiplicative hashing, whose high bits are the good ones.
fn slot(run: &[u32], slots: usize) -> usize {
    let mix =
        |hash: u64, &id: &u32| (hash.rotate_left(23) ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let hash = run.iter().fold(0, mix);
    (hash >> 32) as usize & slots.saturating_sub(1)
}

/// Guesses at most `count` tokens that follow `recent`, the end of the conversation, whose context is `ids`.
pub fn guess(index: &ContextIndex, ids: &[u32], recent: &[u32], count: usize) -> Vec<u32> {
    for (length, gram) in GRAMS.into_iter().enumerate() {
        let Some(start) = recent.len().checked_sub(gram) else { continue };
        let run = &recent[start..];
        let said = (0..start).rev().find(|&at| &recent[at..at + gram] == run).map(|at| (recent, at + gram));
        let found = said.or_else(|| Some((ids, index.behind(length, run, ids)?)));
        if let Some((text, end)) = found.filter(|&(text, end)| end < text.len()) {
            return text[end..(end + count).min(text.len())].to_vec();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [u32; 9] = [5, 6, 7, 8, 9, 6, 7, 1, 2];

    #[test]
    fn what_stood_behind_the_longest_run_last_is_the_guess() {
        let index = ContextIndex::new(&IDS);
        assert_eq!(guess(&index, &IDS, &[3, 6, 7], 3), [1, 2]);
        assert_eq!(guess(&index, &IDS, &[5, 6, 7], 3), [8, 9, 6]);
        assert_eq!(guess(&index, &IDS, &[4, 4], 3), [0_u32; 0]);
        assert_eq!(guess(&index, &IDS, &[7], 3), [0_u32; 0]);
        assert_eq!(guess(&ContextIndex::new(&[]), &[], &[1, 2, 3], 3), [0_u32; 0]);
    }

    #[test]
    fn the_conversation_comes_before_the_context() {
        let index = ContextIndex::new(&IDS);
        assert_eq!(guess(&index, &IDS, &[6, 7, 40, 41, 6, 7], 2), [40, 41]);
        // A run that stands at the end alone has nothing behind it.
        assert_eq!(guess(&index, &IDS, &[0, 1, 2], 2), [0_u32; 0]);
    }
}
