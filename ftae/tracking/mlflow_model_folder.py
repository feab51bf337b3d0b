"""Makes a folder with a tuned model one that MLflow loads: ``MLmodel``, requirements, and the source of this package.

Nothing is copied but the source: the weights stay where they are, in the folder itself. There is no pickle, either; the
flavor is a loader module, ``ftae.inference.pyfunc``.
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ftae
from ftae.specs.finetune.models import AnyModel, DiffusersModel, Quantized
from ftae.specs.finetune.run import FinetuneSpec

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "ftae.inference.pyfunc"
CLASSES = "model/classes.json"

# What a model computes with, by the name in the index; the family brings the rest.
REQUIRED = ("numpy", "torch", "safetensors", "pydantic", "pyyaml", "pillow", "filelock")
FOR_DIFFUSERS, FOR_CODES = ("diffusers", "huggingface_hub"), ("vector-quantize-pytorch",)


def make_mlflow_model(folder: Path, spec: FinetuneSpec) -> None:
    """Add to ``folder``, which has ``production.yaml`` and ``model/``, what makes it an MLflow model.

    That is the flavor ``python_function`` with signature, input example and exact requirements. Files of an earlier
    call are replaced.
    """
    from ftae.tracking.mlflow_server import quiet_mlflow  # takes seconds, and a served model has no use for it

    with quiet_mlflow({"MLFLOW_UV_AUTO_DETECT": "false"}):
        import mlflow.pyfunc

        classes = _classes(folder) if spec.model.needs_labels else []
        with tempfile.TemporaryDirectory(dir=folder, prefix=".mlflow") as parts:
            mlflow.pyfunc.save_model(
                parts,
                loader_module=LOADER,
                code_paths=[str(Path(ftae.__file__).parent)],
                signature=_signature(spec, with_labels=bool(classes)),
                input_example=(_example(spec), {"labels": classes[:1]}) if classes else _example(spec),
                pip_requirements=requirements(spec.model),
            )
            shutil.rmtree(folder / "code", ignore_errors=True)
            for part in Path(parts).iterdir():
                part.rename(folder / part.name)


def requirements(model: AnyModel) -> list[str]:
    """The packages that the model computes with, each in the version that is installed here."""
    names = [*REQUIRED]
    if isinstance(model, DiffusersModel):
        names += FOR_DIFFUSERS
    if isinstance(model, Quantized):
        names += FOR_CODES
    # A local part (2.15.0+cu130) names a build that the index does not have.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _signature(spec: FinetuneSpec, *, with_labels: bool) -> "ModelSignature":
    """Four axes of any length in, because latents are an input as well; images out. The model checks its own shape."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

    float32 = np.dtype(np.float32)
    params = [ParamSpec("method", "string", spec.use), ParamSpec("n", "long", 1), ParamSpec("seed", "long", 0)]
    if spec.model.both_ways:
        params.append(ParamSpec("reverse", "boolean", False))
    if with_labels:
        params.append(ParamSpec("labels", "string", [], shape=(-1,)))
    return ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, -1, -1, -1))]),
        outputs=Schema([TensorSpec(float32, (-1, *spec.data.shape))]),
        params=ParamSchema(params),
    )


def _example(spec: FinetuneSpec) -> Any:
    """One image, float32 (1, C, H, W): a ramp of grey in steps of 1/8, which JSON writes with few digits."""
    width = spec.data.size[1]
    row = np.arange(width) * 9 // width / np.float32(8)
    return np.broadcast_to(row.astype(np.float32), (1, *spec.data.shape)).copy()


def _classes(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / CLASSES).read_text())
    return names
