"""A user's own module may raise or give whatever it likes: it is one message, with the type and the place."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftae.engine.models.families import build_model
from ftae.engine.process import check_room
from ftae.engine.sizing.summary import StageSummary, summarize
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import configuration_fails
from ftae.errors import FtaeError, ModelRaised, Reason, TrainingFailed, one_message, raised
from ftae.search.plan import plan
from ftae.search.ray.preflight_tasks import ADVICE
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.search import ProductionSpec
from ftae.user_code import import_attr

NETS = '''
import dataclasses
import sys

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 4, 2, 1))
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1))
    def encode(self, images): return self.encoder(images)
    def decode(self, latents): return self.decoder(latents)

class Stop(BaseException):
    pass

def fail(kind):
    if kind == "assert": assert False, "only 32"
    if kind == "key": return {}["missing"]
    if kind == "zero": return 1 / 0
    if kind == "exit": sys.exit(3)
    if kind == "base": raise Stop("here")
    if kind == "depth": return fail(kind)
    if kind == "memory": raise MemoryError
    if kind == "allocator": return torch.empty(2 ** 46)
    if kind == "shape": return torch.ones(2, 3) @ torch.ones(2, 3)
    if kind == "file": return open("/no/such/file")

class Fails(Net):
    """Raises ``kind`` in the method ``where``."""
    def __init__(self, where, kind):
        super().__init__()
        self.where, self.kind = where, kind
        self.check("init")
    def check(self, where):
        if where == self.where: fail(self.kind)
    def encode(self, images):
        self.check("training" if self.training else "encode")
        return super().encode(images)
    def decode(self, latents):
        self.check("decode")
        return super().decode(latents)
    def state_dict(self, *args, **kwargs):
        self.check("state_dict")
        return super().state_dict(*args, **kwargs)
    def train(self, mode=True):
        self.check("train")
        return super().train(mode)

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context, x): return x.clone()
    @staticmethod
    def backward(context, gradient): raise ValueError("no way back")

class NoWayBack(Net):
    def decode(self, latents): return super().decode(Backward.apply(latents))

class Odd(Net):
    def encode(self, images):
        if not self.training and len(images) == 3: raise IndexError("an odd batch")
        return super().encode(images)

@dataclasses.dataclass
class Said:
    latents: torch.Tensor

class Says(Net):
    """Its encode gives what ``said`` names."""
    def __init__(self, said):
        super().__init__()
        self.said = said
    def encode(self, images):
        z = super().encode(images)
        return {
            "list": [z, z], "triple": (z, z, z), "dict": {"z": z, "extra": z}, "none": None, "dataclass": Said(z),
            "normal": torch.distributions.Normal(z, 1.0), "codes": z.argmax(1), "indices": (z, z.argmax(1)),
            "shapes": (z, z[:, :1]), "flat": z.flatten(),
        }[self.said]

class Gives(Net):
    def __init__(self, given):
        super().__init__()
        self.given = given
    def decode(self, latents):
        x = super().decode(latents)
        return {"tuple": (x, latents), "bytes": x.to(torch.uint8), "none": None, "small": x[:, :, :8]}[self.given]

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, images):
        latents = self.net.encode(images)
        return self.net.decode(latents), latents

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(1, 1, 3, padding=1)
    def encode(self, images): return self.encoder(images)

class Nothing(nn.Module):
    def forward(self, images): return images

class Weights(Net):
    """Its weights are of the kind that ``what`` names."""
    def __init__(self, what):
        super().__init__()
        first = self.encoder[0]
        if what == "sparse": self.table = nn.Parameter(torch.eye(3).to_sparse())
        elif what == "complex": self.table = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        elif what == "lazy": self.encoder[0] = nn.LazyConv2d(4, 4, 2, 1)
        elif what == "meta": self.to("meta")
        elif what == "buffer": self.register_buffer("mask", torch.ones(3, device="meta"))
        elif what == "wide": self.register_buffer("mask", torch.ones(3, dtype=torch.complex128))
        elif what == "shared": self.decoder[0].weight = self.encoder[2].weight
        elif what == "frozen": self.requires_grad_(False)
        else: self.to(getattr(torch, what))

class Extra(Net):
    def get_extra_state(self): return {"v": 1}
    def set_extra_state(self, state): pass

built = Net()
text = "Net"

def gives_text(): return "a string"
'''
HERE = "nets_that_fail"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, whose modules are forgotten afterwards."""
    (tmp_path / f"{HERE}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if (Path(getattr(sys.modules[name], "__file__", None) or "/")).is_relative_to(tmp_path):
            del sys.modules[name]


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(NETS.splitlines(), start=1) if text in line)


def spec_of(attr: str, kwargs: dict[str, Any] | None = None, **changes: Any) -> FinetuneSpec:
    model = {"family": f"{HERE}:{attr}", "kwargs": kwargs or {}, "image_range": [0, 1]}
    fields: dict[str, Any] = {
        "model": model | changes.pop("model", {}),
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 2,
        "num_evals": 1,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def message_of(action: Any) -> str:
    """Of the one error that a user sees."""
    with pytest.raises(FtaeError) as caught:
        action()
    assert type(caught.value) is FtaeError
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------ what it raises


KINDS = {
    "assert": ("AssertionError: only 32", 'assert False, "only 32"'),
    "key": ("KeyError: 'missing'", '["missing"]'),
    "zero": ("ZeroDivisionError: division by zero", "1 / 0"),
    "exit": ("SystemExit: 3", "sys.exit(3)"),
    "base": ("Stop: here", 'Stop("here")'),
    "depth": ("RecursionError: maximum recursion depth exceeded", "return fail(kind)"),
    "memory": ("MemoryError", "raise MemoryError"),
    "allocator": ("RuntimeError: 281,475 GB of memory cannot be allocated", "torch.empty"),
    "shape": ("RuntimeError: mm: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", "torch.ones(2, 3)"),
    "file": ("FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'", "/no/such/file"),
}
PLACES = {
    "init": f"{HERE}:Fails cannot be built with model.kwargs",
    "encode": "the model cannot take images of shape (1, 16, 16): ",
    "decode": "the model cannot take images of shape (1, 16, 16): ",
    "state_dict": f"{HERE}:Fails cannot be used: ",
    "train": f"{HERE}:Fails cannot be used: ",
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_raises_is_one_message_with_the_place(kind: str, where: str, home: Path) -> None:
    spec = spec_of("Fails", {"where": where, "kind": kind})
    text, line = KINDS[kind]
    out_of_memory = kind in ("memory", "allocator")
    message = message_of(lambda: summarize(spec, None))
    assert message.startswith(PLACES[where])
    assert f"{text} ({HERE}.py:{line_of(line)})" in message or kind == "depth"
    assert text in message
    assert re.search(rf" \({HERE}\.py:\d+\)$", message)
    if out_of_memory:
        with pytest.raises(TrainingFailed, match=r"^out of memory at step 0$"):
            next(finetune(spec, home / "run"))
    else:
        assert message_of(lambda: next(finetune(spec, home / "run"))) == message


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"exit", "file"}))
def test_what_it_raises_in_a_step_is_the_configurations_fault(kind: str, home: Path) -> None:
    spec = spec_of("Fails", {"where": "training", "kind": kind})
    summarize(spec, None)
    run = finetune(spec, home / "run")
    assert next(run).step == 0
    with pytest.raises(TrainingFailed) as caught:
        next(run)
    text, line = KINDS[kind]
    assert caught.value.step == 0
    if kind in ("memory", "allocator"):
        assert caught.value.reason == Reason.OUT_OF_MEMORY
    elif kind == "depth":
        assert caught.value.reason.startswith(f"raised {text}")
    else:
        assert str(caught.value) == f"raised {text} ({HERE}.py:{line_of(line)}) at step 0"


def test_files_that_fail_in_a_step_are_the_machines_fault(home: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(finetune(spec_of("Fails", {"where": "training", "kind": "file"}), home / "run"))


def test_a_model_without_a_way_back_is_the_configurations_fault(home: Path) -> None:
    summarize(spec_of("NoWayBack"), None)
    place = f"({HERE}.py:{line_of('no way back')})"
    with pytest.raises(TrainingFailed, match=re.escape(f"raised ValueError: no way back {place} at step 0")):
        list(finetune(spec_of("NoWayBack"), home / "run"))


def test_a_batch_that_only_an_evaluation_has_is_the_configurations_fault(home: Path) -> None:
    spec = spec_of("Odd", batch_size=3)
    summarize(spec, None)
    with pytest.raises(TrainingFailed, match=r"^raised IndexError: an odd batch \(.*\) at step 0$"):
        next(finetune(spec, home / "run"))


def test_what_the_consumer_throws_in_is_not_the_models(home: Path) -> None:
    run = finetune(spec_of("Net"), home / "run")
    next(run)
    with pytest.raises(ValueError, match=r"^the consumer's own$"):
        run.throw(ValueError("the consumer's own"))


@pytest.mark.parametrize(
    "fault",
    [
        OSError(5, "Input/output error"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        torch.distributed.DistNetworkError("the peer is gone"),
        KeyboardInterrupt(),
        SystemExit(1),
        FtaeError("the images have changed"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_faults_of_the_machine_stay_what_they_are(fault: BaseException) -> None:
    with pytest.raises(type(fault)) as caught, configuration_fails(step=lambda: 3):
        raise fault
    assert caught.value is fault


# ----------------------------------------------------------------------------------- what it gives


GIVES = "the model's encode must give a float tensor or (mean, logvar), got "
WRONG = [
    ("Says", {"said": "triple"}, f"{GIVES}a tuple of 3"),
    ("Says", {"said": "dict"}, f"{GIVES}a dict of z, extra"),
    ("Says", {"said": "none"}, f"{GIVES}NoneType"),
    ("Says", {"said": "dataclass"}, f"{GIVES}Said"),
    ("Says", {"said": "normal"}, f"{GIVES}Normal"),
    ("Says", {"said": "codes"}, f"{GIVES}int64 (1, 4, 4)"),
    ("Says", {"said": "indices"}, "a pair, which must be (mean, logvar), two float tensors of one shape, got float32"),
    ("Says", {"said": "shapes"}, "of one shape, got float32 (1, 2, 4, 4) and float32 (1, 1, 4, 4)"),
    ("Gives", {"given": "tuple"}, "decode must give the reconstruction alone, a float tensor, got a tuple of 2"),
    (
        "Gives",
        {"given": "bytes"},
        "decode must give the reconstruction alone, a float tensor, got uint8 (1, 1, 16, 16)",
    ),
    ("Gives", {"given": "none"}, "decode must give the reconstruction alone, a float tensor, got NoneType"),
    ("Gives", {"given": "small"}, "the model gives (1, 8, 16) for images of (1, 16, 16)"),
    ("Whole", {}, "the model's forward must give the reconstruction alone, a float tensor, got a tuple of 2"),
    ("Half", {}, "Half must have encode and decode, or forward; it has no decode"),
    ("Nothing", {}, "Nothing has no parameters: there is nothing to train"),
    ("Weights", {"what": "float64"}, "encoder.0.weight is float64; ftae trains float32: call float() on the module"),
    ("Weights", {"what": "float16"}, "encoder.0.weight is float16; ftae trains float32"),
    ("Weights", {"what": "bfloat16"}, "encoder.0.weight is bfloat16; ftae trains float32"),
    ("Weights", {"what": "complex"}, "table is complex64; ftae trains float32"),
    ("Weights", {"what": "sparse"}, "table is a sparse_coo tensor; ftae takes dense ones"),
    ("Weights", {"what": "lazy"}, "encoder.0.weight is not initialised: give the lazy layer its size"),
    ("Weights", {"what": "meta"}, "encoder.0.weight has no values (it is on the meta device)"),
    ("Weights", {"what": "buffer"}, "mask has no values (it is on the meta device)"),
    ("Weights", {"what": "wide"}, "mask is complex128, which safetensors cannot hold"),
    ("Weights", {"what": "shared"}, "encoder.2.weight is in encoder.2 and decoder.0: only one may hold it"),
    ("Weights", {"what": "frozen"}, "nothing is left to train: the module itself has frozen all its parameters"),
    ("Extra", {}, "its state_dict holds _extra_state, a dict of v; ftae saves tensors alone"),
    ("Net", {"width": 3}, "cannot be built with model.kwargs {'width': 3}: TypeError: "),
    ("built", {}, "built is a module that is built already; name the class or function that builds it"),
    ("text", {}, "text cannot be built: TypeError: 'str' object is not callable"),
    ("gives_text", {}, "must return a torch.nn.Module, got str"),
    ("Nett", {}, f"'{HERE}' has no attribute 'Nett', did you mean 'Net'?"),
]


@pytest.mark.parametrize(("attr", "kwargs", "expected"), WRONG)
def test_what_cannot_be_used_is_one_message(attr: str, kwargs: dict[str, Any], expected: str, home: Path) -> None:
    spec = spec_of(attr, kwargs)
    message = message_of(lambda: summarize(spec, None))
    assert expected in message
    assert message_of(lambda: next(finetune(spec, home / "run"))) == message


def test_latents_without_a_batch_are_refused() -> None:
    spec = spec_of("Says", {"said": "flat"}, losses={"mse": 1.0})
    assert "cannot take images" in message_of(lambda: summarize(spec, None))  # the decoder was the first to see it


def test_a_list_of_two_is_a_posterior() -> None:
    model = build_model(spec_of("Says", {"said": "list"}), None)
    assert model.encode(torch.zeros(1, 1, 16, 16)).posterior is not None


def test_a_model_that_raises_in_use_is_named(home: Path) -> None:
    model = build_model(spec_of("Odd"), None)
    with pytest.raises(ModelRaised) as caught:
        model.encode(torch.zeros(3, 1, 16, 16))
    place = f"({HERE}.py:{line_of('an odd batch')})"
    assert str(caught.value) == f"encode of {HERE}:Odd raised: IndexError: an odd batch {place}"


# ------------------------------------------------------------------------------------- its import


IMPORTS = {
    "1/0": "ZeroDivisionError: division by zero (boom.py:1)",
    "import math\nmath.no_such_name": "AttributeError: module 'math' has no attribute 'no_such_name' (boom.py:2)",
    "import no_such_dependency": "ModuleNotFoundError: No module named 'no_such_dependency' (boom.py:1)",
    "from math import no_such_name": "ImportError: cannot import name 'no_such_name' from 'math'",
    "x = (": "SyntaxError: '(' was never closed (boom.py:1)",
    "raise SystemExit": "SystemExit (boom.py:1)",
    "class Stop(BaseException): pass\nraise Stop('now')": "Stop: now (boom.py:2)",
    "def f(): return f()\nf()": "RecursionError: maximum recursion depth exceeded",
    "assert 0": "AssertionError (boom.py:1)",
    "open('/no/such/file')": "FileNotFoundError: [Errno 2]",
    "def __getattr__(name): return {}[name]": "KeyError: 'Net' (boom.py:1)",
}


@pytest.mark.parametrize("code", IMPORTS)
def test_an_import_that_fails_is_one_message(code: str, home: Path) -> None:
    (home / "boom.py").write_text(code)
    message = message_of(lambda: import_attr("boom:Net"))
    assert message.startswith(f"cannot import boom: {IMPORTS[code]}")


def test_the_place_is_in_the_users_file_that_led_there(home: Path) -> None:
    (home / "layers.py").write_text("import torch\ndef layer(): return torch.nn.Conv2d(1, 2, -3)\n")
    (home / "nets_of_layers.py").write_text("import layers\ndef Net(): return layers.layer()\n")
    spec = spec_of("Net", model={"family": "nets_of_layers:Net"})
    assert message_of(lambda: build_model(spec, None)).endswith("(layers.py:2)")


def test_a_module_that_was_installed_has_a_place_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = home / "site-packages" / "installed_nets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("import torch\n\ndef Net():\n    return torch.nn.Conv2d(1, 2, -3)\n")
    monkeypatch.syspath_prepend(home / "site-packages")
    spec = spec_of("Net", model={"family": "installed_nets.models:Net"})
    assert message_of(lambda: build_model(spec, None)).endswith("(models.py:4)")


def test_a_long_or_empty_message_is_told_in_one_line() -> None:
    assert raised(KeyError()) == "KeyError"
    assert raised(RuntimeError("Error(s) in loading:\n\tMissing key a\n\tMissing key b")) == (
        "RuntimeError: Error(s) in loading: Missing key a"
    )
    assert len(raised(ValueError("x" * 1000))) < 330


def test_errors_of_ftae_are_told_as_they_are() -> None:
    with pytest.raises(FtaeError, match=r"^lower the rate$"), one_message("the model cannot be built"):
        raise FtaeError("lower the rate")


# ------------------------------------------------------------------------- its parameters and stages


STAGED = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.first, self.last = nn.Conv2d(1, 4, 4, 2, 1), nn.Conv2d(4, 2, 4, 2, 1)
    def forward(self, images): return self.last(self.first(images) + self.position)

class Net(nn.Module):
    def __init__(self, frozen=(), detached=False):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.encoder = Tokens()
        self.code = nn.Conv2d(2, 2, 1)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2, 4, 4, 2, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1))
        self.detached = detached
        for name in frozen:
            part = self.get_parameter(name) if name in dict(self.named_parameters()) else self.get_submodule(name)
            part.requires_grad_(False)
    def encode(self, images): return self.code(self.encoder(images))
    def decode(self, latents):
        return self.decoder(latents.detach() if self.detached else latents) * self.gain + self.shift
"""
STAGES = [
    ("gain", "encoder"),
    ("shift", "encoder"),
    ("encoder.position", "encoder"),
    ("encoder.first", "encoder"),
    ("encoder.last", "encoder"),
    ("code", "bottleneck"),
    ("decoder.0", "decoder"),
    ("decoder.1", "decoder"),
]


def staged(home: Path, kwargs: dict[str, Any] | None = None, **changes: Any) -> FinetuneSpec:
    (home / "staged_nets.py").write_text(STAGED)
    model = {"family": "staged_nets:Net"} | changes.pop("model", {})
    return spec_of("Net", kwargs, model=model, **changes)


def summary(spec: FinetuneSpec) -> dict[str, StageSummary]:
    return {stage.name: stage for stage in summarize(spec, None).stages}


def test_parameters_in_no_child_are_stages_of_their_own(home: Path) -> None:
    spec = staged(home, freeze=["gain", "encoder.position"], optimizer={"lr": 1.0, "lr_multipliers": {"shift": 0.5}})
    model = build_model(spec, None)
    assert [(stage.name, stage.group) for stage in model.stages] == STAGES
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    *_, last = finetune(spec, home / "run")
    assert last.checkpoint is not None
    after = load_file(home / "run" / last.checkpoint / "model.safetensors")
    still = {name for name, tensor in before.items() if torch.equal(after[f"net.{name}"], tensor)}
    assert still == {"gain", "encoder.position"}


def test_parameters_can_be_named_as_stages(home: Path) -> None:
    named = {"encoder": ["encoder"], "bottleneck": ["code"], "decoder": ["decoder", "gain", "shift"]}
    stages = summary(staged(home, model={"stages": named}))
    assert [(s.name, s.group, s.num_parameters) for s in stages.values()][-2:] == [
        ("gain", "decoder", 1),
        ("shift", "decoder", 1),
    ]
    missing = staged(home, model={"stages": {**named, "decoder": ["decoder", "gain"]}})
    assert "shift is in none: name it, or the sub-module that holds it" in message_of(lambda: summary(missing))
    unknown = staged(home, model={"stages": {**named, "decoder": ["decoder", "gian"]}})
    assert "no sub-module or parameter 'gian', did you mean 'gain'?" in message_of(lambda: summary(unknown))


def test_what_the_module_has_frozen_is_not_called_trained(home: Path) -> None:
    spec = staged(home, {"frozen": ["encoder", "decoder.0.bias"]})
    found = summarize(spec, None)
    stages = {stage.name: stage for stage in found.stages}
    assert not any(stages[name].trainable for name in ("encoder.position", "encoder.first", "encoder.last"))
    assert stages["decoder.0"].num_parameters - stages["decoder.0"].num_trainable == 4
    assert found.num_parameters - found.num_trainable == 256 + 68 + 130 + 4
    lines = plan(ProductionSpec(name="p", finetune=spec))
    assert any(re.search(r"encoder\.first .* frozen by the module itself$", line) for line in lines)
    assert any(re.search(r"decoder\.0 .* trained, 4 of them frozen by the module itself$", line) for line in lines)
    model = build_model(spec, None)
    assert {stage.name for stage in model.trainable_stages()} == {"gain", "shift", "code", "decoder.0", "decoder.1"}


def test_a_multiplier_for_what_the_module_has_frozen_is_refused(home: Path) -> None:
    optimizer = {"lr": 1e-3, "lr_multipliers": {"encoder.*": 0.1}}
    summarize(staged(home, optimizer=optimizer), None)
    summarize(staged(home, optimizer=optimizer, freeze=["encoder"]), None)  # a search may freeze less
    message = message_of(lambda: summarize(staged(home, {"frozen": ["encoder"]}, optimizer=optimizer), None))
    assert "'encoder.*' has no effect: the module itself has frozen all that it matches" in message


def test_stages_that_no_gradient_reaches_are_named_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(finetune(staged(home, {"detached": True}, max_steps=4, num_evals=2), home / "run"))
    told = [record.getMessage() for record in caplog.records if "no gradient" in record.getMessage()]
    unreached = "encoder.position, encoder.first, encoder.last, code"
    assert told == [f"no gradient reaches {unreached}: the losses of the first step do not depend on it"]
    caplog.clear()
    list(finetune(staged(home), home / "other"))
    assert caplog.records == []


# ----------------------------------------------------------------------------------- reasons and sizes


def test_there_is_advice_for_every_reason() -> None:
    assert ADVICE.keys() == set(Reason)


def test_a_model_that_this_machine_cannot_hold_is_refused_before_it_is_built() -> None:
    spec = spec_of("Net").model_dump() | {"model": {"family": "conv_ae", "channels": 65536}}
    message = message_of(lambda: summarize(FinetuneSpec.model_validate(spec), None))
    assert re.fullmatch(
        r"the model cannot be built with channels 65536: its weights take 1\.\d+ TB, this machine has [\d.]+ GB",
        message,
    )


def test_the_check_of_room_draws_nothing() -> None:
    before = torch.get_rng_state()
    check_room(lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Conv2d(1, 2, 3)), {})
    assert torch.equal(torch.get_rng_state(), before)
