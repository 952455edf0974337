"""What must hold of the image: laws that a linter of Dockerfiles does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from serve_app.settings import ServiceSettings

TARGETS = ("batch", "serve")
EXACT_TAG = r"[\w./-]+:\d+\.\d+\.\d+(-[\w.-]+)?(@sha256:[0-9a-f]{64})?"
"""A tag that says the patch version; a digest is better still."""
SECRET = r"(?i)token|secret|passw|credential|api_?key|access_?key"


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    """In capitals."""
    text: str
    """What follows it."""


@dataclass
class Stage:
    """What lies between one FROM and the next."""

    name: str
    """What it is called."""
    base: str
    """What it is made from: an image, `${VARIABLE}`, or an earlier stage."""
    instructions: list[Instruction] = field(default_factory=list)
    """All but FROM."""

    def texts(self, name: str) -> list[str]:
        """The texts of the instructions of one name."""
        return [one.text for one in self.instructions if one.name == name]


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name.upper(), said.strip()) for name, said in split]


def stages(text: str) -> dict[str, Stage]:
    """The stages by name, in order."""
    found: dict[str, Stage] = {}
    for one in instructions(text):
        if one.name == "FROM":
            base, _, name = one.text.partition(" AS ")
            found[name] = Stage(name, base)
        elif found:
            found[next(reversed(found))].instructions.append(one)
    return found


def lineage(found: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is made from, the oldest first."""
    stage = found[name]
    return [*(lineage(found, stage.base) if stage.base in found else []), stage]


def run_steps(text: str, program: str) -> list[str]:
    """The RUN instructions in which a program is called."""
    return [one.text for one in instructions(text) if one.name == "RUN" and program in one.text]


def image_problems(text: str, ignored: str) -> list[str]:
    """One sentence for each broken law, of a Dockerfile and the `.dockerignore` beside it."""
    found = stages(text)
    if missing := [target for target in TARGETS if target not in found]:
        return [f"there is no target {', '.join(missing)}"]
    return [
        *_base_problems(text, found),
        *_secret_problems(text),
        *_install_problems(text, found),
        *_context_problems(text, ignored),
        *(problem for target in TARGETS for problem in _target_problems(found, target)),
    ]


def _base_problems(text: str, found: dict[str, Stage]) -> Iterator[str]:
    said = [one.text.partition("=") for one in instructions(text) if one.name == "ARG"]
    defaults = {name: value for name, _, value in said}
    for stage in found.values():
        base = stage.base
        if base in found:
            continue
        if variable := re.fullmatch(r"\$\{(\w+)\}", base):
            base = defaults.get(variable[1], "")
        if not re.fullmatch(EXACT_TAG, base):
            yield f"{stage.name or 'a stage'}: its base '{base}' has no exact tag"


def _secret_problems(text: str) -> Iterator[str]:
    for one in instructions(text):
        if one.name in ("ENV", "ARG") and re.search(SECRET, one.text):
            yield f"{one.name} {one.text.split('=')[0]}: a secret would stay in the image"
        if one.name == "ADD":
            yield f"ADD {one.text}: what it fetches or unpacks has no digest; COPY"


def _install_problems(text: str, found: dict[str, Stage]) -> Iterator[str]:
    for step in run_steps(text, "pip install"):
        for option in ("--no-cache-dir", "--constraint constraints.txt"):
            if option not in step:
                yield f"a pip step lacks {option}"
        if "--no-deps" not in step and "--only-binary :all:" not in step:
            yield "a pip step may run what it downloads: --only-binary :all:"
    if re.search(r"(?i)\bray(\[[\w,]+\])?\s*[=<>]=", text) or "rayproject/" in text:
        yield "Ray's version stands in pyproject.toml alone"
    for stage in found.values():
        seen: set[str] = set()
        for one in stage.instructions:
            if one.name == "COPY":
                seen.update(one.text.split()[:-1])
            if one.name == "RUN" and "--requirement" in one.text and "ray_pipeline" in seen:
                yield "the code is copied before what it needs is installed"
            if one.name == "RUN" and "apt-get install" in one.text and "rm -rf" not in one.text:
                yield "apt's lists stay in a layer"


def _context_problems(text: str, ignored: str) -> Iterator[str]:
    lines = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    if lines[:1] != ["*"]:
        yield ".dockerignore does not begin with '*': what is not thought of would go in"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [one.text for one in instructions(text) if one.name == "COPY"]
    wanted = {source for said in copies if "--from" not in said for source in said.split()[:-1]}
    yield from (f"COPY {one}: .dockerignore keeps it out" for one in sorted(wanted - allowed))
    yield from (f".dockerignore lets {one} in for nothing" for one in sorted(allowed - wanted))


def _target_problems(found: dict[str, Stage], target: str) -> Iterator[str]:
    line = lineage(found, target)

    def said(name: str) -> list[str]:
        return [text for stage in line for text in stage.texts(name)]

    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", (said("USER") or [""])[-1]):
        yield f"{target}: its last USER is no number but root's: Kubernetes can't tell who it is"
    if not said("HEALTHCHECK"):
        yield f"{target}: no HEALTHCHECK, nor NONE"
    ports = [port for text in said("EXPOSE") for port in text.split()]
    needed = [str(ServiceSettings.model_fields["port"].default)] if target == "serve" else []
    if ports != needed:
        yield f"{target}: it exposes {ports}, and needs {needed}"
    try:
        json.loads((said("CMD") or [""])[-1])
    except json.JSONDecodeError:
        yield f"{target}: its CMD is no list: a shell would keep signals from it"
