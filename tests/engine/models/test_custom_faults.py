"""Whatever a user's own module raises or returns is one message, with the type and the place."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec

from ftae.engine.models.families import build_model
from ftae.engine.sizing import summarize
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import configuration_fails
from ftae.errors import FtaeError, ModelRaised, Reason, TrainingFailed, one_message, raised
from ftae.search.ray.preflight_tasks import ADVICE
from ftae.specs.finetune.run import FinetuneSpec
from ftae.user_code import import_attr

NETS = '''
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

class Encodes(Net):
    """The value that encode returns is named by ``kind``."""
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
    def encode(self, images):
        z = super().encode(images)
        return {
            "list": [z, z], "triple": (z, z, z), "dict": {"extra": z}, "none": None, "codes": z.argmax(1),
            "shapes": (z, z[:, :1]), "flat": z.flatten(),
        }[self.kind]

class Decodes(Net):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
    def decode(self, latents):
        x = super().decode(latents)
        return {
            "tuple": (latents, 3), "two": {"a": x, "b": x}, "bytes": x.to(torch.uint8), "none": None,
            "small": x[:, :, :8],
        }[self.kind]

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def forward(self, images):
        latents = self.net.encode(images)
        return latents, self.net.decode(latents) > 0

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
    fields = {"model": model | changes.pop("model", {}), "losses": {"mse": 1.0}, "metrics": ["mse"]}
    return run_spec(**fields | {"max_steps": 2, "num_evals": 1, "num_threads": 1} | changes)


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
MESSAGES = {
    "init": f"{HERE}:Fails cannot be built with model.kwargs",
    "encode": "the model cannot take images of shape (1, 16, 16): ",
    "decode": "the model cannot take images of shape (1, 16, 16): ",
    "state_dict": f"{HERE}:Fails cannot be used: ",
    "train": f"{HERE}:Fails cannot be used: ",
}


@pytest.mark.parametrize("where", MESSAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_message_with_the_place(kind: str, where: str, home: Path) -> None:
    spec = spec_of("Fails", {"where": where, "kind": kind})
    text, line = KINDS[kind]
    out_of_memory = kind in ("memory", "allocator")
    message = message_of(lambda: summarize(spec, None))
    assert message.startswith(MESSAGES[where])
    assert f"{text} ({HERE}.py:{line_of(line)})" in message or kind == "depth"
    assert text in message
    assert re.search(rf" \({HERE}\.py:\d+\)$", message)
    if out_of_memory:
        with pytest.raises(TrainingFailed, match=r"^out of memory at step 0$"):
            next(finetune(spec, home / "run"))
    else:
        assert message_of(lambda: next(finetune(spec, home / "run"))) == message


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"exit", "file"}))
def test_an_error_in_a_step_is_a_fault_of_the_configuration(kind: str, home: Path) -> None:
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


def test_a_file_error_in_a_step_is_a_fault_of_the_machine(home: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(finetune(spec_of("Fails", {"where": "training", "kind": "file"}), home / "run"))


def test_an_error_in_the_backward_pass_is_a_fault_of_the_configuration(home: Path) -> None:
    summarize(spec_of("NoWayBack"), None)
    place = f"({HERE}.py:{line_of('no way back')})"
    with pytest.raises(TrainingFailed, match=re.escape(f"raised ValueError: no way back {place} at step 0")):
        list(finetune(spec_of("NoWayBack"), home / "run"))


def test_an_error_in_an_evaluation_is_a_fault_of_the_configuration(home: Path) -> None:
    spec = spec_of("Odd", batch_size=3)
    summarize(spec, None)
    with pytest.raises(TrainingFailed, match=r"^raised IndexError: an odd batch \(.*\) at step 0$"):
        next(finetune(spec, home / "run"))


def test_an_error_that_the_consumer_throws_in_is_passed_on(home: Path) -> None:
    run = finetune(spec_of("Net"), home / "run")
    next(run)
    with pytest.raises(ValueError, match=r"^thrown by the consumer$"):
        run.throw(ValueError("thrown by the consumer"))


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
def test_faults_of_the_machine_are_passed_on(fault: BaseException) -> None:
    with pytest.raises(type(fault)) as caught, configuration_fails(step=lambda: 3):
        raise fault
    assert caught.value is fault


def test_there_is_advice_for_every_reason() -> None:
    assert ADVICE.keys() == set(Reason)


# ---------------------------------------------------------------------------------- what it returns


WRONG_ENCODE = (
    "the model's encode must give a float tensor, (mean, logvar), a distribution, or one of them under a name"
)
WRONG_DECODE = "must give the reconstruction, a float tensor (B, 1, 16, 16), alone, first in a tuple, or under a name"
WRONG = [
    ("Encodes", {"kind": "triple"}, WRONG_ENCODE),
    ("Encodes", {"kind": "triple"}, "latent_dist, latents, latent, z; got a tuple of 3"),
    ("Encodes", {"kind": "dict"}, "z; got a dict of extra"),
    ("Encodes", {"kind": "none"}, "z; got NoneType"),
    ("Encodes", {"kind": "codes"}, "z; got int64 (1, 4, 4)"),
    ("Encodes", {"kind": "shapes"}, "of one shape, got float32 (1, 2, 4, 4) and float32 (1, 1, 4, 4)"),
    ("Decodes", {"kind": "bytes"}, f"the model's decode {WRONG_DECODE}"),
    ("Decodes", {"kind": "bytes"}, "got uint8 (1, 1, 16, 16)"),
    ("Decodes", {"kind": "tuple"}, "got a tuple of 2"),
    ("Decodes", {"kind": "two"}, "got a dict of a, b"),
    ("Decodes", {"kind": "none"}, "got NoneType"),
    ("Decodes", {"kind": "small"}, "the model gives (1, 8, 16) for images of (1, 16, 16)"),
    ("Whole", {}, f"the model's forward {WRONG_DECODE}"),
    ("Half", {}, "Half must have encode and decode, or forward, or the children encoder and decoder; it has no decode"),
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
def test_a_module_that_cannot_be_used_is_one_message(
    attr: str, kwargs: dict[str, Any], expected: str, home: Path
) -> None:
    spec = spec_of(attr, kwargs)
    message = message_of(lambda: summarize(spec, None))
    assert expected in message
    assert message_of(lambda: next(finetune(spec, home / "run"))) == message


def test_latents_without_a_batch_are_refused() -> None:
    spec = spec_of("Encodes", {"kind": "flat"}, losses={"mse": 1.0})
    assert "cannot take images" in message_of(lambda: summarize(spec, None))  # the decoder was the first to see it


def test_a_list_of_two_is_a_posterior() -> None:
    model = build_model(spec_of("Encodes", {"kind": "list"}), None)
    assert model.encode(torch.zeros(1, 1, 16, 16)).posterior is not None


def test_an_error_in_use_names_the_model(home: Path) -> None:
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


def test_the_place_is_the_line_of_the_user_that_led_to_the_error(home: Path) -> None:
    (home / "layers.py").write_text("import torch\ndef layer(): return torch.nn.Conv2d(1, 2, -3)\n")
    (home / "nets_of_layers.py").write_text("import layers\ndef Net(): return layers.layer()\n")
    spec = spec_of("Net", model={"family": "nets_of_layers:Net"})
    assert message_of(lambda: build_model(spec, None)).endswith("(layers.py:2)")


def test_an_installed_module_has_a_place_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = home / "site-packages" / "installed_nets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("import torch\n\ndef Net():\n    return torch.nn.Conv2d(1, 2, -3)\n")
    monkeypatch.syspath_prepend(home / "site-packages")
    spec = spec_of("Net", model={"family": "installed_nets.models:Net"})
    assert message_of(lambda: build_model(spec, None)).endswith("(models.py:4)")


def test_a_long_or_empty_message_is_one_line() -> None:
    assert raised(KeyError()) == "KeyError"
    assert raised(RuntimeError("Error(s) in loading:\n\tMissing key a\n\tMissing key b")) == (
        "RuntimeError: Error(s) in loading: Missing key a"
    )
    assert len(raised(ValueError("x" * 1000))) < 330


def test_errors_of_ftae_keep_their_message() -> None:
    with pytest.raises(FtaeError, match=r"^lower the rate$"), one_message("the model cannot be built"):
        raise FtaeError("lower the rate")
