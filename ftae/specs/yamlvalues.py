"""What a plain value of a YAML file is: PyYAML follows YAML 1.1, whose surprises are taken out or refused here."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from ftae.errors import FtaeError

_FLOAT = "tag:yaml.org,2002:float"
# YAML 1.1 wants a dot and a sign: 1e-4 is text to it, and a number to everybody else.
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_BASE_60_OR_8 = re.compile(r"[-+]?(?:\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?|0[0-7_]+)")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader; every error has its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of thousands of digits, base64 that is none
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class Dumper(yaml.SafeDumper):
    """Puts in quotes what ``Loader`` would not read as text."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Written:
    """A date: nothing takes one, and a message shows it as the file has it."""

    text: str

    def __repr__(self) -> str:
        return self.text


Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: Written(str(node.value)))


def misread(node: yaml.Node) -> str | None:
    """What is wrong with a plain number that means another one to YAML than to people."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and _BASE_60_OR_8.fullmatch(node.value):
        number = Loader("").construct_object(node)
        return f"YAML reads {node.value} as {number}: write that, or in quotes what is to be text"
    return None


def load(text: str) -> Any:
    """The value of one text.

    Raises:
        yaml.YAMLError: it is not valid.
        FtaeError: a number in it may be misread.
    """
    loader = Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    nodes = [node]
    while nodes:
        inner = nodes.pop()
        if (reason := misread(inner)) is not None:
            raise FtaeError(reason)
        if isinstance(inner, yaml.SequenceNode):
            nodes += inner.value
        elif isinstance(inner, yaml.MappingNode):
            nodes += [value for _, value in inner.value]
    return loader.construct_document(node)
