"""Hooks of MkDocs: which files the site has, and the pages made from docstrings.

Pages keep the paths that they have in the repository, so that a relative link works on
the site as it does there.
"""

from __future__ import annotations

import ast
import pathlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a test reads this file without MkDocs
    from mkdocs.structure.files import Files

ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = ROOT / "litevit_jax"
_PATTERNS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    *("docs/**/*", "launch/README.md", "colabs/README.md"),
)
_CODE = (".py", ".pyc")


def on_config(config: Any) -> Any:
    """Adds the section of pages made from docstrings; anchors are as on GitHub."""
    config.nav.append({"Python": [{name: _page(name)} for name in packages()]})
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Files, config: Any) -> Files:
    """Returns the site's files in place of those of docs/ alone."""
    from mkdocs.structure.files import File, Files

    kept = [file for file in files if file.src_dir != config.docs_dir]
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        kept.append(File.generated(config, name, abs_src_path=str(path)))
    for package, modules in packages().items():
        init = ROOT.joinpath(*package.split("."), "__init__.py")
        about = ast.get_docstring(ast.parse(init.read_text())) or ""
        text = [f"# {package}", about, *(f"::: {name}" for name in modules)]
        page = File.generated(config, _page(package), content="\n\n".join(text))
        kept.append(page)
    return Files(kept)


def sources() -> list[pathlib.Path]:
    """Returns the files of the repository that the site has: pages and pictures."""
    paths = (path for pattern in _PATTERNS for path in sorted(ROOT.glob(pattern)))
    return [path for path in paths if path.is_file() and path.suffix not in _CODE]


def slug(heading: str, separator: str = "-") -> str:
    """Returns the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def _page(package: str) -> str:
    return f"reference/{package}.md"


def packages() -> dict[str, list[str]]:
    """Returns the public modules of each package, which the site has a page for."""
    modules: dict[str, list[str]] = {}
    for path in sorted(_PACKAGE.rglob("[!_]*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return modules
