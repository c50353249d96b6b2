//! The two paths, each readable top to bottom in one file: [`context`], the life of a context token (phase 1 of Star
//! Attention), and [`query`], the life of a query token (phase 2); and [`heal`], what either does when a host fails. Straight-line code over small seams; hosts own state
//! and mailboxes and never define stages.

pub mod context;
pub mod heal;
pub mod query;
pub mod replay;
