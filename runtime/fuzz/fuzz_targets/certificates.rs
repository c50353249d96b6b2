//! Any bytes as a member's certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stellate_runtime::identity::CertificateDetails;

fuzz_target!(|bytes: &[u8]| {
    let _ = CertificateDetails::of(bytes);
});
