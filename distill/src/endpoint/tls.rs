//! Whose certificates are believed: the public authorities', or those of a file and no others; and what a refusal says.

use std::sync::Arc;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// The certificates of a PEM file; what else it holds is passed over.
pub fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(pem).filter_map(certificate).collect()
}

/// The client's side of TLS under these authorities, or the public ones.
pub fn tls(ca: Option<&[u8]>) -> TlsConfig {
    let roots = match ca {
        Some(pem) => RootCerts::Specific(Arc::new(certificates(pem))),
        None => RootCerts::WebPki,
    };
    TlsConfig::builder().root_certs(roots).build()
}

/// Why a handshake was refused, where that is what went wrong: an authority that nobody here trusts, another name, a date.
pub fn refused(error: &ureq::Error) -> Option<String> {
    match error {
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Some(e.to_string()),
        ureq::Error::Rustls(e) => Some(e.to_string()),
        _ => None,
    }
}
