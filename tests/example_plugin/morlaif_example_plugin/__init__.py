"""What a third party's package looks like: principles, a judge and a scalarizer for morlaif-hub."""

from importlib.resources import files
from pathlib import Path

PLAIN_SPEAKING = Path(str(files("morlaif_example_plugin") / "plain_speaking.toml"))
