//! QUIC, mutual TLS and frames as they are, and real context hosts behind them, on a network that is made up (turmoil): packets
//! are late, lost and reordered, ways are cut in one direction or both, nodes crash and come back. `STELLATE_FIRST_SEED` and
//! `STELLATE_SEEDS` choose the seeds.

mod attention;
mod network;
mod transport;
