//! `pytorch_model.bin`, written here opcode by opcode, so that what is refused is known exactly.

mod support;

use std::io::Write as _;
use std::path::Path;
use support::*;
use tidbit_runtime::quant::QuantType;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A storage: the name of its type, and its bytes.
type Storages = Vec<(&'static str, Vec<u8>)>;

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, n: usize) {
    out.push(b'J');
    out.extend((n as i32).to_le_bytes());
}

/// A view of storage `key` in the pickle.
struct View<'a> {
    name: &'a str,
    key: usize,
    elements: usize,
    offset: usize,
    shape: &'a [usize],
    strides: Vec<usize>,
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// The pickle of a state dict.
fn pickle(views: &[View<'_>], storages: &Storages) -> Vec<u8> {
    let mut p = b"\x80\x02}(".to_vec();
    for view in views {
        text(&mut p, view.name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(format!("ctorch\n{}\n", storages[view.key].0).bytes());
        text(&mut p, &view.key.to_string());
        text(&mut p, "cpu");
        int(&mut p, view.elements);
        p.extend(b"tQ");
        int(&mut p, view.offset);
        for sizes in [view.shape, view.strides.as_slice()] {
            p.push(b'(');
            for &n in sizes {
                int(&mut p, n);
            }
            p.push(b't');
        }
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend(b"u.");
    p
}

fn write_zip(path: &Path, pickle: &[u8], storages: &Storages, byteorder: &str) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut put = |name: String, bytes: &[u8]| {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    put("archive/data.pkl".into(), pickle);
    put("archive/byteorder".into(), byteorder.as_bytes());
    for (key, (_, bytes)) in storages.iter().enumerate() {
        put(format!("archive/data/{key}"), bytes);
    }
    zip.finish().unwrap();
}

/// Every tensor of a GPT-2 in one storage, its head sharing the embedding, and a byte mask.
fn storages(fake: &Fake) -> (Storages, Vec<(String, usize, Vec<usize>)>) {
    let (mut bytes, mut places) = (vec![0; 4 * 3], Vec::new());
    for (name, tensor) in &fake.tensors {
        places.push((name.clone(), bytes.len() / 4, tensor.shape.clone()));
        bytes.extend(&tensor.bytes);
    }
    let wte = places.iter().find(|p| p.0.ends_with("wte.weight")).unwrap().clone();
    places.push(("lm_head.weight".into(), wte.1, wte.2));
    (vec![("FloatStorage", bytes), ("ByteStorage", vec![1; 100])], places)
}

/// Writes a checkpoint after `change` has had its way with the views, and returns its folder.
fn checkpoint(change: impl Fn(&mut View<'_>)) -> tempfile::TempDir {
    let fake = Fake::gpt2();
    let (storages, places) = storages(&fake);
    let elements = storages[0].1.len() / 4;
    let mut views: Vec<View<'_>> = places
        .iter()
        .map(|(name, offset, shape)| View { name, key: 0, elements, offset: *offset, shape, strides: row_major(shape) })
        .collect();
    let mask = [1, 1, 10, 10];
    let name = "transformer.h.0.attn.bias";
    views.push(View { name, key: 1, elements: 100, offset: 0, shape: &mask, strides: row_major(&mask) });
    views.iter_mut().for_each(change);
    let folder = tempfile::tempdir().unwrap();
    fake.write_config(folder.path());
    write_zip(&folder.path().join("pytorch_model.bin"), &pickle(&views, &storages), &storages, "little");
    folder
}

#[test]
fn views_of_a_shared_storage_are_read() {
    let folder = checkpoint(|_| {});
    let (file, _) = converted(folder.path(), QuantType::F32).unwrap();
    let fake = Fake::gpt2();
    assert_eq!(values(&file, "embed.tokens"), fake.tensors["transformer.wte.weight"].values());
    assert_eq!(values(&file, "layers.1.mlp.up.bias"), fake.tensors["transformer.h.1.mlp.c_fc.bias"].values());
    let up = fake.tensors["transformer.h.1.mlp.c_fc.weight"].values();
    assert_eq!(values(&file, "layers.1.mlp.up.weight")[D + 3..][..1], up[3 * FFN + 1..][..1]);
}

type Change = fn(&mut View<'_>);

#[test]
fn views_outside_their_storage_or_out_of_order_are_refused() {
    let cases: [(Change, &str); 4] = [
        (|v| v.offset += if v.name.ends_with("wte.weight") { 1 << 20 } else { 0 }, "reaches outside its storage of"),
        (|v| v.elements += 1, "bytes, expected"),
        (|v| v.strides.reverse(), "not contiguous: shape [37, 12], strides [1, 12]"),
        (|v| v.shape = if v.name.ends_with("ln_f.bias") { &[11] } else { v.shape }, "expected shape [12]"),
    ];
    for (change, expected) in cases {
        let folder = checkpoint(change);
        let message = failure(folder.path());
        assert!(message.contains("pytorch_model.bin: tensor `") && message.contains(expected), "{message}");
    }
    // The pickle is there, its storages are not.
    let folder = checkpoint(|_| {});
    let storages = vec![("FloatStorage", vec![0; 16])];
    let view = View { name: "w", key: 0, elements: 4, offset: 0, shape: &[4], strides: vec![1] };
    let bytes = pickle(&[view], &storages);
    write_zip(&folder.path().join("pytorch_model.bin"), &bytes, &Storages::new(), "little");
    assert!(failure(folder.path()).contains("tensor `w`: its storage `data/0` is not in the archive"));
}

#[test]
fn nothing_in_a_pickle_is_executed() {
    let folder = checkpoint(|_| {});
    let path = folder.path().join("pytorch_model.bin");
    let witness = folder.path().join("witness");
    let mut hostile = b"\x80\x02cos\nsystem\n".to_vec();
    text(&mut hostile, &format!("touch {}", witness.display()));
    hostile.extend(b"\x85R.");
    write_zip(&path, &hostile, &Storages::new(), "little");
    let message = failure(folder.path());
    assert!(message.contains("pytorch_model.bin: data.pkl: refers to `os.system`"), "{message}");
    assert!(!witness.exists());
}

#[test]
fn archives_of_other_kinds_are_refused() {
    let folder = checkpoint(|_| {});
    let path = folder.path().join("pytorch_model.bin");
    let whole = std::fs::read(&path).unwrap();
    let case = |expected: &str| {
        let message = failure(folder.path());
        assert!(message.contains("pytorch_model.bin: ") && message.contains(expected), "{message}");
    };
    std::fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    case("legacy format (before 1.6)");
    std::fs::write(&path, "").unwrap();
    case("the file is empty");
    std::fs::write(&path, "hello").unwrap();
    case("not a torch file");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    case("damaged zip archive");
    write_zip(&path, b"\x80\x02}.", &Storages::new(), "big");
    case("byteorder is big, only little is supported");
    write_zip(&path, b"\x80\x02}.", &Storages::new(), "little");
    case("0 tensors cannot make 2 layers");
    for cut in (0..whole.len()).step_by(499) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        failure(folder.path());
    }
}

#[test]
fn shared_torch_checkpoint_has_the_bytes_of_its_storages() {
    let Some(folder) = shared("golden/shapes/gpt2-bin") else { return };
    let (file, _) = converted(&folder, QuantType::F32).unwrap();
    // torch numbers storages in the order of the state dict.
    let mut zip = zip::ZipArchive::new(std::fs::File::open(folder.join("pytorch_model.bin")).unwrap()).unwrap();
    let mut storage = |key: usize| -> Vec<f32> {
        let mut bytes = Vec::new();
        std::io::copy(&mut zip.by_name(&format!("pytorch_model/data/{key}")).unwrap(), &mut bytes).unwrap();
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for (key, name) in [(0, "embed.tokens"), (1, "embed.positions"), (2, "layers.0.attn_norm.weight")] {
        assert_eq!(values(&file, name), storage(key), "{name}");
    }
}

#[test]
fn a_flipped_byte_never_panics() {
    let folder = checkpoint(|_| {});
    let path = folder.path().join("pytorch_model.bin");
    let whole = std::fs::read(&path).unwrap();
    // Everything that is structure: the pickle in front, the zip directory at the end.
    let structure = (0..6000.min(whole.len())).step_by(3).chain(whole.len() - 400..whole.len());
    let mut refused = 0;
    for at in structure {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        std::fs::write(&path, bytes).unwrap();
        refused += usize::from(tidbit_convert::Checkpoint::open(folder.path()).is_err());
    }
    assert!(refused > 1000, "{refused} refused");
}
