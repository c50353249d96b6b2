//! A DNS server on loopback that knows a few names and counts its questions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What it says of a name.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Addresses(Vec<IpAddr>),
    /// Priority, port and target.
    Services(Vec<(u16, u16, String)>),
    /// That something is wrong with the server.
    Failure,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(names: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let names: BTreeMap<_, _> =
            names.into_iter().map(|(name, answer)| (format!("{name}."), answer)).collect();
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                counter.fetch_add(1, Ordering::Relaxed);
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                let bytes = answer(&query, &names).to_vec().expect("encodes");
                // A client that has gone is no concern of the server.
                let _ = socket.send_to(&bytes, from).await;
            }
        });
        Self { address, asked, task }
    }
}

fn answer(query: &Message, names: &BTreeMap<String, Answer>) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    let Some(question) = query.queries.first() else { return response };
    response.add_query(question.clone());
    let mut add = |data| {
        response.answers.push(Record::from_rdata(question.name().clone(), 0, data));
    };
    match names.get(&question.name().to_string().to_lowercase()) {
        Some(Answer::Addresses(addresses)) => {
            for ip in addresses {
                match (ip, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => add(RData::A(A(*ip))),
                    (IpAddr::V6(ip), RecordType::AAAA) => add(RData::AAAA(AAAA(*ip))),
                    _ => {}
                }
            }
        }
        Some(Answer::Services(services)) if question.query_type() == RecordType::SRV => {
            for (priority, port, target) in services {
                let target = Name::from_utf8(target).expect("a name");
                add(RData::SRV(SRV::new(*priority, 0, *port, target)));
            }
        }
        Some(Answer::Services(_)) => {}
        Some(Answer::Failure) => response.metadata.response_code = ResponseCode::ServFail,
        None => response.metadata.response_code = ResponseCode::NXDomain,
    }
    response
}
