# SPDX-License-Identifier: MIT
"""Each verdict follows from the numbers: it turns where they do, and waits where they lack."""

import pandas as pd
import pytest

from convstudy import records
from convstudy.study import claims
from convstudy.study.claims import EXPLAINED, OUT_OF_REACH, REFUTED, REPRODUCED
from convstudy.study.evidence import Evidence

PLAIN, NAIVE = "CPU, plain loops", "GPU, not optimised"
TILED, TWO = "1 GPU, tiled", "2 GPUs, tiled + data parallel"
KERNELS = {
    "1_naive": 0.080,
    "2_coalesced": 0.016,
    "3_tiled": 0.008,
    "4_register_blocked": 0.004,
}


def kernel(rung):
    return f"conv2d_fprop_{rung}"


def environments():
    """Return seconds by (environment, execution, what): convolution is 80%, the rest stays."""
    return {
        (PLAIN, "cpu", "convolution"): 16.0,
        (PLAIN, "cpu", "network"): 20.0,
        (NAIVE, "offload", "convolution"): 0.1,
        (TILED, "offload", "convolution"): 0.04,
        (TILED, "offload", "network"): 4.04,
        (TILED, "resident", "network"): 0.02,
        (TWO, "offload", "convolution"): 0.02,
        (TWO, "offload", "network"): 4.02,
        (TWO, "resident", "network"): 0.01,
    }


def networks():
    """Yield rows of VGG and ResNet: (execution, algorithm, environment) and their functions."""
    ways = {
        ("cpu-plain", "", PLAIN): (9.0, 1.0),
        ("cpu-blas", "", ""): (4.0, 1.0),
        ("offload", kernel("1_naive"), NAIVE): (0.5, 1.0),
        ("offload", kernel("3_tiled"), TILED): (0.1, 1.0),
        ("resident", kernel("3_tiled"), TILED): (0.08, 0.02),
        ("resident", kernel("4_register_blocked"), ""): (0.03, 0.02),
    }
    for name in ("vgg16", "resnet18", "resnet50"):
        for (execution, algorithm, environment), (convolution, other) in ways.items():
            times = {"convolution": convolution, "pooling": other, "network": convolution + other}
            for function, seconds in times.items():
                yield {
                    "network": name,
                    "size": 224,
                    "n": 1,
                    "precision": "fp32",
                    "execution": execution,
                    "algorithm": algorithm,
                    "environment": environment,
                    "rest": "cpu-plain" if execution == "offload" else "",
                    "function": function,
                    "clock": "synchronised",
                    "median_s": seconds,
                }


class World:
    """Measurements of a few machines, to be bent before they are judged."""

    def __init__(self):
        self.suites = {
            "functions": [
                {"execution": execution, "function": function, "n": 1, "median_s": seconds}
                for execution, convolution in (("cpu-plain", 8.0), ("cpu-blas", 3.0))
                for function, seconds in (
                    ("convolution", convolution),
                    ("batch norm", 1.5),
                    ("ReLU", 0.5),
                    ("network", 99.0),
                )
            ],
            "networks": list(networks()),
            "memory": [
                {"processor": "gpu", "space": space, "quantity": quantity, **found}
                for space, latency, rate in (("shared", 1e-8, 3e13), ("device", 3e-7, 4e12))
                for quantity, found in (
                    ("latency", {"median_s": latency, "value_bytes": float("nan")}),
                    ("bandwidth", {"median_s": 0.5, "value_bytes": rate / 2}),
                )
            ],
            "ladder": [
                {"algorithm": kernel(rung), "layer": layer, "n": 1, "median_s": seconds / 2}
                for rung, seconds in KERNELS.items()
                for layer in ("enc0a", "enc0b")
            ],
            "environments": [
                {
                    "environment": environment,
                    "execution": execution,
                    "rest": rest,
                    "what": what,
                    "clock": "synchronised",
                    "median_s": seconds,
                }
                for (environment, execution, what), seconds in environments().items()
                for rest in (("cpu-plain", "cpu-blas") if execution == "offload" else ("",))
            ],
            "launch": [
                {"algorithm": kernel("3_tiled"), "n": 1, "clock": clock, "median_s": seconds}
                for clock, seconds in (("host", 3e-4), ("synchronised", 9e-3), ("event", 9e-3))
            ],
            "startup": [
                {"what": what, "memory": memory, "median_s": seconds}
                for what, memory, seconds in (
                    ("import", "", 1.0),
                    ("context", "", 0.5),
                    ("compile", "", 0.7),
                    ("transfers", "pageable", 0.02),
                    ("transfers", "pinned", 0.004),
                )
            ],
            "batch": [
                {
                    "execution": "resident",
                    "algorithm": kernel("3_tiled"),
                    "gpus": gpus,
                    "n": n,
                    "median_s": 0.01 * max(1, n / gpus),
                }
                for gpus in (1, 2)
                for n in (1, 2, 8)
            ],
        }
        for suite, rows in self.suites.items():
            for number, row in enumerate(rows):
                row |= {"machine": "h200", "case": f"{suite}-{number}"}
                row |= {"status": "ok", "stale": False}

    def find(self, suite, **having):
        found = [r for r in self.suites[suite] if having.items() <= r.items()]
        assert found, (suite, having)
        return found

    def set(self, suite, column, value, **having):
        for row in self.find(suite, **having):
            row[column] = value

    def table(self, suite, of=None, current_sha256=None):
        rows = [row for row in self.suites[suite] if row["machine"] in of]
        return pd.DataFrame(rows, columns=None if rows else ("machine", "status", "stale"))


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(records, "table", made.table)
    return made


def verdict(claim, machines=("h200",)):
    return claims.ledger(machines).set_index("id").loc[claim]


EXPECTED = {
    "P1": REPRODUCED,
    "P2": EXPLAINED,
    "P3": REPRODUCED,
    "P4": REPRODUCED,
    "P5": REFUTED,
    "P6": REPRODUCED,
    "P7": REPRODUCED,
    "P8": REFUTED,
    "P9": EXPLAINED,
    "P10": REPRODUCED,
    "P11": EXPLAINED,
    "P12": REPRODUCED,
}


def test_the_ledger_has_every_claim_once(world):
    ledger = claims.ledger(["h200"])
    assert list(ledger) == ["id", "claim", "paper", "ours", "verdict", "reason"]
    assert ledger.set_index("id")["verdict"].to_dict() == EXPECTED
    assert (ledger[["claim", "paper", "ours", "reason"]].map(len) > 0).all(axis=None)
    assert not ledger["ours"].str.contains("†").any()


TWO_OFFLOADED = {"environment": TWO, "execution": "offload", "what": "network"}
FLIPS = [
    # Slower, by more than ten points of the paper's share.
    ("P1", "environments", 5.8, {"environment": TWO, "execution": "offload"}, REFUTED),
    ("P1", "environments", 5.5, {"environment": TWO, "execution": "offload"}, REPRODUCED),
    # As near from either side, by either program.
    ("P3", "functions", 5.2, {"execution": "cpu-plain", "function": "convolution"}, REPRODUCED),
    ("P3", "functions", 5.1, {"execution": "cpu-plain", "function": "convolution"}, REFUTED),
    ("P3", "functions", 22.9, {"execution": "cpu-plain", "function": "convolution"}, REPRODUCED),
    ("P3", "functions", 23.1, {"execution": "cpu-plain", "function": "convolution"}, REFUTED),
    ("P3", "functions", 99.0, {"function": "convolution"}, REFUTED),
    ("P3", "functions", 20.0, {"execution": "cpu-blas", "function": "convolution"}, REPRODUCED),
    # More than 70%, of every network and by both programs; ten points are granted.
    ("P4", "networks", 1.51, {"execution": "cpu-blas", "function": "convolution"}, REPRODUCED),
    ("P4", "networks", 1.49, {"execution": "cpu-blas", "function": "convolution"}, REFUTED),
    ("P4", "networks", 1.49, {"execution": "cpu-plain", "function": "convolution"}, REFUTED),
    (
        *("P4", "networks", 1.0),
        {"network": "resnet18", "execution": "cpu-plain", "function": "convolution"},
        REFUTED,
    ),
    ("P4", "networks", 1e-6, {"execution": "resident", "function": "convolution"}, REPRODUCED),
    # Faster than unoptimised, and faster than the CPU.
    (
        *("P12", "networks", 0.6),
        {"network": "vgg16", "environment": TILED, "execution": "offload"},
        REFUTED,
    ),
    (
        *("P12", "networks", 10.1),
        {"environment": TILED, "execution": "offload", "function": "network"},
        REFUTED,
    ),
    (
        *("P12", "networks", 9.9),
        {"environment": TILED, "execution": "offload", "function": "network"},
        REPRODUCED,
    ),
    # About 100 times: from half of it to twice of it.
    ("P5", "memory", 4.98e-7, {"space": "device", "quantity": "latency"}, REFUTED),
    ("P5", "memory", 5.02e-7, {"space": "device", "quantity": "latency"}, REPRODUCED),
    ("P5", "memory", 1.99e-6, {"space": "device", "quantity": "latency"}, REPRODUCED),
    ("P5", "memory", 2.01e-6, {"space": "device", "quantity": "latency"}, REFUTED),
    ("P5", "memory", 3.32, {"space": "device", "quantity": "bandwidth"}, REFUTED),
    ("P5", "memory", 3.35, {"space": "device", "quantity": "bandwidth"}, REPRODUCED),
    ("P5", "memory", 13.3, {"space": "device", "quantity": "bandwidth"}, REPRODUCED),
    ("P5", "memory", 13.4, {"space": "device", "quantity": "bandwidth"}, REFUTED),
    ("P6", "ladder", 0.009, {"algorithm": kernel("3_tiled")}, REFUTED),
    ("P6", "ladder", 0.007, {"algorithm": kernel("3_tiled")}, REPRODUCED),
    ("P6", "ladder", 0.041, {"algorithm": kernel("2_coalesced")}, REFUTED),
    ("P7", "batch", 0.055, {"gpus": 2, "n": 8}, REFUTED),
    ("P7", "batch", 0.053, {"gpus": 2, "n": 8}, REPRODUCED),
    ("P8", "environments", 16.1, {"environment": NAIVE, "what": "convolution"}, REPRODUCED),
    ("P8", "environments", 15.9, {"environment": NAIVE, "what": "convolution"}, EXPLAINED),
    ("P8", "startup", 20.0, {"what": "compile"}, EXPLAINED),
    ("P9", "launch", 8e-3, {"clock": "host"}, REFUTED),
    ("P10", "environments", 6.5, {"environment": TILED, "what": "network"}, REFUTED),
    ("P10", "environments", 6.0, TWO_OFFLOADED, REFUTED),
    ("P11", "environments", 3.0, TWO_OFFLOADED, REFUTED),
    # Convolution is half of what is left: a second GPU could gain, so Amdahl is not why.
    ("P11", "environments", 2.0, {"environment": TILED, "what": "convolution"}, REPRODUCED),
]


@pytest.mark.parametrize(("claim", "suite", "seconds", "having", "expected"), FLIPS)
def test_a_verdict_turns_with_its_number(world, claim, suite, seconds, having, expected):
    world.set(suite, "median_s", seconds, **having)
    assert verdict(claim)["verdict"] == expected


def test_the_citation_is_judged_by_its_numbers(world, monkeypatch, tmp_path):
    for path in claims.paths.PAPER.glob("*.csv"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(claims.paths, "PAPER", tmp_path)
    assert verdict("P2")["ours"] == "37% / 33% / 54%, against one GPU"
    table = (tmp_path / "yadan.csv").read_text()
    (tmp_path / "yadan.csv").write_text(table.replace("2,data,7.0", "2,data,6.0"))
    found = verdict("P2")
    assert found["verdict"] == REFUTED
    assert "37% / 43% / 54%" in found["ours"]


def test_an_impossible_time_needs_a_peak_below_it(world, monkeypatch):
    monkeypatch.setattr(Evidence, "hardware", staticmethod(lambda name, quantity: 100.0))
    assert verdict("P9")["verdict"] == REFUTED


SAID = {
    "P1": ("80% less time", "99.95%"),
    "P3": ("80% (plain loops)", "60% (BLAS)"),
    "P4": ("plain loops: 90% (VGG-16), 90% (ResNet-18)", "BLAS: 80% (VGG-16)", "80% (ResNet-50)"),
    "P5": ("30 times in latency", "7.5 times in bandwidth"),
    "P6": ("10.0 times as fast as naive", "2.0 times as coalesced"),
    "P7": ("2.00 times", "batch of 8"),
    "P8": ("-15.90 s", "100 ms", "16 s"),
    "P9": ("300 µs", "9 ms"),
    "P10": ("80% less on 1 GPU", "80% less on 2"),
    "P11": ("1.00 times", "from 2 images on"),
    "P12": ("89% (VGG-16), 89% (ResNet-18), 89% (ResNet-50) less time on 1 GPU",),
}


@pytest.mark.parametrize("claim", SAID)
def test_ours_is_computed_from_the_numbers(world, claim):
    ours = verdict(claim)["ours"]
    assert all(part in ours for part in SAID[claim]), ours


def test_a_second_gpu_pays_only_where_it_keeps_paying(world):
    world.set("batch", "median_s", 0.079, gpus=2, n=8)
    assert verdict("P11")["ours"].endswith("pays at no batch up to 8")
    world.set("batch", "median_s", 0.04, gpus=2, n=8)
    world.set("batch", "median_s", 0.02, gpus=2, n=2)
    assert verdict("P11")["ours"].endswith("pays from 8 images on")


def test_reasons_name_the_numbers_they_rest_on(world):
    assert "lie 2 percentage points (plain loops) and 22 percentage" in verdict("P3")["reason"]
    assert "register-blocked: 60% (VGG-16), 60%" in verdict("P4")["reason"]
    assert "Of the 6 shares 0 are not above 70%, and the least is 80%" in verdict("P4")["reason"]
    assert "take 20% (VGG-16), 20% (ResNet-18)" in verdict("P12")["reason"]
    assert "100× (VGG-16), 100× (ResNet-18)" in verdict("P12")["reason"]
    assert "80 ms naive, 16 ms coalesced and 8 ms tiled" in verdict("P6")["reason"]
    assert "2.2 s once" in verdict("P8")["reason"]
    assert "33.7 GFLOP means 86 TFLOP/s" in verdict("P9")["reason"]
    assert "convolution is 80%, the ceiling 5.0 times" in verdict("P10")["reason"]
    assert "so 5.4 times is the ceiling" in verdict("P10")["reason"]
    assert "1.0%" in verdict("P11")["reason"]
    assert "1.00 times at most" in verdict("P11")["reason"]


def test_more_than_the_ceiling_is_what_the_rest_took_less(world):
    assert not any("beyond" in verdict(claim)["reason"] for claim in ("P10", "P11"))
    world.set("environments", "median_s", 3.82, **TWO_OFFLOADED)
    words = "; what is beyond that is of the rest on the CPU, which took 3.8 s there and 4 s"
    assert verdict("P10")["reason"].endswith(f"reach 5.2 times{words} on the CPU alone.")
    assert verdict("P11")["reason"].endswith(f"for any amount of data{words} on 1 GPU.")


NEEDS = {
    "P1": ("environments",),
    "P3": ("functions",),
    "P4": ("networks",),
    "P5": ("memory",),
    "P6": ("ladder",),
    "P7": ("batch",),
    "P8": ("environments", "startup"),
    "P9": ("launch",),
    "P10": ("environments",),
    "P11": ("environments", "batch"),
    "P12": ("networks",),
}


@pytest.mark.parametrize(
    ("claim", "suite"), [(claim, suite) for claim, needs in NEEDS.items() for suite in needs]
)
def test_what_is_missing_is_named(world, claim, suite):
    world.suites[suite] = []
    found = verdict(claim)
    assert (found["ours"], found["verdict"]) == ("not measured", OUT_OF_REACH)
    assert "h200 has not measured" in found["reason"]
    assert f"make measure SUITE={suite}" in found["reason"]


def test_a_cpu_alone_tells_convolution_s_share_and_what_it_cannot(world):
    world.suites["networks"] = [
        row for row in world.suites["networks"] if row["execution"].startswith("cpu")
    ]
    found = verdict("P4")
    assert found["verdict"] == REPRODUCED
    assert found["reason"].endswith("What is left of it on a GPU, this machine cannot tell.")
    assert verdict("P12")["verdict"] == OUT_OF_REACH


def test_another_size_of_image_is_no_evidence(world):
    world.set("networks", "size", 64)
    assert verdict("P4")["verdict"] == OUT_OF_REACH
    assert "make measure SUITE=networks" in verdict("P12")["reason"]


def test_no_record_at_all_leaves_what_needs_none(world):
    ledger = claims.ledger(["another"]).set_index("id")
    assert ledger["verdict"].to_dict() == dict.fromkeys(EXPECTED, OUT_OF_REACH) | {"P2": EXPLAINED}


def test_a_failed_case_is_no_evidence(world):
    world.set("launch", "status", "failed", clock="host")
    assert verdict("P9")["verdict"] == OUT_OF_REACH


def test_a_kernel_without_all_layers_is_not_compared(world):
    world.suites["ladder"].remove(
        world.find("ladder", algorithm=kernel("3_tiled"), layer="enc0b")[0]
    )
    found = verdict("P6")
    assert found["verdict"] == OUT_OF_REACH
    assert "every layer" in found["reason"]


def test_one_image_says_nothing_on_sharing_images(world):
    world.suites["batch"] = world.find("batch", n=1)
    assert verdict("P7")["verdict"] == OUT_OF_REACH


def test_two_images_are_enough_to_share(world):
    world.suites["batch"] = world.find("batch", n=1) + world.find("batch", n=2)
    assert verdict("P7")["ours"] == "2.00 times as fast on 2 GPUs, for a batch of 2"


@pytest.fixture
def one_gpu(world):
    world.suites["environments"] = [
        row for row in world.suites["environments"] if row["environment"] != TWO
    ]
    world.suites["batch"] = world.find("batch", gpus=1)
    return world


def test_one_gpu_settles_what_a_second_could_only_add_to(one_gpu):
    assert verdict("P1")["ours"] == "80% less time on 1 GPU; 99.9% with the whole network there"
    assert verdict("P10")["ours"] == "80% less on 1 GPU; 2 not measured"
    assert verdict("P10")["reason"].endswith("5.0 times, of which a second takes nothing back.")
    assert verdict("P11")["ours"] == "1.00 times as fast at most, with the rest on the CPU"
    found = {claim: verdict(claim)["verdict"] for claim in ("P1", "P7", "P10", "P11")}
    assert found == {"P1": REPRODUCED, "P7": OUT_OF_REACH, "P10": REPRODUCED, "P11": EXPLAINED}


def test_what_a_cpu_takes_that_is_used_well_is_told_beside(world):
    assert "BLAS" not in verdict("P1")["reason"]
    rows = world.suites["environments"]
    plain = next(row for row in rows if (row["execution"], row["what"]) == ("cpu", "network"))
    rows.append(plain | {"environment": "CPU, BLAS", "median_s": 0.125})
    world.set("environments", "median_s", 0.25, environment=TILED, rest="cpu-blas", what="network")
    reason = verdict("P1")["reason"]
    assert "through BLAS it takes 125 ms, and 250 ms with the tiled convolutions" in reason


def test_one_gpu_does_not_tell_what_a_second_might_change(one_gpu):
    one_gpu.set("environments", "median_s", 8.0, environment=TILED, execution="offload")
    found = {claim: verdict(claim)["verdict"] for claim in ("P1", "P10", "P11")}
    assert set(found.values()) == {OUT_OF_REACH}


def test_the_first_machine_that_has_all_is_heard(world):
    world.suites["launch"] += [
        row | {"machine": "other", "median_s": row["median_s"] * 2}
        for row in world.find("launch", machine="h200")
    ]
    assert "600 µs" in verdict("P9", ["other", "h200"])["ours"]
    assert "300 µs" in verdict("P9", ["h200", "other"])["ours"]


def test_numbers_of_two_machines_are_never_compared(world):
    world.set("launch", "machine", "other", clock="host")
    found = verdict("P9", ["other", "h200"])
    assert found["verdict"] == OUT_OF_REACH
    assert "other has not measured" in found["reason"]


def test_a_stale_number_carries_a_dagger(world):
    world.set("ladder", "stale", True, algorithm=kernel("1_naive"))
    ledger = claims.ledger(["h200"]).set_index("id")["ours"]
    assert [claim for claim, ours in ledger.items() if ours.endswith("†")] == ["P6"]


def test_two_rows_for_one_number_are_a_fault(world):
    world.suites["launch"].append(world.find("launch", clock="host")[0] | {"case": "twice"})
    with pytest.raises(ValueError, match="name 2 rows: launch-0, twice"):
        claims.ledger(["h200"])


def test_a_claim_that_is_none_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no claim 'P99'; there are P1, P2, .*, P12"):
        claims.told("P99", ["h200"])


def test_one_claim_is_told_as_in_the_ledger(world):
    row, text = verdict("P9"), claims.told("P9", ["h200"])
    assert text.startswith(f"P9  {row['claim']}\npaper    {row['paper']}\nours     ")
    assert all(len(line) <= 88 for line in text.splitlines())
    squeezed = " ".join(text.split())
    assert row["ours"] in squeezed
    assert row["reason"] in squeezed
