//! Attention and blocks between nodes, over QUIC on loopback with real certificates: the same bits as within a process, a
//! typed error for every fault, and links and copies that go on afterwards.

mod agent;
mod attention;
mod blocks;
mod bytes;
mod faults;
mod guesses;
mod hostile;
mod log;
mod port;
mod support;
