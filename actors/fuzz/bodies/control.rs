// Any bytes as what supervisors, agents and query nodes say to each other. Refusals can be told.

use stellate_actors::cluster::messages::{
    AgentOrder, AgentReply, Inventory, QueryNodeNotice, SupervisorReply, SupervisorRequest,
};
use stellate_runtime::encoding::{decode, encode};

pub(crate) fn control(bytes: &[u8]) {
    if let Ok(order) = decode::<AgentOrder>(bytes) {
        assert_eq!(encode(&order).expect("it was read"), bytes);
    }
    if let Ok(request) = decode::<SupervisorRequest>(bytes) {
        assert_eq!(encode(&request).expect("it was read"), bytes);
    }
    if let Ok(AgentReply::Refused(refusal)) = decode::<AgentReply>(bytes) {
        let _ = refusal.to_string();
    }
    if let Ok(SupervisorReply::Refused(refusal)) = decode::<SupervisorReply>(bytes) {
        let _ = refusal.to_string();
    }
    let _ = decode::<Inventory>(bytes);
    let _ = decode::<QueryNodeNotice>(bytes);
}
