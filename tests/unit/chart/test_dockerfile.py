"""The Dockerfile: four targets, locked wheels, nobody's user, nothing to build with in what ships."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmos_operator.__main__ import PROCESSES
from llmos_operator.errors import Permanent
from scripts.chart import CHART
from scripts.realnode.recipe import recipe

REPOSITORY = Path(__file__).resolve().parents[3]
TEXT = (REPOSITORY / "Dockerfile").read_text()
TARGETS = ("operator", "agent", "gateway", "runtime")


def stages() -> dict[str, tuple[str, list[str]]]:
    """Return name -> (base, instructions) of every stage, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", TEXT)
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in joined.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)$", line):
            name = match[2]
            found[name] = (match[1], [])
        elif name and line and not line.startswith("#"):
            found[name][1].append(line)
    return found


def chain(target: str) -> list[str]:
    """Return all instructions a target's image is made of, its bases first."""
    found = stages()
    base, own = found[target]
    return [*(chain(base) if base in found else []), *own]


def test_hadolint_finds_nothing():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [linter, "--failure-threshold=style", REPOSITORY / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_is_small_and_nobodys(target: str):
    steps = chain(target)
    assert "USER 65532:65532" in steps
    assert steps.index("USER 65532:65532") > max(i for i, step in enumerate(steps) if step.startswith("RUN"))
    shipped = stages()[target][1]
    assert [step for step in shipped if step.startswith("COPY")] == [
        f"COPY --from=build-{target} /opt/llmos /opt/llmos"
    ]
    assert not [step for step in steps if re.search(r"apt-get|pip install|gcc|curl|wget", step)]
    assert any("pip uninstall" in step for step in steps)
    assert 'ENTRYPOINT ["python", "-m", "llmos_operator"]' in steps
    assert shipped[-1] == f'CMD ["{target}"]'


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_are_the_locked_ones_of_the_process(target: str):
    assert target in PROCESSES
    assert stages()[f"build-{target}"] == (
        "build",
        [
            f"COPY requirements/{target}.lock .",
            f"RUN ./image-env.sh {target} {target}.lock /opt/llmos /opt/llmos/app",
        ],
    )
    lock = (REPOSITORY / "requirements" / f"{target}.lock").read_text()
    assert "--hash=sha256:" in lock
    assert ("\ntorch==" in lock) == (target == "runtime")
    assert (
        "--require-hashes --only-binary :all: --no-deps"
        in (REPOSITORY / "scripts" / "image-env.sh").read_text()
    )


@pytest.mark.parametrize("target", TARGETS)
def test_labels_tell_what_it_is(target: str):
    labels = " ".join(step for step in chain(target) if step.startswith("LABEL"))
    for key in ("title", "description", "version", "revision", "created", "licenses", "source"):
        assert f"org.opencontainers.image.{key}=" in labels


def test_the_base_can_be_pinned_by_digest():
    assert 'ARG PYTHON_DIGEST=""' in TEXT
    assert stages()["base"][0] == "${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"
    minor = re.search(r"python:(\d+\.\d+)-slim", TEXT)[1]
    assert (
        f'requires-python = ">={minor}"' in (REPOSITORY / "pyproject.toml").read_text()
    )  # the one that is tested


def test_the_build_context_is_an_allow_list():
    lines = [
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(\S+)", TEXT, re.MULTILINE))
    assert copied == (allowed - {"requirements/*.lock"}) | {
        f"requirements/{target}.lock" for target in TARGETS
    }
    for path in copied:
        assert (REPOSITORY / path).exists()


def test_image_user_and_ports_are_the_charts():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["podSecurityContext"]["runAsUser"] == 65532
    ports = {
        target: {
            int(port) for step in chain(target) if step.startswith("EXPOSE") for port in step.split()[1:]
        }
        for target in TARGETS
    }
    assert ports == {
        "operator": {8080, 8090},
        "agent": {8080},
        "gateway": {8000, 8080},
        "runtime": {8000, 8001},
    }


@pytest.mark.parametrize("target", TARGETS)
def test_images_made_without_docker_have_the_same_words(target: str):
    made = recipe(TEXT, target)
    assert made.user == "65532:65532"
    assert made.entrypoint == ("python", "-m", "llmos_operator")
    assert made.command == (target,)
    assert made.environment["PATH"].startswith("/opt/llmos/bin:/usr")
    assert made.labels["org.opencontainers.image.version"] == "0.0.0"
    assert ("MALLOC_ARENA_MAX" in made.environment) == (target == "runtime")


def test_an_instruction_that_is_not_understood_is_no_image():
    with pytest.raises(Permanent, match="HEALTHCHECK"):
        recipe("FROM scratch AS odd\nHEALTHCHECK NONE\n", "odd")
