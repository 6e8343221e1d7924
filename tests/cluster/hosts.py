"""Hosts for tests: each a network, mount, process and name space of its own with its own sshd, on one private bridge.

A host's root is a copy-on-write view of this machine, so that it has the same Python; its disk outlives a `kill`, as
a real one's does. `/shared` is the same folder on all of them. Nothing routes from the bridge to anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BRIDGE, NETWORK = "tapsearch0", "10.77.0"
CLIENT = "client"  # the name of the host that may log in to the others
DISK, SHARED_MEMORY = "6g", "2g"
BOOT_SECONDS = 120
SITE = "/root/.tapsearch"  # where cluster.yaml makes its virtual environment

# Process 1 of a host. Its arguments: name, address, folder, the checkout's virtual environment, and the constants.
BOOT = r"""
set -eu
name=$1 address=$2 folder=$3 environment=$4 site=$5 memory=$6 client=$7
hostname "$name"
disk=$folder/$name/disk root=$folder/$name/disk/root
mkdir -p "$disk"/{up,work,root,site-up,site-work}
mount -t overlay overlay -o lowerdir=/,upperdir="$disk/up",workdir="$disk/work" "$root"
mount -t proc proc "$root/proc"; mount --rbind /sys "$root/sys"; mount --rbind /dev "$root/dev"
mount -t tmpfs -o size="$memory" shm "$root/dev/shm"
mkdir -p "$root/shared" "$root$site"
mount --bind "$folder/shared" "$root/shared"
mount -t overlay overlay -o lowerdir="$environment",upperdir="$disk/site-up",workdir="$disk/site-work" "$root$site"
if [ ! -f "$disk/booted" ]; then
  rm -rf "$root"/tmp/* "$root/root/.ray" "$root/root/.ssh" "$root"/root/ray_bootstrap*
  touch "$root/root/.bashrc"; echo "$address $name" >> "$root/etc/hosts"
  mkdir -p "$root/root/.ssh" "$root/run/sshd"; chmod 700 "$root/root/.ssh"
  cp "$folder/key.pub" "$root/root/.ssh/authorized_keys"; chmod 600 "$root/root/.ssh/authorized_keys"
  [ "$name" != "$client" ] || cp "$folder/key" "$root/root/.ssh/id_ed25519"
  grep -rlI "^#!.*$environment/bin" "$root$site/bin" | xargs sed -i "1s|$environment|$site|"
  rm -rf "$root/root/.config/pip"; cp -r "$folder/wheels" "$root/opt/tapsearch-wheels"
  printf '[global]\nno-index = true\nfind-links = /opt/tapsearch-wheels\n' > "$root/etc/pip.conf"
  touch "$disk/booted"
fi
cd "$root"; mkdir -p old; pivot_root . old; umount -l /old
exec /usr/sbin/sshd -D -e -o ListenAddress="$address" -o PidFile=none -o PermitRootLogin=prohibit-password \
  -o UsePAM=no -o AcceptEnv=none -o MaxStartups=100
"""


def missing() -> str | None:
    """Why hosts cannot be made here, if they cannot."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    tools = {"ip": "iproute2", "ssh": "openssh-client", "/usr/sbin/sshd": "openssh-server", "rsync": "rsync"}
    absent = [package for tool, package in tools.items() if shutil.which(tool) is None]
    return f"making hosts needs {', '.join(absent)}" if absent else None


class Hosts:
    """Hosts by name, up as long as the context lasts.

    Args:
        names: of the hosts; the first has address 10.77.0.11.
    """

    def __init__(self, *names: str):
        self.addresses = {name: f"{NETWORK}.{11 + k}" for k, name in enumerate(names)}
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Hosts:
        self.folder = Path(tempfile.mkdtemp(prefix="tapsearch-hosts-"))
        self.shared = self.folder / "shared"
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        for folder in (self.shared, self.folder / "wheels"):
            folder.mkdir()
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key")
        # pip builds this package with setuptools; all else that it needs is there already, as after a first set-up.
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", self.folder / "wheels"]
        _run(*pip, "setuptools>=77")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for name in self.addresses:
            self._plug_in(name)
            self.boot(name)

    def __exit__(self, *raised) -> None:
        for name in self.addresses:
            self.kill(name)
            _try("ip", "netns", "delete", f"tap-{name}")
            _try("ip", "link", "delete", f"tapv-{name}")
            _try("umount", self.folder / name / "disk")
        _try("ip", "link", "delete", BRIDGE)
        shutil.rmtree(self.folder)

    def _plug_in(self, name: str) -> None:
        """A network of its own, with a cable to the bridge and a disk."""
        space = f"tap-{name}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", f"tapv-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", f"tapv-{name}", "master", BRIDGE, "up")
        _run("ip", "-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", space, "link", "set", device, "up")
        disk = self.folder / name / "disk"
        disk.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tapdisk", disk)

    def boot(self, name: str) -> None:
        """Switches a host on."""
        log = (self.folder / name / "boot.log").open("w")
        command = ["ip", "netns", "exec", f"tap-{name}", "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork",
                   "--kill-child", "--propagation", "private", "bash", "-c", BOOT, "boot", name, self.addresses[name],
                   self.folder, sys.prefix, SITE, SHARED_MEMORY, CLIENT]  # fmt: skip
        self._processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((self.addresses[name], 22), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"{name} did not boot: {(self.folder / name / 'boot.log').read_text()}")

    def kill(self, name: str) -> None:
        """Switches a host off, as a cut of its power does."""
        process = self._processes.pop(name, None)
        if process:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def ssh(self, name: str, command: str, seconds: float = 60) -> str:
        """What a command prints in a login shell of root on a host."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        login = ["ssh", "-i", self.folder / "key", *options, f"root@{self.addresses[name]}"]
        return _run(*login, f"bash -lic {shlex.quote(command)}", timeout=seconds)


def _try(*command: object) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        _run(*command)


def _run(*command: object, timeout: float = 120) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout
