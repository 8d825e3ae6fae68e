"""The example plugin, built and installed by pip as a user would, into a folder of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "morlaif_example_plugin"
DISTRIBUTION = "morlaif-example-plugin"


def install_example_plugin(temporary: pytest.TempPathFactory) -> Path:
    """Return a folder for `sys.path` that holds the plugin; it is built once per test run.

    Nothing is downloaded: its build backend, setuptools, is there because torch needs it.
    """
    site = temporary.getbasetemp() / "example_plugin_site"
    if not site.exists():
        # A copy is built, since setuptools leaves its build folders beside the source.
        source = temporary.mktemp("example_plugin_source") / "plugin"
        shutil.copytree(Path(__file__).parent / "example_plugin", source)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--isolated", "--no-index"]
        command += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        command += ["--target", str(site), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return site


def use_example_plugin(site: Path, patch: pytest.MonkeyPatch) -> None:
    """Put the installed plugin on `sys.path`, not yet imported, until the patch is undone."""
    forget_example_plugin(patch)
    patch.syspath_prepend(str(site))
    patch.delenv("MORLAIF_HUB_PLUGINS", raising=False)


def forget_example_plugin(patch: pytest.MonkeyPatch) -> None:
    """Make as if the plugin had never been imported, until the patch is undone."""
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        patch.delitem(sys.modules, name)
