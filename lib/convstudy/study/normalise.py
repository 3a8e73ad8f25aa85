# SPDX-License-Identifier: MIT
"""One form for committed notebooks: executed, and the same text on every machine."""

import ast
import hashlib
import json
import re

MOST_CODE_CELLS = 14
MOST_LINES_OF_A_FUNCTION = 10

_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_ABSOLUTE = re.compile(r"""(?<![\w.:/-])(/(?:home|root|Users|usr|opt|tmp|var|mnt|work|data)/\S+)""")


def normalise(text):
    """Return a notebook's JSON `text` without what differs from run to run.

    Run times, papermill's notes, the state of widgets and the version of Python go; the ids of
    cells stay, and a cell without one gets one made from its place and source.
    """
    notebook = json.loads(text)
    notebook["metadata"] = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    seen = set()
    for place, cell in enumerate(notebook["cells"]):
        if cell.get("id") in seen or not cell.get("id"):
            key = f"{place} {''.join(cell['source'])}"
            cell["id"] = hashlib.sha256(key.encode()).hexdigest()[:8]
        seen.add(cell["id"])
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["outputs"] = _joined(cell["outputs"])
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _joined(outputs):
    """Join neighbouring pieces of one stream: how it was cut depends on timing."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                text = "".join(last["text"]) + text
                joined.pop()
            output = output | {"text": text.splitlines(keepends=True)}
        joined.append(output)
    return joined


def problems(text):
    """Return what keeps a notebook's JSON `text` from being committed, one sentence each."""
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = []
    if normalise(text) != text:
        found.append("it is not in normal form; run `make notebooks`")
    if not any("parameters" in cell["metadata"].get("tags", ()) for cell in code):
        found.append("no cell is tagged `parameters`")
    if any("injected-parameters" in cell["metadata"].get("tags", ()) for cell in code):
        found.append("it holds parameters that papermill put in; commit it with its defaults")
    if len(code) > MOST_CODE_CELLS:
        found.append(
            f"{len(code)} code cells, at most {MOST_CODE_CELLS}: move logic to the library"
        )
    # Strict nbval passes a cell that was never executed, so this is the test that sees it.
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not executed once each, in order; run `make notebooks`")
    for number, cell in enumerate(code, start=1):
        found += [f"code cell {number}: {each}" for each in _of_cell(cell)]
    return found


def _of_cell(cell):
    try:
        tree = ast.parse("".join(cell["source"]))
    except SyntaxError as error:
        yield f"it is not plain Python: {error}"
        return
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            lines = function.end_lineno - function.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION:
                yield f"{function.name}() has {lines} lines; move it to the library"
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            yield f"it ended in {output['ename']}"
        if output.get("name") == "stderr":
            yield "it wrote to stderr"
        for path in _ABSOLUTE.findall(_text(output)):
            yield f"its output names a path of one machine: {path}"


def _text(output):
    """Return all text of an output: a stream's, a traceback's, or of every text/... form."""
    pieces = [output.get("text", ""), output.get("traceback", "")]
    pieces += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(piece) for piece in pieces)
