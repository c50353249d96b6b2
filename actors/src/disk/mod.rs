//! The disk of a node.

pub mod index;
