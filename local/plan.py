"""The shape of a deployment's change set, without asking AWS: what would be added, changed, replaced and removed.

`python -m local.plan dev` compares with nothing, as a first deployment does; `python -m local.plan dev v1.0` with what that
revision of template.yaml and samconfig.toml makes. What is deployed at the moment only AWS knows.
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, override

from cfnlint.schema import PROVIDER_SCHEMA_MANAGER  # pyright: ignore[reportMissingTypeStubs]

from local.errors import StartFailed
from local.intrinsics import Resolver
from local.litemaas_template import litemaas_template
from local.stages import CHECKOUT, SAMCONFIG, Stage
from local.template import Template
from local.translation import REGION, parsed, translated

TEMPLATE = CHECKOUT / "template.yaml"

type Resources = Mapping[str, Mapping[str, Any]]

_ACTIONS = ("Remove", "Replace", "Modify", "Add")


@dataclass(frozen=True)
class Change:
    action: str
    name: str
    kind: str
    properties: tuple[str, ...] = ()


class _Symbols(dict[str, Any]):
    """What is only known in AWS stands for itself."""

    def __init__(self, known: Mapping[str, Any], *, of: str = "") -> None:
        super().__init__(known)
        self._of = of

    @override
    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return f"<{self._of}{key}>"


class _Attributes(dict[str, Mapping[str, Any]]):
    @override
    def get(self, key: str, default: Any = None) -> Any:
        return self[key]

    def __missing__(self, key: str) -> Mapping[str, Any]:
        return _Symbols({}, of=f"{key}.")


def resources(stage_name: str, *, template: str, samconfig: str, release_sha: str) -> Resources:
    """The stack's resources with every condition and parameter of the stage computed. Raises StartFailed for parameters that
    CloudFormation would refuse, in the words of the template."""
    stage = Stage(stage_name, text=samconfig)
    text = litemaas_template(template) if stage.is_drop_in else template
    values = Template(TEMPLATE, text=text).accepted({**stage.overrides, "ReleaseSha": release_sha})
    stack = translated(parsed(text), {name: _text(value) for name, value in values.items()})
    resolver = Resolver(
        references=_Symbols(
            values | {"AWS::StackName": stage.stack_name, "AWS::Region": REGION, "AWS::Partition": "aws"}
        ),
        attributes=_Attributes(),
        conditions=stack.get("Conditions") or {},
        mappings={},
    )
    found: dict[str, Mapping[str, Any]] = {}
    for name, resource in stack["Resources"].items():
        if "Condition" not in resource or resolver.holds(resource["Condition"]):
            found[name] = {"Type": resource["Type"], "Properties": resolver.value(resource.get("Properties") or {})}
    return found


def changes(before: Resources, after: Resources) -> Iterator[Change]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            yield Change("Add", name, new["Type"])
        elif new is None and old is not None:
            yield Change("Remove", name, old["Type"])
        elif old is not None and new is not None and old != new:
            yield _modification(name, old, new)


def _modification(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    kind, was, becomes = str(new["Type"]), old["Properties"], new["Properties"]
    differing = tuple(sorted(p for p in was.keys() | becomes.keys() if was.get(p) != becomes.get(p)))
    is_replaced = old["Type"] != kind or not _fixed_properties(kind).isdisjoint(differing)
    return Change("Replace" if is_replaced else "Modify", name, kind, differing)


def _fixed_properties(kind: str) -> set[str]:
    """Of a resource that cannot get other values of them; AWS's own schemas say so."""
    if kind == "AWS::CloudFormation::CustomResource" or kind.startswith("Custom::"):
        return {"ServiceToken"}
    schema = cast("dict[str, Any]", PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, kind).schema)
    return {path.split("/")[2] for path in schema.get("createOnlyProperties", [])}


def lines(found: Iterable[Change]) -> Iterator[str]:
    """First what is lost; those of one kind that change in one way together."""
    together: dict[tuple[int, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for change in found:
        together[_ACTIONS.index(change.action), change.kind, change.properties].append(change.name)
    for (action, kind, properties), names in sorted(together.items()):
        changed = f" ({', '.join(properties)})" if properties else ""
        yield f"{_ACTIONS[action]:8}{len(names):3} {kind}{changed}: {', '.join(names)}"


def _text(value: Any) -> str:
    return ",".join(cast("list[str]", value)) if isinstance(value, list) else str(value)


def _at(revision: str, file: str) -> str:
    shown = subprocess.run(
        ["git", "show", f"{revision}:{file}"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise StartFailed(shown.stderr.strip())
    return shown.stdout


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("which stage? make plan STAGE=dev, or make plan STAGE=dev SINCE=v1.0")
    stage, since = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None
    try:
        before: Resources = {}
        if since is not None:
            before = resources(
                stage,
                template=_at(since, "template.yaml"),
                samconfig=_at(since, "samconfig.toml"),
                release_sha="0" * 64,
            )
        after = resources(
            stage,
            template=TEMPLATE.read_text(),
            samconfig=SAMCONFIG.read_text(),
            release_sha="1" * 64,
        )
    except StartFailed as error:
        sys.exit(str(error))
    found = list(changes(before, after))
    print(f"stage {stage}, against {since or 'nothing, as at a first deployment'}; AWS was not asked")
    for line in lines(found):
        print(line)
    counts = {action: sum(change.action == action for change in found) for action in _ACTIONS}
    print(", ".join(f"{action}: {number}" for action, number in counts.items()))


if __name__ == "__main__":
    main()
