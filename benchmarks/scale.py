"""The figures of many processes and servers in one file, from what the benchmarks beside this one have measured.

    python benchmarks/scale.py

Reads results/{preemption,http_engine,zero,weight_sync}.json and writes results/scale.json. Nothing is measured here;
`sources` names the file of each figure, which says where it comes from.
"""

from __future__ import annotations

from _environment import RESULTS, write_result

from prmkit.io import read_json

SOURCES = {
    "kills_survived": "preemption",
    "http_engine_vs_server_bench": "http_engine",
    "memory_by_zero_stage": "zero",
    "weight_sync_max_logprob_error": "weight_sync",
}


def main() -> None:
    figures = {name: read_json(RESULTS / f"{source}.json")["figures"][name] for name, source in SOURCES.items()}
    print(write_result("scale", figures, ("torch", "lightning"), sources=SOURCES))


if __name__ == "__main__":
    main()
