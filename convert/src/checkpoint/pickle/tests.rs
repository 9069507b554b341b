use super::*;

/// `{"w": tensor}` in protocol 2, with `shape` and `strides` on a storage of 6 f32.
fn state(global: &str, offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut p = b"\x80\x02}q\x00(X\x01\x00\x00\x00w".to_vec();
    p.extend_from_slice(global.as_bytes());
    p.extend_from_slice(
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
    );
    p.extend_from_slice(&[
        b'K', offset, b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86,
    ]);
    p.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtRu.");
    p
}

const REBUILD: &str = "ctorch._utils\n_rebuild_tensor_v2\n";

#[test]
fn reads_a_state_dict() {
    let state = read(&state(REBUILD, 2, [2, 2], [2, 1])).unwrap();
    let tensor = &state["w"];
    assert_eq!((tensor.offset, &*tensor.shape, &*tensor.strides), (2, &[2, 2][..], &[2, 1][..]));
    assert_eq!((tensor.storage.dtype, tensor.storage.elements), (Dtype::F32, 6));
    assert!(tensor.is_contiguous());
}

#[test]
fn attributes_of_a_state_dict_are_skipped() {
    let inner = state(REBUILD, 2, [2, 2], [2, 1]);
    // An `OrderedDict` with `_metadata`, as `torch.save(model.state_dict())` writes it.
    let mut p = b"\x80\x02ccollections\nOrderedDict\n)Rq\x00".to_vec();
    p.extend_from_slice(&inner[5..inner.len() - 1]);
    p.extend_from_slice(b"}X\x09\x00\x00\x00_metadataccollections\nOrderedDict\n)R(X\x00\x00\x00\x00");
    p.extend_from_slice(b"}X\x07\x00\x00\x00versionK\x01susb.");
    assert_eq!(read(&p).unwrap(), read(&inner).unwrap());
}

#[test]
fn tells_strided_views_from_contiguous_ones() {
    for (shape, strides, contiguous) in
        [([2, 3], [3, 1], true), ([2, 3], [1, 2], false), ([1, 6], [9, 1], true), ([2, 3], [0, 1], false)]
    {
        assert_eq!(read(&state(REBUILD, 0, shape, strides)).unwrap()["w"].is_contiguous(), contiguous);
    }
}

#[test]
fn refuses_every_name_outside_the_whitelist() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "Counter"),
        ("numpy.core.multiarray", "_reconstruct"),
    ] {
        let message = read(&state(&format!("c{module}\n{name}\n"), 0, [2, 3], [3, 1])).unwrap_err();
        assert!(message.contains(&format!("{module}.{name}")), "{message}");
    }
    let classic = b"cos\nsystem\n(S'echo pwned'\ntR.";
    assert!(read(classic).unwrap_err().contains("os.system"));
    let stacked = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.";
    assert!(read(stacked).unwrap_err().contains("os.system"));
}

#[test]
fn refuses_opcodes_that_build_or_call_objects() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, STRING, DUP, POP_MARK
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'S', b'2', b'1'] {
        let message = read(&[0x80, 2, b'}', opcode, b'.']).unwrap_err();
        assert!(message.contains(&format!("0x{opcode:02x}")), "{message}");
    }
}

#[test]
fn refuses_what_is_malformed() {
    let good = state(REBUILD, 0, [2, 3], [3, 1]);
    for cut in 0..good.len() {
        assert!(read(&good[..cut]).is_err(), "cut at {cut}");
    }
    let mut deep = vec![0x80, 2, b')'];
    deep.resize(100_000, 0x85);
    let cases: [(&[u8], &str); 9] = [
        (&deep, "nested"),
        (b"\x80\x02K\x01.", "expected a state dict"),
        (b"\x80\x07}.", "protocol 7"),
        (b"\x80\x02h\x05.", "memo 5"),
        (b"\x80\x02}(K\x01u.", "without a value"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02}(0", "0x30"),
        (b"\x80\x02}(\x85.", "more values"),
        (b"\x80\x02}X\x05\x00\x00\x00epochK\x03s.", "`epoch` is an integer"),
    ];
    for (bytes, expected) in cases {
        let message = read(bytes).unwrap_err();
        assert!(message.contains(expected), "{message} should contain {expected}");
    }
    let mut endless = vec![0x80, 2];
    endless.resize(MAX_VALUES + 10, b'N');
    assert!(read(&endless).unwrap_err().contains("more than"));
}

proptest::proptest! {
    #[test]
    fn damaged_bytes_never_panic(at in 0usize..200, with in proptest::collection::vec(proptest::num::u8::ANY, 0..9)) {
        let mut bytes = state(REBUILD, 2, [2, 2], [2, 1]);
        let at = at % bytes.len();
        let end = (at + with.len()).min(bytes.len());
        bytes.splice(at..end, with);
        let _ = read(&bytes);
    }
}
