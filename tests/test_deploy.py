"""The cluster files, as far as they can be held to account without a cloud: form, references, secrets, addresses."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement

from ftae.cli.main import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
LAUNCHER = [ROOT / "cluster.yaml", DEPLOY / "onprem.yaml"]
KUBERNETES = [*sorted((DEPLOY / "kuberay").iterdir()), DEPLOY / "mlflow" / "kubernetes.yaml"]
COMPOSE = DEPLOY / "mlflow" / "compose.yaml"
IMAGES = [ROOT / "Dockerfile", DEPLOY / "mlflow" / "Dockerfile"]
ENVIRONMENT = DEPLOY / "mlflow" / ".env.example"
FILES = [*LAUNCHER, *KUBERNETES, COMPOSE, *IMAGES, ENVIRONMENT, DEPLOY / "mlflow" / "basic_auth.ini"]
DOCUMENTS = [*FILES, ROOT / "docs" / "cluster.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def the(kind: str) -> dict[str, Any]:
    """The one Kubernetes object of a kind."""
    [found] = [document for path in KUBERNETES for document in documents(path) if document["kind"] == kind]
    return found


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every scalar below ``value``, with the keys that lead to it."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]


def test_every_file_is_looked_at_here() -> None:
    assert {path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env"} <= set(FILES)


# ------------------------------------------------------------------------------------- the cluster launcher


def prepared(path: Path) -> dict[str, Any]:
    """A launcher file as Ray uses it, with its defaults filled in; what Ray refuses fails."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(documents(path)[0])
    validate_config(config)
    return config


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, on itself
@pytest.mark.parametrize("path", LAUNCHER, ids=name_of)
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback(path: Path) -> None:
    from ray.scripts.scripts import start

    config = prepared(path)
    in_container = "--env RAY_AUTH_MODE=token" in config["docker"].get("run_options", [])
    commands = {role: config[f"{role}_start_ray_commands"][-1] for role in ("head", "worker")}
    for command in commands.values():
        assert in_container or "RAY_AUTH_MODE=token" in command
    parsed = {role: start.make_context("start", shlex.split(c.split(" start ")[1])) for role, c in commands.items()}
    assert parsed["head"].params["dashboard_host"] == "127.0.0.1"
    assert parsed["worker"].params["address"] == "$RAY_HEAD_IP:6379"
    # Of the secrets, the head alone has MLflow's in its environment, and both files come from the user's home.
    assert "mlflow.env" in commands["head"]
    assert "mlflow.env" not in commands["worker"]
    assert set(config["file_mounts"].values()) == {"~/.ray/auth_token", "~/.ftae/mlflow.env"}


def test_the_cloud_cluster_grows_from_nothing_on_spot_nodes_first() -> None:
    config = prepared(ROOT / "cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    first = max(workers.values(), key=lambda node: node.get("priority", 0))
    assert first["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    # Ray asks for the better-scoring type: only types of the same size leave the choice to the priority.
    assert len({node["node_config"]["InstanceType"] for node in workers.values()}) == 1
    assert config["provider"]["cache_stopped_nodes"] is False


def test_an_onprem_cluster_has_all_its_nodes_and_none_for_trials_on_the_head() -> None:
    config = prepared(DEPLOY / "onprem.yaml")
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    [node] = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])


# -------------------------------------------------------------------------------------------- Kubernetes


def wrong_fields(value: Any, kind: Any, kinds: dict[str, Any], path: str) -> list[str]:
    """What in ``value`` is not as ``kind`` says (see kubernetes_fields.yaml)."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [e for i, item in enumerate(value) for e in wrong_fields(item, kind[0], kinds, f"{path}[{i}]")]
    if kind in ("str", "int", "bool"):
        return [] if type(value).__name__ == kind else [f"{path}: {value!r} is no {kind}"]
    if not isinstance(value, dict):
        return [f"{path}: not a mapping"]
    if kind == "map":
        return []
    unknown = [f"{path}.{key}: unknown field" for key in value.keys() - kinds[kind].keys()]
    known = [(key, value[key]) for key in value.keys() & kinds[kind].keys()]
    return unknown + [e for key, v in known for e in wrong_fields(v, kinds[kind][key], kinds, f"{path}.{key}")]


@pytest.mark.parametrize("path", KUBERNETES, ids=name_of)
def test_kubernetes_knows_every_field(path: Path) -> None:
    [kinds] = documents(Path(__file__).parent / "kubernetes_fields.yaml")
    for document in documents(path):
        assert wrong_fields(document, document["kind"], kinds, document["kind"]) == []
    broken = documents(path)[0] | {"spce": {}}
    assert wrong_fields(broken, broken["kind"], kinds, "it") == ["it.spce: unknown field"]


def test_the_cluster_of_a_job_is_the_cluster_that_stays() -> None:
    stays, of_job = the("RayCluster")["spec"], the("RayJob")["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"] for cluster in (stays, of_job)]
    # Apart from the search file, which only the job's head has.
    assert pods[1]["volumes"].pop() == {"name": "search", "configMap": {"name": "ftae-search"}}
    assert pods[1]["containers"][0]["volumeMounts"].pop() == {"name": "search", "mountPath": "/search"}
    assert stays == of_job


def test_the_kubernetes_cluster_asks_for_a_token_and_grows_from_nothing() -> None:
    cluster = the("RayCluster")["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ftae-ray-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in cluster["workerGroupSpecs"])
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    for pod in pods:
        assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
        claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
        assert claim == the("PersistentVolumeClaim")["metadata"]["name"]
    assert the("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    # Whoever writes to MLflow has its password, and only they.
    assert [pod["containers"][0].get("envFrom") for pod in pods] == [[{"secretRef": {"name": "ftae-mlflow"}}], None]


def test_mlflow_on_kubernetes_is_open_to_head_pods_alone() -> None:
    pod = the("Deployment")["spec"]["template"]
    labels, [container] = pod["metadata"]["labels"], pod["spec"]["containers"]
    assert the("Service")["spec"]["selector"].items() <= labels.items()
    policy = the("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    [rule] = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"ray.io/node-type": "head"}}}]
    assert "command" not in container, "the image's own command asks for a password"
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow-server"}}]
    hosts = {e["name"]: e["value"] for e in container["env"]}["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow", "mlflow:*"} <= set(hosts)
    assert {f"{host}:*" for host in hosts if ":" not in host} == {host for host in hosts if ":" in host}


# ---------------------------------------------------------------------------------------------- compose


def settings() -> dict[str, str]:
    lines = [line for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_compose_publishes_mlflow_alone_and_on_loopback() -> None:
    [project] = documents(COMPOSE)
    services = project["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"mlflow"}
    assert services["mlflow"]["ports"] == ["${MLFLOW_ADDRESS:-127.0.0.1}:5000:5000"]
    assert settings()["MLFLOW_ADDRESS"] == "127.0.0.1"
    assert {name for name, service in services.items() if "front" in service["networks"]} == {"mlflow"}
    assert project["networks"]["back"] == {"internal": True}
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()
        assert set(service["networks"]) <= project["networks"].keys()
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= project["volumes"].keys()
    hosts = services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"localhost", "localhost:*"} <= set(hosts)
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert variables == settings().keys()
    optional = set(re.findall(r"\$\{(\w+):-", COMPOSE.read_text()))
    assert {name for name, value in settings().items() if value} == optional


def test_docker_takes_the_compose_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    (tmp_path / "env").write_text("".join(f"{name}={value or 'x'}\n" for name, value in settings().items()))
    command = [docker, "compose", "--file", str(COMPOSE), "--env-file", str(tmp_path / "env"), "config", "--quiet"]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})


# --------------------------------------------------------------------------------------------- all of them


def test_every_file_names_the_same_version_of_ray_which_ftae_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [taken] = [r for r in map(Requirement, project["dependencies"]) if r.name == "ray"]
    named = {
        name_of(path): set(re.findall(r"(?:\bray |rayproject/ray:|rayVersion: )(\d+\.\d+)", path.read_text()))
        for path in DOCUMENTS
    }
    [version] = {version for versions in named.values() for version in versions}
    assert version in taken.specifier
    for path in ("cluster.yaml", "deploy/onprem.yaml", "deploy/kuberay/rayjob.yaml", "Dockerfile"):
        assert named[path], path


def test_all_nodes_run_the_image_that_is_built_here() -> None:
    used = {match for path in FILES for match in re.findall(r"ghcr\.io/your-org/[\w:.-]+", path.read_text())}
    for image in used:
        [recipe] = [path for path in IMAGES + KUBERNETES if f"docker build -t {image} " in path.read_text()]
        context = re.search(rf"docker build -t {re.escape(image)} (\S+)", recipe.read_text())
        assert context is not None
        assert (ROOT / context[1] / "Dockerfile").is_file()
    nodes = [documents(ROOT / "cluster.yaml")[0]["docker"]["image"]]
    nodes += [value for path, value in leaves(the("RayCluster")) if path[-1] == "image"]
    assert len(nodes) == 3
    assert len(set(nodes)) == 1


@pytest.mark.parametrize("path", IMAGES, ids=name_of)
def test_what_an_image_copies_is_there(path: Path) -> None:
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("COPY")]
    sources = [word for line in lines for word in line[1:-1] if not word.startswith("--")]
    assert sources
    assert [source for source in sources if not (path.parent / source).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_named_files_exist(path: Path) -> None:
    named = re.findall(r"\b(?:deploy|docs|search_spaces)/[\w./-]*\w", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_nothing_listens_everywhere_without_a_password() -> None:
    wide = {name_of(path) for path in FILES if re.search(r"\b0\.0\.0\.0\b", path.read_text())}
    assert wide == {"deploy/mlflow/Dockerfile"}
    assert '"--app-name", "basic-auth"' in IMAGES[1].read_text()


def test_no_file_holds_a_secret() -> None:
    secret = re.compile(r"password|secret|token|_key\b", re.IGNORECASE)
    plain = []
    for path in [*LAUNCHER, *KUBERNETES, COMPOSE]:
        for keys, value in leaves(documents(path)):
            reference = keys[-1] == "secretName" or str(value).startswith(("${", "~/"))
            if secret.search(keys[-1]) and isinstance(value, str) and not reference:
                plain.append(f"{name_of(path)}: {'.'.join(keys)}")
    assert plain == []
    assert [name for name, value in settings().items() if value] == ["MLFLOW_ADDRESS", "MLFLOW_NAME"]
    assert "admin_password" not in (DEPLOY / "mlflow" / "basic_auth.ini").read_text()


def commands() -> list[tuple[str, str]]:
    """Every ``ftae`` command that the files and their page tell the user to run."""
    line = re.compile(r"^(?:# +)?(?:ray exec \S+ ')?(ftae [a-z][^'\n]*)", re.MULTILINE)
    found = [(name_of(path), command) for path in DOCUMENTS for command in line.findall(path.read_text())]
    return [*found, ("rayjob.yaml", the("RayJob")["spec"]["entrypoint"].removeprefix("python -m "))]


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda text: text[:40])
def test_the_commands_exist(where: str, command: str) -> None:
    program, name, *arguments = shlex.split(command, comments=True)
    assert program == "ftae"
    group: Any = typer.main.get_command(app)
    assert name in group.commands, f"{where}: ftae {name}"
    group.commands[name].make_context(name, arguments)
