"""Makes .venv from requirements/SET.txt (run, dev or bench), once per change. Each failure is one sentence.

Standard library only, and old syntax in this file: it has to be able to say that Python is too old.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
NEEDED_MB = 1500
SETS = {"run": ["run"], "dev": ["run", "dev"], "bench": ["run", "dev", "bench"]}


def stop(sentence):
    sys.exit("setup: " + sentence)


def main():
    chosen = sys.argv[1] if len(sys.argv) == 2 else ""
    if chosen not in SETS:
        stop("say which set to install: " + ", ".join(sorted(SETS)))
    if sys.version_info < (3, 11):
        stop("Python 3.11 or newer is needed, this is %d.%d; name another one: make PYTHON=python3.11" % sys.version_info[:2])
    files = [os.path.join(ROOT, "requirements", name + ".txt") for name in SETS[chosen]]
    wanted = fingerprint(files)
    for name in ("bench", "dev", "run"):
        stamp = os.path.join(VENV, "." + name)
        if set(SETS[chosen]) <= set(SETS[name]) and os.path.exists(stamp):
            recorded = [os.path.join(ROOT, "requirements", part + ".txt") for part in SETS[name]]
            with open(stamp) as file:
                if file.read() == fingerprint(recorded):
                    make_page()
                    return
    make_venv()
    install(files)
    with open(os.path.join(VENV, "." + chosen), "w") as file:
        file.write(wanted)


def fingerprint(files):
    digest = hashlib.sha256(sys.version.encode())
    for path in [*files, os.path.join(ROOT, "pyproject.toml")]:
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def make_venv():
    if os.path.exists(os.path.join(VENV, "bin", "python")):
        return
    free_mb = shutil.disk_usage(ROOT).free // 1_000_000
    if free_mb < NEEDED_MB:
        stop("%d MB are free on this disk, about %d MB are needed" % (free_mb, NEEDED_MB))
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        stop("Python's venv module is missing; install it: sudo apt install python%d.%d-venv" % sys.version_info[:2])
    print("Making .venv ...", flush=True)
    try:
        venv.create(VENV, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(VENV, ignore_errors=True)
        stop(".venv cannot be made: %s" % error)


def install(files):
    python = os.path.join(VENV, "bin", "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print("Installing the locked packages (the first time takes a minute or two) ...", flush=True)
    requirements = [argument for path in files for argument in ("-r", path)]
    if subprocess.call([*pip, "--require-hashes", *requirements]):
        stop("the packages could not be installed; the lines above say why (no network, no space, or a proxy?)")
    make_page()  # before the package, whose installation would build it without a word
    if subprocess.call([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT]):
        stop("cmis-stream itself could not be installed; the lines above say why")


def make_page():
    """Built anew when its sources have changed."""
    if subprocess.call([os.path.join(VENV, "bin", "python"), os.path.join(ROOT, "scripts", "web.py"), "build"]):
        stop("the page could not be built; the lines above say why")


if __name__ == "__main__":
    main()
