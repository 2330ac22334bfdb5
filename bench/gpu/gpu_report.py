"""The report of ``make gpu``: one Markdown page with the tables of all parts."""

from __future__ import annotations

import json
from pathlib import Path

from kintsugi import table


def write(folder: Path) -> None:
    """Writes report.md from all PART.json in ``folder``."""
    parts = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    parts = sorted((part for part in parts if "part" in part), key=lambda part: part["began"])
    (folder / "report.md").write_text("\n\n".join(section for part in parts for section in sections(part)) + "\n")


def sections(part: dict) -> list[str]:
    """The paragraphs of one part: its heading, how it ended, tables and notes."""
    where = f"{part['device']}, PyTorch {part['torch']}, {part['seconds']:.0f} s"
    texts = [f"# {part['part']}: {part['status']}", f"*`{part['command']}`. {where}.*"]
    if part["tiny"]:
        texts.append("Tiny sizes: the figures only show that the command works.")
    for title, rows in part.get("tables", {}).items():
        texts.append(table.markdown(rows, title))
    if part.get("notes"):
        texts.append("\n".join(f"- {line}" for line in part["notes"]))
    if part.get("end of the log"):
        texts.append(f"The end of its output:\n\n```\n{part['end of the log'].strip()}\n```")
    return texts
