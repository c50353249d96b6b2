//! Rules of nft over what reaches one receiver: packets on cut ways are dropped, others by chance, and each is counted by what
//! becomes of it. Where the receiver is and when rules change is said in [`namespaces`](super).

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::tools::{NamespaceError, Running, run};
use crate::weather::Packets;

/// What is dropped before it reaches a receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Ways on which nothing arrives: from, and to.
    pub cuts: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Of what comes on other ways, in thousandths.
    pub lost_permille: u16,
}

/// Where rules over one receiver stand.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    /// The network namespace; none for the host's.
    pub namespace: Option<String>,
    /// The table there, which holds nothing else.
    pub table: String,
    /// The interface that packets come from; others are let through.
    pub device: String,
}

impl Receiver {
    /// What `nft -f` is told: all of it takes effect at once, and counters go on.
    fn script(&self, rules: &Rules) -> String {
        let Self { table, device, .. } = self;
        let mut text = format!("add table ip {table}\n");
        for counter in ["sent", "cut", "lost"] {
            let _ = writeln!(text, "add counter ip {table} {counter}");
        }
        let _ = writeln!(
            text,
            "add chain ip {table} input {{ type filter hook input priority 0 ; policy accept ; }}\n\
             flush chain ip {table} input\n\
             add rule ip {table} input iifname != \"{device}\" accept\n\
             add rule ip {table} input counter name sent"
        );
        for (from, to) in &rules.cuts {
            let _ = writeln!(
                text,
                "add rule ip {table} input ip saddr {from} ip daddr {to} counter name cut drop"
            );
        }
        // nft takes no comparison that always holds.
        let chance = match rules.lost_permille {
            0 => return text,
            permille @ 1..1000 => format!("numgen random mod 1000 < {permille} "),
            _ => String::new(),
        };
        let _ = writeln!(text, "add rule ip {table} input {chance}counter name lost drop");
        text
    }

    /// A command in the receiver's namespace.
    fn command<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let inside = self.namespace.as_deref().map(|namespace| ["ip", "netns", "exec", namespace]);
        inside.into_iter().flatten().chain(command.iter().copied()).collect()
    }

    /// Begins to replace the rules that stand there; they are replaced once what is returned has finished.
    ///
    /// # Errors
    /// [`NamespaceError::NoTool`].
    pub(super) fn begin(&self, rules: &Rules) -> Result<Running, NamespaceError> {
        Running::start(&self.command(&["nft", "-f", "-"]), &self.script(rules))
    }

    /// What became of packets so far.
    ///
    /// # Errors
    /// `nft` cannot be run or understood.
    pub(super) fn packets(&self) -> Result<Packets, NamespaceError> {
        let list = ["nft", "-j", "list", "counters", "table", "ip", &self.table];
        counted(&run(&self.command(&list), "")?)
    }
}

/// Packets by what became of them, as `nft -j list counters` tells.
fn counted(said: &str) -> Result<Packets, NamespaceError> {
    let unknown = || NamespaceError::Counters { said: said.trim().to_owned() };
    let value: Value = serde_json::from_str(said).map_err(|_| unknown())?;
    let counter = |name: &str| {
        let mut counters = value["nftables"].as_array()?.iter().map(|one| &one["counter"]);
        counters.find(|counter| counter["name"] == name)?["packets"].as_u64()
    };
    match (counter("sent"), counter("lost"), counter("cut")) {
        (Some(sent), Some(lost), Some(cut)) => Ok(Packets { sent, lost, cut, ..Packets::default() }),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver() -> Receiver {
        Receiver { namespace: Some("somewhere".into()), table: "faults".into(), device: "eth0".into() }
    }

    #[test]
    fn rules_count_what_comes_drop_what_comes_on_cut_ways_and_then_by_chance() {
        let [one, two, three] = [1, 2, 3].map(|last| Ipv4Addr::new(10, 1, 2, last));
        let rules = Rules { cuts: vec![(one, three), (two, three)], lost_permille: 20 };
        assert_eq!(
            receiver().script(&rules),
            "add table ip faults\n\
             add counter ip faults sent\n\
             add counter ip faults cut\n\
             add counter ip faults lost\n\
             add chain ip faults input { type filter hook input priority 0 ; policy accept ; }\n\
             flush chain ip faults input\n\
             add rule ip faults input iifname != \"eth0\" accept\n\
             add rule ip faults input counter name sent\n\
             add rule ip faults input ip saddr 10.1.2.1 ip daddr 10.1.2.3 counter name cut drop\n\
             add rule ip faults input ip saddr 10.1.2.2 ip daddr 10.1.2.3 counter name cut drop\n\
             add rule ip faults input numgen random mod 1000 < 20 counter name lost drop\n"
        );
    }

    #[test]
    fn without_faults_packets_are_counted_alone_and_all_are_lost_without_chance() {
        let script = receiver().script(&Rules::default());
        assert!(script.ends_with("add rule ip faults input counter name sent\n"), "{script}");
        let all = receiver().script(&Rules { lost_permille: 1000, ..Rules::default() });
        assert_eq!(all, format!("{script}add rule ip faults input counter name lost drop\n"));
    }

    #[test]
    fn commands_run_where_the_receiver_is() {
        assert_eq!(receiver().command(&["nft"]), ["ip", "netns", "exec", "somewhere", "nft"]);
        assert_eq!(Receiver { namespace: None, ..receiver() }.command(&["nft"]), ["nft"]);
    }

    #[test]
    fn counters_are_read_by_their_names() {
        let said = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "ip", "name": "sent", "table": "faults", "handle": 1, "packets": 30, "bytes": 93}},
            {"counter": {"family": "ip", "name": "cut", "table": "faults", "handle": 2, "packets": 4, "bytes": 93}},
            {"counter": {"family": "ip", "name": "lost", "table": "faults", "handle": 3, "packets": 2, "bytes": 0}}]}"#;
        assert_eq!(counted(said).unwrap(), Packets { sent: 30, lost: 2, cut: 4, ..Packets::default() });
        for said in ["", "{}", r#"{"nftables": [{"counter": {"name": "sent", "packets": 1}}]}"#] {
            assert!(matches!(counted(said), Err(NamespaceError::Counters { .. })), "{said}");
        }
    }
}
