// Any bytes as a member's certificate.

use stellate_runtime::identity::CertificateDetails;

pub(crate) fn certificates(bytes: &[u8]) {
    let _ = CertificateDetails::of(bytes);
}
