"""The documentation says what is so. `python tests/test_docs.py` writes its table of settings."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from txproxy import config
from txproxy.cli.demo import DJANGO
from txproxy.cli.embedded import EmbeddedPostgres
from txproxy.config import SETTINGS, Setting, shown_default
from txproxy.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
BEGIN = "<!-- settings: written by `python tests/test_docs.py` -->\n"
END = "<!-- end of settings -->\n"
NOT_OURS = re.compile(
    r"\.(?!ci$|dockerignore$|gitignore$|pre-commit-config\.yaml$)|build$|.*\.egg-info$"
)


def files(pattern: str = "*") -> list[Path]:
    """The project's own files: no environments, caches or what was built."""
    found = []
    for directory, subdirectories, names in os.walk(ROOT):
        subdirectories[:] = [
            name
            for name in subdirectories
            if name != "__pycache__" and not (Path(directory) == ROOT and NOT_OURS.match(name))
        ]
        found += [Path(directory, name) for name in names if Path(name).match(pattern)]
    return [path for path in found if path.suffix not in (".so", ".pyc")]


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


# The table of settings


def table() -> str:
    head = "| key | in | value | default | reload | meaning |\n|---|---|---|---|---|---|\n"
    return head + "".join(map(row, SETTINGS))


def row(setting: Setting) -> str:
    named = {"databases": "databases.…", "users": "users.…", "sqlite": "sqlite.…"}
    where = ", ".join(f"`[{named.get(name, name)}]`" for name in setting.tables)
    default = f"`{shown_default(setting)}`" if shown_default(setting) else "–"
    reloads = "yes" if setting.reloads else "restart"
    cells = (f"`{setting.key}`", where, values(setting), default, reloads, setting.help)
    return f"| {' | '.join(cells)} |\n"


def values(setting: Setting) -> str:
    """What the setting can be, in the words of its own parser."""
    try:
        setting.kind.parse(object())
    except ValueError as error:
        said = str(error).removeprefix("must be ")
        return said.split(": ")[0].removesuffix(", and not an empty one")
    raise AssertionError(setting.name)


def with_table(text: str) -> str:
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}{table()}{text[after:]}"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = CONFIGURATION.read_text()
    assert text == with_table(text), "run: python tests/test_docs.py"


# Examples


@pytest.mark.parametrize("path", ["README.md", "docs/configuration.md"])
def test_the_examples_of_a_configuration_are_valid(path: str) -> None:
    examples = blocks(ROOT / path, "toml")
    assert examples
    for text in examples:
        config.parse(text, path)


def test_the_shipped_configuration_is_valid() -> None:
    config.load(str(ROOT / "proxy.toml"))


def test_the_error_that_is_shown_is_the_one_that_comes() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse("[proxy]\nlistn = []\n", "proxy.toml")
    assert f"{caught.value}\n" in blocks(CONFIGURATION, "text")


def test_the_demo_and_the_readme_point_django_at_the_proxy_alike() -> None:
    said = DJANGO.replace('"demo"', '"app"').replace('"postgres"', '"app"')
    assert f"{said}\n" in blocks(ROOT / "README.md", "python")


def test_the_readmes_transaction_that_somebody_forgot(postgres: EmbeddedPostgres) -> None:
    from tests.system.proxy import Proxy, direct, prepare

    [example] = [text for text in blocks(ROOT / "README.md", "python") if "psycopg" in text]
    prepare(postgres)
    with direct(postgres) as connection:
        connection.execute("DROP TABLE IF EXISTS accounts")
        connection.execute("CREATE TABLE accounts AS SELECT 7 AS balance")
        connection.execute("GRANT ALL ON accounts TO app")
        with Proxy(postgres) as proxy, contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(example.replace("6432", str(proxy.port)), {})
        assert printed.getvalue() in blocks(ROOT / "README.md", "text")
        assert connection.execute("TABLE accounts").fetchall() == [(7,)]
        connection.execute("DROP TABLE accounts")


# References


def references(path: Path) -> Iterator[tuple[Path, str]]:
    """The files that a text links to, with the headings in them."""
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
        if not re.match("https?:", target):
            yield (path.parent / target if target else path), heading


def headings(path: Path) -> set[str]:
    """The names under which a text's headings can be linked to."""
    said = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in said}


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in files("*.md")])
def test_links_lead_to_something(path: str) -> None:
    for target, heading in references(ROOT / path):
        assert target.exists(), f"{path}: {target}"
        assert not heading or heading in headings(target), f"{path}: #{heading}"


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_that_are_named_exist(path: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^|[A-Z] )make ([a-z-]+)", (ROOT / path).read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_nothing_refers_to_what_is_outside_of_the_project() -> None:
    outside = ["../" + "shared", "/work/" + "shared", "/work/" + "main"]
    for path in files():
        text = path.read_text(errors="replace")
        assert not [name for name in outside if name in text], path


if __name__ == "__main__":
    CONFIGURATION.write_text(with_table(CONFIGURATION.read_text()))
    print(f"{CONFIGURATION.relative_to(ROOT)}: {len(SETTINGS)} settings")
