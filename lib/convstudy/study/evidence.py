# SPDX-License-Identifier: MIT
"""Single numbers out of the records, by the names of what was measured."""

import functools

import pandas as pd

from convstudy import paths, records


class Evidence:
    """The newest records of some machines, asked for one number at a time.

    Parameters
    ----------
    machines : sequence of str
        In order of preference: a number is taken from the first machine that has measured it.
    """

    def __init__(self, machines):
        self.machines = tuple(machines)

    @functools.cache  # noqa: B019 - lives as long as one drawing
    def table(self, suite):
        """Return the finished rows of `suite` of all machines that have it."""
        table = records.table(suite, self.machines)
        return table[table["status"] == "ok"]

    def rows(self, suite, **labels):
        """Return the rows of `suite` whose columns equal `labels`, of the first machine with any.

        Raises
        ------
        LookupError
            Where no machine has measured it; names what was asked for.
        """
        table = self.table(suite)
        for column, value in labels.items():
            if column not in table:
                break
            table = table[table[column] == value]
        else:
            for machine in self.machines:
                found = table[table["machine"] == machine]
                if len(found):
                    return found
        asked = ", ".join(f"{name}={value!r}" for name, value in labels.items())
        raise LookupError(
            f"no record of {', '.join(self.machines)} holds suite {suite!r} with {asked}; "
            f"`make measure SUITE={suite}` on a machine that can adds one"
        )

    def seconds(self, suite, **labels):
        """Return the median seconds of the one row that `labels` names."""
        found = self.rows(suite, **labels)
        if len(found) > 1:
            raise LookupError(f"{len(found)} rows of suite {suite!r} match {labels}; say more")
        return float(found["median_s"].iloc[0])

    def environment(self, environment, what, clock, execution=None, rest=None):
        """Return the seconds of one bar of Fig. 4, for one image."""
        execution = execution or ("cpu" if environment.startswith("CPU") else "offload")
        rest = rest or ("cpu-plain" if execution == "offload" else "")
        return self.seconds(
            "environments",
            environment=environment,
            execution=execution,
            rest=rest,
            what=what,
            clock=clock,
            n=1,
        )

    def reduction(self, before, after, execution):
        """Return the share of the network's time that `after` saves."""
        slow = self.environment(before, "network", "synchronised")
        return 1 - self.environment(after, "network", "synchronised", execution) / slow

    def share(self, function, **labels):
        """Return the share of `function` in the time of all functions, for one image."""
        found = self.rows("functions", n=1, **labels)
        found = found[found["function"] != "network"].set_index("function")["median_s"]
        return float(found[function] / found.sum())

    def memory(self, quantity, space):
        """Return the latency (seconds) or the bandwidth (bytes/s) of a GPU's memory."""
        row = self.rows("memory", quantity=quantity, space=space).iloc[0]
        if quantity == "latency":
            return float(row["median_s"])
        return float(row["value_bytes"] / row["median_s"])

    def ladder(self, algorithm, n):
        """Return the seconds of the 18 layers together."""
        return float(self.rows("ladder", algorithm=algorithm, n=n)["median_s"].sum())

    def batch(self, execution, algorithm="conv2d_fprop_3_tiled"):
        """Return the seconds by batch size (rows) and number of GPUs (columns)."""
        found = self.rows("batch", execution=execution, algorithm=algorithm)
        return found.pivot(index="n", columns="gpus", values="median_s").dropna()

    def startup(self):
        """Return the seconds of each thing that happens before, or beside, the arithmetic."""
        return self.rows("startup").set_index("what")["median_s"].to_dict()

    def launch(self, clock, n=1):
        """Return the seconds of the 18 tiled layers, launched one after another."""
        return self.seconds("launch", algorithm="conv2d_fprop_3_tiled", clock=clock, n=n)

    @staticmethod
    def hardware(name, quantity):
        """Return a data sheet's number for a processor."""
        sheet = pd.read_csv(paths.PAPER / "hardware.csv").set_index("name")
        return float(sheet.loc[name, quantity])
