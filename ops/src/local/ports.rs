//! Where nodes of such a cluster listen: at ports that nothing else takes while a node is away.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports that systems give to nobody by themselves: whoever asks for any free one gets one from 32768 upwards on Linux, from
/// 49152 elsewhere. A node that is started again finds its own still free.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// How many this process has tried.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// An address of this machine alone that is free and was not given before by this process, until it has given all there are.
///
/// # Errors
/// No port is free.
pub fn own_address() -> io::Result<SocketAddr> {
    // Processes that are started one after another begin far from each other.
    let start = process::id().wrapping_mul(769);
    for _ in 0..COUNT {
        let next = start.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + next).expect("all of them are ports");
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(socket) => return socket.local_addr(),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no port from {FIRST} on is free")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_passed_by_and_none_is_given_twice() -> io::Result<()> {
        let first = own_address()?;
        let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, first.port() + 1));
        let others = [own_address()?, own_address()?];
        assert!(!others.contains(&first) && others[0] != others[1], "{first} {others:?}");
        let taken = held.and_then(|socket| socket.local_addr());
        assert!(taken.map_or(true, |taken| !others.contains(&taken)), "{others:?}");
        assert!(others.iter().all(|other| (20_000..32_000).contains(&other.port())), "{others:?}");
        Ok(())
    }
}
