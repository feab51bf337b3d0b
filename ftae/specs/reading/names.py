"""Names and addresses in files: which are safe as file names, and which may hold a secret."""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import unquote

# A user without a password is no secret where the password lies elsewhere: an ssh key, a password file, a key file.
_USER_ALONE = ("sftp", "ssh", "scp", "hdfs", "webhdfs", "smb", "abfs", "abfss", "wasb", "wasbs")
_DATABASES = ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
_FILES = ("sqlite", "file", "local")

# The names that the query of a database's address may have; other addresses have no query.
_HARMLESS = frozenset(
    {"user", "host", "port", "dbname", "driver", "charset", "sslmode", "connect_timeout", "timeout", "application_name"}
    | {"encrypt", "trustservercertificate"}
)

_NAMES_A_SECRET = re.compile(r"(passw(or)?d|pwd|token|secret|signature|credentials?|(access|api|account)[_-]?key|sig)=")

_ENVIRONMENT = {
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "postgresql": "PGPASSWORD",
    "mysql": "MYSQL_PWD",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_KEY",
}

_URL = re.compile(r"(?:[A-Za-z0-9+.-]+::)*([A-Za-z][A-Za-z0-9+.-]+):[/\\]+|//")
_LOGIN = re.compile(r"[^\s/\\:@'\"]+:[^\s/\\@'\"]+@(?=[\w.-])")  # user:password@host, without a scheme
_TOKEN = re.compile(r"[^\s'\"]+")


@dataclass(frozen=True, repr=False)
class Secret:
    """Takes the place of an address that may hold a secret: no field accepts it, and no message can repeat it."""

    rule: str


def secret_problem(address: str) -> str | None:
    """Why ``address`` may not stand in a file: it may hold a secret, which the reason does not repeat. Else None."""
    kind = _secret_in(address)
    if kind is None:
        return None
    scheme = _scheme(address)
    variables = next((names for start, names in _ENVIRONMENT.items() if scheme.startswith(start)), None)
    instead = "give it by the environment" if variables is None else f"set {variables} in the environment"
    return f"must not hold {kind}, {instead}"


def redacted(text: str, *addresses: str) -> str:
    """``text`` without the possible secrets of ``addresses`` and of addresses that it quotes."""
    for address in addresses:
        if _secret_in(address):
            text = _without_parts_of(address, text)
    return _LOGIN.sub("***@", _TOKEN.sub(_redacted_token, text))


def _redacted_token(found: re.Match[str]) -> str:
    """One word of a text; an address that may still hold a secret is cut after its scheme."""
    word = _forms(found[0])[-1]
    start = _URL.search(word)
    if start is None or not _secret_in(word[start.start() :].replace("***@", "").replace("?***", "")):
        return found[0]
    return f"{word[: start.end()]}***"


def _secret_in(address: str) -> str | None:
    """What may be secret in an address, in whichever way it is written; None if nothing may."""
    forms = _forms(address.replace("\\", "/").strip())
    return next((kind for form in forms if (kind := _secret_in_plain(form)) is not None), None)


def _forms(text: str) -> list[str]:
    """A text, and the text after each round of decoding its %-encoding."""
    forms = [text]
    while (plain := unquote(forms[-1])) != forms[-1]:
        forms.append(plain)
    return forms


def _secret_in_plain(address: str) -> str | None:
    found = _URL.match(address)
    if found is None:
        return "a password" if _LOGIN.match(address) else None
    scheme, rest = _scheme(address), address[found.end() :]
    path, _, query = rest.partition("?")
    if scheme in _FILES and not re.match("[^:]+://[^/]", address):  # a path may hold any character
        return _in_query(query, scheme)
    if "#" in rest:
        return "a fragment (#...), which may be a secret"
    # A login ends at the last @, since a password may hold any character. In the name of an object an @ is harmless.
    host, _, _ = path.partition("/")
    login, at, _ = (path if ":" in host or scheme in (*_DATABASES, "http", "https", "ftp") else host).rpartition("@")
    if at and ":" in login:
        return "a password"
    if at and scheme and scheme not in _USER_ALONE + _DATABASES:
        return "a login (...@), which may be a token"
    if _NAMES_A_SECRET.search(path.lower()):
        return "a secret"
    return _in_query(query, scheme)


def _in_query(query: str, scheme: str) -> str | None:
    for part in filter(None, re.split("[&;]", query)):
        name, _, value = part.partition("=")
        if scheme not in _DATABASES or name.lower() not in _HARMLESS or not re.fullmatch(r"[\w .,:/+-]*", value):
            return "a query (?...), which may hold a secret"
    return None


def _scheme(address: str) -> str:
    """The scheme in lower case, without the driver of a database."""
    found = _URL.match(address.strip())
    return (found[1] or "").lower().partition("+")[0] if found is not None else ""


def _without_parts_of(address: str, text: str) -> str:
    rest = address.partition(":/")[2]
    path, *query = re.split("[?#]", rest, maxsplit=1)
    login, at, _ = path.lstrip("/").rpartition("@")
    if at:
        text = text.replace(f"{login}@", "***@")
    values = [part.partition("=")[2] or part for part in re.split("[&;#]", "".join(query))]
    for secret in (*query, *values, login, login.partition(":")[2]):
        for form in (secret, unquote(secret)):
            if len(form) > 3:  # a shorter one would also be replaced inside other words, which would reveal it
                text = text.replace(form, "***")
    return text


LONGEST = 200  # bytes: file systems take 255, and a suffix follows

# The files of the embedded MLflow store, which lie beside the searches in a storage folder.
_EMBEDDED = ("mlflow.db", "mlartifacts", "mlruns")


def file_name_problem(name: object) -> str | None:
    """Why ``name`` cannot be the name of a file on every system; None where it can.

    Names come from files that others wrote, and none may lead out of the folder it belongs in.
    """
    if not isinstance(name, str):
        return "must be text"
    if not name.strip(" .") or name != name.strip():
        return "must not be empty, consist of dots alone, or begin or end with a space"
    if any(mark in name for mark in "/\\") or re.match("[A-Za-z]:", name) or name.startswith("~"):
        return "must be the name of a file, not a path (without / and \\, not beginning with ~ or a drive such as C:)"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "must not hold control characters"
    if len(name.encode()) > LONGEST:
        return f"must have at most {LONGEST} bytes"
    return None


def leads_out(path: object) -> bool:
    """Whether a path in a file leads out of the folder that it is relative to."""
    return not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path


def search_name_problem(name: str) -> str | None:
    """Why a search cannot have this name, which is that of its folder; None where it can."""
    plain = name.casefold()
    if plain in _EMBEDDED or plain.startswith("mlflow.db"):
        return "is the name of the embedded MLflow store, choose another name"
    return file_name_problem(name)


def registry_name_problem(name: str) -> str | None:
    """Why MLflow's registry accepts no model of this name; None where it does."""
    if not name.strip() or any(mark in name for mark in "/:") or name in (".", ".."):
        return "must be a name without / and :"
    if len(name) > 256:
        return "must have at most 256 characters"
    return None
