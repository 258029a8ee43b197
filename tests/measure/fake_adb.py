"""A program that does as ``adb`` does, its device a folder, and the program that times there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_ADB = r"""#!/bin/sh
# adb: devices | -s SERIAL shell -T COMMAND | -s SERIAL push FILES FOLDER/
here=$(dirname "$0")/..
if [ "$1" = devices ]; then
    printf 'List of devices attached\n'; cat "$here/devices"; printf '\n'; exit 0
fi
[ "$1" = -s ] || { echo "adb: usage: unknown command $1" >&2; exit 1; }
serial=$2; shift 2
if [ -f "$here/leaves" ]; then
    left=$(cat "$here/leaves"); echo $((left - 1)) > "$here/leaves"
    [ "$left" -gt 0 ] || : > "$here/devices"
fi
state=$(awk -F'\t' -v s="$serial" '$1 == s {print $2}' "$here/devices")
case "$state" in
    device) ;;
    "") echo "adb: device '$serial' not found" >&2; exit 1;;
    *) echo "error: device $state." >&2; exit 1;;
esac
case "$1" in
    shell)
        [ "$2" = -T ] && [ $# = 3 ] || { echo "adb: usage: shell" >&2; exit 1; }
        echo "$3" >> "$here/calls"
        case "$3" in *times*) [ -f "$here/breaks" ] && { echo "file 0"; exit 255; };; esac
        PATH="$here/system:$PATH" exec sh -c "$3";;
    push)
        shift
        for last; do :; done
        if [ -f "$here/full" ]; then
            echo "adb: error: failed to copy '$1' to '$last': No space left on device" >&2
            exit 1
        fi
        while [ $# -gt 1 ]; do cp "$1" "$last" || exit 1; shift; done
        [ -f "$here/changes" ] && for f in "$last"*.onnx; do echo >> "$f"; done
        echo "1 file pushed, 0 skipped.";;
    *) echo "adb: unknown command $1" >&2; exit 1;;
esac
"""

_PERF_TEST = r"""#!/bin/sh
# onnxruntime_perf_test [options...] model_path [result_file]: times grow with the file
mode=duration
while getopts m:r:t:x:y:e:o:S:IPAMsv option; do
    case $option in
        m) mode=$OPTARG;;
        r) runs=$OPTARG;;
        e) [ "$OPTARG" = cpu ] || { echo "$OPTARG is not supported in this build" >&2; exit 255; };;
        I) made_up=yes;;
        \?) echo "See 'onnxruntime_perf_test --help'." >&2; exit 255;;
    esac
done
shift $((OPTIND - 1))
[ "$mode" = times ] && [ "$made_up" ] && [ $# = 2 ] || { echo "Run failed:usage"; exit 255; }
if [ "$(head -c 1 "$1" | od -An -tx1 | tr -d ' ')" != 08 ]; then
    echo "Load model from $1 failed:Protobuf parsing failed." >&2; exit 255
fi
size=$(wc -c < "$1")
awk -v runs="$runs" -v size="$size" -v name="$(basename "$PWD")" 'BEGIN {
    for (i = 0; i < runs; i++)
        printf "%s,%g,%d,%d,%d\n", name, size * 1e-7 * (1 + (i < 5 ? 2 : (i % 3) / 100)), 9e6, 99, i
}' >> "$2"
echo "Average inference time cost: 1 ms"
"""

_SYSTEM = {
    "getprop": """
        case $1 in
            ro.product.manufacturer) echo Acme;; ro.product.model) echo "Phone 3";;
            ro.build.version.release) echo 14;; ro.product.cpu.abi) echo arm64-v8a;;
        esac""",
    "nproc": "echo 8",
    "dumpsys": """
        echo "Thermal Status: 2"
        echo "Temperature{mValue=41.5, mType=0, mName=cpu, mStatus=0}" """,
}


@dataclass(frozen=True)
class Phone:
    """A device that the fake program reaches; what lies in ``root`` says how it behaves."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "data"

    @property
    def binary(self) -> Path:
        return self.folder / "onnxruntime_perf_test"

    def states(self, **states: str) -> None:
        (self.root / "devices").write_text("".join(f"{k}\t{v}\n" for k, v in states.items()))

    def does(self, name: str, content: str = "") -> None:
        (self.root / name).write_text(content)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("tailorbird*"))


def phone(root: Path, monkeypatch) -> Phone:
    """A connected device, and the fake ``adb`` first on the path."""
    found = Phone(root)
    programs = {root / "bin" / "adb": _ADB, found.binary: _PERF_TEST}
    programs |= {root / "system" / name: f"#!/bin/sh\n{text}\n" for name, text in _SYSTEM.items()}
    for path, text in programs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    found.states(R58M12="device")
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return found
