"""Every message about a file has its place and is about the file; none speaks of Python or pydantic."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from spec_classes import specs_below

from ftae.errors import FtaeError, SpecError
from ftae.specs import Range, SearchSpec
from ftae.specs.files import load_search
from ftae.specs.reading.problems import problems
from ftae.specs.search.distributions import Choices
from ftae.specs.search.search import ProductionSpec

FOREIGN = re.compile(
    r"NoneType|datetime|<class|\bdict\b|\btuple\b|\bbool\b|\bstr\b|\bset\b|\bTrue\b|\bFalse\b|\bNone\b|pydantic|Traceback"
    r"|valid (integer|string|dictionary|list|boolean)|Input should|Field required|Extra inputs|ValidationError|_type\b"
)
# Values as a file has them. Some are valid for some fields.
ODD = [
    "null", "true", "no", "[]", "{}", "[[1], {a: b}]", "{a: {b: [c]}}", "text", '""', "2024-01-02",
    "2024-01-02 10:20:30", ".nan", ".inf", "-.inf", "-1", "-0.5", "99999999999999999999", "1e400", "1:30", "010",
    "!!binary aGVsbG8=", "!!set {a, b}", "[null]", "[1, 1]", "{1: 2}", "{low: 1, high: 0}", "{choices: []}",
    "{low: text}", "'\\x00'", "🤖", "x" * 500,
]  # fmt: skip
GOOD = yaml.safe_load("""\
name: photos-kl
finetune:
  model: {family: conv_vae, channels: 8, depth: 2, latent_dim: 4}
  data: {source: digits, val: 0.1, resolution: 32}
  freeze_depth: 2
  losses: {mse: 1.0, kl: 2.0e-8, tv: 0.0}
  optimizer: {name: adamw, lr: 1.0e-4, lr_multipliers: {encoder: 0.1}}
  schedule: {name: cosine, warmup_fraction: 0.1}
  max_steps: 2000
  metrics: [psnr, ssim, kl]
search_space:
  optimizer.lr: {low: 1.0e-6, high: 2.0e-4, log: true}
  losses.tv: {choices: [0.0, 1.0e-4]}
objective: {metric: val/psnr, direction: maximize, constraints: [val/kl <= 25]}
search:
  num_trials: 32
  scheduler: {name: asha, grace_fraction: 0.33}
  resources: {gpus: 1, cpus: 4}
tracking: {uri: null, experiment: photos-kl}
""")


SPECS = sorted(specs_below(ProductionSpec, specs_below(SearchSpec, {Range, Choices})), key=lambda kind: kind.__name__)


def read(text: str) -> Any:
    """A value as it is read from a file; the text itself where YAML refuses it, which has its own message."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


@pytest.mark.parametrize("spec_type", SPECS, ids=lambda kind: kind.__name__)
def test_no_message_of_a_field_speaks_of_python(spec_type: type[BaseModel]) -> None:
    for name in spec_type.model_fields:
        for text in ODD:
            try:
                spec_type.model_validate({name: read(text)})
            except ValidationError as refusal:
                rules = [rule for location, rule in problems(spec_type, refusal) if location[:1] == (name,)]
                # Quoted values of the file may be any word.
                wrong = [rule for rule in rules if FOREIGN.search(re.sub(r"got .*|'[^']*'", "", rule))]
                assert wrong == [], f"{name}: {text}"
                assert all("\n" not in rule and len(rule) < 600 for rule in rules), f"{name}: {text}"


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def written(place: tuple[Any, ...], text: str) -> str:
    """The good file with another value at one place."""
    document = yaml.safe_load(yaml.safe_dump(GOOD))
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = "PLACEHOLDER"
    return yaml.safe_dump(document, sort_keys=False).replace("PLACEHOLDER", text)


@pytest.mark.parametrize("place", list(places(GOOD)), ids=lambda place: ".".join(map(str, place)))
def test_every_message_has_its_place_and_no_other_error_gets_out(place: tuple[Any, ...], tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    for text in ODD:
        file.write_text(written(place, text))
        try:
            load_search(file)
        except SpecError as error:
            for problem in error.problems:
                assert re.match(rf"{re.escape(str(file))}:\d+: \S", problem), f"{place} {text}: {problem}"
                assert not FOREIGN.search(re.sub(r"got .*|'[^']*'", "", problem)), f"{place} {text}: {problem}"
        except FtaeError as error:
            pytest.fail(f"{place} {text}: without a place: {error}")
