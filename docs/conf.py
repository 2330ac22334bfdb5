"""Sphinx' settings. The pages of the library are written here, one for each package, from its docstrings.

Docstrings are plain text, in which only ``double backticks`` mean something. So what reStructuredText would read as
markup (a star, a bar, an underscore at a word's end) is escaped before Sphinx sees it.
"""

import dataclasses
import importlib
import pkgutil
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "Kintsugi"
author = "The Kintsugi authors"
copyright = "the Kintsugi authors, MIT license"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_mock_imports = ["gradio", "fastapi"]  # the optional ones of the studio
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "Kintsugi"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False

TOP = "kintsugi"
MARKUP = re.compile(r"([*|`\\]|_(?!\w))")
"""What reStructuredText would take for markup."""


def modules(package: str) -> list[str]:
    """The modules that lie directly in a package, sorted."""
    path = importlib.import_module(package).__path__
    return sorted(f"{package}.{found.name}" for found in pkgutil.iter_modules(path) if not found.ispkg)


def packages() -> list[str]:
    """The library itself and its packages, sorted."""
    path = importlib.import_module(TOP).__path__
    return [TOP, *sorted(f"{TOP}.{found.name}" for found in pkgutil.iter_modules(path) if found.ispkg)]


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def write_library() -> None:
    """``api/PACKAGE.rst`` for each package, with every module that is there now."""
    folder = Path(__file__).parent / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in packages():
        parts = [title(package, "="), f".. automodule:: {package}\n"]
        for module in modules(package):
            if module.endswith("__main__"):
                continue
            parts += [title(module.removeprefix(f"{TOP}."), "-"), f".. automodule:: {module}\n   :members:\n"]
        (folder / f"{package}.rst").write_text("\n".join(parts))
    listed = "\n".join(f"   {package}" for package in packages())
    (folder / "index.rst").write_text(f"{title('The library', '=')}\n.. toctree::\n   :maxdepth: 1\n\n{listed}\n")


def plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escapes what is no markup in a docstring, sets a list apart from the line above it, and drops the signature that
    a dataclass without a docstring has for one."""
    if lines and what == "class" and lines[0].startswith(f"{name.rpartition('.')[2]}("):
        lines.clear()
    result: list[str] = []
    bullet = False
    for line in lines:
        text = line.lstrip()
        indent = line[: len(line) - len(text)]
        if text.startswith((">>>", "...")):
            result.append(line)
            continue
        if text.startswith("- "):
            if not bullet and result and result[-1].strip():
                result.append("")
            bullet, lead, text = True, "- ", text[2:]
        else:
            bullet, lead = bullet and bool(indent), ""
        pieces = re.split(r"(``.+?``)", text)
        escaped = [
            piece if piece.startswith("``") else re.sub(r"([*|`\\]|_(?!\w))", r"\\\1", piece) for piece in pieces
        ]
        result.append(indent + lead + "".join(escaped))
    lines[:] = result


def short(
    app: object, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Leaves out the signature of a dataclass: it repeats the fields that follow."""
    return ("", None) if dataclasses.is_dataclass(obj) else None


def setup(app: object) -> None:
    write_library()
    app.connect("autodoc-process-docstring", plain)  # type: ignore[attr-defined]
    app.connect("autodoc-process-signature", short)  # type: ignore[attr-defined]
