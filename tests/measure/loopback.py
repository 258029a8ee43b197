"""An ssh server on loopback, with keys of its own, and ways in which it fails."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

WHY_NOT = "needs the programs ssh, ssh-keygen and sshd (openssh-client and openssh-server)"

FAULTS = {
    # the script is changed after it has been copied
    "tampers": """
        sh -c "$SSH_ORIGINAL_COMMAND"; code=$?
        case "$SSH_ORIGINAL_COMMAND" in
            *"tar -xf"*) for f in "$TMPDIR"/*/remote_script.py; do echo "#" >> "$f"; done;;
        esac
        exit $code""",
    # the connection breaks while the script runs
    "breaks": """
        case "$SSH_ORIGINAL_COMMAND" in *remote_script.py*) kill -9 $PPID; exit 1;; esac
        exec sh -c "$SSH_ORIGINAL_COMMAND" """,
    # it is written down when the script starts
    "notes": """
        case "$SSH_ORIGINAL_COMMAND" in *remote_script.py*) echo yes > "$FAKES/started";; esac
        exec sh -c "$SSH_ORIGINAL_COMMAND" """,
    # no file may become larger than a few kilobytes
    "full": 'ulimit -f 8; exec sh -c "$SSH_ORIGINAL_COMMAND" ',
    # the system says that nothing is free
    "crowded": 'PATH="$FAKES:$PATH"; exec sh -c "$SSH_ORIGINAL_COMMAND" ',
    "forgetful": """
        case "$SSH_ORIGINAL_COMMAND" in *MemAvailable*) echo "MemAvailable: 1 kB";; esac
        exec sh -c "$SSH_ORIGINAL_COMMAND" """,
    # a login that talks
    "talks": 'echo "Welcome! {\\"samples\\": []}"; exec sh -c "$SSH_ORIGINAL_COMMAND" ',
    # what answers is something else
    "lies": """
        case "$SSH_ORIGINAL_COMMAND" in *remote_script.py*) echo hi; exit 0;; esac
        exec sh -c "$SSH_ORIGINAL_COMMAND" """,
}


@dataclass(frozen=True)
class Server:
    """A running server.

    Hosts of its ``config``: ``good``; ``stranger``, whose key is not known; ``changed``, whose key
    was another one; ``closed``, where nobody listens; ``denied``, which takes no key of
    ours; and one for each of `FAULTS`.
    """

    config: Path
    temporary: Path
    fakes: Path

    def left(self) -> list[str]:
        """Folders that are still there."""
        return sorted(path.name for path in self.temporary.iterdir())


@contextmanager
def server(folder: Path):
    """A server on a port of its own; skips the test where it can't be had."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if not (sshd and shutil.which("ssh") and shutil.which("ssh-keygen")):
        pytest.skip(WHY_NOT)
    for name in ("host", "other", "none", "user", *FAULTS):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name]
        subprocess.run(make, check=True)
    temporary, fakes = folder / "tmp", folder / "fakes"
    temporary.mkdir()
    fakes.mkdir()
    port, closed = _ports(2)
    _configure_server(folder, port, temporary, fakes)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it wants that when it is started by root
    process = subprocess.Popen(
        [sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.PIPE, text=True
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "Server listening" in line:
                break
        else:
            pytest.skip(f"sshd does not start here: {''.join(said)[-300:]}")
        config = _configure_client(folder, port, closed)
        yield Server(config, temporary, fakes)
        subprocess.run(
            ["ssh", "-F", config, "-O", "exit", "good"], capture_output=True, check=False
        )
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _configure_server(folder: Path, port: int, temporary: Path, fakes: Path) -> None:
    keys = [(folder / "user.pub").read_text()]
    for name, commands in FAULTS.items():
        script = folder / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n{commands}\n")
        script.chmod(0o755)
        keys.append(f'command="{script}" {(folder / f"{name}.pub").read_text()}')
    (folder / "authorized_keys").write_text("".join(keys))
    (folder / "sshd_config").write_text(
        f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host
        PidFile none
        AuthorizedKeysFile {folder}/authorized_keys
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin prohibit-password
        MaxStartups 100
        SetEnv TMPDIR={temporary} FAKES={fakes}
        """
    )


def _configure_client(folder: Path, port: int, closed: int) -> Path:
    known = {
        "known": (folder / "host.pub").read_text(),
        "unknown": "",
        "before": (folder / "other.pub").read_text(),
    }
    for name, key in known.items():
        (folder / f"{name}_hosts").write_text(f"device {key}" if key else "")
    hosts = {
        "good": ("user", "known", port),
        "stranger": ("user", "unknown", port),
        "changed": ("user", "before", port),
        "closed": ("user", "known", closed),
        "denied": ("none", "known", port),
        **{name: (name, "known", port) for name in FAULTS},
    }
    config = folder / "ssh_config"
    config.write_text(  # the first host shares one connection, as users may have it
        f"""
            Host good
                ControlMaster auto
                ControlPath {folder}/%C
                ControlPersist 60
        """
        + "".join(
            f"""
            Host {name}
                HostName 127.0.0.1
                HostKeyAlias device
                User {getpass.getuser()}
                Port {number}
                IdentityFile {folder}/{key}
                IdentitiesOnly yes
                IdentityAgent none
                UserKnownHostsFile {folder}/{hosts_file}_hosts
                GlobalKnownHostsFile none
            """
            for name, (key, hosts_file, number) in hosts.items()
        )
    )
    return config


def interpreter(folder: Path, module: str, *, text: str) -> Path:
    """An interpreter for which a module is what ``text`` says."""
    package = folder / "modules"
    package.mkdir(parents=True)
    (package / f"{module}.py").write_text(text)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{package}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script
