//! Settings as a user meets them: files, variables and flags in, settings or a message out.

use super::*;
