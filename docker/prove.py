"""Proves the images without a registry: builds them, runs them as a cluster would, stops them.

    sudo -E python3 docker/prove.py FOLDER [-- train --flags]  # the CPU image: trains
    sudo -E python3 docker/prove.py FOLDER --gpu               # the GPU image: builds, looks inside

The base is a Debian made by debootstrap, the builder is buildah (`--isolation chroot`), and the
runtime is the kernel's own: the image's root is mounted read-only in namespaces of its own,
without a network; its process is number 1, user 10001, and has no capabilities.

The build reaches packages as this machine does: pip's settings (PIP_INDEX_URL and so on), proxies
and certificates are taken from the environment, through the base and not through the Dockerfile.
`sudo -E` keeps that environment, and DEBIAN_MIRROR.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("buildah", "debootstrap", "unshare", "setpriv", "mount")
NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork")
BASE = "localhost/gan-base"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
ARGUMENTS = [
    "train",
    "--dataset=digits",
    "--devices=cpu",
    "--steps=200",
    "--checkpoint_every_kimg=5",
    "--run_dir=/runs/smoke",
]

# Runs as root of new namespaces; what it becomes in the end is the image's process 1.
ENTER = """
set -e
root=$1 runs=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mkdir -p "$root/runs"
mount --bind "$runs" "$root/runs"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o size=64m,mode=755 tmpfs "$root/dev"
for name in null zero random urandom; do
  touch "$root/dev/$name" && mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o size=256m,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o size=256m,uid=10001,gid=10001,mode=700 tmpfs "$root/home/trainer"
exec chroot "$root" setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs \
  --inh-caps=-all --ambient-caps=-all --bounding-set=-all -- "$@"
"""

LOOK = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def may_write(folder):
    try:
        open(folder + "/probe", "w").close()
        os.remove(folder + "/probe")
        return True
    except OSError:
        return False
print(json.dumps({
    "pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "writable": [f for f in ("/", "/opt/trainer", "/usr", "/etc", "/var", "/runs", "/tmp",
                             "/dev/shm", os.environ["HOME"]) if may_write(f)],
}))
"""


def missing() -> str:
    """Why this machine cannot do it; empty if it can."""
    if os.geteuid():
        return "needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/bookworm/Release", timeout=20).close()
    except OSError as error:
        return f"{MIRROR} does not answer ({error})"
    works = subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0
    return "" if works else "no namespaces here"


def call(*command: str | Path) -> str:
    """Runs a command and returns what it prints; its log goes to stderr."""
    done = subprocess.run([str(c) for c in command], check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.strip()


def make_base(folder: Path) -> None:
    """A Debian with Python 3.11, as the image BASE; kept in `folder` for another time."""
    tree = folder / "base"
    if not (tree / "usr/bin/python3.11").exists():
        packages = "python3.11,python3.11-venv,python3-pip,ca-certificates"
        call("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", tree, MIRROR)
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, tree / CERTIFICATES.relative_to("/"))
    names = ("index_url", "extra_index_url", "trusted_host", "timeout")
    given = {name: os.environ.get(f"PIP_{name.upper()}", "") for name in names}
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in given.items() if value]
    (tree / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    container = call("buildah", "from", "scratch")
    try:
        call("buildah", "add", "--quiet", container, tree, "/")
        call("buildah", "commit", "--quiet", container, BASE)
    finally:
        call("buildah", "rm", container)


def build(dockerfile: str, image: str) -> str:
    """Builds an image of this project on BASE; returns its name."""
    call(
        *("buildah", "build", "--isolation=chroot", "--layers", "--pull-never", "--quiet"),
        *("--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", "VERSION=proof"),
        *("--file", ROOT / dockerfile, "--tag", image, ROOT),
    )
    return image


class Image:
    """A built image, mounted, with a folder for runs."""

    def __init__(self, folder: Path, image: str) -> None:
        text = call("buildah", "inspect", "--type", "image", image)
        self.config = json.loads(text)["OCIv1"]["config"]
        self._container = call("buildah", "from", "--pull-never", image)
        self._root = call("buildah", "mount", self._container)
        self._runs = folder / "runs"
        shutil.rmtree(self._runs, ignore_errors=True)
        self._runs.mkdir(mode=0o770)
        os.chown(self._runs, 10001, 10001)

    def close(self) -> None:
        """Removes the container; the image stays."""
        call("buildah", "rm", self._container)

    def start(self, *arguments: str, entrypoint: Sequence[str] = ()) -> "Running":
        """Starts the image's entry point, or another, as process 1 of its own machine."""
        settings = [*self.config["Env"]]
        command = ["env", "-i", "-C", self.config["WorkingDir"], *settings]
        command += [*(entrypoint or self.config["Entrypoint"]), *arguments]
        inside = ["sh", "-c", ENTER, "enter", self._root, str(self._runs), *command]
        return Running([*NAMESPACES, "--kill-child", *inside])


class Running:
    """A container's process, seen from outside."""

    def __init__(self, command: Sequence[str]) -> None:
        self._popen = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Reads its output until a line has `text`."""
        assert self._popen.stdout
        for line in self._popen.stdout:
            self.output += line
            if text in line:
                return
        raise RuntimeError(f"ended before {text!r}:\n{self.output}")

    def terminate(self) -> None:
        """Sends SIGTERM to process 1."""
        outer = self._popen.pid
        first = Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()[0]
        os.kill(int(first), signal.SIGTERM)

    def end(self) -> int:
        """Waits for its exit code."""
        assert self._popen.stdout
        self.output += self._popen.stdout.read()
        return self._popen.wait()


def prove(folder: Path, arguments: Sequence[str]) -> None:
    """Builds the CPU image, looks inside, trains, stops, goes on, and starts once more."""
    image = Image(folder, build("docker/Dockerfile.cpu", "localhost/gan-trainer-cpu:proof"))
    try:
        look_inside(image)
        expect("a wrong flag", image.start("train", "--stepz=1"), 64)

        run = image.start(*arguments, "--log_every_secs=0.5")
        for _ in range(3):
            run.wait_for("images/s")
        began = time.monotonic()
        run.terminate()
        expect("SIGTERM", run, 42)
        print(f"             {time.monotonic() - began:.1f} s after the signal")
        check(time.monotonic() - began < 15, "within 15 s")
        again = image.start(*arguments)
        expect("again", again, 0)
        check("Resuming from" in again.output, "it went on")
        last = image.start(*arguments)
        expect("once more", last, 0)
        check("is complete" in last.output, "nothing left to do")
    finally:
        image.close()
    print("proven: the image builds, runs without rights on a read-only root, stops and goes on")


def prove_gpu(folder: Path) -> None:
    """Builds the GPU image, which fails if a CUDA library does not load, and looks inside."""
    image = Image(folder, build("docker/Dockerfile", "localhost/gan-trainer:proof"))
    try:
        look_inside(image)
    finally:
        image.close()
    print("proven: the image builds, its CUDA libraries load, and it runs without rights")


def look_inside(image: Image) -> None:
    """Checks what its process is and may, and that TensorFlow is found."""
    print("entry point  ", shlex.join(image.config["Entrypoint"]), "as", image.config["User"])
    look = image.start(entrypoint=["python", "-c", LOOK])
    expect("inside", look, 0)
    seen = json.loads(look.output)
    check(seen["pid"] == 1 and seen["uid"] == seen["gid"] == 10001, "process 1, user 10001")
    check(seen["capabilities"] == ["0" * 16] * 3, "no capabilities")
    check(seen["writable"] == ["/runs", "/tmp", "/dev/shm", "/home/trainer"], "root read-only")
    doctor = image.start("doctor")
    expect("doctor", doctor, 0)
    print(doctor.output, end="")


def expect(what: str, running: Running, code: int) -> None:
    """Raises unless it ends with `code`."""
    got = running.end()
    print(f"{what:13} exit code {got}; {running.output.strip().splitlines()[-1][:300]}")
    check(got == code, f"{what}: exit code {code}:\n{running.output}")


def check(condition: bool, what: str) -> None:
    """Raises unless it holds."""
    if not condition:
        raise RuntimeError(f"not so: {what}")


def main() -> None:
    """Reads the arguments and says what keeps this machine from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the base and the runs; the base is kept")
    parser.add_argument("--gpu", action="store_true", help="the GPU image instead")
    parser.add_argument("arguments", nargs="*", default=ARGUMENTS, help="behind --")
    asked = parser.parse_args()
    if reason := missing():
        sys.exit(f"Cannot prove the image here: {reason}.")
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_base(folder)
    if asked.gpu:
        prove_gpu(folder)
    else:
        prove(folder, asked.arguments)


if __name__ == "__main__":
    main()
