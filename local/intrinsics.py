"""CloudFormation's intrinsic functions, as YAML tags and as computed values."""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import yaml

from local.errors import StartFailed

type Node = Any
type Attributes = Mapping[str, Mapping[str, Node]]

# What !Ref AWS::NoValue becomes: the property that has it is left out.
NO_VALUE = object()


class _Loader(yaml.SafeLoader):
    """Reads `!Sub x` as {"Fn::Sub": "x"}, the long form of the same thing."""


def _construct_tag(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Node]:
    if isinstance(node, yaml.ScalarNode):
        value: Node = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = str(value).split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(cast("yaml.MappingNode", node), deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _construct_tag)  # pyright: ignore[reportUnknownMemberType]


def read_yaml(text: str) -> dict[str, Node]:
    document: Node = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with CloudFormation's tags
    if not isinstance(document, dict):
        raise StartFailed("the template is not a mapping")
    return cast("dict[str, Node]", document)


class Resolver:
    """Computes values of one template with the names and conditions it is given.

    `references` are what !Ref gives: parameters, pseudo parameters and resources. `attributes` are what !GetAtt gives.
    """

    def __init__(
        self,
        *,
        references: Mapping[str, Node],
        attributes: Attributes,
        conditions: Mapping[str, Node],
        mappings: Mapping[str, Node],
    ) -> None:
        self._references = references
        self._attributes = attributes
        self._conditions = conditions
        self._mappings = mappings
        self._functions: dict[str, Callable[[Node], Node]] = {
            "Ref": lambda argument: self._reference(str(argument)),
            "Condition": lambda argument: self.holds(str(argument)),
            "Fn::And": lambda argument: all(map(self._truth, argument)),
            "Fn::Equals": lambda argument: self._same(*argument),
            "Fn::FindInMap": self._find_in_map,
            "Fn::GetAtt": self._attribute,
            "Fn::If": lambda argument: self.value(argument[1] if self.holds(str(argument[0])) else argument[2]),
            "Fn::Join": lambda argument: str(argument[0]).join(str(part) for part in self.value(argument[1])),
            "Fn::Not": lambda argument: not self._truth(argument[0]),
            "Fn::Or": lambda argument: any(map(self._truth, argument)),
            "Fn::Select": lambda argument: self.value(argument[1])[int(self.value(argument[0]))],
            "Fn::Split": lambda argument: str(self.value(argument[1])).split(str(argument[0])),
            "Fn::Sub": self._substitute,
        }

    def holds(self, condition: str) -> bool:
        """Whether the named condition of the template is true."""
        if condition not in self._conditions:
            raise StartFailed(f"the template has no condition {condition}")
        return self._truth(self._conditions[condition])

    def value(self, node: Node) -> Node:
        """The node with every intrinsic function computed. Raises StartFailed for what cannot be known here."""
        if isinstance(node, dict):
            mapping = cast("dict[str, Node]", node)
            if len(mapping) == 1:
                name, argument = next(iter(mapping.items()))
                if name in self._functions:
                    return self._functions[name](argument)
                if name.startswith("Fn::"):
                    raise StartFailed(f"the local stack does not know {name}")
            computed = {key: self.value(part) for key, part in mapping.items()}
            return {key: part for key, part in computed.items() if part is not NO_VALUE}
        if isinstance(node, list):
            parts = [self.value(part) for part in cast("list[Node]", node)]
            return [part for part in parts if part is not NO_VALUE]
        return node

    def _truth(self, node: Node) -> bool:
        return bool(self.value(node))

    def _same(self, left: Node, right: Node) -> bool:
        # CloudFormation compares text: 1 equals "1", true equals "true".
        return as_text(self.value(left)) == as_text(self.value(right))

    def _reference(self, name: str) -> Node:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name not in self._references:
            raise StartFailed(f"the local stack has no value for !Ref {name}")
        return self._references[name]

    def _attribute(self, argument: Node) -> Node:
        logical_id, attribute = argument
        if attribute not in self._attributes.get(logical_id, {}):
            raise StartFailed(f"the local stack has no value for !GetAtt {logical_id}.{attribute}")
        return self._attributes[logical_id][attribute]

    def _find_in_map(self, argument: Node) -> Node:
        name, first, second = (str(self.value(part)) for part in argument)
        try:
            return self._mappings[name][first][second]
        except KeyError as error:
            raise StartFailed(f"the template's mappings have no {name}.{first}.{second}") from error

    def _substitute(self, argument: Node) -> str:
        text, own = (argument, None) if isinstance(argument, str) else argument
        variables = {name: self.value(node) for name, node in as_mapping(own).items()}

        def replace(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in variables:
                return as_text(variables[name])
            if "." in name:
                return as_text(self._attribute(name.split(".", 1)))
            return as_text(self._reference(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)


def as_mapping(node: Node) -> dict[str, Node]:
    """Absent and empty are the same in a template."""
    return cast("dict[str, Node]", node or {})


def as_text(value: Node) -> str:
    """As CloudFormation writes a scalar where text is wanted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(as_text(part) for part in cast("list[Node]", value))
    return str(value)
