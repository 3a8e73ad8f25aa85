# SPDX-License-Identifier: MIT
"""Run notebooks through papermill: strictly, two at a time, each figure where it belongs.

papermill only warns of a parameter that a notebook does not have, and takes a value of any type;
here both are errors, found before any work is done.
"""

import ast
import difflib
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import yaml
from tqdm import tqdm

from convstudy import paths, records

# The parameter that every notebook has: whose records it draws, as `records.named` reads it.
MACHINES = "machines"
LOCAL = paths.LOCAL_MEASUREMENTS.name

_TOGETHER = 2
_CELL_TIMEOUT_S = 600
# Jupyter chooses ports first and binds them later, so that another process can come in between.
_NOT_STARTED = "Kernel died before replying to kernel_info"
_ATTEMPTS = 3
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailedError(RuntimeError):
    """A notebook did not run to its end; the message says which, where and why."""

    exit_status = 1


def find(selection="", folder=None):
    """Return the notebooks of `selection`, in reading order; all of them where it is empty.

    Parameters
    ----------
    selection : str
        Numbers (``04``, or ``4``) or file stems, between commas.
    folder : Path, optional
        Other than ``notebooks/``.

    Raises
    ------
    ValueError
        Where there is no such notebook; the message lists those there are.
    """
    known = {
        path.stem: path for path in sorted((folder or paths.NOTEBOOKS).glob("[0-9][0-9]-*.ipynb"))
    }
    if not selection:
        return tuple(known.values())
    wanted = set()
    for name in selection.split(","):
        name = name.strip().removesuffix(".ipynb")
        matching = [s for s in known if name and (name == s or name.zfill(2) == s[:2])]
        if not matching:
            raise ValueError(f"there is no notebook {name!r}; there are {', '.join(known)}")
        wanted.update(matching)
    return tuple(known[stem] for stem in sorted(wanted))


def defaults(notebook):
    """Return the parameters of `notebook` and their defaults: its cell tagged ``parameters``."""
    for cell in json.loads(notebook.read_text())["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            return {
                statement.targets[0].id: ast.literal_eval(statement.value)
                for statement in ast.parse("".join(cell["source"])).body
                if isinstance(statement, ast.Assign)
            }
    return {}


def typed(name, text, default):
    """Return `text` as the type of `default`, read as papermill reads it (as YAML).

    Examples
    --------
    >>> typed("chunks", "8", 2), typed("machines", "08", "h200"), typed("chunks", "[1, 2]", [4])
    (8, '08', [1, 2])
    """
    if isinstance(default, str):
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ValueError(
            f"parameter {name}={text} cannot be read as YAML; its default is {default!r}"
        ) from None
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(
            f"parameter {name}={text} is not of type {type(default).__name__}; "
            f"its default is {default!r}"
        )
    # Every number of the study's notebooks counts or measures something.
    if type(value) in (int, float) and not 0 < value < math.inf:
        raise ValueError(
            f"parameter {name}={text} is no finite number above 0; its default is {default!r}"
        )
    return value


def choose(selection="", given=None, folder=None):
    """Return ``{notebook: {parameter: value}}``, checked; a notebook gets what it knows.

    Parameters
    ----------
    selection : str
        As in `find`.
    given : dict of str to str
        Parameters as typed on a command line.

    Raises
    ------
    ValueError
        Where no selected notebook has such a parameter, its value has the wrong type, or there is
        no record of a machine that it names; this one may still be measured.
    """
    given = given or {}
    known = {notebook: defaults(notebook) for notebook in find(selection, folder)}
    for name in given:
        if not any(name in parameters for parameters in known.values()):
            raise ValueError(_unknown(name, known))
    if MACHINES in given:
        records.check_machines(set(records.named(given[MACHINES])) - {LOCAL})
    return {
        notebook: {
            name: typed(name, text, parameters[name])
            for name, text in given.items()
            if name in parameters
        }
        for notebook, parameters in known.items()
    }


def _unknown(name, known):
    valid = sorted({each for parameters in known.values() for each in parameters})
    close = difflib.get_close_matches(name, valid, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"no selected notebook has a parameter {name!r}{guess}; "
        f"there are {', '.join(valid) or 'none'}"
    )


def with_local(chosen):
    """Return `chosen` with this machine's own records added to those that it draws."""
    return {
        notebook: {MACHINES: ",".join((*records.named(defaults(notebook)[MACHINES]), LOCAL))}
        | values
        for notebook, values in chosen.items()
        if MACHINES in defaults(notebook)
    }


def run(chosen, outputs, figures=None):
    """Execute notebooks, two at a time, and leave the executed ones in `outputs`.

    Parameters
    ----------
    chosen : dict
        As `choose` returns it.
    outputs : Path
        Folder for the executed notebooks; a failed one is kept there too.
    figures : Path, optional
        Folder that the notebooks' figures and tables go to; without it they write none.

    Raises
    ------
    NotebookFailedError
        Where any did not run to its end, after all have been tried.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    jobs = [
        (notebook, values, outputs / notebook.name, figures) for notebook, values in chosen.items()
    ]
    failures = []
    with (
        ThreadPoolExecutor(_TOGETHER) as pool,
        tqdm(total=len(jobs), desc="notebooks", unit="", disable=None, leave=False) as bar,
    ):
        # The last ones take the longest: begun first, none of them is left alone at the end.
        for failure in pool.map(lambda job: _execute(*job), reversed(jobs)):
            bar.update()
            failures += [failure] if failure else []
    if failures:
        raise NotebookFailedError("\n".join(reversed(failures)))


def _execute(notebook, values, output, figures):
    """Run one notebook; return None, or what went wrong."""
    environment = {k: v for k, v in os.environ.items() if k != paths.FIGURES_VARIABLE}
    if figures:
        environment[paths.FIGURES_VARIABLE] = str(figures)
    options = [
        "--kernel",
        "python3",
        "--language",
        "python",
        "--cwd",
        str(notebook.parent),
        "--no-progress-bar",
    ]
    options += ["--execution-timeout", str(_CELL_TIMEOUT_S), "--log-level", "ERROR"]
    output.unlink(missing_ok=True)
    # JSON is YAML.
    options += ["--parameters_yaml", json.dumps(values)] if values else []
    for _ in range(_ATTEMPTS):
        # A process each, since papermill changes the folder of the whole process.
        finished = subprocess.run(
            [sys.executable, "-m", "papermill", notebook, output, *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode == 0:
            return None
        if _NOT_STARTED not in finished.stderr:
            break
    return f"{notebook.name} failed{_where(output, finished.stderr)}"


def _where(output, stderr):
    cells = json.loads(output.read_text())["cells"] if output.is_file() else []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        for each in cell["outputs"]:
            if each["output_type"] == "error":
                text = f"{each['ename']}: {each['evalue']}"
                line = _failing_line(each["traceback"])
                return f" in code cell {number} of {len(code)}:\n  {line}\n  {text}\n  see {output}"
    tail = _ANSI.sub("", stderr).strip().splitlines()[-4:]
    return ":\n  " + "\n  ".join(tail)


def _failing_line(traceback):
    """Return the innermost line that IPython points to."""
    lines = _ANSI.sub("", "\n".join(traceback)).splitlines()
    arrows = [line.strip() for line in lines if re.match(r"\s*-+> ", line)]
    return arrows[-1] if arrows else lines[-1]
