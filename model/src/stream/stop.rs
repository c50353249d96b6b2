//! Stop strings: where an answer ends because the caller said which text ends it. Works on text, so a stop string
//! may span tokens or begin in the middle of one.

/// Looks for stop strings in a text that arrives piece by piece.
///
/// The text stops at the first character that completes a stop string; of several that end there, the longest counts.
/// That rule does not depend on how the text is cut into pieces. Text that could be the head of a stop string is held
/// back: always less than the longest stop string.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

/// What one piece of text led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that may be shown now; on a match all that stands before the stop string and was not shown yet.
    pub text: String,
    /// Index of the stop string that ended the text, once it has.
    pub matched: Option<usize>,
}

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty stop string would end every answer before it begins.
    #[error("stop string {index} is empty; leave it out")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
}

impl StopStrings {
    /// A search for any of `stops`; with none, all text passes at once.
    ///
    /// # Errors
    /// [`StopError::Empty`] if a stop string is empty.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Result<Self, StopError> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(StopError::Empty { index }),
            None => Ok(Self { stops, held: String::new(), matched: None }),
        }
    }

    /// Adds the next piece of the text. After a match everything further is dropped, and the outcome repeats the
    /// match with an empty text.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stops.is_empty() {
            return StopOutcome { text: piece.to_owned(), matched: None };
        }
        for char in piece.chars() {
            if self.matched.is_some() {
                break;
            }
            self.held.push(char);
            if let Some(index) = self.completed() {
                self.held.truncate(self.held.len() - self.stops[index].len());
                self.matched = Some(index);
            }
        }
        let shown = if self.matched.is_some() { self.held.len() } else { self.safe_len() };
        let text = self.held.drain(..shown).collect();
        StopOutcome { text, matched: self.matched }
    }

    /// Ends the text: returns what was held back, which is now known to be no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Index of the stop string that ended the text, once it has.
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }

    /// Bytes held back now; less than the longest stop string.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// The longest stop string that the text ends with; the first of equal ones.
    fn completed(&self) -> Option<usize> {
        let ends = |index: &usize| self.held.ends_with(self.stops[*index].as_str());
        let longest = (0..self.stops.len()).filter(ends).map(|index| self.stops[index].len()).max()?;
        (0..self.stops.len()).filter(ends).find(|&index| self.stops[index].len() == longest)
    }

    /// How much of the held text cannot be the head of a stop string.
    fn safe_len(&self) -> usize {
        let could_grow = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let starts = self.held.char_indices().map(|(at, _)| at);
        starts.into_iter().find(|&at| could_grow(&self.held[at..])).unwrap_or(self.held.len())
    }
}
