# SPDX-License-Identifier: MIT
"""``mpiexec -n 2 python -m convstudy train``: what comes of it, and how it ends."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from convstudy import paths
from convstudy.parallel import launch
from convstudy.parallel.communicator import Alone, RanksError, described
from convstudy.parallel.mpi import PATIENCE_VARIABLE
from convstudy.train import tensors

TINY = ("size=16x24", "width=2", "composites=8", "held_out=4", "batch=4", "execution=cpu")
PATIENCE = {PATIENCE_VARIABLE: "60"}


def words_of(folder, *given):
    """Return the words that train a tiny network in a folder; what is given counts."""
    words = {word.partition("=")[0]: word for word in (*TINY, *given)}
    return ("-m", "convstudy", "train", f"folder={folder}", *words.values())


def train(folder, *given, ranks=2, environment=PATIENCE):
    words = words_of(folder, *given)
    return launch.run_ranks(ranks, *words, timeout_s=100, environment=environment)


def losses(folder):
    with (folder / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(folder):
    return tensors.read(folder / "weights.safetensors")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of 6 steps on two ranks, with checkpoints after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(folder, "steps=6", "save_every=2")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_rank_0_alone_speaks(trained):
    folder, done = trained
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    assert lines[0].startswith("UNet(3, 2, bilinear=False, width=2) after 6 steps in ")
    assert str(folder / "weights.safetensors") in lines[1]
    assert done.stderr == ""


def test_two_ranks_train_as_one_does(trained, tmp_path):
    folder, _ = trained
    words = words_of(tmp_path, "steps=6")
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    # The first loss is before anything was added up over ranks; AdamW makes much of little.
    one, two = losses(tmp_path), losses(folder)
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-3)


def test_the_same_ranks_do_the_same_to_the_bit_even_if_stopped(trained, tmp_path):
    """Taken up again after 4 steps, with what a killed job leaves."""
    folder, _ = trained
    for name in ("step-00000004.safetensors",):
        shutil.copy(folder / name, tmp_path / name)
    done = train(tmp_path, "steps=6", "save_every=2")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == losses(folder)
    for name, array in weights(folder).items():
        np.testing.assert_array_equal(weights(tmp_path)[name], array, err_msg=name)


def test_one_rank_goes_on_where_two_stopped(trained, tmp_path):
    folder, _ = trained
    shutil.copy(folder / "step-00000004.safetensors", tmp_path)
    words = words_of(tmp_path, "steps=6")
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    assert losses(tmp_path)[:4] == losses(folder)[:4]
    assert losses(tmp_path)[4:] == pytest.approx(losses(folder)[4:], rel=1e-3)


def test_four_ranks_share_layers_and_images(trained, tmp_path):
    folder, _ = trained
    done = train(tmp_path, "steps=6", "model=2", "cut_from=2", ranks=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=1e-3)
    assert {n: a.shape for n, a in weights(tmp_path).items()} == {
        n: a.shape for n, a in weights(folder).items()
    }


# ---- what goes wrong


def start(folder, *given, ranks=2, environment=PATIENCE):
    """Start a training, and return it while it runs."""
    words = words_of(folder, *given)
    return subprocess.Popen(
        [launch.mpiexec(), "-n", str(ranks), sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def ranks_of(job):
    """Return the process ids of a job's ranks, in their order."""
    found = {}
    for folder in paths.Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(
                word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if word
            )
            parents = _parents(int(folder.name))
        except (OSError, ValueError):
            continue
        if job.pid in parents and "PMI_RANK" in environment:
            found[int(environment["PMI_RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def _parents(pid):
    parents = []
    while pid > 1:
        status = (paths.Path("/proc") / str(pid) / "stat").read_text()
        pid = int(status.rsplit(")", 1)[1].split()[1])
        parents.append(pid)
    return parents


def await_checkpoint(job, folder, seconds=60):
    until = time.monotonic() + seconds
    while not list(folder.glob("step-*.safetensors")):
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_killed_rank_ends_the_job_and_loses_nothing_past_the_checkpoint(trained, tmp_path):
    with start(tmp_path, "steps=100000", "save_every=2") as job:
        await_checkpoint(job, tmp_path)
        os.kill(ranks_of(job)[1], signal.SIGKILL)
        job.communicate(timeout=30)
    assert job.returncode != 0
    kept = sorted(path.name for path in tmp_path.glob("step-*.safetensors"))
    arrays, _ = tensors.read(tmp_path / kept[-1])
    assert len(arrays["history.loss"]) == int(kept[-1][5:13])
    # steps=100000 warms up for longer, so the losses are not those of `trained`: the first is.
    assert arrays["history.loss"][0] == losses(trained[0])[0]


def test_a_rank_that_stands_still_is_not_waited_for_for_ever(tmp_path):
    with start(
        tmp_path, "steps=100000", "save_every=2", environment={PATIENCE_VARIABLE: "3"}
    ) as job:
        await_checkpoint(job, tmp_path)
        still = ranks_of(job)[1]
        os.kill(still, signal.SIGSTOP)
        try:
            _, said = job.communicate(timeout=30)
        finally:
            if os.path.exists(f"/proc/{still}"):
                os.kill(still, signal.SIGKILL)
    assert job.returncode != 0
    assert "convstudy: rank 0 of 2: rank 0 of 2 has waited 3 s for the others in" in said


def run_with(*programs, environment=None):
    """Run one rank of each list of words, and return what came of it."""
    words = [launch.mpiexec()]
    for program in programs:
        words += [*([":"] if len(words) > 1 else []), "-n", "1", *program]
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | PATIENCE | (environment or {}),
    )


def command(folder, *given):
    return [sys.executable, *words_of(folder, *given)]


def test_ranks_of_other_options_are_told_which(tmp_path):
    done = run_with(command(tmp_path, "steps=6"), command(tmp_path, "steps=7", "width=3"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("convstudy: the 2 ranks are not of one mind: ")
    for part in ("width: rank 0: 2; rank 1: 3", "steps: rank 0: 6; rank 1: 7", "Start the same"):
        assert part in line
    assert "batch" not in line


def test_ranks_of_other_code_are_told(tmp_path):
    shutil.copytree(
        paths.PACKAGE, tmp_path / "lib" / "convstudy", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (tmp_path / "lib" / "convstudy" / "problem.py").open("a") as file:
        file.write("# another\n")
    other = ["env", f"PYTHONPATH={tmp_path / 'lib'}", *command(tmp_path)]
    done = run_with(command(tmp_path), other)
    assert done.returncode == 2
    assert "not of one mind: code: rank 0: '" in done.stderr


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(tmp_path):
    done = run_with(command(tmp_path), ["true"], environment={PATIENCE_VARIABLE: "2"})
    assert done.returncode != 0
    assert "Timeout (0:00:02)!" in done.stderr


def test_a_fault_of_one_rank_at_the_start_is_told_once(tmp_path):
    done = run_with(command(tmp_path, "steps=6"), command(tmp_path, "steps=some"))
    assert done.returncode == 2
    assert done.stderr == "convstudy: rank 1: steps=some: it has to be a whole number\n"


@pytest.mark.parametrize(
    ("given", "ranks", "fault"),
    [
        (("batch=2",), 4, "a batch of 2 images is too small for 4 ranks: each needs an image"),
        (("model=3",), 4, "4 ranks cannot share layers by 3"),
        (("model=4", "cut_from=0"), 4, "output channels, which 4 ranks cannot share evenly"),
        (("data=/typo",), 2, "/typo/images is not there"),
        (("size=8x8",), 2, "an image of 8 x 8 is too small for the network"),
    ],
)
def test_what_ranks_cannot_do_is_said_once(given, ranks, fault, tmp_path):
    kept = tmp_path / "step-00000004.safetensors"
    kept.write_bytes(b"all that was learnt")
    done = train(tmp_path, *given, "steps=2", "anew=yes", ranks=ranks)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("convstudy: ")
    assert fault in line
    assert kept.read_bytes() == b"all that was learnt"


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = train(tmp_path / "file", "data=/not/looked/for")
    assert done.returncode == 2
    assert done.stderr == (
        f"convstudy: rank 0: folder={tmp_path / 'file'} cannot be written: Not a directory; "
        "give another folder=\n"
    )


def test_ranks_begin_anew(tmp_path):
    (tmp_path / "step-00000004.safetensors").write_bytes(b"of another training")
    done = train(tmp_path, "steps=2", "anew=yes")
    assert done.returncode == 0, done.stderr
    assert [each.name for each in tmp_path.glob("step-*")] == ["step-00000002.safetensors"]


def test_a_rank_that_fails_on_the_way_ends_all_with_its_reason():
    program = (
        "from convstudy.parallel import launch\n"
        "def work(ranks):\n"
        "    if ranks.rank == 1: raise OSError('the disk is gone')\n"
        "    ranks.barrier()\n"
        "launch.run(work)"
    )
    done = launch.run_ranks(3, "-c", program, timeout_s=60, environment=PATIENCE)
    assert done.returncode != 0
    assert "convstudy: rank 1 of 3: the disk is gone" in done.stderr


def test_a_command_line_that_is_wrong_on_one_rank_ends_all(tmp_path):
    done = run_with(command(tmp_path), command(tmp_path, "--anew"))
    assert done.returncode == 2
    # Which of the two ranks is heard first, nobody knows.
    assert "convstudy: rank 1: its command line is wrong, as it says itself\n" in done.stderr
    assert "convstudy: error: unrecognized arguments: --anew\n" in done.stderr


def test_help_is_given_once_and_is_no_fault():
    done = launch.run_ranks(2, "-m", "convstudy", "--help", timeout_s=60, environment=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: convstudy") == 1


def test_other_commands_do_not_run_on_ranks():
    done = launch.run_ranks(2, "-m", "convstudy", "readme", timeout_s=60, environment=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == (
        "convstudy: every rank: of all commands, only train runs on several ranks\n"
    )


def test_a_launcher_of_another_mpi_is_noticed(monkeypatch):
    """Or each rank would train by itself, and write over what the others write."""
    program = "from convstudy.parallel import launch; launch.communicator()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OMPI_COMM_WORLD_SIZE": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "has started 3 ranks and MPI knows of 1: they are not of one MPI" in done.stderr


# ---- without a launcher


def test_alone_there_is_nobody_to_talk_to():
    assert isinstance(launch.communicator(), Alone)
    ranks = Alone()
    array = np.arange(3.0)
    assert ranks.all_reduce(array, "mean") is array
    assert ranks.exchange("x") == ["x"]
    assert ranks.tell({"a": 1}) == {"a": 1}
    gathered, own = np.empty((1, 3)), np.empty(3)
    ranks.all_gather(array, gathered)
    ranks.reduce_scatter(gathered, own)
    assert own.tolist() == [0, 1, 2]
    ranks.agree({"a": 1})
    with pytest.raises(OSError, match="its own"):  # not wrapped: nobody else needs to know
        ranks.together(lambda: (_ for _ in ()).throw(OSError("its own")))
    with pytest.raises(ValueError, match="no rank 1"):
        ranks.send(array, 1)
    with pytest.raises(SystemExit, match="enough"):
        ranks.abort("enough")


def test_ranks_that_have_the_same_are_named_together():
    assert described(["a", "a", "b", "a"]) == "ranks 0, 1 and 3: a; rank 2: b"
    assert described(["a", "a"]) == "every rank: a"
    assert described([None, "a"]) == "rank 1: a"


def test_the_error_of_all_ranks_has_an_exit_status():
    assert RanksError("x").exit_status == 2


# ---- a conversation

ECHO = """
import sys
from convstudy.parallel import launch
for line in sys.stdin:
    print("said by a library")
    if line.strip() == "die":
        sys.exit("convstudy: rank 0 of 1: it was asked to")
    launch.answer(line.strip().upper())
"""
SILENT = "import sys, time; sys.stdin.readline(); time.sleep(60)"


@pytest.fixture
def echo():
    conversation = launch.Conversation(1, "-c", ECHO)
    yield conversation
    conversation.end()


def test_each_question_has_its_answer(echo):
    assert [echo.ask(word, 60) for word in ("one", "two")] == ["ONE", "TWO"]


def test_ranks_that_end_say_why_and_answer_no_more(echo):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="rank 0 of 1: it was asked to"):
            echo.ask("die", 60)


def test_an_answer_that_never_comes_is_not_waited_for():
    silent = launch.Conversation(1, "-c", SILENT)
    with pytest.raises(RuntimeError, match="1 rank has not answered for 0.2 s"):
        silent.ask("anything", 0.2)
    silent.end()
