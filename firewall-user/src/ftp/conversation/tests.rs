use proptest::prelude::*;

use super::*;
use crate::ftp::{Ccc, Opening};

const HANDSHAKE: &[u8] = &[22, 3, 1, 0, 4, 1, 2, 3, 4];
const DATA: &[u8] = &[23, 3, 3, 0, 6, b'\n', b'2', b'2', b'7', b' ', b'('];

fn new() -> Conversation {
    Conversation::new(
        "10.0.0.2".parse().unwrap(),
        "192.0.2.7".parse().unwrap(),
        Config::default(),
    )
}

/// Feeds `C…` and `S…` chunks, each cut into pieces of `size` bytes.
fn run(conversation: &mut Conversation, script: &[(char, &[u8])], size: usize) -> Vec<Action> {
    let mut out = Vec::new();
    for (who, bytes) in script {
        let side = if *who == 'C' {
            Side::Client
        } else {
            Side::Server
        };
        for piece in bytes.chunks(size) {
            conversation.feed(side, piece, &mut out);
        }
    }
    out
}

fn openings(actions: &[Action]) -> Vec<(String, u16)> {
    let open = |action: &Action| match action {
        Action::Open(Opening { dst, port, .. }) => Some((dst.to_string(), port.get())),
        _ => None,
    };
    actions.iter().filter_map(open).collect()
}

const LOG_IN: [(char, &[u8]); 5] = [
    ('S', b"220 hi\r\n"),
    ('C', b"USER a\r\n"),
    ('S', b"331 x\r\n"),
    ('C', b"PASS b\r\n"),
    ('S', b"230 in\r\n"),
];

#[test]
fn h03_a_line_split_in_the_middle_of_a_number_opens() {
    for size in [1, 3, 1000] {
        let mut c = new();
        run(&mut c, &LOG_IN, size);
        let out = run(
            &mut c,
            &[
                ('C', b"PORT 10,0,0,2,195,155\r\nEPSV\r\n"),
                ('S', b"200 ok\r\n229 Extended (|||50053|)\r\n"),
            ],
            size,
        );
        assert_eq!(
            openings(&out),
            [("10.0.0.2".into(), 50075), ("192.0.2.7".into(), 50053)]
        );
    }
}

/// Clear, TLS, and clear again.
fn ccc(first_clear: &'static [u8]) -> Vec<(char, Vec<u8>)> {
    let mut script = vec![
        ('S', b"220 hi\r\n".to_vec()),
        ('C', b"AUTH TLS\r\n".to_vec()),
        ('S', b"234 go\r\n".to_vec()),
        ('C', HANDSHAKE.to_vec()),
        ('S', [HANDSHAKE, DATA].concat()),
        ('C', DATA.to_vec()),
        ('S', DATA.to_vec()),
    ];
    // The last record and the first clear line share a segment.
    script.push(('C', [&[21, 3, 3, 0, 2, 1, 0], first_clear].concat()));
    script
}

fn borrow(script: &[(char, Vec<u8>)]) -> Vec<(char, &[u8])> {
    script
        .iter()
        .map(|(who, bytes)| (*who, bytes.as_slice()))
        .collect()
}

#[test]
fn h13_the_first_line_after_ccc_may_negotiate() {
    for size in [1, 2, 5, 1000] {
        let mut c = new();
        let out = run(&mut c, &borrow(&ccc(b"PORT 10,0,0,2,195,155\r\n")), size);
        assert_eq!(openings(&out), [("10.0.0.2".into(), 50075)]);
        assert_eq!(c.session().phase(), SessionPhase::Cleared);

        let mut c = new();
        let mut script = ccc(b"PASV\r\n");
        script.push((
            'S',
            [DATA, b"227 (192,0,2,7,195,155)\r\n".as_slice()].concat(),
        ));
        let out = run(&mut c, &borrow(&script), size);
        assert_eq!(openings(&out), [("192.0.2.7".into(), 50075)]);
    }
}

/// The side's first data, its last record and its first line in one segment, too.
#[test]
fn h13_the_first_line_may_share_a_segment_with_all_the_data_of_its_side() {
    for size in [1, 1000] {
        let mut c = new();
        let client = [HANDSHAKE, DATA, b"PORT 10,0,0,2,195,155\r\n"].concat();
        let script: [(char, &[u8]); 5] = [
            ('S', b"220 hi\r\n"),
            ('C', b"AUTH TLS\r\n"),
            ('S', b"234 go\r\n"),
            ('S', &[HANDSHAKE, DATA].concat()),
            ('C', &client),
        ];
        let out = run(&mut c, &script, size);
        assert_eq!(openings(&out), [("10.0.0.2".into(), 50075)], "{size}");
    }
}

#[test]
fn clear_text_after_tls_can_be_refused() {
    for size in [1, 5, 1000] {
        let mut c = Conversation::new(
            "10.0.0.2".parse().unwrap(),
            "192.0.2.7".parse().unwrap(),
            Config {
                ccc: Ccc::Refuse,
                ..Config::default()
            },
        );
        let mut script = ccc(b"PORT 10,0,0,2,195,155\r\nPASV\r\n");
        script.push(('S', b"200 ok\r\n227 (192,0,2,7,195,155)\r\n".to_vec()));
        let out = run(&mut c, &borrow(&script), size);
        assert!(openings(&out).is_empty());
        assert_eq!(c.session().phase(), SessionPhase::Blind);
        let refusals = out.iter().filter(|a| matches!(a, Action::Refused(_)));
        let refusals: Vec<_> = refusals.collect();
        assert_eq!(refusals, [&Action::Refused(Refusal::CccRefused)]);
        assert!(!c.is_read());
    }
}

#[test]
fn h12_nothing_inside_tls_is_read() {
    let mut inside = vec![23, 3, 3, 0, 60, b'\n'];
    inside.extend_from_slice(b"227 Entering Passive Mode (192,0,2,7,195,155)\r\n");
    inside.resize(65, b'\n');
    let mut c = new();
    let mut script = ccc(b"");
    script.push(('S', inside));
    let out = run(&mut c, &borrow(&script), 1000);
    assert!(openings(&out).is_empty());
    assert_eq!(c.session().phase(), SessionPhase::Tls);
}

#[test]
fn clear_text_before_both_sides_carried_data_is_no_return() {
    let mut c = new();
    let out = run(
        &mut c,
        &[
            ('S', b"220 hi\r\n"),
            ('C', b"AUTH TLS\r\n"),
            ('S', b"234 go\r\n"),
            ('C', b"PORT 10,0,0,2,195,155\r\n"),
            ('C', b"PORT 10,0,0,2,195,156\r\n"),
        ],
        1000,
    );
    assert!(openings(&out).is_empty());
    assert_eq!(c.session().phase(), SessionPhase::Tls);
}

#[test]
fn bytes_between_auth_and_its_answer_lose_the_framing() {
    let mut c = new();
    let out = run(
        &mut c,
        &[
            ('S', b"220 hi\r\n"),
            ('C', b"AUTH TLS\r\nPO"),
            ('S', b"234 go\r\n"),
            ('C', b"RT 10,0,0,2,195,155\r\nPORT 10,0,0,2,195,155\r\n"),
        ],
        1000,
    );
    assert!(openings(&out).is_empty());
}

#[test]
fn implicit_tls_is_tls_from_the_first_byte() {
    let mut c = new();
    let out = run(&mut c, &[('C', HANDSHAKE), ('S', HANDSHAKE)], 1);
    assert_eq!(out, [Action::CloseAll, Action::Phase(SessionPhase::Tls)]);
}

#[test]
fn a_record_as_the_first_byte_is_tls_from_either_side() {
    for side in ['C', 'S'] {
        for size in [1, 1000] {
            let mut c = new();
            run(&mut c, &[(side, HANDSHAKE)], size);
            assert_eq!(c.session().phase(), SessionPhase::Tls);
        }
    }
    // Application data begins no connection.
    let mut c = new();
    run(&mut c, &[('C', DATA)], 1000);
    assert_eq!(c.session().phase(), SessionPhase::Poisoned);
}

#[test]
fn an_encrypted_connection_is_known_as_such_in_mid_life_and_opens_nothing() {
    for (side, size) in [('C', 1), ('C', 1000), ('S', 1), ('S', 1000)] {
        let mut c = Conversation::adopted(
            "10.0.0.2".parse().unwrap(),
            "192.0.2.7".parse().unwrap(),
            Config::default(),
        );
        run(&mut c, &[(side, DATA)], size);
        assert_eq!(c.session().phase(), SessionPhase::Tls);
        let out = run(
            &mut c,
            &[
                ('S', DATA),
                ('C', DATA),
                ('C', b"PASV\r\n"),
                ('S', b"227 (192,0,2,7,195,155)\r\n"),
            ],
            size,
        );
        assert!(out.is_empty(), "{out:?}");
    }
}

#[test]
fn each_form_of_leaving_tls_is_followed() {
    /// A record of `kind` with `len` bytes that look like lines.
    fn record(kind: u8, len: u8) -> Vec<u8> {
        let mut bytes = vec![kind, 3, 3, 0, len];
        bytes.resize(5 + usize::from(len), b'\n');
        bytes
    }
    let alert12 = || record(21, 26);
    let alert13 = || record(23, 19);
    let none = Vec::new;
    // What the client and the server send after the encrypted CCC and its answer.
    let forms: [[Vec<u8>; 2]; 5] = [
        [alert12(), alert12()],
        [alert13(), alert13()],
        [none(), alert13()],
        [[alert13(), alert13()].concat(), alert13()],
        [none(), none()],
    ];
    let lines = [
        ("PASV\r\n", "227 ok (192,0,2,7,195,155)\r\n", 50_075),
        ("EPSV\r\n", "229 ok (|||50053|)\r\n", 50_053),
        ("PORT 10,0,0,2,195,155\r\n", "200 ok\r\n", 50_075),
    ];
    for [client, server] in forms {
        let cases = lines
            .iter()
            .flat_map(|line| [1, 3, 5, 40, 1000].map(|size| (line, size)));
        for ((first, reply, port), size) in cases {
            let mut c = new();
            let script = [
                ('S', b"220 hi\r\n".to_vec()),
                ('C', b"AUTH TLS\r\n".to_vec()),
                ('S', b"234 go\r\n".to_vec()),
                ('C', HANDSHAKE.to_vec()),
                ('S', [HANDSHAKE, DATA].concat()),
                ('C', DATA.to_vec()),
                // The answer, the last record, and a clear line in one segment each.
                ('S', [DATA, &server].concat()),
                ('C', [DATA, &client, first.as_bytes()].concat()),
                ('S', reply.as_bytes().to_vec()),
            ];
            let out = run(&mut c, &borrow(&script), size);
            let ports: Vec<_> = openings(&out).iter().map(|(_, port)| *port).collect();
            assert_eq!(ports, [*port], "{first} {size}");
        }
    }
}

#[test]
fn a_tls_record_amid_clear_text_poisons() {
    let mut c = new();
    run(&mut c, &LOG_IN, 1000);
    let out = run(&mut c, &[('C', HANDSHAKE), ('C', b"\r\nPASV\r\n")], 1000);
    assert_eq!(out.last(), Some(&Action::Phase(SessionPhase::Poisoned)));
    assert!(!c.is_read());
}

#[test]
fn a08_a_long_line_opens_nothing_and_the_next_one_does() {
    let mut c = new();
    run(&mut c, &LOG_IN, 1000);
    let mut long = vec![b'x'; 10 << 20];
    long.extend_from_slice(b"PORT 10,0,0,2,195,155\r\nPASV\r\n");
    let out = run(
        &mut c,
        &[
            ('C', &long),
            ('S', b"500 what\r\n227 (192,0,2,7,195,155)\r\n"),
        ],
        1400,
    );
    assert_eq!(out.first(), Some(&Action::Refused(Refusal::LineTooLong)));
    assert_eq!(openings(&out), [("192.0.2.7".into(), 50075)]);
}

#[test]
fn unread_bytes_are_counted_for_the_next_agent() {
    let mut c = new();
    run(&mut c, &LOG_IN, 1000);
    assert_eq!((c.unread(Side::Client), c.unread(Side::Server)), (0, 0));
    run(
        &mut c,
        &[('C', b"STAT\r\nPA"), ('S', b"211-a\r\n x\r\n21")],
        3,
    );
    assert_eq!((c.unread(Side::Client), c.unread(Side::Server)), (2, 13));
    run(&mut c, &[('C', b"SV\r\n"), ('S', b"1 end\r\n")], 3);
    assert_eq!((c.unread(Side::Client), c.unread(Side::Server)), (0, 0));
}

/// Also behind a line of which nothing is kept.
#[test]
fn unread_bytes_do_not_depend_on_the_segmentation() {
    let long = [b"230-".as_slice(), &[b'x'; 5000], b"\r\n211-a\r\n"].concat();
    for (script, unread) in [
        ([('S', b"st of a line\r\n211-a\r\n".as_slice())], 7),
        ([('S', b"\r\n211-a\r\n b\r\n21")], 13),
        // In mid-life, the long line is the one under way.
        ([('S', long.as_slice())], 7),
    ] {
        for size in [1, 7, 6000] {
            let mut c = Conversation::adopted(
                "10.0.0.2".parse().unwrap(),
                "192.0.2.7".parse().unwrap(),
                Config::default(),
            );
            run(&mut c, &script, size);
            assert_eq!(c.unread(Side::Server), unread, "{size}");
        }
    }
}

#[test]
fn unread_bytes_include_all_of_an_over_long_line() {
    for size in [1, 100, 6000] {
        let mut c = new();
        run(&mut c, &LOG_IN, 1000);
        let long = [b"211-".as_slice(), &[b'x'; 5000], b"\r\n b\r\n"].concat();
        run(&mut c, &[('S', &long)], size);
        assert_eq!(c.unread(Side::Server), 5010, "{size}");
        run(&mut c, &[('S', b"211 end\r\n")], size);
        assert_eq!(c.unread(Side::Server), 0, "{size}");
    }
}

#[test]
fn what_is_resumed_in_tls_stays_tls() {
    let mut c = Conversation::resumed(
        "10.0.0.2".parse().unwrap(),
        "192.0.2.7".parse().unwrap(),
        Config::default(),
        SessionPhase::Tls,
        0,
    );
    let out = run(
        &mut c,
        &[
            ('C', DATA),
            ('S', DATA),
            ('C', b"PORT 10,0,0,2,195,155\r\n"),
        ],
        1000,
    );
    assert!(out.is_empty());
}

#[test]
fn what_was_missed_is_not_guessed() {
    let mut c = new();
    run(&mut c, &LOG_IN, 1000);
    let mut out = Vec::new();
    c.miss(&mut out);
    assert_eq!(out.last(), Some(&Action::Phase(SessionPhase::Blind)));
    assert!(run(&mut c, &[('C', b"PORT 10,0,0,2,195,155\r\n")], 1000).is_empty());
}

#[test]
fn an_adopted_connection_skips_the_line_under_way() {
    let mut c = Conversation::adopted(
        "10.0.0.2".parse().unwrap(),
        "192.0.2.7".parse().unwrap(),
        Config::default(),
    );
    let out = run(
        &mut c,
        &[
            ('C', b"PORT 10,0,0,2,195,155\r\nPASV\r\n"),
            ('S', b"0 ok\r\n227 (192,0,2,7,4,9)\r\n"),
        ],
        1000,
    );
    assert_eq!(openings(&out), [("192.0.2.7".into(), 1033)]);
}

#[test]
fn binary_bytes_poison_an_adopted_connection_even_in_the_line_under_way() {
    for side in ['C', 'S'] {
        for bytes in [&b"ab\x01c"[..], b"rest\r\nab\x01c"] {
            let mut c = Conversation::adopted(
                "10.0.0.2".parse().unwrap(),
                "192.0.2.7".parse().unwrap(),
                Config::default(),
            );
            let out = run(&mut c, &[(side, bytes)], 1000);
            assert_eq!(out.last(), Some(&Action::Phase(SessionPhase::Poisoned)));
            assert!(!c.is_read());
        }
    }
}

fn chunk() -> impl Strategy<Value = (char, Vec<u8>)> {
    let text = |s: &'static str| Just(s.as_bytes().to_vec());
    let client = prop_oneof![
        text("PASV\r\n"),
        text("EPSV\n"),
        text("PORT 10,0,0,2,195,155\r\n"),
        text("ABOR\r\n"),
        text("AUTH TLS\r\n"),
        text("REIN\r\n"),
        text("USER a\r\n"),
        text("PA"),
        text("SV\r\n"),
        text("\u{0}"),
        Just(HANDSHAKE.to_vec()),
        Just(DATA.to_vec()),
        Just(b"\xff\xf4\xff\xf2NOOP\r\n".to_vec()),
        text("GET / HTTP/1.1\r\n"),
    ];
    let server = prop_oneof![
        text("220 hi\r\n"),
        text("230 in\r\n"),
        text("200 ok\r\n"),
        text("234 go\r\n"),
        text("227 (192,0,2,7,195,155)\r\n"),
        text("229 (|||50053|)\r\n"),
        text("150 x\r\n"),
        text("211-a\r\n"),
        text("211 b\r\n"),
        text("22"),
        text("7 =192,0,2,7,4,0\r\n"),
        text("500 no\r\n"),
        Just(HANDSHAKE.to_vec()),
        Just(DATA.to_vec()),
        text("221 bye\r\n"),
    ];
    prop_oneof![
        client.prop_map(|bytes| ('C', bytes)),
        server.prop_map(|bytes| ('S', bytes)),
    ]
}

proptest! {
    #[test]
    fn segmentation_does_not_matter(
        script in proptest::collection::vec(chunk(), 0..60),
        size in 1_usize..20,
    ) {
        let mut whole = new();
        let mut cut = new();
        let mut script = script;
        script.insert(0, ('S', b"220 hi\r\n".to_vec()));
        let script = borrow(&script);
        prop_assert_eq!(run(&mut whole, &script, 1 << 20), run(&mut cut, &script, size));
        prop_assert_eq!(whole.unread(Side::Server), cut.unread(Side::Server));
        prop_assert_eq!(whole.unread(Side::Client), cut.unread(Side::Client));
    }

    #[test]
    fn nothing_ever_opens_to_a_foreign_address_or_a_low_port(
        script in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let mut c = new();
        run(&mut c, &LOG_IN, 1000);
        let mut out = Vec::new();
        for (client, bytes) in &script {
            let side = if *client { Side::Client } else { Side::Server };
            c.feed(side, bytes, &mut out);
        }
        for (address, port) in openings(&out) {
            prop_assert!(address == "10.0.0.2" || address == "192.0.2.7");
            prop_assert!(port >= 1024);
        }
    }
}

#[test]
fn what_a_server_lists_is_told_of_its_answer_to_feat_alone() {
    let told = |script: &[(char, &'static [u8])]| {
        let mut c = new();
        run(&mut c, &LOG_IN, 1000);
        c.take_remarks();
        run(&mut c, script, 1000);
        let mut remarks = c.take_remarks();
        remarks.retain(|remark| matches!(remark, Remark::Features { .. }));
        remarks
    };
    let status: &[u8] = b"211-Status\r\n CCC\r\n211 End\r\n";
    let refused: [(char, &[u8]); 4] = [
        ('C', b"FEAT\r\n"),
        ('S', b"502 no\r\n"),
        ('C', b"STAT\r\n"),
        ('S', status),
    ];
    assert_eq!(told(&refused), []);
    let pipelined: [(char, &[u8]); 3] = [
        ('C', b"STAT\r\nFEAT\r\n"),
        ('S', status),
        ('S', b"211-Features\r\n UTF8\r\n211 End\r\n"),
    ];
    assert_eq!(told(&pipelined), [Remark::Features { ccc: false }]);
}
