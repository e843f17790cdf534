from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from batteries.report._page import SCRIPT

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` installs."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    [path] = out.glob("batteries-*.whl")
    return path


def test_requirements(wheel: Path) -> None:
    """The base needs torch, numpy, tqdm and click alone; the rest are extras."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist") or []
    base = [requirement for requirement in requirements if "extra ==" not in requirement]
    assert sorted(base) == ["click>=8.1", "numpy>=1.26", "torch>=2.10", "tqdm>=4.66"]
    assert sorted(metadata.get_all("Provides-Extra") or []) == [
        "all", "mlflow", "safetensors", "tensorboard", "tensorboardx", "tools", "trackio",
        "wandb"
    ]  # fmt: skip
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_wheel_has_the_page(wheel: Path) -> None:
    """What `pip install` brings has the markup, style and script of the report's page."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"batteries/report/page.{kind}" for kind in ("html", "css")} <= set(names)
    assert {f"batteries/report/page/{name}.js" for name in SCRIPT} <= set(names)


def test_installed_package_works(wheel: Path, tmp_path: Path) -> None:
    """The installed package imports from where it was installed, and ships its types."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--target", str(site), str(wheel)], check=True)
    script = "import batteries; print(batteries.__file__, batteries.seed_all(1))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == f"{site / 'batteries/__init__.py'} None"
    assert (site / "batteries/py.typed").exists()
