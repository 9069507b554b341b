# What there is to do in this repository. `just check` is exactly what CI runs.

# Formatting, lints, documentation, the first command, the tests
check:
    .ci/run

# The tests, as in the README
test:
    cargo test --workspace

# The kernel tests for aarch64, under qemu
aarch64:
    tests/aarch64.sh

# The examples of the C library, in every language whose tools are there
ffi:
    ffi/examples/run.sh

# The C library under sanitizers
sanitize:
    ffi/tests/sanitize.sh address thread

# Speed in the shape of GPT-2 124M, beside this machine's own ceilings
bench:
    cargo run --release -- bench --shape gpt2 --quant q4,q8

# Format the code
fmt:
    cargo fmt --all

# The API documentation
docs:
    cargo doc --workspace --no-deps
