# SPDX-License-Identifier: MIT
"""The command line: ``python -m convstudy``, which the Makefile's targets call."""

import argparse
import contextlib
import io
import os
import sys

# Nothing else is imported up here: `doctor` has to speak where an import fails.


def main(argv=None):
    """Run one command and return its exit status: 0, 1 where it failed, 2 where it was misused."""
    from convstudy.parallel import launch

    if sys.stderr is None:
        # It was closed before Python began; progress bars would fail on it, and the work with them.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, it stays open
    is_alone = launch.started_ranks() == 1
    arguments = _parser().parse_args(argv) if is_alone else None
    try:
        if is_alone:
            return arguments.run(arguments) or 0
        return launch.run(lambda ranks: _on_ranks(ranks, argv)) or 0
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if arguments and arguments.traceback:
            raise
        print(f"convstudy: {str(error) or type(error).__name__}", file=sys.stderr)
        return getattr(error, "exit_status", 2)
    except KeyboardInterrupt:
        print("convstudy: stopped", file=sys.stderr)
        return 130


def _on_ranks(ranks, argv):
    """Run a command on this rank; what is wrong with it on any rank, all are told."""

    def parse():
        # Help that was asked for, rank 0 alone gives.
        output = sys.stdout if ranks.rank == 0 else io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                arguments = _parser().parse_args(argv)
        except SystemExit as error:
            if not error.code:
                return None
            raise ValueError("its command line is wrong, as it says itself") from error
        if arguments.run is not _train:
            raise ValueError("of all commands, only train runs on several ranks")
        return arguments

    arguments = ranks.together(parse)
    return _train(arguments, ranks) if arguments else 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="convstudy",
        description="A study of tiled and data-parallel GPU convolutions for U-Net.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where in the library an error arose"
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name, run, does):
        added = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        added.set_defaults(run=run)
        return added

    figures = command("figures", _figures, "measure what is missing here, and draw every figure")
    _select(figures)
    figures.add_argument("--machine", default="", help="whose records, as slugs between commas")
    figures.add_argument(
        "--records-only", action="store_true", help="draw from what is recorded, measure nothing"
    )
    figures.add_argument("given", nargs="*", metavar="name=value", help="a notebook's parameter")

    measure = command("measure", _measure, "measure this machine, and keep a record of it")
    measure.add_argument(
        "words", nargs="*", metavar="suite | name=value", help="suites (default: all); options"
    )
    measure.add_argument("--machine", default="local", help="folder of data/measurements/")
    measure.add_argument(
        "--missing", action="store_true", help="only what has no fresh record in that folder"
    )
    measure.add_argument("--quick", action="store_true", help="fewer repetitions")
    measure.add_argument(
        "--stop-after",
        type=_seconds,
        metavar="SECONDS",
        help="begin no case of a suite after so long",
    )
    measure.add_argument("--list", action="store_true", help="list the suites and their options")

    sanitize = command("sanitize", _sanitize, "run every kernel under compute-sanitizer")
    sanitize.add_argument(
        "tools", nargs="?", default="", help="memcheck, racecheck, initcheck, synccheck (all)"
    )
    sanitize.add_argument(
        "--bare", action="store_true", help="without any tool: what the tools are given to run"
    )
    command("doctor", _doctor, "say what this machine has, and how to get the rest")
    command("data-check", _data_check, "check the image sets, and say what is missing")
    notebooks = command("notebooks", _notebooks, "execute the committed notebooks, in place")
    _select(notebooks)
    command("readme", _readme, "write the generated parts of README.md")

    train = command("train", _train, "train a U-Net, or go on where that was stopped")
    train.add_argument(
        "given",
        nargs="*",
        metavar="name=value",
        help="an option; folder=, of checkpoints and weights; anew=yes, whatever is in there",
    )
    train.add_argument("--list", action="store_true", help="list the options and their defaults")
    predict = command("predict", _predict, "find the objects of a picture, and draw them over it")
    predict.add_argument("weights", help="a .safetensors, .npz or .pth file")
    predict.add_argument("picture", help="of any size and format")
    predict.add_argument("-o", "--output", required=True, help="the picture with the mask over it")
    predict.add_argument("--mask", default="", help="where to write the bare mask, too")
    predict.add_argument("--scale", type=float, help="of the picture for the network")
    convert = command("convert", _convert, "write weights in another format")
    convert.add_argument("weights", help="a .safetensors, .npz or .pth file")
    convert.add_argument("output", help="another, named by its ending")
    return parser


def _seconds(text):
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, 0 or more")
    return seconds


def _select(command):
    command.add_argument("--notebook", default="", help="numbers or names, between commas")


def _pairs(words):
    """Return ``{name: value}`` of words such as ``name=value``."""
    found = {}
    for word in words:
        if "=" not in word or word.startswith("="):
            raise ValueError(f"{word!r} is not of the form name=value")
        name, value = word.split("=", 1)
        if name in found:
            raise ValueError(f"{name}= is given twice, as {found[name]} and {value}; leave one out")
        found[name] = value
    return found


def _figures(arguments):
    from convstudy import paths, records
    from convstudy.study import execute

    given = _pairs(arguments.given)
    if arguments.machine:
        given[execute.MACHINES] = arguments.machine
    chosen = execute.choose(arguments.notebook, given)
    if not chosen:
        raise ValueError(f"there are no notebooks in {paths.NOTEBOOKS}")
    beside = execute.with_local(chosen)
    draws_local = any(execute.LOCAL in v[execute.MACHINES].split(",") for v in beside.values())
    if draws_local and not arguments.records_only:
        _measure_missing()
    if execute.LOCAL in records.named(given.get(execute.MACHINES, "")):
        records.check_machines([execute.LOCAL])
    # The committed figures are drawn with the committed parameters only.
    if not given:
        execute.run(chosen, paths.BUILD / "notebooks", paths.FIGURES)
        print(f"{paths.FIGURES.relative_to(paths.ROOT)}/ is drawn from the committed records")
    recorded = any(paths.LOCAL_MEASUREMENTS.glob("*.json"))
    if given or recorded:
        outputs = paths.BUILD / "notebooks" / "local"
        execute.run(beside if recorded else chosen, outputs, paths.LOCAL_FIGURES)
        print(f"{paths.LOCAL_FIGURES.relative_to(paths.ROOT)}/ is drawn from those asked for")


def _measure_missing():
    """Measure, quickly, what this machine has no fresh record of; go on where that fails."""
    from convstudy.measure import runner
    from convstudy.measure.suites import get_suites

    _run(runner.missing(get_suites()), runner.LOCAL, {}, quick=True)


def _measure(arguments):
    from convstudy.measure import runner
    from convstudy.measure.suites import get_suites

    named = ",".join(word for word in arguments.words if "=" not in word)
    suites = get_suites(named)
    if arguments.list:
        for suite in suites:
            print(_described(suite))
        return 0
    given = _pairs(word for word in arguments.words if "=" in word)
    for name in given:
        if not any(name in suite.options for suite in suites):
            known = sorted({option for suite in suites for option in suite.options})
            raise ValueError(
                f"no selected suite has an option {name!r}; there are {', '.join(known) or 'none'}"
            )
    if arguments.missing:
        suites = runner.missing(suites, arguments.machine)
    elif not named:
        for suite in suites:
            if suite.why_not():
                print(f"{suite.name}: left out: {suite.why_not()}")
        suites = [suite for suite in suites if not suite.why_not()]
    return _run(suites, arguments.machine, given, arguments.quick, arguments.stop_after)


def _described(suite):
    options = ", ".join(f"{name}={value}" for name, value in suite.options.items())
    return f"{suite.name:23}{suite.title}" + (f" ({options})" if options else "")


def _run(suites, machine, given, quick, stop_after_s=None):
    """Run each suite with those of the given options that it has; return 1 where one failed."""
    from convstudy.measure import runner

    status, jobs = 0, []
    for suite in suites:
        own = {name: value for name, value in given.items() if name in suite.options}
        options = (suite.quick if quick else {}) | own
        # What the last suite refuses is to be known before the first one runs.
        runner.asked_for(suite, options)
        jobs.append((suite, options))
    for suite, options in jobs:
        try:
            runner.run(suite, machine, options, stop_after_s=stop_after_s)
        except RuntimeError as error:
            print(f"convstudy: {error}", file=sys.stderr)
            status = 1
    return status


def _sanitize(arguments):
    from convstudy.sanitize import tools

    if arguments.bare:
        return tools.run_bare()
    named = [tool.strip() for tool in arguments.tools.split(",")] if arguments.tools else ()
    return tools.check(named or tools.TOOLS)


def _doctor(_):
    from convstudy import doctor

    print(doctor.report())


def _data_check(_):
    from convstudy.images import check

    whole, text = check.report()
    print(text)
    return 0 if whole else 1


def _notebooks(arguments):
    from convstudy import paths
    from convstudy.study import execute
    from convstudy.study.normalise import normalise

    chosen = execute.choose(arguments.notebook)
    outputs = paths.BUILD / "notebooks"
    execute.run(chosen, outputs)
    for notebook in chosen:
        notebook.write_text(normalise((outputs / notebook.name).read_text()))
        print(f"{notebook.relative_to(paths.ROOT)} is executed and in normal form")


def _readme(_):
    from convstudy.study import readme

    readme.README.write_text(readme.rewrite(readme.README.read_text()))


def _train(arguments, ranks=None):
    from convstudy import recipe
    from convstudy.parallel import training
    from convstudy.parallel.communicator import Alone

    ranks = ranks or Alone()
    is_first = ranks.rank == 0
    chosen, sharing, folder, anew = ranks.together(lambda: _training(arguments, ranks.size))
    if arguments.list:
        if is_first:
            print(f"{recipe.described(chosen)}\n{sharing}")
        return
    if ranks.size == 1:
        network, history = recipe.train(chosen, folder, anew=anew)
    else:
        network, history = training.train(chosen, sharing, ranks, folder, anew=anew)
    if is_first:
        print(
            f"{network} after {len(history.loss)} steps in {history.seconds:.0f} s: "
            f"held-out Dice {history.scores[-1][1]:.3f}\n"
            f"{folder / recipe.WEIGHTS} and {folder / recipe.HISTORY} are written"
        )


def _training(arguments, ranks):
    """Return (recipe, sharing, folder, whether to begin anew) as given on the command line."""
    from pathlib import Path

    from convstudy import recipe
    from convstudy.parallel.grid import check_grid
    from convstudy.parallel.training import Sharing

    given = _pairs(arguments.given)
    folder = given.pop("folder", recipe.FOLDER)
    if not folder:
        raise ValueError(f"folder= names no folder; leave it out for {recipe.FOLDER}")
    anew = recipe.value("anew", given.pop("anew", "no"), bool)
    sharing = Sharing.taken(given)
    check_grid(ranks, sharing.model, sharing.cut_from)
    return recipe.Recipe.of(given), sharing, Path(folder), anew


def _predict(arguments):
    from convstudy.train import predict

    found = predict.draw(
        arguments.weights, arguments.picture, arguments.output, arguments.mask, arguments.scale
    )
    print(f"{arguments.output} is drawn: {found}")


def _convert(arguments):
    from convstudy.train import weights

    network, metadata = weights.load_weights(arguments.weights)
    weights.save_weights(arguments.output, network, metadata)
    print(f"{arguments.output} holds {network}")
