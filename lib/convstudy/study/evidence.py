# SPDX-License-Identifier: MIT
"""Single numbers out of one machine's records, by the names of what was measured."""

import pandas as pd

from convstudy import paths, records
from convstudy.compile import source_sha256
from convstudy.plots.fig4_clocks import convolution_flops

_TILED = "conv2d_fprop_3_tiled"
# Height and width of the images that VGG and ResNet are made for.
_SIZE = 224


class Evidence:
    """The newest records of one machine, asked for one number at a time.

    Numbers that are compared with each other must come from one machine, so there is one only.

    Parameters
    ----------
    machine : str

    Attributes
    ----------
    stale : bool
        Whether any number given out so far is of a kernel that has changed since.
    """

    def __init__(self, machine):
        self.machine = machine
        self.stale = False
        self._tables = {}

    def _finished(self, suite):
        if suite not in self._tables:
            table = records.table(suite, (self.machine,), source_sha256)
            self._tables[suite] = table[table["status"] == "ok"]
        return self._tables[suite]

    def rows(self, suite, **labels):
        """Return the finished rows of `suite` whose columns equal `labels`.

        Raises
        ------
        LookupError
            Where there is none; the message says what is missing, and how to get it.
        """
        found = self._finished(suite)
        for column, value in labels.items():
            found = found[found[column] == value] if column in found else found[:0]
        if found.empty:
            asked = ", ".join(f"{name} {value!r}" for name, value in labels.items())
            raise LookupError(
                f"{self.machine} has not measured {asked or 'anything'} of suite {suite!r}; "
                f"`make measure SUITE={suite}`, on a machine that can, adds it."
            )
        self.stale |= bool(found["stale"].any())
        return found

    def seconds(self, suite, **labels):
        """Return the median seconds of the one row that `labels` name."""
        found = self.rows(suite, **labels)
        if len(found) > 1:
            cases = ", ".join(found["case"])
            raise ValueError(f"{labels} of suite {suite!r} name {len(found)} rows: {cases}")
        return float(found["median_s"].iloc[0])

    def environment(
        self, environment, what, execution="offload", clock="synchronised", rest="cpu-plain"
    ):
        """Return the seconds of one bar of Fig. 4, for one image; offloaded as the paper does."""
        return self.seconds(
            "environments",
            environment=environment,
            execution=execution,
            rest=rest if execution == "offload" else "",
            what=what,
            clock=clock,
        )

    def saved(self, before, after, execution="offload"):
        """Return the share of the plain network's time that environment `after` saves."""
        slow = self.environment(before, "network", "cpu")
        return 1 - self.environment(after, "network", execution) / slow

    def share(self, function, execution, suite="functions", **labels):
        """Return the share of `function` in the time of all functions, for one image."""
        found = self.rows(suite, execution=execution, n=1, **labels)
        found = found[found["function"] != "network"].set_index("function")["median_s"]
        if function not in found:
            raise LookupError(f"{self.machine} has not measured {function!r} of {execution!r}.")
        return float(found[function] / found.sum())

    def network(self, network, environment, function="network", execution="offload"):
        """Return the seconds of VGG or ResNet in one environment; offloaded as the paper does."""
        return self.seconds(
            "networks",
            network=network,
            size=_SIZE,
            n=1,
            environment=environment,
            execution=execution,
            rest="cpu-plain" if execution == "offload" else "",
            function=function,
            clock="synchronised",
        )

    def convolution_share(self, network, execution, algorithm=""):
        """Return convolution's share of the time of VGG's or ResNet's functions."""
        labels = {"network": network, "size": _SIZE, "algorithm": algorithm, "precision": "fp32"}
        return self.share("convolution", execution, "networks", clock="synchronised", **labels)

    def memory(self, quantity, space):
        """Return the latency (seconds) or the bandwidth (bytes/s) of a GPU's memory."""
        row = self.rows("memory", processor="gpu", quantity=quantity, space=space).iloc[0]
        if quantity == "latency":
            return float(row["median_s"])
        return float(row["value_bytes"] / row["median_s"])

    def ladder(self, algorithm, n=1):
        """Return the seconds of the 18 convolutions together."""
        layers = set(self.rows("ladder", n=n)["layer"])
        found = self.rows("ladder", algorithm=algorithm, n=n)
        if set(found["layer"]) != layers:
            raise LookupError(f"{self.machine} has not measured every layer of {algorithm!r}.")
        return float(found["median_s"].sum())

    def batch(self, execution, gpus):
        """Return the tiled network's seconds by batch size."""
        found = self.rows("batch", execution=execution, algorithm=_TILED, gpus=gpus)
        return found.set_index("n")["median_s"].sort_index()

    def gains(self, execution):
        """Return how many times as fast two GPUs are as one, by batch size."""
        gains = (self.batch(execution, 1) / self.batch(execution, 2)).dropna()
        if gains.empty:
            raise LookupError(
                f"{self.machine} has measured no batch size, {execution}, on one GPU and on two; "
                f"`make measure SUITE=batch`, on a machine that can, adds it."
            )
        return gains

    def startup(self, what, memory=""):
        """Return the seconds of something that happens before, or beside, the arithmetic."""
        return self.seconds("startup", what=what, memory=memory)

    def launch(self, clock):
        """Return the seconds of the 18 tiled convolutions of one image, by one clock."""
        return self.seconds("launch", algorithm=_TILED, clock=clock, n=1)

    @staticmethod
    def flops():
        """Return the floating-point operations of the 18 convolutions of one image."""
        return convolution_flops(1)

    @staticmethod
    def hardware(name, quantity):
        """Return a data sheet's number for a processor."""
        sheet = pd.read_csv(paths.PAPER / "hardware.csv").set_index("name")
        return float(sheet.loc[name, quantity])
