"""A SLURM of one machine on loopback, with accounting: for tests, as root.

    with running(folder) as environment: ...

writes the configuration into the folder, starts munged, mariadbd, slurmdbd, slurmctld
and slurmd with two CPUs, and stops them. The environment lets SLURM's commands, such as
`sbatch`, find them. By hand: `python -m tests.slurm.cluster FOLDER` until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "srun", "sacct")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

SLURM = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobRequeue=1
ReturnToService=2
SlurmdTimeout=60
KillWait=15
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

ACCOUNTING = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""

GRANT = (
    "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm'; "
    "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';"
)


def missing() -> str | None:
    """Returns why SLURM cannot run here, or None."""
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]:
        return f"SLURM is not installed: no {', '.join(lacking)}"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


class Cluster:
    """The running daemons."""

    def __init__(self, folder: Path) -> None:
        """Args: an empty folder for configuration, state and logs."""
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str | Path) -> None:
        """Starts a daemon in the foreground, its output in a file."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [str(x) for x in (name, *arguments)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Stops a daemon with SIGTERM, after 20 seconds with SIGKILL."""
        process = self._daemons.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def stop_all(self) -> None:
        """Ends all jobs, then the daemons, the last started first."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.run("scancel", "--user=root")
            self.until(lambda: not self.run("squeue", "-h").strip(), "jobs end", 30)
        for name in reversed(list(self._daemons)):
            self.stop(name)

    def run(self, *command: str) -> str:
        """Runs one of SLURM's commands and returns its output."""
        return subprocess.run(
            command,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def until(self, condition: Callable[[], object], what: str, seconds: int) -> None:
        """Waits until a condition holds and its commands work."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                if condition():
                    return
            ended = [name for name, p in self._daemons.items() if p.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
                tails = [f"== {p.name}\n{p.read_text()[-2000:]}" for p in sorted(logs)]
                why = f"{ended} ended" if ended else f"{seconds} s passed"
                raise RuntimeError("\n".join([f"waiting until {what}: {why}", *tails]))
            time.sleep(0.2)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Runs the daemons while the block runs."""
    names = ("controller", "node", "accounting", "database")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    host = socket.gethostname().partition(".")[0]
    for name, text in (("slurm.conf", SLURM), ("slurmdbd.conf", ACCOUNTING)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text.format(folder=folder, host=host, **ports))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(64))
    cluster = Cluster(folder)
    munge, data, database = (
        folder / "munge.socket",
        folder / "data",
        folder / "db.socket",
    )
    try:
        cluster.start(
            "munged",
            *("--foreground", "--force", "--key-file", key, "--socket", munge),
            *("--pid-file", folder / "munged.pid", "--seed-file", folder / "seed"),
            *("--log-file", folder / "munged.log"),
        )
        cluster.run(
            *("mariadb-install-db", "--no-defaults", f"--datadir={data}"),
            *("--user=root", "--auth-root-authentication-method=normal"),
        )
        cluster.start(
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
            *(f"--socket={database}", f"--port={ports['database']}"),
            *("--bind-address=127.0.0.1", "--innodb-lock-wait-timeout=900"),
            f"--pid-file={folder}/mariadbd.pid",
        )
        client = ("mariadb", "--no-defaults", f"--socket={database}", "-u", "root")
        cluster.until(lambda: cluster.run(*client, "-e", "SELECT 1"), "a database", 60)
        cluster.run(*client, "-e", GRANT)
        cluster.until(munge.exists, "munge listens", 30)
        cluster.start("slurmdbd", "-D")
        cluster.until(lambda: _listens(ports["accounting"]), "accounting listens", 60)
        with contextlib.suppress(subprocess.SubprocessError):  # it may be there already
            cluster.run("sacctmgr", "-i", "add", "cluster", "test")
        cluster.start("slurmctld", "-D", "-c")
        cluster.start("slurmd", "-D")
        cluster.until(lambda: "idle" in cluster.run("sinfo", "-h"), "an idle node", 60)
        yield cluster
    finally:
        cluster.stop_all()


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 5):
        return True


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    with running(Path(sys.argv[1]).absolute()) as made:
        print(f"export SLURM_CONF={made.environment['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
