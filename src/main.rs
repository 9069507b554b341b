//! The Tidbit command line.
fn main() {}
