//! How many attempts strangers have: a bucket of tokens for each network address and one for all together. Pure: the time
//! is passed in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Most addresses that are remembered. An address is forgotten when its bucket is full again, within a minute.
const MAX_ADDRESSES: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);

/// Grants attempts, evenly over time, with a minute's worth at once.
#[derive(Debug)]
pub(super) struct Limiter {
    per_address: u32,
    addresses: BTreeMap<u64, Bucket>,
    all: Bucket,
    total: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    fn full(size: u32, now: Duration) -> Self {
        Self { tokens: size.into(), filled: now }
    }

    fn fill(&mut self, size: u32, now: Duration) {
        let share = now.saturating_sub(self.filled).as_secs_f64() / MINUTE.as_secs_f64();
        self.tokens = (self.tokens + share * f64::from(size)).min(size.into());
        self.filled = now;
    }
}

impl Limiter {
    pub(super) fn new(per_minute_and_address: u32, per_minute: u32, now: Duration) -> Self {
        let all = Bucket::full(per_minute, now);
        Self { per_address: per_minute_and_address, addresses: BTreeMap::new(), all, total: per_minute }
    }

    /// Whether `address` may try now. Granting uses one attempt up, of the address and of all.
    pub(super) fn grant(&mut self, address: IpAddr, now: Duration) -> bool {
        self.all.fill(self.total, now);
        let network = network_of(address);
        if !self.addresses.contains_key(&network) && self.addresses.len() >= MAX_ADDRESSES {
            self.forget_the_idle(now);
            if self.addresses.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let size = self.per_address;
        let bucket = self.addresses.entry(network).or_insert(Bucket::full(size, now));
        bucket.fill(size, now);
        if bucket.tokens < 1.0 || self.all.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        self.all.tokens -= 1.0;
        true
    }

    fn forget_the_idle(&mut self, now: Duration) {
        self.addresses.retain(|_, bucket| now.saturating_sub(bucket.filled) < MINUTE);
    }
}

/// What one party holds: an IPv4 address, or an IPv6 network of 64 bits.
pub(super) fn network_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        // IPv4 addresses stand where no IPv6 network of the internet is.
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn each_address_has_its_attempts_and_gets_them_back_with_time() {
        let mut limiter = Limiter::new(3, 100, Duration::ZERO);
        let granted =
            |limiter: &mut Limiter, last, now| (0..10).filter(|_| limiter.grant(address(last), now)).count();
        assert_eq!(granted(&mut limiter, 1, Duration::ZERO), 3);
        assert_eq!(granted(&mut limiter, 2, Duration::ZERO), 3);
        assert_eq!(granted(&mut limiter, 1, Duration::from_secs(21)), 1);
        assert_eq!(granted(&mut limiter, 1, Duration::from_secs(200)), 3);
    }

    #[test]
    fn all_addresses_together_are_bounded_in_attempts_and_in_memory() {
        let mut limiter = Limiter::new(3, 5, Duration::ZERO);
        let granted = (0..100).filter(|last| limiter.grant(address(*last), Duration::ZERO)).count();
        assert_eq!(granted, 5);
        for network in 0..10_000u32 {
            limiter.grant(IpAddr::V4(network.into()), Duration::ZERO);
        }
        assert!(limiter.addresses.len() <= MAX_ADDRESSES);
        assert!(limiter.grant(IpAddr::from([10, 9, 9, 9]), Duration::from_secs(61)));
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share_their_attempts() {
        let mut limiter = Limiter::new(1, 100, Duration::ZERO);
        let [one, two, far] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert!(limiter.grant(one, Duration::ZERO));
        assert!(!limiter.grant(two, Duration::ZERO));
        assert!(limiter.grant(far, Duration::ZERO));
    }
}
