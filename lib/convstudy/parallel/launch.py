# SPDX-License-Identifier: MIT
"""Several ranks of one program: how they are started, told apart, and ended together.

``mpiexec -n 4 python -m convstudy train`` starts four. What a rank is told by its launcher is read
from the environment, without importing anything: all else works where MPI is not installed.
"""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from pathlib import Path

# What launchers call the number of ranks: MPICH and its kin, Open MPI, Slurm's srun.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# What an answer begins with: libraries may write to the same place.
_ANSWER = "answer: "
_LAST_WORDS_S = 10


def started_ranks():
    """Return how many ranks the launcher says it has started; 1 without a launcher."""
    said = [os.environ.get(name, "") for name in _SIZES]
    # Whatever else stands there, no launcher has written.
    return max([1, *(int(text) for text in said if text.isdecimal())])


def communicator():
    """Return what this process talks to the other ranks by: `Alone`, where it is the only one.

    Raises
    ------
    ImportError
        If there are several ranks, and no MPI.
    RuntimeError
        If the launcher is of another MPI than mpi4py: each rank then believes to be alone.
    """
    from convstudy.parallel.communicator import Alone

    started = started_ranks()
    if started == 1:
        return Alone()
    try:
        from convstudy.parallel.mpi import Mpi

        ranks = Mpi()
    except ImportError as error:
        raise ImportError(
            f"{started} ranks were started, and cannot talk to each other: {error}; install MPI "
            "by `make setup`"
        ) from error
    if ranks.size != started:
        raise RuntimeError(
            f"the launcher has started {started} ranks and MPI knows of {ranks.size}: they are "
            f"not of one MPI; start them by {mpiexec() or 'the mpiexec that mpi4py goes with'}"
        )
    return ranks


def run(work):
    """Return ``work(communicator)``, done by every rank; end all of them where one fails.

    Parameters
    ----------
    work : callable
        A `RanksError` of it is the same on all ranks, and rank 0 alone raises it. Any other
        error of one rank of several ends them all, with that rank's reason on standard error.
    """
    from convstudy.parallel.communicator import RanksError

    ranks = communicator()
    if ranks.size == 1:
        return work(ranks)
    try:
        return work(ranks)
    except RanksError as error:
        if ranks.rank == 0:
            raise
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        ranks.abort("stopped")
    except BaseException as error:
        traceback.print_exc()
        ranks.abort(str(error) or type(error).__name__)


def mpiexec():
    """Return the path of the launcher that belongs to this Python, or None."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.is_file() else shutil.which("mpiexec")


def run_ranks(count, *arguments, timeout_s=600, environment=None):
    """Run ``python <arguments>`` on `count` ranks of this machine, and return what came of it.

    Parameters
    ----------
    count : int
    *arguments : str
        Such as ``"-m", "convstudy", "train"``.
    timeout_s : float
        After so long all are ended.
    environment : dict of str to str, optional
        Variables beside this process's own.

    Returns
    -------
    subprocess.CompletedProcess
        With what all ranks wrote, as text.

    Raises
    ------
    RuntimeError
        If there is no launcher.
    subprocess.TimeoutExpired
        If it took too long.
    """
    command = _command(count, arguments)
    # No input: a launcher in the background that would read from a terminal is stopped.
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, **pipes, env=_own() | (environment or {})) as started:
        try:
            said = started.communicate(timeout=timeout_s)
        except BaseException:
            # The launcher ends its ranks when it is asked to end, and not when it is killed.
            started.terminate()
            raise
    return subprocess.CompletedProcess(command, started.returncode, *said)


def _command(count, arguments):
    launcher = mpiexec()
    if launcher is None:
        raise RuntimeError("ranks need mpiexec, which is not here: make setup")
    return [launcher, "-n", str(count), sys.executable, *arguments]


def _own():
    """Return this process's environment without what makes it a rank, and its children."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "MPI_", "OMPI_"))}


def answer(text):
    """Say one line to whoever started this rank as a `Conversation`."""
    print(f"{_ANSWER}{text}", flush=True)


class Conversation:
    """Ranks of this machine that are asked one thing after another, and live as long as it does.

    Rank 0 reads what it is asked from its input, a line each, and gives each an `answer`.

    Parameters
    ----------
    count : int
        One alone is started without a launcher.
    *arguments : str
        As of `run_ranks`.

    Raises
    ------
    RuntimeError
        If there are to be several, and there is no launcher.
    """

    def __init__(self, count, *arguments):
        command = [sys.executable, *arguments] if count == 1 else _command(count, arguments)
        self._count, self._text = count, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it is read when they have ended
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, **pipes, env=_own(), bufsize=0)
        self.end = weakref.finalize(self, _end, self._process, self._errors)

    def ask(self, text, timeout_s):
        """Return the answer to one line.

        Raises
        ------
        RuntimeError
            Where the ranks have ended, and the message is their reason; or after so many seconds.
        """
        try:
            self._process.stdin.write(f"{text}\n".encode())
        except BrokenPipeError:
            raise RuntimeError(self._reason()) from None
        until = time.monotonic() + timeout_s
        while (line := self._line(until)) is not None:
            if line.startswith(_ANSWER):
                return line.removeprefix(_ANSWER)
        self._process.terminate()
        who = "1 rank has" if self._count == 1 else f"{self._count} ranks have"
        raise RuntimeError(f"{who} not answered for {timeout_s:g} s")

    def _line(self, until):
        """Return the next line that rank 0 writes, or None where it comes too late."""
        output = self._process.stdout
        while b"\n" not in self._text:
            left = until - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                return None
            more = output.read(2**16)
            if not more:
                raise RuntimeError(self._reason())
            self._text += more
        line, self._text = self._text.split(b"\n", 1)
        return line.decode()

    def _reason(self):
        """Return what the ranks said last, those that said why they end before others."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("convstudy: ")]
        return (said or lines or ["ranks ended without a word"])[-1]


def _end(process, errors):
    """Let ranks end that are asked nothing more."""
    process.stdin.close()
    try:
        process.wait(_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    process.stdout.close()
    errors.close()
