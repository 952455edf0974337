"""How fast tiles are read: ours against tiffslide, OpenSlide, tifffile and the bare decode.

    python -m tests.benchmarks.reader [--quick] [--out FILE]

Slides are mosaics of a synthetic field. They lie in a folder, and behind a range server of our own
with 30 ms before each reply and 80 MB/s on each connection. Every measure is a process of its own
on CPU 0; the server has CPU 1. What is compared is measured in turns, and medians are taken, for
the machine's other work comes and goes; tiffslide has a process of its own, also on CPU 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.report import finish
from tests.benchmarks.slides import write_field, write_mosaic
from tests.servers.ranges import RangeServer

LATENCY_MS, MB_PER_S = 30.0, 80.0
WANTED = {
    "local_over_decode_limit": ">= 0.75",
    "remote_over_tiffslide_best": ">= 6",
    "remote_over_local": ">= 0.75",
    "half_mpp_over_tiffslide_best": ">= 10",
    "gets_per_tile": "<= 0.08",
    "bytes_over_needed": "<= 1.03",
    "open_requests": "<= 8",
    "open_mb": "<= 2",
    "j2k_over_decode_limit": ">= 0.9",
    "threads_scaling_over_decode_scaling": ">= 0.85",
}
PACKAGES = (
    "obstore",
    "simplejpeg",
    "imagecodecs",
    "tifffile",
    "tiffslide",
    "zarr",
    "openslide-bin",
    "s3fs",
)


def main() -> None:
    """Make the slides, run the measures one by one, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small slides, for trying it out")
    parser.add_argument("--out", help="write the report here too")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"quick": asked.quick, "latency_ms": LATENCY_MS, "mb_per_s": MB_PER_S}
    with tempfile.TemporaryDirectory() as folder:
        bucket = Path(folder) / "slides"
        bucket.mkdir()
        started = time.monotonic()
        figures["slides"] = _make_slides(bucket, quick=asked.quick)
        print(f"slides made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        link = {"latency_ms": LATENCY_MS, "mb_per_s": MB_PER_S}
        with RangeServer(Path(folder), cpu=1, **link) as server:
            ratios: dict[str, float] = {}
            for measure in ("jpeg", "half", "open", "j2k", "threads"):
                found = _measured(measure, bucket, server, quick=asked.quick)
                ratios |= found.pop("ratios")
                figures[measure] = found
                print(f"{measure}: {json.dumps(found)}", file=sys.stderr)
    finish(
        "reader", ratios=ratios, wanted=WANTED, figures=figures, packages=PACKAGES, out=asked.out
    )


def _make_slides(bucket: Path, *, quick: bool) -> dict[str, float]:
    """Slides by name, MB each: `half` and `quarter` mpp, `large` (1 GB) and `j2k`."""
    side = 4096 if quick else 8192
    fields = {mpp: bucket / f"field_{mpp}.svs" for mpp in (0.5, 0.25)}
    for mpp, field in fields.items():
        write_field(field, mpp=mpp, side_px=side)
    for name, mpp, times in (("half.tif", 0.5, 3), ("quarter.tif", 0.25, 6)):
        across = 1 if quick else times
        write_mosaic(fields[mpp], bucket / name, across=across, down=across, mpp=mpp)
    size = fields[0.5].stat().st_size
    down = max(1, round((64e6 if quick else 1e9) / size / 4))
    write_mosaic(fields[0.5], bucket / "large.tif", across=4, down=down, mpp=0.5)
    small = fields[0.5]
    if not quick:
        small = bucket / "small.svs"
        write_field(small, mpp=0.5, side_px=4096)
    write_mosaic(small, bucket / "j2k.tif", across=1, down=1, mpp=0.5, jpeg2000=True)
    return {path.name: round(path.stat().st_size / 1e6, 1) for path in sorted(bucket.iterdir())}


def _measured(name: str, bucket: Path, server: RangeServer, *, quick: bool) -> dict[str, Any]:
    """Run one measure in a process on CPU 0 (`threads`: on CPUs 0 and 1)."""
    command = [sys.executable, "-m", "tests.benchmarks.reader_measures", name, str(bucket)]
    cpus = {0, 1} if name == "threads" else {0}
    done = subprocess.run(
        [*command, server.endpoint, str(int(quick))],
        env={**os.environ, **server.env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    main()
