"""docs/tour.md stays true: its tree is the one on disk, and its walks name files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOUR = (ROOT / "docs/tour.md").read_text(encoding="utf-8")


def drawn() -> set[str]:
    """Paths of all files in the tree of the page."""
    folders: list[str] = []
    paths = set()
    for line in re.findall(r"```\n(.*?)```", TOUR, re.DOTALL)[0].splitlines():
        if line.strip():
            depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
            folders[depth:] = [name]
            if not name.endswith("/"):
                paths.add("".join(folders))
    return paths


def test_the_tree_is_the_one_on_disk() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("src/openbook", "callbacks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".j2", ".css", ".html", ".js", ".yaml") and path.name != "__init__.py"
    }
    assert drawn() == {path for path in found if not path.startswith("src/openbook/callbacks/")}


def test_the_walks_are_short_and_name_files_that_exist() -> None:
    for title, at_most in (("One batch", 5), ("One blocking refresh", 6)):
        walk = TOUR.split(f"## {title}\n")[1].split("\n## ")[0]
        steps = re.findall(r"^\d\. `([\w/]+\.py)`", walk, re.MULTILINE)
        assert 3 <= len(steps) <= at_most
        for step in steps:
            assert (ROOT / "src/openbook" / step).is_file() or (ROOT / step).is_file(), step
