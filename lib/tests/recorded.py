# SPDX-License-Identifier: MIT
"""Records that are valid, from as little as a test wants to say."""

from convstudy import records

SHA = "0123456789abcdef" * 4


def row(case="a", **fields):
    return {
        "case": case,
        "labels": {"layer": "enc0a", "n": 2, "share": 0.5, "quick": True},
        "problem": {"n": 1},
        "kernel": "conv2d_fprop_1_naive",
        "source_sha256": SHA,
        "launch": {"grid": [2, 1, 1], "block": [32, 8], "shared_bytes": 0, "defines": {"T": 4}},
        "resources": {"registers": 40, "shared_bytes": 0, "spill_bytes": 0},
        "clock": "event",
        "cache": "flushed",
        "transfers": "excluded",
        "warmup": 3,
        "samples_s": [0.25, 0.5, 0.125],
        "values": {"bytes": 10, "events": [{"gpu": 0, "start_s": 0.5}]},
        "check": {
            "reference": "float64",
            "max_relative_error": 1e-7,
            "tolerance": 1e-5,
            "passed": True,
        },
        "gpu_state": {"sm_clock_mhz": 1980, "temperature_c": 40, "throttle": ["power cap"]},
        "status": "ok",
        "reason": None,
    } | fields


def signed(record):
    return record | {"digest": records.digest(record)}


def make(time="20240102T030405Z", commit="ab" * 20, suite="ladder", machine="box", results=None):
    day, clock = time[:8], time[9:15]
    gpu = {
        "index": 0,
        "name": "A GPU",
        "compute_capability": "9.0",
        "sm_count": 132,
        "memory_bytes": 10**9,
        "l2_bytes": 10**6,
        "shared_bytes_per_block": 1000,
        "ecc": True,
        "power_limit_w": 700.0,
        "clocks_mhz": {"sm_max": 1980, "memory_max": None},
        "pcie": {"generation": 5, "width": 16},
        "driver": "580.1",
    }
    software = "python numpy numba cupy cuda_driver cuda_runtime nvrtc torch cudnn compiler blas"
    return signed(
        {
            "schema": records.SCHEMA,
            "id": f"{time}-{commit[:7]}-{suite}",
            "suite": suite,
            "created_utc": f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z",
            "duration_s": 1.5,
            "machine": {
                "slug": machine,
                "cpu": {"model": "A CPU", "cores": 2},
                "ram_bytes": 10**9,
                "os": "Linux",
                "kernel": "6.1",
                "gpus": [gpu],
                "topology": [["X", "NV18"], ["NV18", "X"]],
            },
            "software": dict.fromkeys(software.split()) | {"python": "3.11.7"},
            "source": {"commit": commit, "dirty": False, "sha256": SHA},
            "method": {"seed": 1, "options": {"n": "1,16", "repeats": 3}},
            "results": results or [row("a"), row("b", status="ok")],
        }
    )
