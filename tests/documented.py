"""The commands and Python snippets of the documentation, for tests that parse and run them.

A fenced block of a page is Python, commands, options of `main.py`, or the output of a command. In
commands, `[--flag=value]` is optional, `a|b` is a choice, and PLACEHOLDERS stand for names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PYTHON = ("python", ".venv/bin/python")
FIRST_WORDS = {
    *(*PYTHON, "score-sde", "make", "pip", "source", "export", "cd", "git", "bash", "apt-get"),
    *("curl", "wget", "sudo", "docker", "apptainer", "gcloud", "ssh", "srun", "sbatch", "kubectl"),
    *("mpirun", "nvidia-smi", "pre-commit"),
}
"""Words with which a block of commands begins; any other block without a language is output."""

DIGITS = "configs/vp/digits_ddpmpp_continuous.py"
PLACEHOLDERS = {  # Longer ones first.
    "config.FIELD=VALUE": "config.training.log_freq=10",
    "restore.method=NAME": "restore.method=pigdm",
    "restore.input=DIR": "restore.input=images",
    "stats_path=FILE": "stats_path=stats.npz",
    "solver=NAME": "solver=dpm++_2m",
    "CONFIG": DIGITS,
    "DIR": "work",
    "WORKDIR": "work",
    "FILE": "file",
    "FOLDER": "images",
    "IMAGES": "images",
    "MODE": "train",
    "NAME": "name",
    "SUGGESTED": "9.6",
    "HOST": "127.0.0.1",
    "PORT": "9999",
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"`((?:\.venv/bin/python|python|score-sde|make) [^`]+)`")
OPTION = re.compile(r'--[\w.]+(?:=(?:"[^"]*"|\S+))?')
OPTIONAL = re.compile(r"\[(--[^\]]*)\]")
CHOICE = re.compile(r"(?<==)[^\s\]|]+(?:\|[^\s\]|]+)+")
PLACEHOLDER = re.compile(r"(?<![\w$])(" + "|".join(PLACEHOLDERS) + r")(?![\w=])")
ASSIGNMENT = re.compile(r"(\w+)=(\S*)")


class Command(NamedTuple):
    """A command of a page, as one line and as words; `runs` is False inside a sentence."""

    page: str
    text: str
    words: tuple[str, ...]
    runs: bool = True

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def is_main(self) -> bool:
        """Whether it calls main.py, which an installation names score-sde."""
        return self.words[0] == "score-sde" or self.words[1:2] == ("main.py",)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a call of main.py."""
        return self.words[1 if self.words[0] == "score-sde" else 2 :]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language, or '', and the text of the fenced blocks of a page."""
    return [(language, text) for _, language, text in FENCE.findall(page.read_text())]


def snippets(page: Path) -> list[str]:
    """The Python of a page."""
    return [text for language, text in blocks(page) if language == "python"]


def commands(page: Path) -> list[Command]:
    """The commands of a page in order, first those of its blocks, then those in its sentences.

    An optional part gives two commands, a choice one for each alternative. Options alone are given
    to `main.py --mode=eval`.
    """
    name, found = str(page.relative_to(ROOT)), []
    for language, text in blocks(page):
        first = text.split(maxsplit=1)[0] if text.strip() else ""
        if language in ("", "bash", "sh", "shell"):
            if first.startswith("--"):
                options = OPTION.findall(text)
                start = f"python main.py --config={DIGITS} --workdir=work --mode=eval"
                found += _variants(name, f"{start} {' '.join(options)}", runs=False)
            elif first in FIRST_WORDS or ASSIGNMENT.fullmatch(first):
                found += _of_block(name, text)
    prose = " ".join(FENCE.sub("", page.read_text()).split())
    for line in INLINE.findall(prose):
        if not line.endswith("..."):
            found += _variants(name, line, runs=False)
    return found


def _of_block(page: str, text: str) -> Iterator[Command]:
    """The commands of a block, with its shell variables filled in."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        for key, value in variables.items():
            line = line.replace(f"${key}", value)
        words = shlex.split(line, comments=True)
        assigned = ASSIGNMENT.fullmatch(words[0]) if len(words) == 1 else None
        if assigned:
            variables[assigned[1]] = assigned[2]
        elif words:
            yield from _variants(page, line, runs=True)


def _variants(page: str, line: str, *, runs: bool) -> list[Command]:
    """The commands that a line stands for."""
    found = []
    for form in dict.fromkeys((OPTIONAL.sub("", line), OPTIONAL.sub(r"\1", line))):
        most = max((choice.count("|") + 1 for choice in CHOICE.findall(form)), default=1)
        for index in range(most):

            def chosen(match: re.Match, index: int = index) -> str:
                alternatives = match[0].split("|")
                return alternatives[min(index, len(alternatives) - 1)]

            filled = PLACEHOLDER.sub(lambda match: PLACEHOLDERS[match[1]], CHOICE.sub(chosen, form))
            words = [word for word in shlex.split(filled, comments=True) if word != "..."]
            while ASSIGNMENT.fullmatch(words[0]):  # Variables of the environment.
                words = words[1:]
            found.append(Command(page, " ".join(words), tuple(words), runs))
    return found
