"""A real Slurm on one machine for the tests in this folder: two nodes, accounting, preemption and time limits.

All daemons listen on the loopback interface and write to one folder. They need root and packages of Debian, which are
installed if they are missing.  python tests/cluster/slurm.py  starts a cluster and waits for Ctrl-C.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server-core", "mariadb-client-core")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "slurmdbd", "mariadbd", "mariadb-install-db", "unshare")
NODES = ("n1", "n2")
CPUS, MEMORY_MB = 8, 16000  # of each node, whatever the machine has


class CannotRunError(Exception):
    """Slurm cannot run on this machine; the message states the reason."""


def require() -> None:
    """Install missing packages.  Raises CannotRunError if Slurm cannot run."""
    if os.geteuid() != 0:
        raise CannotRunError("the daemons of Slurm must be started by root")
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if not shutil.which("apt-get"):
        missing = ", ".join(program for program in PROGRAMS if not shutil.which(program))
        raise CannotRunError(f"{missing} are missing and cannot be installed without apt-get")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update"], check=False, **quiet)  # type: ignore[call-overload]
    with _no_services():
        command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not all(shutil.which(program) for program in PROGRAMS):
        raise CannotRunError(f"apt-get install {' '.join(PACKAGES)} failed: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Prevent packages from starting daemons when they are installed."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


class Slurm:
    """The daemons of a cluster, and commands of its user.  folder: of all files of the daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"
        self.daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    @property
    def environment(self) -> dict[str, str]:
        """Environment for commands on this cluster, without variables of a Slurm job that the tests may run in."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
        return {**inherited, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str) -> str:
        """Run a command on the cluster and return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def start(self) -> None:
        """Start all daemons and return when both nodes are idle."""
        self._write_files()
        sockets, log = self.folder / "run", self.folder / "log"
        key, seed = self.folder / "munge" / "munge.key", self.folder / "munge" / "seed"
        self._daemon(
            "munged", "--foreground", f"--key-file={key}", f"--socket={sockets}/munge.socket", f"--seed-file={seed}",
            f"--pid-file={sockets}/munged.pid", f"--log-file={log}/munged.log",
        )  # fmt: skip
        self._wait("munged", (sockets / "munge.socket").is_socket)
        self._start_accounting()
        self._daemon("slurmctld", "-D", "-c", "-f", str(self.conf))
        self._wait("slurmctld", lambda: self._output("scontrol", "ping"))
        for node in NODES:
            # Each node has its own host name and hosts file, since jobs look up the name of their first node.
            script = 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2" -f "$3"'
            arguments = ("sh", "-c", script, "-", str(self.folder / "hosts"), node, str(self.conf))
            self._daemon("unshare", "--mount", "--uts", *arguments, name=node)
        self._wait("the nodes", lambda: self._output("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D") == "2")

    def stop(self) -> None:
        """Cancel all jobs, then stop the daemons in reverse order."""
        with contextlib.suppress(Exception):
            subprocess.run(["scancel", "-u", "root"], env=self.environment, capture_output=True, timeout=20)
            self._wait("the end of all jobs", lambda: self._output("squeue", "-h") == "", seconds=15)
        for _, daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _write_files(self) -> None:
        for name in ("run", "log", "state", "munge", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        names = "".join(f"127.0.0.1 {node}\n" for node in NODES)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text().rstrip("\n") + "\n" + names)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # required but not used
        self.control, self.accounts, self.database, *ports = _free_ports(3 + len(NODES))
        self.conf.write_text(self._conf(ports))
        accounts = self.folder / "slurmdbd.conf"
        accounts.write_text(self._accounts_conf())
        accounts.chmod(0o600)

    def _conf(self, ports: list[int]) -> str:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY_MB}"
            for node, port in zip(NODES, ports, strict=True)
        )
        # cred_expire is the time that a requeued job waits. It must be longer than KillWait: otherwise the node still
        # stops the previous start when the next one begins. The other times are short to keep the tests short.
        return f"""ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
KillWait=3
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
MinJobAge=3600
JobRequeue=1
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.accounts}
AccountingStoragePass={folder}/run/munge.socket
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=spare Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
"""

    def _accounts_conf(self) -> str:
        return f"""AuthType=auth/munge
AuthInfo=socket={self.folder}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.accounts}
SlurmUser=root
LogFile={self.folder}/log/slurmdbd.log
PidFile={self.folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CommunicationParameters=NoInAddrAny
"""

    def _start_accounting(self) -> None:
        data, mysql_socket = self.folder / "mysql", self.folder / "run" / "mysql.socket"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
             "--innodb-log-file-size=8M", "--auth-root-authentication-method=normal"],
            check=True, capture_output=True,
        )  # fmt: skip
        self._daemon(
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", "--bind-address=127.0.0.1",
            f"--port={self.database}", f"--socket={mysql_socket}", f"--pid-file={self.folder}/run/mariadbd.pid",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        client = ("mariadb", "--no-defaults", "-uroot", f"--socket={mysql_socket}", "-e")
        self._wait("the database", lambda: self._output(*client, "select 1") is not None)
        for host in ("127.0.0.1", "localhost"):
            statements = f"create user slurm@'{host}' identified by 'slurm'; grant all on *.* to slurm@'{host}'"
            self.run(*client, f"create database if not exists slurm; {statements}")
        self._daemon("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self._output("sacctmgr", "-n", "list", "cluster") is not None)
        self.run("sacctmgr", "-i", "add", "cluster", "lab")

    def _daemon(self, *command: str, name: str | None = None) -> None:
        with (self.folder / "log" / f"{name or command[0]}.out").open("wb") as output:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.daemons.append((name or command[0], daemon))

    def _output(self, *command: str) -> str | None:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else None

    def _wait(self, what: str, condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            ended = [name for name, daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(f"Slurm: no {what}; {', '.join(ended) or 'no daemon'} ended; see {self.folder}/log.")
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [int(free.getsockname()[1]) for free in sockets]


@contextlib.contextmanager
def running() -> Iterator[Slurm]:
    """Start a cluster and stop it at the end of the context."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        os.chmod(folder, 0o755)  # munge requires a folder that other users can access
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


if __name__ == "__main__":
    require()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running() as cluster:
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
