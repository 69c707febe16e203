#!/bin/bash
# Has libFuzzer look for bytes of which a property (src/properties) does not hold:
#   tests/fuzz/run.sh SECONDS [TARGET...]    each of tests/fuzz/targets, where none is named
# Inputs that lead somewhere new are kept in target/fuzz/corpus, those that break something in tests/fuzz/artifacts: they belong
# to tests/fuzz/seeds once it is mended. Exit status: 0 nothing was found, 69 what it takes is not there.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds="$1"; shift
fuzz() {  # fuzz COMMAND ARGUMENT...
    local command="$1"; shift
    cargo +nightly fuzz "$command" --fuzz-dir tests/fuzz --target-dir target/fuzz "$@"
}
if ! RUSTUP_AUTO_INSTALL=0 cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "no fuzzing: it takes a nightly compiler and cargo-fuzz (rustup toolchain install nightly; cargo install --locked cargo-fuzz)"
    exit 69
fi
if [ $# = 0 ]; then
    set -- tests/fuzz/targets/*.rs
    set -- "${@##*/}"
    set -- "${@%.rs}"
fi
fuzz build
for target in "$@"; do
    corpus="target/fuzz/corpus/$target"
    mkdir -p "$corpus"
    echo "=== $target for $seconds s"
    fuzz run "$target" "$corpus" "tests/fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -verbosity=0 -print_final_stats=1
done
