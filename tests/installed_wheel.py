"""What `make wheel` runs, outside the checkout, in an environment that has only the wheel."""

import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import chita_opt
import chita_opt.formulations
from chita_opt.nn.models import PRETRAINED, load_pretrained

PREFIX = Path(sys.prefix).resolve()

for module in (chita_opt, chita_opt.formulations):
    where = Path(module.__file__).resolve()
    assert where.is_relative_to(PREFIX), f"{module.__name__} comes from {where}, not the wheel"
assert chita_opt.__version__ == version("chita-opt")
assert files("chita_opt").joinpath("py.typed").is_file()
assert files("chita_opt.formulations").joinpath("README.md").is_file()
assert files("chita_opt.cli.report").joinpath("template", "page.html").is_file()
for name in PRETRAINED:
    load_pretrained(name)
print(f"chita-opt {chita_opt.__version__} works from {PREFIX}")
