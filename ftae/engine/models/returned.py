"""What a user's own module returns, read as the encoding or the reconstruction that it holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ftae.engine.models.autoencoder import Encoding, NoiseFn, Posterior
from ftae.errors import FtaeError

# The names of parts of a result, in dicts, outputs of diffusers and other objects.
_MEAN, _LOGVAR, _STD = ("mean", "mu"), ("logvar", "log_var"), ("stddev",)
_DISTRIBUTION = ("latent_dist", "posterior")
_LATENTS = ("latents", "latent", "z", "z_q", "quantized")
_IMAGES = ("sample", "reconstruction", "reconstructions", "recon", "x_recon", "recon_x", "x_hat", "output")


def encoding_in(result: Any, noise: NoiseFn | None) -> Encoding:
    """The encoding in what ``encode`` returned.

    That is the latents, ``(mean, logvar)``, a distribution, one of these under its name in a dict or another object, or
    in a tuple with nothing but losses and indices.

    Raises:
        FtaeError: it is none of these.
    """
    if _is_float(result):
        return Encoding(result)
    if isinstance(result, Sequence) and not isinstance(result, str):
        return _of_sequence(result, noise)
    mean, logvar, std = (_part(result, names) for names in (_MEAN, _LOGVAR, _STD))
    if _is_float(mean) and (_is_float(logvar) or _is_float(std)):
        return _posterior(mean, logvar if _is_float(logvar) else 2.0 * std.log(), noise)
    for inner in (_part(result, _DISTRIBUTION), _part(result, _LATENTS)):
        if inner is not None and inner is not result:
            return encoding_in(inner, noise)
    raise _no_encoding(result)


def _of_sequence(result: Sequence[Any], noise: NoiseFn | None) -> Encoding:
    if len(result) == 2 and all(map(_is_float, result)) and all(tensor.ndim > 1 for tensor in result):
        return _posterior(result[0], result[1], noise)
    if result and not any(_is_float(other) and other.numel() > 1 for other in result[1:]):
        return encoding_in(result[0], noise)
    raise _no_encoding(result)


def _posterior(mean: Tensor, logvar: Tensor, noise: NoiseFn | None) -> Encoding:
    if mean.shape != logvar.shape:
        raise FtaeError(
            "the model's encode gave a pair, which must be (mean, logvar), two float tensors of one shape, "
            f"got {kind_of(mean)} and {kind_of(logvar)}"
        )
    return Encoding.of(Posterior(mean, logvar), noise)


def _no_encoding(result: Any) -> FtaeError:
    return FtaeError(
        "the model's encode must give a float tensor, (mean, logvar), a distribution, or one of them under a name such "
        f"as {', '.join(('latent_dist', *_LATENTS[:3]))}; got {kind_of(result)}"
    )


def images_in(result: Any, shape: tuple[int, ...], method: str) -> Tensor:
    """The reconstruction in what ``method`` returned: the tensor, the first tensor of images in a tuple, or the one in
    a dict or another object. ``shape``: that of one image.

    Raises:
        FtaeError: there is none, or there are several without a name that tells them apart.
    """
    if isinstance(result, Tensor) and result.is_floating_point():
        return result
    if isinstance(result, Sequence) and not isinstance(result, str):
        found = [part for part in result if _is_float(part) and part.shape[1:] == shape][:1]
    else:
        images = {name: p for name, p in _parts(result).items() if _is_float(p) and p.shape[1:] == shape}
        found = [images[name] for name in _IMAGES if name in images][:1] or list(images.values())
    if len(found) == 1:
        reconstruction: Tensor = found[0]
        return reconstruction
    raise FtaeError(
        f"the model's {method} must give the reconstruction, a float tensor (B, {', '.join(map(str, shape))}), alone, "
        f"first in a tuple, or under a name such as {', '.join(_IMAGES[:3])}; got {kind_of(result)}"
    )


def kind_of(value: Any) -> str:
    """The type of a value, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    return type(value).__name__


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _parts(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else getattr(value, "__dict__", {})


def _part(value: Any, names: tuple[str, ...]) -> Any:
    """The first part of one of these names; None where there is none."""
    if isinstance(value, Mapping):
        return next((value[name] for name in names if name in value), None)
    return next((found for name in names if (found := getattr(value, name, None)) is not None), None)
