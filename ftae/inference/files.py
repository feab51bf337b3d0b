"""A tuned model for users of the Python API: arrays, and folders and files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ftae.engine.training.loop import process_state_kept
from ftae.inference import array_files, evaluate, folders, interpolation, sampling, synthesis
from ftae.inference.arrays import ArrayModel
from ftae.inference.evaluate import Evaluation
from ftae.inference.model import TunedModel
from ftae.user_code import code_allowed


class Model(ArrayModel):
    """A tuned model, loaded by ``ftae.load_model``: an autoencoder, a translator, or a generator.

    Images are arrays of shape (N, H, W, C). H and W are the ``data.resolution`` of the model's run, C is 1 or 3 as its
    ``data.color`` says. Given images are uint8 in [0, 255] or floats in [0, 1]; returned images are float32 in [0, 1].
    Where ``data.intensity`` says what values mean, given whole numbers are values as in the files.
    A model of arrays takes and gives samples as in its file: with the axes of ``data.layout``, and with values of their
    own instead of such in [0, 1], of any real type. Returned ones are float32.
    Latents are float32 of shape (N, \\*latent_shape).

    A model conditioned on labels takes ``labels``: N class names, of ``class_names``. Other models take none.

    Examples:
        >>> model = ftae.load_model("exports/quickstart")
        >>> latents = model.encode(images)
        >>> halfway = model.decode((latents[:1] + latents[1:2]) / 2)

    Attributes:
        description: what the model is, in a few words.
    """

    def __init__(self, tuned: TunedModel, description: str, *, allow_code: bool = False) -> None:
        super().__init__(tuned, description)
        self._allow_code = allow_code

    def evaluate(
        self,
        folder: Path | str | None = None,
        metrics: Sequence[str] | None = None,
        *,
        out: Path | str | None = None,
        heatmaps: int = 0,
        notify: Callable[[str], None] | None = None,
    ) -> Evaluation:
        """Measure the model, by default with the metrics and on the validation images of its run.

        On the same machine the result has the digits of the run's own report.

        Args:
            folder: other images to measure on.
            metrics: names of metrics, such as ``["psnr", "ssim"]``.
            out: a folder for ``scores.csv`` with the scores of each image.
            heatmaps: the number of worst images to draw in ``heatmaps.png`` in ``out``.
            notify: receives lines about images that are skipped and metrics that cannot be measured.

        Returns:
            An object with ``metrics``, a dict from name to value, and ``num_images``.

        Raises:
            FtaeError: there are no images, or a metric cannot be measured on them.
        """
        with code_allowed(self._allow_code), process_state_kept():  # metrics may load further networks
            return evaluate.evaluate_model(
                self._tuned,
                None if folder is None else str(folder),
                metrics,
                out=None if out is None else Path(out),
                heatmaps=heatmaps,
                notify=notify or _ignore,
            )

    def reconstruct_folder(
        self,
        folder: Path | str,
        out: Path | str,
        *,
        overwrite: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> int:
        """Write the reconstruction of every image below ``folder`` to ``out``, and a sheet of some of them.

        ``folder`` may also be an archive or the place of shards, such as ``s3://bucket/test-*.tar``.
        Files are PNG, or TIFF with values as in the files of training. Where the model was trained on pages, slices or
        tiles, all those of a file are run, and are one file again: a TIFF with pages, a volume, or an image of the size
        of the file. A model of arrays takes a file of them instead, and writes an ``.npy`` in the original values.

        Returns the number of files, or of samples of an array. Raises FtaeError if no image can be read, or ``out`` is
        not empty and ``overwrite`` is false.
        """
        self._check_use("reconstruct")
        notify = notify or _ignore
        if self.spec.data.of_floats:
            return array_files.run_array(self._tuned, Path(folder), Path(out), overwrite=overwrite, notify=notify)
        return folders.run_folder(self._tuned, folder, Path(out), overwrite=overwrite, notify=notify)

    def translate_folder(
        self,
        folder: Path | str,
        out: Path | str,
        *,
        reverse: bool = False,
        overwrite: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> int:
        """Write the translation of every image below ``folder`` to ``out``, and a sheet of some of them.

        ``folder`` as for ``reconstruct_folder``, ``reverse`` as for ``translate``. Returns the number of images. Raises
        FtaeError as ``reconstruct_folder``, or if the model reconstructs its images, or has no way back.
        """
        self._check_use("translate")
        notify = notify or _ignore
        return folders.run_folder(self._tuned, folder, Path(out), overwrite=overwrite, notify=notify, reverse=reverse)

    def interpolate_files(
        self,
        first: Path | str,
        last: Path | str,
        out: Path | str,
        *,
        frames: int = 12,
        spherical: bool = False,
        label: str | None = None,
        overwrite: bool = False,
        notify: Callable[[str], None] | None = None,
    ) -> str:
        """Interpolate between two image files; writes ``sheet.png`` and ``frames.gif`` to ``out``.

        Returns a description of the images. Raises FtaeError if an image cannot be read, or ``out`` is not empty and
        ``overwrite`` is false.
        """
        return interpolation.interpolate_files(
            self._tuned,
            (Path(first), Path(last)),
            Path(out),
            frames=frames,
            spherical=spherical,
            label=label,
            overwrite=overwrite,
            notify=notify or _ignore,
        )

    def sample_files(
        self,
        n: int,
        out: Path | str,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        truncation: float | None = None,
        label: str | None = None,
        fitted: bool = False,
        overwrite: bool = False,
    ) -> tuple[int, str]:
        """Write sampled images to ``out``, and all of them in ``sheet.png``; see ``sample``.

        They are PNG, or TIFF with values as in the files of training. Samples of a model of arrays are ``samples.npy``.

        ``seeds``: the seeds of a generator, one an image, in place of ``n`` of them from ``seed`` on. Returns the
        number of images and a description of where their latents come from.
        """
        return sampling.sample_files(
            self._tuned,
            Path(out),
            n,
            label=label,
            fitted=fitted,
            seed=seed,
            seeds=seeds,
            truncation=truncation,
            overwrite=overwrite,
        )

    def interpolate_seeds(
        self,
        first: int,
        last: int,
        out: Path | str,
        *,
        frames: int = 12,
        spherical: bool = False,
        truncation: float | None = None,
        overwrite: bool = False,
    ) -> str:
        """Interpolate between two samples of a generator; writes ``sheet.png`` and ``frames.gif`` to ``out``.

        The path is linear between styles, or ``spherical`` between noises. Returns a description of the images. Raises
        FtaeError if the model is no generator, or ``out`` is not empty and ``overwrite`` is false.
        """
        return synthesis.between_seeds_files(
            self._tuned,
            (first, last),
            Path(out),
            frames=frames,
            spherical=spherical,
            truncation=truncation,
            overwrite=overwrite,
        )


def _ignore(line: str) -> None:
    """The default of ``notify``."""
