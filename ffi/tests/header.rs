//! The committed header is the one that cbindgen makes of the sources.
//!
//! `TIDBIT_BLESS=1 cargo test -p tidbit-ffi --test header` writes it anew.

use std::path::Path;

fn generate(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/lib.rs"));
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_the_generated_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, generated) = (root.join("include/tidbit.h"), generate(root));
    if std::env::var_os("TIDBIT_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    let hint = "run `TIDBIT_BLESS=1 cargo test -p tidbit-ffi --test header` and commit the result";
    assert!(committed == generated, "include/tidbit.h is not what the sources say: {hint}");
}

/// cbindgen sees every exported function, and there are fewer than 45.
#[test]
fn all_functions_are_in_the_header() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let exported: usize = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap().matches("#[unsafe(no_mangle)]").count())
        .sum();
    let declared = generate(Path::new(env!("CARGO_MANIFEST_DIR")));
    let declared =
        declared.lines().filter(|line| line.contains("tidbit_") && line.contains('(') && !line.starts_with(' '));
    let declared = declared.filter(|line| !line.starts_with("typedef") && !line.starts_with(" *")).count();
    assert_eq!(declared, exported);
    assert!(exported < 45, "{exported} functions");
}
