"""What an agent takes on a device's disk: `pip install .[agent]` into an empty environment, weighed by package.

Bytes of all files that each package lists as its own, byte code included; pip itself is left out. Exits with 1 when
the total is not below `--limit`.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from figures import parse_arguments, print_result, setting

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MB = 185.0
MB = 1e6  # bytes
FORBIDDEN = ("torch", "onnx", "typer", "rich")  # what belongs on other machines


def install(environment: Path, wanted: str) -> Path:
    """An empty environment with `wanted` in it; its site-packages."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted]
    subprocess.run(pip, cwd=ROOT, check=True, stdout=sys.stderr)
    subprocess.run([environment / "bin" / "edge-agent", "--version"], check=True, stdout=sys.stderr)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.check_output([python, "-c", where], text=True).strip())


def weigh(site_packages: Path) -> dict[str, tuple[str, int]]:
    """Version and bytes of each installed distribution, the heaviest first."""
    found = {}
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        files = {Path(str(file.locate())).resolve() for file in distribution.files or ()}
        size = sum(file.stat().st_size for file in files if file.is_file())
        found[distribution.metadata["Name"]] = distribution.version, size
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", default="agent", help="which extra of pyproject.toml")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="megabytes (10^6 bytes) in all, at most")
    options = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="anabranch-footprint-") as folder:
        weights = weigh(install(Path(folder), f".[{options.extra}]"))
    own = {name: weight for name, weight in weights.items() if name not in ("pip", "setuptools")}
    total = sum(size for _, size in own.values()) / MB
    table: list[list[object]] = [["package", "version", "MB"]]
    table += [[name, version, f"{size / MB:.1f}"] for name, (version, size) in own.items()]
    table.append(["all", "", f"{total:.1f}"])
    unwanted = sorted(set(own) & set(FORBIDDEN)) if options.extra == "agent" else []
    result = {
        "setting": setting(),
        "packages": {name: {"version": version, "bytes": size} for name, (version, size) in own.items()},
        "total_mb": total,
        "limit_mb": options.limit,
        "unwanted": unwanted,
    }
    print_result(result, [table], options.json)
    if unwanted:
        sys.stderr.write(f"a device has no use for {', '.join(unwanted)}\n")
    if total >= options.limit:
        sys.stderr.write(f"the total is not below {options.limit:g} MB\n")
    return 1 if unwanted or total >= options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
