//! What goes, what stays, and that placeholders mean the same wherever they stand.

use super::*;

fn redact(text: &str) -> String {
    Redactor::new().unwrap().document().redact(text)
}

#[test]
fn each_kind_becomes_a_typed_placeholder_and_the_rest_stays() {
    for (text, want) in [
        ("mail Anna.Kowalska+bank@mail.example.co.uk, please", "mail <EMAIL_1>, please"),
        ("card 4111 1111 1111 1111 was eaten", "card <CARD_1> was eaten"),
        ("378282246310005.", "<CARD_1>."),
        ("order 12 4111-1111-1111-1111 1", "order 12 <CARD_1> 1"),
        ("iban GB82 WEST 1234 5698 7654 32 I think", "iban <IBAN_1> I think"),
        ("de89370400440532013000", "<IBAN_1>"),
        ("from 203.0.113.7 and 2001:db8::ff00:42:8329", "from <IP_1> and <IP_2>"),
        ("call +44 7700 900123 or 07700 900456", "call <PHONE_1> or <PHONE_2>"),
        ("phone:07700900123", "phone:<PHONE_1>"),
        ("a@x.org+44 7700 900123", "<EMAIL_1><PHONE_1>"),
        ("a@x.org07700900123", "<EMAIL_1><PHONE_1>"),
        ("(020) 7946 0018; 212-555-0123", "<PHONE_1>; <PHONE_2>"),
        ("key sk-simulated-AbCdEf0123456789", "key <SECRET_1>"),
        ("Bearer abcdefghijklmnop012345", "<SECRET_1>"),
    ] {
        assert_eq!(redact(text), want, "{text}");
    }
}

#[test]
fn a_wrong_checksum_and_ordinary_numbers_stay() {
    for text in [
        "card 4111 1111 1111 1112",
        "iban GB82 WEST 1234 5698 7654 33",
        "on 2026-02-03 at 10:32:05 I paid 1,250.00",
        "version 1.2.3, 999.1.1.1, std::io",
        "I was charged 120 pounds 3 times in 2025",
        "is it @ the shop?",
    ] {
        assert_eq!(redact(text), text);
    }
}

#[test]
fn one_value_has_one_placeholder_in_all_texts_of_a_document() {
    let redactor = Redactor::new().unwrap();
    let mut document = redactor.document();
    assert_eq!(document.redact("a@x.org b@x.org"), "<EMAIL_1> <EMAIL_2>");
    assert_eq!(document.redact("B@X.ORG 4111111111111111"), "<EMAIL_2> <CARD_1>");
    assert_eq!(document.counts()[&Kind::Email], 3);
    assert_eq!(redactor.document().redact("b@x.org"), "<EMAIL_1>");
}

#[test]
fn redacting_twice_changes_nothing_more() {
    let once = redact("a@x.org, +44 7700 900123, 4111 1111 1111 1111, GB82WEST12345698765432");
    assert_eq!(redact(&once), once);
}

#[test]
fn no_card_of_hundreds_of_valid_numbers_gets_through() {
    let mut rng = crate::text::Rng::new(3);
    let redactor = Redactor::new().unwrap();
    for n in 0..300 {
        let mut digits: Vec<u8> = (0..15).map(|i| if i == 0 { 4 } else { rng.below(10) as u8 }).collect();
        let check = (0..10).find(|c| luhn_checks(digits.iter().copied().chain([*c]))).unwrap();
        digits.push(check);
        let gap = ["", " ", "-"][n % 3];
        let number: Vec<String> = digits.chunks(4).map(|c| c.iter().map(|d| char::from(b'0' + d)).collect()).collect();
        let text = format!("my card {} is blocked", number.join(gap));
        assert_eq!(redactor.document().redact(&text), "my card <CARD_1> is blocked", "{text}");
    }
}

#[test]
fn social_security_numbers_keys_and_national_telephone_forms_go() {
    for (text, want) in [
        ("ssn 536-90-4399, thanks", "ssn <SSN_1>, thanks"),
        ("my social security number: 536904399", "my social security number: <SSN_1>"),
        ("the key kJ8sQ2xV9bNwR4tLzP0c leaked", "the key <SECRET_1> leaked"),
        ("token a1b2c3d4e5 is mine", "token <SECRET_1> is mine"),
        ("password is hunter2!, help", "password is <SECRET_1> help"),
        ("npm_abcdefghijklmnopqrstuvwxyz", "<SECRET_1>"),
        ("appelez le 06 12 34 56 78", "appelez le <PHONE_1>"),
        ("call me on 5551234567", "call me on <PHONE_1>"),
        ("приватный ключ ghp_abcdefghijklmnopqrst", "приватный ключ <SECRET_1>"),
        ("wire it to IBAN DE89 3704 0044 0532 0130 00", "wire it to IBAN <IBAN_1>"),
    ] {
        assert_eq!(redact(text), want, "{text}");
    }
    for text in [
        "order 536904399 is late",
        "666-12-3456 and 12-536-90-4399",
        "my password is incorrect",
        "label balance_not_updated_after_bank_transfer",
        "id 550e8400-e29b-41d4-a716-446655440000",
        "I paid 5551234567 rupiah",
    ] {
        assert_eq!(redact(text), text);
    }
}

#[test]
fn a_recipes_own_patterns_go_first_and_a_placeholder_is_never_taken_for_a_value() {
    let options =
        RedactOptions { patterns: vec!["Order=ORD-[0-9]+".into(), "any=<?[A-Z]+_[0-9]+>?".into()], key: None };
    let redactor = Redactor::with(&options).unwrap();
    let mut document = redactor.document();
    assert_eq!(document.redact("ORD-12 by a@x.org, AB_7"), "<ORDER_1> by <EMAIL_1>, <ANY_1>");
    assert_eq!(document.counts()[&Kind::Custom("order")], 1);
    assert_eq!(document.redact("<ORDER_1> by <EMAIL_1>"), "<ORDER_1> by <EMAIL_1>");
    for bad in ["ORD-[0-9]+", "=x", "a=", "a b=x", "order=[", "1=x"] {
        let options = RedactOptions { patterns: vec![bad.into()], key: None };
        assert!(Redactor::with(&options).err().is_some_and(|e| e.contains(bad)), "{bad}");
    }
}

#[test]
fn with_a_key_a_value_has_one_placeholder_in_all_documents_and_another_under_another_key() {
    let with = |key: &[u8]| {
        let options = RedactOptions { patterns: Vec::new(), key: Some(key.to_vec()) };
        let redactor = Redactor::with(&options).unwrap();
        let once = redactor.document().redact("B@x.org, 4111 1111 1111 1111");
        assert_eq!(redactor.document().redact(&once), once);
        assert_eq!(redactor.document().redact("it is b@x.org"), format!("it is {}", &once[..20]));
        once
    };
    let (a, b) = (with(b"k1"), with(b"k2"));
    assert!(a.starts_with("<EMAIL_") && a.len() == b.len() && a != b, "{a} {b}");
}
