# SPDX-License-Identifier: MIT
"""Several ranks of one program: how they are started, told apart, and ended together.

``mpiexec -n 4 python -m convstudy train`` starts four. What a rank is told by its launcher is read
from the environment, without importing anything: all else works where MPI is not installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What launchers call the number of ranks: MPICH and its kin, Open MPI, Slurm's srun.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def started_ranks():
    """Return how many ranks the launcher says it has started; 1 without a launcher."""
    return max(int(os.environ.get(name, 1)) for name in _SIZES)


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
    launcher = mpiexec()
    if launcher is None:
        raise RuntimeError("ranks need mpiexec, which is not here: make setup")
    # A rank's own environment would make its children ranks, too.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "MPI_", "OMPI_"))}
    command = [launcher, "-n", str(count), sys.executable, *arguments]
    # No input: a launcher in the background that would read from a terminal is stopped.
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, **pipes, env=own | (environment or {})) as started:
        try:
            said = started.communicate(timeout=timeout_s)
        except BaseException:
            # The launcher ends its ranks when it is asked to end, and not when it is killed.
            started.terminate()
            raise
    return subprocess.CompletedProcess(command, started.returncode, *said)
