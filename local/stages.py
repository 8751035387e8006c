"""The stages of samconfig.toml: what each gives the template, and which of its values are still the examples it came with.

`python -m local.stages dev` asks for those, checks each answer as CloudFormation will, and writes it into the file.
"""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from local.errors import StartFailed
from local.template import Template

CHECKOUT = Path(__file__).parent.parent
SAMCONFIG = CHECKOUT / "samconfig.toml"

# Names that belong to nobody (RFC 2606), and accounts and ids of one digit.
_EXAMPLE = re.compile(r"example\.com|:(\d)\1{11}:|-(\d)\2{16}\b")

type Ask = Callable[[str], str]


class Stage:
    """One stage as the text of samconfig.toml has it."""

    def __init__(self, name: str, *, text: str) -> None:
        """Raises StartFailed when there is no such stage."""
        configuration = tomllib.loads(text)
        stages = [
            stage for stage, commands in configuration.items() if isinstance(commands, dict) and "deploy" in commands
        ]
        if name not in stages:
            raise StartFailed(f"samconfig.toml has no stage {name!r}, only {', '.join(stages)}")
        self.name = name
        parameters = configuration[name]["deploy"]["parameters"]
        self.stack_name = str(parameters["stack_name"])
        self.is_drop_in = "litemaas" in str(parameters.get("template_file", ""))
        entries = [str(entry) for entry in parameters["parameter_overrides"]]
        self.overrides = dict(entry.split("=", 1) for entry in entries if not entry.startswith("file://"))

    @property
    def examples(self) -> dict[str, str]:
        """Parameters whose values nobody can deploy with."""
        return {name: value for name, value in self.overrides.items() if _EXAMPLE.search(value)}


def with_answers(text: str, stage: Stage, *, template: Template, ask: Ask, say: Callable[[str], None]) -> str:
    """The text of samconfig.toml with an answer in the place of each example; comments and order stay."""
    begin = text.index(f"[{stage.name}.deploy.parameters]")
    end = text.find("\n[", begin)
    end = len(text) if end < 0 else end
    section = text[begin:end]
    for name, example in stage.examples.items():
        say(f"\n{name}: {template.description(name)}\n  for example {example}")
        section = section.replace(f'"{name}={example}"', f'"{name}={_answer(name, template, ask, say)}"')
    return text[:begin] + section + text[end:]


def _answer(name: str, template: Template, ask: Ask, say: Callable[[str], None]) -> str:
    while True:
        given = ask(f"{name} = ").strip()
        refusal = template.refusal(name, given)
        if refusal is None and '"' not in given:
            return given
        say(f"  {refusal or 'it must not have a quotation mark'}")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("which stage? make deploy STAGE=dev")
    text = SAMCONFIG.read_text()
    try:
        stage = Stage(sys.argv[1], text=text)
        if not stage.examples:
            return
        if not sys.stdin.isatty():
            raise StartFailed(
                f"samconfig.toml has examples for {', '.join(stage.examples)} of stage {stage.name}; put your own values in"
            )
        template = Template(CHECKOUT / ("build/template-litemaas.yaml" if stage.is_drop_in else "template.yaml"))
        answered = with_answers(text, stage, template=template, ask=input, say=print)
    except (StartFailed, EOFError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "nothing was changed")
    SAMCONFIG.write_text(answered)
    print(f"\nwritten to samconfig.toml, stage {stage.name}")


if __name__ == "__main__":
    main()
