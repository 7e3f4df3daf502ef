"""Tests the images without Docker or a registry: builds, runs, stops and resumes them.

    sudo -E python3 docker/prove.py FOLDER [-- train --flags]  # the CPU image, with a training run
    sudo -E python3 docker/prove.py FOLDER --gpu               # the GPU image, without training

debootstrap makes the Debian base image and buildah (`--isolation chroot`) builds on it. The
container runs under the restrictions of the Kubernetes manifests: its root is mounted read-only in
new namespaces without a network, and its process has PID 1, user 10001 and no capabilities.

The build downloads packages as this machine does: pip's settings (PIP_INDEX_URL and so on), proxies
and certificates are copied from the environment into the base image, so that the Dockerfiles need
none of them. `sudo -E` preserves that environment, and DEBIAN_MIRROR.
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
from typing import IO, cast

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

# Runs as root in new namespaces. Its last command replaces it, and so runs as PID 1.
ENTER_SCRIPT = """
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

# Runs inside the container and prints its identity, its rights and the folders it can write.
INSPECT_SCRIPT = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def is_writable(folder):
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
                             "/dev/shm", os.environ["HOME"]) if is_writable(f)],
}))
"""


def unmet_requirement() -> str:
    """Returns why this machine cannot build and run the images; empty if it can."""
    if os.geteuid():
        return "it must run as root"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/bookworm/Release", timeout=20).close()
    except OSError as error:
        return f"the mirror {MIRROR} cannot be reached ({error}); set DEBIAN_MIRROR to another"
    allowed = subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0
    return "" if allowed else "the kernel does not allow new namespaces"


def call(*command: str | Path) -> str:
    """Runs a command and returns its standard output; its standard error is passed through.

    Raises:
      subprocess.CalledProcessError: If it fails.
    """
    done = subprocess.run([str(c) for c in command], check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.strip()


def make_base(folder: Path) -> None:
    """Makes the image BASE, a Debian with Python 3.11.

    The Debian tree is kept in `folder` and reused by later calls.
    """
    tree = folder / "base"
    if not (tree / "usr/bin/python3.11").exists():
        packages = "python3.11,python3.11-venv,python3-pip,ca-certificates"
        call("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", tree, MIRROR)
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, tree / CERTIFICATES.relative_to("/"))
    names = ("index_url", "extra_index_url", "trusted_host", "timeout")
    values = {name: os.environ.get(f"PIP_{name.upper()}", "") for name in names}
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in values.items() if value]
    (tree / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    container = call("buildah", "from", "scratch")
    try:
        call("buildah", "add", "--quiet", container, tree, "/")
        call("buildah", "commit", "--quiet", container, BASE)
    finally:
        call("buildah", "rm", container)


def build(dockerfile: str, image: str) -> str:
    """Builds one of the project's images on BASE and returns its name."""
    call(
        *("buildah", "build", "--isolation=chroot", "--layers", "--pull-never", "--quiet"),
        *("--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", "VERSION=proof"),
        *("--file", ROOT / dockerfile, "--tag", image, ROOT),
    )
    return image


class Image:
    """A built image with its file system mounted, and an empty folder for runs."""

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
        """Removes the container but keeps the image."""
        call("buildah", "rm", self._container)

    def start(self, *arguments: str, entrypoint: Sequence[str] = ()) -> "Running":
        """Starts a container and returns its process, which has PID 1 inside.

        Args:
          *arguments: Arguments of the entry point.
          entrypoint: Replaces the image's entry point if not empty.
        """
        command = ["env", "-i", "-C", self.config["WorkingDir"], *self.config["Env"]]
        command += [*(entrypoint or self.config["Entrypoint"]), *arguments]
        inside = ["sh", "-c", ENTER_SCRIPT, "enter", self._root, str(self._runs), *command]
        return Running([*NAMESPACES, "--kill-child", *inside])


class Running:
    """A container's process.

    Attributes:
      output: What it has printed so far, standard error included.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._popen = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._stdout = cast(IO[str], self._popen.stdout)
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Reads the output up to the first line that contains `text`.

        Raises:
          RuntimeError: If the process ends before.
        """
        for line in self._stdout:
            self.output += line
            if text in line:
                return
        raise RuntimeError(f"The process ended before it printed {text!r}:\n{self.output}")

    def terminate(self) -> None:
        """Sends SIGTERM to the process that has PID 1 inside the container."""
        outer = self._popen.pid
        first = Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()[0]
        os.kill(int(first), signal.SIGTERM)

    def wait(self) -> int:
        """Reads the rest of the output and returns the exit code."""
        self.output += self._stdout.read()
        return self._popen.wait()


def prove_cpu(folder: Path, arguments: Sequence[str]) -> None:
    """Builds the CPU image, trains, stops the run with SIGTERM and resumes it.

    Args:
      folder: Folder for the runs.
      arguments: Arguments of the training run.

    Raises:
      RuntimeError: If a check fails.
      subprocess.CalledProcessError: If the image cannot be built.
    """
    image = Image(folder, build("docker/Dockerfile.cpu", "localhost/gan-trainer-cpu:proof"))
    try:
        check_container(image)
        expect_exit("wrong flag", image.start("train", "--stepz=1"), 64)

        run = image.start(*arguments, "--log_every_secs=0.5")
        for _ in range(3):
            run.wait_for("images/s")
        signalled = time.monotonic()
        run.terminate()
        expect_exit("SIGTERM", run, 42)
        seconds = time.monotonic() - signalled
        print(f"              {seconds:.1f} s after the signal")
        check(seconds < 15, "the run stops within 15 s of SIGTERM")
        resumed = image.start(*arguments)
        expect_exit("resumed", resumed, 0)
        check("Resuming from" in resumed.output, "the second start resumes the run")
        complete = image.start(*arguments)
        expect_exit("complete", complete, 0)
        check("is complete" in complete.output, "a third start finds the run complete")
    finally:
        image.close()
    print(
        "proven: the image builds, runs unprivileged on a read-only root, stops on SIGTERM and "
        "resumes"
    )


def prove_gpu(folder: Path) -> None:
    """Builds the GPU image, which fails if a CUDA library does not load, and starts it.

    Raises:
      RuntimeError: If a check fails.
      subprocess.CalledProcessError: If the image cannot be built.
    """
    image = Image(folder, build("docker/Dockerfile", "localhost/gan-trainer:proof"))
    try:
        check_container(image)
    finally:
        image.close()
    print("proven: the image builds, its CUDA libraries load, and it runs unprivileged")


def check_container(image: Image) -> None:
    """Checks the identity and the rights of a container's process, and that `doctor` succeeds."""
    print("entry point   ", shlex.join(image.config["Entrypoint"]), "as", image.config["User"])
    inspection = image.start(entrypoint=["python", "-c", INSPECT_SCRIPT])
    expect_exit("inspection", inspection, 0)
    seen = json.loads(inspection.output)
    ids = seen["pid"], seen["uid"], seen["gid"]
    check(ids == (1, 10001, 10001), f"PID 1, user and group 10001; found {ids}")
    check(seen["capabilities"] == ["0" * 16] * 3, "the process has no capabilities")
    check(
        seen["writable"] == ["/runs", "/tmp", "/dev/shm", "/home/trainer"],
        f"the rest of the file system is read-only; writable: {seen['writable']}",
    )
    doctor = image.start("doctor")
    expect_exit("doctor", doctor, 0)
    print(doctor.output, end="")


def expect_exit(what: str, running: Running, code: int) -> None:
    """Waits for a process and checks its exit code."""
    actual = running.wait()
    print(f"{what:13} exit code {actual}; {running.output.strip().splitlines()[-1][:300]}")
    check(actual == code, f"{what}: exit code {code}, output:\n{running.output}")


def check(condition: bool, expectation: str) -> None:
    """Raises a RuntimeError that names the expectation if the condition is false."""
    if not condition:
        raise RuntimeError(f"Expected: {expectation}")


def main() -> None:
    """Parses the command line and tests an image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the base image (kept) and the runs")
    parser.add_argument(
        "--gpu", action="store_true", help="test the GPU image instead of the CPU's"
    )
    parser.add_argument(
        "arguments", nargs="*", default=ARGUMENTS, help="arguments of the training run, after --"
    )
    options = parser.parse_args()
    if reason := unmet_requirement():
        sys.exit(f"The images cannot be tested on this machine: {reason}.")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_base(folder)
    if options.gpu:
        prove_gpu(folder)
    else:
        prove_cpu(folder, options.arguments)


if __name__ == "__main__":
    main()
