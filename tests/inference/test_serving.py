"""An exported model behind MLflow's server, and as ONNX: slow, because each starts or compiles much."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from made_up_search import free_port
from small_models import GENERATORS, MODELS, TRANSLATORS, spec_of

from ftae.engine.models.families import build_model
from ftae.engine.training.export_model import CLASSES
from ftae.engine.training.export_onnx import NEEDED, export_onnx
from ftae.errors import FtaeError

pytestmark = pytest.mark.slow


def test_mlflow_serves_an_export(home: Path) -> None:
    folder, port = home / "exports" / "small", free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # MLflow starts uvicorn by its name
    with subprocess.Popen([*command, "--port", str(port)], env=os.environ | path, start_new_session=True) as server:
        try:
            for _ in range(120):
                try:
                    requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                    break
                except requests.RequestException:
                    assert server.poll() is None
                    time.sleep(1.0)
            request = json.loads((folder / "serving_input_example.json").read_text())
            answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=request, timeout=60)
            assert answer.status_code == 200, answer.text
            [image] = answer.json()["predictions"]
            assert (len(image), len(image[0]), len(image[0][0])) == (1, 16, 16)
            request["params"] = {"method": "paint"}
            answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=request, timeout=60)
            assert answer.status_code == 400
            assert (
                "method must be one of reconstruct, translate, encode, decode, sample, score, got 'paint'"
                in answer.text
            )
        finally:
            os.killpg(server.pid, signal.SIGTERM)


@pytest.mark.parametrize("name", ["mlp_cvae", "conv_vae_adapted", "hierarchical_vae", *TRANSLATORS, *GENERATORS])
def test_onnx_computes_what_pytorch_does(name: str, tmp_path: Path) -> None:
    for package in NEEDED:
        pytest.importorskip(package)
    spec = spec_of(MODELS[name])
    build_model(spec, 2).save(tmp_path / "model")
    (tmp_path / "model" / CLASSES).write_text('["0", "1"]')
    differences = export_onnx(spec, tmp_path / "model", tmp_path)
    assert max(differences.values()) < 1e-5
    graphs = {"translator.onnx"} if name in TRANSLATORS else {"encoder.onnx", "decoder.onnx"}
    graphs |= {"translator_reverse.onnx"} if name == "cyclegan" else set()
    graphs = {"generator.onnx"} if name in GENERATORS else graphs
    assert {path.name for path in tmp_path.glob("*.onnx")} == graphs


def test_a_quantizer_has_no_onnx(tmp_path: Path) -> None:
    spec = spec_of(MODELS["vq_vae"])
    build_model(spec, 2).save(tmp_path / "model")
    with pytest.raises(FtaeError, match="vq_vae cannot be written as ONNX: its quantizer"):
        export_onnx(spec, tmp_path / "model", tmp_path)
