# SPDX-License-Identifier: MIT
"""The parts of README.md that are made, not typed: between ``begin`` and ``end`` markers."""

import ast
import csv
import json
import re

import pandas as pd

from convstudy import paths
from convstudy.plots import labels
from convstudy.plots.figS3_scaling import DATA
from convstudy.plots.figS3_scaling import NAME as SCALING
from convstudy.plots.figS4_networks import NETWORKS

README = paths.ROOT / "README.md"
MAIN_FIGURE = paths.FIGURES / "fig4_execution_time.png"

_BLOCK = re.compile(r"(<!-- begin: (\w+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:begin|end): .*?-->")
_TARGET = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)

# What is at the top, for those folders whose files cannot say it themselves.
_TOP = {
    "notebooks/": "the study, in reading order; committed executed, on the committed records",
    "figures/": "what the committed records draw, with each figure's plotted table",
    "figures/local/": "the same with this machine's own records beside them (not committed)",
    "data/paper/": "the paper's numbers and claims, as printed",
    "data/goals.csv": "what our kernels are to reach against cuDNN",
    "data/measurements/": "one folder a machine, one append-only JSON a run",
    "data/images/": "composites of real photographs with masks, and their licences",
    "lib/tests/": "the library's tests, in the same tree",
    "lib/convstudy/": "the library, in which imports point down only:",
}


def claims():
    """Return the ledger of claims, from its table in ``figures/``."""
    path = paths.FIGURES / "claims.csv"
    if not path.is_file():
        return "_`make figures` writes this table._\n"
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    columns = {"id": "", "claim": "Claim", "paper": "Paper", "ours": "Ours", "verdict": "Verdict"}
    return _table(list(columns.values()), [[row[key] for key in columns] for row in rows])


_PASSES = {
    "fprop": "U-Net's 18 convolutions, forwards",
    "dgrad": "their inputs' gradients",
    "wgrad": "their filters' gradients",
}
_NOT_YET = "_`make measure` on a machine with a GPU and PyTorch makes this table._\n"


def beyond():
    """Return how many times as fast as PyTorch ours are, from the tables in ``figures/``."""
    tables = [
        _ratios("tabS3_goals", "ratio", lambda row: _PASSES[row["pass"]]),
        _ratios("figS2_unet_vs_pytorch", "ratio_to_best", lambda row: f"U-Net, {row['what']}"),
        _ratios(
            "figS4_networks", "ratio", lambda row: f"{NETWORKS[row['network']]}, {row['what']}"
        ),
    ]
    found = pd.concat([each for each in tables if len(each)] or tables)
    if found.empty:
        return _NOT_YET
    found = found[found["machine"] == found["machine"].iloc[0]]
    stale = any(labels.DAGGER in text for text in found["text"])
    title = f"On one {found['machine'].iloc[0]}"
    return _by_batch(title, found) + (f"\n{labels.STALE}\n" * stale)


def together():
    """Return how many times as fast as one GPU two are, and as PyTorch on two, by images each."""
    path = paths.FIGURES / f"{SCALING}.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["processor"])
    table = table[table["processor"] == "gpu"]
    if table.empty:
        return _NOT_YET
    machine = table["machine"].iloc[0]
    table = table[(table["machine"] == machine) & (table["gpus"] == 2) & (table["cut"] == DATA)]
    rows = [
        (f"U-Net, {row['what']}", row["precision"], row["images_per_gpu"], _both(row))
        for row in table[table["ddp_images_per_s"].notna()].to_dict("records")
    ]
    found = pd.DataFrame(rows, columns=["work", "precision", "n", "text"])
    return _by_batch(f"On {machine}", found, " each")


def _both(row):
    return f"{row['scaling']:.2f}× / {row['ratio_to_ddp']:.2f}×"


def _by_batch(title, found, each=""):
    """Return a table of work, precision, n and text: a line for each work, a column for each n."""
    batches = sorted(found["n"].unique())
    cells = found.set_index(["work", "precision", "n"])["text"].to_dict()
    kinds = found[["work", "precision"]].drop_duplicates().itertuples(index=False)
    rows = [[*kind, *(cells.get((*kind, n), "") for n in batches)] for kind in kinds]
    return _table([title, "Precision", *(f"N = {n}{each}" for n in batches)], rows)


def _ratios(name, column, work):
    """Return machine, work, precision, n and text of each ratio in a table of ``figures/``."""
    path, columns = paths.FIGURES / f"{name}.csv", ["machine", "work", "precision", "n", "text"]
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=[column])
    table = table[table[column].notna()]
    rows = [
        (
            *(row["machine"], work(row), row["precision"], row["n"]),
            _times(row[column], row["stale"]),
        )
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=columns)


def _times(ratio, stale):
    return labels.marked(f"{ratio:.2f}×", stale)


def _table(header, rows):
    cells = [header, ["---"] * len(header), *rows]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells)
    return "".join(f"| {line} |\n" for line in lines)


def figure():
    """Return the main figure, as a link to its file."""
    if not MAIN_FIGURE.is_file():
        return "_`make figures` draws this figure._\n"
    name = MAIN_FIGURE.relative_to(paths.ROOT)
    return f"![Run time of U-Net in each environment, the paper's and ours]({name})\n"


def commands():
    """Return every target of the Makefile and what it says of itself."""
    targets = _TARGET.findall((paths.ROOT / "Makefile").read_text())
    return _table(["Command", "What it does"], [[f"`make {name}`", does] for name, does in targets])


def notebooks():
    """Return the notebooks and their titles, as links."""
    found = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]-*.ipynb"))
    return "".join(
        f"- [{path.stem[:2]}]({path.relative_to(paths.ROOT)}) {_title(path)}\n" for path in found
    )


def _title(notebook):
    """Return the first heading of a notebook."""
    for cell in json.loads(notebook.read_text())["cells"]:
        heading = re.search(r"^# (.+)$", "".join(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown" and heading:
            return heading[1]
    raise ValueError(f"{notebook.name} has no title; begin it with a cell `# ...`")


def tree():
    """Return the map of the tree: every module, and the first line of its docstring."""
    entries = [*_TOP.items(), *_modules(paths.PACKAGE, "  ")]
    width = max(len(name) for name, _ in entries) + 2
    return "```text\n" + "".join(f"{n:{width}}{t}".rstrip() + "\n" for n, t in entries) + "```\n"


def _modules(folder, indent):
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            yield f"{indent}{path.name}/", _summary(path / "__init__.py")
            yield from _modules(path, indent + "  ")
        elif path == paths.KERNELS:
            yield f"{indent}{path.name}/", "CUDA C++, device code only; one idea a file:"
            yield from ((f"{indent}  {p.name}", _idea(p)) for p in sorted(path.glob("*.cu")))
        elif path.suffix == ".py" and not path.name.startswith("__"):
            yield f"{indent}{path.name}", _summary(path)


def _summary(module):
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return docstring.partition("\n")[0]


def _idea(kernel):
    """Return the first line of a kernel's header, below its licence."""
    return kernel.read_text().splitlines()[1].removeprefix("//").strip()


_ALL = figure, claims, beyond, together, commands, notebooks, tree
BLOCKS = {each.__name__: each for each in _ALL}


def rewrite(text):
    """Return `text` with everything between markers made again.

    Raises
    ------
    ValueError
        Where a marker has no partner, or names nothing that can be made.
    """
    for _, name, _, _ in _BLOCK.findall(text):
        if name not in BLOCKS:
            raise ValueError(f"README.md: nothing makes {name!r}; there are {', '.join(BLOCKS)}")
    left = _MARKER.findall(_BLOCK.sub("", text))
    if left:
        raise ValueError(f"README.md: {left[0]} has no partner")
    return _BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]]() + block[4], text)
