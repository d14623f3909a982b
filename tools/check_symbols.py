"""Fails on a weak symbol that one instruction set's kernels define outside their own namespace.

A weak symbol (an inline function or a template of a shared header) is compiled once per instruction set under the same
name, and the linker keeps any one of the copies: on a CPU without AVX-512 that copy may be an illegal instruction.
"""

import argparse
import re
import subprocess
import sys

# A pointer to the personality routine of C++ exceptions: data, the same in every copy.
HARMLESS = {"DW.ref.__gxx_personality_v0"}


def foreign_symbols(nm: str, isa: str, objects: list[str]) -> list[str]:
    """Demangled names of the weak symbols in `objects` outside `fastwave::<isa>`."""
    command = [nm, "--no-sort", "--defined-only", *objects]
    mangled, demangled = (
        subprocess.run(c, check=True, capture_output=True, text=True).stdout.splitlines()
        for c in (command, [command[0], "-C", *command[1:]])
    )
    own = re.compile(rf"_Z[A-Z]*N[KVRO]*8fastwave{len(isa)}{isa}\d")
    line = re.compile(r"[0-9a-f]+ ([A-Za-z]) (.+)")
    foreign = []
    for raw, readable in zip(mangled, demangled, strict=True):
        match = line.fullmatch(raw)
        if match and match[1] in "WwVvu" and match[2] not in HARMLESS and not own.match(match[2]):
            foreign.append(line.fullmatch(readable)[2])
    return foreign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--isa", required=True)
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()
    foreign = foreign_symbols(arguments.nm, arguments.isa, arguments.objects)
    for name in foreign:
        print(f"error: weak symbol outside fastwave::{arguments.isa}: {name}", file=sys.stderr)
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())
