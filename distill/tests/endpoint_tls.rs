//! A live model over https with an authority of one's own: believed where its file is named, refused with a cure where it is not. The
//! server is on loopback, its certificates are made by tls/make.sh.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::dataset::Message;
use limbeck_distill::endpoint::{Endpoint, EndpointPlan, MaxTokensKey, Question, Replies, Sampling, Stopped};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

const AUTHORITY: &[u8] = include_bytes!("tls/ca.pem");

/// Answers one thing to whoever completes a handshake; gives its port.
fn serve() -> u16 {
    let chain = CertificateDer::pem_slice_iter(include_bytes!("tls/server.pem")).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || answer(StreamOwned::new(connection, stream)));
        }
    });
    port
}

fn answer(stream: impl Read + Write) -> Option<()> {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    let body = r#"{"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}"#;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let stream = reader.get_mut();
    stream.write_all((head + body).as_bytes()).and_then(|()| stream.flush()).ok()
}

/// What a model at this address answers, or why it does not.
fn ask(url: &str, ca: Option<&[u8]>) -> Result<String, String> {
    let ca = ca.map(<[u8]>::to_vec);
    let plan = EndpointPlan { ca, max_retries: 1, ..EndpointPlan::plain(url, "m", String::new) };
    assert_eq!(plan.problem(), None);
    let sampling = Sampling {
        temperature: 0.0,
        max_tokens: 5,
        max_tokens_key: MaxTokensKey::MaxTokens,
        logprobs: None,
        grammar: None,
    };
    let questions = [Question { messages: vec![Message::new("user", "hi")], sample: 0 }];
    let asked = Endpoint::new(plan, Replies::default()).ask_all(&questions, &sampling, &mut |_| ()).unwrap();
    match (asked.stopped, &asked.ends[0]) {
        (None, Some(Ok(reply))) => Ok(reply.text.clone()),
        (Some(Stopped::Down { why, .. }), _) => Err(why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_authority_of_ones_own_is_believed_where_it_is_named() {
    let port = serve();
    for host in ["127.0.0.1", "localhost"] {
        assert_eq!(ask(&format!("https://{host}:{port}/v1"), Some(AUTHORITY)), Ok("yes".to_owned()), "{host}");
    }
    let url = format!("https://127.0.0.1:{port}/v1");
    let why = ask(&url, None).unwrap_err();
    assert!(why.contains("TLS") && why.contains("UnknownIssuer") && why.contains("ca_file"), "{why}");
    // The server's own certificate vouches for nothing.
    let why = ask(&url, Some(include_bytes!("tls/server.pem"))).unwrap_err();
    assert!(why.contains("TLS"), "{why}");
    // A name that the certificate is not for.
    let why = ask(&format!("https://127.0.0.2:{port}/v1"), Some(AUTHORITY)).unwrap_err();
    assert!(why.contains("no connection") || why.contains("another name") || why.contains("refused"), "{why}");
}

#[test]
fn a_file_without_certificates_is_told_before_anything_is_asked() {
    let plan = |pem: &[u8]| EndpointPlan {
        ca: Some(pem.to_vec()),
        ..EndpointPlan::plain("https://127.0.0.1:1/v1", "m", String::new)
    };
    assert_eq!(plan(AUTHORITY).problem(), None);
    for none in [&b""[..], b"not pem", include_bytes!("tls/server.key")] {
        assert!(plan(none).problem().is_some_and(|why| why.contains("no certificate")));
    }
}
