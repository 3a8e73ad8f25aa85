# SPDX-License-Identifier: MIT
"""Notebooks of a few cells, to try the machinery on."""

import json

PARAMETERS = 'machines = "h200"  # whose records\nchunks = 2\nscale = 0.5\n'


def code(source, *tags, **changes):
    metadata = {"tags": list(tags)} if tags else {}
    cell = {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": []}
    return cell | {"source": source} | changes


def text(*cells):
    """Return the JSON of a notebook, before anything has run."""
    cells = [cell | {"id": f"cell-{i}"} for i, cell in enumerate(cells)]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def write(folder, name, *sources, parameters=PARAMETERS):
    """Write a notebook whose first cell has the parameters, and return its path."""
    path = folder / f"{name}.ipynb"
    path.write_text(text(code(parameters, "parameters"), *map(code, sources)))
    return path
