#!/bin/bash
# Runs tests/neon/selftest.cpp on the NEON kernels in an emulator, and on this machine's own to prove the test itself.
# Needs Debian's g++-aarch64-linux-gnu and qemu-user.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/neon
flags="-std=c++20 -O2 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -Icsrc -pthread"

# compile COMPILER FOLDER ISA [FLAG...]: the kernels of one instruction set
compile() {
    local compiler=$1 folder=$build/$2 isa=$3
    mkdir -p "$folder"
    for source in csrc/cpu/kernels/*.cpp; do
        "$compiler" $flags -DFASTWAVE_ISA="$isa" -Wno-maybe-uninitialized "${@:4}" \
            -c "$source" -o "$folder/$isa-$(basename "$source" .cpp).o" &
    done
    wait
}

# link COMPILER FOLDER: the rest, and the program
link() {
    "$1" $flags tests/neon/selftest.cpp csrc/check.cpp csrc/cpu/*.cpp "$build/$2"/*.o -o "$build/$2/selftest"
}

native=${CXX:-c++}
if [ "$(uname -m)" = x86_64 ]; then
    avx512="-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
    compile "$native" native baseline
    compile "$native" native avx2 -mavx2 -mfma
    compile "$native" native avx512 $avx512
    compile "$native" native avx512vnni $avx512 -mavx512vnni -mavx512bf16
    link "$native" native
    "$build/native/selftest"
fi
compile aarch64-linux-gnu-g++ arm64 neon
link aarch64-linux-gnu-g++ arm64
qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/arm64/selftest"
