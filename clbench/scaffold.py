"""Write the package of a new strategy: small, installable, and passing its own tests."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from clbench import registry
from clbench.errors import UserError

FILES = {  # template -> file
    "strategy.py.txt": "{module}.py",
    "test_strategy.py.txt": "test_{module}.py",
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*")


def write_plugin(name: str, folder: Path | None = None) -> list[Path]:
    """Write the package of strategy `name` and return its files.

    `folder` is made for it, by default one of the strategy's name in the present directory.
    Raises UserError for a name that no strategy can have or another one has, and for a folder
    that exists.
    """
    class_name = _class_name(name)
    folder = folder or Path(name)
    if folder.exists():
        raise UserError(f"{str(folder)!r} exists already; give another folder with --dir")
    words = {
        "name": name,
        "title": name.replace("-", " ").capitalize(),
        "class_name": class_name,
        "module": f"clbench_{name.replace('-', '_')}",
        "package": f"clbench-{name}",
    }
    templates = resources.files("clbench") / "templates"
    written = []
    folder.mkdir(parents=True)
    for template, file in FILES.items():
        text = Template((templates / template).read_text(encoding="utf-8"))
        path = folder / file.format(**words)
        path.write_text(text.substitute(words), encoding="utf-8")
        written.append(path)
    return written


def _class_name(name: str) -> str:
    """Return the class of a strategy, of which `Strategy.name` is the inverse."""
    class_name = "".join(word.capitalize() for word in name.split("-"))
    if not NAME.fullmatch(name) or keyword.iskeyword(class_name):
        raise UserError(
            f"{name!r} is no name for a strategy; write words of small letters and digits, each "
            "beginning with a letter, joined by hyphens, e.g. my-strategy"
        )
    taken = [e for e in registry.listing(registry.STRATEGIES) if e.name == name]
    if taken:
        raise UserError(f"strategy {name!r} exists already, in package {taken[0].package}")
    return class_name
